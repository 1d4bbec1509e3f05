"""The network this problem deserves: equivariant, on ideal host geometry, read out once.

Differences from the published network (:mod:`ase_definet.model.definet`): sites never move between layers,
so filters depend only on the few distinct edge lengths of a host; a site knows both what is on it and what the
host has there; messages are depth-wise convolutions of a scalar and a vector field, mixing happens on the
sites; the mean displacement over real atoms is zero by construction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.geometry import N_PATHS, Geometry

N_ELEMENTS = 119
"""Rows of an element table: 0 is an empty site, the rest are atomic numbers."""


class SiteNetwork(nn.Module):
    """Map occupied host sites to displacements in one pass.

    Args:
        config: Sizes and cutoff.
    """

    def __init__(self, config: SiteNetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.features, config.embedding
        self.element = nn.Embedding(N_ELEMENTS, embedding)
        self.host_element = nn.Embedding(N_ELEMENTS, embedding)
        self.kind = nn.Embedding(3, embedding)
        self.start = nn.Linear(3 * embedding, width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.read_out = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.read_out.weight, std=0.1 / math.sqrt(width))

    def forward(self, geometry: Geometry, numbers: Tensor, host_numbers: Tensor, kinds: Tensor) -> Tensor:
        """Predict the displacement of every site.

        Args:
            geometry: Arrangement of the sites.
            numbers: Atomic number on each site, 0 where empty, shape ``(n_sites, batch)``.
            host_numbers: Atomic number of the host there, shape ``(n_sites,)``.
            kinds: Marker of each site (0 pristine, 1 substitution, 2 vacancy), shape ``(n_sites, batch)``.

        Returns:
            Displacements, shape ``(n_sites, batch, 3)``, in Å; zero on empty sites, zero mean over atoms.
        """
        host = self.host_element(host_numbers)[:, None].expand(-1, numbers.shape[1], -1)
        site = self.start(torch.cat([self.element(numbers), host, self.kind(kinds)], dim=-1))
        scalars = site
        vectors = site.new_zeros(*site.shape[:2], 3, site.shape[2])
        for layer in self.layers:
            scalars, vectors = layer(geometry, site, scalars, vectors)
        gate = self.gate(self.norm(scalars))
        displacement = self.read_out(gate[:, :, None] * vectors).squeeze(-1)
        real = (numbers > 0).to(displacement.dtype)[..., None]
        mean = geometry.total(displacement * real) / geometry.total(real).clamp_min(1)
        out: Tensor = (displacement - geometry.spread(mean)) * real
        return out


class _Layer(nn.Module):
    """One depth-wise message pass and one point-wise update."""

    def __init__(self, config: SiteNetworkConfig) -> None:
        super().__init__()
        width = config.features
        self.width = width
        self.filters = _Filters(config)
        self.norm_in = nn.LayerNorm(width)
        self.scalar_in = nn.Linear(width, 2 * width)
        self.site_in = nn.Linear(width, width)
        self.vector_in = nn.Linear(width, width, bias=False)
        self.site_out = nn.Linear(width, 2 * width)
        self.scalar_out = nn.Linear(width, width)
        self.vector_out = nn.Linear(width, width, bias=False)
        self.pool = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.norm_update = nn.LayerNorm(width)
        self.vector_mix = nn.Linear(width, 2 * width, bias=False)
        self.update = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, 3 * width))
        for last in (self.scalar_out, self.vector_out, self.pool[2], self.update[2]):
            if isinstance(last, nn.Linear):
                nn.init.normal_(last.weight, std=0.5 / math.sqrt(last.in_features))

    def forward(self, geometry: Geometry, site: Tensor, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the updated scalars ``(n, batch, F)`` and vectors ``(n, batch, 3, F)``."""
        width = self.width
        hidden = self.norm_in(scalars)
        sent, gate = self.scalar_in(hidden).split(width, dim=-1)
        sent = sent * self.site_in(site)
        sent_vectors = self.vector_in(vectors) * gate[:, :, None]
        field = torch.cat([sent[:, :, None], sent_vectors], dim=2)
        heard = geometry.propagate(self.filters(geometry), field)
        gate_scalar, gate_vector = self.site_out(site).split(width, dim=-1)
        ones = scalars.new_ones(scalars.shape[0], 1, 1)
        pooled = self.pool(geometry.total(hidden) / geometry.total(ones))
        scalars = scalars + self.scalar_out(heard[:, :, 0] * gate_scalar) + geometry.spread(pooled)
        vectors = vectors + self.vector_out(heard[:, :, 1:] * gate_vector[:, :, None])

        left, right = self.vector_mix(vectors).split(width, dim=-1)
        length = (right.square().sum(2) + 1e-6).sqrt()
        # of degree one in the vectors: a plain product, fed back layer by layer, can blow up in training
        product = (left * right).sum(2) / (1 + left.square().sum(2)).sqrt()
        mixed = self.update(torch.cat([self.norm_update(scalars), length, product], dim=-1))
        add, scale, turn = mixed.split(width, dim=-1)
        return scalars + add + scale * product, vectors + turn[:, :, None] * left


class _Filters(nn.Module):
    """Filter values of every class of edge, from its length and the host elements at its ends."""

    centres: Tensor

    def __init__(self, config: SiteNetworkConfig) -> None:
        super().__init__()
        self.cutoff = config.cutoff
        self.out = (N_PATHS, config.features)
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
        """Return the filters, shape ``(n_classes, 5, F)``."""
        d = geometry.class_distance[:, None]
        gaussians = torch.exp(-0.5 * ((d - self.centres) * self.inverse_width).square())
        ends = geometry.class_numbers
        features = torch.cat([gaussians, self.target(ends[:, 0]), self.source(ends[:, 1])], dim=1)
        envelope = 0.5 * (1 + torch.cos(math.pi * (d / self.cutoff).clamp(max=1)))
        out: Tensor = (self.mlp(features) * (envelope * self.scale)).view(-1, *self.out)
        return out
