"""Rigid registration of a host to a structure: which shift puts most atoms on sites of their own element.

A shift matters only up to a primitive lattice vector of the (strained) host, so every atom votes for
"its position minus a site of its element" in one primitive cell. The densest places are refined by the median.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.host import Host
from ase_definet.supercell import Mapping

Array: TypeAlias = NDArray[Any]

_SAMPLE = 600
_BIN = 0.5
_CANDIDATES = 4
_REFINE = 0.8


def find_shifts(host: Host, mapping: Mapping, positions: Array, numbers: Array) -> list[Array]:
    """Return the few most voted rigid shifts of the host, best first, each shape ``(3,)``, in Å.

    Args:
        host: The host.
        mapping: How it lies in the cell.
        positions: Atoms in the matching frame, shape ``(n_atoms, 3)``, in Å.
        numbers: Their atomic numbers, shape ``(n_atoms,)``.
    """
    chosen = _sample(len(positions))
    positions, numbers = positions[chosen], numbers[chosen]
    basis, cell = host.positions @ mapping.deformation, host.cell @ mapping.deformation
    same = numbers[:, None] == host.numbers[None]
    if not same.any():
        same = np.ones_like(same)
    atom, site = np.nonzero(same)
    votes = _wrap(positions[atom] - basis[site], cell, host)
    size = np.maximum(1, np.round(np.linalg.norm(cell, axis=1) / _BIN)).astype(int)
    fractions = np.linalg.solve(cell.T, votes.T).T
    bins = np.floor(fractions * size).astype(int)
    periodic = np.array(host.periodic)
    bins[:, periodic] %= size[periodic]
    _, first, count = np.unique(bins, axis=0, return_index=True, return_counts=True)
    out: list[Array] = []
    for k in np.argsort(-count, kind="stable"):
        shift = votes[first[k]]
        for _ in range(3):
            delta = _wrap(votes - shift, cell, host)
            near = np.linalg.norm(delta, axis=1) < _REFINE
            shift = shift + np.median(delta[near], axis=0)
        if all(np.linalg.norm(_wrap((shift - s)[None], cell, host)) > _BIN / 2 for s in out):
            out.append(shift)
        if len(out) == _CANDIDATES:
            break
    return out


def registration_cost(
    host: Host, mapping: Mapping, shift: Array, positions: Array, numbers: Array, *, gate: float, penalty: float
) -> float:
    """Return the root mean square over atoms of the gated distance to the best site, in Å.

    Every atom takes its cheapest site of the infinite host, squared distance plus the species penalty, at most
    ``gate`` squared; two atoms may take one site, which the assignment forbids later.
    """
    chosen = _sample(len(positions))
    positions, numbers = positions[chosen], numbers[chosen]
    basis, cell = host.positions @ mapping.deformation, host.cell @ mapping.deformation
    delta = positions[:, None] - basis[None] - shift
    shape = delta.shape
    squared = (_wrap(delta.reshape(-1, 3), cell, host) ** 2).sum(axis=1).reshape(shape[:2])
    squared = squared + penalty * (numbers[:, None] != host.numbers[None])
    return float(np.sqrt(np.minimum(squared.min(axis=1), gate**2 + penalty).mean()))


def _sample(n: int) -> Array:
    """Return evenly spread indices, all of them for a small structure."""
    return np.arange(n) if n <= _SAMPLE else np.random.default_rng(0).choice(n, _SAMPLE, replace=False)


def _wrap(vectors: Array, cell: Array, host: Host) -> Array:
    """Take vectors to their nearest image in the (reduced) primitive cell."""
    fractions = np.linalg.solve(cell.T, vectors.T).T
    base = vectors - (np.round(fractions) * np.array(host.periodic)) @ cell
    best, length = base, (base**2).sum(axis=1)
    steps = [(-1, 0, 1) if p else (0,) for p in host.periodic]
    for i in steps[0]:
        for j in steps[1]:
            for k in steps[2]:
                moved = base + np.array([i, j, k]) @ cell
                shorter = (moved**2).sum(axis=1)
                better = shorter < length - 1e-12
                best = np.where(better[:, None], moved, best)
                length = np.where(better, shorter, length)
    return np.asarray(best)
