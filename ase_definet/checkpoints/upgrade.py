"""Convert weights of format version 1: the numbers stay the same, what is said of them takes its present names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ase_definet.checkpoints.format import FORMAT, FORMAT_VERSION, parsed, read_tensors, write_tensors
from ase_definet.errors import CheckpointError
from ase_definet.matching.naming import VACANCY_PREFIX

_SIZES: Mapping[str, str] = MappingProxyType(
    {
        "radial": "n_radial",
        "shortest": "radial_min",
        "neighbors": "avg_num_neighbors",
        "near_cutoff": "short_range_cutoff",
        "near_features": "short_range_features",
        "near_radial": "short_range_n_radial",
        "near_moves": "short_range_displaced",
        "starts": "noisy_starts",
        "error_hidden": "error_head_features",
    }
)
"""Names of the sizes of a network in version 1, and now."""

_TRAINING: Mapping[str, str] = MappingProxyType(
    {
        "batch": "batch_size",
        "rate": "learning_rate",
        "muon": "muon_lr_ratio",
        "warmup": "warmup_steps",
        "decay": "cosine_fraction",
        "patience": "plateau_patience",
        "factor": "plateau_factor",
        "clip": "max_grad_norm",
        "ema": "ema_decay",
        "auxiliary": "auxiliary_loss_weight",
        "corrupt": "noisy_start_fraction",
        "noise": "noise_std",
        "check": "validate_every",
        "save": "checkpoint_every",
        "check_size": "validation_size",
        "init": "initial_weights",
        "shares": "sampling_weights",
        "fraction": "training_fraction",
    }
)
"""Names of the values of a training run in version 1, and now."""

_CARD: Mapping[str, str] = MappingProxyType(
    {
        "experts": "routed",
        "uncertainty": "expected_error",
        "dummy": "ideal_sites",
        "dummy_a3": "ideal_sites_a3",
        "init": "initial_weights",
        "batch": "batch_size",
    }
)
"""Other keys of a card in version 1, and now."""

_TENSORS = (
    (re.compile(r"^experts\."), "routed."),
    (re.compile(r"^((?:general\.|routed\.\d+\.)?)near\."), r"\1short_range."),
    (re.compile(r"^((?:general\.|routed\.\d+\.)?)start\."), r"\1embed."),
    (re.compile(r"^((?:general\.|routed\.\d+\.)?)start_in$"), r"\1noisy_start"),
)
"""Names of the tensors of site networks in version 1, and now."""


def upgrade_checkpoint(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write weights of format version 1 anew in the present version; the numbers stay the same to the bit.

    Vacancies in the card, which version 1 called ``V_X``, become ``v_X``; settings, tensors and keys of the card take
    their present names.

    Args:
        source: A checkpoint of version 1.
        target: File to write.
        overwrite: Replace a file that is in the way.

    Returns:
        The file written.

    Raises:
        CheckpointError: It is not of version 1, or its networks were trained on vanadium, whose defects version 1
            did not tell from vacancies.
        OutputExistsError: The file exists and ``overwrite`` is False.
    """
    source, target = Path(source), Path(target)
    metadata, tensors = read_tensors(source)
    version = metadata.get("format_version")
    if metadata.get("format") != FORMAT or version != "1":
        raise CheckpointError(f"{source} has format version {version!r}, expected 1: nothing to upgrade")
    card = parsed(source, metadata, "card")
    if "V" in _training_elements(card):
        raise CheckpointError(
            f"{source} was trained on vanadium, and its card does not tell V_X, vanadium on X, from a vacancy; "
            "export the weights anew from their training run"
        )
    fresh, renamed = present_names(metadata, tensors, card, parsed(source, metadata, "config"))
    write_tensors(target, fresh, renamed, overwrite=overwrite)
    return target


def present_names(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor], card: dict[str, Any], config: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of version 1 under their present names."""
    architecture = metadata.get("architecture", "")
    fresh = dict(metadata) | {
        "format_version": str(FORMAT_VERSION),
        "architecture": "host_routed" if architecture == "experts" else architecture,
        "config": json.dumps(_sizes_renamed(config)),
        "card": json.dumps(_card_renamed(card)),
    }
    fresh.pop("content_sha256", None)
    if architecture not in {"site", "experts"}:
        return fresh, dict(tensors)
    renamed = {}
    for name, value in tensors.items():
        for pattern, present in _TENSORS:
            name = pattern.sub(present, name)  # noqa: PLW2901
        renamed[name] = value
    return fresh, renamed


def _sizes_renamed(config: Any) -> Any:
    """Return the config of one network, or of several, under its present names."""
    if isinstance(config, list):
        return [_sizes_renamed(entry) for entry in config]
    if not isinstance(config, Mapping):
        return config
    names = {**_SIZES, "experts": "routed"}
    return {names.get(name, name): _sizes_renamed(value) for name, value in config.items()}


def _training_renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run under its present names."""
    values = {_TRAINING.get(name, name): value for name, value in config.items()}
    return values | {"model": _sizes_renamed(values.get("model", {}))}


def _card_renamed(card: Any) -> Any:
    """Return a card under its present names, with ``v_X`` for ``V_X`` in its lists of defects, at any depth."""
    if isinstance(card, list):
        return [_card_renamed(value) for value in card]
    if not isinstance(card, Mapping):
        return card
    out: dict[str, Any] = {}
    for key, value in card.items():
        if key == "defects" and isinstance(value, list):
            out[key] = [re.sub(r"^V_", f"{VACANCY_PREFIX}_", name) for name in value]
        elif key == "config" and isinstance(value, Mapping):
            out[key] = _training_renamed(value)
        else:
            out[_CARD.get(key, key)] = _card_renamed(value)
    return out


def _training_elements(card: Any) -> set[str]:
    """Return the elements of all records of training in a card, at any depth."""
    if isinstance(card, Mapping):
        own = card.get("elements")
        found = {e for e in own if isinstance(e, str)} if isinstance(own, list) else set()
        return found.union(*(_training_elements(value) for value in card.values()))
    if isinstance(card, list):
        return set().union(*(_training_elements(value) for value in card))
    return set()
