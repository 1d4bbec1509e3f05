"""Predict properties of defects from their sites: energies, gaps and moments, with expected errors and trust."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from ase_definet.checkpoints.bundled import resolve_properties
from ase_definet.checkpoints.card import HostRecord
from ase_definet.checkpoints.format import load_properties
from ase_definet.errors import DefiNetError, MatchError
from ase_definet.matching.host import Host
from ase_definet.matching.library import get_host
from ase_definet.matching.naming import defect_name
from ase_definet.matching.site_map import SiteMap
from ase_definet.matching.supercell import cells_of, describe
from ase_definet.model.config import PropertyEnsembleConfig, SparseNetworkConfig
from ase_definet.model.property_model import DefectBatch
from ase_definet.model.protocol import Lattice
from ase_definet.model.sparse_network import PropertyEnsemble, SparseNetwork
from ase_definet.properties.chemical_potentials import ChemicalPotentials
from ase_definet.properties.defects import DefectSites, host_index
from ase_definet.properties.support import no_support
from ase_definet.relaxation.devices import checked_device
from ase_definet.relaxation.domain import (
    DILUTE,
    NEAR_DENSITY,
    NEAR_OFFSET,
    NEAR_STRAIN,
    SEEN_OFFSET,
    SEEN_STRAIN,
    TRIED_DENSITY,
    TRUST,
    Domain,
    Judgement,
    Reservation,
    Trust,
    known_host,
)
from ase_definet.relaxation.inputs import lattice_of

Array: TypeAlias = NDArray[Any]

FORMATION_ENERGY = "formation_energy"
PER_DEFECT = "formation_energy_per_defect"
GAP = "gap_min"
MOMENT = "total_mag"
UNITS: Mapping[str, str] = {FORMATION_ENERGY: "eV", PER_DEFECT: "eV", GAP: "eV", MOMENT: "µB"}
"""Properties of the bundled weights, and their units."""

_NEVER = frozenset(
    {
        "host",
        "species",
        "defects",
        "charge",
        "spin",
        "functional",
        "excited",
        "training",
        "interstitials",
        "strain",
        "sites",
    }
)
"""Respects in which a structure outside of the training data gets no number at all: the network's answer would be the
property of something else."""

_BLOCK_PAIRS = 1 << 14
"""Pairs of defects in one pass on a CPU: their channels then fit into its cache."""
_BLOCK_PAIRS_CUDA = 1 << 19
"""The same on a GPU: some hundred MB."""
_KEPT = 8

PRISTINE = "no defects: this is the pristine host, and there is nothing to predict"
"""Why a structure without defects has no properties."""


@dataclass(frozen=True, slots=True)
class PropertyValue:
    """One property of one structure.

    Attributes:
        value: The value; None if nothing supports one.
        unit: Its unit.
        expected_error: Expected absolute error in the same unit; None if unknown.
        trust: ``inside``, ``near`` or ``outside`` of the training data.
        reasons: Why it is not ``inside``, in words.
    """

    value: float | None
    unit: str
    expected_error: float | None
    trust: Trust
    reasons: tuple[str, ...] = ()


class PropertyPredictor:
    """Predict properties of structures from their defects; no relaxation is needed.

    Args:
        weights: ``default``, or a file of weights for properties.
        device: ``auto``, ``cpu`` or ``cuda``.

    Attributes:
        properties: Names of the properties, in the order in which they are returned.
        units: Their units.

    Examples:
        >>> from ase_definet.matching.library import library
        >>> predictor = PropertyPredictor()
        >>> host = library()["WSe2"]
        >>> occupations = np.tile(host.numbers, 64)[None].copy()
        >>> occupations[0, 1] = 0  # one selenium vacancy in 8x8 cells
        >>> found = predictor.predict_occupations(host, 8, occupations)
        >>> round(float(found["formation_energy"][0]), 1)
        2.7
    """

    def __init__(self, weights: str | os.PathLike[str] = "default", device: str | None = None) -> None:
        path = resolve_properties(weights)
        loaded = load_properties(path)
        model = loaded.model
        if not isinstance(model, (SparseNetwork, PropertyEnsemble)):
            raise DefiNetError(f"{path}: a {type(model).__name__} is not supported here")
        self.device = checked_device(device or "auto")
        self.network: SparseNetwork | PropertyEnsemble = model.to(self.device).eval()
        self.card = loaded.card
        self.sha256 = loaded.sha256
        name = f"{self.card.name or Path(path).stem} {self.card.version or ''}".strip()
        self.model = f"{name} ({loaded.sha256[:12]})"
        self.domain = Domain(self.card, self.model)
        config: Any = loaded.config
        self.config: SparseNetworkConfig = config.first if isinstance(config, PropertyEnsembleConfig) else config
        self.targets: tuple[str, ...] = config.targets
        derived = (PER_DEFECT,) if FORMATION_ENERGY in self.targets else ()
        self.properties = (*self.targets[:1], *derived, *self.targets[1:])
        self.units = {name: UNITS.get(name, "") for name in self.properties}
        self._sites: dict[Any, DefectSites] = {}
        self._without: dict[tuple[int, str], dict[str, str]] = {}

    def predict(
        self,
        site_maps: SiteMap | Sequence[SiteMap],
        atoms: Atoms | Sequence[Atoms] | None = None,
        potentials: ChemicalPotentials | None = None,
    ) -> list[dict[str, PropertyValue]]:
        """Predict the properties of matched structures.

        Args:
            site_maps: The matches, from :func:`~ase_definet.matching.site_map.match_sites`; or a single one.
            atoms: The structures, for their charge and spin; neutral ones in their ground state by default.
            potentials: Chemical potentials; those of the elements' reference phases by default.

        Returns:
            For each structure its properties by name.

        Raises:
            DefiNetError: Something else than matches was given, or there are not as many structures as matches.
        """
        site_maps = _as_matches(site_maps)
        given = [_neutral(site_map) for site_map in site_maps] if atoms is None else _as_structures(atoms)
        if len(given) != len(site_maps):
            raise DefiNetError(f"expected a structure for each of {len(site_maps)} matches, found {len(given)}")
        judged = [self.judge(one, site_map) for one, site_map in zip(given, site_maps, strict=True)]
        out = [self._nothing(judgement, site_map) for judgement, site_map in zip(judged, site_maps, strict=True)]
        groups: dict[Any, list[int]] = {}
        for index, (site_map, judgement) in enumerate(zip(site_maps, judged, strict=True)):
            if site_map.all_defects and self._answers(judgement):
                groups.setdefault(lattice_of(site_map.sites).key, []).append(index)
        for indices in groups.values():
            sites = self._sites_of(lattice_of(site_maps[indices[0]].sites))
            numbers = np.stack([site_maps[index].numbers for index in indices])
            values, errors = self._run(sites, numbers, potentials)
            missing = self._missing(sites.host, known_host(site_maps[indices[0]].host)[0] or "")
            for row, index in enumerate(indices):
                one, wrong = ({name: part[row] for name, part in parts.items()} for parts in (values, errors))
                out[index] = self._values(judged[index], missing, one, wrong)
        return out

    def predict_occupations(
        self,
        host: Host | str,
        supercell: int | Sequence[int] | Array,
        occupations: Array,
        potentials: ChemicalPotentials | None = None,
        targets: Sequence[str] | None = None,
        *,
        fast: bool = False,
    ) -> dict[str, Array]:
        """Predict the properties of occupations of a supercell, without any matching: the way to rank many.

        Args:
            host: The host, or its name in the library.
            supercell: How often the primitive cell is repeated: a number (in the plane, for a layer), three numbers,
                or an integer matrix, rows in the primitive vectors.
            occupations: Atomic number on each site, 0 where empty, shape ``(n, n_sites)``. Sites are ordered cell by
                cell as in :func:`~ase_definet.matching.supercell.cells_of`, and within a cell as in the host.
            potentials: Chemical potentials; those of the elements' reference phases by default.
            targets: The only properties to predict, such as ``["formation_energy"]``: networks for others do not run.
            fast: Whether to run only the smallest network for each property, to rank very many configurations of many
                defects; expected errors are then unknown.

        Returns:
            Arrays of shape ``(n,)``: each property by its name, NaN where nothing supports a value; its expected
            absolute error under ``NAME_error``, NaN where unknown; and ``trust``, indices into
            :data:`~ase_definet.relaxation.domain.TRUST`.

        Raises:
            MatchError: The occupations do not fit the supercell.
        """
        host = get_host(host)
        matrix = supercell_matrix(supercell, host)
        occupations = np.asarray(occupations)
        n_sites = len(cells_of(matrix)) * len(host.numbers)
        if occupations.ndim != 2 or occupations.shape[1] != n_sites:  # noqa: PLR2004 - as documented
            raise MatchError(
                f"expected occupations of shape (n, {n_sites}) for a {describe(matrix)} supercell of {host.name}, "
                f"found {occupations.shape}"
            )
        lattice = Lattice(
            numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=host.periodic, supercell=matrix
        )
        return self._of_occupations(lattice, known_host(host), occupations, potentials, targets, fast=fast)

    def predict_alike(
        self,
        site_map: SiteMap,
        occupations: Array,
        potentials: ChemicalPotentials | None = None,
        targets: Sequence[str] | None = None,
        *,
        fast: bool = False,
    ) -> dict[str, Array]:
        """Predict the properties of other occupations of the sites of a matched structure.

        Args:
            site_map: The match.
            occupations: As in :meth:`predict_occupations`, in the order of its sites.
            potentials: As there.
            targets: As there.
            fast: As there.

        Returns:
            As there.
        """
        name, strain, offset = known_host(site_map.host)
        known = (name, strain + site_map.max_strain, offset)
        return self._of_occupations(lattice_of(site_map.sites), known, occupations, potentials, targets, fast=fast)

    def _of_occupations(
        self,
        lattice: Lattice,
        known_as: tuple[str | None, float, float],
        occupations: Array,
        potentials: ChemicalPotentials | None,
        targets: Sequence[str] | None,
        *,
        fast: bool,
    ) -> dict[str, Array]:
        """Predict the properties of occupations of a supercell of a host, known by its name, strain and offset."""
        wanted = self._wanted(targets)
        names = [*wanted, *(f"{one}_error" for one in wanted)]
        out = {one: np.full(len(occupations), np.nan) for one in names}
        out["trust"] = np.full(len(occupations), TRUST.index("outside"))
        name, strain, offset = known_as
        n_sites = occupations.shape[1]
        record = self._record(name)
        geometry = max(_level(abs(strain), SEEN_STRAIN, NEAR_STRAIN), _level(offset, SEEN_OFFSET, NEAR_OFFSET))
        if record is None or geometry == TRUST.index("outside"):
            return out
        sites = self._sites_of(lattice)
        known = np.flatnonzero(sites.known(occupations))
        if not len(known):
            return out
        level, factor = self._density(occupations[known], sites, record)
        other_cell = record.sites not in {None, n_sites}
        level = np.maximum(level, max(geometry, TRUST.index("near") if other_cell else 0))
        factor[:] = np.nan if geometry or other_cell else factor
        values, errors = self._run(sites, occupations[known], potentials, wanted, fast=fast)
        missing = self._missing(sites.host, name or "")
        for one in wanted:
            if one not in missing:
                out[one][known] = values[one]
                out[f"{one}_error"][known] = errors[one] * factor if one in errors else np.nan
        out["trust"][known] = level
        return out

    def why_no_value(self, host: Host | str, occupation: Array, name: str, max_strain: float = 0.0) -> str:
        """Explain why :meth:`predict_occupations` or :meth:`predict_alike` has no value of a property.

        Args:
            host: The host.
            occupation: Atomic number on each site, 0 where empty, shape ``(n_sites,)``, cell by cell.
            name: The property.
            max_strain: Largest principal strain of the host in the structure.
        """
        host = get_host(host)
        numbers = np.tile(host.numbers, len(occupation) // len(host.numbers))
        known, strain, offset = known_host(host)
        record = self._record(known)
        training = self.card.training
        if record is None or known is None:
            seen = ", ".join(training.hosts) if training is not None else "none recorded"
            return f"host {host.name} was not in the training data ({seen})"
        if _level(abs(strain + max_strain), SEEN_STRAIN, NEAR_STRAIN) == TRUST.index("outside"):
            return f"the cell is strained by {strain + max_strain:+.1%} against the {known} of the training data"
        if _level(offset, SEEN_OFFSET, NEAR_OFFSET) == TRUST.index("outside"):
            return f"the host's sites lie {offset:.2f} Å (rms) from those of the {known} in the training data"
        changed = np.flatnonzero(occupation != numbers)
        if not len(changed):
            return PRISTINE
        found = dict.fromkeys(defect_name(int(occupation[k]), int(numbers[k])) for k in changed)
        new = [defect for defect in found if defect not in record.defects]
        if new:
            return f"defects never seen in {known}: {', '.join(new)}"
        return self._missing(host_index(host.numbers, self.config), known).get(name, f"no {name} is known")

    def _missing(self, host: int, name: str) -> dict[str, str]:
        """Return the properties that have no value on a host, whatever its defects, with the reasons.

        Args:
            host: Index of the host in the config.
            name: Its name in the training data.
        """
        if (host, name) in self._without:
            return self._without[host, name]
        learnt = self.network.knows(host)
        units = {target: self.units[target] for target in self.targets}
        out = {target: f"the training data have no {target} of this host" for target in units if not learnt[target]}
        out = no_support(self.card, name, units) | out
        self._without[host, name] = out | ({PER_DEFECT: out[FORMATION_ENERGY]} if FORMATION_ENERGY in out else {})
        return self._without[host, name]

    def _wanted(self, targets: Sequence[str] | None) -> tuple[str, ...]:
        """Return the properties asked for, all by default.

        Raises:
            DefiNetError: The weights do not predict one of them.
        """
        unknown = [name for name in targets or () if name not in self.properties]
        if unknown:
            raise DefiNetError(f"{self.model} predicts {', '.join(self.properties)}, not {', '.join(unknown)}")
        return tuple(name for name in self.properties if targets is None or name in targets)

    def _density(self, numbers: Array, sites: DefectSites, record: HostRecord) -> tuple[Array, Array]:
        """Return trust levels and factors of expected errors of structures, by their shares of defect sites.

        The rules are those of :class:`~ase_definet.relaxation.domain.Domain`.
        """
        density = (numbers != sites.host_numbers).mean(axis=1)
        low, high = record.density
        low = 0.0 if low < DILUTE else low * 0.999
        level = np.zeros(len(density), dtype=int)
        factor = np.ones(len(density))
        more, beyond = density > high * 1.001, density > high * TRIED_DENSITY * 1.001
        for outside, word in (((density < low) & (density > 0), "low"), (more & ~beyond, "high"), (beyond, "beyond")):
            found = self.card.near.get(f"density:{word}")
            close = density <= high * NEAR_DENSITY
            level[outside] = np.where(close[outside], 1, 2)
            factor[outside] = np.nan
            if found is not None and found.share < 1:
                level[outside] = 1
                factor[outside] = np.nan if found.error_factor is None else found.error_factor
        return level, factor

    def judge(self, atoms: Atoms, site_map: SiteMap) -> Judgement:
        """Determine how far the properties of a structure can be trusted.

        Args:
            atoms: The structure, for its state.
            site_map: Its match.
        """
        record = self._record(known_host(site_map.host)[0])
        found = [_of_labels(one, record) for one in self.domain.judge(atoms, site_map).reservations]
        if site_map.extra:
            text = f"{len(site_map.extra)} atoms on no site of the host: the weights know defects on sites only"
            found.append(Reservation("interstitials", text))
        if record is not None and record.sites not in {None, len(site_map.kinds)}:
            text = (
                f"a supercell of {len(site_map.kinds)} sites, training had {record.sites}: defects see their "
                "periodic images at other distances"
            )
            found.append(Reservation("cell", text, "near"))
        return Judgement(tuple(found))

    def _record(self, name: str | None) -> HostRecord | None:
        """Return what was seen of a host of the library in training."""
        training = self.card.training
        return None if training is None or name is None else training.hosts.get(name)

    def _answers(self, judgement: Judgement) -> bool:
        return not any(self._refuses(one) for one in judgement.reservations)

    @staticmethod
    def _refuses(one: Reservation) -> bool:
        return one.trust == "outside" and one.word in _NEVER

    def _nothing(self, judgement: Judgement, site_map: SiteMap) -> dict[str, PropertyValue]:
        trust, reasons = judgement.trust, _reasons(judgement)
        if not site_map.all_defects and self._answers(judgement):
            trust, reasons = "inside", (PRISTINE,)
        return {name: PropertyValue(None, unit, None, trust, reasons) for name, unit in self.units.items()}

    def _values(
        self,
        judgement: Judgement,
        missing: Mapping[str, str],
        values: Mapping[str, float],
        errors: Mapping[str, float],
    ) -> dict[str, PropertyValue]:
        factor, reasons = judgement.error_factor, _reasons(judgement)
        out = {}
        for name, unit in self.units.items():
            if name in missing:
                out[name] = PropertyValue(None, unit, None, "outside", (*reasons, missing[name]))
                continue
            error = None if factor is None or name not in errors else float(errors[name]) * factor
            out[name] = PropertyValue(float(values[name]), unit, error, judgement.trust, reasons)
        return out

    def _sites_of(self, lattice: Lattice) -> DefectSites:
        """Return the sites of a supercell, those used last from memory."""
        key = lattice.key
        found = self._sites.pop(key, None) or DefectSites(lattice, self.config)
        self._sites[key] = found
        while len(self._sites) > _KEPT:
            del self._sites[next(iter(self._sites))]
        return found

    @torch.inference_mode()
    def _run(
        self,
        sites: DefectSites,
        numbers: Array,
        potentials: ChemicalPotentials | None,
        wanted: Sequence[str] | None = None,
        *,
        fast: bool = False,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return values and expected errors of occupations that the network knows, in double precision."""
        count = (numbers != sites.host_numbers).sum(axis=1)
        order = np.argsort(count, kind="stable")
        asked = {FORMATION_ENERGY if name == PER_DEFECT else name for name in wanted or self.targets}
        means = np.full((len(numbers), len(self.targets)), np.nan)
        errors = np.full_like(means, np.nan) if isinstance(self.network, PropertyEnsemble) else None
        for chosen in _blocks(order, count, _BLOCK_PAIRS if self.device.type == "cpu" else _BLOCK_PAIRS_CUDA):
            batch = sites.batch(numbers[chosen]).to(self.device)
            mean, error = self._estimate(batch, asked, fast=fast)
            means[chosen] = mean.double().cpu().numpy()
            if errors is not None and error is not None:
                errors[chosen] = error.double().cpu().numpy()
        values = {name: means[:, column] for column, name in enumerate(self.targets)}
        expected = {} if errors is None else {name: errors[:, column] for column, name in enumerate(self.targets)}
        if FORMATION_ENERGY in values:
            if potentials is not None:
                values[FORMATION_ENERGY] = values[FORMATION_ENERGY] + potentials.shift(numbers, sites.host_numbers)
            values[PER_DEFECT] = values[FORMATION_ENERGY] / np.maximum(count, 1)
            if expected:
                expected[PER_DEFECT] = expected[FORMATION_ENERGY] / np.maximum(count, 1)
        if GAP in values:
            values[GAP] = np.maximum(values[GAP], 0.0)
        for own in (*values.values(), *expected.values()):  # the pristine host has no defect to predict anything of
            own[count == 0] = np.nan
        return values, expected

    def _estimate(self, batch: DefectBatch, asked: set[str], *, fast: bool) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.network, PropertyEnsemble):
            if fast:
                host = int(batch.hosts[0])  # of all structures on the same sites
                return self.network.spread_of(batch, asked, self.network.smallest(asked, host))[0], None
            mean, spread = self.network.spread_of(batch, asked)
            return mean, self.network.expected_error(batch, spread)
        return self.network(batch), None


def supercell_matrix(supercell: int | Sequence[int] | Array, host: Host) -> Array:
    """Return the matrix of a supercell given by a number, three numbers or a matrix."""
    given = np.asarray(supercell, dtype=int)
    if given.ndim == 0:
        given = np.array([given, given, 1 if host.layered else given])
    return np.diag(given) if given.ndim == 1 else given


def _of_labels(one: Reservation, record: HostRecord | None) -> Reservation:
    """Return a reservation as it is for labels.

    Those of a host of which no spin is recorded are of ground states, whatever their spins: a spin that is given may
    or may not be that of the ground state.
    """
    if one.word != "spin" or record is None or record.spin_multiplicities:
        return one
    text = (
        "the labels are those of ground states: if the given spin is that of another state, the numbers are not its"
    )
    return replace(one, reason=text, trust="near", error_factor=None)


def _as_matches(given: SiteMap | Sequence[SiteMap]) -> list[SiteMap]:
    """Return matches as a list.

    Raises:
        DefiNetError: One of them is something else.
    """
    out = [given] if isinstance(given, (SiteMap, Atoms)) else list(given)
    for one in out:
        if not isinstance(one, SiteMap):
            raise DefiNetError(
                f"expected matches of structures to a host, found a {type(one).__name__}: give "
                "match_sites(atoms, host), from ase_definet.matching.site_map"
            )
    return out


def _as_structures(given: Atoms | Sequence[Atoms]) -> list[Atoms]:
    """Return structures as a list.

    Raises:
        DefiNetError: One of them is something else.
    """
    out = [given] if isinstance(given, Atoms) else list(given)
    for one in out:
        if not isinstance(one, Atoms):
            raise DefiNetError(f"expected ASE Atoms for the charge and spin of a match, found a {type(one).__name__}")
    return out


def _neutral(site_map: SiteMap) -> Atoms:
    """Return the atoms of a match, neutral and in their ground state."""
    real = site_map.numbers > 0
    extra = [one.element for one in site_map.extra]
    atoms = Atoms(site_map.numbers[real], site_map.positions[real], cell=site_map.cell, pbc=site_map.pbc)
    return atoms + Atoms(extra, [one.position for one in site_map.extra]) if extra else atoms


def _reasons(judgement: Judgement) -> tuple[str, ...]:
    return tuple(one.reason for one in judgement.reservations if one.trust != "inside")


def _level(value: float, seen: float, near: float) -> int:
    """Return the trust level of a deviation, as an index into :data:`~ase_definet.relaxation.domain.TRUST`."""
    return int(value > seen) + int(value > near)


def _blocks(order: Array, count: Array, most: int) -> list[Array]:
    """Split structures, sorted by their number of defects, into blocks of at most so many pairs."""
    out, start = [], 0
    while start < len(order):
        stop = min(len(order), start + most)
        size = count[order[start:stop]].astype(float)
        cost = np.maximum(size, 1) ** 2 * np.arange(1, stop - start + 1)
        stop = start + max(1, int(np.searchsorted(cost, most, side="right")))
        out.append(order[start:stop])
        start = stop
    return out
