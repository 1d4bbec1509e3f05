"""Put trained networks for properties together: an ensemble with expected errors fitted to validation data."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ase_definet.checkpoints.card import HostRecord, ModelCard
from ase_definet.checkpoints.format import LoadedProperties, load_properties, save_checkpoint, write_card
from ase_definet.data import PackedDataset, PairGroup
from ase_definet.errors import CheckpointError
from ase_definet.matching.library import get_host
from ase_definet.model.architectures import ARCHITECTURES
from ase_definet.model.config import PropertyEnsembleConfig
from ase_definet.model.property_model import PropertyModel
from ase_definet.model.sparse_network import PropertyEnsemble, SparseNetwork
from ase_definet.structures.files import keep_existing
from ase_definet.structures.metrics import rank_correlation
from ase_definet.training.property_predictions import LabelledPredictions, labelled_predictions, sizes_in

Array: TypeAlias = NDArray[Any]

FOLDS = 5
_FLOOR = 0.1
"""Constant added to the spread, as a share of its median."""
_PRIOR = 0.02
"""Weight of keeping the slopes of a host near those of all hosts."""
_STEPS = 200
_RANKED = 3
"""Fewer values have no rank correlation."""

UNITS = "mean absolute errors in the units of the labels; of formation_energy per defect site"

LIMITS = (
    "Neutral defects on sites of these hosts, at fixed cell, in PBE, in cells of the size of the training data; no "
    "correction for periodic images. Energies are relative to the bulk phases of the elements."
)


def ensemble_of(members: Sequence[SparseNetwork]) -> PropertyEnsemble:
    """Return an ensemble of networks that know the same hosts and defects.

    Raises:
        ValueError: They do not.
    """
    config = PropertyEnsembleConfig(members=tuple(member.config for member in members))
    config.check()
    with torch.random.fork_rng(devices=[]):
        out = PropertyEnsemble(config)
    for own, given in zip(out.members, members, strict=True):
        own.load_state_dict(given.state_dict())
    return out.eval()


def write_ensemble(
    out: Path,
    members: Sequence[Path],
    data: Path,
    *,
    name: str,
    version: str,
    not_for: Sequence[tuple[str, Path]] = (),
    overwrite: bool = False,
) -> tuple[Path, dict[str, dict[str, dict[str, float]]]]:
    """Write one weights file of several networks, and its card.

    Args:
        out: File to write, ``*.safetensors``.
        members: Weights of single networks for properties.
        data: Packed data set; its validation split gives the expected errors.
        name: Name of the new weights.
        version: Their version.
        not_for: Hosts, separated by commas, and which of the members does not answer there: others know them better.
        overwrite: Replace files that are in the way.

    Returns:
        The file, and how reliable the expected errors are, by property and subset, from cross-validation.

    Raises:
        CheckpointError: A file cannot be read, or the networks do not go together.
    """
    keep_existing(out, out.with_suffix(".json"), overwrite=overwrite)
    loaded = [load_properties(path) for path in members]
    networks = []
    for path, one in zip(members, loaded, strict=True):
        if not isinstance(one.model, SparseNetwork):
            raise CheckpointError(f"{path}: expected a single network, found {one.architecture}")
        networks.append(one.model)
    for hosts, path in not_for:
        if path not in members:
            raise CheckpointError(f"{path} is none of the members: {', '.join(map(str, members))}")
        _silence(networks[list(members).index(path)], hosts)
    try:
        ensemble = ensemble_of(networks)
    except ValueError as error:
        raise CheckpointError(f"cannot put {', '.join(map(str, members))} together: {error}") from error
    pack = PackedDataset.open(data)
    found = list(labelled_predictions(ensemble, pack, "val"))
    reliability = fit_expected_errors(ensemble, found)
    card = _card(ensemble, loaded, found, name=name, version=version)
    card["expected_error"] = reliability
    card["property_scores"] = property_scores(ensemble, found, pack)
    save_checkpoint(out, ensemble, card, overwrite=overwrite)
    write_card(out, overwrite=overwrite)
    return out, reliability


def _silence(network: SparseNetwork, hosts: str) -> None:
    """Let a network answer on some hosts no longer.

    Raises:
        CheckpointError: It does not know one of them.
    """
    for name in filter(None, hosts.split(",")):
        key = tuple(sorted(get_host(name).numbers.tolist()))
        if key not in network.config.hosts:
            raise CheckpointError(f"host {name} is unknown to the network that should not serve it")
        network.trained[network.config.hosts.index(key)] = 0


def fit_expected_errors(
    ensemble: PropertyEnsemble, found: Sequence[LabelledPredictions]
) -> dict[str, dict[str, dict[str, float]]]:
    """Fit the expected errors of an ensemble to its errors on validation data.

    Args:
        ensemble: The ensemble; its weights of the expected error are set.
        found: Its predictions of validation data.

    Returns:
        By property and subset: ``mean_error``, ``mean_estimate``, ``rank_correlation`` and ``within_twice``; each
        estimate is from a fit to the other folds; additive properties per defect site.
    """
    out: dict[str, dict[str, dict[str, float]]] = {}
    additive = ensemble.config.additive
    for column, name in enumerate(ensemble.config.targets):
        rows = [_table_of(one, column) for one in found]
        table = np.concatenate(rows) if rows else np.empty((0, 5))
        if not len(table):
            continue
        subset = np.concatenate([np.full(len(r), k) for k, r in enumerate(rows)])
        weights = _fit(table, ensemble.error_weights.shape[0])
        ensemble.error_weights[:, column] = torch.as_tensor(weights, dtype=ensemble.error_weights.dtype)
        fold = np.random.default_rng(0).permutation(len(table)) % FOLDS
        estimate = np.zeros(len(table))
        for k in range(min(FOLDS, len(table))):
            own = _fit(table[fold != k], ensemble.error_weights.shape[0])
            estimate[fold == k] = estimated(own, table[fold == k])
        per = table[:, 3] if name in additive else np.ones(len(table))
        for k, one in enumerate(found):
            mine = subset == k
            if mine.any():
                row = _reliability(estimate[mine] / per[mine], table[mine, 2] / per[mine])
                out.setdefault(name, {})[one.group.subset] = row
    return out


def property_scores(
    network: PropertyModel, found: Sequence[LabelledPredictions], pack: PackedDataset
) -> dict[str, dict[str, dict[str, Any]]]:
    """Compare predictions of validation data with always saying the mean of the training data.

    Args:
        network: The network.
        found: Its predictions.
        pack: The data.

    Returns:
        By property and subset what a :class:`~ase_definet.checkpoints.card.PropertyScoreRecord` holds, additive
        properties per defect site; subsets without training labels, with less than three others, or with the same
        label everywhere are left out.
    """
    config = sizes_in(network)
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for column, name in enumerate(network.config.targets):
        for one in found:
            additive = name in config.additive
            per = np.maximum(one.n_defects, 1) if additive else np.ones(len(one.n_defects))
            labels, values = one.labels[:, column] / per, one.values[:, column] / per
            known = np.isfinite(labels)
            mean = _training_mean(one.group, pack, name, per_defect=additive)
            if known.sum() < _RANKED or mean is None or np.ptp(labels[known]) == 0:
                continue
            error, away = values[known] - labels[known], labels[known] - mean
            rank = rank_correlation(values[known], labels[known])
            row = {
                "host": one.group.host,
                "n": int(known.sum()),
                "mae": round(float(np.abs(error).mean()), 5),
                "mean_mae": round(float(np.abs(away).mean()), 5),
                "r2": round(1 - float((error**2).sum() / (away**2).sum()), 4),
            }
            out.setdefault(name, {})[one.group.subset] = row | (
                {"rank_correlation": round(rank, 4)} if np.isfinite(rank) else {}
            )
    return out


def _training_mean(group: PairGroup, pack: PackedDataset, name: str, *, per_defect: bool) -> float | None:
    """Return the mean label of the training structures of a group; None without any."""
    chosen = group.indices("train", relaxed=False)
    labels = np.asarray(group.labels[chosen, list(pack.labels).index(name)])
    if per_defect:
        count = (np.asarray(group.numbers[chosen]) != group.host_numbers).sum(axis=1)
        labels = labels / np.maximum(count, 1)
    known = labels[np.isfinite(labels)]
    return float(known.mean()) if len(known) else None


def _table_of(found: LabelledPredictions, column: int) -> Array:
    """Return the rows that expected errors are fitted to.

    Returns:
        Host, spread, absolute error, number of defects and weight of each labelled structure, shape ``(n, 5)``.
        Groups weigh the same, whatever their size: those of low density have the most structures and the smallest
        errors.
    """
    error = np.abs(found.values[:, column] - found.labels[:, column])
    spread = np.zeros(len(error)) if found.spread is None else found.spread[:, column]
    host = np.full(len(error), found.host)
    weight = np.full(len(error), 1 / max(int(np.isfinite(error).sum()), 1))
    table = np.stack([host, spread, error, np.maximum(found.n_defects, 1), weight], axis=1)
    return np.asarray(table[np.isfinite(error)])


def estimated(weights: Array, table: Array) -> Array:
    """Return expected errors for rows of host, spread, error and number of defects."""
    a, b, c, d = weights[table[:, 0].astype(int)].T
    return np.asarray(np.exp(a + b * np.log(table[:, 1] + c + 1e-6) + d * np.log(table[:, 3])))


def _fit(table: Array, n_hosts: int) -> Array:
    """Fit ``log(error) = a + b log(spread + c) + d log(n_defects)`` by host, the scale of a Laplace distribution."""
    everything = _fit_one(table, np.zeros(3), 0.0)
    floor = _FLOOR * float(np.median(table[:, 1]))
    out = np.tile([everything[0], everything[1], floor, everything[2]], (n_hosts, 1))
    for host in np.unique(table[:, 0].astype(int)):
        own = table[table[:, 0] == host]
        a, b, d = _fit_one(own, everything, _PRIOR, floor)
        out[host] = [a, b, floor, d]
    return out


def _fit_one(table: Array, prior: Array, weight: float, floor: float | None = None) -> Array:
    floor = _FLOOR * float(np.median(table[:, 1])) if floor is None else floor
    logs = torch.tensor(
        np.stack([np.ones(len(table)), np.log(table[:, 1] + floor + 1e-6), np.log(table[:, 3])], axis=1)
    )
    error = torch.tensor(table[:, 2])
    share = torch.tensor(table[:, 4] / table[:, 4].sum())
    begin = torch.tensor(prior, dtype=torch.double)
    parameters = begin.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([parameters], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scale = (logs @ parameters).clamp(-20, 10)
        kept = weight * (parameters[1:] - begin[1:]).square().sum()
        value = (share * (scale + error * (-scale).exp())).sum() + kept
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    out = parameters.detach().numpy()
    return np.asarray(out) if np.isfinite(out).all() else np.array([np.log(max(float(error.mean()), 1e-9)), 0.0, 0.0])


def _reliability(estimate: Array, error: Array) -> dict[str, float]:
    rank = rank_correlation(estimate, error)
    row = {
        "mean_error": float(error.mean()),
        "mean_estimate": float(estimate.mean()),
        "within_twice": float((error <= 2 * estimate).mean()),
    }
    return row | ({"rank_correlation": rank} if np.isfinite(rank) else {})


def _card(
    ensemble: PropertyEnsemble,
    loaded: Sequence[LoadedProperties],
    found: Sequence[LabelledPredictions],
    *,
    name: str,
    version: str,
) -> dict[str, Any]:
    first = loaded[0].card
    training = _joined_training([one.card for one in loaded])
    configs = [one.card.training.config for one in loaded if one.card.training is not None]
    validation: dict[str, dict[str, float]] = {}
    for one in found:
        error = np.abs(one.values - one.labels)
        for column, target in enumerate(ensemble.config.targets):
            own = error[:, column] / (np.maximum(one.n_defects, 1) if target in ensemble.config.additive else 1)
            if np.isfinite(own).any():
                validation.setdefault(one.group.subset, {})[target] = round(float(np.nanmean(own)), 5)
    return {
        "name": name,
        "version": version,
        "date": datetime.now(tz=UTC).date().isoformat(),
        "architecture": ARCHITECTURES["property_ensemble"].title,
        "parameters": sum(p.numel() for p in ensemble.parameters()),
        "attribution": first.attribution,
        "license": first.license,
        "training": {**training, "members": configs},
        "validation": validation,
        "units": UNITS,
        "limits": LIMITS,
    }


def _joined_training(cards: Sequence[ModelCard]) -> dict[str, Any]:
    """Return what any of several networks was trained on."""
    records = [card.training for card in cards if card.training is not None]
    hosts: dict[str, HostRecord] = {}
    for record in records:
        for name, host in record.hosts.items():
            hosts[name] = hosts[name].joined(host) if name in hosts else host
    labelled: dict[str, int] = {}
    for record in records:
        for name, count in (record.labelled_by_networks or {}).items():
            labelled[name] = max(count, labelled.get(name, 0))
    return {
        **({"labelled_by_networks": labelled} if labelled else {}),
        "elements": sorted({element for record in records for element in record.elements}),
        "hosts": {name: host.plain() for name, host in hosts.items()},
        "data_sha256": records[0].data_sha256 if records else None,
    }
