"""Weights on disk: a versioned safetensors format.

A checkpoint is one safetensors file whose metadata names the format and its version, the architecture, its
config and a card saying where the weights come from. No pickled code is ever run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ase_definet.checkpoints.bundled import SUFFIX
from ase_definet.checkpoints.card import ModelCard
from ase_definet.errors import CheckpointError
from ase_definet.model.architectures import ARCHITECTURES, architecture_of, build_model
from ase_definet.model.config import NetworkConfig
from ase_definet.model.property_model import PropertyModel
from ase_definet.model.protocol import DisplacementModel
from ase_definet.structures.files import keep_existing, replacing

FORMAT = "ase-definet"
FORMAT_VERSION = 2
"""The version this package reads and writes. Version 1 called vacancies ``V_X``, as if they were vanadium, and had no
digest of its content."""

_HALF = torch.float16
_COMPACT = "half"
_MATRIX = 2  # dimensions
_NAMED = 5
_NO_SIZES = ("layers", "max_neighbors")
_HARMLESS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """What is known about weights.

    Attributes:
        config: Its sizes and cutoff.
        architecture: Its key in :data:`~ase_definet.model.architectures.ARCHITECTURES`.
        card: Where the weights come from.
        sha256: Digest of the file they were read from.
    """

    config: NetworkConfig
    architecture: str
    card: ModelCard
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel(_Loaded):
    """A network for displacements with its weights, and what is known about them.

    Attributes:
        model: The network, in evaluation mode, on the CPU.
    """

    model: DisplacementModel


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoadedProperties(_Loaded):
    """A network for properties with its weights, and what is known about them.

    Attributes:
        model: The network, in evaluation mode, on the CPU.
    """

    model: PropertyModel


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    card: ModelCard | Mapping[str, Any],
    *,
    compact: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a network to one file, all of it or nothing.

    Args:
        path: File to write, by convention ``*.safetensors``.
        model: A network of one of the architectures in the table.
        card: What a user should know about the weights; plain JSON.
        compact: Store matrices in half precision. The file takes half the space; the network that is read from it
            computes in the precision it has now, with weights that were rounded.
        overwrite: Replace a file that is in the way.

    Returns:
        The file written.

    Raises:
        CheckpointError: The architecture is unknown, the card is not valid, the directory is missing, or a weight is
            too large for half precision.
        OutputExistsError: The file exists and ``overwrite`` is False.
    """
    path = Path(path)
    config: Any = getattr(model, "config", model)
    try:
        architecture = architecture_of(config)
    except ValueError as error:
        raise CheckpointError(f"cannot save a {type(model).__name__}: {error}") from error
    try:
        plain = (card if isinstance(card, ModelCard) else ModelCard.read(card)).plain()
    except ValueError as error:
        raise CheckpointError(f"cannot save {path}: {error}") from error
    try:
        card_json = json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the card must be plain JSON without NaN: {error}") from error
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "architecture": architecture,
        "config": json.dumps(dataclasses.asdict(config)),
        "card": card_json,
    }
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    if compact:
        metadata["matrices"] = _COMPACT
        tensors = _halved(path, tensors)
    write_tensors(path, metadata, tensors, overwrite=overwrite)
    return path


def _halved(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the matrices in half precision."""
    out = {name: value.to(_HALF) if value.ndim >= _MATRIX else value for name, value in tensors.items()}
    lost = [name for name, value in out.items() if not value.isfinite().all() and tensors[name].isfinite().all()]
    if lost:
        raise CheckpointError(
            f"cannot save {path} in half precision, which ends at {torch.finfo(_HALF).max:g}: larger weights in "
            f"{some_of(lost)}; save it in full"
        )
    return out


def _restored(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return tensors in the precision to compute in: that of a compact file's matrices is that of its vectors."""
    if metadata.get("matrices") != _COMPACT:
        return tensors
    others = {value.dtype for value in tensors.values() if value.ndim < _MATRIX}
    precision = others.pop() if len(others) == 1 else torch.float32
    return {name: value.to(precision) if value.ndim >= _MATRIX else value for name, value in tensors.items()}


def load_checkpoint(path: str | os.PathLike[str]) -> LoadedModel:
    """Read a network for displacements that :func:`save_checkpoint` wrote.

    Args:
        path: The file.

    Returns:
        The network and its provenance.

    Raises:
        CheckpointError: The file is missing, damaged, not ours, too new, does not fit its architecture, or holds a
            network for properties.
    """
    loaded = _load(path)
    if isinstance(loaded, LoadedProperties):
        raise CheckpointError(
            f"{path} holds a {ARCHITECTURES[loaded.architecture].title}, which predicts properties: it cannot relax; "
            "expected weights for displacements"
        )
    return loaded


def holds_properties(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is marked as weights for properties; whether it is sound is for loading it to say."""
    try:
        with safe_open(Path(path), framework="pt") as file:
            architecture = (file.metadata() or {}).get("architecture", "")
    except (SafetensorError, OSError):
        return False
    return architecture in ARCHITECTURES and ARCHITECTURES[architecture].properties


def load_properties(path: str | os.PathLike[str]) -> LoadedProperties:
    """Read a network for properties that :func:`save_checkpoint` wrote.

    Args:
        path: The file.

    Raises:
        CheckpointError: As for :func:`load_checkpoint`, or the file holds a network for displacements.
    """
    loaded = _load(path)
    if isinstance(loaded, LoadedModel):
        raise CheckpointError(
            f"{path} holds a {ARCHITECTURES[loaded.architecture].title}, which predicts displacements: "
            "expected weights for properties"
        )
    return loaded


def _load(path: str | os.PathLike[str]) -> LoadedModel | LoadedProperties:
    """Read a network of any kind.

    Args:
        path: The file.

    Returns:
        The network and its provenance.

    Raises:
        CheckpointError: The file is missing, damaged, not ours, too new, or does not fit its architecture.
    """
    path = Path(path)
    metadata, tensors = read_tensors(path)
    _check_version(path, metadata)
    architecture = metadata.get("architecture", "")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} holds the unknown architecture {architecture!r}, expected one of"
            f" {', '.join(ARCHITECTURES)}; a newer ase-definet may know it"
        )
    values, card_values = parsed(path, metadata, "config"), parsed(path, metadata, "card")
    try:
        config = ARCHITECTURES[architecture].config.parse(values)
        card = ModelCard.read(card_values)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged, or of a newer ase-definet: {error}") from error
    model = model_of(path, config, _restored(metadata, tensors))
    # last: the checks before it say better what is wrong
    if metadata.get("content_sha256") != _content_sha256(metadata, tensors):
        raise CheckpointError(
            f"{path} is damaged: its content does not have the digest written with it; fetch or export it anew"
        )
    known: dict[str, Any] = {
        "config": config,
        "architecture": architecture,
        "card": card,
        "sha256": file_sha256(path),
    }
    if isinstance(model, PropertyModel):
        return LoadedProperties(model=model, **known)
    return LoadedModel(model=model, **known)


def _check_version(path: Path, metadata: Mapping[str, str]) -> None:
    """Refuse files of other programs and of other versions of the format."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file of another program, expected one saved by ase-definet")
    version = metadata.get("format_version", "")
    if not version.isdecimal() or int(version) < 1:
        raise CheckpointError(f"{path} is damaged: format_version is {version!r}, expected a whole number")
    if int(version) > FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}, expected {FORMAT_VERSION}; upgrade ase-definet")
    if int(version) < FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, expected {FORMAT_VERSION}; convert it with "
            f"`ase-definet weights upgrade {path} NEW{SUFFIX}`"
        )


def write_card(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write what a checkpoint says about itself to ``<stem>.json`` beside it.

    Args:
        path: A checkpoint.
        overwrite: Replace a card that is in the way.

    Returns:
        The file written: architecture, config, SHA-256 of the checkpoint, and its card.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        OutputExistsError: The card exists and ``overwrite`` is False.
    """
    path = Path(path)
    loaded = _load(path)
    content = {
        "architecture": loaded.architecture,
        "config": dataclasses.asdict(typing.cast("Any", loaded.config)),
        "sha256": loaded.sha256,
        "card": loaded.card.plain(),
    }
    beside = path.with_suffix(".json") if path.suffix == SUFFIX else path.with_name(f"{path.name}.json")
    _write(beside, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(), overwrite=overwrite)
    return beside


def existing_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that must be there."""
    path = Path(path)
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise CheckpointError(f"expected a checkpoint at {path}, found {found}; check the path")
    return path


def file_sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: Exception) -> str:
    """Return the first line of a foreign error message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _write(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a file completely or not at all."""
    keep_existing(path, overwrite=overwrite)
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no directory {path.parent}; create it first")
    with replacing(path) as fresh:
        fresh.write_bytes(content)


def write_tensors(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor], *, overwrite: bool) -> None:
    """Write tensors and metadata with the digest of both."""
    digest = {"content_sha256": _content_sha256(metadata, tensors)}
    _write(path, save(tensors, metadata | digest), overwrite=overwrite)


def _content_sha256(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of everything a checkpoint says but the digest itself."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {"content_sha256"}):
        digest.update(f"{key}={metadata[key]}\0".encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of any safetensors file."""
    try:
        with safe_open(existing_file(path), framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged or truncated ({_line(error)}); fetch it again, and read"
            " files of the authors' code with `ase-definet weights import`"
        ) from error


def parsed(path: Path, metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """Return one JSON object of the metadata."""
    try:
        value = json.loads(metadata.get(name, ""))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: its {name} is not JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: its {name} must be a JSON object, found {type(value).__name__}")
    return value


def model_of(path: Path, config: NetworkConfig, tensors: Mapping[str, Tensor]) -> DisplacementModel | PropertyModel:
    """Build a network around tensors that must fit it exactly.

    Args:
        path: Where they are from, for messages.
        config: Sizes of the network.
        tensors: Its weights by name.

    Returns:
        The network, in evaluation mode.

    Raises:
        CheckpointError: They do not fit, or are not finite.
    """
    architecture = architecture_of(config)
    parts = {
        name: {key: value for key, value in tensors.items() if key.startswith(f"{name}." if name else "")}
        for name in config.parts
    }
    for name, part in config.parts.items():
        _check_size(path, architecture, part, parts[name])
    try:
        with torch.random.fork_rng(devices=[]):  # loading must not change the random numbers of the caller
            model = build_model(config)
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path} is damaged: no {architecture} network has {config}") from error
    _check_tensors(path, architecture, model.state_dict(), tensors)
    for name, own in parts.items():
        types = {value.dtype for value in own.values()}
        if len(types) != 1:
            raise CheckpointError(f"{path} mixes precisions {', '.join(sorted(map(str, types)))}, expected one")
        model.get_submodule(name).to(types.pop())
    for name in set(tensors) - {key for own in parts.values() for key in own}:  # of the ensemble itself
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, leaf, getattr(owner, leaf).to(tensors[name].dtype))
    model.load_state_dict(dict(tensors))
    return model.eval()


def _check_size(path: Path, architecture: str, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Refuse sizes that no tensor has, before a network of them fills the memory.

    Building the network on the meta device instead would import ``torch._dynamo``, which takes a second.
    """
    if config.layers > len(tensors):
        raise CheckpointError(
            f"{path} does not fit {architecture}: {len(tensors)} tensors for {config.layers} layers"
        )
    largest = max((size for value in tensors.values() for size in value.shape), default=0)
    sizes = [v for k, v in dataclasses.asdict(config).items() if isinstance(v, int) and k not in _NO_SIZES]
    if max(sizes) > max(largest, _HARMLESS):
        raise CheckpointError(f"{path} is damaged: no {architecture} network has {config}")


def _check_tensors(
    path: Path, architecture: str, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Check that tensors are those of a network, and finite."""
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(f"{path} does not fit {architecture}: missing {some_of(missing)}")
    if extra := [name for name in tensors if name not in expected]:
        raise CheckpointError(f"{path} does not fit {architecture}: unexpected {some_of(extra)}")
    for name, value in tensors.items():
        shape, found = tuple(expected[name].shape), tuple(value.shape)
        if shape != found:
            raise CheckpointError(f"{path} does not fit {architecture}: {name} must be {shape}, found {found}")
        if not (value.is_floating_point() and bool(value.isfinite().all())):
            raise CheckpointError(f"{path} holds weights that are not finite numbers, first in {name}")


def some_of(names: list[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
