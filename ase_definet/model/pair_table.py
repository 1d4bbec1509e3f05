"""Features of all pairs of sites of a supercell, in the frame of the host and symmetrised by its point group.

The features of a pair are sums over its periodic images within a cutoff: Gaussians of the distance times functions of
the direction, averaged over the point group of the host. Pairs that a symmetry of the host maps onto each other
therefore have the same features, and different directions of an anisotropic host have different ones.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.matching.symmetry import space_group_operations
from ase_definet.model.protocol import Lattice

Array: TypeAlias = NDArray[Any]

N_ANGULAR = 7
"""Functions of the direction: one, the squared height, and two-, three- (two of them), four- and sixfold ones."""

_SAME_SITE = 1e-6
_SAME_FEATURE = 1e-3
"""Features that differ by less are the same: the operations of a relaxed host are exact to its last digit only."""
_WIDTH = 0.8
"""Standard deviation of the Gaussians over their spacing."""
_MOST_TABLED = 4096
"""Sites up to which the rows of all pairs are kept."""


@dataclass(frozen=True, eq=False)
class PairTable:
    """Features of the pairs of sites of one supercell.

    Attributes:
        features: The different rows of features, shape ``(n_rows, n_features)``, single precision.
        rows: Row of each pair of a site of the cell at the origin and any site, shape ``(n_basis, n_sites)``.
        cells: Primitive cells in the order of the sites, integers, shape ``(n_cells, 3)``.
        supercell: Integer matrix, rows in the primitive vectors, shape ``(3, 3)``.
    """

    features: Array
    rows: Array
    cells: Array
    supercell: Array

    def of_sites(self, first: Array, second: Array) -> Array:
        """Return the rows of pairs of sites.

        Args:
            first: Indices of sites, any shape.
            second: Indices of sites; broadcast with the first.
        """
        n_basis = len(self.rows)
        cell_1, cell_2 = first // n_basis, second // n_basis
        if not hasattr(self, "_difference"):
            object.__setattr__(self, "_difference", self._differences())
        difference: Any = self._difference  # type: ignore[attr-defined]
        if difference is None:
            between = self._index(self.cells[cell_2] - self.cells[cell_1])
        else:
            between = difference[cell_1, cell_2]
        return np.asarray(self.rows[first % n_basis, between * n_basis + second % n_basis])

    def _differences(self) -> Array | None:
        """Return the cell at the difference of any two cells; None if there are too many."""
        if self.rows.shape[1] > _MOST_TABLED:
            return None
        return self._index(self.cells[None, :] - self.cells[:, None])

    def _index(self, cells: Array) -> Array:
        """Return the indices of primitive cells given modulo the supercell."""
        size = round(abs(float(np.linalg.det(self.supercell))))
        inverse = np.round(np.linalg.inv(self.supercell) * size).astype(np.int64)
        # fractions of the supercell in units of 1 / size: integers that identify a cell
        keys = np.array([1, size, size**2]) @ np.moveaxis((self.cells @ inverse) % size, -1, 0)
        order = np.argsort(keys)
        wanted = np.tensordot((cells @ inverse) % size, np.array([1, size, size**2]), axes=1)
        return np.asarray(order[np.searchsorted(keys, wanted, sorter=order)])


def build_pair_table(lattice: Lattice, cells: Array, cutoff: float, n_radial: int, radial_min: float) -> PairTable:
    """Compute the features of the pairs of a supercell.

    Args:
        lattice: The supercell.
        cells: Its primitive cells in the order of the sites, integers, shape ``(n_cells, 3)``.
        cutoff: Longest pair, in Å.
        n_radial: Number of Gaussians.
        radial_min: Centre of the first one, in Å; that of the last one is the cutoff.
    """
    frame, operations = _frame_and_point_group(lattice)
    basis = lattice.positions
    sites = ((cells @ lattice.cell)[:, None] + basis).reshape(-1, 3)
    images = _images(lattice.supercell @ lattice.cell, lattice.pbc, cutoff)
    centres = np.linspace(radial_min, cutoff, n_radial)
    width = _WIDTH * (centres[1] - centres[0])
    features = np.zeros((len(basis), len(sites), n_radial, N_ANGULAR))
    for image in images:
        vectors = (sites[None] + image - basis[:, None]) @ frame.T
        length = np.linalg.norm(vectors, axis=-1)
        first, second = np.nonzero((length < cutoff) & (length > _SAME_SITE))
        if not len(first):
            continue
        distance = length[first, second][:, None]
        radial = np.exp(-(((distance - centres) / width) ** 2) / 2) * (1 + np.cos(np.pi * distance / cutoff)) / 2
        angular = _angular(vectors[first, second] / distance, operations)
        features[first, second] += radial[:, :, None] * angular[:, None, :]
    flat = np.round(features.reshape(len(basis) * len(sites), -1) / _SAME_FEATURE) * _SAME_FEATURE
    unique, row = np.unique(flat.astype(np.float32), axis=0, return_inverse=True)
    return PairTable(unique, row.reshape(len(basis), len(sites)), cells, lattice.supercell)


def _frame_and_point_group(lattice: Lattice) -> tuple[Array, Array]:
    """Return the axes of the host's frame as rows, and the rotations of its point group in that frame."""
    cell = lattice.cell
    rotations, _ = space_group_operations(cell, lattice.positions, lattice.numbers, layered=not lattice.pbc[2])
    in_space = np.array([cell.T @ w @ np.linalg.inv(cell.T) for w in rotations])
    x = cell[0] / np.linalg.norm(cell[0])
    z = np.cross(cell[0], cell[1])
    z /= np.linalg.norm(z)
    frame = np.array([x, np.cross(z, x), z])
    operations = np.unique(np.round(frame @ in_space @ frame.T, 6), axis=0)
    # a threefold host given in another setting has x along another bond: its threefold moment says which way round
    moment = _angular(_bonds(lattice, frame), operations)[:, 3:5]
    sign = next((value for value in moment.sum(axis=0) if abs(value) > _SAME_FEATURE), 1.0)
    if sign < 0:
        frame = frame * np.array([-1, -1, 1])[:, None]
        operations = operations * np.outer([-1, -1, 1], [-1, -1, 1])
    return frame, operations


def _bonds(lattice: Lattice, frame: Array) -> Array:
    """Return the directions of the bonds of the host, from heavier to lighter elements, shape ``(n, 3)``."""
    ranges = [(-1, 0, 1) if periodic else (0,) for periodic in lattice.pbc]
    shifts = np.array(list(itertools.product(*ranges)))
    vectors = (lattice.positions[None, :, None] - lattice.positions[:, None, None] + shifts @ lattice.cell) @ frame.T
    length = np.linalg.norm(vectors, axis=-1)
    heavier = (lattice.numbers[:, None] > lattice.numbers[None, :])[..., None] & (length > _SAME_SITE)
    if not heavier.any():
        return np.array([[0.0, 0.0, 1.0]])
    near = heavier & (length < length[heavier].min() + 0.1)
    return np.asarray(vectors[near] / length[near][:, None])


def _images(cell: Array, pbc: tuple[bool, bool, bool], cutoff: float) -> Array:
    """Return the translations of a supercell whose images may lie within the cutoff."""
    height = abs(np.linalg.det(cell)) / np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)
    most = [int(np.ceil(cutoff / h)) + 1 if periodic else 0 for h, periodic in zip(height, pbc, strict=True)]
    ranges = np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij")
    return np.stack([part.ravel() for part in ranges], axis=1) @ cell


def _angular(directions: Array, operations: Array) -> Array:
    """Return functions of unit vectors ``(n, 3)``, averaged over the point group, shape ``(n, 7)``."""
    total = np.zeros((len(directions), N_ANGULAR))
    for operation in operations:
        x, y, z = (directions @ operation.T).T
        w = x + 1j * y
        parts = (np.ones_like(x), z**2, (w**2).real, (w**3).real, (w**3).imag, (w**4).real, (w**6).real)
        total += np.stack(parts, axis=1)
    return total / len(operations)
