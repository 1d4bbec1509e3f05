"""Lattice mappings: which supercells of a host fit a defect cell, and how they lie in it.

The host's periodic vectors are combined to vectors as long as those of the defect cell and at the same angles;
rotations and swapped axes come out of the same search. Rows are cell vectors: the supercell is
``matrix @ host.cell``, and ``host row vector @ deformation`` lies in the caller's frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from ase.build.supercells import lattice_points_in_supercell
from numpy.typing import NDArray

from ase_definet.errors import HostError
from ase_definet.host import Host

Array: TypeAlias = NDArray[Any]

MAX_STRAIN = 0.06
"""Largest principal strain of a host onto a cell, unless the caller allows more."""

_PASSES = (0.005, 0.02, 0.06)
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Mapping:
    """One way to lay the host into the defect cell.

    Attributes:
        matrix: Integer supercell matrix, shape ``(3, 3)``.
        deformation: Takes host row vectors to the caller's frame, shape ``(3, 3)``.
        strain: Principal strains (stretches minus one), shape ``(3,)``; zero across a layer.
    """

    matrix: Array
    deformation: Array
    strain: Array

    @property
    def max_strain(self) -> float:
        """The principal strain of largest size, with its sign."""
        return float(self.strain[int(np.argmax(np.abs(self.strain)))])

    @property
    def n_cells(self) -> int:
        """Number of primitive cells in the supercell."""
        return round(abs(float(np.linalg.det(self.matrix))))


def find_mappings(host: Host, frame: Array, n_atoms: int, max_strain: float = MAX_STRAIN) -> list[Mapping]:
    """Find every way to lay a host into a cell, least strained first.

    Args:
        host: The host.
        frame: Cell of the defect structure as rows, shape ``(3, 3)``, in Å; the vacuum last for a layer.
        n_atoms: Atoms in it: a supercell has at least 0.95 and at most twice as many sites.
        max_strain: Largest principal strain to consider.

    Raises:
        HostError: No supercell fits; the message names the nearest misfit.
    """
    for limit in sorted({min(p, max_strain) for p in _PASSES} | {max_strain}):
        found = _search(host, frame, n_atoms, limit)
        if found:
            return found
    near = _search(host, frame, n_atoms, 0.25)
    size = f"{n_atoms} atoms"
    if near:
        best = near[0]
        raise HostError(
            f"host {host.name} is not commensurate with the cell: the nearest supercell "
            f"({describe(best.matrix)}, {best.n_cells * len(host.numbers)} sites for {size}) needs a strain of "
            f"{best.max_strain:+.1%}, at most {max_strain:.1%} is allowed; check the host and the cell"
        )
    raise HostError(
        f"host {host.name} is not commensurate with the cell: no supercell within 25 % strain has about as many sites "
        f"as the structure has atoms ({size}); check the host and the cell"
    )


def supercell_sites(host: Host, mapping: Mapping) -> tuple[Array, Array]:
    """Return host numbers ``(n_sites,)`` and positions ``(n_sites, 3)`` of the supercell in the caller's frame, in Å.

    Sites come cell by cell, within a cell in the order of the host's basis.
    """
    points = lattice_points_in_supercell(mapping.matrix)
    cells = np.round(points @ mapping.matrix) @ host.cell
    positions = (cells[:, None] + host.positions[None]).reshape(-1, 3) @ mapping.deformation
    return np.tile(host.numbers, len(cells)), positions


def describe(matrix: Array) -> str:
    """Name a supercell matrix: ``8x8x1`` where it is diagonal up to order and sign, else the matrix.

    >>> describe(np.diag([8, 8, 1]))
    '8x8x1'
    """
    size = np.abs(matrix)
    lengths = size.max(axis=1)
    if np.count_nonzero(size) == 3:  # noqa: PLR2004
        return "x".join(str(v) for v in lengths)
    return str(np.asarray(matrix).tolist()).replace(" ", "")


def _search(host: Host, frame: Array, n_atoms: int, limit: float) -> list[Mapping]:
    """Combine host vectors to triples (pairs, for a layer) of the right lengths and angles."""
    n = 2 if host.layered else 3
    basis, target = host.cell[:n], frame[:n]
    metric = target @ target.T
    lengths = np.sqrt(np.diag(metric))
    candidates = [_vectors_of_length(basis, length, limit) for length in lengths]
    if any(len(c) == 0 for c in candidates):
        return []
    found: dict[tuple[int, ...], Mapping] = {}
    for combination in _fitting(candidates, basis, metric, limit):
        matrix = np.zeros((3, 3), dtype=int)
        matrix[:n, :n] = combination
        sites = abs(round(float(np.linalg.det(combination)))) * len(host.numbers)
        if not 0.95 * n_atoms <= sites <= 2 * n_atoms:
            continue
        mapping = _mapping(host, frame, matrix)
        if mapping is not None and abs(mapping.max_strain) <= limit:
            found[tuple(combination.ravel())] = mapping
    return sorted(found.values(), key=lambda m: (round(float(np.abs(m.strain).sum()), 6), -int(np.trace(m.matrix))))


def _vectors_of_length(basis: Array, length: float, limit: float) -> Array:
    """Return integer combinations of rows whose length is within a relative limit of the one asked for."""
    reach = length * (1 + limit)
    bound = np.ceil(reach * np.linalg.norm(np.linalg.pinv(basis), axis=0)).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-b, b + 1) for b in bound), indexing="ij"), axis=-1).reshape(-1, len(basis))
    size = np.linalg.norm(grid @ basis, axis=1)
    return np.asarray(grid[(size <= reach) & (size >= length * (1 - limit))])


def _fitting(candidates: list[Array], basis: Array, metric: Array, limit: float) -> list[Array]:
    """Return the integer matrices whose rows make the angles of the metric."""
    first = candidates[0]
    partial = [first[:, None, :]]
    for k in range(1, len(candidates)):
        rows, out = candidates[k], []
        step = max(1, _CHUNK // max(1, len(rows)))
        for block in partial:
            for start in range(0, len(block), step):
                part = block[start : start + step]
                dots = np.einsum("abx,cx->abc", part @ basis, rows @ basis)
                norms = np.sqrt(np.diag(metric)[:k, None] * metric[k, k])
                fits = (np.abs(dots - metric[:k, k, None]) <= 2 * limit * norms).all(axis=1)
                a, c = np.nonzero(fits)
                out.append(np.concatenate([part[a], rows[c][:, None]], axis=1))
        partial = out
    return [m for block in partial for m in block]


def _mapping(host: Host, frame: Array, matrix: Array) -> Mapping | None:
    """Work out deformation and strain; None where the host would have to be mirrored."""
    cell = matrix @ host.cell
    if host.layered:
        normal = np.cross(cell[0], cell[1])
        turned = np.cross(frame[0], frame[1])
        flip = np.sign(normal @ host.cell[2]) * np.sign(turned @ frame[2])
        matrix[2, 2] = int(flip)
        cell[2], target = flip * host.cell[2], frame.copy()
        target[2] = frame[2] / np.linalg.norm(frame[2]) * np.linalg.norm(host.cell[2])
    else:
        target = frame
    deformation = np.linalg.solve(cell, target)
    if np.linalg.det(deformation) <= 0:
        return None
    stretches = np.linalg.svd(deformation, compute_uv=False)
    strain = stretches - 1
    return Mapping(matrix, deformation, strain)
