"""Make one weights file of several: a general network, and others for the hosts they were trained on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.card import ModelCard, RoutedRecord, TrainingRecord
from ase_definet.checkpoints.format import LoadedModel, load_checkpoint, save_checkpoint, write_card
from ase_definet.errors import CheckpointError
from ase_definet.matching.host import Host
from ase_definet.matching.library import get_host
from ase_definet.model.architectures import ARCHITECTURES
from ase_definet.model.config import HostRoutedConfig, RoutedConfig, SiteNetworkConfig
from ase_definet.model.host_routing import HostRoutedModel
from ase_definet.model.protocol import DisplacementModel
from ase_definet.structures.files import keep_existing

PathLike: TypeAlias = str | os.PathLike[str]


def combine(
    general: DisplacementModel, routed: Mapping[tuple[tuple[int, ...], ...], DisplacementModel]
) -> HostRoutedModel:
    """Make one network of several site networks.

    Args:
        general: The one for all other hosts. If that is combined itself, it brings its other networks along.
        routed: The others, by the elements of the hosts they are for: ``{((31, 34), (34, 49)): network}``. They take
            the place of any that ``general`` has for these hosts.

    Returns:
        The network, in evaluation mode; it has its own copies of the weights.

    Raises:
        ValueError: They have different cutoffs, only some estimate their errors, or two are for one host.
    """
    own = dict(routed)
    taken = {host for hosts in own for host in hosts}
    first, *others = general.served_networks()
    for hosts, network in others:
        if left := tuple(host for host in hosts if host not in taken):
            own[left] = network
    config = HostRoutedConfig(
        general=_sizes(first[1]),
        routed=tuple(RoutedConfig(hosts=hosts, model=_sizes(network)) for hosts, network in own.items()),
    )
    with torch.random.fork_rng(devices=[]):
        out = HostRoutedModel(config)
    for into, network in zip(out.networks, (first[1], *own.values()), strict=True):
        into.to(next(network.parameters()).dtype).load_state_dict(network.state_dict())
    return out.eval()


def _sizes(network: DisplacementModel) -> SiteNetworkConfig:
    return cast("SiteNetworkConfig", network.config)


def combine_weights(
    out: PathLike,
    general: PathLike,
    routed: Mapping[tuple[str, ...], PathLike],
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
    networks: dict[tuple[tuple[int, ...], ...], DisplacementModel] = {}
    for hosts, loaded in others.items():
        elements = tuple(dict.fromkeys(map(_elements, served[hosts])))
        if elements in networks:
            raise CheckpointError(
                f"two weights for {', '.join(hosts)}: hosts are told apart by their elements; give one"
            )
        networks[elements] = _one_of(loaded, served[hosts], routed[hosts])
    _check_combinable(first, general)
    try:
        network = combine(first.model, networks)
    except ValueError as error:
        raise CheckpointError(
            f"cannot combine {general} with {', '.join(map(str, routed.values()))}: {error}"
        ) from error
    names = {hosts: [host.name for host in served[hosts]] for hosts in others}
    card = combined_card(first.card, [(names[hosts], loaded.card) for hosts, loaded in others.items()])
    card = card.changed(
        name=name,
        version=version,
        date=datetime.now(tz=UTC).date().isoformat(),
        architecture=ARCHITECTURES["host_routed"].title,
        parameters=sum(p.numel() for p in network.parameters()),
    )
    done = save_checkpoint(out, network, card, overwrite=overwrite)
    write_card(done, overwrite=overwrite)
    return done


def _check_combinable(loaded: LoadedModel, path: PathLike) -> None:
    """Refuse networks that cannot be among several.

    Raises:
        CheckpointError: It is one of those.
    """
    if not loaded.model.combinable:
        raise CheckpointError(f"{path}: expected weights of a site network, found {loaded.architecture}")


def _one_of(loaded: LoadedModel, hosts: list[Host], path: PathLike) -> DisplacementModel:
    """Return the network of some weights that serves these hosts."""
    _check_combinable(loaded, path)
    found = [loaded.model.network_for(torch.as_tensor(host.numbers)) for host in hosts]
    if any(one is not found[0] for one in found):
        names = ", ".join(host.name for host in hosts)
        raise CheckpointError(f"{path} has several networks for {names}; name the hosts of each by themselves")
    return found[0]


def _elements(host: Host) -> tuple[int, ...]:
    return tuple(int(z) for z in np.unique(host.numbers))


def combined_card(general: ModelCard, others: Iterable[tuple[list[str], ModelCard]]) -> ModelCard:
    """Return the card of several networks: of each host it says what the card of its own network does.

    Args:
        general: Card of the network for all other hosts.
        others: Names of hosts, and the card of the network that serves them.
    """
    card, new = general, []
    for hosts, own in others:
        card = _take_over(card, own, hosts)
        kept = {"name": own.name, "version": own.version, "parameters": own.parameters}
        training = own.training.plain() if own.training else None
        new.append(RoutedRecord.model_validate({"hosts": hosts, **kept, "training": training}))
    taken = {host for one in new for host in one.hosts}
    left = [
        one.model_copy(update={"hosts": [host for host in one.hosts if host not in taken]}) for one in general.routed
    ]
    return card.changed(routed=[one.plain() for one in (*new, *left) if one.hosts])


def _take_over(card: ModelCard, own: ModelCard, hosts: list[str]) -> ModelCard:
    """Return a card that says of some hosts what another one does."""
    entries: dict[str, Any] = {
        "validation": _merged(card.plain().get("validation"), own.plain().get("validation"), hosts),
        "expected_error": _merged(card.expected_error, own.expected_error, hosts),
    }
    before, other = card.training or TrainingRecord(), own.training or TrainingRecord()
    known = {host: row.plain() for host, row in other.hosts.items() if host in hosts}
    if card.training or known:
        entries["training"] = before.plain() | {
            "elements": sorted({*before.elements, *other.elements}),
            "hosts": {host: row.plain() for host, row in before.hosts.items()} | known,
        }
    return card.changed(**entries)


def _merged(card: Mapping[str, Any] | None, own: Mapping[str, Any] | None, hosts: list[str]) -> dict[str, Any]:
    """Return what two cards say of subsets, those of some hosts from the second."""
    theirs = {k: row for k, row in (own or {}).items() if k.rpartition("/")[2] in hosts}
    kept = {k: row for k, row in (card or {}).items() if k in theirs or k.rpartition("/")[2] not in hosts}
    return kept | theirs
