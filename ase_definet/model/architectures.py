"""The table of networks, by their names in checkpoints, training configs and model cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ase_definet.model.config import (
    DefiNetConfig,
    HostRoutedConfig,
    NetworkConfig,
    PropertyEnsembleConfig,
    SiteNetworkConfig,
    SparseNetworkConfig,
)
from ase_definet.model.definet import DefiNet
from ase_definet.model.host_routing import HostRoutedModel
from ase_definet.model.property_model import PropertyModel
from ase_definet.model.protocol import DisplacementModel
from ase_definet.model.site_network import SiteNetwork
from ase_definet.model.sparse_network import PropertyEnsemble, SparseNetwork


@dataclass(frozen=True, slots=True)
class Architecture:
    """A kind of network.

    Attributes:
        config: Its sizes.
        model: The network.
        title: Its name on model cards.
        trainable: Whether it can be trained directly; others are combined from trained networks.
        properties: Whether it predicts properties of a structure, not displacements of its atoms.
    """

    config: type[NetworkConfig]
    model: type[DisplacementModel | PropertyModel]
    title: str
    trainable: bool = True
    properties: bool = False


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "site": Architecture(SiteNetworkConfig, SiteNetwork, "site network on ideal host geometry"),
        "definet": Architecture(DefiNetConfig, DefiNet, "DefiNet as published"),
        "host_routed": Architecture(
            HostRoutedConfig, HostRoutedModel, "site networks on ideal host geometry, by host", trainable=False
        ),
        "sparse": Architecture(SparseNetworkConfig, SparseNetwork, "sparse network of defect sites", properties=True),
        "property_ensemble": Architecture(
            PropertyEnsembleConfig,
            PropertyEnsemble,
            "ensemble of sparse networks of defect sites",
            trainable=False,
            properties=True,
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


def predicts_properties(config: NetworkConfig) -> bool:
    """Return whether a config is of a network for properties of a structure, not for displacements."""
    return ARCHITECTURES[architecture_of(config)].properties


def build_model(config: NetworkConfig) -> DisplacementModel | PropertyModel:
    """Return a new network of these sizes, of any kind, with random weights."""
    model: Any = ARCHITECTURES[architecture_of(config)].model
    network: DisplacementModel | PropertyModel = model(config)
    return network


def build_network(config: NetworkConfig) -> DisplacementModel:
    """Return a new network for displacements of these sizes with random weights.

    Raises:
        ValueError: The config is of a network for properties.
    """
    network = build_model(config)
    if not isinstance(network, DisplacementModel):
        raise ValueError(f"a {type(network).__name__} predicts properties, not displacements")  # noqa: TRY004
    return network
