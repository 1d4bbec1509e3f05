"""Make one weights file of several: a general network, and others for the hosts they were trained on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ase_definet.checkpoints.format import (
    LoadedModel,
    combine,
    load_checkpoint,
    resolve_model,
    save_checkpoint,
    write_card,
)
from ase_definet.errors import CheckpointError
from ase_definet.matching.host import Host
from ase_definet.matching.library import get_host
from ase_definet.model.host_routing import HostRoutedModel
from ase_definet.model.site_network import SiteNetwork
from ase_definet.structures.files import keep_existing

_OF_SUBSETS = ("validation", "expected_error")
"""Entries of a card that hold one entry for each subset."""


def combine_weights(
    out: str | os.PathLike[str],
    general: str | os.PathLike[str],
    routed: Mapping[tuple[str, ...], str | os.PathLike[str]],
    *,
    name: str,
    version: str,
    overwrite: bool = False,
) -> Path:
    """Write one weights file that runs another network on some hosts.

    A host is known by its elements, however many layers it has.

    Args:
        out: File to write, ``*.safetensors``; its card goes beside it as ``*.json``.
        general: Weights for all hosts that have no others: a bundled name or a file. Combined ones bring their other
            networks along.
        routed: Weights by the hosts they are for, names or files, as in ``{("GaSe", "InSe"): "gase.safetensors"}``.
        name: Name of the new weights.
        version: Version of the new weights.
        overwrite: Replace files that are in the way.

    Returns:
        The file written.

    Raises:
        CheckpointError: A file cannot be read, is of the published network, or does not go with the others.
        HostError: A host is not known.
        OutputExistsError: A file is in the way and ``overwrite`` is False.
    """
    keep_existing(Path(out), Path(out).with_suffix(".json"), overwrite=overwrite)
    first = load_checkpoint(resolve_model(general))
    others = {hosts: load_checkpoint(resolve_model(path)) for hosts, path in routed.items()}
    served = {hosts: [get_host(host) for host in hosts] for hosts in others}
    networks = {}
    for hosts, loaded in others.items():
        elements = tuple(dict.fromkeys(map(_elements, served[hosts])))
        if elements in networks:
            raise CheckpointError(
                f"two weights for {', '.join(hosts)}: hosts are told apart by their elements; give one"
            )
        networks[elements] = _one_of(loaded, served[hosts], routed[hosts])
    if first.architecture not in {"site", "host_routed"}:
        raise CheckpointError(f"{general}: expected weights of site networks, found {first.architecture}")
    try:
        network = combine(first.model, networks)
    except ValueError as error:
        raise CheckpointError(
            f"cannot combine {general} with {', '.join(map(str, routed.values()))}: {error}"
        ) from error
    card = dict(first.card) | {
        "name": name,
        "version": version,
        "date": datetime.now(tz=UTC).date().isoformat(),
        "architecture": "site networks on ideal host geometry, by host",
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    new: list[dict[str, Any]] = []
    for hosts, loaded in others.items():
        names = [host.name for host in served[hosts]]
        _take_over(card, loaded.card, names)
        kept = {key: loaded.card.get(key) for key in ("name", "version", "parameters", "training")}
        new.append({"hosts": names} | kept)
    taken = {host for one in new for host in one["hosts"]}
    old = [one | {"hosts": [host for host in one["hosts"] if host not in taken]} for one in card.get("routed", [])]
    card["routed"] = new + [one for one in old if one["hosts"]]
    done = save_checkpoint(out, network, card, overwrite=overwrite)
    write_card(done, overwrite=overwrite)
    return done


def _one_of(loaded: LoadedModel, hosts: list[Host], path: str | os.PathLike[str]) -> nn.Module:
    """Return the network of some weights that serves these hosts."""
    if not isinstance(loaded.model, SiteNetwork | HostRoutedModel):
        raise CheckpointError(f"{path}: expected weights of a site network, found {loaded.architecture}")
    found = [loaded.model.network_for(torch.as_tensor(host.numbers)) for host in hosts]
    if any(one is not found[0] for one in found):
        names = ", ".join(host.name for host in hosts)
        raise CheckpointError(f"{path} has several networks for {names}; name the hosts of each by themselves")
    return found[0]


def _elements(host: Host) -> tuple[int, ...]:
    return tuple(int(z) for z in np.unique(host.numbers))


def _take_over(card: dict[str, Any], own: Mapping[str, Any], hosts: list[str]) -> None:
    """Let a card say of some hosts what another one does."""
    for key in _OF_SUBSETS:
        theirs = {k: row for k, row in own.get(key, {}).items() if k.rpartition("/")[2] in hosts}
        kept = {k: row for k, row in card.get(key, {}).items() if k in theirs or k.rpartition("/")[2] not in hosts}
        card[key] = kept | theirs
    training, other = dict(card.get("training") or {}), own.get("training") or {}
    known = {host: row for host, row in other.get("hosts", {}).items() if host in hosts}
    if training or known:
        elements = set(training.get("elements", [])) | set(other.get("elements", []))
        training |= {"elements": sorted(elements), "hosts": training.get("hosts", {}) | known}
        card["training"] = training
