"""Site matching: which atom sits on which site of the host, and what that makes of each site."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from ase_definet.errors import HostError, MatchError
from ase_definet.host import Host, check_structure, get_host, layer_frame, library
from ase_definet.neighbors import neighbor_list
from ase_definet.registration import find_shifts, registration_cost
from ase_definet.supercell import MAX_STRAIN, Mapping, describe, find_mappings, supercell_sites

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

GATE = 1.4
"""An atom further than this from every free site is on none, in Å."""

SPECIES_PENALTY = 0.3
"""Added to the squared distance, in Å^2, where atom and host element differ."""

MIN_MARGIN = 0.5
"""An atom whose second-nearest site is not at least this much further than its own is ambiguous, in Å."""

MIN_PRISTINE = 0.5
"""A match with a smaller share of pristine sites is refused: the host is the wrong one."""

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
        name: Kröger-Vink-like name without charge: ``V_S``, ``W_Mo``.
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
        cost: Root mean square of the (gated) distances, species penalty included, in Å.
        runner_up: The same for the best different registration of host and cell, in Å; infinite if there is none.
        margin: Smallest difference between an atom's distance to its second-nearest site and to its own, in Å.
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
        """Whether some atom could as well sit on another site."""
        return self.margin < MIN_MARGIN

    @property
    def max_strain(self) -> float:
        """Principal strain of largest size, signed."""
        return float(self.strain[int(np.argmax(np.abs(self.strain)))])

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
                    name=f"{element or 'V'}_{host_element}",
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
        """How often each defect occurs, most frequent first: ``{"V_S": 2, "W_Mo": 1}``."""
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
    check_structure(atoms)
    if isinstance(host, str) and host.lower() == "auto":
        return _match_library(atoms, max_strain, markers, substitutions)
    site_map = _match(atoms, get_host(host), max_strain)
    if markers is None and substitutions is None:
        return site_map
    return _override(site_map, markers, substitutions)


def _match_library(
    atoms: Atoms, max_strain: float, markers: Sequence[int] | None, substitutions: Sequence[int] | None
) -> SiteMap:
    """Match to every library host that shares an element; keep the one with the fewest defects."""
    best: SiteMap | None = None
    elements = set(atoms.numbers.tolist())
    for host in library().values():
        if not elements & set(host.numbers.tolist()):
            continue
        try:
            found = match_sites(atoms, host, max_strain=max_strain, markers=markers, substitutions=substitutions)
        except (HostError, MatchError):
            continue
        if best is None or (found.density, found.cost) < (best.density, best.cost):
            best = found
    if best is None:
        raise HostError(
            f"no host of the library ({', '.join(sorted(library()))}) fits {atoms.get_chemical_formula()}: "
            "give the host as a file"
        )
    return best


def _match(atoms: Atoms, host: Host, max_strain: float) -> SiteMap:
    frame, positions, axis = layer_frame(atoms.cell.array, atoms.positions)
    if host.layered != (axis is not None):
        found = "has no vacuum along any axis" if host.layered else f"has vacuum along axis {axis}"
        expected = "two-dimensional" if host.layered else "three-dimensional"
        raise HostError(f"host {host.name} is {expected}, but the structure {found}: give the host that fits")
    mappings = find_mappings(host, frame, len(atoms), max_strain)
    mapping, shift, runner_up = _register(host, mappings, frame, positions, atoms.numbers)
    host_numbers, sites = supercell_sites(host, mapping)
    pbc = (True, True, axis is None)
    assignment = _assign(sites + shift, host_numbers, positions, atoms.numbers, frame, pbc)
    # the median of what was matched is a better rigid shift than the vote; assign once more with it
    residual = _residuals(sites + shift, positions, assignment, frame, pbc)
    matched = assignment >= 0
    if matched.any():
        shift = shift + np.median(residual[matched], axis=0)
        assignment = _assign(sites + shift, host_numbers, positions, atoms.numbers, frame, pbc)
    sites = sites + shift
    _refuse(host, sites, host_numbers, assignment, atoms, positions, frame, pbc)
    atom_index = np.full(len(sites), -1)
    atom_index[assignment] = np.arange(len(atoms))
    offsets = np.zeros((len(sites), 3))
    offsets[assignment] = _residuals(sites, positions, assignment, frame, pbc)
    numbers = np.zeros(len(sites), dtype=int)
    numbers[assignment] = atoms.numbers
    kinds = np.where(numbers == 0, SiteKind.VACANCY, np.where(numbers == host_numbers, SiteKind.PRISTINE, SiteKind.SUBSTITUTION))
    squared = (offsets**2).sum(axis=1) + np.where(kinds == SiteKind.SUBSTITUTION, SPECIES_PENALTY, 0.0)
    squared[kinds == SiteKind.VACANCY] = 0.0
    margin = _margin(host, sites, offsets, assignment, positions, frame, pbc)
    left, _, right = np.linalg.svd(mapping.deformation)
    return SiteMap(
        host=host,
        supercell=mapping.matrix,
        cell=frame,
        pbc=pbc,
        positions=sites,
        host_numbers=host_numbers,
        numbers=numbers,
        kinds=kinds.astype(int),
        atom_index=atom_index,
        offsets=offsets,
        strain=mapping.strain,
        shift=shift,
        rotation=(left @ right).T,
        cost=float(np.sqrt(squared.mean())),
        runner_up=runner_up,
        margin=margin,
        warnings=_warnings(mapping, margin, offsets, kinds, atom_index, atoms),
    )


def _register(
    host: Host, mappings: list[Mapping], frame: Array, positions: Array, numbers: Array
) -> tuple[Mapping, Array, float]:
    """Choose mapping and rigid shift by the truncated cost of all atoms; also return the runner-up's cost."""
    del frame
    tried: list[tuple[float, int, Mapping, Array]] = []
    last_strain: float | None = None
    groups = 0
    for order, mapping in enumerate(mappings):
        strain = round(float(np.abs(mapping.strain).sum()), 4)
        if last_strain is None or strain - last_strain > 1e-3:  # noqa: PLR2004
            groups += 1
            # a good match at less strain is not given up for a more strained one
            if tried and (min(tried, key=lambda t: t[:2])[0] < 0.5 * GATE or groups > 8):  # noqa: PLR2004
                break
        last_strain = strain
        for shift in find_shifts(host, mapping, positions, numbers):
            cost = registration_cost(host, mapping, shift, positions, numbers, gate=GATE, penalty=SPECIES_PENALTY)
            tried.append((round(cost, 6), order, mapping, shift))
    tried.sort(key=lambda t: t[:2])
    best = tried[0]
    different = [t[0] for t in tried if t[0] > best[0] + 1e-3]
    return best[2], best[3], min(different, default=float("inf"))


def _pairs(
    sites: Array, positions: Array, frame: Array, pbc: tuple[bool, bool, bool], radius: float
) -> tuple[Array, Array, Array]:
    """Return atom, site and the vector from site to atom for all pairs within a radius, nearest image."""
    target, source, _, vector = neighbor_list(np.concatenate([positions, sites]), frame, pbc, radius)
    n = len(positions)
    keep = (target < n) & (source >= n)
    atom, site, vector = target[keep], source[keep] - n, -vector[keep]
    order = np.lexsort(((vector**2).sum(axis=1), site, atom))
    atom, site, vector = atom[order], site[order], vector[order]
    first = np.ones(len(atom), dtype=bool)
    first[1:] = (atom[1:] != atom[:-1]) | (site[1:] != site[:-1])
    return atom[first], site[first], vector[first]


def _assign(
    sites: Array, host_numbers: Array, positions: Array, numbers: Array, frame: Array, pbc: tuple[bool, bool, bool]
) -> Array:
    """Assign atoms to sites at least total cost; -1 for an atom that fits none. Shape ``(n_atoms,)``."""
    atom, site, vector = _pairs(sites, positions, frame, pbc, GATE)
    n, m = len(positions), len(sites)
    # one dummy column per atom makes a full matching possible; the constant keeps zero costs in the sparse matrix
    cost = 1.0 + (vector**2).sum(axis=1) + SPECIES_PENALTY * (numbers[atom] != host_numbers[site])
    dummy = 1.0 + GATE**2 + SPECIES_PENALTY
    rows = np.concatenate([atom, np.arange(n)])
    columns = np.concatenate([site, m + np.arange(n)])
    weights = np.concatenate([cost, np.full(n, dummy)])
    row, column = min_weight_full_bipartite_matching(coo_array((weights, (rows, columns)), shape=(n, m + n)).tocsr())
    out = np.full(n, -1)
    out[row] = np.where(column < m, column, -1)
    return out


def _residuals(sites: Array, positions: Array, assignment: Array, frame: Array, pbc: tuple[bool, bool, bool]) -> Array:
    """Return atom minus site, nearest image, for assigned atoms (garbage for others)."""
    delta = positions - sites[assignment]
    fractions = np.linalg.solve(frame.T, delta.T).T
    wrapped: Array = delta - (np.round(fractions) * np.array(pbc)) @ frame
    return wrapped


def _margin(
    host: Host,
    sites: Array,
    offsets: Array,
    assignment: Array,
    positions: Array,
    frame: Array,
    pbc: tuple[bool, bool, bool],
) -> float:
    """Return the smallest gap between an atom's second-nearest site and its own, in Å."""
    own = np.linalg.norm(offsets[assignment], axis=1)
    reach = host.nearest_neighbor + 0.2
    atom, site, vector = _pairs(sites, positions, frame, pbc, reach)
    other = site != assignment[atom]
    gap = np.linalg.norm(vector[other], axis=1) - own[atom[other]]
    return float(min(gap.min(initial=np.inf), (reach - own).min()))


def _refuse(
    host: Host,
    sites: Array,
    host_numbers: Array,
    assignment: Array,
    atoms: Atoms,
    positions: Array,
    frame: Array,
    pbc: tuple[bool, bool, bool],
) -> None:
    """Raise where atoms have no site or most sites are defects."""
    matched = assignment >= 0
    same = host_numbers[assignment[matched]] == atoms.numbers[matched]
    pristine = same.sum() / len(sites)
    if pristine < MIN_PRISTINE:
        raise MatchError(
            f"only {same.sum()} of the {len(sites)} sites of host {host.name} hold the host's own element "
            f"({(~matched).sum()} of {len(atoms)} atoms sit on no site): this is not a defect structure of {host.name}; "
            "check the host, its polytype and the cell"
        )
    loose = np.flatnonzero(~matched)
    if len(loose) == 0:
        return
    if len(loose) > 0.1 * len(atoms):
        raise MatchError(
            f"{len(loose)} of {len(atoms)} atoms are further than {GATE} Å from every free site of host {host.name}: "
            "check the host and its polytype, or start from the unrelaxed structure"
        )
    k = int(loose[0])
    atom, site, vector = _pairs(sites, positions[k : k + 1], frame, pbc, 6.0)
    del atom
    nearest = int(np.argmin((vector**2).sum(axis=1))) if len(vector) else -1
    where = (
        f", {np.linalg.norm(vector[nearest]):.2f} Å from site {site[nearest]} ({chemical_symbols[host_numbers[site[nearest]]]})"
        if nearest >= 0
        else ""
    )
    more = f" and {len(loose) - 1} more" if len(loose) > 1 else ""
    x, y, z = positions[k]
    raise MatchError(
        f"atom {k} ({atoms.symbols[k]}) at ({x:.2f}, {y:.2f}, {z:.2f}) Å{more} sits on no free site of host {host.name}{where}: "
        "an adatom, interstitial or split vacancy has no marker in DefiNet; remove it or relax it with DFT alone"
    )


def _warnings(
    mapping: Mapping, margin: float, offsets: Array, kinds: Array, atom_index: Array, atoms: Atoms
) -> tuple[str, ...]:
    out = []
    if abs(mapping.max_strain) > STRAIN_NOTICE:
        out.append(f"the host is strained by {mapping.max_strain:+.1%} onto the cell")
    if margin < MIN_MARGIN:
        site = int(np.argmax(np.linalg.norm(offsets, axis=1)))
        atom = int(atom_index[site])
        out.append(
            f"ambiguous match (margin {margin:.2f} Å, expected at least {MIN_MARGIN} Å): atom {atom} "
            f"({atoms.symbols[atom]}) lies {np.linalg.norm(offsets[site]):.2f} Å from its site; "
            "a split vacancy, or a structure already relaxed?"
        )
    del kinds
    return tuple(out)


def _override(site_map: SiteMap, markers: Sequence[int] | None, substitutions: Sequence[int] | None) -> SiteMap:
    """Replace the inferred kinds by the caller's, checked against the occupation."""
    from dataclasses import replace  # noqa: PLC0415

    kinds = site_map.kinds.copy()
    empty = site_map.numbers == 0
    if substitutions is not None:
        chosen = np.asarray(substitutions, dtype=int)
        n_atoms = int((~empty).sum())
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= n_atoms):
            raise MatchError(f"substitutions names atom {chosen.max()}, but the structure has atoms 0 to {n_atoms - 1}")
        kinds = np.where(empty, SiteKind.VACANCY, np.where(np.isin(site_map.atom_index, chosen), SiteKind.SUBSTITUTION, SiteKind.PRISTINE))
    if markers is not None:
        kinds = np.asarray(markers, dtype=int)
        if kinds.shape != empty.shape:
            raise MatchError(f"expected {len(empty)} markers, one per host site, found {kinds.size}")
        if not np.isin(kinds, list(SiteKind)).all():
            raise MatchError("expected markers 0 (pristine), 1 (substitution) or 2 (vacancy), found another value")
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
