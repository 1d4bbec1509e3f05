"""Fixed directions of atoms: ASE's constraints and VASP's selective dynamics.

Selective dynamics specifies for each atom along which cell vectors it may move. It can therefore restrict an atom to
a plane or a line only if cell vectors span it, as a and b span the plane normal to z in a slab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.errors import StructureError

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

ALIGNED = 1e-3
"""Tolerance for a cell vector to lie in a plane or on a line, in rad, because files contain rounded vectors."""


def held_directions(atoms: Atoms) -> tuple[Array, list[str]]:
    """Return the cell vectors along which atoms are fixed, and the constraints that these cannot express.

    Several constraints of one atom act together: the directions that they leave free must be spanned by cell vectors.
    If they are not, the constraints that can be expressed individually are kept.

    Args:
        atoms: Any structure with three independent cell vectors.

    Returns:
        ``(held, lost)``: shape ``(n_atoms, 3)``, True where an atom must not move along a cell vector; and a sentence
        for each constraint, or kind of constraint, that is dropped.

    Raises:
        StructureError: A constraint names an atom that is not there.
    """
    return _held_along(atoms, np.asarray(atoms.cell), "vectors of this cell", "POSCAR")


def held_axes(atoms: Atoms) -> tuple[Array, list[str]]:
    """Return the Cartesian axes along which atoms are fixed, and the constraints that axes cannot express.

    This is the form of most codes except VASP, which uses cell vectors; otherwise as :func:`held_directions`.

    Returns:
        ``(held, lost)``: shape ``(n_atoms, 3)``, True where an atom must not move along x, y or z; and a sentence for
        each constraint, or kind of constraint, that is dropped.

    Raises:
        StructureError: A constraint names an atom that is not there.
    """
    return _held_along(atoms, np.eye(3), "Cartesian axes", "the input file")


def _held_along(atoms: Atoms, cell: Array, vectors: str, holder: str) -> tuple[Array, list[str]]:
    """Return the vectors, of three, along which atoms are fixed, and the constraints that they cannot express."""
    held = np.zeros((len(atoms), 3), dtype=bool)
    known, lost = _normals(atoms, holder)
    dropped = np.zeros(len(known), dtype=int)
    for members, which in _by_atom(known, len(atoms)):
        spans = _spanned(np.vstack([known[k][2] for k in which]), cell)
        if spans is None:
            for k in which:
                alone = _spanned(known[k][2], cell)
                if alone is None:
                    dropped[k] += len(members)
                else:
                    held[members] |= alone
        else:
            held[members] = spans
    lost += [
        f"A {known[k][0]} constraint was dropped for {n} {'atom' if n == 1 else 'atoms'}: it follows no {vectors}."
        for k, n in enumerate(dropped.tolist())
        if n
    ]
    return held, lost


def free_forces(atoms: Atoms, forces: Array) -> Array:
    """Return the components of the forces along directions in which the atoms may move.

    Args:
        atoms: The structure with its constraints.
        forces: Shape ``(n_atoms, 3)``, in eV/Å; not changed.

    Returns:
        Shape ``(n_atoms, 3)``, in eV/Å. Constraints that do not fix directions of single atoms act as in ASE.

    Raises:
        StructureError: A constraint names an atom that is not there.
    """
    out = np.array(forces, dtype=float)
    known, _ = _normals(atoms)
    for members, which in _by_atom(known, len(atoms)):
        basis = _orthonormal(np.vstack([known[k][2] for k in which]))
        out[members] -= out[members] @ basis.T @ basis
    for constraint in atoms.constraints:
        if _rows(constraint, _full(atoms)) is None:
            constraint.adjust_forces(atoms, out)
    return out


def sound(atoms: Atoms) -> list[Any]:
    """Return constraints that correctly fix the intended directions in ASE's optimizers.

    In oblique cells, ASE's FixScaled produces forces along fixed directions. ASE also applies the constraints of an
    atom one after the other, so that the last may undo the others unless they are orthogonal. Here each atom has a
    single constraint for its directions: FixAtoms, FixedLine or FixedPlane.

    Args:
        atoms: Any structure; not changed.

    Returns:
        For :meth:`ase.Atoms.set_constraint`, in the order of the original constraints; those that do not fix
        directions of single atoms are unchanged.

    Raises:
        StructureError: A constraint names an atom that is not there.
    """
    if not atoms.constraints:
        return []
    from ase.constraints import FixAtoms, FixedLine, FixedPlane  # noqa: PLC0415 - slow to import

    known, _ = _normals(atoms)
    out: list[Any] = []
    for members, which in _by_atom(known, len(atoms)):
        basis = _orthonormal(np.vstack([known[k][2] for k in which]))
        if len(basis) == 3:  # noqa: PLR2004 - no direction is left
            out.append(FixAtoms(members))
        elif len(basis) == 2:  # noqa: PLR2004
            out.append(FixedLine(members, np.cross(*basis)))
        elif len(basis) == 1:
            out.append(FixedPlane(members, basis[0]))
    single = [_rows(constraint, _full(atoms)) is not None for constraint in atoms.constraints]
    last = len(single) - single[::-1].index(True) if True in single else 0  # the order determines precedence
    others = [None if one else constraint for one, constraint in zip(single, atoms.constraints, strict=True)]
    return [c for c in (*others[:last], *out, *others[last:]) if c is not None]


def hold(atoms: Atoms, held: Array) -> None:
    """Constrain atoms along cell vectors, replacing all present constraints.

    Args:
        atoms: Changed in place.
        held: Shape ``(n_atoms, 3)``, True where an atom must not move along a cell vector.
    """
    from ase.constraints import FixAtoms, FixScaled  # noqa: PLC0415 - slow to import

    constraints = []
    for mask in np.unique(held[held.any(axis=1)], axis=0):
        members = np.flatnonzero((held == mask).all(axis=1))
        constraints.append(FixAtoms(members) if mask.all() else FixScaled(members, mask))
    atoms.set_constraint(constraints)


def hold_axes(atoms: Atoms, held: Array) -> None:
    """Constrain atoms along Cartesian axes, replacing all present constraints.

    Args:
        atoms: Changed in place.
        held: Shape ``(n_atoms, 3)``, True where an atom must not move along x, y or z.
    """
    from ase.constraints import FixAtoms, FixCartesian  # noqa: PLC0415 - slow to import

    constraints = []
    for mask in np.unique(held[held.any(axis=1)], axis=0):
        members = np.flatnonzero((held == mask).all(axis=1))
        constraints.append(FixAtoms(members) if mask.all() else FixCartesian(members, mask))
    atoms.set_constraint(constraints)


def _normals(atoms: Atoms, holder: str = "POSCAR") -> tuple[list[tuple[str, Array, Array]], list[str]]:
    """Return type, atoms and fixed directions of each constraint that fixes directions, and name the others."""
    cell = _full(atoms)
    known, others = [], []
    for constraint in atoms.constraints:
        name = type(constraint).__name__
        rows = _rows(constraint, cell)
        if rows is None:
            others.append(f"A {name} constraint was dropped: {holder} cannot hold it.")
            continue
        index = np.atleast_1d(np.asarray(constraint.index))
        try:
            members = np.arange(len(atoms))[index] if index.size else np.zeros(0, dtype=int)
        except IndexError as error:
            raise StructureError(
                f"a {name} constraint names an atom that is not among these {len(atoms)}: set the constraints again"
            ) from error
        known.append((name, members, rows))
    return known, list(dict.fromkeys(others))


def _full(atoms: Atoms) -> Array:
    """Return the cell, with unit vectors normal to the others where it has none."""
    return np.asarray(atoms.cell.complete())


def _rows(constraint: Any, cell: Array) -> Array | None:
    """Return the directions that a constraint fixes, shape ``(n, 3)``; None if there are none."""
    from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled  # noqa: PLC0415 - slow

    if isinstance(constraint, FixAtoms):
        return np.eye(3)
    if isinstance(constraint, FixScaled):  # free along the other cell vectors: fixed normal to them
        return np.array(np.linalg.inv(cell).T[np.broadcast_to(constraint.mask, 3)])
    if isinstance(constraint, FixCartesian):
        return np.array(np.eye(3)[np.broadcast_to(constraint.mask, 3)])
    if isinstance(constraint, FixedPlane):
        return np.array(constraint.dir, dtype=float)[None]
    if isinstance(constraint, FixedLine):
        return np.array(np.linalg.svd(np.asarray(constraint.dir, dtype=float)[None])[2][1:])
    return None


def _by_atom(known: list[tuple[str, Array, Array]], n_atoms: int) -> list[tuple[Array, list[int]]]:
    """Group atoms with the same constraints."""
    acts = np.zeros((n_atoms, len(known)), dtype=bool)
    for k, (_, members, _) in enumerate(known):
        acts[members, k] = True
    if not acts.any():
        return []
    patterns, which = np.unique(acts, axis=0, return_inverse=True)
    which = which.reshape(-1)  # NumPy 2.0.0 returned a column
    return [
        (np.flatnonzero(which == p), np.flatnonzero(pattern).tolist())
        for p, pattern in enumerate(patterns)
        if pattern.any()
    ]


def _orthonormal(rows: Array) -> Array:
    """Return an orthonormal basis of the span of rows, shape ``(rank, 3)``."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    _, sizes, basis = np.linalg.svd(rows / np.where(length > 0, length, 1.0))
    return np.array(basis[: int(np.count_nonzero(sizes > ALIGNED))])


def _spanned(rows: Array, cell: Array) -> Array | None:
    """Return the cell vectors to fix for given fixed directions, None if no choice of them is equivalent."""
    basis = _orthonormal(rows)
    length = np.linalg.norm(cell, axis=1)
    free = np.linalg.norm(cell @ basis.T, axis=1) < ALIGNED * length
    return ~free if np.count_nonzero(free) == 3 - len(basis) else None
