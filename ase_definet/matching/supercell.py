"""Lattice mappings: the supercells of a host that fit a defect cell, and their orientation.

The host's periodic vectors are combined to vectors as long as those of the defect cell and at the same angles;
rotations and swapped axes are found in the same search. Rows are cell vectors: the supercell is
``matrix @ host.cell``, and ``host row vector @ deformation`` lies in the caller's frame.
Of mappings related by a rotation of the host, one is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from ase.build.supercells import lattice_points_in_supercell
from numpy.typing import NDArray

from ase_definet.errors import HostError
from ase_definet.matching.diffraction import supercell_candidates
from ase_definet.matching.host import NOISE, Host
from ase_definet.matching.symmetry import space_group_operations

Array: TypeAlias = NDArray[Any]
Atoms_: TypeAlias = tuple[Array, Array]

MAX_STRAIN = 0.06
"""Largest principal strain of a host onto a cell, unless the caller allows more."""

FEW_SITES = 0.9
"""Smallest ratio of sites to atoms; below it, more atoms are on no site than a defect explains."""

FEWEST_SITES = 0.65
"""Smallest such ratio that is considered, for the error message, if the host is hardly strained."""

HARDLY_STRAINED = 0.02
"""Largest strain for which this applies."""

_STAGES = (5e-4, 0.005, 0.02, 0.035, 0.06)  # the first is the host as it is, with rounding
_SLACK = 1e-6  # rounding of a cell written with a few decimals, relative
MISFITS = (0.12, 0.25)
"""Strains tried to report the misfit of a host that does not fit."""

_LARGE_BASIS = 12  # atoms of a host that may be a supercell
_ENUMERATED = 100  # primitive cells up to which all supercells are tried; beyond, the atoms choose
_STILL_ENUMERATED = 400  # the same where the atoms show no reflection of the host
_KEEP = 200  # mappings kept of one stage; large cells have thousands within a few per cent
_CHUNK = 1_000_000  # candidate vector pairs held at once


@dataclass(frozen=True, eq=False)
class Mapping:
    """One mapping of the host onto the defect cell.

    Attributes:
        matrix: Integer supercell matrix, shape ``(3, 3)``.
        deformation: Maps host row vectors to the caller's frame, shape ``(3, 3)``.
        strain: Principal strains (stretches minus one), shape ``(3,)``; zero across a layer.
    """

    matrix: Array
    deformation: Array
    strain: Array

    @property
    def max_strain(self) -> float:
        """The principal strain of largest magnitude, with its sign."""
        return float(self.strain[int(np.argmax(np.abs(self.strain)))])

    @property
    def n_cells(self) -> int:
        """Number of primitive cells in the supercell."""
        return round(abs(float(np.linalg.det(self.matrix))))


def find_mappings(
    host: Host, frame: Array, n_atoms: int, max_strain: float = MAX_STRAIN, atoms: Atoms_ | None = None
) -> list[Mapping]:
    """Find the symmetry-distinct mappings of a host onto a cell, likeliest first.

    Mappings with a small and isotropic strain and with as many sites as atoms are likeliest. At most a few hundred
    are kept. For large cells, where this is not selective, they are selected by the atoms: see
    :mod:`ase_definet.matching.diffraction`.

    Args:
        host: The host.
        frame: Cell of the defect structure as rows, shape ``(3, 3)``, in Å; the vacuum last for a layer.
        n_atoms: Atoms in it: a supercell has at least :data:`FEW_SITES` of that (see :data:`FEWEST_SITES`) and at
            most twice as many sites.
        max_strain: Largest principal strain to consider.
        atoms: Positions in the frame, in Å, and atomic numbers, if known.

    Raises:
        HostError: No supercell fits; the message names the nearest misfit.
    """
    found = search_mappings(host, frame, n_atoms, max_strain, atoms)
    if found:
        return found
    for limit in MISFITS:
        near = search_mappings(host, frame, n_atoms, limit, atoms) if limit > max_strain else []
        if near:
            best = near[0]
            raise HostError(
                f"host {host.name} is not commensurate with the cell: the likeliest supercell "
                f"({describe(best.matrix)}, {best.n_cells * len(host.numbers)} sites for {n_atoms} atoms) needs a "
                f"strain of {best.max_strain:+.1%}, at most {max_strain:.1%} is allowed; check the host and the cell"
                f"{remark_on(host)}"
            )
    raise HostError(
        f"host {host.name} is not commensurate with the cell: no supercell within {MISFITS[-1]:.0%} strain has "
        f"about as many sites as the structure has atoms ({n_atoms}); check the host and the cell{remark_on(host)}"
    )


def remark_on(host: Host) -> str:
    """Return a hint for messages about hosts with a large primitive cell, else an empty text.

    Args:
        host: The host.
    """
    if len(host.numbers) < _LARGE_BASIS:
        return ""
    return (
        f" (the smallest cell that {host.name} repeats, within {NOISE:g} Å, has {len(host.numbers)} atoms: if it was "
        "given as a relaxed supercell, give its primitive cell)"
    )


def mapping_stages(
    host: Host, frame: Array, n_atoms: int, max_strain: float = MAX_STRAIN, atoms: Atoms_ | None = None
) -> Iterator[list[Mapping]]:
    """Yield the mappings of :func:`find_mappings` in stages of increasing strain, so that a search may stop early.

    Args:
        host: The host.
        frame: Cell of the defect structure as rows, shape ``(3, 3)``, in Å.
        n_atoms: Atoms in it.
        max_strain: Largest principal strain to consider, that of the last stage.
        atoms: As in :func:`find_mappings`.

    Raises:
        HostError: Nothing fits even at the largest strain.
    """
    if atoms is not None and n_atoms > _ENUMERATED * len(host.numbers):
        yield find_mappings(host, frame, n_atoms, max_strain, atoms)
        return
    seen: set[bytes] = set()
    for limit in [*(stage for stage in _STAGES if stage < max_strain), max_strain]:
        last = limit == max_strain and not seen
        found = (find_mappings if last else search_mappings)(host, frame, n_atoms, limit)
        yield [mapping for mapping in found if mapping.matrix.tobytes() not in seen]
        seen.update(mapping.matrix.tobytes() for mapping in found)


def cells_of(matrix: Array) -> Array:
    """Return the primitive cells of a supercell in the order of its sites, integers of shape ``(n_cells, 3)``."""
    return np.asarray(np.round(lattice_points_in_supercell(matrix) @ matrix), dtype=int)


def waves_of(matrix: Array) -> Array:
    """Return the wave vectors that fit into a supercell, in reciprocal primitive vectors, shape ``(n_cells, 3)``."""
    return np.asarray(lattice_points_in_supercell(matrix.T))


def supercell_sites(host: Host, mapping: Mapping) -> tuple[Array, Array]:
    """Return host numbers ``(n_sites,)`` and positions ``(n_sites, 3)`` of the supercell in the caller's frame, in Å.

    Sites are ordered cell by cell, and within a cell in the order of the host's basis.
    """
    cells = cells_of(mapping.matrix) @ host.cell
    positions = (cells[:, None] + host.positions[None]).reshape(-1, 3) @ mapping.deformation
    return np.tile(host.numbers, len(cells)), positions


def describe(matrix: Array) -> str:
    """Name a supercell matrix: ``8x8x1`` if it repeats a primitive cell evenly, in any orientation, else the matrix.

    >>> describe(np.diag([8, 8, 1]))
    '8x8x1'
    >>> describe(np.array([[5, 5, 0], [-5, 0, 0], [0, 0, 1]]))
    '5x5x1'
    """
    plane = matrix[:2, :2]
    evenly = int(np.gcd.reduce(plane.ravel()))
    if not matrix[2, :2].any() and not matrix[:2, 2].any() and round(abs(np.linalg.det(plane))) == evenly**2:
        return f"{evenly}x{evenly}x{abs(int(matrix[2, 2]))}"
    evenly = int(np.gcd.reduce(matrix.ravel()))
    if round(abs(np.linalg.det(matrix))) == evenly**3:
        return f"{evenly}x{evenly}x{evenly}"
    size = np.abs(matrix)
    lengths = size.max(axis=1)
    if np.count_nonzero(size) == 3:  # noqa: PLR2004
        return "x".join(str(v) for v in lengths)
    return str(np.asarray(matrix).tolist()).replace(" ", "")


def search_mappings(
    host: Host, frame: Array, n_atoms: int, limit: float, atoms: Atoms_ | None = None
) -> list[Mapping]:
    """Return the result of :func:`find_mappings`, empty if nothing fits.

    Args:
        host: The host.
        frame: Cell of the defect structure as rows, shape ``(3, 3)``, in Å; the vacuum last for a layer.
        n_atoms: Atoms in it.
        limit: Largest principal strain.
        atoms: Positions in the frame, in Å, and atomic numbers, if known.
    """
    limit += _SLACK
    if atoms is not None and n_atoms > _ENUMERATED * len(host.numbers):
        found = diffracted_mappings(host, frame, atoms, limit)
        if found or n_atoms > _STILL_ENUMERATED * len(host.numbers):
            return found
    # remembered for the next structure in the same cell
    return list(_searched(host, np.ascontiguousarray(frame, dtype=float).tobytes(), n_atoms, limit))


def diffracted_mappings(host: Host, frame: Array, atoms: Atoms_, limit: float) -> list[Mapping]:
    """Return the mappings consistent with the reflections of the structure, likeliest first.

    Args:
        host: The host.
        frame: Cell of the defect structure as rows, shape ``(3, 3)``, in Å; the vacuum last for a layer.
        atoms: Positions in the frame, in Å, and atomic numbers.
        limit: Largest principal strain.
    """
    n = 2 if host.layered else 3
    matrices = supercell_candidates(host, frame, *atoms, limit)
    fits, scores = _likelihood(matrices, host.cell[:n], frame[:n], len(atoms[0]) / len(host.numbers), limit)
    return _distinct(host, frame, matrices[fits], scores)


@lru_cache(maxsize=256)
def _searched(host: Host, raw: bytes, n_atoms: int, limit: float) -> tuple[Mapping, ...]:
    """Combine host vectors to triples (pairs for a layer) with the right lengths and angles; keep the likeliest."""
    frame = np.frombuffer(raw).reshape(3, 3)
    n = 2 if host.layered else 3
    basis, target = host.cell[:n], frame[:n]
    turns = _rotations(host)
    candidates = [_vectors_of_length(basis, float(np.linalg.norm(row)), limit) for row in target]
    candidates[0] = _one_of_each_orbit(candidates[0], turns)
    if any(len(c) == 0 for c in candidates):
        return ()
    matrices, scores = np.zeros((0, n, n), dtype=int), np.zeros(0)
    for block in _grow(candidates[0][:, None, :], candidates[1:], basis, target, limit):
        fits, score = _likelihood(block, basis, target, n_atoms / len(host.numbers), limit)
        matrices, scores = np.concatenate([matrices, block[fits]]), np.concatenate([scores, score])
        if len(scores) > 100 * _KEEP:
            best = np.argsort(scores, kind="stable")[: 10 * _KEEP]
            matrices, scores = matrices[best], scores[best]
    return tuple(_distinct(host, frame, matrices, scores))


def _distinct(host: Host, frame: Array, matrices: Array, scores: Array) -> list[Mapping]:
    """Return the likeliest mappings, one of each set related by rotations of the host."""
    turns = _rotations(host)
    seen: set[tuple[int, ...]] = set()
    found: list[Mapping] = []
    for k in np.argsort(scores, kind="stable"):
        matrix = _completed(host, frame, matrices[k])
        orbit = matrix @ turns.transpose(0, 2, 1)
        if tuple(matrix.ravel()) in seen:
            continue
        seen.update(tuple(m.ravel()) for m in orbit)
        # of the equivalent ones, that with the largest positive diagonal: 8x8x1 rather than a rotated form
        matrix = max(orbit, key=lambda m: (int(np.trace(m)), m.tolist()))
        mapping = _mapping(host, frame, matrix)
        if mapping is not None:
            found.append(mapping)
        if len(found) == _KEEP:
            break
    return found


def _rotations(host: Host) -> Array:
    """Return the proper rotations of the host in its own basis, columns of fractions, shape ``(n, 3, 3)``."""
    turns, _ = space_group_operations(host.cell, host.positions, host.numbers, layered=host.layered)
    turns = np.unique(turns, axis=0)
    return np.asarray(turns[np.linalg.det(turns) > 0])


def _one_of_each_orbit(vectors: Array, turns: Array) -> Array:
    """Return one of each set of integer row vectors related by rotations of the host."""
    if len(vectors) == 0:
        return vectors
    n = vectors.shape[1]
    base = 4 * int(np.abs(vectors).max()) + 8
    weights = base ** np.arange(n)[::-1]
    orbit = np.einsum("vx,gyx->vgy", vectors, turns[:, :n, :n]) @ weights
    return np.asarray(vectors[vectors @ weights == orbit.max(axis=1)])


def _vectors_of_length(basis: Array, length: float, limit: float) -> Array:
    """Return integer combinations of rows whose length is within the strain limit of the target."""
    shortest, reach = length / (1 + limit), length / (1 - limit)
    bound = np.ceil(reach * np.linalg.norm(np.linalg.pinv(basis), axis=0)).astype(int)
    axes = (np.arange(-b, b + 1) for b in bound)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(basis))
    size = np.linalg.norm(grid @ basis, axis=1)
    return np.asarray(grid[(size <= reach) & (size >= shortest)])


def _grow(partial: Array, candidates: list[Array], basis: Array, target: Array, limit: float) -> Iterator[Array]:
    """Extend matrices, shape ``(n, k, x)``, by rows with the target's angles, in blocks to limit the memory."""
    if not candidates:
        yield partial
        return
    rows, k = candidates[0], partial.shape[1]
    lengths = np.linalg.norm(target, axis=1)
    wanted, slack = target[:k] @ target[k], 2 * limit * lengths[:k] * lengths[k]
    step = max(1, _CHUNK // len(rows))
    for start in range(0, len(partial), step):
        part = partial[start : start + step]
        fits = np.ones((len(part), len(rows)), dtype=bool)
        for row in range(k):
            fits &= np.abs(part[:, row] @ basis @ (rows @ basis).T - wanted[row]) <= slack[row]
        a, c = np.nonzero(fits)
        yield from _grow(np.concatenate([part[a], rows[c][:, None]], axis=1), candidates[1:], basis, target, limit)


def _likelihood(matrices: Array, basis: Array, target: Array, n_cells: float, limit: float) -> tuple[Array, Array]:
    """Return which matrices, shape ``(n, k, k)``, are within the limits, and their penalties.

    The penalty is four times the difference of largest and smallest principal stretch, because a different
    lattice constant preserves the shape of a cell, plus the relative difference of sites and atoms, plus half the
    largest strain.
    """
    cells = np.abs(np.linalg.det(matrices))
    index = np.flatnonzero((np.round(cells) >= FEWEST_SITES * n_cells) & (cells <= 2 * n_cells + _SLACK))
    rows = matrices[index] @ basis
    inverse = np.linalg.inv(np.linalg.cholesky(target @ target.T))
    stretch = 1 / np.sqrt(np.linalg.eigvalsh(inverse @ (rows @ rows.transpose(0, 2, 1)) @ inverse.T))
    strain = np.abs(stretch - 1).max(axis=1, initial=0)
    score = 4 * np.ptp(stretch, axis=1) + np.abs(cells[index] / n_cells - 1) + strain / 2
    enough = np.round(cells[index]) >= FEW_SITES * n_cells
    fits = strain <= np.where(enough, limit, min(limit, HARDLY_STRAINED))
    return index[fits], np.round(score[fits], 6)


def _completed(host: Host, frame: Array, rows: Array) -> Array:
    """Return the 3x3 supercell matrix; a layer is flipped if its in-plane vectors require it."""
    matrix = np.eye(3, dtype=int)
    matrix[: len(rows), : len(rows)] = rows
    if host.layered and np.linalg.det(rows) * np.linalg.det(host.cell) * np.linalg.det(frame) < 0:
        matrix[2, 2] = -1
    return matrix


def _mapping(host: Host, frame: Array, matrix: Array) -> Mapping | None:
    """Compute deformation and strain; None if the host would have to be mirrored."""
    target = frame.copy()
    if host.layered:
        target[2] *= np.linalg.norm(host.cell[2]) / np.linalg.norm(frame[2])
    deformation = np.linalg.solve(matrix @ host.cell, target)
    if np.linalg.det(deformation) <= 0:
        return None
    return Mapping(matrix, deformation, np.linalg.svd(deformation, compute_uv=False) - 1)
