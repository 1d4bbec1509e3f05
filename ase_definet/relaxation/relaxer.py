"""DefiNetRelaxer: match, build the graph, run the network once, hand back relaxed atoms."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ase_definet import __version__
from ase_definet.checkpoints.format import load_checkpoint, resolve_model
from ase_definet.errors import (
    DefiNetError,
    DefiNetWarning,
    DeviceError,
    HostError,
    MatchError,
    StrictError,
    StructureError,
)
from ase_definet.matching.host import Host
from ase_definet.matching.library import LIBRARY_SOURCE, get_host, library
from ase_definet.matching.site_map import SiteMap, match_sites, strain_notice
from ase_definet.matching.supercell import MAX_STRAIN
from ase_definet.model import predict
from ase_definet.model.graph import DefectGraph, batch_graphs
from ase_definet.model.host_routing import HostRoutedModel
from ase_definet.model.lattice_convolution import LatticeGeometry
from ase_definet.model.site_network import SiteNetwork
from ase_definet.model.working_set import WorkingSet
from ase_definet.relaxation.inputs import InitialPositions, build_lattice, displaced, to_graph
from ase_definet.structures.charges import charge_of
from ase_definet.structures.conversion import as_atoms, as_structure

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]
Structure_ = TypeVar("Structure_")

SEEN_STRAIN = 0.005
"""The data has no strain at all; up to this much is called experience."""

DILUTE = 0.01
"""Below this share of defect sites, defects are isolated."""

SEEN_OFFSET = 0.05
"""Sites of a host this close to those of the library's are called the same, in Å, root mean square."""

REFINE_STEPS = 5
"""Steps of a refinement, at most, where nothing else is asked for."""

REFINED = 0.05
"""Largest force at which a refinement stops early, in eV/Å."""

KEPT_LATTICES = 4
"""Supercells whose kernels a relaxer keeps: some 10 to 60 MB each."""

BATCH_SITES = 20_000
"""Sites that :meth:`DefiNetRelaxer.relax_many` collects before it relaxes them, at most."""

HARMLESS = frozenset({"pristine"})
"""Respects in which a structure may lie outside the training data and still have an expected error."""


@dataclass(frozen=True, eq=False)
class RelaxResult:
    """What one pass of the network says of one structure.

    Attributes:
        atoms: The relaxed structure, in the caller's order, cell and images.
        displacement: Relaxed minus given positions in the caller's order, shape ``(n_atoms, 3)``, in Å.
        site_displacement: Predicted displacement of every host site, shape ``(n_sites, 3)``, in Å.
        site_map: The match to the host.
        warnings: Reasons to distrust the result, in words.
        timings: Seconds spent in ``match``, ``graph`` and ``forward`` (its share of a batch).
        model: Name, version and hash of the weights.
        expected_error: Expected length of the error of every atom in the caller's order, shape ``(n_atoms,)``, in Å;
            None where the weights have no such estimate, and where nothing supports one, because the structure lies
            outside the training data in any other respect than ``pristine``.
        outside: In which respects the structure lies outside the training data, in a word each: ``host``,
            ``species``, ``defects``, ``density``, ``strain``, ``sites``, ``charge``, ``pristine``; ``training`` where
            nothing is known about it.
    """

    atoms: Atoms
    displacement: Array
    site_displacement: Array
    site_map: SiteMap
    warnings: tuple[str, ...]
    timings: Mapping[str, float]
    model: str
    expected_error: Array | None = None
    outside: tuple[str, ...] = ()

    @property
    def kinds(self) -> Array:
        """:class:`~ase_definet.matching.site_kind.SiteKind` of every host site, shape ``(n_sites,)``."""
        return self.site_map.kinds

    @property
    def unsupported(self) -> tuple[str, ...]:
        """In which respects the structure lies so far outside the training data that no error can be expected."""
        return tuple(word for word in self.outside if word not in HARMLESS)

    @property
    def strain(self) -> Array:
        """Principal strains of the host onto the cell, shape ``(3,)``."""
        return self.site_map.strain

    @property
    def structure(self) -> Any:
        """The relaxed structure as a pymatgen Structure, sites in the caller's order, in Å; the charge stays."""
        return as_structure(self.atoms)

    @property
    def unrelaxed(self) -> Atoms:
        """The structure that was given, its atoms on the host's ideal sites."""
        given = self.atoms.copy()
        given.positions -= self.displacement
        out = displaced(given, self.site_map, np.zeros((len(self.site_map.kinds), 3)))
        _forget(out)
        return out


@dataclass(frozen=True)
class RelaxFailure:
    """The record of a structure that could not be relaxed.

    Attributes:
        index: Its position in the input.
        error: What went wrong.
    """

    index: int
    error: Exception


def _alike(items: list[_Prepared], most_sites: int) -> list[list[int]]:
    """Group what can pass the network together: the same lattice, or graphs, and not more sites than wanted."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, item in enumerate(items):
        key = ("graph",) if item.graph is not None else _lattice_key(item.site_map)
        groups.setdefault(key, []).append(i)
    out = []
    for group in groups.values():
        largest = max(len(items[i].site_map.kinds) for i in group)
        step = max(1, most_sites // largest)
        out += [group[start : start + step] for start in range(0, len(group), step)]
    return out


def _lattice_key(site_map: SiteMap) -> tuple[object, ...]:
    """Name the lattice of a match; equal to 1e-5 Å, equal names."""
    cell, positions = site_map.unit
    plane = cell if site_map.pbc[2] else cell[:2]
    rounded = (np.round(plane, 5) + 0.0).tobytes(), (np.round(positions, 5) + 0.0).tobytes()
    return (*rounded, site_map.host.numbers.tobytes(), site_map.supercell.tobytes(), site_map.pbc)


def _forget(atoms: Atoms) -> None:
    """Take off what an earlier prediction said of the atoms."""
    for values in (atoms.info, atoms.arrays):
        for name in [key for key in values if str(key).startswith("definet_")]:
            del values[name]


def _numbers(values: torch.Tensor) -> Array:
    return values.cpu().double().numpy()


@dataclass(frozen=True, eq=False)
class _Prepared:
    index: int
    atoms: Atoms
    site_map: SiteMap
    graph: DefectGraph | None
    warnings: tuple[str, ...]
    outside: tuple[str, ...]
    timings: dict[str, float]


class DefiNetRelaxer:
    """Relax defect structures in one forward pass.

    Args:
        model: Name of bundled weights (see ``ase-definet weights list``) or the path of a ``.safetensors`` file.
        host: Default host: a library name, a file, an Atoms, a Structure, a Host, or ``"auto"``.
        device: ``"auto"`` (CUDA where there is one, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        initial_positions: Where the network sees the atoms: ``"ideal"``, on the host's sites, as in training, or
            ``"given"``, where the caller has them.
        strict: Turn every reason to distrust a result into a :class:`~ase_definet.errors.StrictError`.
        max_strain: Largest principal strain of the host onto a cell.
        refine_with: An ASE calculator that takes a few steps after the prediction, at fixed cell; None for none.
        refine_steps: How many evaluations of its forces, at most; fewer where they fall below 0.05 eV/Å.
        working_set: How much goes through the network at a time; by default what suits the device.

    Raises:
        CheckpointError: The weights cannot be found or read.
        DeviceError: The device is not there.

    Examples:
        >>> from ase.build import mx2
        >>> atoms = mx2("MoS2", a=3.19, size=(8, 8, 1), vacuum=10)
        >>> del atoms[100]
        >>> relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
        >>> relaxed = relaxer.relax(atoms)
        >>> len(relaxed), bool(abs(relaxed.positions - atoms.positions).max() > 0.01)
        (191, True)

    References:
        Yang et al., npj Comput. Mater. 11, 229 (2025).
    """

    def __init__(
        self,
        model: str = "default",
        host: object = None,
        device: str = "auto",
        *,
        initial_positions: InitialPositions = "ideal",
        strict: bool = False,
        max_strain: float = MAX_STRAIN,
        refine_with: Any = None,
        refine_steps: int | None = None,
        working_set: WorkingSet | None = None,
    ) -> None:
        if initial_positions not in {"ideal", "given"}:
            raise DefiNetError(f"initial_positions must be 'ideal' or 'given', found {initial_positions!r}")
        if not max_strain > 0:
            raise DefiNetError(f"max_strain must be positive, found {max_strain}")
        wanted = checked_device(device)
        path = resolve_model(model)
        loaded = load_checkpoint(path)
        self.network = loaded.model.to(wanted).eval()
        self.working_set = working_set or WorkingSet.of(wanted)
        self.card = loaded.card
        self.sha256 = loaded.sha256
        name = str(self.card.get("name") or path.stem)
        self.model = f"{name} {self.card.get('version', '')}".strip() + f" ({loaded.sha256[:12]})"
        self.cutoff = float(loaded.config.cutoff)
        self.max_neighbors: int | None = getattr(loaded.config, "max_neighbors", None)
        self.host = host if host is None or _is_auto(host) else get_host(host)
        self.initial_positions: InitialPositions = initial_positions
        self.strict = strict
        self.max_strain = max_strain
        if refine_steps is not None and refine_with is None:
            raise DefiNetError("refine_steps without refine_with: give the ASE calculator that is to take the steps")
        refine_steps = REFINE_STEPS if refine_steps is None else refine_steps
        if refine_steps < 1:
            raise DefiNetError(f"refine_steps must be at least 1, found {refine_steps}")
        self.refine_with, self.refine_steps = refine_with, refine_steps
        self._lattices: dict[tuple[object, ...], LatticeGeometry] = {}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._weights.device

    @property
    def _weights(self) -> torch.Tensor:
        """One of the weights, for the device and the type that they have now: the network is the user's to move."""
        return next(self.network.parameters())

    def relax(self, atoms: Structure_, host: object = None) -> Structure_:
        """Return the relaxed structure; the input is not changed.

        Args:
            atoms: An Atoms or a pymatgen Structure, in Å.
            host: Its host, if not the relaxer's own.

        Returns:
            A new structure of the type given: same order, cell, images, constraints, info and arrays.

        Raises:
            DefiNetError: The structure is unusable, the host does not fit, or atoms have no site.
        """
        item = self._prepare(atoms, host)
        predicted = self._one(item)
        for text in predicted.warnings:
            warnings.warn(text, DefiNetWarning, stacklevel=2)
        return like(atoms, self._refined(predicted, item.atoms).atoms)

    def predict(self, atoms: object, host: object = None, **match_options: Any) -> RelaxResult:
        """Relax one structure and say how: see :class:`RelaxResult`.

        Args:
            atoms: An Atoms or a pymatgen Structure, in Å.
            host: Its host, if not the relaxer's own.
            match_options: ``kinds`` or ``substitutions`` for :func:`~ase_definet.matching.site_map.match_sites`.

        Raises:
            DefiNetError: As in :meth:`relax`.
        """
        item = self._prepare(atoms, host, **match_options)
        return self._refined(self._one(item), item.atoms)

    def _one(self, item: _Prepared) -> RelaxResult:
        """Predict one structure, or raise what went wrong with it."""
        (found,) = self._run([item])
        if isinstance(found, Exception):
            raise found
        return found

    def relax_many(
        self, structures: Iterable[object], host: object = None, batch_sites: int = BATCH_SITES
    ) -> Iterator[RelaxResult | RelaxFailure]:
        """Relax any number of structures in batches, in order, one record each.

        Args:
            structures: Atoms or pymatgen Structures; the iterable is read as far as the next batch only. An
                exception in place of a structure becomes its record.
            host: Their host, if not the relaxer's own.
            batch_sites: Sites in one pass, at most; results come when so many are together.

        Yields:
            A :class:`RelaxResult`, or a :class:`RelaxFailure` where a structure could not be relaxed. A failure
            leaves the results of the others as they are without it, to the bit.
        """
        if hasattr(structures, "get_positions") or hasattr(structures, "lattice"):
            raise StructureError("relax_many takes several structures, found one: put it in a list")
        if host is not None and not _is_auto(host):
            with suppress(Exception):  # read and reduce it once; what is wrong with it each structure's record says
                host = get_host(host)
        pending: list[_Prepared | RelaxFailure] = []
        source = enumerate(structures)
        while True:
            try:
                index, atoms = next(source)
            except StopIteration:
                break
            except Exception:  # what was read before must not be lost
                yield from self._flush(pending)
                raise
            item: _Prepared | RelaxFailure
            try:
                if isinstance(atoms, Exception):
                    raise atoms  # noqa: TRY301
                item = self._prepare(atoms, host, index)
            except Exception as error:  # noqa: BLE001 - one bad structure must not cost the others
                item = RelaxFailure(index, error)
            while pending and _sites(pending) + _sites([item]) > batch_sites:
                pending = yield from self._pass(pending)
            pending.append(item)
            while pending and isinstance(first := pending[0], RelaxFailure):
                yield first
                del pending[0]
        yield from self._flush(pending)

    def _flush(self, pending: list[_Prepared | RelaxFailure]) -> Iterator[RelaxResult | RelaxFailure]:
        """Relax what is pending and yield all records, in order."""
        while pending:
            pending = yield from self._pass(pending)

    def _pass(
        self, pending: list[_Prepared | RelaxFailure]
    ) -> Generator[RelaxResult | RelaxFailure, None, list[_Prepared | RelaxFailure]]:
        """Try to relax what is pending; yield all records, in order, if nothing failed that had not failed before.

        The last bits of a result depend on what else was in its pass. What failed in it therefore makes way, and is
        returned as its record among what is then to be passed once more.
        """
        found = iter(self._guarded([item for item in pending if isinstance(item, _Prepared)]))
        tried = [(item, item if isinstance(item, RelaxFailure) else next(found)) for item in pending]
        if any(isinstance(outcome, Exception) for _, outcome in tried):
            return [RelaxFailure(item.index, out) if isinstance(out, Exception) else item for item, out in tried]
        for item, outcome in tried:
            record: Any = outcome
            if isinstance(item, _Prepared):
                try:
                    record = self._refined(record, item.atoms)
                except Exception as error:  # noqa: BLE001 - as above
                    record = RelaxFailure(item.index, error)
            yield record
        return []

    def _guarded(self, items: list[_Prepared]) -> list[RelaxResult | Exception]:
        """Run a batch, halving it where memory runs out or the network fails, down to those that fail alone."""
        if not items:
            return []
        try:
            found = self._run(items)
        except Exception as error:  # noqa: BLE001 - one bad structure must not cost the others
            problem = error
            traceback.clear_frames(error.__traceback__)  # else their tensors fill the memory of the next try
        else:
            for outcome in found:
                if isinstance(outcome, Exception):
                    traceback.clear_frames(outcome.__traceback__)  # else a record keeps the arrays of its batch
            return found
        if _out_of_memory(problem):
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(items) == 1:
                sites = _sites(items)
                problem = DeviceError(f"{self.device} has too little memory for one structure of {sites} sites")
            else:
                text = f"out of memory on {self.device}: halving the batch to {len(items) // 2} structures"
                warnings.warn(text, DefiNetWarning, stacklevel=2)
        if len(items) == 1:
            return [problem]
        half = len(items) // 2
        return self._guarded(items[:half]) + self._guarded(items[half:])

    def _prepare(self, atoms: object, host: object, index: int = 0, **match_options: Any) -> _Prepared:
        host = self.host if host is None else host
        if host is None:
            raise HostError("no host: give one to the relaxer or to this call (a name, a file, an Atoms or 'auto')")
        given = as_atoms(atoms)
        began = time.perf_counter()
        site_map = match_sites(
            given, host if _is_auto(host) else get_host(host), max_strain=self.max_strain, **match_options
        )
        site_map.require_sites_only()
        matched = time.perf_counter()
        # on ideal sites the lattice is known without looking for neighbours
        ideal = self.initial_positions == "ideal" and isinstance(self.network, SiteNetwork | HostRoutedModel)
        quick = ideal and LatticeGeometry.suits(torch.as_tensor(site_map.supercell))
        graph = (
            None
            if quick
            else to_graph(site_map, self.cutoff, self.max_neighbors, self.initial_positions, self._precision)
        )
        reservations = tuple(self._reservations(given, site_map))
        reasons = tuple(text for _, text in reservations)
        said = {strain_notice(site_map)} if "strain" in dict(reservations) else set()
        reasons = tuple(text for text in site_map.warnings if text not in said) + reasons
        if self.strict and reasons:
            raise StrictError("; ".join(reasons))
        charge = charge_of(given)
        if charge.note and not charge.value:  # worth saying, but no reason to distrust the prediction
            reasons += (charge.note,)
        timings = {"match": matched - began, "graph": time.perf_counter() - matched}
        outside = tuple(word for word, _ in reservations)
        return _Prepared(index, given, site_map, graph, reasons, outside, timings)

    @torch.inference_mode()
    def _run(self, items: list[_Prepared]) -> list[RelaxResult | Exception]:
        """Run the network and place the atoms; what fails of one structure alone takes the place of its result."""
        if self.network.training:  # somebody trained it: a prediction drops no channels
            self.network.eval()
        out: dict[int, RelaxResult | Exception] = {}
        for part in _alike(items, self.working_set.sites):
            began = time.perf_counter()
            moved, errors = self._predict([items[i] for i in part])
            seconds = (time.perf_counter() - began) / len(part)
            start = 0
            for i in part:
                stop = start + len(items[i].site_map.kinds)
                expected = None if errors is None else errors[start:stop]
                try:
                    out[i] = self._result(items[i], moved[start:stop], expected, seconds)
                except Exception as error:  # noqa: BLE001 - one bad structure must not cost the others
                    out[i] = error
                start = stop
        return [out[i] for i in range(len(items))]

    def _predict(self, items: list[_Prepared]) -> tuple[Array, Array | None]:
        """Return displacements, in the callers' frames, and expected errors of all sites, structure by structure."""
        graphs = [item.graph for item in items if item.graph is not None]
        if graphs:
            moved, errors = predict(self.network, batch_graphs(graphs).to(self.device), self.working_set)
            return _numbers(moved), None if errors is None else _numbers(errors)
        network = cast("SiteNetwork | HostRoutedModel", self.network)
        maps = [item.site_map for item in items]
        numbers = torch.as_tensor(np.stack([m.numbers for m in maps], axis=1)).to(self.device)
        kinds = torch.as_tensor(np.stack([m.kinds for m in maps], axis=1)).to(self.device)
        host_numbers = torch.as_tensor(maps[0].host_numbers).to(self.device)
        moved, errors = network.estimate(self._lattice(maps[0]), numbers, host_numbers, kinds)
        in_host = _numbers(moved).transpose(1, 0, 2)
        turned = np.concatenate([part @ m.rotation.T for part, m in zip(in_host, maps, strict=True)])
        return turned, None if errors is None else _numbers(errors).T.ravel()

    @property
    def _precision(self) -> torch.dtype:
        """Type of the numbers of a geometry: that of the weights, at least single."""
        return torch.promote_types(self._weights.dtype, torch.float32)

    def _lattice(self, site_map: SiteMap) -> LatticeGeometry:
        """Return the geometry of a supercell, those used last from memory."""
        key = (*_lattice_key(site_map), self.device, self._precision)
        lattice = self._lattices.pop(key, None)
        if lattice is None:
            cell, positions = site_map.unit
            lattice = build_lattice(
                site_map.host.numbers,
                positions,
                cell,
                site_map.pbc,
                site_map.supercell,
                self.cutoff,
                dtype=self._precision,
                keep_kernels=True,
            ).to(self.device, self.working_set)
        self._lattices[key] = lattice
        while len(self._lattices) > KEPT_LATTICES:
            del self._lattices[next(iter(self._lattices))]
        return lattice

    def _result(self, item: _Prepared, displacement: Array, expected: Array | None, seconds: float) -> RelaxResult:
        if not np.isfinite(displacement).all():
            raise DeviceError(f"{self.model} gave numbers that are not finite: the weights are damaged")
        reasons = item.warnings + tuple(_far_moves(item.site_map, displacement))
        if self.strict and len(reasons) > len(item.warnings):
            raise StrictError("; ".join(reasons[len(item.warnings) :]))
        expected_error = None
        if expected is not None and HARMLESS.issuperset(item.outside):
            expected_error = np.zeros(len(item.atoms))
            real = item.site_map.atom_index >= 0
            expected_error[item.site_map.atom_index[real]] = expected[real]
        relaxed = displaced(item.atoms, item.site_map, displacement, self.initial_positions)
        _forget(relaxed)
        counts = ", ".join(f"{name} x{n}" for name, n in item.site_map.defect_counts.items())
        relaxed.info |= {
            "definet_model": self.model,
            "definet_version": __version__,
            "definet_host": item.site_map.host.name,
            "definet_defects": counts or "none",
        }
        if expected_error is not None:
            relaxed.set_array("definet_expected_error", expected_error)
        if reasons:
            relaxed.info["definet_warnings"] = "; ".join(reasons)
        return RelaxResult(
            atoms=relaxed,
            displacement=relaxed.positions - item.atoms.positions,
            site_displacement=displacement,
            site_map=item.site_map,
            warnings=reasons,
            timings=item.timings | {"forward": seconds},
            model=self.model,
            expected_error=expected_error,
            outside=item.outside,
        )

    def _refined(self, result: RelaxResult, given: Atoms) -> RelaxResult:
        """Take a few steps with the calculator of :attr:`refine_with`; where it fails, the prediction stays.

        Raises:
            StrictError: It failed, and nothing doubtful is wanted.
        """
        if self.refine_with is None:
            return result
        from ase_definet.relaxation.stepping import relax_with  # noqa: PLC0415 - ASE's optimizers take a while to import

        run = relax_with(result.atoms, self.refine_with, "BFGS", REFINED, self.refine_steps)
        name = type(self.refine_with).__name__
        if not run.error:
            run.atoms.info["definet_refined"] = f"{run.steps} steps of {name}"
            return replace(result, atoms=run.atoms, displacement=run.atoms.positions - given.positions)
        text = f"{name} failed after {run.steps} steps, the result is the prediction alone: {run.error}"
        if self.strict:
            raise StrictError(text)
        warnings.warn(text, DefiNetWarning, stacklevel=2)
        reasons = (*result.warnings, text)
        result.atoms.info["definet_warnings"] = "; ".join(reasons)
        return replace(result, warnings=reasons)

    def _reservations(self, atoms: Atoms, site_map: SiteMap) -> Iterator[tuple[str, str]]:
        """Yield every way in which a structure lies outside the training data: a word, and a sentence."""
        charge = charge_of(atoms)
        if charge.value:
            source = f" ({charge.note})" if charge.note else ""
            yield (
                "charge",
                f"net charge {charge.value:+d}: the model was trained on neutral cells and ignores it{source}",
            )
        training = self.card.get("training")
        if not isinstance(training, Mapping):
            yield (
                "training",
                f"model {self.model} has no record of its training data: nothing is known about its reach",
            )
            return
        elements = set(training["elements"])
        found = [e for e in dict.fromkeys(atoms.get_chemical_symbols()) if e not in elements]
        if found:
            yield "species", f"elements never seen in training: {', '.join(found)}"
        hosts = training["hosts"]
        name, strain, offset = known_host(site_map.host)
        strain += site_map.max_strain
        if not site_map.defects:
            yield "pristine", "no defects found: the structure is the pristine host"
        if name not in hosts:
            known = ", ".join(hosts)
            yield (
                "host",
                f"host {site_map.host.name} was not in the training data ({known}): do not trust this result",
            )
            return
        seen = hosts[name]
        new = [defect for defect in site_map.defect_counts if defect not in seen["defects"]]
        if new:
            yield "defects", f"defects never seen in {name}: {', '.join(new)}"
        low, high = seen["density"]
        # a host seen with isolated defects is taken to be seen at any lower density, in cells of any size
        if site_map.defects and not (0.0 if low < DILUTE else low * 0.999) <= site_map.density <= high * 1.001:
            yield (
                "density",
                f"{site_map.density:.2%} of the sites are defects, training in {name} had {low:.2%} to {high:.2%}",
            )
        if abs(strain) > SEEN_STRAIN:
            own = f"; {strain_notice(site_map)}" if abs(site_map.max_strain - strain) > SEEN_STRAIN else ""
            yield "strain", f"the cell is strained by {strain:+.1%} against the {name} of the training data{own}"
        if offset > SEEN_OFFSET:
            yield "sites", f"the host's sites lie {offset:.2f} Å (rms) from those of the {name} in the training data"


def _far_moves(site_map: SiteMap, displacement: Array) -> Iterator[str]:
    """Yield a warning where an atom moves further than the sites of the host are apart.

    Args:
        site_map: The match.
        displacement: Of every site, shape ``(n_sites, 3)``, in Å; that of empty sites is ignored.
    """
    length = np.where(site_map.atom_index >= 0, np.linalg.norm(displacement, axis=1), 0.0)
    bond = site_map.host.nearest_neighbor
    far = np.count_nonzero(length > bond)
    if far:
        site = int(length.argmax())
        atom = f"atom {site_map.atom_index[site]} ({chemical_symbols[site_map.numbers[site]]})"
        more = f", and {far - 1} more such atoms" if far > 1 else ""
        yield (
            f"{atom} is predicted {length[site]:.2f} Å from its site, further than a bond of the host is long "
            f"({bond:.2f} Å){more}: look at the result before you use it"
        )


@lru_cache(maxsize=32)
def known_host(host: Host) -> tuple[str | None, float, float]:
    """Find a host given in any way in the library.

    Returns:
        Its library name, None for a different crystal; its largest principal strain against the library's cell; and
        the root mean square distance of its sites from the library's, in Å.
    """
    from ase import Atoms  # noqa: PLC0415

    if host.source == LIBRARY_SOURCE:
        return host.name, 0.0, 0.0
    repeat = (2, 2, 1 if host.layered else 2)
    atoms = Atoms(numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=True).repeat(repeat)
    for name, candidate in library().items():
        if candidate.composition != host.composition or candidate.layered != host.layered:
            continue
        try:
            found = match_sites(atoms, candidate)
        except (HostError, MatchError):
            continue
        if not found.defect_counts:
            return name, found.max_strain, found.cost
    return None, 0.0, 0.0


def _sites(items: Sequence[_Prepared | RelaxFailure]) -> int:
    """Count the sites of what still has to pass the network."""
    return sum(len(item.site_map.kinds) for item in items if isinstance(item, _Prepared))


def _is_auto(host: object) -> bool:
    return isinstance(host, str) and host.lower() == "auto"


def checked_device(name: str) -> torch.device:
    """Return the device of a name, checked to be there.

    Raises:
        DeviceError: It is not, or the networks do not run on it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA device(s); use cpu"
        )
    if device.type == "mps":
        raise DeviceError(
            f"device {name!r} is not supported: the phases of a lattice need double precision, which MPS does not "
            "have; use cpu"
        )
    if device.type not in {"cpu", "cuda"}:
        raise DeviceError(f"device {name!r} is not supported: expected auto, cpu, cuda or cuda:N")
    return device


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: in torch's words for it, in those of CUDA's libraries, or in NumPy."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def like(given: Structure_, relaxed: Atoms) -> Structure_:
    """Return the relaxed atoms as the type that was given."""
    out: Any = relaxed
    if hasattr(given, "lattice"):
        out = given.copy()  # type: ignore[attr-defined]
        for k, position in enumerate(relaxed.positions):
            out[k].coords = position
    return cast("Structure_", out)
