"""Site matching: which atom sits on which site of the host, and what that makes of each site."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ase_definet.errors import HostError, MatchError
from ase_definet.host import Host, as_atoms, check_structure, get_host, library
from ase_definet.naming import defect_name
from ase_definet.registration import (
    GATE,
    SPECIES_PENALTY,
    Placement,
    assign,
    nearby_pairs,
    register,
)
from ase_definet.supercell import MAX_STRAIN, describe, mapping_stages, supercell_sites

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]
_Framed: TypeAlias = tuple[Array, Array, int | None]

MIN_MARGIN = 0.5
"""An atom is ambiguous where its second-nearest site, or the gate, is not this much further than its own, in Å."""

MIN_ADVANTAGE = 0.01
"""A match is ambiguous where another registration of the whole host costs no more than this much more, in Å."""

SAME_SHIFT = 1e-5
"""A rigid shift is not refined by less, in Å."""

MIN_PRISTINE = 0.5
"""A match with a smaller share of pristine sites is refused: the host is the wrong one."""

MAX_LOOSE = 0.1
"""With a larger share of atoms on no site it is not those atoms but the host that is wrong."""

STRAIN_NOTICE = 0.03
"""Strain of the host beyond which a warning is given."""


class SiteKind(enum.IntEnum):
    """What a host site has become; the values are the markers of the network."""

    PRISTINE = 0
    SUBSTITUTION = 1
    VACANCY = 2


@dataclass(frozen=True)
class Defect:
    """One defect site.

    Attributes:
        name: Without charge, as doped writes it: ``v_S``, ``W_Mo``; ``V_Mo`` is vanadium.
        kind: Substitution or vacancy.
        site: Index of the host site.
        host_element: Element the host has there.
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
    """A structure as occupied sites of a host supercell, in host order.

    Attributes:
        host: The host.
        supercell: Integer matrix, shape ``(3, 3)``, rows in the host's primitive vectors.
        cell: Periodic vectors as rows, shape ``(3, 3)``, in Å; for a layer the two in-plane vectors of the
            structure, then its normal (see :func:`~ase_definet.host.layer_frame`).
        pbc: Which of them are periodic.
        positions: Ideal positions, shape ``(n_sites, 3)``, in Å: the caller's frame and origin, any image in the
            plane, one unbroken layer across the vacuum.
        host_numbers: Atomic numbers of the host, shape ``(n_sites,)``.
        numbers: Atomic numbers found, 0 where empty, shape ``(n_sites,)``.
        kinds: :class:`SiteKind` values, shape ``(n_sites,)``.
        atom_index: Index of the atom on each site in the caller's order, -1 where empty, shape ``(n_sites,)``.
        offsets: Atom minus site, nearest image, zero where empty, shape ``(n_sites, 3)``, in Å.
        strain: Principal strains of the host onto the cell, shape ``(3,)``.
        shift: Rigid shift of the host, shape ``(3,)``, in Å.
        rotation: Rotation of the host's frame into the caller's, shape ``(3, 3)``, for column vectors.
        cost: Root mean square over atoms of the (gated) distances, species penalty included, in Å.
        runner_up: The same for the best different registration of host and cell, one that no symmetry of the host
            turns into this one, in Å; infinite if there is none.
        margin: Smallest difference between an atom's distance to its second-nearest site, or
            :data:`~ase_definet.registration.GATE` if that is less, and to its own, in Å.
        warnings: Reasons to distrust the match.
    """

    host: Host
    supercell: Array
    cell: Array
    pbc: tuple[bool, bool, bool]
    positions: Array
    host_numbers: Array
    numbers: Array
    kinds: Array
    atom_index: Array
    offsets: Array
    strain: Array
    shift: Array
    rotation: Array
    cost: float
    runner_up: float
    margin: float
    warnings: tuple[str, ...]

    @property
    def ambiguous(self) -> bool:
        """Whether some atom, or the whole structure, could as well sit on other sites."""
        return self.margin < MIN_MARGIN or self.runner_up < self.cost + MIN_ADVANTAGE

    @property
    def max_strain(self) -> float:
        """Principal strain of largest size, signed."""
        return float(self.strain[int(np.argmax(np.abs(self.strain)))])

    @property
    def unit(self) -> tuple[Array, Array]:
        """Primitive cell ``(3, 3)`` and positions in it, strained onto the structure, in the host's frame, in Å."""
        host = self.host
        cell = np.linalg.solve(self.supercell.astype(float), self.cell @ self.rotation)
        before, after = host.cell.copy(), cell.copy()
        if host.layered:  # the vacuum is no strain
            for vectors in (before, after):
                normal = np.cross(vectors[0], vectors[1])
                vectors[2] = normal / np.linalg.norm(normal)
        return cell, host.positions @ np.linalg.solve(before, after)

    @property
    def supercell_name(self) -> str:
        """The supercell in words: ``8x8x1``."""
        return describe(self.supercell)

    @property
    def density(self) -> float:
        """Share of the sites that are defects."""
        return float((self.kinds != SiteKind.PRISTINE).mean())

    @property
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

    @property
    def defect_counts(self) -> dict[str, int]:
        """How often each defect occurs, most frequent first: ``{"v_S": 2, "W_Mo": 1}``."""
        return dict(Counter(defect.name for defect in self.defects).most_common())


def match_sites(
    atoms: Atoms,
    host: object,
    *,
    max_strain: float = MAX_STRAIN,
    markers: Sequence[int] | None = None,
    substitutions: Sequence[int] | None = None,
) -> SiteMap:
    """Match a defect structure to its host.

    The host is laid into the caller's cell in every way that fits, shifted rigidly to where most atoms agree, and
    atoms are assigned to sites at least total squared distance.

    Args:
        atoms: The structure, in Å; any origin, image, axis order or orientation.
        host: A library name, a file, an Atoms, a pymatgen Structure or a :class:`~ase_definet.host.Host`;
            ``"auto"`` tries the library.
        max_strain: Largest principal strain of the host onto the cell.
        markers: Marker of every site in host order, shape ``(n_sites,)``, instead of the inferred ones.
        substitutions: Indices of the atoms that are substitutions, instead of the inferred ones.

    Raises:
        StructureError: The structure is unusable.
        HostError: The host is unknown or does not fit the cell.
        MatchError: Atoms without a site, a wrong host, or markers that contradict the structure.

    References:
        Yang et al., npj Comput. Mater. 11, 229 (2025), the markers of the defect-explicit graph.
    """
    atoms = as_atoms(atoms)
    framed = check_structure(atoms)
    automatic = isinstance(host, str) and host.lower() == "auto"
    site_map = (
        _match_library(atoms, framed, max_strain) if automatic else _match(atoms, framed, get_host(host), max_strain)
    )
    if markers is None and substitutions is None:
        return site_map
    return _override(site_map, markers, substitutions)


def _match_library(atoms: Atoms, framed: _Framed, max_strain: float) -> SiteMap:
    """Match to every library host that shares an element; keep the one with the fewest defects."""
    found: list[SiteMap] = []
    for host in library().values():
        if np.isin(atoms.numbers, host.numbers).any():
            try:
                found.append(_match(atoms, framed, host, max_strain))
            except (HostError, MatchError):
                continue
    if not found:
        raise HostError(
            f"no host of the library ({', '.join(sorted(library()))}) fits {atoms.get_chemical_formula()}: "
            "give the host as a file"
        )
    return min(found, key=lambda site_map: (site_map.density, site_map.cost))


def _match(atoms: Atoms, framed: _Framed, host: Host, max_strain: float) -> SiteMap:
    frame, positions, axis = framed
    if host.layered != (axis is not None):
        found = "has no vacuum along any axis" if host.layered else f"has vacuum along axis {axis}"
        expected = "two-dimensional" if host.layered else "three-dimensional"
        raise HostError(f"host {host.name} is {expected}, but the structure {found}: give the host that fits")
    placed = Placement(positions, atoms.numbers, frame, (True, True, axis is None))
    ranked = register(host, mapping_stages(host, frame, len(atoms), max_strain), placed)
    mapping, shift = ranked[0].mapping, ranked[0].shift
    host_numbers, sites = supercell_sites(host, mapping)
    assigned = assign(sites + shift, host_numbers, placed)
    # the median of what was matched is a better rigid shift than the vote; assign once more with it
    matched = assigned.site >= 0
    better = np.median(assigned.offset[matched], axis=0) if matched.any() else np.zeros(3)
    if np.abs(better).max() > SAME_SHIFT:
        shift = shift + better
        assigned = assign(sites + shift, host_numbers, placed)
    chosen, offset = assigned.site, assigned.offset
    sites = sites + shift
    _refuse(host, sites, host_numbers, chosen, placed)
    atom_index = np.full(len(sites), -1)
    atom_index[chosen] = np.arange(len(atoms))
    offsets = np.zeros((len(sites), 3))
    offsets[chosen] = offset
    numbers = np.zeros(len(sites), dtype=int)
    numbers[chosen] = atoms.numbers
    kinds = np.select(
        [numbers == 0, numbers == host_numbers], [SiteKind.VACANCY, SiteKind.PRISTINE], SiteKind.SUBSTITUTION
    )
    squared = (offset**2).sum() + SPECIES_PENALTY * np.count_nonzero(kinds == SiteKind.SUBSTITUTION)
    cost = float(np.sqrt(squared / len(atoms)))
    # the costs of registrations are those of a sample of the atoms: only their difference is comparable
    runner_up = cost + ranked[1].cost - ranked[0].cost if len(ranked) > 1 else float("inf")
    least = int(np.argmin(assigned.margin))
    left, _, right = np.linalg.svd(mapping.deformation)
    site_map = SiteMap(
        host=host,
        supercell=mapping.matrix,
        cell=frame,
        pbc=placed.pbc,
        positions=sites,
        host_numbers=host_numbers,
        numbers=numbers,
        kinds=kinds.astype(int),
        atom_index=atom_index,
        offsets=offsets,
        strain=mapping.strain,
        shift=shift,
        rotation=(left @ right).T,
        cost=cost,
        runner_up=runner_up,
        margin=float(assigned.margin[least]),
        warnings=(),
    )
    distance = float(np.linalg.norm(offset[least]))
    return replace(site_map, warnings=_warnings(site_map, f"atom {least} ({atoms.symbols[least]})", distance))


def _refuse(host: Host, sites: Array, host_numbers: Array, chosen: Array, placed: Placement) -> None:
    """Raise where atoms have no site or most sites are defects."""
    n_atoms, matched = len(chosen), chosen >= 0
    same = int((host_numbers[chosen[matched]] == placed.numbers[matched]).sum())
    if same < MIN_PRISTINE * len(sites):
        raise MatchError(
            f"only {same} of the {len(sites)} sites of host {host.name} hold the host's own element "
            f"({(~matched).sum()} of {n_atoms} atoms sit on no site): this is not a defect structure of {host.name}; "
            "check the host, its polytype and the cell"
        )
    loose = np.flatnonzero(~matched)
    if len(loose) == 0:
        return
    if len(loose) > MAX_LOOSE * n_atoms:
        raise MatchError(
            f"{len(loose)} of {n_atoms} atoms are further than {GATE} Å from every free site of host {host.name}: "
            "check the host and its polytype, or start from the unrelaxed structure"
        )
    k = int(loose[0])
    alone = Placement(placed.positions[[k]], placed.numbers[[k]], placed.cell, placed.pbc)
    _, site, vector = nearby_pairs(sites, alone, 6.0)
    where = ""
    if len(site):
        distance = np.linalg.norm(vector, axis=1)
        nearest = int(np.argmin(distance))
        element = chemical_symbols[host_numbers[site[nearest]]]
        where = f", {distance[nearest]:.2f} Å from site {site[nearest]} ({element})"
    more = f" and {len(loose) - 1} more" if len(loose) > 1 else ""
    x, y, z = placed.positions[k]
    atom = f"atom {k} ({chemical_symbols[placed.numbers[k]]})"
    raise MatchError(
        f"{atom} at ({x:.2f}, {y:.2f}, {z:.2f}) Å{more} sits on no free site of host {host.name}{where}: "
        "an adatom, interstitial or split vacancy has no marker in DefiNet; remove it or relax it with DFT alone"
    )


def _warnings(site_map: SiteMap, atom: str, distance: float) -> tuple[str, ...]:
    """Return the reasons to distrust a match, given its least certain atom and how far that is from its site."""
    out = []
    if abs(site_map.max_strain) > STRAIN_NOTICE:
        out.append(f"the host is strained by {site_map.max_strain:+.1%} onto the cell")
    if site_map.margin < MIN_MARGIN:
        out.append(
            f"ambiguous match (margin {site_map.margin:.2f} Å, expected at least {MIN_MARGIN} Å): {atom} lies "
            f"{distance:.2f} Å from its site; a split vacancy, or a structure already relaxed?"
        )
    if site_map.runner_up < site_map.cost + MIN_ADVANTAGE:
        out.append(
            f"ambiguous match: another registration of the host costs {site_map.runner_up:.3f} Å, this one "
            f"{site_map.cost:.3f} Å; check the host and the defects listed"
        )
    return tuple(out)


def _override(site_map: SiteMap, markers: Sequence[int] | None, substitutions: Sequence[int] | None) -> SiteMap:
    """Replace the inferred kinds by the caller's, checked against the occupation."""
    kinds = site_map.kinds
    empty = site_map.numbers == 0
    if substitutions is not None:
        named = np.asarray(substitutions, dtype=int)
        n_atoms = int((~empty).sum())
        outside = named[(named < 0) | (named >= n_atoms)]
        if len(outside):
            raise MatchError(f"substitutions names atom {outside[0]}, but the structure has atoms 0 to {n_atoms - 1}")
        chosen = np.isin(site_map.atom_index, named)
        kinds = np.select([empty, chosen], [SiteKind.VACANCY, SiteKind.SUBSTITUTION], SiteKind.PRISTINE)
    if markers is not None:
        given = np.asarray(markers)
        if given.shape != empty.shape:
            raise MatchError(f"expected {len(empty)} markers, one per host site, found shape {given.shape}")
        if not np.isin(given, list(SiteKind)).all():
            raise MatchError("expected markers 0 (pristine), 1 (substitution) or 2 (vacancy), found another value")
        if substitutions is not None and (given != kinds).any():
            raise MatchError(
                f"markers and substitutions disagree at site {np.flatnonzero(given != kinds)[0]}: give one"
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
