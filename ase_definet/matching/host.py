"""A pristine host and its reduction to the primitive cell, in the frame used for matching."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray

from ase_definet.errors import HostError, StructureError
from ase_definet.matching.symmetry import SYMMETRY_PRECISION, primitive_cell
from ase_definet.structures.cell import check_structure, layer_frame
from ase_definet.structures.neighbors import pairs_within

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

_LOOSER = (0.02, 0.04, 0.08)  # tried where a host may be a supercell with noise, in Å

NOISE = 0.02
"""Copies of a host's primitive cell that differ by less are the same, in Å, root mean square."""


@dataclass(frozen=True, eq=False)
class Host:
    """A pristine crystal, by its primitive cell.

    Attributes:
        name: Its name in results.
        numbers: Atomic numbers, shape ``(n_basis,)``.
        positions: Cartesian positions, shape ``(n_basis, 3)``, in Å; unwrapped across a layer.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å. The last row of a two-dimensional host is its
            unit normal times :data:`~ase_definet.structures.cell.VACUUM_LENGTH`, or more where it is a thick slab.
        layered: Whether the host is two-dimensional, its last axis the vacuum.
        source: Source of the geometry.
    """

    name: str
    numbers: Array
    positions: Array
    cell: Array
    layered: bool
    source: str

    def __eq__(self, other: object) -> bool:
        """Compare everything: a host that went to another process is the same there."""
        return self is other or (isinstance(other, Host) and self._content == other._content)

    def __hash__(self) -> int:
        """Return a hash of everything."""
        return hash(self._content)

    @cached_property
    def _content(self) -> tuple[object, ...]:
        arrays = (part.tobytes() for part in (self.numbers, self.positions, self.cell))
        return (self.name, *arrays, self.layered, self.source)

    @property
    def formula(self) -> str:
        """Reduced chemical formula, in the order of the basis."""
        reduced_formula, _ = Formula.from_dict(Counter(chemical_symbols[z] for z in self.numbers)).reduce()
        return str(reduced_formula)

    @property
    def composition(self) -> dict[int, int]:
        """Atoms of each element in the primitive cell, by atomic number: the order of the basis does not matter."""
        return dict(Counter(self.numbers.tolist()))

    @cached_property
    def nearest_neighbor(self) -> float:
        """Shortest distance between two sites, in Å."""
        radius = 2.0
        while True:
            _, _, vector = pairs_within(self.positions, self.cell, self.periodic, radius)
            if len(vector):
                return float(np.linalg.norm(vector, axis=1).min())
            radius *= 1.5

    @property
    def periodic(self) -> tuple[bool, bool, bool]:
        """Which vectors of :attr:`cell` are periodic."""
        return (True, True, not self.layered)


def reduced(atoms: Atoms, name: str, source: str) -> Host:
    """Reduce a crystal to its primitive cell, Minkowski-reduced, in the frame used for matching.

    Args:
        atoms: The crystal or layer: a primitive cell, a conventional one or a supercell.
        name: Its name.
        source: Its source.

    Raises:
        HostError: It is not a valid crystal.
    """
    try:
        frame, positions, axis = check_structure(atoms)
    except StructureError as error:
        raise HostError(f"host {name!r}: {error}") from error
    if axis is not None:
        normal = frame[2] / np.linalg.norm(frame[2])
        positions = positions - normal * (positions @ normal).min()
    numbers, positions, cell = _primitive(atoms.numbers, positions, frame, name)
    if axis is None:
        cell = np.array(minkowski_reduce(cell)[0])
        return Host(name, numbers, positions, cell, layered=False, source=source)
    cell, positions, axis = layer_frame(cell, positions)
    if axis is None:
        raise HostError(f"host {name!r}: lost its vacuum on reduction: give its primitive cell")
    cell = np.array(minkowski_reduce(cell, pbc=(True, True, False))[0])
    return Host(name, numbers, positions, cell, layered=True, source=source)


def _primitive(numbers: Array, positions: Array, cell: Array, name: str) -> tuple[Array, Array, Array]:
    """Return numbers, positions and cell of the primitive cell, averaged over its copies.

    The tolerance is the smallest at which the copies agree, because relaxed supercells are slightly noisy. A cell
    whose copies differ by more than noise is a superstructure and is not reduced.
    """
    best = _fold(numbers, positions, cell, SYMMETRY_PRECISION)
    if best is None:
        raise HostError(f"host {name!r}: spglib finds no primitive cell: are atoms too close to one another?")
    for tolerance in _LOOSER:
        found = _fold(numbers, positions, cell, tolerance)
        if found is not None and len(found.numbers) < len(best.numbers) and found.noise <= NOISE:
            best = found
    return best.numbers, best.positions, best.cell


@dataclass(frozen=True, eq=False)
class _Folded:
    """A primitive cell, and the root mean square difference of its copies in the crystal, in Å."""

    numbers: Array
    positions: Array
    cell: Array
    noise: float


def _fold(numbers: Array, positions: Array, cell: Array, tolerance: float) -> _Folded | None:
    """Fold a crystal onto the primitive cell that spglib finds at a tolerance, in Å."""
    found = primitive_cell(cell, positions, numbers, tolerance)
    if found is None:
        return None
    vectors, fractions, kinds = found
    # its vectors contain noise of the atoms: they must be rational in those of the cell
    matrix = np.round(cell @ np.linalg.inv(vectors))
    copies = round(abs(float(np.linalg.det(matrix))))
    if copies == 0 or len(kinds) * copies != len(numbers):
        return None
    primitive = np.linalg.solve(matrix, cell)
    first = fractions @ primitive
    inverse = np.linalg.inv(primitive)
    mean, squared = first.copy(), 0.0
    for k, (place, number) in enumerate(zip(first, kinds, strict=True)):
        away = (positions[numbers == number] - place) @ inverse
        away = (away - np.round(away)) @ primitive
        near = np.argsort((away**2).sum(axis=1), kind="stable")[:copies]
        mean[k] += away[near].mean(axis=0)
        squared += float(((away[near] - away[near].mean(axis=0)) ** 2).sum())
    noise = float(np.sqrt(squared / len(numbers)))
    return _Folded(kinds, mean, primitive, noise) if noise < tolerance else None
