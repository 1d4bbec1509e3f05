"""Registration of a host to a structure: which mapping and rigid shift puts atoms on sites, and which atom on which.

A shift matters only up to a primitive lattice vector of the (strained) host, so every atom votes for
"its position minus a site of its element" in one primitive cell. The densest places are refined by the median.
Then atoms are assigned to sites at least total cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from ase_definet.host import Host
from ase_definet.neighbors import pairs_within
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
    basis, cell = host.positions @ mapping.deformation, host.cell @ mapping.deformation
    same = placed.numbers[:, None] == host.numbers[None]
    if not same.any():
        same = np.ones_like(same)
    atom, site = np.nonzero(same)
    votes = _wrap(placed.positions[atom] - basis[site], cell, host)
    size = np.maximum(1, np.round(np.linalg.norm(cell, axis=1) / _BIN)).astype(int)
    bins = np.ravel_multi_index(
        tuple(np.floor(np.linalg.solve(cell.T, votes.T) * size[:, None]).astype(int)), size, "wrap"
    )
    # a peak may lie on the corner of eight bins: count each with its neighbours
    count = uniform_filter(np.bincount(bins, minlength=int(size.prod())).reshape(size).astype(float), 3, mode="wrap")
    occupied, first = np.unique(bins, return_index=True)
    count = count.ravel()[occupied]
    out: list[Array] = []
    for k in np.argsort(-count, kind="stable"):
        if count[k] < _MINORITY * count.max() or len(out) == _CANDIDATES:
            break
        shift = votes[first[k]]
        # a bin on the flank of a peak that is known already leads to that peak
        if _near(out, shift, cell, host):
            continue
        for _ in range(_ROUNDS):
            delta = _wrap(votes - shift, cell, host)
            move = np.median(delta[np.linalg.norm(delta, axis=1) < _REFINE], axis=0)
            shift = shift + move
            if np.abs(move).max() < _CONVERGED:
                break
        if not _near(out, shift, cell, host):
            out.append(shift)
    return out


def registration_cost(host: Host, mapping: Mapping, shift: Array, placed: Placement) -> float:
    """Return the root mean square over atoms of the gated distance to the best site, in Å.

    Every atom takes its cheapest site of the infinite host, squared distance plus the species penalty, at most
    that of the gate; two atoms may take one site, which the assignment forbids later.
    """
    basis, cell = host.positions @ mapping.deformation, host.cell @ mapping.deformation
    delta = (placed.positions[:, None] - basis[None] - shift).reshape(-1, 3)
    squared = (_wrap(delta, cell, host) ** 2).sum(axis=1).reshape(-1, len(basis))
    squared = squared + SPECIES_PENALTY * (placed.numbers[:, None] != host.numbers[None])
    return float(np.sqrt(np.minimum(squared.min(axis=1), GATE**2 + SPECIES_PENALTY).mean()))


def assign(sites: Array, host_numbers: Array, placed: Placement) -> tuple[Array, Array]:
    """Assign atoms to sites at least total cost, an atom that fits none to none.

    Args:
        sites: Positions, shape ``(n_sites, 3)``, in Å.
        host_numbers: Their atomic numbers, shape ``(n_sites,)``.
        placed: The atoms.

    Returns:
        ``(site, offset)``: the site of every atom, -1 for none, shape ``(n_atoms,)``, and the vector from it to the
        atom, zero for none, shape ``(n_atoms, 3)``, in Å.
    """
    atom, site, vector = nearby_pairs(sites, placed, GATE)
    n, m = len(placed.numbers), len(sites)
    # one dummy column per atom makes a full matching possible; the constant keeps zero costs in the sparse matrix
    cost = 1.0 + (vector**2).sum(axis=1) + SPECIES_PENALTY * (placed.numbers[atom] != host_numbers[site])
    rows = np.concatenate([atom, np.arange(n)])
    columns = np.concatenate([site, m + np.arange(n)])
    weights = np.concatenate([cost, np.full(n, 1.0 + GATE**2 + SPECIES_PENALTY)])
    row, column = min_weight_full_bipartite_matching(coo_array((weights, (rows, columns)), shape=(n, m + n)).tocsr())
    chosen = np.full(n, -1)
    chosen[row] = np.where(column < m, column, -1)
    offset = np.zeros((n, 3))
    taken = chosen[atom] == site
    offset[atom[taken]] = vector[taken]
    return chosen, offset


def least_margin(host: Host, sites: Array, chosen: Array, offset: Array, placed: Placement) -> tuple[float, int]:
    """Return how far from a different outcome the least certain atom is, in Å, and its index.

    The margin of an atom is the distance to its second-nearest site, or the gate if that is less, minus the distance
    to its own site.
    """
    own = np.linalg.norm(offset, axis=1)
    margin = GATE - own
    atom, site, vector = nearby_pairs(sites, placed, host.nearest_neighbor + GATE)
    other = site != chosen[atom]
    np.minimum.at(margin, atom[other], np.linalg.norm(vector[other], axis=1) - own[atom[other]])
    least = int(np.argmin(margin))
    return float(margin[least]), least


def nearby_pairs(sites: Array, placed: Placement, radius: float) -> tuple[Array, Array, Array]:
    """Return atom, site and the vector from site to atom for all pairs within a radius, nearest image."""
    points = np.concatenate([placed.positions, sites])
    target, source, vector = pairs_within(points, placed.cell, placed.pbc, radius)
    n = len(placed.positions)
    keep = (target < n) & (source >= n)
    atom, site, vector = target[keep], source[keep] - n, -vector[keep]
    order = np.lexsort(((vector**2).sum(axis=1), site, atom))
    atom, site, vector = atom[order], site[order], vector[order]
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


def _near(shifts: list[Array], shift: Array, cell: Array, host: Host) -> bool:
    """Return whether a shift is one of those known, but for a lattice vector."""
    return bool(shifts) and bool(np.linalg.norm(_wrap(np.array(shifts) - shift, cell, host), axis=1).min() < _REFINE)


def _wrap(vectors: Array, cell: Array, host: Host) -> Array:
    """Take vectors to their nearest image in the (reduced) primitive cell."""
    periodic = np.array(host.periodic)
    fractions = np.linalg.solve(cell.T, vectors.T).T
    base = vectors - (np.round(fractions) * periodic) @ cell
    steps = (
        np.stack(np.meshgrid(*([-1, 0, 1] if p else [0] for p in periodic), indexing="ij"), -1).reshape(-1, 3) @ cell
    )
    # |base + step|^2 = |base|^2 + 2 base.step + |step|^2; the tiny bias keeps the base where images tie
    length = 2 * base @ steps.T + (steps**2).sum(axis=1)
    length[:, len(steps) // 2] -= 1e-9
    return np.asarray(base + steps[np.argmin(length, axis=1)])
