"""DefiNetRelaxer: match, prepare, collate, predict, place, judge, and a calculator where the network knows nothing.

The way of a structure is a straight line, each stage handing a frozen value to the next: ``match_sites`` (atoms to
:class:`SiteMap`), ``prepare`` (sites to the network's input), ``collate`` (several to a batch), ``predict``
(displacements and expected errors), ``displaced`` (atoms on their new places), and the :class:`Domain`, which says
how far the result can be trusted.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ase_definet import __version__
from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.format import load_checkpoint
from ase_definet.errors import DefiNetError, DefiNetWarning, DeviceError, HostError, StrictError, StructureError
from ase_definet.matching.library import get_host
from ase_definet.matching.shared_sites import Matcher, Placed
from ase_definet.matching.site_map import SiteMap, match_sites, strain_notice
from ase_definet.matching.supercell import MAX_STRAIN
from ase_definet.model.lattice_convolution import LatticeGeometry
from ase_definet.model.protocol import DisplacementModel, Lattice, Routed
from ase_definet.model.working_set import WorkingSet
from ase_definet.relaxation.batching import Batches, alike
from ase_definet.relaxation.calculation import (
    FMAX,
    GIVEN,
    IDEAL,
    MAX_STEPS,
    PREDICTION,
    SYMMETRY_BREAKING,
    CalculatorStage,
)
from ase_definet.relaxation.devices import checked_device
from ase_definet.relaxation.domain import Domain, far_moves
from ase_definet.relaxation.expected_error import expected_of_sites
from ase_definet.relaxation.inputs import (
    InitialPositions,
    Item,
    beside_extra_atoms,
    by_atom,
    displaced,
    pristine_twin,
    sites_of,
    twin_key,
)
from ase_definet.relaxation.lattices import LatticeCache
from ase_definet.relaxation.property_stage import PropertyStage
from ase_definet.relaxation.result import LEFT, Method, RelaxFailure, RelaxResult, forget_earlier
from ase_definet.structures.charges import charge_of
from ase_definet.structures.conversion import as_atoms
from ase_definet.structures.state import PREDICTED_STATE, codes_of, said_of

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]
Structure_ = TypeVar("Structure_")

BATCH_SITES = 20_000
"""Sites that :meth:`DefiNetRelaxer.relax_many` collects before it relaxes them, at most."""


def _numbers(values: torch.Tensor) -> Array:
    return values.cpu().double().numpy()


class DefiNetRelaxer:
    """Relax defect structures in one forward pass, and with a calculator where the network knows nothing.

    Args:
        model: Name of bundled weights (see ``ase-definet weights list``) or the path of a ``.safetensors`` file.
        host: Default host: a library name, a file, an Atoms, a Structure, a Host, or ``"auto"``.
        device: ``"auto"`` (CUDA if available, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        initial_positions: Atomic positions given to the network: ``"ideal"``, on the host's sites, as in training, or
            ``"given"``, those of the caller.
        strict: Turn every reason to distrust a result into a :class:`~ase_definet.errors.StrictError`.
        extrapolate: Use the prediction even if it is not expected to beat the ideal sites, on which the atoms are
            then left by default.
        max_strain: Largest principal strain of the host onto a cell.
        calculator: Relaxes, at fixed cell, what is outside the training data, also with atoms on no site of the host:
            an ASE calculator, or a name of :data:`~ase_definet.relaxation.calculators.CALCULATORS`. It starts from
            the ideal sites, or the prediction with ``extrapolate``. None for no calculator.
        calculator_settings: Settings of a calculator given by name.
        refine: Whether the calculator also goes on from the predictions that can be trusted.
        fmax: Largest force at which the calculator stops, in eV/Å.
        max_steps: Largest number of its force evaluations.
        symmetry_breaking: Standard deviation of the random displacement around the defects by which a symmetric start
            of the calculator can lose its symmetry, in Å; 0 for none.
        seed: Of that displacement.
        properties: Weights for properties (formation energy, gap, magnetic moment), bundled ones by name or a file;
            None not to predict any.
        chemical_potentials: Those that formation energies are given for: ``{"S": -4.5}`` in eV per atom, or
            ``["rich:S"]``; the bulk phases of the elements for all others.
        working_set: How much the network processes at a time; by default chosen for the device.

    Raises:
        CheckpointError: The weights cannot be found or read.
        DeviceError: The device is not available.
        CalculatorError: The calculator is unknown or not installed, or a setting of it makes no sense.

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
        extrapolate: bool = False,
        max_strain: float = MAX_STRAIN,
        calculator: Any = None,
        calculator_settings: Mapping[str, Any] | None = None,
        refine: bool = False,
        fmax: float = FMAX,
        max_steps: int = MAX_STEPS,
        symmetry_breaking: float = SYMMETRY_BREAKING,
        seed: int = 0,
        properties: str | None = "default",
        chemical_potentials: Iterable[str] | Mapping[str, float] | None = None,
        working_set: WorkingSet | None = None,
    ) -> None:
        if initial_positions not in {"ideal", "given"}:
            raise DefiNetError(f"initial_positions must be 'ideal' or 'given', found {initial_positions!r}")
        if not max_strain > 0:
            raise DefiNetError(f"max_strain must be positive, found {max_strain}")
        wanted = checked_device(device)
        path = resolve_model(model)
        loaded = load_checkpoint(path)
        self.network: DisplacementModel = loaded.model.to(wanted).eval()
        self.working_set = working_set or WorkingSet.of(wanted)
        self.card = loaded.card
        self.sha256 = loaded.sha256
        name = f"{self.card.name or path.stem} {self.card.version or ''}".strip()
        self.model = f"{name} ({loaded.sha256[:12]})"
        self.domain = Domain(self.card, self.model)
        self.host = host if host is None or _is_auto(host) else get_host(host)
        self.initial_positions: InitialPositions = initial_positions
        self.strict = strict
        self.extrapolate = extrapolate
        self.max_strain = max_strain
        self.calculator = CalculatorStage.of(
            calculator,
            calculator_settings,
            refine=refine,
            fmax=fmax,
            max_steps=max_steps,
            symmetry_breaking=symmetry_breaking,
            seed=seed,
        )
        self.properties = PropertyStage.of(properties, chemical_potentials, device)
        self.lattices = LatticeCache(self.working_set)
        self.matcher = Matcher()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device  # as it is now: the network is the user's to move

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
        result = self._calculated(self._one(item), item)
        for text in result.warnings:
            warnings.warn(text, DefiNetWarning, stacklevel=2)
        return like(atoms, result.atoms)

    def predict(
        self, atoms: object, host: object = None, *, calculate: bool = True, **match_options: Any
    ) -> RelaxResult:
        """Relax one structure and say how: see :class:`RelaxResult`.

        Args:
            atoms: An Atoms or a pymatgen Structure, in Å.
            host: Its host, if not the relaxer's own.
            calculate: Whether the calculator, if there is one, does its part; otherwise the result is its start.
            match_options: ``kinds`` or ``substitutions`` for :func:`~ase_definet.matching.site_map.match_sites`.

        Raises:
            DefiNetError: As in :meth:`relax`.
        """
        item = self._prepare(atoms, host, **match_options)
        result = self._one(item)
        return self._calculated(result, item) if calculate else result

    def predict_from(self, atoms: object, host: object = None) -> RelaxResult:
        """Return the network's answer from the given positions instead of the ideal sites, without a calculator.

        Args:
            atoms: An Atoms or a pymatgen Structure, in Å.
            host: Its host, if not the relaxer's own.

        Raises:
            DefiNetError: As in :meth:`relax`.
        """
        asked = self.initial_positions
        self.initial_positions = "given"
        try:
            return self.predict(atoms, host, calculate=False)
        finally:
            self.initial_positions = asked

    def _one(self, item: Item) -> RelaxResult:
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
            structures: Atoms, pymatgen Structures, or :class:`~ase_definet.matching.shared_sites.Placed`; the
                iterable is read as far as the next batch only. An exception in place of a structure becomes its
                record.
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
        batches = Batches(
            prepare=lambda index, atoms: self._prepare(atoms, host, index),
            run=self._run,
            finish=self._calculated,
            device=self.device,
            most_sites=batch_sites,
        )
        yield from batches.records(iter(structures))

    def _prepare(self, atoms: object, host: object, index: int = 0, **match_options: Any) -> Item:
        """Match a structure to its host, say how far it can be trusted, and prepare it for the network."""
        host = self.host if host is None else host
        if host is None:
            raise HostError("no host: give one to the relaxer or to this call (a name, a file, an Atoms or 'auto')")
        began = time.perf_counter()
        given, site_map = self._matched(atoms, host, match_options)
        if self.calculator is None:
            site_map.require_sites_only()
        matched = time.perf_counter()
        state = codes_of(given) if self.network.config.states else None
        prepared = self.network.prepare(sites_of(site_map, self.initial_positions, state))
        place = prepared.place if isinstance(prepared, Routed) else 0
        judgement = self.domain.judge(given, site_map, place)
        said = {strain_notice(site_map)} if "strain" in judgement.outside else set()
        reasons = tuple(text for text in site_map.warnings if text not in said)
        calculated = self.calculator is not None and self.calculator.serves(judgement.trust)
        if self.strict and calculated and reasons:  # what the network does not know, the calculator does
            raise StrictError("; ".join(reasons))
        reasons += tuple(one.reason for one in judgement.reservations)
        if self.strict and reasons and not calculated:
            raise StrictError("; ".join(reasons))
        charge = charge_of(given)
        if charge.note and not charge.value:  # worth saying, but no reason to distrust the prediction
            reasons += (charge.note,)
        return Item(
            index=index,
            atoms=given,
            site_map=site_map,
            prepared=prepared,
            warnings=reasons,
            judgement=judgement,
            timings={"match": matched - began, "graph": time.perf_counter() - matched},
        )

    def _matched(self, atoms: object, host: object, match_options: Mapping[str, Any]) -> tuple[Atoms, SiteMap]:
        """Return a structure as Atoms, and its match."""
        if isinstance(atoms, Placed):
            return atoms.atoms, atoms.site_map
        given = as_atoms(atoms)
        known = "auto" if _is_auto(host) else get_host(host)
        if match_options:
            return given, match_sites(given, known, max_strain=self.max_strain, **match_options)
        return given, self.matcher.match(given, known, self.max_strain)

    @torch.inference_mode()
    def _run(self, items: list[Item]) -> list[RelaxResult | Exception]:
        """Run the network and place the atoms; what fails of one structure alone takes the place of its result."""
        if self.network.training:  # somebody trained it: a prediction drops no channels
            self.network.eval()
        out: dict[int, RelaxResult | Exception] = {}
        for part in alike(items, self.working_set.sites):
            began = time.perf_counter()
            moved, errors = self._predict([items[i] for i in part])
            moved = self._relative_to_pristine([items[i] for i in part], moved)
            seconds = (time.perf_counter() - began) / len(part)
            start = 0
            for i in part:
                stop = start + items[i].n_sites
                expected = None if errors is None else errors[start:stop]
                try:
                    out[i] = self._result(items[i], moved[start:stop], expected, seconds)
                except Exception as error:  # noqa: BLE001 - one bad structure must not cost the others
                    out[i] = error
                start = stop
        found = [out[i] for i in range(len(items))]
        return found if self.properties is None else self.properties.filled(found, items)

    def _predict(self, items: list[Item]) -> tuple[Array, Array | None]:
        """Return displacements, in the callers' frames, and expected errors of all sites, structure by structure."""
        batch = self.network.collate([item.prepared for item in items], self._lattice).to(self.device)
        prediction = self.network.predict(batch, self.working_set)
        expected = prediction.expected_error
        return _numbers(prediction.displacement), None if expected is None else _numbers(expected)

    def _relative_to_pristine(self, items: list[Item], moved: Array) -> Array:
        """Subtract the prediction for the pristine host, unless the network was trained on it.

        A relaxed host is a fixed point of DFT, but for a layer relaxed with another code, a network may predict a
        uniform change of thickness that has nothing to do with the defects.
        """
        out, start = moved.copy(), 0
        fields: dict[Hashable, Array] = {}
        for item in items:
            stop = start + item.n_sites
            place = item.prepared.place if isinstance(item.prepared, Routed) else 0
            known = self.domain.trained_on(item.site_map.host, place)
            twin = None if known else pristine_twin(item.prepared)
            if twin is not None:
                key = twin_key(twin)
                if key not in fields:
                    fields[key], _ = self._predict([replace(item, prepared=twin)])
                out[start:stop] -= fields[key]
            start = stop
        return out

    def _lattice(self, lattice: Lattice) -> LatticeGeometry:
        """Return the geometry of a supercell for the network as it is now."""
        return self.lattices.get(lattice, self.network.config.cutoff, self.network.precision, self.device)

    def _result(self, item: Item, displacement: Array, expected: Array | None, seconds: float) -> RelaxResult:
        if not np.isfinite(displacement).all():
            raise DeviceError(f"{self.model} gave numbers that are not finite: the weights are damaged")
        far = tuple(far_moves(item.site_map, displacement))
        if self.strict and far:
            raise StrictError("; ".join(far))
        reasons = item.warnings + far
        judgement = item.judgement
        expected_error = None if expected is None else self._expected_error(item, displacement, expected)
        method: Method = "network"
        if judgement.trust == "outside" and not self.extrapolate:
            method, expected_error = "none", None
            displacement = np.zeros_like(displacement)
            reasons += (LEFT,) if self.calculator is None else ()
        if self.initial_positions == "ideal":
            displacement = beside_extra_atoms(item.site_map, displacement)
        relaxed = displaced(item.atoms, item.site_map, displacement, self.initial_positions)
        forget_earlier(relaxed)
        counts = ", ".join(f"{name} x{n}" for name, n in item.site_map.defect_counts.items())
        relaxed.info |= {
            "definet_model": self.model,
            "definet_version": __version__,
            "definet_host": item.site_map.host.name,
            "definet_defects": counts or "none",
            "definet_trust": judgement.trust,
            "definet_method": method,
            PREDICTED_STATE: str(said_of(item.atoms)),
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
            timings={**item.timings, "forward": seconds},
            model=self.model,
            expected_error=expected_error,
            judgement=judgement,
            method=method,
        )

    @staticmethod
    def _expected_error(item: Item, displacement: Array, own: Array) -> Array | None:
        """Return the expected error of every atom in the caller's order; None if nothing supports one.

        It is what the weights' error model says where they have one for such structures, else the network's own
        estimate times the factor that was measured.
        """
        weights, factor = item.judgement.error_weights, item.judgement.error_factor
        if weights is not None:
            charge = charge_of(item.atoms).value
            own = expected_of_sites(item.site_map, charge, own, displacement, weights)
        elif factor is None:
            return None
        else:
            own = factor * own
        return by_atom(item.site_map, own)

    def _calculated(self, result: RelaxResult, item: Item) -> RelaxResult:
        """Relax with the calculator what the network does not know, or everything; see :class:`CalculatorStage`."""
        if self.calculator is None or not self.calculator.serves(result.trust):
            return result
        start = GIVEN if self.initial_positions == "given" else IDEAL
        start = PREDICTION if result.method == "network" else start
        return self.calculator.relaxed(result, item.atoms, start, strict=self.strict)


def _is_auto(host: object) -> bool:
    return isinstance(host, str) and host.lower() == "auto"


def like(given: Structure_, relaxed: Atoms) -> Structure_:
    """Return the relaxed atoms as the type that was given."""
    out: Any = relaxed
    if hasattr(given, "lattice"):
        out = given.copy()  # type: ignore[attr-defined]
        for k, position in enumerate(relaxed.positions):
            out[k].coords = position
    return cast("Structure_", out)
