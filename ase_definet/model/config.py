"""Frozen sizes of a network; saved beside its weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteNetworkConfig:
    """Sizes of a :class:`~ase_definet.model.site_network.SiteNetwork`.

    Attributes:
        cutoff: Longest edge, in Å.
        features: Channels of scalars and of vectors.
        layers: Message passes.
        radial: Gaussians over the edge length.
        shortest: Centre of the first Gaussian, in Å.
        embedding: Size of the element, host-element and marker embeddings.
        neighbors: Typical number of neighbours; scales the messages.
    """

    cutoff: float = 7.0
    features: int = 64
    layers: int = 5
    radial: int = 24
    shortest: float = 0.8
    embedding: int = 16
    neighbors: float = 50.0
