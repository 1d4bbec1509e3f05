"""The table of networks, by their names in checkpoints, training configs and model cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ase_definet.model.config import DefiNetConfig, HostRoutedConfig, NetworkConfig, SiteNetworkConfig
from ase_definet.model.definet import DefiNet
from ase_definet.model.host_routing import HostRoutedModel
from ase_definet.model.protocol import DisplacementModel
from ase_definet.model.site_network import SiteNetwork


@dataclass(frozen=True, slots=True)
class Architecture:
    """A kind of network.

    Attributes:
        config: Its sizes.
        model: The network.
        title: Its name on model cards.
        trainable: Whether it can be trained directly; others are combined from trained networks.
    """

    config: type[NetworkConfig]
    model: type[DisplacementModel]
    title: str
    trainable: bool = True


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "site": Architecture(SiteNetworkConfig, SiteNetwork, "site network on ideal host geometry"),
        "definet": Architecture(DefiNetConfig, DefiNet, "DefiNet as published"),
        "host_routed": Architecture(
            HostRoutedConfig, HostRoutedModel, "site networks on ideal host geometry, by host", trainable=False
        ),
    }
)
"""Networks by their names in checkpoints and training configs."""


def architecture_of(config: NetworkConfig) -> str:
    """Return the name of the architecture that a config is for.

    Raises:
        ValueError: There is none.
    """
    for name, entry in ARCHITECTURES.items():
        if type(config) is entry.config:
            return name
    raise ValueError(f"no architecture has a {type(config).__name__}; known: {', '.join(ARCHITECTURES)}")


def build_network(config: NetworkConfig) -> DisplacementModel:
    """Return a new network of these sizes with random weights."""
    model: Any = ARCHITECTURES[architecture_of(config)].model
    network: DisplacementModel = model(config)
    return network
