"""Make one weights file of several: a general network, and others for the hosts they were trained on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from ase.data import atomic_numbers

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.card import ModelCard, RoutedRecord, TrainingRecord
from ase_definet.checkpoints.format import LoadedModel, load_checkpoint, save_checkpoint, write_card
from ase_definet.errors import CheckpointError
from ase_definet.matching.host import Host
from ase_definet.matching.library import get_host
from ase_definet.model.architectures import ARCHITECTURES
from ase_definet.model.config import Coverage, HostRoutedConfig, RoutedConfig, SiteNetworkConfig
from ase_definet.model.host_routing import HostRoutedModel
from ase_definet.model.protocol import DisplacementModel, Served
from ase_definet.structures.files import keep_existing
from ase_definet.structures.state import MAX_MULTIPLICITY, State

PathLike: TypeAlias = str | os.PathLike[str]


Hosts: TypeAlias = tuple[tuple[int, ...], ...]


def combine(
    general: DisplacementModel,
    routed: Mapping[Hosts, DisplacementModel],
    kept: Mapping[tuple[int, ...], Coverage] = MappingProxyType({}),
) -> HostRoutedModel:
    """Make one network of several site networks.

    Args:
        general: The one for all other hosts. If that is combined itself, it brings its other networks along.
        routed: The others, by the elements of the hosts they are for: ``{((31, 34), (34, 49)): network}``. They take
            the place of any that ``general`` has for these hosts.
        kept: What the network that ``general`` has for a host goes on serving beside the new one.

    Returns:
        The network, in evaluation mode; it has its own copies of the weights.

    Raises:
        ValueError: They have different cutoffs, only some estimate their errors, or two are for one host.
    """
    taken = {host for hosts in routed for host in hosts}
    first, *others = general.served_networks()
    beside = [
        Served((host,), one.network, kept[host])
        for one in others
        for host in one.hosts
        if host in taken and host in kept and one.coverage is None
    ]
    new = [Served(hosts, network, None) for hosts, network in routed.items()]
    left = [
        Served(hosts, one.network, one.coverage)
        for one in others
        if (hosts := tuple(host for host in one.hosts if host not in taken))
    ]
    every = [*beside, *new, *left]
    config = HostRoutedConfig(
        general=_sizes(first.network),
        routed=tuple(
            RoutedConfig(hosts=one.hosts, model=_sizes(one.network), coverage=one.coverage) for one in every
        ),
    )
    with torch.random.fork_rng(devices=[]):
        out = HostRoutedModel(config)
    for into, one in zip(out.networks, (first, *every), strict=True):
        into.to(next(one.network.parameters()).dtype).load_state_dict(one.network.state_dict())
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
    beside: bool = False,
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
        beside: Let the network that a host has already go on serving what it was trained on (elements, charges,
            functionals, layer or crystal, as its card says), and the new one the rest.
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
                f"two weights for {', '.join(hosts)}: hosts are distinguished by their elements; give one"
            )
        networks[elements] = _one_of(loaded, served[hosts], routed[hosts])
    _check_combinable(first, general)
    names = {hosts: [host.name for host in served[hosts]] for hosts in others}
    kept = kept_coverage(first.card, [host for hosts in served.values() for host in hosts]) if beside else {}
    try:
        network = combine(first.model, networks, kept)
    except ValueError as error:
        raise CheckpointError(
            f"cannot combine {general} with {', '.join(map(str, routed.values()))}: {error}"
        ) from error
    card = combined_card(first.card, [(names[hosts], loaded.card) for hosts, loaded in others.items()], beside=beside)
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
        raise CheckpointError(f"{path} has several networks for {names}; give the hosts of each network separately")
    return found[0]


def _elements(host: Host) -> tuple[int, ...]:
    return tuple(int(z) for z in np.unique(host.numbers))


def kept_coverage(card: ModelCard, hosts: Iterable[Host]) -> dict[tuple[int, ...], Coverage]:
    """Return what the networks that some hosts have already were trained on, by the elements of the host."""
    out = {}
    for host in hosts:
        own = next((one.training for one in card.routed if host.name in one.hosts), card.training)
        record = own.hosts.get(host.name) if own else None
        if own is None or record is None:
            continue
        seen: tuple[Iterable[State], ...] = (
            (State(charge=charge) for charge in record.charges),
            (State(spin_multiplicity=m) for m in record.spin_multiplicities or range(1, MAX_MULTIPLICITY + 1)),
            (State(functional=functional) for functional in record.functionals),
            (State(excited=excited) for excited in ((False, True) if record.excited else (False,))),
        )
        out[_elements(host)] = Coverage(
            elements=tuple(sorted(atomic_numbers[symbol] for symbol in own.elements)),
            states=tuple(tuple(sorted({one.codes[k] for one in states})) for k, states in enumerate(seen)),
            layered=host.layered,
        )
    return out


def combined_card(
    general: ModelCard, others: Iterable[tuple[list[str], ModelCard]], *, beside: bool = False
) -> ModelCard:
    """Return the card of several networks: of each host it says what the card of its own network does.

    Args:
        general: Card of the network for all other hosts.
        others: Names of hosts, and the card of the network that serves them.
        beside: Whether networks that these hosts have already go on serving what they were trained on.
    """
    own_record = general.general or general.training
    kept_record = {k: v for k, v in own_record.plain().items() if k in {"elements", "hosts"}} if own_record else None
    card = general.changed(general=kept_record) if kept_record else general
    new: list[RoutedRecord] = []
    for hosts, own in others:
        card = _take_over(card, own, hosts, beside=beside)
        training = own.training.plain() if own.training else None
        entry = {"hosts": hosts, "name": own.name, "version": own.version, "parameters": own.parameters}
        new.append(RoutedRecord.model_validate({**entry, "training": training}))
    taken = {host for one in new for host in one.hosts}
    left = [
        one.model_copy(update={"hosts": [host for host in one.hosts if host not in taken]}) for one in general.routed
    ]
    kept = [
        one.model_copy(update={"hosts": [host], "beside": True})
        for one in general.routed
        for host in one.hosts
        if beside and host in taken and not one.beside
    ]
    return card.changed(routed=[one.plain() for one in (*kept, *new, *left) if one.hosts])


def _take_over(card: ModelCard, own: ModelCard, hosts: list[str], *, beside: bool) -> ModelCard:
    """Return a card that says of some hosts what another one does, besides what it said of them or instead."""
    entries: dict[str, Any] = {
        "validation": _merged(card.plain().get("validation"), own.plain().get("validation"), hosts, beside=beside),
        "expected_error": _merged(card.expected_error, own.expected_error, hosts, beside=beside),
    }
    before, other = card.training or TrainingRecord(), own.training or TrainingRecord()
    known = {host: row for host, row in other.hosts.items() if host in hosts}
    if beside:
        known = {host: before.hosts[host].joined(row) if host in before.hosts else row for host, row in known.items()}
    if card.training or known:
        entries["training"] = before.plain() | {
            "elements": sorted({*before.elements, *other.elements}),
            "hosts": {host: row.plain() for host, row in {**before.hosts, **known}.items()},
        }
    if beside and own.attribution and own.attribution not in (card.attribution or ""):
        entries["attribution"] = f"{card.attribution or ''} {own.attribution}".strip()
    return card.changed(**entries)


def _merged(
    card: Mapping[str, Any] | None, own: Mapping[str, Any] | None, hosts: list[str], *, beside: bool
) -> dict[str, Any]:
    """Return what two cards say of subsets, those of some hosts from the second; with ``beside``, all of both."""
    if beside:  # what both were scored on, the one that was there before goes on serving
        return {**(own or {}), **(card or {})}
    theirs = {k: row for k, row in (own or {}).items() if k.rpartition("/")[2] in hosts}
    kept = {k: row for k, row in (card or {}).items() if k in theirs or k.rpartition("/")[2] not in hosts}
    return kept | theirs
