"""Batches of pairs on the same sites, in the layout of the networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ase_definet.data import PairGroup
from ase_definet.model.config import NetworkConfig
from ase_definet.model.graph import VACANCY
from ase_definet.model.lattice_convolution import LatticeGeometry
from ase_definet.model.protocol import DisplacementModel, Lattice, Sites, collate, prepare
from ase_definet.relaxation.lattices import build_lattice
from ase_definet.structures.metrics import minimum_image

Array: TypeAlias = NDArray[Any]


def lattice_of_group(group: PairGroup) -> Lattice:
    """Return the perfect supercell that all structures of a group are on."""
    return Lattice(
        numbers=group.unit_numbers,
        positions=group.unit_positions,
        cell=group.unit_cell,
        pbc=group.pbc,
        supercell=group.supercell,
    )


def states_of_groups(groups: Sequence[PairGroup]) -> Tensor:
    """Return the codes of the states of all training pairs, shape ``(n, 4)``."""
    return torch.as_tensor(np.concatenate([group.state[group.indices("train")] for group in groups]).astype(np.int64))


class SiteBatches:
    """All pairs of one group, with targets relative to the ideal sites and their mean subtracted.

    Args:
        group: The pairs.
        model: Config of the network, for its cutoff.
        device: Device of the batches.
    """

    def __init__(self, group: PairGroup, model: NetworkConfig, device: torch.device) -> None:
        self.group = group
        self.device = device
        host = Sites(
            positions=group.sites,
            cell=group.cell,
            pbc=group.pbc,
            numbers=group.host_numbers,
            host_numbers=group.host_numbers,
            kinds=np.zeros(len(group.host_numbers), dtype=int),
            lattice=lattice_of_group(group),
        )

        def geometry_of(lattice: Lattice) -> LatticeGeometry:
            return build_lattice(lattice, model.cutoff).to(device)

        self.host = collate([prepare(host, model.geometry)], geometry_of).to(device)
        self._near: dict[float, Tensor] = {}

    @property
    def host_numbers(self) -> Tensor:
        """Atomic number of the host on each site, shape ``(n_sites,)``."""
        return self.host.host_numbers

    def states(self, chosen: Array) -> Tensor:
        """Return the codes of the states of some pairs, shape ``(1, n_chosen, 4)``."""
        return torch.as_tensor(self.group.state[chosen].astype(np.int64)).to(self.device)[None]

    def batch(self, chosen: Array) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return numbers, kinds, target displacements (Å) and the mask of real atoms, sites first."""
        numbers = torch.as_tensor(self.group.numbers[chosen].T.astype(np.int64)).to(self.device)
        kinds = torch.where(numbers == 0, VACANCY, (numbers != self.host_numbers[:, None]).long())
        target = self.group.offsets(chosen) + self.group.moves(chosen)
        target_ = torch.as_tensor(target.transpose(1, 0, 2), dtype=torch.float32).to(self.device)
        real = (numbers > 0).float()
        mean = (target_ * real[..., None]).sum(0) / real.sum(0)[:, None]
        return numbers, kinds, (target_ - mean) * real[..., None], real

    def predict(
        self,
        net: DisplacementModel,
        numbers: Tensor,
        kinds: Tensor,
        start: Tensor | None = None,
        state: Tensor | None = None,
    ) -> list[Tensor]:
        """Run a network; return the displacements predicted between its layers, if any, and its prediction last.

        Args:
            net: The network.
            numbers: Atomic number on each site, shape ``(n_sites, batch)``.
            kinds: Kind of each site, shape ``(n_sites, batch)``.
            start: Displacements at which the atoms start, shape ``(n_sites, batch, 3)``, in Å.
            state: Codes of the structures' states, shape ``(1, batch, 4)``.

        Returns:
            Each of shape ``(n_sites, batch, 3)``, in Å.
        """
        batch = self.host.other_occupations(numbers, kinds, state)
        return [batch.by_site(values) for values in net.guesses(batch, start)]

    def with_features(
        self,
        net: DisplacementModel,
        numbers: Tensor,
        kinds: Tensor,
        target: Tensor,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the features of the error estimate and the length of the true error in Å, per site."""
        batch = self.host.other_occupations(numbers, kinds, state)
        moved, features = net.with_features(batch)
        return batch.by_site(features), (batch.by_site(moved) - target).norm(dim=-1)

    def near(self, kinds: Tensor, radius: float) -> Tensor:
        """Return which sites lie within a radius (Å) of a defect site, as 0 or 1, shape ``(n_sites, batch)``."""
        if radius not in self._near:
            sites, cell = self.group.sites, self.group.cell
            vectors = (sites[:, None] - sites[None]).reshape(-1, 3)
            distance = np.linalg.norm(minimum_image(vectors, cell), axis=1).reshape(len(sites), -1)
            self._near[radius] = torch.as_tensor(distance < radius).float().to(self.device)
        return ((self._near[radius] @ (kinds > 0).float()) > 0).float()
