"""Cells of layers and crystals: vacuum, open axes, the frame used for matching, and validity checks."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray

from ase_definet.errors import StructureError
from ase_definet.structures.neighbors import pairs_within

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

VACUUM_GAP = 7.0
"""An empty slab at least this thick along an axis makes a structure two-dimensional, in Å."""

OVERLAP = 0.4
"""Two atoms closer than this are duplicates, in Å."""

LARGEST = 1e6
"""Upper limit of coordinates and cell vectors, in Å; beyond it, double precision cannot resolve displacements."""

HEAVIEST = 118
"""Largest atomic number."""

VACUUM_LENGTH = 40.0
"""Length of the axis across a two-dimensional host in the frame used for matching, in Å; more for a thick slab."""


def lacking_vectors(cell: Array) -> str:
    """Return for an error message which vectors a cell of shape ``(3, 3)`` lacks, and what to do."""
    absent = [axis for axis in range(3) if not np.any(cell[axis])]
    if not absent:
        return "those of the structure lie in one plane: check the cell"
    step = f"atoms.center(vacuum=8, axis={absent[0] if len(absent) == 1 else tuple(absent)})"
    named = ", ".join("abc"[axis] for axis in absent)
    return (
        f"the structure has none for {named} (no vector across the vacuum): add it with {step}, on the command line "
        f'ase convert -e "{step}" FILE NEW.extxyz'
    )


def check_structure(atoms: Atoms) -> tuple[Array, Array, int | None]:
    """Check that a structure is valid.

    Returns:
        The structure in its matching frame: see :func:`layer_frame`.

    Raises:
        StructureError: There are no atoms, invalid elements, no cell, values that are not finite, or duplicate atoms.
    """
    if len(atoms) == 0:
        raise StructureError("the structure has no atoms")
    check_elements(atoms.numbers)
    if not np.isfinite(atoms.positions).all():
        bad = int(np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))[0])
        raise StructureError(f"atom {bad} ({atoms.symbols[bad]}) has a position that is not a number")
    if np.abs(atoms.positions).max() > LARGEST:
        bad = int(np.abs(atoms.positions).max(axis=1).argmax())
        raise StructureError(
            f"atom {bad} ({atoms.symbols[bad]}) lies {np.abs(atoms.positions[bad]).max():.3g} Å from the origin, "
            f"at most {LARGEST:g} Å is expected: check the coordinates and their unit"
        )
    cell = atoms.cell.array
    _check_cell(cell)
    frame, positions, axis = layer_frame(cell, atoms.positions, atoms.pbc)
    i, j, vector = pairs_within(positions, frame, (True, True, axis is None), OVERLAP)
    if len(i):
        k = int(np.argmin(np.linalg.norm(vector, axis=1)))
        a, b = sorted((int(i[k]), int(j[k])))
        raise StructureError(
            f"atoms {a} ({atoms.symbols[a]}) and {b} ({atoms.symbols[b]}) overlap ({np.linalg.norm(vector[k]):.3f} Å "
            "apart): remove one of them"
        )
    return frame, positions, axis


def check_elements(numbers: Array) -> None:
    """Check that all atoms are elements.

    Args:
        numbers: Atomic numbers, shape ``(n_atoms,)``.

    Raises:
        StructureError: A number is not between 1 and 118.
    """
    wrong = np.flatnonzero((numbers < 1) | (numbers > HEAVIEST))
    if not len(wrong):
        return
    bad, number = int(wrong[0]), int(numbers[wrong[0]])
    if number == 0:
        raise StructureError(f"atom {bad} (X) is no element: remove placeholders of vacancies")
    raise StructureError(
        f"atom {bad} has the atomic number {number}, expected 1 to {HEAVIEST}: check the species of the structure"
    )


def _check_cell(cell: Array) -> None:
    """Check a cell; zero vectors are open axes.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.

    Raises:
        StructureError: It is not finite, does not repeat along two axes, or is too small or too large for atoms.
    """
    shown = [[float(f"{x:.4g}") for x in row] for row in cell]
    if not np.isfinite(cell).all():
        raise StructureError(
            f"expected a periodic cell, found a component that is not a number (vectors {shown}): check it"
        )
    given = np.abs(cell).max(axis=1) > 0
    longest = np.abs(cell).max()
    if longest > LARGEST:
        raise StructureError(
            f"a cell vector is {longest:.3g} Å long, at most {LARGEST:g} Å is expected: check the cell and its unit"
        )
    scale = np.where(given, np.abs(cell).max(axis=1), 1.0)
    rank = int(np.linalg.matrix_rank(cell / scale[:, None]))
    if rank < max(2, int(given.sum())):
        raise StructureError(
            f"expected a periodic cell, found one of rank {rank} (vectors {shown}): "
            "a defect cell must repeat; set atoms.cell"
        )
    # the shortest vectors of a lattice are those of its reduced cell
    shortest = np.linalg.norm(cell[given], axis=1).min()
    if shortest >= OVERLAP:
        reduced, _ = minkowski_reduce(np.where(given[:, None], cell, 0.0), pbc=given)
        shortest = np.linalg.norm(reduced[given], axis=1).min()
    if shortest < OVERLAP:
        raise StructureError(
            f"the cell repeats after {shortest:.3g} Å, so that every atom overlaps its own images: check "
            "the cell and its unit"
        )


def completed_cell(cell: Array, positions: Array, pbc: Array | None = None) -> Array:
    """Replace an open axis across a layer by a normal that is long enough for the layer.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å. A zero vector is open.
        positions: Shape ``(n_atoms, 3)``, in Å.
        pbc: Periodic axes, shape ``(3,)``. If exactly one is not and its vector leaves less than
            :data:`VACUUM_GAP` of vacuum, it is open too.

    Returns:
        The cell without open axes, shape ``(3, 3)``, in Å.
    """
    cell = np.array(cell, dtype=float)
    missing = ~cell.any(axis=1)
    if not missing.any() and pbc is not None and np.sum(pbc) == 2 and vacuum_axis(cell, positions) is None:  # noqa: PLR2004
        missing = ~np.asarray(pbc, dtype=bool)
    for axis in np.flatnonzero(missing):
        normal = np.cross(cell[axis - 2], cell[axis - 1])
        normal /= np.linalg.norm(normal)
        cell[axis] = normal * (np.ptp(positions @ normal) + VACUUM_LENGTH)
    return cell


def widest_gap(cell: Array, scaled: Array, axis: int) -> tuple[float, float]:
    """Return the width, in Å, and the fractional centre of the largest empty layer across an axis.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        scaled: Fractional positions, shape ``(n_atoms, 3)``.
        axis: Index of the cell vector along which layers are stacked.
    """
    width, centre = _emptiest(scaled[:, axis])
    return float(width / np.linalg.norm(np.linalg.inv(cell)[:, axis])), centre


def _emptiest(fractions: Array) -> tuple[float, float]:
    """Return width and centre of the largest gap between fractions, modulo one."""
    levels = np.sort(fractions % 1.0)
    widths = np.empty_like(levels)
    np.subtract(levels[1:], levels[:-1], out=widths[:-1])
    widths[-1] = levels[0] + 1.0 - levels[-1]
    first = int(widths.argmax())
    return float(widths[first]), float(levels[first] + widths[first] / 2)


def vacuum_gaps(cell: Array, positions: Array) -> list[float]:
    """Return the width of the largest empty layer across each axis, in Å.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        positions: Shape ``(n_atoms, 3)``, in Å.
    """
    inverse = np.linalg.inv(cell)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    return [
        _emptiest(column)[0] * float(height) for column, height in zip((positions @ inverse).T, heights, strict=True)
    ]


def vacuum_axis(cell: Array, positions: Array) -> int | None:
    """Return the axis along which a layer is surrounded by vacuum, or None.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        positions: Shape ``(n_atoms, 3)``, in Å.

    Raises:
        StructureError: There is vacuum along more than one axis (a wire or a molecule).
    """
    gaps = vacuum_gaps(cell, positions)
    axes = [axis for axis in range(3) if gaps[axis] >= VACUUM_GAP]
    if len(axes) <= 1:
        return axes[0] if axes else None
    # small cells of few atoms have wide gaps between periodic images too: the vacuum is the widest by far
    widest, second = sorted(axes, key=lambda axis: -gaps[axis])[:2]
    if gaps[widest] - gaps[second] < VACUUM_GAP / 2:
        raise StructureError(
            f"vacuum along axes {widest} and {second} ({gaps[widest]:.1f} and {gaps[second]:.1f} Å): "
            "expected a crystal or one layer, found a wire or a molecule"
        )
    return widest


def layer_frame(cell: Array, positions: Array, pbc: Array | None = None) -> tuple[Array, Array, int | None]:
    """Transform a structure to the frame used for matching: vacuum axis last and normal to the unwrapped layer.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å; a zero vector counts as vacuum.
        positions: Shape ``(n_atoms, 3)``, in Å.
        pbc: Periodic axes, shape ``(3,)``; a single non-periodic one counts as vacuum.

    Returns:
        ``(frame, positions, axis)``: rows of the frame (for a layer: the two periodic vectors and the unit normal
        times :data:`VACUUM_LENGTH` or, for a thick slab, more), the positions with images across the vacuum undone,
        and the vacuum axis.
    """
    cell = completed_cell(cell, positions, pbc)
    axis = vacuum_axis(cell, positions)
    if axis is None:
        return cell, positions, None
    fractions = positions @ np.linalg.inv(cell)
    _, emptiest = widest_gap(cell, fractions, axis)
    images = np.floor(fractions[:, axis] - emptiest)
    images -= np.round(np.median(images))
    first, second = (cell[k] for k in range(3) if k != axis)
    normal = np.cross(first, second)
    normal *= np.sign(normal @ cell[axis]) / np.linalg.norm(normal)
    positions = positions - images[:, None] * cell[axis]
    height = max(VACUUM_LENGTH, float(np.ptp(positions @ normal)) + VACUUM_LENGTH / 2)
    return np.array([first, second, normal * height]), positions, axis


def facing(cell: Array, positions: Array, pbc: Array | None = None) -> tuple[int, Array]:
    """Return the viewing direction of a structure: a layer is viewed from above, whichever axis is across it.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å; a zero vector counts as vacuum.
        positions: Shape ``(n_atoms, 3)``, in Å.
        pbc: Periodic axes, shape ``(3,)``; a single non-periodic one counts as vacuum.

    Returns:
        ``(depth, sides)``: the Cartesian axis to look along, z if there is no layer, and the two cell vectors
        across it, shape ``(2, 3)``, in Å; zero if the cell has none.
    """
    cell = np.asarray(cell, dtype=float)
    given = cell.any(axis=1)
    axis: int | None = None
    if given.sum() >= 2 and np.linalg.matrix_rank(cell) == given.sum():  # noqa: PLR2004 - neither a wire nor a molecule
        with suppress(StructureError):
            axis = vacuum_axis(completed_cell(cell, positions, pbc), positions)
    sides = np.delete(cell, 2 if axis is None else axis, axis=0)
    if axis is None:
        return 2, sides
    return int(np.abs(np.cross(*sides)).argmax()), sides
