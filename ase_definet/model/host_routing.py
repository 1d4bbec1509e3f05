"""Several site networks in one: hosts that have their own are theirs, the rest are the general one's.

A network trained on one family of hosts gets further on it than one trained on all: see docs/results.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ase_definet.model.config import HostRoutedConfig
from ase_definet.model.edge_convolution import Geometry
from ase_definet.model.protocol import Batch, DisplacementModel
from ase_definet.model.site_network import SiteNetwork
from ase_definet.model.working_set import WorkingSet


class HostRoutedModel(DisplacementModel):
    """A general :class:`~ase_definet.model.site_network.SiteNetwork` and others for hosts made of given elements.

    Args:
        config: Sizes of all of them, and the elements of the hosts of each.
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
        """The general network, and those for given hosts, in their order."""
        return [self.general, *self.routed]

    def served_networks(self) -> list[tuple[tuple[tuple[int, ...], ...], DisplacementModel]]:
        """Return its networks with the elements of the hosts of each, the general one first."""
        hosts = [(), *(entry.hosts for entry in self.config.routed)]
        return list(zip(hosts, self.networks, strict=True))

    def network_for(self, host_numbers: Tensor) -> SiteNetwork:
        """Return the network for one host.

        Args:
            host_numbers: Atomic numbers of the host's sites, any shape.
        """
        return self.networks[self._place(torch.unique(host_numbers).tolist())]

    def _place(self, elements: list[int]) -> int:
        """Return the place among the networks of the one for hosts of these elements."""
        wanted = tuple(sorted(elements))
        for k, entry in enumerate(self.config.routed, start=1):
            if wanted in entry.hosts:
                return k
        return 0

    def run(self, batch: Batch, working_set: WorkingSet | None = None) -> tuple[Tensor, Tensor | None]:
        """Run the networks on a batch; see :meth:`DisplacementModel.run`."""
        return self.estimate(*batch.occupied(working_set))

    def forward(
        self, geometry: Geometry, numbers: Tensor, host_numbers: Tensor, kinds: Tensor, state: Tensor | None = None
    ) -> Tensor:
        """Predict the displacement of every site; see :meth:`SiteNetwork.forward`."""
        return self.estimate(geometry, numbers, host_numbers, kinds, state)[0]

    def estimate(
        self, geometry: Geometry, numbers: Tensor, host_numbers: Tensor, kinds: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the displacements and how far off they may be; see :meth:`SiteNetwork.estimate`.

        Structures on different hosts may share a batch.
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
