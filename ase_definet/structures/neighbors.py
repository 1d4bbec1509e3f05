"""Periodic neighbour lists in whole shells."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

SHELL_TOLERANCE = 0.01
"""Distances closer than this belong to one shell, in Å."""


def neighbor_list(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: tuple[bool, bool, bool],
    cutoff: float,
    max_neighbors: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """List every periodic image within a cutoff of every site, target by target.

    Args:
        positions: Sites, shape ``(n_sites, 3)``, in Å.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        pbc: Which of them are periodic.
        cutoff: Longest edge, in Å.
        max_neighbors: Keep at most this many per site, in whole shells: if the first neighbour beyond
            the limit lies within :data:`SHELL_TOLERANCE` of the last one within it, their whole shell is dropped.

    Returns:
        ``(target, source, cell_shift, vector)``: integer arrays of shape ``(n_edges,)`` twice and
        ``(n_edges, 3)``, and ``vector = r[source] + cell_shift @ cell - r[target]``, in Å.
    """
    import vesin  # noqa: PLC0415 - loads torch where that is installed

    calculator = vesin.NeighborList(cutoff=cutoff, full_list=True)
    target, source, shift, vector, distance = calculator.compute(
        points=np.ascontiguousarray(positions, dtype=float),
        box=np.ascontiguousarray(cell, dtype=float),
        periodic=np.asarray(pbc, dtype=bool),
        quantities="ijSDd",
    )
    order = np.lexsort((distance, target))
    target, source, shift, vector = (np.asarray(a)[order] for a in (target, source, shift, vector))
    target, source, shift = target.astype(np.int64), source.astype(np.int64), shift.astype(np.int64)
    if max_neighbors is None or len(target) == 0:
        return target, source, shift, vector
    keep = _whole_shells(target, distance[order], len(positions), max_neighbors)
    return target[keep], source[keep], shift[keep], vector[keep]


def pairs_within(
    positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool], radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List all pairs of points within a short radius, including images; see :func:`pairs_between`."""
    target, source, vector = pairs_between(positions, positions, cell, pbc, radius)
    itself = (target == source) & ~vector.any(axis=1)
    return target[~itself], source[~itself], vector[~itself]


def pairs_between(
    targets: np.ndarray, sources: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool], radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List the pairs of two sets of points within a short radius, including images.

    Unlike vesin, this does not load torch.

    Args:
        targets: Points, shape ``(n, 3)``, in Å.
        sources: Points whose images are searched, shape ``(m, 3)``, in Å.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        pbc: Which of them are periodic.
        radius: In Å.

    Returns:
        ``(target, source, vector)`` of shapes ``(n_pairs,)`` twice and ``(n_pairs, 3)``, the vector from the target
        to the image of the source, in Å.
    """
    within = wrapped(targets, cell, pbc)
    points, owner = images_around_cell(sources, cell, pbc, radius)
    found = cKDTree(within).sparse_distance_matrix(cKDTree(points), radius, output_type="ndarray")
    target = found["i"].astype(np.int64)
    return target, owner[found["j"]], points[found["j"]] - within[target]


def wrapped(points: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool]) -> np.ndarray:
    """Wrap points into the cell at the origin, along its periodic vectors.

    Args:
        points: Shape ``(n, 3)``, in Å.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        pbc: Which of them are periodic.
    """
    return np.asarray(_wrapped_fractions(points, np.linalg.inv(cell), pbc) @ cell)


def images_around_cell(
    points: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool], margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """List the periodic images of points that lie in the cell at the origin, or within a margin of it.

    Args:
        points: Shape ``(n, 3)``, in Å.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        pbc: Which of them are periodic.
        margin: In Å.

    Returns:
        The images, shape ``(n_images, 3)``, in Å, and the index of the original point of each, shape
        ``(n_images,)``.
    """
    inverse = np.linalg.inv(cell)
    fractions = _wrapped_fractions(points, inverse, pbc)
    reach = margin * np.linalg.norm(inverse, axis=0)
    owner = np.arange(len(points))
    for axis in np.flatnonzero(pbc):
        steps = int(np.ceil(reach[axis]))
        moved = fractions[:, axis, None] + np.arange(-steps, steps + 1)
        row, image = np.nonzero((moved >= -reach[axis]) & (moved <= 1 + reach[axis]))
        owner, fractions = owner[row], fractions[row]
        fractions[:, axis] = moved[row, image]
    return fractions @ cell, owner


def _wrapped_fractions(points: np.ndarray, inverse: np.ndarray, pbc: tuple[bool, bool, bool]) -> np.ndarray:
    fractions = points @ inverse
    return np.asarray(np.where(pbc, fractions % 1.0, fractions))


def _whole_shells(target: np.ndarray, distance: np.ndarray, n_sites: int, cap: int) -> np.ndarray:
    """Return a mask of the edges, sorted by target and distance, within a limit that never splits a shell."""
    count = np.bincount(target, minlength=n_sites)
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    over = count > cap
    limit = np.full(n_sites, np.inf)
    limit[over] = distance[first[over] + cap] - SHELL_TOLERANCE
    return np.asarray(distance < limit[target])
