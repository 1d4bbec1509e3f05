"""Site matching: the assignment of atoms to host sites, the kind of each site, and the atoms on no site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula
from numpy.typing import NDArray

from ase_definet.errors import HostError, MatchError
from ase_definet.matching.extra_atoms import (
    Described,
    ExtraAtom,
    describe_extra_atoms,
    molecules,
    other_reading,
    remarks,
)
from ase_definet.matching.host import Host
from ase_definet.matching.host_sites import HostSites
from ase_definet.matching.library import get_host, library
from ase_definet.matching.naming import defect_name
from ase_definet.matching.registration import (
    GATE,
    GOOD_COST,
    SPECIES_PENALTY,
    Assignment,
    Placement,
    Registration,
    Sample,
    assign,
    nearby_pairs,
    offsets_from,
    register,
    registration_costs,
    settled_shift,
)
from ase_definet.matching.site_kind import SiteKind
from ase_definet.matching.supercell import (
    MAX_STRAIN,
    MISFITS,
    Mapping,
    describe,
    diffracted_mappings,
    mapping_stages,
    remark_on,
    supercell_sites,
)
from ase_definet.structures.cell import VACUUM_GAP, check_structure, vacuum_gaps
from ase_definet.structures.conversion import as_atoms

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]
_Framed: TypeAlias = tuple[Array, Array, int | None]

MIN_MARGIN = 0.5
"""An atom is ambiguous unless its second-nearest site, or the gate, is this much further than its own, in Å."""

MIN_ADVANTAGE = 0.01
"""A match is ambiguous if the cost of another registration is higher by no more than this, in Å."""

SAME_SHIFT = 1e-5
"""Atoms are assigned once more after a larger refinement of the rigid shift, in Å."""

MOST_DEFECTS = 0.15
"""Largest share of defect sites for which ``auto`` accepts a host of the library."""

MIN_PRISTINE = 0.5
"""A match with a smaller share of pristine sites is rejected: the host is wrong."""

SAME_PLACE = 0.5
"""Two vacancies of two registrations this near to one another are the same vacancy, in Å."""

CLOSE = 0.05
"""Registrations whose cost for a sample of atoms is this close to the best are evaluated for all atoms, in Å."""

MOST_READINGS = 64
"""Largest number of registrations that are evaluated for all atoms."""

MIN_LIKE = 0.45
"""A host of the library is only tried if at least this share of the atoms is of its elements."""

SUBLATTICE = 0.1
"""An element on a smaller share of the host's sites is a dopant, not a sublattice."""

MAX_LOOSE = 0.1
"""If a larger share of the atoms is on no site, the host is wrong."""

STRAIN_NOTICE = 0.03
"""Strain of the host beyond which a warning is given."""


@dataclass(frozen=True)
class Defect:
    """One defect site.

    Attributes:
        name: Without charge, as doped writes it: ``v_S``, ``W_Mo``; ``V_Mo`` is vanadium.
        kind: Substitution or vacancy.
        site: Index of the host site.
        host_element: Element of the host on that site.
        element: Element found there, None for a vacancy.
        atom_index: Index of that atom in the caller's order, None for a vacancy.
        position: Ideal position of the site in the caller's frame, in Å.
    """

    name: str
    kind: SiteKind
    site: int
    host_element: str
    element: str | None
    atom_index: int | None
    position: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class SiteMap:
    """A structure as occupied sites of a host supercell, in host order, and the atoms on no site.

    Every atom of the structure is either on one site or in :attr:`extra`.

    Attributes:
        sites: The sites, which structures in the same cell share; their attributes are also those of the match.
        numbers: Atomic numbers found, 0 where empty, shape ``(n_sites,)``.
        kinds: :class:`SiteKind` values, shape ``(n_sites,)``.
        atom_index: Index of the atom on each site in the caller's order, -1 where empty, shape ``(n_sites,)``.
        offsets: Atom minus site, nearest image, zero where empty, shape ``(n_sites, 3)``, in Å.
        cost: Root mean square over atoms of the (gated) distances, species penalty included, in Å.
        runner_up: The same for the best different registration of host and cell, one that no symmetry of the host
            turns into this one, in Å; infinite if there is none. Of a structure that was recognised on the sites of
            another (:mod:`ase_definet.matching.shared_sites`), what it is at least.
        margin: Smallest difference between an atom's distance to its second-nearest site, or
            :data:`~ase_definet.matching.registration.GATE` if that is less, and to its own, in Å; of an atom on no
            site, how far it is from being read as something else.
        extra: The atoms on no site, in the caller's order: adatoms, interstitials, split vacancies.
        warnings: Reasons to distrust the match.
    """

    sites: HostSites
    numbers: Array
    kinds: Array
    atom_index: Array
    offsets: Array
    cost: float
    runner_up: float
    margin: float
    extra: tuple[ExtraAtom, ...]
    warnings: tuple[str, ...]

    @property
    def host(self) -> Host:
        """The host."""
        return self.sites.host

    @property
    def supercell(self) -> Array:
        """Integer matrix, shape ``(3, 3)``, rows in the host's primitive vectors."""
        return self.sites.supercell

    @property
    def cell(self) -> Array:
        """Periodic vectors as rows, shape ``(3, 3)``, in Å; see :class:`HostSites`."""
        return self.sites.cell

    @property
    def pbc(self) -> tuple[bool, bool, bool]:
        """Which of the vectors of :attr:`cell` are periodic."""
        return self.sites.pbc

    @property
    def positions(self) -> Array:
        """Ideal positions of the sites, shape ``(n_sites, 3)``, in Å; see :class:`HostSites`."""
        return self.sites.positions

    @property
    def host_numbers(self) -> Array:
        """Atomic numbers of the host, shape ``(n_sites,)``."""
        return self.sites.numbers

    @property
    def strain(self) -> Array:
        """Principal strains of the host onto the cell, shape ``(3,)``."""
        return self.sites.strain

    @property
    def shift(self) -> Array:
        """Rigid shift of the host, shape ``(3,)``, in Å."""
        return self.sites.shift

    @property
    def rotation(self) -> Array:
        """Rotation of the host's frame into the caller's, shape ``(3, 3)``, for column vectors."""
        return self.sites.rotation

    @property
    def ambiguous(self) -> bool:
        """Whether an atom, or the whole structure, fits other sites equally well."""
        return self.margin < MIN_MARGIN or self.runner_up < self.cost + MIN_ADVANTAGE

    @property
    def max_strain(self) -> float:
        """Principal strain of largest magnitude, with its sign."""
        return self.sites.max_strain

    @property
    def unit(self) -> tuple[Array, Array]:
        """Primitive cell ``(3, 3)`` and positions in it; see :class:`HostSites`."""
        return self.sites.unit

    @property
    def supercell_name(self) -> str:
        """Name of the supercell: ``8x8x1``."""
        return self.sites.supercell_name

    @cached_property
    def density(self) -> float:
        """Defects per site of the host: those on its sites, and the atoms on none."""
        return float((np.count_nonzero(self.kinds != SiteKind.PRISTINE) + len(self.extra)) / len(self.kinds))

    @cached_property
    def defects(self) -> list[Defect]:
        """The defect sites, in host order."""
        out = []
        for site in np.flatnonzero(self.kinds != SiteKind.PRISTINE):
            host_element = chemical_symbols[self.host_numbers[site]]
            kind = SiteKind(int(self.kinds[site]))
            empty = kind is SiteKind.VACANCY
            element = None if empty else chemical_symbols[self.numbers[site]]
            x, y, z = (float(v) for v in self.positions[site])
            out.append(
                Defect(
                    name=defect_name(self.numbers[site], self.host_numbers[site]),
                    kind=kind,
                    site=int(site),
                    host_element=host_element,
                    element=element,
                    atom_index=None if empty else int(self.atom_index[site]),
                    position=(x, y, z),
                )
            )
        return out

    @cached_property
    def defect_counts(self) -> dict[str, int]:
        """Number of each defect, including atoms on no site, most frequent first: ``{"v_S": 2, "Li_i": 1}``."""
        return dict(Counter(defect.name for defect in self.all_defects).most_common())

    @cached_property
    def all_defects(self) -> list[Defect | ExtraAtom]:
        """All defects with a name and a position: the sites in host order, then the atoms on no site."""
        return [*self.defects, *self.extra]

    def whereabouts(self, extra: ExtraAtom) -> str:
        """Describe an atom on no site: ``adatom, 1.73 Å above the layer, 1.73 Å from site 48 (v_N)``.

        Args:
            extra: One of :attr:`extra`.
        """
        sites = []
        for site in extra.sites:
            host = int(self.host_numbers[site])
            there = chemical_symbols[host] if self.numbers[site] else defect_name(0, host)
            sites.append(f"site {site} ({there})")
        if extra.partner is not None:
            where = f", shares {sites[0]} with atom {extra.partner}"
        elif len(sites) > 1:
            where = f" between {' and '.join(sites)}"
        else:
            where = f", {extra.distance:.2f} Å from {sites[0]}"
        if extra.height is not None:
            where = f", {extra.height:.2f} Å {extra.side} the layer{where}"
        if extra.origin is not None and extra.origin not in extra.sites:
            where += f"; its own free site is {extra.origin}"
        return f"{extra.kind}{where}"

    def require_sites_only(self) -> None:
        """Reject atoms on no site, which the networks do not support.

        Raises:
            MatchError: There are such atoms; the message names the first and what it is.
        """
        if not self.extra:
            return
        first = self.extra[0]
        element = chemical_symbols[self.host_numbers[first.sites[0]]]
        more = f" and {len(self.extra) - 1} more" if len(self.extra) > 1 else ""
        x, y, z = first.position
        raise MatchError(
            f"atom {first.atom_index} ({first.element}) at ({x:.2f}, {y:.2f}, {z:.2f}) Å{more} sits on no free site "
            f"of host {self.host.name}, {first.distance:.2f} Å from site {first.sites[0]} ({element}): it is read as "
            f"{first.name} ({first.kind}); the network has no kind of site for an adatom, interstitial or split "
            "vacancy: relax it with a calculator (--calculator chgnet, calculator='chgnet'), or remove it"
        )


def match_sites(
    atoms: Atoms,
    host: object,
    *,
    max_strain: float = MAX_STRAIN,
    kinds: Sequence[int] | None = None,
    substitutions: Sequence[int] | None = None,
) -> SiteMap:
    """Match a defect structure to its host.

    The host is mapped onto the caller's cell in every way that fits and shifted rigidly to agree with most atoms, and
    atoms are assigned to sites at minimum total squared distance. Atoms on no site are described as adatoms,
    interstitials or parts of split vacancies; more of them than a defect explains mean a wrong host.

    Args:
        atoms: The structure, in Å; any origin, image, axis order or orientation.
        host: A library name, a file, an Atoms, a pymatgen Structure or a :class:`~ase_definet.matching.host.Host`;
            ``"auto"`` tries the library.
        max_strain: Largest principal strain of the host onto the cell.
        kinds: :class:`SiteKind` of every site in host order, shape ``(n_sites,)``, instead of the inferred ones.
        substitutions: Indices of the atoms that are substitutions, instead of the inferred ones.

    Raises:
        StructureError: The structure is unusable.
        HostError: The host is unknown or does not fit the cell.
        MatchError: A wrong host, or kinds that contradict the structure.

    References:
        Yang et al., npj Comput. Mater. 11, 229 (2025), the kinds of site (markers) of the defect-explicit graph.
    """
    atoms = as_atoms(atoms)
    framed = check_structure(atoms)
    automatic = isinstance(host, str) and host.lower() == "auto"
    site_map = (
        _match_library(atoms, framed, max_strain) if automatic else _match(atoms, framed, get_host(host), max_strain)
    )
    if kinds is None and substitutions is None:
        return site_map
    return _override(site_map, kinds, substitutions)


def _match_library(atoms: Atoms, framed: _Framed, max_strain: float) -> SiteMap:
    """Match to every library host that shares an element; keep the one with the fewest defects."""
    found: list[SiteMap] = []
    reasons: list[str] = []
    for host in library().values():
        own = int(np.isin(atoms.numbers, host.numbers).sum())
        if 0 < own < MIN_LIKE * len(atoms):
            reasons.append(f"{host.name}: only {own} of {len(atoms)} atoms are of its elements")
        elif own:
            try:
                found.append(_match(atoms, framed, host, max_strain))
            except (HostError, MatchError) as error:
                reasons.append(f"{host.name}: {error}")
    if not found:
        why = reasons or [f"none of them has an element of it; the library has {', '.join(sorted(library()))}"]
        raise HostError(
            f"no host of the library fits {atoms.get_chemical_formula()}: give the host as a file ({'; '.join(why)})"
        )
    best = min(found, key=lambda site_map: (site_map.density, site_map.cost))
    if best.density > MOST_DEFECTS:
        raise HostError(
            f"no host of the library fits {atoms.get_chemical_formula()}: as {best.host.name}, the nearest, "
            f"{best.density:.0%} of its sites were defects ({_counted(best)}); give its host as a file, or --host "
            f"{best.host.name} if that is meant"
        )
    return best


def _counted(site_map: SiteMap) -> str:
    return ", ".join(f"{name} x{n}" for name, n in site_map.defect_counts.items())


def _match(atoms: Atoms, framed: _Framed, host: Host, max_strain: float) -> SiteMap:
    frame, positions, axis = framed
    if host.layered != (axis is not None):
        raise HostError(_other_dimension(atoms, host, axis))
    placed = Placement(positions, atoms.numbers, frame, (True, True, axis is None))
    known = positions, atoms.numbers
    ranked = register(host, mapping_stages(host, frame, len(atoms), max_strain, known), placed)
    best, runner_up = _best_reading(host, ranked, placed)
    try:
        _refuse(host, best, placed)
    except MatchError:
        if best.cost >= GOOD_COST / 2:  # otherwise only a few atoms do not fit
            _blame_strain(host, best, placed, max_strain)
        raise
    if best.cost >= GOOD_COST:
        _blame_strain(host, best, placed, max_strain)
    mapping, positions_of_sites, host_numbers = best.mapping, best.sites, best.host_numbers
    described = describe_extra_atoms(
        positions_of_sites, host_numbers, best.assigned, placed, atoms.positions, layered=host.layered
    )
    assigned, extra = described.assigned, described.extra
    left, _, right = np.linalg.svd(mapping.deformation)
    sites = HostSites(
        host=host,
        supercell=mapping.matrix,
        cell=frame,
        pbc=placed.pbc,
        positions=positions_of_sites,
        numbers=host_numbers,
        strain=mapping.strain,
        shift=best.shift,
        rotation=(left @ right).T,
    )
    least = int(np.argmin(assigned.margin))
    site_map = replace(
        occupied(sites, atoms.numbers, assigned.site, assigned.offset),
        cost=best.cost,
        runner_up=runner_up,
        margin=float(assigned.margin[least]),
        extra=extra,
    )
    doubt = _doubt_of(site_map, described, placed, least) if site_map.margin < MIN_MARGIN else ""
    return replace(site_map, warnings=(*_warnings(site_map, doubt), *remarks(extra, placed)))


def _doubt_of(site_map: SiteMap, described: Described, placed: Placement, atom: int) -> str:
    """Return how an atom was read whose site is in doubt, and what else it could be."""
    doubt = f"atom {atom} ({chemical_symbols[placed.numbers[atom]]})"
    if atom in described.doubts:
        name = next(extra.name for extra in site_map.extra if extra.atom_index == atom)
        return f"{doubt}, read as {name}, {described.doubts[atom]}"
    distance = float(np.linalg.norm(described.assigned.offset[atom]))
    doubt += f" lies {distance:.2f} Å from its site; a split vacancy, or a structure already relaxed?"
    reading = other_reading(site_map.positions, site_map.host_numbers, described.assigned, placed, atom)
    return f"{doubt} It is {reading}" if reading else doubt


def occupied(sites: HostSites, numbers: Array, site: Array, offset: Array) -> SiteMap:
    """Return sites with the atoms of a structure on them, as a match of no cost and with no remarks.

    Args:
        sites: The sites.
        numbers: Atomic numbers of the atoms, shape ``(n_atoms,)``.
        site: Site of every atom, -1 for none, shape ``(n_atoms,)``.
        offset: Vector from the site to the atom, shape ``(n_atoms, 3)``, in Å.
    """
    on = np.flatnonzero(site >= 0)
    chosen = site[on]
    atom_index = np.full(len(sites), -1)
    atom_index[chosen] = on
    offsets = np.zeros((len(sites), 3))
    offsets[chosen] = offset[on]
    found = np.zeros(len(sites), dtype=int)
    found[chosen] = numbers[on]
    kinds = np.select(
        [found == 0, found == sites.numbers], [SiteKind.VACANCY, SiteKind.PRISTINE], SiteKind.SUBSTITUTION
    )
    return SiteMap(
        sites=sites,
        numbers=found,
        kinds=kinds.astype(int),
        atom_index=atom_index,
        offsets=offsets,
        cost=0.0,
        runner_up=float("inf"),
        margin=float("inf"),
        extra=(),
        warnings=(),
    )


def _other_dimension(atoms: Atoms, host: Host, axis: int | None) -> str:
    """Explain a mismatch of layer and crystal, with the gaps found and the gap required."""
    expected = "two-dimensional" if host.layered else "three-dimensional"
    if axis is not None:
        return (
            f"host {host.name} is {expected}, but the structure has vacuum along axis {axis}: give the host that fits"
        )
    gaps = vacuum_gaps(atoms.cell.array, atoms.positions)
    widest = int(np.argmax(gaps))
    return (
        f"host {host.name} is {expected}, but the structure has no vacuum along any axis: the widest gap is "
        f"{gaps[widest]:.1f} Å along axis {widest}, a layer needs {VACUUM_GAP:g} Å; give it more vacuum, or the "
        "three-dimensional host"
    )


@dataclass(frozen=True, eq=False)
class _Reading:
    """The assignment of all atoms in one registration.

    Attributes:
        mapping: How the host lies in the cell.
        shift: Its rigid shift, shape ``(3,)``, in Å.
        sites: Positions of its sites, shape ``(n_sites, 3)``, in Å.
        host_numbers: Their atomic numbers, shape ``(n_sites,)``.
        assigned: The assignment of atoms to sites.
        cost: Root mean square over all atoms, species penalty included, in Å.
        substituted: Host element under every atom that is a substitution, 0 under others, shape ``(n_atoms,)``.
        empty: Sites without an atom.
    """

    mapping: Mapping
    shift: Array
    sites: Array
    host_numbers: Array
    assigned: Assignment
    cost: float
    substituted: Array
    empty: Array

    @classmethod
    def of(cls, host: Host, registration: Registration, placed: Placement) -> _Reading:
        """Assign all atoms to the sites of a registration."""
        mapping, shift = registration.mapping, registration.shift
        host_numbers, sites = supercell_sites(host, mapping)
        assigned = assign(sites + shift, host_numbers, placed)
        # the median of what was matched is a better rigid shift than the vote; assign once more with it
        matched = assigned.site >= 0
        better = np.median(assigned.offset[matched], axis=0) if matched.any() else np.zeros(3)
        vote, shift = shift, settled_shift(host, mapping, shift + better)
        if np.abs(shift - vote).max() > SAME_SHIFT:
            assigned = assign(sites + shift, host_numbers, placed)
            matched = assigned.site >= 0
        offset = offsets_from(sites + shift, assigned.site, placed.positions, assigned.offset, placed.cell)
        assigned = replace(assigned, offset=offset)
        under = np.where(matched, host_numbers[assigned.site], 0)
        substituted = np.where(under == placed.numbers, 0, under)
        squared = (assigned.offset**2).sum() + SPECIES_PENALTY * np.count_nonzero(substituted)
        squared += (GATE**2 + SPECIES_PENALTY) * np.count_nonzero(~matched)
        empty = np.setdiff1d(np.arange(len(sites)), assigned.site)
        cost = float(np.sqrt(squared / len(placed.numbers)))
        return cls(mapping, shift, sites + shift, host_numbers, assigned, cost, substituted, empty)

    def reads_like(self, other: _Reading, placed: Placement) -> bool:
        """Whether both find the same defects in the same places, whatever they call the sites."""
        if not np.array_equal(self.substituted, other.substituted) or len(self.empty) != len(other.empty):
            return False
        if len(self.empty) == 0:
            return True
        gone = Placement(other.sites[other.empty], other.host_numbers[other.empty], placed.cell, placed.pbc)
        here, there, _ = nearby_pairs(self.sites[self.empty], gone, SAME_PLACE)
        same = self.host_numbers[self.empty][there] == gone.numbers[here]
        return len(np.unique(here[same])) == len(np.unique(there[same])) == len(self.empty)


def _best_reading(host: Host, ranked: list[Registration], placed: Placement) -> tuple[_Reading, float]:
    """Return the assignment of least cost, and the least cost of one with other defects, in Å.

    Args:
        host: The host.
        ranked: Registrations by the cost of a sample of the atoms, best first.
        placed: The structure.
    """
    close = [r for r in ranked if r.cost < ranked[0].cost + CLOSE]
    if len(close) > 1 and len(placed.numbers) > len(Sample.of(placed).numbers):
        every = Sample.of(placed, len(placed.numbers))
        costs = [registration_costs(host, r.mapping, r.shift[None], every)[0] for r in close[:MOST_READINGS]]
        close = [replace(r, cost=float(c)) for r, c in zip(close, costs, strict=False)]
        close.sort(key=lambda r: round(r.cost, 6))
    likely = [r for r in close[:MOST_READINGS] if r.cost < close[0].cost + 2 * MIN_ADVANTAGE]
    readings = [_Reading.of(host, r, placed) for r in likely]
    best = min(readings, key=lambda reading: round(reading.cost, 6))
    others = [r.cost for r in readings if r is not best and not r.reads_like(best, placed)]
    # costs of registrations let two atoms share a site: only their difference is comparable
    judged = {id(r) for r in likely}
    others += [best.cost + r.cost - close[0].cost for r in (*close, *ranked[len(close) :]) if id(r) not in judged][:1]
    return best, min(others, default=float("inf"))


def _blame_strain(host: Host, found: _Reading, placed: Placement, max_strain: float) -> None:
    """Raise an error if a host that fits badly would fit well beyond the strain limit."""
    for limit in (limit for limit in MISFITS if limit > max_strain):
        mappings = diffracted_mappings(host, placed.cell, (placed.positions, placed.numbers), limit)
        wider = register(host, [[m for m in mappings if abs(m.max_strain) > max_strain]], placed)
        if wider and wider[0].cost < min(GOOD_COST, found.cost / 2):
            mapping = wider[0].mapping
            raise HostError(
                f"host {host.name} fits the structure as {describe(mapping.matrix)} with a strain of "
                f"{mapping.max_strain:+.1%}, at most {max_strain:.1%} is allowed: check the host and its lattice "
                "constant, or allow more (max_strain, --max-strain)"
            )


def _refuse(host: Host, reading: _Reading, placed: Placement) -> None:
    """Raise an error if too many atoms have no site, most sites are defects, or a sublattice is replaced."""
    sites, host_numbers = reading.sites, reading.host_numbers
    n_atoms, loose = len(placed.numbers), np.flatnonzero(reading.assigned.site < 0)
    same = len(sites) - len(reading.empty) - np.count_nonzero(reading.substituted)
    if same < MIN_PRISTINE * len(sites):
        raise MatchError(
            f"only {same} of the {len(sites)} sites of host {host.name} hold the host's own element "
            f"({len(loose)} of {n_atoms} atoms sit on no site): this is not a defect structure of {host.name}; "
            f"check the host, its polytype and the cell{remark_on(host)}"
        )
    for element in np.unique(host_numbers):
        replacing = placed.numbers[reading.substituted == element]
        there = np.count_nonzero(host_numbers == element)
        if there < SUBLATTICE * len(sites):  # a dopant of the host
            continue
        if len(replacing) > MIN_PRISTINE * there:
            symbol = chemical_symbols[element]
            vacant = np.count_nonzero(host_numbers[reading.empty] == element)
            held = Counter(chemical_symbols[z] for z in replacing.tolist())
            held["nothing"] = int(vacant)
            found = ", ".join(f"{n} hold {what}" for what, n in held.most_common() if n)
            raise MatchError(
                f"only {there - len(replacing) - vacant} of the {there} {symbol} sites of host {host.name} hold "
                f"{symbol} ({found}): a replaced sublattice is no defect but another crystal; give the host that the "
                "structure is a defect of"
            )
    if len(loose) <= MAX_LOOSE * n_atoms:
        return
    groups = molecules(loose, placed)
    if len(groups) == 1 and len(groups[0]) == len(loose) and not len(reading.empty):
        formula = Formula.from_list([chemical_symbols[z] for z in placed.numbers[loose]]).format("hill")
        raise MatchError(
            f"{len(loose)} of {n_atoms} atoms are on no site of host {host.name} and bonded to one another: a "
            f"molecule ({formula}) is no point defect; take it out, or use a larger cell if it is meant to be one"
        )
    raise MatchError(
        f"{len(loose)} of {n_atoms} atoms are further than {GATE} Å from every free site of host {host.name}, more "
        "than a defect explains: check the host and its polytype, start from the unrelaxed structure, or use a "
        f"larger cell{remark_on(host)}"
    )


def _warnings(site_map: SiteMap, doubt: str) -> tuple[str, ...]:
    """Return the reasons to distrust a match, given the description of its least certain atom."""
    out = []
    if abs(site_map.max_strain) > STRAIN_NOTICE:
        out.append(strain_notice(site_map))
    if site_map.margin < MIN_MARGIN:
        out.append(f"ambiguous match (margin {site_map.margin:.2f} Å, expected at least {MIN_MARGIN} Å): {doubt}")
    if site_map.runner_up < site_map.cost + MIN_ADVANTAGE:
        out.append(
            f"ambiguous match: another registration of the host costs {site_map.runner_up:.3f} Å, this one "
            f"{site_map.cost:.3f} Å; check the host and the defects listed"
        )
    return tuple(out)


def strain_notice(site_map: SiteMap) -> str:
    """Return the warning for a strain of the host beyond :data:`STRAIN_NOTICE`."""
    return f"the host is strained by {site_map.max_strain:+.1%} onto the cell"


def _override(site_map: SiteMap, asked: Sequence[int] | None, substitutions: Sequence[int] | None) -> SiteMap:
    """Replace the inferred kinds by those of the caller, checked against the occupation."""
    kinds = site_map.kinds
    empty = site_map.numbers == 0
    if substitutions is not None:
        named = np.asarray(substitutions, dtype=int)
        n_atoms = int((~empty).sum()) + len(site_map.extra)
        outside = named[(named < 0) | (named >= n_atoms)]
        if len(outside):
            raise MatchError(f"substitutions names atom {outside[0]}, but the structure has atoms 0 to {n_atoms - 1}")
        off = [atom for atom in site_map.extra if atom.atom_index in named]
        if off:
            raise MatchError(
                f"substitutions names atom {off[0].atom_index} ({off[0].element}), which is on no site: it is read "
                f"as {off[0].name} ({off[0].kind})"
            )
        chosen = np.isin(site_map.atom_index, named)
        kinds = np.select([empty, chosen], [SiteKind.VACANCY, SiteKind.SUBSTITUTION], SiteKind.PRISTINE)
    if asked is not None:
        given = np.asarray(asked)
        if given.shape != empty.shape:
            raise MatchError(f"expected {len(empty)} kinds, one per host site, found shape {given.shape}")
        if not np.isin(given, list(SiteKind)).all():
            raise MatchError("expected kinds 0 (pristine), 1 (substitution) or 2 (vacancy), found another value")
        if substitutions is not None and (given != kinds).any():
            raise MatchError(
                f"kinds and substitutions disagree at site {np.flatnonzero(given != kinds)[0]}: give one"
            )
        kinds = given
    wrong = np.flatnonzero(empty != (kinds == SiteKind.VACANCY))
    if len(wrong):
        site = int(wrong[0])
        found = "is empty" if empty[site] else f"holds atom {site_map.atom_index[site]}"
        raise MatchError(f"site {site} is marked {SiteKind(int(kinds[site])).name.lower()} but {found}")
    foreign = np.flatnonzero((kinds == SiteKind.PRISTINE) & (site_map.numbers != site_map.host_numbers))
    if len(foreign):
        site = int(foreign[0])
        raise MatchError(
            f"site {site} is marked pristine but holds {chemical_symbols[site_map.numbers[site]]} "
            f"(atom {site_map.atom_index[site]}) where host {site_map.host.name} has "
            f"{chemical_symbols[site_map.host_numbers[site]]}"
        )
    return replace(site_map, kinds=kinds.astype(int))
