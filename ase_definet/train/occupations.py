"""Packed training pairs of one host supercell: occupations and displacements on the host's sites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ase_definet.model.geometry import LatticeGeometry
from ase_definet.neighbors import neighbor_list

VACUUM = 40.0
"""Height given to a two-dimensional host's cell, in Å, so that its images do not meet."""


class OccupationSet:
    """All pairs of one subset, on the ideal sites of its host.

    Args:
        path: The ``.npz`` file.
        cutoff: Longest edge, in Å.
        device: Where batches go.
    """

    def __init__(self, path: Path, cutoff: float, device: torch.device) -> None:
        with np.load(path) as z:
            self.ids = z["ids"]
            self.split = z["split"]
            numbers = z["numbers"].astype(np.int64)
            displacement = (z["start"] + z["move"]).astype(np.float32)
            unit_numbers, positions, cell, n = (
                z["unit_numbers"],
                z["unit_positions"],
                z["unit_cell"].copy(),
                int(z["n"]),
            )
        self.device = device
        cell[2] = [0, 0, VACUUM]
        target, source, shift, vector = neighbor_list(positions, cell, (True, True, True), cutoff)
        self.geometry = LatticeGeometry(
            torch.as_tensor(source),
            torch.as_tensor(target),
            torch.as_tensor(shift),
            torch.as_tensor(vector, dtype=torch.float32),
            torch.as_tensor(unit_numbers),
            (n, n, 1),
        )
        self.host_numbers = torch.as_tensor(np.tile(unit_numbers, n * n))
        self.numbers = torch.as_tensor(numbers)
        real = (self.numbers > 0).float()
        target_ = torch.nan_to_num(torch.as_tensor(displacement))
        mean = (target_ * real[..., None]).sum(1, keepdim=True) / real.sum(1)[:, None, None]
        self.displacement = (target_ - mean) * real[..., None]
        self.real = real
        self._distance = torch.as_tensor(_site_distances(positions, cell, n))

    def indices(self, split: str) -> np.ndarray:
        """Return the positions of the pairs of a split."""
        return np.flatnonzero(self.split == split)

    def batch(self, chosen: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return numbers, kinds, displacements and the mask of real atoms, sites first."""
        index = torch.as_tensor(chosen)
        numbers = self.numbers[index].T.to(self.device)
        host = self.host_numbers[:, None].to(self.device)
        kinds = torch.where(numbers == 0, 2, (numbers != host).long())
        target = self.displacement[index].transpose(0, 1).to(self.device)
        return numbers, kinds, target, self.real[index].T.to(self.device)

    def near(self, kinds: Tensor, radius: float) -> Tensor:
        """Return which sites lie within a radius (Å) of a defect site, as 0 or 1, shape ``(n, batch)``."""
        close = (self._distance < radius).float()
        return ((close @ (kinds > 0).float()) > 0).float()


def _site_distances(positions: np.ndarray, cell: np.ndarray, n: int) -> np.ndarray:
    """Return the minimum-image distances between all sites, in Å."""
    shifts = np.array([[i, j] for i in range(n) for j in range(n)])
    sites = (shifts @ cell[:2])[:, None] + positions[None]
    sites = sites.reshape(-1, 3)
    best = np.full((len(sites), len(sites)), np.inf)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            delta = sites[:, None] - sites[None] + (i * cell[0] + j * cell[1]) * n
            best = np.minimum(best, np.linalg.norm(delta, axis=2))
    return best
