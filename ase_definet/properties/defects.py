"""Occupations of a host supercell as batches of defects, the input of the sparse network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ase_definet.matching.supercell import cells_of
from ase_definet.model.pair_table import build_pair_table
from ase_definet.model.property_model import DefectBatch

if TYPE_CHECKING:
    from ase_definet.model.config import SparseNetworkConfig
    from ase_definet.model.protocol import Lattice

Array: TypeAlias = NDArray[Any]

_N_ELEMENTS = 119
_UNKNOWN = -1


class DefectSites:
    """The sites of one supercell, and what a network knows of defects on them.

    Args:
        lattice: The supercell; its host must be one that the network knows, see :func:`host_index`.
        config: Config of the network.
    """

    def __init__(self, lattice: Lattice, config: SparseNetworkConfig) -> None:
        self.cells = cells_of(lattice.supercell)
        self.host_numbers = np.tile(lattice.numbers, len(self.cells))
        self.host = host_index(lattice.numbers, config)
        self.n_kinds = len(config.kinds)
        self.kind_of = np.full((_N_ELEMENTS, _N_ELEMENTS), _UNKNOWN)
        for index, (element, host_element, host) in enumerate(config.kinds):
            if host == self.host:
                self.kind_of[element, host_element] = index
        self.table = build_pair_table(lattice, self.cells, config.cutoff, config.n_radial, config.radial_min)
        self.features = torch.as_tensor(self.table.features)

    def known(self, numbers: Array) -> Array:
        """Return which structures consist of defects that the network knows.

        Args:
            numbers: Atomic number on each site, 0 where empty, shape ``(n, n_sites)``.
        """
        defective = numbers != self.host_numbers
        kinds = self.kind_of[numbers, self.host_numbers]
        return np.asarray(~(defective & (kinds == _UNKNOWN)).any(axis=1))

    def batch(self, numbers: Array) -> DefectBatch:
        """Return structures as a batch.

        Args:
            numbers: Atomic number on each site, 0 where empty, shape ``(n, n_sites)``; all defects must be known.
        """
        structure, site = np.nonzero(numbers != self.host_numbers)
        count = np.bincount(structure, minlength=len(numbers))
        most = max(int(count.max(initial=0)), 1)
        place = np.arange(len(site)) - np.repeat(np.cumsum(count) - count, count)
        sites = np.zeros((len(numbers), most), dtype=np.int64)
        kinds = np.full((len(numbers), most), self.n_kinds)
        mask = np.zeros((len(numbers), most), dtype=np.float32)
        sites[structure, place] = site
        kinds[structure, place] = self.kind_of[numbers[structure, site], self.host_numbers[site]]
        mask[structure, place] = 1
        return DefectBatch(
            kinds=torch.as_tensor(kinds),
            rows=torch.as_tensor(self.table.of_sites(sites[:, :, None], sites[:, None, :]).astype(np.int64)),
            mask=torch.as_tensor(mask),
            hosts=torch.full((len(numbers),), self.host),
            features=self.features,
        )


def host_index(numbers: Array, config: SparseNetworkConfig) -> int:
    """Return the index of a host that a network knows.

    Args:
        numbers: Atomic numbers of its primitive cell.
        config: Config of the network.

    Raises:
        ValueError: The network does not know it.
    """
    return config.hosts.index(tuple(sorted(int(z) for z in numbers)))


def joined(batches: Sequence[DefectBatch]) -> DefectBatch:
    """Join batches on different sites into one."""
    most = max(batch.mask.shape[1] for batch in batches)
    n_kinds = max(int(batch.kinds.max()) for batch in batches)
    kinds, rows, mask, shift = [], [], [], 0
    for batch in batches:
        more = most - batch.mask.shape[1]
        pad = torch.nn.functional.pad
        kinds.append(pad(batch.kinds, (0, more), value=n_kinds))
        mask.append(pad(batch.mask, (0, more)))
        rows.append(pad(batch.rows + shift, (0, more, 0, more)))
        shift += len(batch.features)
    return DefectBatch(
        kinds=torch.cat(kinds),
        rows=torch.cat(rows),
        mask=torch.cat(mask),
        hosts=torch.cat([batch.hosts for batch in batches]),
        features=torch.cat([batch.features for batch in batches]),
    )
