"""Weights on disk: a versioned safetensors format, bundled models, and import of the authors' files.

A checkpoint is one safetensors file whose metadata names the format and its version, the architecture, its
config and a card saying where the weights come from. No pickled code is ever run.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import pickle
import re
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ase_definet.checkpoints.bundled import WEIGHTS as _WEIGHTS
from ase_definet.errors import CheckpointError
from ase_definet.model.config import DefiNetConfig, HostRoutedConfig, RoutedConfig, SiteNetworkConfig
from ase_definet.model.definet import DefiNet
from ase_definet.model.host_routing import HostRoutedModel
from ase_definet.model.site_network import SiteNetwork
from ase_definet.structures.files import keep_existing, replacing

FORMAT = "ase-definet"
FORMAT_VERSION = 2
"""The version this package reads and writes. Version 1 called vacancies ``V_X``, as if they were vanadium, and had no
digest of its content."""

SUFFIX = ".safetensors"

Config = SiteNetworkConfig | DefiNetConfig | HostRoutedConfig
_Single = typing.TypeVar("_Single", SiteNetworkConfig, DefiNetConfig)

ARCHITECTURES: Mapping[str, tuple[type[Config], type[nn.Module]]] = MappingProxyType(
    {
        "site": (SiteNetworkConfig, SiteNetwork),
        "definet": (DefiNetConfig, DefiNet),
        "host_routed": (HostRoutedConfig, HostRoutedModel),
    }
)
"""Config and network of each architecture, by the name written into checkpoints."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "ema", "ema_state_dict")
_ANCHOR = "atom_emb.embeddings.weight"
_NAMED = 5
_NO_SIZES = ("layers", "max_neighbors")
_MAY_BE_ZERO = ("short_range_cutoff", "dropout", "error_head_features")
_HARMLESS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A network with its weights, and what is known about them.

    Attributes:
        model: The network, in evaluation mode, on the CPU.
        config: Its sizes and cutoff.
        architecture: Its key in :data:`ARCHITECTURES`.
        card: Where the weights come from.
        sha256: Digest of the file they were read from.
    """

    model: nn.Module
    config: Config
    architecture: str
    card: dict[str, Any]
    sha256: str


def save_checkpoint(
    path: str | os.PathLike[str], model: nn.Module, card: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Write a network to one file, all of it or nothing.

    Args:
        path: File to write, by convention ``*.safetensors``.
        model: A network of one of the :data:`ARCHITECTURES`.
        card: What a user should know about the weights; plain JSON.
        overwrite: Replace a file that is in the way.

    Returns:
        The file written.

    Raises:
        CheckpointError: The architecture is unknown, the card is not plain JSON, or the directory is missing.
        OutputExistsError: The file exists and ``overwrite`` is False.
    """
    path = Path(path)
    known = [name for name, (_, network) in ARCHITECTURES.items() if type(model) is network]
    if not known:
        raise CheckpointError(
            f"cannot save a {type(model).__name__}; known architectures: {', '.join(ARCHITECTURES)}"
        )
    try:
        card_json = json.dumps(dict(card), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the card must be plain JSON without NaN: {error}") from error
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "architecture": known[0],
        "config": json.dumps(dataclasses.asdict(typing.cast("Any", model.config))),
        "card": card_json,
    }
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    write_tensors(path, metadata, tensors, overwrite=overwrite)
    return path


def load_checkpoint(path: str | os.PathLike[str]) -> LoadedModel:
    """Read a network that :func:`save_checkpoint` wrote.

    Args:
        path: The file.

    Returns:
        The network and its provenance.

    Raises:
        CheckpointError: The file is missing, damaged, not ours, too new, or does not fit its architecture.
    """
    path = Path(path)
    metadata, tensors = read_tensors(path)
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
    architecture = metadata.get("architecture", "")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} holds the unknown architecture {architecture!r}, expected one of"
            f" {', '.join(ARCHITECTURES)}; a newer ase-definet may know it"
        )
    values = parsed(path, metadata, "config")
    if architecture == "host_routed":
        model: nn.Module = _host_routed(path, values, tensors)
    else:
        kind: Any = ARCHITECTURES[architecture][0]
        model = _model(path, architecture, _config(path, kind, values), tensors)
    card = parsed(path, metadata, "card")
    # last: the checks before it say better what is wrong
    if metadata.get("content_sha256") != _content_sha256(metadata, tensors):
        raise CheckpointError(
            f"{path} is damaged: its content does not have the digest written with it; fetch or export it anew"
        )
    return LoadedModel(
        model=model,
        config=typing.cast("Any", model.config),
        architecture=architecture,
        card=card,
        sha256=_sha256(path),
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
    loaded = load_checkpoint(path)
    content = {
        "architecture": loaded.architecture,
        "config": dataclasses.asdict(loaded.config),
        "sha256": loaded.sha256,
        "card": loaded.card,
    }
    beside = path.with_suffix(".json") if path.suffix == SUFFIX else path.with_name(f"{path.name}.json")
    _write(beside, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(), overwrite=overwrite)
    return beside


def import_authors_checkpoint(
    source: str | os.PathLike[str], *, cutoff: float = 6.0, max_neighbors: int = 50, radial_range: float = 30.0
) -> LoadedModel:
    """Read weights saved by the authors' code: a pickled dictionary of tensors, its code never run.

    Sizes are read from the shapes. What no shape tells is taken from the arguments, whose defaults are those
    of the published training runs.

    Args:
        source: The file; the dictionary may be wrapped in another, and its names may share a prefix.
        cutoff: Longest edge of its training, in Å.
        max_neighbors: Most neighbours of a site in its training.
        radial_range: Length at which its radial envelope ended, in Å.

    Returns:
        The network; pass it to :func:`save_checkpoint` to keep it.

    Raises:
        CheckpointError: The file is missing, holds more than tensors, or does not fit the published network.
    """
    path = _existing(source)
    try:
        with warnings.catch_warnings():  # torch warns of pickle protocols it then reads or refuses
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a plain dictionary of tensors: it is damaged or carries pickled code, which is never run"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a PyTorch file, or is damaged: expected a file that torch.save wrote"
        ) from error
    tensors = _named_tensors(path, content)
    config = _authors_config(path, tensors, cutoff, max_neighbors, radial_range)
    card = {
        "origin": "imported from a file of the authors' code (Yang et al., npj Comput. Mater. 11, 229, 2025)",
        "source": path.name,
    }
    return LoadedModel(
        model=_model(path, "definet", config, tensors),
        config=config,
        architecture="definet",
        card=card,
        sha256=_sha256(path),
    )


def bundled_models() -> dict[str, Path]:
    """List the checkpoints that come with the package, by name."""
    return {path.stem: path for path in sorted(_WEIGHTS.glob(f"*{SUFFIX}"))}


def resolve_model(name_or_path: str | os.PathLike[str]) -> Path:
    """Find a checkpoint by the name of a bundled model or by its path.

    Args:
        name_or_path: A key of :func:`bundled_models`, which wins, or a file.

    Returns:
        The file.

    Raises:
        CheckpointError: There is neither; the message suggests the nearest name.
    """
    bundled = bundled_models()
    name = os.fspath(name_or_path)
    if name in bundled:
        return bundled[name]
    run = Path(name) if Path(name).is_dir() else Path(name).parent
    if (Path(name).is_dir() or Path(name).suffix == ".pt") and (run / "last.pt").exists():
        raise CheckpointError(
            f"{name} is a training run: export its weights with `ase-definet weights export {run} FILE`"
        )
    if Path(name).is_file():
        return Path(name)
    near = difflib.get_close_matches(name, bundled, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"bundled models: {', '.join(bundled) or 'none'}"
    raise CheckpointError(f"{name!r} is neither a bundled model nor a file; {hint}")


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise CheckpointError(f"expected a checkpoint at {path}, found {found}; check the path")
    return path


def _sha256(path: Path) -> str:
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
        with safe_open(_existing(path), framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged or truncated ({_line(error)}); fetch it again, and read"
            " files of the authors' code with import_authors_checkpoint"
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


def _config(path: Path, kind: type[_Single], values: Mapping[str, Any]) -> _Single:
    """Build a config; a field added after the file was written keeps its default, the behaviour of old."""
    expected = typing.get_type_hints(kind)
    if unknown := sorted(set(values) - set(expected)):
        raise CheckpointError(f"{path} has unknown settings {', '.join(unknown)}; upgrade ase-definet")
    for name, value in values.items():
        if expected[name] is bool:
            if not isinstance(value, bool):
                raise CheckpointError(f"{path} is damaged: {name} must be true or false, found {value!r}")
            continue
        whole = expected[name] is int
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            sort = "a whole number" if whole else "a number"
            raise CheckpointError(f"{path} is damaged: {name} must be {sort}, found {value!r}")
        least = "at least 0" if name in _MAY_BE_ZERO else "above 0"
        if not (math.isfinite(value) and (value > 0 or (value == 0 and name in _MAY_BE_ZERO))):
            raise CheckpointError(f"{path} is damaged: {name} must be finite and {least}, found {value!r}")
    return kind(**values)


def _model(
    path: Path, architecture: str, config: SiteNetworkConfig | DefiNetConfig, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Build a network around tensors that must fit it exactly."""
    network = ARCHITECTURES[architecture][1]
    if config.layers > len(tensors):
        raise CheckpointError(
            f"{path} does not fit {architecture}: {len(tensors)} tensors for {config.layers} layers"
        )
    # a damaged config must not fill the memory; building on the meta device would import torch._dynamo, a second long
    largest = max((size for value in tensors.values() for size in value.shape), default=0)
    largest = max(largest, _HARMLESS)
    sizes = [v for k, v in dataclasses.asdict(config).items() if isinstance(v, int) and k not in _NO_SIZES]
    if not all(size <= largest for size in sizes):
        raise CheckpointError(f"{path} is damaged: no {architecture} network has {config}")
    try:
        with torch.random.fork_rng(devices=[]):  # loading must not change the random numbers of the caller
            model = network(config)
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path} is damaged: no {architecture} network has {config}") from error
    expected = model.state_dict()
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(f"{path} does not fit {architecture}: missing {_some(missing)}")
    if extra := [name for name in tensors if name not in expected]:
        raise CheckpointError(f"{path} does not fit {architecture}: unexpected {_some(extra)}")
    for name, value in tensors.items():
        shape, found = tuple(expected[name].shape), tuple(value.shape)
        if shape != found:
            raise CheckpointError(f"{path} does not fit {architecture}: {name} must be {shape}, found {found}")
        if not (value.is_floating_point() and bool(value.isfinite().all())):
            raise CheckpointError(f"{path} holds weights that are not finite numbers, first in {name}")
    types = {value.dtype for value in tensors.values()}
    if len(types) != 1:
        raise CheckpointError(f"{path} mixes precisions {', '.join(sorted(map(str, types)))}, expected one")
    model = model.to(types.pop())
    model.load_state_dict(dict(tensors))
    return model.eval()


def _host_routed(path: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> HostRoutedModel:
    """Build several networks around the tensors of each."""
    try:
        hosts = [tuple(tuple(int(z) for z in host) for host in one["hosts"]) for one in values["routed"]]
        sizes = {"general": values["general"]} | {f"routed.{k}": x["model"] for k, x in enumerate(values["routed"])}
        unknown = sorted(set(values) - {"general", "routed"})
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: its config does not name general and routed") from error
    if unknown or not all(isinstance(one, dict) for one in sizes.values()):
        raise CheckpointError(f"{path} is damaged: its config must hold settings under general and routed only")
    models = {}
    for name, size in sizes.items():
        own = {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}
        models[name] = _model(path, "site", _config(path, SiteNetworkConfig, size), own)
    if extra := [key for key in tensors if not key.startswith(tuple(f"{name}." for name in sizes))]:
        raise CheckpointError(f"{path} does not fit host_routed: unexpected {_some(extra)}")
    general, *others = models.values()
    try:
        return combine(general, dict(zip(hosts, others, strict=True)))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def combine(general: nn.Module, routed: Mapping[tuple[tuple[int, ...], ...], nn.Module]) -> HostRoutedModel:
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
    own = {hosts: typing.cast("SiteNetwork", network) for hosts, network in routed.items()}
    first = typing.cast("SiteNetwork", general)
    if isinstance(general, HostRoutedModel):
        first = general.general
        taken = {host for hosts in own for host in hosts}
        for entry, network in zip(general.config.routed, general.networks[1:], strict=True):
            if left := tuple(host for host in entry.hosts if host not in taken):
                own[left] = network
    config = HostRoutedConfig(
        general=first.config,
        routed=tuple(RoutedConfig(hosts=hosts, model=network.config) for hosts, network in own.items()),
    )
    with torch.random.fork_rng(devices=[]):
        out = HostRoutedModel(config)
    for into, network in zip(out.networks, (first, *own.values()), strict=True):
        into.to(next(network.parameters()).dtype).load_state_dict(network.state_dict())
    return out.eval()


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _named_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """Unwrap a dictionary of tensors and strip the prefix its names share."""
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a dictionary of tensors, found {type(content).__name__}")
    odd = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd:
        raise CheckpointError(f"{path} must hold a dictionary of tensors, found other things under {_some(odd)}")
    anchors = (name for name in content if name.endswith(_ANCHOR))
    prefix = min(anchors, key=len, default=_ANCHOR).removesuffix(_ANCHOR)
    return {name.removeprefix(prefix): value for name, value in content.items()}


def _authors_config(
    path: Path, tensors: Mapping[str, Tensor], cutoff: float, max_neighbors: int, radial_range: float
) -> DefiNetConfig:
    """Read the sizes of a published network from the shapes of its tensors."""
    edge = "message_passing_layers.0.edge_proj.weight"
    for name in (_ANCHOR, edge):
        if name not in tensors:
            raise CheckpointError(f"{path} is not of the published network: missing {name}")
        if tensors[name].ndim != 2:  # noqa: PLR2004
            raise CheckpointError(f"{path} is not of the published network: {name} must be a matrix")
    layers = {found[1] for name in tensors if (found := re.match(r"message_passing_layers\.(\d+)\.", name))}
    n_elements, features = tensors[_ANCHOR].shape
    return DefiNetConfig(
        cutoff=cutoff,
        features=features,
        layers=len(layers),
        n_radial=tensors[edge].shape[1],
        max_neighbors=max_neighbors,
        radial_range=radial_range,
        n_elements=n_elements,
    )
