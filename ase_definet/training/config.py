"""Everything a training run depends on, from a TOML file or a preset."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from ase_definet.errors import TrainingError
from ase_definet.model.config import DefiNetConfig, SiteNetworkConfig

ModelConfig: TypeAlias = SiteNetworkConfig | DefiNetConfig

CONFIG = "config.json"
"""File in the folder of a run that keeps its config."""

MODELS: Mapping[str, type[ModelConfig]] = MappingProxyType({"site": SiteNetworkConfig, "definet": DefiNetConfig})
"""Config of each architecture, by the name in ``[model] architecture``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything a run depends on.

    Attributes:
        data: The packed data set, a file made by ``ase-definet data pack``.
        out: Folder for checkpoints and logs.
        sampling_weights: Share of the steps that each subset gets, by name (``high/MoS2``); only these are
            trained on. Empty for all, in proportion to the square roots of their numbers of pairs.
        model: Sizes of the network; its type is the architecture.
        training_fraction: Share of the training pairs that is used, the same ones every time.
        steps: Length of the run.
        batch_size: Structures a step, over all devices together.
        optimizer: ``adamw``, or ``muon`` (Jordan et al., 2024): steps along orthogonalised momentum for the matrices
            between channels, AdamW for all else; some 9 % less error after 400 steps (docs/results.md).
        learning_rate: Peak learning rate.
        muon_lr_ratio: How many times ``learning_rate`` is the rate of the matrices under ``muon``.
        warmup_steps: Steps of linear warm-up, at most a fifth of the run.
        schedule: ``cosine`` (plateau, then to zero) or ``plateau`` (falls where validation no longer does).
        cosine_fraction: Last share of the run over which the cosine falls.
        plateau_patience: Checks without gain before the ``plateau`` schedule multiplies the rate.
        plateau_factor: What it multiplies with.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Largest norm of the gradient.
        ema_decay: Decay of the moving average of the weights, which is what is validated and exported.
        loss: ``length`` of each atom's error, as published, or ``components``, what the coordinate MAE scores.
        auxiliary_loss_weight: Weight of the loss of the guesses between layers.
        noisy_start_fraction: Share of the training structures whose atoms start somewhere between the host's sites
            and their relaxed places, with noise, instead of on the sites (Godwin et al., ICLR 2022, "Noisy Nodes");
            makes the network one with ``noisy_starts``.
        noise_std: Mean standard deviation of that noise, drawn evenly between zero and twice this, in Å.
        state_dropout: Share of the training structures whose charge is withheld, and likewise their spin
            multiplicity, functional and excitation, so that a network with ``states`` also answers where they are
            unknown.
        seed: Of initial weights, data order and dropout.
        validate_every: Steps between validations.
        checkpoint_every: Steps between checkpoints.
        validation_size: Structures a group in the running validation; all at the end.
        initial_weights: Weights to start from, bundled ones by name (``default``) or a file; their architecture
            and sizes replace ``model``.
        accelerator: ``auto``, ``cpu`` or ``cuda``.
        devices: Devices a node.
        nodes: Nodes, under SLURM or torchrun.
        precision: ``32-true`` or ``bf16-mixed``.
        tf32: Whether CUDA may multiply matrices in tf32.
        attribution: Whom to cite for the data; goes on the card.
        license: Of the weights; goes on the card.
    """

    data: str
    out: str
    sampling_weights: Mapping[str, float] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=SiteNetworkConfig)
    training_fraction: float = 1.0
    steps: int = 30000
    batch_size: int = 16
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1.5e-3
    muon_lr_ratio: float = 10.0
    warmup_steps: int = 500
    schedule: Literal["cosine", "plateau"] = "cosine"
    cosine_fraction: float = 0.4
    plateau_patience: int = 5
    plateau_factor: float = 0.8
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    loss: Literal["length", "components"] = "length"
    auxiliary_loss_weight: float = 0.0
    noisy_start_fraction: float = 0.0
    noise_std: float = 0.15
    state_dropout: float = 0.1
    seed: int = 0
    validate_every: int = 500
    checkpoint_every: int = 250
    validation_size: int = 96
    initial_weights: str = ""
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    tf32: bool = False
    attribution: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        """Refuse values that no run could have.

        Raises:
            TrainingError: Such a value.
        """
        _check_ranges(self)
        if self.batch_size < self.devices * self.nodes:
            raise TrainingError(
                f"a batch of {self.batch_size} cannot be shared by {self.devices * self.nodes} devices"
            )
        for name, hint in get_type_hints(TrainConfig).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise TrainingError(f"{name} must be {' or '.join(get_args(hint))}, found {getattr(self, name)!r}")
        _check_shares(self.sampling_weights)
        _check_model(self.model)

    def plain(self) -> dict[str, Any]:
        """Return all values as plain JSON, the architecture among those of the model."""
        values = asdict(self)
        values["model"] = {"architecture": architecture_of(self.model)} | values["model"]
        return values


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "small": {"steps": 4000, "model": {"features": 48, "layers": 4, "dropout": 0.1}},
        "base": {"steps": 12000, "noisy_start_fraction": 0.5, "model": {"short_range_cutoff": 4.5, "dropout": 0.1}},
        "deep": {
            "steps": 4000,
            "optimizer": "muon",
            "loss": "components",
            "learning_rate": 2e-3,
            "weight_decay": 0.1,
            "warmup_steps": 150,
            "cosine_fraction": 0.75,
            "noisy_start_fraction": 0.5,
            "model": {"layers": 8, "vector_norm": True, "short_range_cutoff": 4.5, "dropout": 0.15},
        },
        "paper": {
            "steps": 60000,
            "batch_size": 24,
            "learning_rate": 1e-4,
            "warmup_steps": 1,
            "schedule": "plateau",
            "weight_decay": 0.0,
            "max_grad_norm": 150.0,
            "validate_every": 1000,
            "model": {"architecture": "definet"},
        },
    }
)
"""Recipes by name: ``small`` for minutes, ``base`` the bundled networks of five layers, ``deep`` those of eight, for
a host or two with some hundred pairs each, ``paper`` the published one."""


def architecture_of(model: ModelConfig) -> str:
    """Return the name of a model config's architecture."""
    return next(name for name, kind in MODELS.items() if type(model) is kind)


def make_config(options: Mapping[str, Any], preset: str | None = None) -> TrainConfig:
    """Build a config from plain values, over those of a preset.

    Args:
        options: Values by name, ``model`` and ``sampling_weights`` as tables.
        preset: One of :data:`PRESETS`.

    Raises:
        TrainingError: A name or value is not known.
    """
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise TrainingError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}")
    for name in ("model", "sampling_weights"):
        if not isinstance(options.get(name, {}), Mapping):
            raise TrainingError(f"the config: {name} must be a table, found {options[name]!r}")
    base = dict(PRESETS[preset]) if preset else {}
    values = base | dict(options)
    model = dict(base.get("model", {})) | dict(options.get("model", {}))
    architecture = model.pop("architecture", "site")
    if not isinstance(architecture, str) or architecture not in MODELS:
        raise TrainingError(f"unknown architecture {architecture!r}: expected one of {', '.join(MODELS)}")
    _known(values, TrainConfig, "the config")
    _known(model, MODELS[architecture], "[model]")
    missing = [name for name in ("data", "out") if not values.get(name)]
    if missing:
        raise TrainingError(f"the config lacks {' and '.join(missing)}")
    return TrainConfig(**values | {"model": MODELS[architecture](**model)})


def read_config(path: Path, **overrides: Any) -> TrainConfig:
    """Read a config from a TOML file; a key ``preset`` names what it starts from.

    Args:
        path: The file.
        overrides: Values that replace those of the file.

    Raises:
        TrainingError: The file cannot be read, or a name or value in it is not known.
    """
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # bytes that are no UTF-8 are a ValueError
        raise TrainingError(f"{path}: cannot be read as TOML: {error}") from error
    preset = options.pop("preset", None)
    return make_config(options | overrides, preset)


def config_of_run(folder: Path) -> TrainConfig:
    """Read the config that a run has left in its folder.

    Args:
        folder: Of the run; wherever it is now, that is the ``out`` of the config.

    Raises:
        TrainingError: The file cannot be read, or a name or value in it is not known.
    """
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: expected the config of a run, found {type(values).__name__}")
    try:
        return make_config(values | {"out": str(folder)})
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from error


def with_model(config: TrainConfig, model: ModelConfig) -> TrainConfig:
    """Return the config with another network."""
    return replace(config, model=model)


def _check_ranges(config: TrainConfig) -> None:
    """Refuse numbers that no run could have."""
    for name, most in _MOST.items():
        if not 1 <= getattr(config, name) <= most:
            raise TrainingError(f"{name} must be at least 1 and at most {most}, found {getattr(config, name)}")
    for name, largest in _LARGEST.items():
        if not 0 <= getattr(config, name) <= largest:
            raise TrainingError(f"{name} must be between 0 and {largest:.10g}, found {getattr(config, name)}")
    if not 0 < config.training_fraction <= 1:
        raise TrainingError(f"training_fraction must be above 0 and at most 1, found {config.training_fraction}")


def _check_shares(shares: Mapping[str, float]) -> None:
    if any(isinstance(share, bool) or not isinstance(share, (int, float)) for share in shares.values()):
        raise TrainingError(f"sampling_weights must be numbers, found {dict(shares)}")
    if not all(0 <= share < math.inf for share in shares.values()):
        raise TrainingError(f"sampling_weights must not be negative, and finite, found {dict(shares)}")
    if shares and not any(shares.values()):
        raise TrainingError("sampling_weights must not be negative, nor all zero")


def _check_model(model: ModelConfig) -> None:
    """Refuse sizes that no network has, before it fills the memory."""
    for f in fields(model):
        value = getattr(model, f.name)
        if isinstance(value, bool):
            continue
        usual: tuple[float, float] = (1, _WIDEST) if isinstance(f.default, int) else (0.0, 1e6)
        least, most = _SIZES.get(f.name, usual)
        if not least <= value <= most:
            raise TrainingError(f"[model]: {f.name} must be between {least:g} and {most:g}, found {value}")
    if not isinstance(model, SiteNetworkConfig):
        return
    if not 0 <= model.short_range_cutoff <= model.cutoff:
        raise TrainingError(f"short_range_cutoff must be between 0 and the cutoff, found {model.short_range_cutoff}")
    if not 0 <= model.dropout < 1:
        raise TrainingError(f"dropout must be at least 0 and below 1, found {model.dropout}")


_WIDEST = 100_000
_SIZES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "cutoff": (1.0, 50.0),
        "layers": (1, 1000),
        "avg_num_neighbors": (1e-3, 1e6),
        "error_head_features": (0, _WIDEST),
        "dropout": (0.0, math.inf),  # these two have bounds of their own
        "short_range_cutoff": (-math.inf, math.inf),
        "radial_range": (1e-3, 1e6),
    }
)
"""Least and largest sizes; whole numbers not named here are between 1 and 100,000."""

_MOST: Mapping[str, int] = MappingProxyType(
    dict.fromkeys(("steps", "validate_every", "checkpoint_every", "validation_size"), 10**9)
    | {"batch_size": 10**6}
    | dict.fromkeys(("devices", "nodes"), 10**4)
)
"""Largest values of what is at least 1."""
_LARGEST: Mapping[str, float] = MappingProxyType(
    dict.fromkeys(("cosine_fraction", "ema_decay", "noisy_start_fraction", "state_dropout"), 1.0)
    | dict.fromkeys(
        (
            "learning_rate",
            "muon_lr_ratio",
            "max_grad_norm",
            "plateau_factor",
            "weight_decay",
            "auxiliary_loss_weight",
            "noise_std",
            "warmup_steps",
            "plateau_patience",
        ),
        math.inf,
    )
    | {"seed": 2**32 - 1}
)
"""Largest values of what is at least 0."""

_SORTS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _known(values: Mapping[str, Any], kind: type, where: str) -> None:
    names = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise TrainingError(f"{where} does not know {', '.join(unknown)}; it knows {', '.join(sorted(names))}")
    hints = get_type_hints(kind)
    for f in fields(kind):
        if f.name not in values and f.default is MISSING:
            continue  # what is missing is said elsewhere
        value, wanted = values.get(f.name, f.default), hints[f.name]
        if isinstance(value, str) and "\0" in value:
            raise TrainingError(f"{where}: {f.name} must be text without zero bytes, found {value!r}")
        if wanted not in {bool, int, float, str} or type(value) is wanted or (wanted is float and type(value) is int):
            continue
        raise TrainingError(f"{where}: {f.name} must be {_SORTS[wanted]}, found {value!r}")
