"""The part of a layer that keeps tensors on the sites: strains, and what a lopsided defect looks like from afar."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ase_definet.model.algebra import N_TENSOR_PATHS, applied, products
from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.filters import EdgeFilters


class TensorPart(nn.Module):
    """What a layer does with tensors: they are sent and heard, and act on scalars and vectors of their site.

    Args:
        config: Sizes; the first ``tensor_features`` channels of scalars and vectors meet the tensors.
    """

    def __init__(self, config: SiteNetworkConfig) -> None:
        super().__init__()
        width, own = config.features, config.tensor_features
        self.dropout, self.own = config.dropout, own
        self.filters = EdgeFilters(config, N_TENSOR_PATHS, own)
        self.gate_in = nn.Linear(width, own)
        self.tensor_in = nn.Linear(own, own, bias=False)
        self.site_out = nn.Linear(width, own)
        self.tensor_out = nn.Linear(own, own, bias=False)
        self.mix = nn.Linear(own, 2 * own, bias=False)
        self.update = nn.Sequential(nn.Linear(width + 3 * own, width), nn.SiLU(), nn.Linear(width, width + 3 * own))
        self.vector_out = nn.Linear(own, width, bias=False)
        for last in (self.tensor_out, self.vector_out, self.update[2]):
            if isinstance(last, nn.Linear):
                nn.init.normal_(last.weight, std=0.5 / math.sqrt(last.in_features))

    def sent(self, hidden: Tensor, tensors: Tensor) -> Tensor:
        """Return the tensors that sites send."""
        out: Tensor = self.tensor_in(tensors) * self.gate_in(hidden)[:, :, None]
        return out

    def heard(self, site: Tensor, tensors: Tensor, heard: Tensor) -> Tensor:
        """Return the tensors of the sites after those that they have heard."""
        out: Tensor = tensors + self.tensor_out(heard * self.site_out(site)[:, :, None])
        return out

    def forward(self, scalars: Tensor, left: Tensor, right: Tensor, tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Let what is on a site act on itself.

        Args:
            scalars: Normalised, shape ``(n, batch, F)``.
            left: Mixed vectors, shape ``(n, batch, 3, F)``.
            right: Others.
            tensors: Shape ``(n, batch, 5, F_t)``.

        Returns:
            What is added to the scalars, and to the vectors, and the updated tensors.
        """
        left, right = left[..., : self.own], right[..., : self.own]
        size = (1 + tensors.square().sum(2, keepdim=True).mean(-1, keepdim=True)).rsqrt()
        one, two = self.mix(tensors * size).split(self.own, dim=-1)
        # all of degree one in what is fed back layer by layer, as in the layers
        bound = (1 + left.square().sum(2)).rsqrt()
        turned = applied(two, left) * bound[:, :, None]
        length = (two.square().sum(2) + 1e-6).sqrt()
        product = (one * two).sum(2) * (1 + one.square().sum(2)).rsqrt()
        along = (turned * left).sum(2) * bound
        known = torch.cat([scalars, length, product, along], dim=-1)
        mixed = self.update(functional.dropout(known, self.dropout, self.training))
        width = scalars.shape[-1]
        add, turn, onto, new = mixed.split([width, self.own, self.own, self.own], dim=-1)
        made = products(left, right) * (bound * new)[:, :, None]
        return add, self.vector_out(turned * onto[:, :, None]), tensors + one * turn[:, :, None] + made
