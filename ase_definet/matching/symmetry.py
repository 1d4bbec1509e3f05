"""Symmetry of crystals: the only module that calls spglib."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

SYMMETRY_PRECISION = 0.01
"""Positions closer than this are equivalent, in Å."""


def space_group_operations(
    cell: Array, positions: Array, numbers: Array, *, layered: bool = False, precision: float = SYMMETRY_PRECISION
) -> tuple[Array, Array]:
    """Find the symmetry operations of a crystal; only the identity if spglib finds none.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        positions: Shape ``(n_atoms, 3)``, in Å.
        numbers: Atomic numbers, shape ``(n_atoms,)``.
        layered: Whether the last axis is a vacuum: operations that mix it with the others are omitted.
        precision: Distance within which positions are equivalent, in Å.

    Returns:
        Rotations, integers of shape ``(n, 3, 3)``, and translations, shape ``(n, 3)``, both for columns of fractional
        coordinates.
    """
    import spglib  # noqa: PLC0415 - slow to import

    found = _quietly(spglib.get_symmetry, _spglib_cell(cell, positions, numbers), symprec=precision)
    if found is None:
        return np.eye(3, dtype=int)[None], np.zeros((1, 3))
    rotations, translations = np.asarray(found["rotations"], dtype=int), np.asarray(found["translations"])
    if layered:
        within = ~(rotations[:, 2, :2].any(axis=1) | rotations[:, :2, 2].any(axis=1))
        rotations, translations = rotations[within], translations[within]
    return rotations, translations


def point_group(cell: Array, positions: Array, numbers: Array, precision: float = 0.1) -> str:
    """Return the point group of a structure in Hermann-Mauguin notation, ``1`` if spglib finds none.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        positions: Shape ``(n_atoms, 3)``, in Å.
        numbers: Atomic numbers, shape ``(n_atoms,)``.
        precision: Distance within which positions are equivalent, in Å.
    """
    import spglib  # noqa: PLC0415 - slow to import

    found = _quietly(spglib.get_symmetry_dataset, _spglib_cell(cell, positions, numbers), symprec=precision)
    return "1" if found is None else str(found.pointgroup)


def primitive_cell(
    cell: Array, positions: Array, numbers: Array, precision: float = SYMMETRY_PRECISION
) -> tuple[Array, Array, Array] | None:
    """Find the primitive cell of a crystal, in its given orientation and position.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        positions: Shape ``(n_atoms, 3)``, in Å.
        numbers: Atomic numbers, shape ``(n_atoms,)``.
        precision: Distance within which positions are equivalent, in Å.

    Returns:
        Cell vectors in Å, fractional positions and atomic numbers; None if spglib finds nothing.
    """
    import spglib  # noqa: PLC0415 - slow to import

    found = _quietly(
        spglib.standardize_cell,
        _spglib_cell(cell, positions, numbers),
        to_primitive=True,
        no_idealize=True,
        symprec=precision,
    )
    if found is None:
        return None
    vectors, fractions, kinds = (np.asarray(part) for part in found)
    return vectors, fractions, kinds


def _spglib_cell(cell: Array, positions: Array, numbers: Array) -> tuple[Array, Array, Array]:
    return cell, np.linalg.solve(cell.T, positions.T).T, numbers


def _quietly(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call spglib, and return None where it finds nothing.

    It says so by None or by raising, as a switch is set that other packages turn (pymatgen among them), and it warns
    of that at every call.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return function(*args, **options)
        except Exception as error:
            if any(kind.__name__ == "SpglibError" for kind in type(error).__mro__):  # a class of newer releases only
                return None
            raise
