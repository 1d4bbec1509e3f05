"""Registration of a host to a structure: the mapping and rigid shift, and the assignment of atoms to sites.

A shift matters only up to a primitive lattice vector of the (strained) host, so every atom votes for
"its position minus a site of its element" in one primitive cell. Every peak of the votes is a candidate, even
close to another one; each is moved to the median of its votes and ranked by its cost. Atoms are then assigned to
sites at minimum total cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from ase_definet.matching.host import Host
from ase_definet.matching.supercell import Mapping
from ase_definet.structures.neighbors import images_around_cell, pairs_between

Array: TypeAlias = NDArray[Any]

GATE = 1.4
"""Largest distance of an atom from its site, in Å."""

SPECIES_PENALTY = 0.3
"""Added to the squared distance if the elements of atom and site differ, in Å^2."""

GOOD_COST = 0.35
"""A registration this good ends the search for more strained mappings, in Å."""

SHIFT_STEP = 1e-5
"""Rigid shifts are multiples of this, in Å."""

_EDGE = 0.0371  # fraction by which the cell of rigid shifts begins before zero, the most frequent shift
_SAMPLE = 600  # atoms that vote, evenly divided between the elements
_MOST_VOTES = 40_000
_FEWEST_VOTERS = 8  # of each element
_PEAK = 0.35  # votes this near to one another count together, in Å
_APART = 0.5  # peaks nearer than this are one, in Å: sublattices may be as fine as the bonds of graphene
_REFINE = 0.6  # votes this near a shift move it, in Å
_ROUNDS, _CONVERGED = 20, 1e-3  # of that, in Å
_MINORITY = 0.2  # peaks with a smaller share of the highest one's votes are noise
_MOST_PEAKS = 1_000
_POINTS = 200_000  # distances looked up at once
_KEPT = 64  # shifts of one mapping that go on, best first
_ENOUGH = 24  # mappings after which a good registration ends a stage
_OUTSTANDING = 0.65  # of the median cost: good in a large, strongly rattled cell, where most mappings are noise


@dataclass(frozen=True, eq=False)
class Placement:
    """A structure in the matching frame.

    Attributes:
        positions: Shape ``(n_atoms, 3)``, in Å.
        numbers: Atomic numbers, shape ``(n_atoms,)``.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å; the normal last for a layer.
        pbc: Which of them are periodic.
    """

    positions: Array
    numbers: Array
    cell: Array
    pbc: tuple[bool, bool, bool]


@dataclass(frozen=True, eq=False)
class Registration:
    """A mapping and a rigid shift of the host, with their cost.

    Attributes:
        mapping: How the host lies in the cell.
        shift: Shape ``(3,)``, in Å.
        cost: Root mean square over a sample of the atoms, see :func:`registration_costs`, in Å.
    """

    mapping: Mapping
    shift: Array
    cost: float


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample of atoms, with equal numbers of each element so that rare elements are represented.

    Attributes:
        positions: Shape ``(n, 3)``, in Å.
        numbers: Atomic numbers, shape ``(n,)``.
        weights: Number of atoms that each represents, shape ``(n,)``.
    """

    positions: Array
    numbers: Array
    weights: Array

    @classmethod
    def of(cls, placed: Placement, size: int = _SAMPLE) -> Sample:
        """Draw a reproducible sample, with all atoms of a small structure."""
        numbers = placed.numbers
        if len(numbers) <= size:
            return cls(placed.positions, numbers, np.ones(len(numbers)))
        elements, counts = np.unique(numbers, return_counts=True)
        share = _fair_shares(counts, size)
        rng = np.random.default_rng(0)
        chosen = [
            np.sort(rng.choice(np.flatnonzero(numbers == e), n, replace=False))
            for e, n in zip(elements, share, strict=True)
        ]
        index = np.concatenate(chosen)
        return cls(placed.positions[index], numbers[index], np.repeat(counts / share, share))


def _fair_shares(counts: Array, size: int) -> Array:
    """Divide a number evenly, redistributing what rare elements do not need."""
    share = np.zeros(len(counts), dtype=int)
    left = size
    for k, element in enumerate(np.argsort(counts, kind="stable")):
        share[element] = min(counts[element], max(1, left // (len(counts) - k)))
        left -= int(share[element])
    return share


class _Lattice:
    """A host in one mapping: its basis, and distances of points to its sites."""

    def __init__(self, host: Host, mapping: Mapping) -> None:
        self.basis, self.cell = host.positions @ mapping.deformation, host.cell @ mapping.deformation
        self.numbers = host.numbers
        self.inverse = np.linalg.inv(self.cell)
        self.pbc, self.periodic = host.periodic, np.array(host.periodic)
        self._trees: dict[int, cKDTree | None] = {}

    def inside(self, points: Array) -> Array:
        """Wrap points into the primitive cell at the origin."""
        fractions = points @ self.inverse
        return np.asarray((fractions - np.floor(fractions) * self.periodic) @ self.cell)

    def images(self, points: Array, margin: float) -> tuple[Array, Array]:
        """Return the images of points in the primitive cell or within a margin of it, in Å, and their indices."""
        return images_around_cell(points, self.cell, self.pbc, margin)

    def squared(self, points: Array, element: int) -> Array:
        """Return the squared distance of points to the nearest site of an element, 0 for any, at most the gate's."""
        if element not in self._trees:
            own = self.basis if element == 0 else self.basis[self.numbers == element]
            self._trees[element] = cKDTree(self.images(own, GATE)[0]) if len(own) else None
        tree = self._trees[element]
        if tree is None:
            return np.full(len(points), np.inf)
        distance, _ = tree.query(self.inside(points), distance_upper_bound=GATE)
        return np.asarray(distance**2)


def settled_shift(host: Host, mapping: Mapping, shift: Array) -> Array:
    """Return the equivalent of a rigid shift that does not depend on rounding, shape ``(3,)``, in Å.

    Shifts by a primitive vector permute the sites. Where rounding decided which one of them is found, structures that
    differ by their defects only would have their sites in another order. The cell of shifts therefore has its edges
    where shifts are rare, and shifts are multiples of :data:`SHIFT_STEP`.

    Args:
        host: The host.
        mapping: How it lies in the cell.
        shift: Shape ``(3,)``, in Å.
    """
    lattice = _lattice(host, mapping)
    whole = np.floor(shift @ lattice.inverse + _EDGE) * lattice.periodic
    return np.asarray(np.round((shift - whole @ lattice.cell) / SHIFT_STEP) * SHIFT_STEP)


def offsets_from(sites: Array, site: Array, positions: Array, near: Array, cell: Array) -> Array:
    """Return the vectors from sites to the atoms on them, zero for atoms on none, shape ``(n_atoms, 3)``, in Å.

    They are the given vectors, computed anew such that they depend on nothing but the atom and its site.

    Args:
        sites: Positions of the sites, shape ``(n_sites, 3)``, in Å.
        site: Site of every atom, -1 for none, shape ``(n_atoms,)``.
        positions: Of the atoms, shape ``(n_atoms, 3)``, in Å.
        near: The vectors, to within rounding, shape ``(n_atoms, 3)``, in Å.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
    """
    away = positions - sites[site]
    images = np.round((away - near) @ np.linalg.inv(cell))
    a, b, c = images.T[:, :, None]
    exact = away - (a * cell[0] + b * cell[1] + c * cell[2])
    return np.where((site >= 0)[:, None], exact, 0.0)


@lru_cache(maxsize=512)
def _lattice(host: Host, mapping: Mapping) -> _Lattice:
    return _Lattice(host, mapping)


def register(host: Host, stages: Iterable[list[Mapping]], placed: Placement) -> list[Registration]:
    """Rank mappings and rigid shifts by the cost of a sample of the atoms, best first.

    Args:
        host: The host.
        stages: Mappings, likeliest first, in stages of increasing strain; the search ends with the first good stage.
        placed: The structure.

    Raises:
        HostError: No supercell of the host fits the cell.
    """
    sample = Sample.of(placed)
    tried: list[Registration] = []
    for mappings in stages:
        for k, mapping in enumerate(mappings):
            if k >= _ENOUGH and _good(tried):
                break
            shifts = find_shifts(host, mapping, sample)
            costs = registration_costs(host, mapping, shifts, sample)
            best = np.argsort(costs, kind="stable")[:_KEPT]
            tried += [Registration(mapping, shifts[n], float(costs[n])) for n in best]
        if _good(tried):
            break
    # costs equal within rounding: the earlier mapping is preferred
    return sorted(tried, key=lambda r: round(r.cost, 6))


def _good(tried: list[Registration]) -> bool:
    """Return whether the best registration so far is good enough to end the search."""
    if not tried:
        return False
    costs: dict[int, float] = {}
    for registration in tried:
        costs.setdefault(id(registration.mapping), registration.cost)  # the first shift of a mapping is its best
    best = min(costs.values())
    return best < GOOD_COST or (len(costs) >= _ENOUGH and best < _OUTSTANDING * float(np.median([*costs.values()])))


def find_shifts(host: Host, mapping: Mapping, sample: Sample) -> Array:
    """Return the rigid shifts of the host that atoms vote for, most votes first, shape ``(n, 3)``, in Å.

    Args:
        host: The host.
        mapping: How it lies in the cell.
        sample: Atoms of the structure.
    """
    lattice = _lattice(host, mapping)
    votes = _votes(host, lattice, sample)
    images, owner = lattice.images(votes, _REFINE)
    tree = cKDTree(images)
    count = tree.query_ball_point(votes, _PEAK, return_length=True)
    left = count >= _MINORITY * count.max(initial=0)
    out: list[Array] = []
    for vote in np.argsort(-count, kind="stable"):
        if not left[vote]:
            continue
        shift = _refined(votes[vote], lattice, tree)
        # a vote on the flank of a peak leads to that peak
        left[owner[tree.query_ball_point(shift, _APART)]] = False
        out.append(shift)
        if len(out) == _MOST_PEAKS:
            break
    shifts = np.array(out).reshape(-1, 3)
    images, owner = lattice.images(shifts, _APART)
    known = cKDTree(images).query_ball_point(shifts, _APART)
    return shifts[[owner[near].min() == k for k, near in enumerate(known)]]


def _votes(host: Host, lattice: _Lattice, sample: Sample) -> Array:
    """Return the votes of the sampled atoms, in one primitive cell, shape ``(n, 3)``, in Å."""
    same = sample.numbers[:, None] == host.numbers[None]
    if not same.any():
        same = np.ones_like(same)
    if same.sum() > _MOST_VOTES:  # a host of many sites: fewer atoms vote, but some of every element
        keep = _MOST_VOTES / same.sum()
        for element in np.unique(sample.numbers):
            atoms = np.flatnonzero(sample.numbers == element)
            most = max(_FEWEST_VOTERS, int(keep * len(atoms)))
            step = max(1, len(atoms) // most)
            same[np.setdiff1d(atoms, atoms[::step])] = False
    atom, site = np.nonzero(same)
    return lattice.inside(sample.positions[atom] - lattice.basis[site])


def _refined(shift: Array, lattice: _Lattice, votes: cKDTree) -> Array:
    """Move a shift to the median of the votes around it."""
    for _ in range(_ROUNDS):
        shift = lattice.inside(shift[None])[0]
        move = np.median(votes.data[votes.query_ball_point(shift, _REFINE)] - shift, axis=0)
        shift = shift + move
        if np.abs(move).max() < _CONVERGED:
            break
    return np.asarray(lattice.inside(shift[None])[0])


def registration_costs(host: Host, mapping: Mapping, shifts: Array, sample: Sample) -> Array:
    """Return the root mean square over atoms of the gated distance to the best site, of each shift, in Å.

    Each atom contributes the cost of its cheapest site in the infinite host, the squared distance plus the species
    penalty, up to that of the gate. Two atoms may share a site here, unlike in the assignment.

    Args:
        host: The host.
        mapping: How it lies in the cell.
        shifts: Shape ``(n_shifts, 3)``, in Å.
        sample: Atoms of the structure.
    """
    lattice = _lattice(host, mapping)
    total = np.zeros(len(shifts))
    for element in np.unique(sample.numbers):
        own = sample.numbers == element
        positions, weights = sample.positions[own], sample.weights[own]
        step = max(1, _POINTS // len(positions))
        for start in range(0, len(shifts), step):
            part = shifts[start : start + step]
            points = (positions[None] - part[:, None]).reshape(-1, 3)
            squared = np.minimum(lattice.squared(points, int(element)), lattice.squared(points, 0) + SPECIES_PENALTY)
            gated = np.minimum(squared, GATE**2 + SPECIES_PENALTY)
            total[start : start + step] += gated.reshape(len(part), -1) @ weights
    return np.asarray(np.sqrt(total / sample.weights.sum()))


@dataclass(frozen=True, eq=False)
class Assignment:
    """An assignment of atoms to sites.

    Attributes:
        site: Site of every atom, -1 for none, shape ``(n_atoms,)``.
        offset: Vector from the site to the atom, zero for none, shape ``(n_atoms, 3)``, in Å.
        margin: How far every atom is from a different assignment, shape ``(n_atoms,)``, in Å: the distance to its
            second-nearest site, or :data:`GATE` if that is less, minus the distance to its own site.
    """

    site: Array
    offset: Array
    margin: Array


def assign(sites: Array, host_numbers: Array, placed: Placement) -> Assignment:
    """Assign atoms to sites at minimum total cost; atoms too far from all sites remain unassigned.

    Args:
        sites: Positions, shape ``(n_sites, 3)``, in Å.
        host_numbers: Their atomic numbers, shape ``(n_sites,)``.
        placed: The atoms.
    """
    atom, site, vector = nearby_pairs(sites, placed, GATE)
    n, m = len(placed.numbers), len(sites)
    squared = (vector**2).sum(axis=1)
    cost = squared + SPECIES_PENALTY * (placed.numbers[atom] != host_numbers[site])
    chosen = np.full(n, -1)
    # isolated pairs of an atom and a site need no search: nearly all in a large cell
    sure = (np.bincount(atom, minlength=n)[atom] == 1) & (np.bincount(site, minlength=m)[site] == 1)
    chosen[atom[sure]] = site[sure]
    chosen = _cheapest(chosen, atom[~sure], site[~sure], cost[~sure], m)
    offset = np.zeros((n, 3))
    taken = chosen[atom] == site
    offset[atom[taken]] = vector[taken]
    second = np.full(n, GATE)
    np.minimum.at(second, atom[~taken], np.sqrt(squared[~taken]))
    return Assignment(chosen, offset, second - np.linalg.norm(offset, axis=1))


def _cheapest(chosen: Array, atom: Array, site: Array, cost: Array, n_sites: int) -> Array:
    """Assign the atoms of some pairs at minimum total cost; atoms whose cost is too high remain unassigned."""
    atoms, row = np.unique(atom, return_inverse=True)
    n = len(atoms)
    if n == 0:
        return chosen
    # one dummy column per atom makes a full matching possible; the constant keeps zero costs in the sparse matrix
    rows = np.concatenate([row, np.arange(n)])
    columns = np.concatenate([site, n_sites + np.arange(n)])
    weights = 1.0 + np.concatenate([cost, np.full(n, GATE**2 + SPECIES_PENALTY)])
    matrix = coo_array((weights, (rows, columns)), shape=(n, n_sites + n)).tocsr()
    row, column = min_weight_full_bipartite_matching(matrix)
    chosen[atoms[row]] = np.where(column < n_sites, column, -1)
    return chosen


def nearby_pairs(sites: Array, placed: Placement, radius: float) -> tuple[Array, Array, Array]:
    """Return atom, site and vector from site to atom (nearest image) for all pairs within a radius."""
    atom, site, vector = pairs_between(placed.positions, sites, placed.cell, placed.pbc, radius)
    order = np.lexsort(((vector**2).sum(axis=1), site, atom))
    atom, site, vector = atom[order], site[order], -vector[order]
    first = np.ones(len(atom), dtype=bool)
    first[1:] = (atom[1:] != atom[:-1]) | (site[1:] != site[:-1])
    return atom[first], site[first], vector[first]
