"""What an edge lets through: filter values from its length and the host elements at its ends."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.geometry import Geometry

N_ELEMENTS = 119
"""Rows of an element table: 0 is an empty site, the rest are atomic numbers."""


class EdgeFilters(nn.Module):
    """Filter values of every class of edge, from its length and the host elements at its ends.

    Args:
        config: Gaussians, cutoff, embedding and scale.
        paths: Independent filters of one message.
        channels: Filters of each kind.
    """

    centres: Tensor

    def __init__(self, config: SiteNetworkConfig, paths: int, channels: int) -> None:
        super().__init__()
        self.cutoff = config.cutoff
        self.out = (paths, channels)
        self.register_buffer(
            "centres", torch.linspace(config.shortest, config.cutoff, config.radial), persistent=False
        )
        self.inverse_width = (config.radial - 1) / (config.cutoff - config.shortest)
        self.scale = 1 / math.sqrt(config.neighbors)
        self.source = nn.Embedding(N_ELEMENTS, config.embedding)
        self.target = nn.Embedding(N_ELEMENTS, config.embedding)
        self.mlp = nn.Sequential(
            nn.Linear(config.radial + 2 * config.embedding, 64), nn.SiLU(), nn.Linear(64, math.prod(self.out))
        )

    def forward(self, geometry: Geometry) -> Tensor:
        """Return the filters, shape ``(n_classes, paths, channels)``."""
        d = geometry.class_distance[:, None]
        gaussians = torch.exp(-0.5 * ((d - self.centres) * self.inverse_width).square())
        ends = geometry.class_numbers
        features = torch.cat([gaussians, self.target(ends[:, 0]), self.source(ends[:, 1])], dim=1)
        envelope = 0.5 * (1 + torch.cos(math.pi * (d / self.cutoff).clamp(max=1)))
        out: Tensor = (self.mlp(features) * (envelope * self.scale)).view(-1, *self.out)
        return out
