"""Geometries of lattices: how they are built, and those that a relaxer keeps."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from ase_definet.matching.supercell import cells_of, waves_of
from ase_definet.model.lattice_convolution import LatticeGeometry
from ase_definet.model.protocol import Lattice
from ase_definet.model.working_set import WorkingSet
from ase_definet.structures.neighbors import neighbor_list

KEPT_LATTICES = 4
"""Supercells whose kernels are kept: some 10 to 60 MB each."""


def build_lattice(
    lattice: Lattice, cutoff: float, *, dtype: torch.dtype = torch.float32, keep_kernels: bool = False
) -> LatticeGeometry:
    """Build the geometry of a perfect supercell on the CPU.

    Args:
        lattice: The supercell.
        cutoff: Longest edge, in Å.
        dtype: Precision of the network.
        keep_kernels: Whether what it makes of a network's filters is kept for the next call.
    """
    target, source, shift, vector = neighbor_list(lattice.positions, lattice.cell, lattice.pbc, cutoff)
    return LatticeGeometry(
        torch.as_tensor(source),
        torch.as_tensor(target),
        torch.as_tensor(shift),
        torch.as_tensor(vector, dtype=dtype),
        torch.as_tensor(lattice.numbers),
        torch.as_tensor(lattice.supercell),
        torch.as_tensor(cells_of(lattice.supercell)),
        torch.as_tensor(waves_of(lattice.supercell)),
        keep_kernels=keep_kernels,
    )


class LatticeCache:
    """The lattices that were used last, with the kernels of the networks that ran on them.

    A geometry is found by what it depends on: the lattice, the cutoff, the precision and the device. The kernels in
    it are found by the filter values that they were made of, that is by what the weights are
    (:meth:`LatticeGeometry._kernels`): weights that were changed in place, in whatever way, never meet old kernels.

    Args:
        working_set: How much to do at a time on the device.
        most: Lattices that are kept.
    """

    def __init__(self, working_set: WorkingSet, most: int = KEPT_LATTICES) -> None:
        self.working_set = working_set
        self.most = most
        self._kept: dict[Hashable, LatticeGeometry] = {}

    def __len__(self) -> int:
        """Return how many lattices are kept."""
        return len(self._kept)

    @property
    def geometries(self) -> list[LatticeGeometry]:
        """Those that are kept, the one used last at the end."""
        return list(self._kept.values())

    def get(self, lattice: Lattice, cutoff: float, dtype: torch.dtype, device: torch.device) -> LatticeGeometry:
        """Return the geometry of a lattice on a device, from memory where it is kept.

        Args:
            lattice: The supercell.
            cutoff: Longest edge, in Å.
            dtype: Precision of the network.
            device: Where the network is.
        """
        key = (lattice.key, cutoff, dtype, device)
        geometry = self._kept.pop(key, None)
        if geometry is None:
            geometry = build_lattice(lattice, cutoff, dtype=dtype, keep_kernels=True).to(device, self.working_set)
        self._kept[key] = geometry
        while len(self._kept) > self.most:
            del self._kept[next(iter(self._kept))]
        return geometry
