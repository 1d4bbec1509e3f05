"""Registration of a host to a structure: which mapping and rigid shift puts atoms on sites, and which atom on which.

A shift matters only up to a primitive lattice vector of the (strained) host, so every atom votes for
"its position minus a site of its element" in one primitive cell. The densest places are refined by the median.
Then atoms are assigned to sites at least total cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from ase_definet.host import Host
from ase_definet.neighbors import pairs_between
from ase_definet.supercell import Mapping

Array: TypeAlias = NDArray[Any]

GATE = 1.4
"""An atom further than this from every free site is on none, in Å."""

SPECIES_PENALTY = 0.3
"""Added to the squared distance, in Å^2, where atom and host element differ."""

GOOD_COST = 0.35
"""A registration this good ends the search for more strained mappings, in Å."""

_SAMPLE = 600  # atoms that vote
_BIN = 0.5  # width of the bins votes are counted in, in Å
_CANDIDATES = 4  # shifts tried for a mapping
_REFINE = 0.8  # votes this near a shift move it, in Å
_ROUNDS, _CONVERGED = 20, 1e-3  # of that, in Å
_MINORITY = 0.2  # bins with a smaller share of the fullest bin's votes are noise
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
        cost: See :func:`registration_cost`, in Å.
    """

    mapping: Mapping
    shift: Array
    cost: float


class _Lattice:
    """Host as one mapping lays it: its basis, and how vectors are taken to their nearest image."""

    def __init__(self, host: Host, mapping: Mapping) -> None:
        self.basis, self.cell = host.positions @ mapping.deformation, host.cell @ mapping.deformation
        self.inverse = np.linalg.inv(self.cell)
        self.periodic = np.array(host.periodic)
        near = itertools.product(*((0, -1, 1) if p else (0,) for p in host.periodic))
        self.steps = np.array(list(near)) @ self.cell  # the first one stays
        # the tiny bias keeps a vector where its images tie
        self.squares = (self.steps**2).sum(axis=1) - 1e-9 * (np.arange(len(self.steps)) == 0)

    def wrap(self, vectors: Array) -> Array:
        """Take vectors to their nearest image in the (reduced) primitive cell."""
        base = vectors - (np.round(vectors @ self.inverse) * self.periodic) @ self.cell
        # |base + step|^2 = |base|^2 + 2 base.step + |step|^2
        return np.asarray(base + self.steps[np.argmin(2 * base @ self.steps.T + self.squares, axis=1)])


@lru_cache(maxsize=512)
def _lattice(host: Host, mapping: Mapping) -> _Lattice:
    return _Lattice(host, mapping)


def register(host: Host, stages: Iterable[list[Mapping]], placed: Placement) -> list[Registration]:
    """Rank mappings and rigid shifts by the cost of all atoms, best first.

    Args:
        host: The host.
        stages: Mappings, likeliest first, in stages of rising strain; the first stage with a good one is the last.
        placed: The structure.

    Raises:
        HostError: No supercell of the host fits the cell.
    """
    sample = _sample(placed)
    tried: list[Registration] = []
    for mappings in stages:
        for k, mapping in enumerate(mappings):
            if k >= _ENOUGH and _good(tried):
                break
            shifts = find_shifts(host, mapping, sample)
            tried += [Registration(mapping, s, registration_cost(host, mapping, s, sample)) for s in shifts]
        if _good(tried):
            break
    # costs that differ by rounding tie: then the earlier mapping wins
    return sorted(tried, key=lambda r: round(r.cost, 6))


def _good(tried: list[Registration]) -> bool:
    """Return whether the best registration so far leaves no need to look further."""
    costs = np.array([r.cost for r in tried])
    if len(costs) == 0 or costs.min() < GOOD_COST:
        return len(costs) > 0
    return len(costs) >= _ENOUGH and bool(costs.min() < _OUTSTANDING * np.median(costs))


def find_shifts(host: Host, mapping: Mapping, placed: Placement) -> list[Array]:
    """Return the few most voted rigid shifts of the host, best first, each shape ``(3,)``, in Å.

    Args:
        host: The host.
        mapping: How it lies in the cell.
        placed: The structure.
    """
    lattice = _lattice(host, mapping)
    same = placed.numbers[:, None] == host.numbers[None]
    if not same.any():
        same = np.ones_like(same)
    atom, site = np.nonzero(same)
    votes = lattice.wrap(placed.positions[atom] - lattice.basis[site])
    size = np.maximum(1, np.round(np.linalg.norm(lattice.cell, axis=1) / _BIN)).astype(int)
    bins = np.ravel_multi_index(tuple(np.floor(votes @ lattice.inverse * size).astype(int).T), size, "wrap")
    # a peak may lie on the corner of eight bins: count each with its neighbours
    count = uniform_filter(np.bincount(bins, minlength=int(size.prod())).reshape(size).astype(float), 3, mode="wrap")
    occupied, first = np.unique(bins, return_index=True)
    count = count.ravel()[occupied]
    order = np.argsort(-count, kind="stable")
    starts = votes[first[order[count[order] >= _MINORITY * count.max(initial=0)]]]
    out: list[Array] = []
    while len(starts) and len(out) < _CANDIDATES:
        shift, starts = starts[0], starts[1:]
        for _ in range(_ROUNDS):
            delta = lattice.wrap(votes - shift)
            move = np.median(delta[np.linalg.norm(delta, axis=1) < _REFINE], axis=0)
            shift = shift + move
            if np.abs(move).max() < _CONVERGED:
                break
        if out and np.linalg.norm(lattice.wrap(np.array(out) - shift), axis=1).min() < _REFINE:
            continue
        out.append(shift)
        # a bin on the flank of a peak that is known already leads to that peak
        starts = starts[np.linalg.norm(lattice.wrap(starts - shift), axis=1) >= _REFINE]
    return out


def registration_cost(host: Host, mapping: Mapping, shift: Array, placed: Placement) -> float:
    """Return the root mean square over atoms of the gated distance to the best site, in Å.

    Every atom takes its cheapest site of the infinite host, squared distance plus the species penalty, at most
    that of the gate; two atoms may take one site, which the assignment forbids later.
    """
    lattice = _lattice(host, mapping)
    delta = (placed.positions[:, None] - lattice.basis[None] - shift).reshape(-1, 3)
    squared = (lattice.wrap(delta) ** 2).sum(axis=1).reshape(-1, len(lattice.basis))
    squared = squared + SPECIES_PENALTY * (placed.numbers[:, None] != host.numbers[None])
    return float(np.sqrt(np.minimum(squared.min(axis=1), GATE**2 + SPECIES_PENALTY).mean()))


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which atom sits where.

    Attributes:
        site: Site of every atom, -1 for none, shape ``(n_atoms,)``.
        offset: From it to the atom, zero for none, shape ``(n_atoms, 3)``, in Å.
        margin: How far every atom is from a different outcome, shape ``(n_atoms,)``, in Å: the distance to its
            second-nearest site, or :data:`GATE` if that is less, minus the distance to its own site.
    """

    site: Array
    offset: Array
    margin: Array


def assign(sites: Array, host_numbers: Array, placed: Placement) -> Assignment:
    """Assign atoms to sites at least total cost, an atom that fits none to none.

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
    # an atom and a site that have only each other need no search: in a large cell, nearly all
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
    """Assign the atoms of some pairs at least total cost, an atom for which that is too much to no site."""
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
    """Return atom, site and the vector from site to atom for all pairs within a radius, nearest image."""
    atom, site, vector = pairs_between(placed.positions, sites, placed.cell, placed.pbc, radius)
    order = np.lexsort(((vector**2).sum(axis=1), site, atom))
    atom, site, vector = atom[order], site[order], -vector[order]
    first = np.ones(len(atom), dtype=bool)
    first[1:] = (atom[1:] != atom[:-1]) | (site[1:] != site[:-1])
    return atom[first], site[first], vector[first]


def _sample(placed: Placement) -> Placement:
    """Return some atoms, evenly drawn; all of them for a small structure."""
    n = len(placed.numbers)
    if n <= _SAMPLE:
        return placed
    chosen = np.random.default_rng(0).choice(n, _SAMPLE, replace=False)
    return Placement(placed.positions[chosen], placed.numbers[chosen], placed.cell, placed.pbc)
