"""Several site networks in one model: one for each of some hosts, and a general one for all others.

A network trained on one family of hosts is more accurate for it than one trained on all: see docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ase_definet.model.config import Coverage, HostRoutedConfig
from ase_definet.model.edge_convolution import Geometry
from ase_definet.model.protocol import (
    Batch,
    DisplacementModel,
    LatticeSource,
    Prepared,
    Routed,
    RoutedBatch,
    Served,
    Sites,
    collate,
    prepare,
)
from ase_definet.model.site_network import SiteNetwork
from ase_definet.model.working_set import WorkingSet


class HostRoutedModel(DisplacementModel):
    """A general :class:`~ase_definet.model.site_network.SiteNetwork` and others for hosts with given elements.

    Args:
        config: Sizes of all networks, and the elements of their hosts.
    """

    config: HostRoutedConfig
    combinable = True

    def __init__(self, config: HostRoutedConfig) -> None:
        super().__init__()
        self.config = config
        self.general = SiteNetwork(config.general)
        self.routed = nn.ModuleList(SiteNetwork(entry.model) for entry in config.routed)

    @property
    def networks(self) -> list[SiteNetwork]:
        """The general network, followed by those for given hosts."""
        return [self.general, *self.routed]

    def served_networks(self) -> list[Served]:
        """Return its networks with the elements of their hosts, the general one first."""
        entries = [((), None), *((entry.hosts, entry.coverage) for entry in self.config.routed)]
        return [Served(hosts, network, own) for (hosts, own), network in zip(entries, self.networks, strict=True)]

    def place_of(self, sites: Sites) -> int:
        """Return the index in :attr:`networks` of the one that serves a structure."""
        present = sites.numbers[sites.numbers > 0].tolist()
        return self._place(
            np.unique(sites.host_numbers).tolist(),
            lambda coverage: coverage.holds(present, sites.state, layered=not sites.pbc[2]),
        )

    def prepare(self, sites: Sites) -> Routed:
        """Prepare one structure for the network that serves it."""
        return Routed(self.place_of(sites), prepare(sites, self.config.geometry, self.precision))

    def collate(self, prepared: Sequence[Prepared], lattices: LatticeSource) -> Batch | RoutedBatch:
        """Collate structures for the same network."""
        inner = [one.inner if isinstance(one, Routed) else one for one in prepared]
        places = [one.place for one in prepared if isinstance(one, Routed)]
        batch = collate(inner, lattices)
        return RoutedBatch(places[0], batch) if places else batch

    def network_for(self, host_numbers: Tensor) -> SiteNetwork:
        """Return the network for one host.

        Args:
            host_numbers: Atomic numbers of the host's sites, any shape.
        """
        return self.networks[self._place(torch.unique(host_numbers).tolist())]

    def _place(self, elements: list[int], covered: Callable[[Coverage], bool] = lambda _coverage: True) -> int:
        """Return the index of the first network that serves a structure on a host with these elements."""
        wanted = tuple(sorted(elements))
        for k, entry in enumerate(self.config.routed, start=1):
            if wanted in entry.hosts and (entry.coverage is None or covered(entry.coverage)):
                return k
        return 0

    def run(self, batch: Batch | RoutedBatch, working_set: WorkingSet | None = None) -> tuple[Tensor, Tensor | None]:
        """Run the networks on a batch; see :meth:`DisplacementModel.run`."""
        if isinstance(batch, RoutedBatch):
            return self.networks[batch.place].run(batch.inner, working_set)
        return self.estimate(*batch.occupied(working_set))

    def forward(
        self, geometry: Geometry, numbers: Tensor, host_numbers: Tensor, kinds: Tensor, state: Tensor | None = None
    ) -> Tensor:
        """Predict the displacement of every site; see :meth:`SiteNetwork.forward`."""
        return self.estimate(geometry, numbers, host_numbers, kinds, state)[0]

    def estimate(
        self, geometry: Geometry, numbers: Tensor, host_numbers: Tensor, kinds: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the displacements and their expected errors; see :meth:`SiteNetwork.estimate`.

        Structures on different hosts may share a batch. If a host has several networks, :meth:`prepare` selects one
        for each structure; here the first is used.
        """
        elements = torch.unique(host_numbers)
        has = (host_numbers[:, None] == elements).to(geometry.class_distance.dtype)[:, None]
        present = geometry.total(has)[:, 0] > 0
        places = [self._place(elements[row].tolist()) for row in present]
        networks = self.networks
        found = {k: networks[k].estimate(geometry, numbers, host_numbers, kinds, state) for k in sorted(set(places))}
        if len(found) == 1:
            return next(iter(found.values()))
        place = torch.tensor(places, device=host_numbers.device)
        of_site: Any = geometry.spread(place[:, None])
        moved, errors = zip(*found.values(), strict=True)
        out, error = moved[0], errors[0]
        for k, own, own_error in zip(found, moved, errors, strict=True):
            out = torch.where((of_site == k)[..., None], own, out)
            if error is not None:
                error = torch.where(of_site == k, own_error, error)
        return out, error
