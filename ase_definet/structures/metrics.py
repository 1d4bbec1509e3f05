"""Distances of predicted structures from the reference, on plain arrays."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from ase.geometry import complete_cell, find_mic, minkowski_reduce
from numpy.typing import NDArray

from ase_definet.structures.neighbors import pairs_between

Array: TypeAlias = NDArray[Any]


_BLOCK = 100_000
"""Number of vectors processed together: ASE stores up to 27 images of each."""


def minimum_image(vectors: Array, cell: Array) -> Array:
    """Return the shortest periodic images of vectors.

    Args:
        vectors: Shape ``(n, 3)``, in Å.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å; zero vectors are not periodic.

    >>> minimum_image(np.array([[9.9, 0.0, 0.0]]), np.eye(3) * 10).round(6)
    array([[-0.1,  0. ,  0. ]])
    """
    # ASE takes what is shorter than half the shortest vector given as it is: right for the shortest vector there is
    cell, _ = minkowski_reduce(cell, pbc=np.any(cell, axis=1))
    out = np.empty(vectors.shape)
    for first in range(0, len(vectors), _BLOCK):
        block = slice(first, first + _BLOCK)
        out[block] = find_mic(vectors[block], cell, pbc=True)[0]
    return out


def near_sites(positions: Array, sites: Array, cell: Array, radius: float) -> Array:
    """Return a mask of the atoms within a radius of any of the given sites, including periodic images.

    Args:
        positions: Shape ``(n_atoms, 3)``, in Å.
        sites: Defect sites, shape ``(n_sites, 3)``, in Å.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å; zero vectors are not periodic.
        radius: Radius in Å; 3, 4, 5 or 6 for the published metrics A3 to A6.
    """
    mask = np.zeros(len(positions), dtype=bool)
    along_a, along_b, along_c = (bool(vector.any()) for vector in cell)
    mask[pairs_between(positions, sites, complete_cell(cell), (along_a, along_b, along_c), radius)[0]] = True
    return mask


def rank_correlation(one: Array, other: Array) -> float:
    """Return Spearman's rank correlation, NaN if it is undefined.

    Args:
        one: Shape ``(n,)``.
        other: Shape ``(n,)``.
    """
    from scipy.stats import spearmanr  # noqa: PLC0415 - slow to import

    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:  # noqa: PLR2004
        return float("nan")
    return float(spearmanr(one, other).statistic)


def reliability_bins(estimate: Array, error: Array, bins: int = 10) -> list[tuple[float, float, int]]:
    """Return mean estimate, mean error and number of values in bins of equal size, smallest estimates first.

    Args:
        estimate: Expected errors, shape ``(n,)``, in Å.
        error: Actual errors, shape ``(n,)``, in Å.
        bins: Number of bins.
    """
    parts = np.array_split(np.argsort(estimate), bins)
    return [(float(estimate[p].mean()), float(error[p].mean()), len(p)) for p in parts if len(p)]
