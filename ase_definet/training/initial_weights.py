"""Initial weights of a run: which network of them, its sizes, and their record on the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

import torch

from ase_definet.checkpoints.card import ModelCard, RoutedRecord, TrainingRecord
from ase_definet.checkpoints.format import LoadedModel
from ase_definet.data import PairGroup
from ase_definet.errors import CheckpointError, DefiNetError, TrainingError
from ase_definet.model.architectures import ARCHITECTURES, architecture_of
from ase_definet.model.config import NetworkConfig
from ase_definet.model.protocol import DisplacementModel


def lineage_of(card: ModelCard | RoutedRecord) -> dict[str, Any]:
    """Return the record of the initial weights of a run, from their model card."""
    earlier = card.training or TrainingRecord()
    begun = {"name": card.name, "version": card.version, "steps": earlier.steps, "config": earlier.config}
    before = {} if earlier.initial_weights is None else {"initial_weights": earlier.initial_weights}
    return {"initial_weights": begun | before}


def network_of_groups(loaded: LoadedModel, groups: list[PairGroup]) -> tuple[DisplacementModel, dict[str, Any]]:
    """Return the network that serves all groups, and its lineage; the general one if they share no other."""
    networks = [one.network for one in loaded.model.served_networks()]
    found = [loaded.model.network_for(torch.as_tensor(group.host_numbers)) for group in groups]
    place = next(k for k, network in enumerate(networks) if network is found[0])
    if not place or any(one is not found[0] for one in found):
        return networks[0], lineage_of(loaded.card)
    cards = loaded.card.routed
    known = len(cards) == len(networks) - 1
    return networks[place], lineage_of(cards[place - 1] if known else RoutedRecord(hosts=[]))


def sizes_of(given: NetworkConfig, wanted: NetworkConfig) -> NetworkConfig:
    """Return the sizes of given weights with the dropout of the run; the error estimate is refitted."""
    changes = {
        "dropout": wanted.dropout,
        "error_head_features": 0,
        "states": given.states or wanted.states,
        "element_descriptors": getattr(given, "element_descriptors", False)
        or getattr(wanted, "element_descriptors", False),
    }
    return _changed(given, CheckpointError, changes)


def with_noisy_starts(model: NetworkConfig) -> NetworkConfig:
    """Return the config of a network whose atoms may start away from the host's sites.

    Raises:
        TrainingError: Its architecture does not support such starts.
    """
    return _changed(model, TrainingError, {"noisy_starts": True}, {"noisy_starts": "noisy_start_fraction"})


def _changed(
    model: NetworkConfig,
    refuse: type[DefiNetError],
    changes: Mapping[str, Any],
    names: Mapping[str, str] = MappingProxyType({}),
) -> NetworkConfig:
    """Return a config with some sizes changed.

    Args:
        model: The config.
        refuse: Exception raised if it has no such size, unless the value is false or zero.
        changes: Values by size.
        names: User-facing names of sizes, where they differ.
    """
    sizes: Any = model
    known = {f.name for f in fields(sizes)}
    for name, value in changes.items():
        if value and name not in known:
            title = ARCHITECTURES[architecture_of(model)].title
            raise refuse(f"{names.get(name, name)} is not known to {title}; set it to 0")
    out: NetworkConfig = replace(sizes, **{name: value for name, value in changes.items() if name in known})
    return out
