"""Batches of pairs on the same sites, as the networks want them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ase_definet.data import PairGroup
from ase_definet.model import predict_displacements
from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.graph import VACANCY, DefectGraph, build_graph
from ase_definet.model.lattice_convolution import LatticeGeometry
from ase_definet.model.site_network import SiteNetwork
from ase_definet.relaxation.inputs import build_lattice
from ase_definet.structures.metrics import minimum_image
from ase_definet.training.config import ModelConfig

Array: TypeAlias = NDArray[Any]


class SiteBatches:
    """All pairs of one group, their targets relative to the ideal sites with the mean taken off.

    Args:
        group: The pairs.
        model: Of the network they are for: its cutoff.
        device: Where batches go.
    """

    def __init__(self, group: PairGroup, model: ModelConfig, device: torch.device) -> None:
        self.group = group
        self.device = device
        self.host_numbers = torch.as_tensor(group.host_numbers, device=device)
        self.lattice: LatticeGeometry | None = None
        if isinstance(model, SiteNetworkConfig):
            self.lattice = build_lattice(
                group.unit_numbers, group.unit_positions, group.unit_cell, group.pbc, group.supercell, model.cutoff
            ).to(device)
        else:
            self._template = build_graph(
                group.sites,
                group.cell,
                group.pbc,
                numbers=group.host_numbers,
                host_numbers=group.host_numbers,
                kinds=np.zeros(len(group.host_numbers), dtype=int),
                cutoff=model.cutoff,
                max_neighbors=model.max_neighbors,
            ).to(device)
        self._near: dict[float, Tensor] = {}

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
        net: nn.Module,
        numbers: Tensor,
        kinds: Tensor,
        start: Tensor | None = None,
        state: Tensor | None = None,
    ) -> list[Tensor]:
        """Run a network; return the guesses between its layers, if it has any, and last its prediction.

        Args:
            net: The network.
            numbers: Atomic number on each site, shape ``(n_sites, batch)``.
            kinds: Kind of each site, shape ``(n_sites, batch)``.
            start: Displacements at which the atoms begin, shape ``(n_sites, batch, 3)``, in Å.
            state: Codes of the structures' states, shape ``(1, batch, 4)``.
        """
        if self.lattice is not None:
            if not isinstance(net, SiteNetwork):
                raise TypeError(f"expected a SiteNetwork, found {type(net).__name__}")
            return net.stages(self.lattice, numbers, self.host_numbers, kinds, start, state)
        n, batch = numbers.shape
        one = self._template
        count = torch.arange(batch, device=self.device)
        offset = (count * n)[:, None]
        graph = DefectGraph(
            numbers=numbers.T.reshape(-1),
            host_numbers=self.host_numbers.repeat(batch),
            kinds=kinds.T.reshape(-1),
            pos=one.pos.repeat(batch, 1),
            cell=one.cell.repeat(batch, 1, 1),
            edge_index=torch.stack([(part + offset).reshape(-1) for part in one.edge_index]),
            cell_shift=one.cell_shift.repeat(batch, 1),
            batch=count.repeat_interleave(n),
        )
        return [predict_displacements(net, graph).view(batch, n, 3).transpose(0, 1)]

    def with_features(
        self, net: SiteNetwork, numbers: Tensor, kinds: Tensor, target: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what a network's error is estimated from, and the length of its true error in Å, site by site."""
        if self.lattice is None:
            raise TypeError("the published network has no estimate of its error")
        moved, features = net.with_features(self.lattice, numbers, self.host_numbers, kinds, state)
        return features, (moved - target).norm(dim=-1)

    def near(self, kinds: Tensor, radius: float) -> Tensor:
        """Return which sites lie within a radius (Å) of a defect site, as 0 or 1, shape ``(n_sites, batch)``."""
        if radius not in self._near:
            sites, cell = self.group.sites, self.group.cell
            vectors = (sites[:, None] - sites[None]).reshape(-1, 3)
            distance = np.linalg.norm(minimum_image(vectors, cell), axis=1).reshape(len(sites), -1)
            self._near[radius] = torch.as_tensor(distance < radius).float().to(self.device)
        return ((self._near[radius] @ (kinds > 0).float()) > 0).float()
