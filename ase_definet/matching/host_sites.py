"""The sites of a host's supercell in the cell of a structure: what structures in the same cell share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.matching.complexes import neighbors
from ase_definet.matching.host import Host
from ase_definet.matching.supercell import describe

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, eq=False)
class HostSites:
    """The sites of a host's supercell, in host order; structures in the same cell share one object.

    Attributes:
        host: The host.
        supercell: Integer matrix, shape ``(3, 3)``, rows in the host's primitive vectors.
        cell: Periodic vectors as rows, shape ``(3, 3)``, in Å; for a layer the two in-plane vectors of the
            structure, then its normal (see :func:`~ase_definet.structures.cell.layer_frame`).
        pbc: Which of them are periodic.
        positions: Ideal positions, shape ``(n_sites, 3)``, in Å: the caller's frame and origin, any image in the
            plane, one unbroken layer across the vacuum.
        numbers: Atomic numbers of the host, shape ``(n_sites,)``.
        strain: Principal strains of the host onto the cell, shape ``(3,)``.
        shift: Rigid shift of the host, shape ``(3,)``, in Å.
        rotation: Rotation of the host's frame into the caller's, shape ``(3, 3)``, for column vectors.
    """

    host: Host
    supercell: Array
    cell: Array
    pbc: tuple[bool, bool, bool]
    positions: Array
    numbers: Array
    strain: Array
    shift: Array
    rotation: Array

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self.numbers)

    @cached_property
    def max_strain(self) -> float:
        """Principal strain of largest magnitude, with its sign."""
        return float(self.strain[int(np.argmax(np.abs(self.strain)))])

    @cached_property
    def supercell_name(self) -> str:
        """Name of the supercell: ``8x8x1``."""
        return describe(self.supercell)

    @cached_property
    def unit(self) -> tuple[Array, Array]:
        """Primitive cell ``(3, 3)`` and positions in it, strained onto the structure, in the host's frame, in Å."""
        host = self.host
        cell = np.linalg.solve(self.supercell.astype(float), self.cell @ self.rotation)
        before, after = host.cell.copy(), cell.copy()
        if host.layered:  # vacuum does not count as strain
            for vectors in (before, after):
                normal = np.cross(vectors[0], vectors[1])
                vectors[2] = normal / np.linalg.norm(normal)
        return cell, host.positions @ np.linalg.solve(before, after)

    @cached_property
    def neighbors(self) -> tuple[Array, Array]:
        """All pairs of neighbouring sites, as of :func:`~ase_definet.matching.complexes.neighbors`."""
        return neighbors(self.positions, self.cell, self.host.periodic, self.host.nearest_neighbor)
