"""Messages between close sites at their distances after the displacement predicted so far."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ase_definet.model.config import SiteNetworkConfig

TYPICAL = 10.0
"""Typical number of neighbours, for which the sum of messages is normalised."""
_FURTHER = 0.5
"""The last Gaussian lies this far beyond the cutoff, because displacements may lengthen distances, in Å."""


@dataclass(frozen=True, eq=False)
class PaddedNeighbors:
    """Neighbours of every site, padded to the same number.

    Attributes:
        source: Site of each neighbour, shape ``(n_sites, k)``.
        vector: From the site to the image of the neighbour, on ideal sites, shape ``(n_sites, k, 3)``, in Å.
        weight: Decays smoothly to zero at the cutoff; zero for padding, shape ``(n_sites, k)``.
    """

    source: Tensor
    vector: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> PaddedNeighbors:
        """Return the table, moved to a device."""
        return PaddedNeighbors(self.source.to(device), self.vector.to(device), self.weight.to(device))

    @classmethod
    def of(cls, source: Tensor, target: Tensor, vector: Tensor, n_sites: int, cutoff: float) -> PaddedNeighbors:
        """Build the table from edges.

        Args:
            source: Sending site of each edge, shape ``(n_edges,)``.
            target: Receiving site, shape ``(n_edges,)``.
            vector: From the target to the image of the source, shape ``(n_edges, 3)``, in Å.
            n_sites: Number of sites.
            cutoff: Longer edges are left out, in Å.
        """
        distance = vector.norm(dim=1)
        kept = torch.nonzero(distance < cutoff).squeeze(1)
        kept = kept[torch.argsort(target[kept], stable=True)]
        owner = target[kept]
        count = torch.bincount(owner, minlength=n_sites)
        slot = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
        k = int(count.max()) if len(owner) else 1
        sources = torch.zeros(n_sites, k, dtype=source.dtype, device=source.device)
        vectors = vector.new_ones(n_sites, k, 3)
        weights = vector.new_zeros(n_sites, k)
        sources[owner, slot] = source[kept]
        vectors[owner, slot] = vector[kept]
        envelope = 0.5 * (1 + torch.cos(math.pi * distance[kept] / cutoff))
        weights[owner, slot] = envelope / math.sqrt(TYPICAL)
        return cls(sources, vectors, weights)


class ShortRangeMessages(nn.Module):
    """One message pass between close pairs, with the angles and distances of the geometry predicted so far.

    A displacement is read out from the vectors. The scalars of the neighbours, filtered by the resulting distances,
    are summed into the moments 1, e and e e^T - 1/3 of the surroundings of each site, which update scalars and
    vectors. This makes bonds that form or break visible to the next layers.

    Args:
        config: Sizes; ``short_range_cutoff`` is the cutoff of the neighbour table.
    """

    centres: Tensor

    def __init__(self, config: SiteNetworkConfig) -> None:
        super().__init__()
        width, channels, radial = config.features, config.short_range_features, config.short_range_n_radial
        self.channels = channels
        self.dropout = config.dropout
        last = config.short_range_cutoff + _FURTHER
        self.register_buffer("centres", torch.linspace(config.radial_min, last, radial), persistent=False)
        self.inverse_width = (radial - 1) / (last - config.radial_min)
        self.norm = nn.LayerNorm(width)
        self.guess_gate = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.guess_out = nn.Linear(width, 1, bias=False)
        self.actual = nn.Linear(radial, channels, bias=False)
        self.ideal = nn.Linear(radial, channels)
        self.sent = nn.Linear(width, channels)
        self.heard = nn.Linear(width, 3 * channels)
        self.scalar_out = nn.Sequential(nn.Linear(3 * channels, width), nn.SiLU(), nn.Linear(width, width))
        self.mix = nn.Linear(channels, channels, bias=False)
        self.vector_out = nn.Linear(2 * channels, width, bias=False)
        nn.init.normal_(self.guess_out.weight, std=0.1 / math.sqrt(width))
        for layer in (self.vector_out, self.scalar_out[2]):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.5 / math.sqrt(layer.in_features))

    def guess(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """Return the displacement predicted so far, shape ``(n_sites, batch, 3)``, in Å."""
        gate: Tensor = self.guess_gate(self.norm(scalars))
        out: Tensor = self.guess_out(gate[:, :, None] * vectors).squeeze(-1)
        return out

    def forward(
        self, table: PaddedNeighbors, guess: Tensor, scalars: Tensor, vectors: Tensor, chunk_bytes: int
    ) -> tuple[Tensor, Tensor]:
        """Return the updated scalars and vectors.

        Args:
            table: The neighbours.
            guess: Displacements predicted so far, shape ``(n_sites, batch, 3)``, in Å.
            scalars: Shape ``(n_sites, batch, F)``.
            vectors: Shape ``(n_sites, batch, 3, F)``.
            chunk_bytes: Size of the messages of one chunk of sites when no gradient is required.
        """
        channels = self.channels
        hidden = self.norm(scalars)
        moments = self._moments(table, guess.transpose(0, 1), self.sent(hidden).transpose(0, 1), chunk_bytes)
        moments = moments.transpose(0, 1)
        gate_0, gate_1, gate_2 = self.heard(hidden).split(channels, dim=-1)
        zeroth = moments[:, :, 0] * gate_0
        first = moments[:, :, 1:4] * gate_1[:, :, None]
        xx, yy, zz, xy, xz, yz = (moments[:, :, 4:] * gate_2[:, :, None]).unbind(2)
        mixed = self.mix(first)
        x, y, z = mixed.unbind(2)
        turned = torch.stack([xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z], 2)
        bound = (1 + first.square().sum(2)).rsqrt()  # products stay of degree one, as in the layers
        squares = xx * xx + yy * yy + zz * zz + 2 * (xy * xy + xz * xz + yz * yz)
        invariants = torch.cat([zeroth, (first * mixed).sum(2) * bound, (squares + 1e-6).sqrt()], -1)
        invariants = functional.dropout(invariants, self.dropout, self.training)
        covariants = torch.cat([first, turned * bound[:, :, None]], -1)
        return scalars + self.scalar_out(invariants), vectors + self.vector_out(covariants)

    def _moments(self, table: PaddedNeighbors, guess: Tensor, sent: Tensor, chunk_bytes: int) -> Tensor:
        """Sum 1, e and the components of e e^T - 1/3 over neighbours: ``(batch, n_sites, 10, channels)``."""
        n, k = table.source.shape
        row_bytes = 4 * len(guess) * k * self.channels * guess.element_size()
        step = n if torch.is_grad_enabled() else max(1, chunk_bytes // row_bytes)
        if step >= n:
            return self._moments_of(table, slice(None), guess, sent)
        parts = [self._moments_of(table, slice(i, i + step), guess, sent) for i in range(0, n, step)]
        return torch.cat(parts, dim=1)

    def _moments_of(self, table: PaddedNeighbors, sites: slice, guess: Tensor, sent: Tensor) -> Tensor:
        """Return the moments of some sites."""
        source, vector, weight = table.source[sites], table.vector[sites], table.weight[sites]
        n, k = source.shape
        batch = len(guess)
        flat = source.reshape(-1)
        edge = vector + guess.index_select(1, flat).view(batch, n, k, 3) - guess[:, sites][:, :, None]
        distance = (edge.square().sum(-1) + 1e-6).sqrt()
        x, y, z = (edge / distance[..., None]).unbind(-1)
        third = 1 / 3
        basis = torch.stack(
            [torch.ones_like(x), x, y, z, x * x - third, y * y - third, z * z - third, x * y, x * z, y * z], dim=2
        )
        basis = basis * weight[:, None]
        message = self.actual(self._gaussians(distance)) + self.ideal(self._gaussians(vector.norm(dim=-1)))
        message = message * sent.index_select(1, flat).view(batch, n, k, -1)
        summed = torch.bmm(basis.view(batch * n, 10, k), message.view(batch * n, k, -1))
        return summed.view(batch, n, 10, -1)

    def _gaussians(self, distance: Tensor) -> Tensor:
        return torch.exp(-0.5 * ((distance[..., None] - self.centres) * self.inverse_width).square())
