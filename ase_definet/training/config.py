"""The settings of a training run, from a TOML file or a preset."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ase_definet.errors import TrainingError
from ase_definet.model.architectures import ARCHITECTURES, architecture_of, predicts_properties
from ase_definet.model.config import NetworkConfig, SiteNetworkConfig
from ase_definet.model.settings import check_ranges, check_types, unknown_settings, within

CONFIG = "config.json"
"""File in the folder of a run that stores its config."""

_MOST = 10**9
"""Most steps of anything."""
_LEAST = 1e-9
"""Smallest share of the training pairs; one pair is always kept."""

MODELS: Mapping[str, type[NetworkConfig]] = MappingProxyType(
    {name: entry.config for name, entry in ARCHITECTURES.items() if entry.trainable}
)
"""Config of each architecture that can be trained, by the name in ``[model] architecture``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The settings of a training run.

    Attributes:
        data: The packed data set, a file made by ``ase-definet data pack``.
        out: Folder for checkpoints and logs.
        sampling_weights: Share of the steps of each subset, by name (``high/MoS2``); only these subsets are used.
            By default all are used, in proportion to the square roots of their numbers of pairs.
        model: Sizes of the network; its type is the architecture.
        targets: Labels that a network for properties learns, by their names in the data.
        training_fraction: Share of the training pairs that is used; the same pairs in every run.
        steps: Length of the run.
        batch_size: Structures per step, in total over all devices.
        optimizer: ``adamw``, or ``muon`` (Jordan et al., 2024): steps along orthogonalised momentum for the matrices
            between channels, AdamW for all other parameters; some 9 % less error after 400 steps (docs/results.md).
        learning_rate: Peak learning rate.
        muon_lr_ratio: Ratio of the learning rate of the matrices under ``muon`` to ``learning_rate``.
        warmup_steps: Steps of linear warm-up, at most a fifth of the run.
        schedule: ``cosine`` (constant, then cosine decay to zero) or ``plateau`` (reduced when the validation error
            stops improving).
        cosine_fraction: Final share of the run over which the cosine decays.
        plateau_patience: Validations without improvement before the ``plateau`` schedule reduces the rate.
        plateau_factor: Factor by which it reduces the rate.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Largest norm of the gradient.
        ema_decay: Decay of the moving average of the weights, which is validated and exported.
        loss: ``length`` of each atom's error, as published, or ``components``, as in the coordinate MAE.
        auxiliary_loss_weight: Weight of the loss of the displacements predicted between layers.
        noisy_start_fraction: Share of the training structures that start from noisy positions interpolated between
            the host's sites and the relaxed positions (Godwin et al., ICLR 2022, "Noisy Nodes"); sets
            ``noisy_starts`` of the network.
        noise_std: Mean standard deviation of that noise, drawn uniformly between zero and twice this, in Å.
        state_dropout: Share of the training structures whose charge is withheld, and likewise their spin
            multiplicity, functional and excitation, so that a network with ``states`` also answers where they are
            unknown.
        seed: Seed of the initial weights, the data order and dropout.
        validate_every: Steps between validations.
        checkpoint_every: Steps between checkpoints.
        validation_size: Structures per group in validations during the run; the final one uses all.
        initial_weights: Weights to start from, bundled ones by name (``default``) or a file; their architecture
            and sizes replace ``model``.
        accelerator: ``auto``, ``cpu`` or ``cuda``.
        devices: Devices per node.
        nodes: Number of nodes, under SLURM or torchrun.
        precision: ``32-true`` or ``bf16-mixed``.
        tf32: Whether CUDA may multiply matrices in tf32.
        attribution: Whom to cite for the data; written to the model card.
        license: License of the weights; written to the model card.
    """

    data: str
    out: str
    sampling_weights: Mapping[str, float] = field(default_factory=dict)
    model: NetworkConfig = field(default_factory=SiteNetworkConfig)
    targets: tuple[str, ...] = ()
    training_fraction: float = within(1.0, _LEAST, 1.0)
    steps: int = within(30000, 1, _MOST)
    batch_size: int = within(16, 1, 10**6)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = within(1.5e-3, 0.0, math.inf)
    muon_lr_ratio: float = within(10.0, 0.0, math.inf)
    warmup_steps: int = within(500, 0, _MOST)
    schedule: Literal["cosine", "plateau"] = "cosine"
    cosine_fraction: float = within(0.4, 0.0, 1.0)
    plateau_patience: int = within(5, 0, _MOST)
    plateau_factor: float = within(0.8, 0.0, math.inf)
    weight_decay: float = within(0.05, 0.0, math.inf)
    max_grad_norm: float = within(1.0, 0.0, math.inf)
    ema_decay: float = within(0.999, 0.0, 1.0)
    loss: Literal["length", "components"] = "length"
    auxiliary_loss_weight: float = within(0.0, 0.0, math.inf)
    noisy_start_fraction: float = within(0.0, 0.0, 1.0)
    noise_std: float = within(0.15, 0.0, math.inf)
    state_dropout: float = within(0.1, 0.0, 1.0)
    seed: int = within(0, 0, 2**32 - 1)
    validate_every: int = within(500, 1, _MOST)
    checkpoint_every: int = within(250, 1, _MOST)
    validation_size: int = within(96, 1, _MOST)
    initial_weights: str = ""
    accelerator: str = "auto"
    devices: int = within(1, 1, 10**4)
    nodes: int = within(1, 1, 10**4)
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    tf32: bool = False
    attribution: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TrainingError: A value is invalid.
        """
        try:
            check_ranges(self)
        except ValueError as error:
            raise TrainingError(str(error)) from error
        if self.batch_size < self.devices * self.nodes:
            raise TrainingError(
                f"a batch of {self.batch_size} cannot be shared by {self.devices * self.nodes} devices"
            )
        for name, hint in get_type_hints(TrainConfig).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise TrainingError(f"{name} must be {' or '.join(get_args(hint))}, found {getattr(self, name)!r}")
        _check_shares(self.sampling_weights)
        self._check_targets()
        try:
            self.model.check()
        except ValueError as error:
            raise TrainingError(f"[model]: {error}") from error

    def _check_targets(self) -> None:
        """Check that there are labels to learn where the network learns labels, and only there."""
        object.__setattr__(self, "targets", tuple(self.targets))
        title = ARCHITECTURES[architecture_of(self.model)].title
        if predicts_properties(self.model) and not self.targets:
            raise TrainingError(f"a {title} needs targets: names of labels in the data, such as formation_energy")
        if self.targets and not predicts_properties(self.model):
            raise TrainingError(f'a {title} learns displacements and has no targets; use architecture = "sparse"')

    def plain(self) -> dict[str, Any]:
        """Return all values as plain JSON, with the architecture among those of the model."""
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
        "properties": {
            "steps": 4000,
            "batch_size": 64,
            "optimizer": "muon",
            "learning_rate": 1e-3,
            "warmup_steps": 200,
            "cosine_fraction": 0.75,
            "ema_decay": 0.995,
            "targets": ("formation_energy",),
            "model": {"architecture": "sparse"},
        },
    }
)
"""Presets by name: ``small`` for a run of minutes, ``base`` the bundled networks of five layers, ``deep`` those of
eight, for one or two hosts with some hundred pairs each, ``paper`` the published network, ``properties`` the sparse
network of energies and gaps."""


def make_config(options: Mapping[str, Any], preset: str | None = None) -> TrainConfig:
    """Build a config from plain values, which override those of a preset.

    Args:
        options: Values by name, ``model`` and ``sampling_weights`` as tables.
        preset: One of :data:`PRESETS`.

    Raises:
        TrainingError: A name or value is unknown.
    """
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise TrainingError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}")
    for name in ("model", "sampling_weights"):
        if not isinstance(options.get(name, {}), Mapping):
            raise TrainingError(f"the config: {name} must be a table, found {options[name]!r}")
    base = dict(PRESETS[preset]) if preset else {}
    values = base | dict(options)
    model = dict(base.get("model", {})) | dict(options.get("model", {}))
    values |= _targets_of(values)
    architecture = model.pop("architecture", "site")
    if not isinstance(architecture, str) or architecture not in MODELS:
        raise TrainingError(f"unknown architecture {architecture!r}: expected one of {', '.join(MODELS)}")
    _check_known(values, TrainConfig, "the config")
    _check_known(model, MODELS[architecture], "[model]")
    missing = [name for name in ("data", "out") if not values.get(name)]
    if missing:
        raise TrainingError(f"the config lacks {' and '.join(missing)}")
    if "targets" in model:  # a config that a run wrote has them twice
        values.setdefault("targets", tuple(model["targets"]))
    try:
        return TrainConfig(**values | {"model": MODELS[architecture].parse(model)})
    except ValueError as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"[model]: {error}") from error


def read_config(path: Path, **overrides: Any) -> TrainConfig:
    """Read a config from a TOML file; a key ``preset`` names the preset that it modifies.

    Args:
        path: The file.
        overrides: Values that replace those of the file.

    Raises:
        TrainingError: The file cannot be read, or a name or value in it is unknown.
    """
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # invalid UTF-8 raises a ValueError
        raise TrainingError(f"{path}: cannot be read as TOML: {error}") from error
    preset = options.pop("preset", None)
    return make_config(options | overrides, preset)


def config_of_run(folder: Path) -> TrainConfig:
    """Read the config stored in the folder of a run.

    Args:
        folder: Folder of the run; its present location becomes ``out`` of the config.

    Raises:
        TrainingError: The file cannot be read, or a name or value in it is unknown.
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


def with_model(config: TrainConfig, model: NetworkConfig) -> TrainConfig:
    """Return the config with another network."""
    return replace(config, model=model)


def _check_shares(shares: Mapping[str, float]) -> None:
    if any(isinstance(share, bool) or not isinstance(share, (int, float)) for share in shares.values()):
        raise TrainingError(f"sampling_weights must be numbers, found {dict(shares)}")
    if not all(0 <= share < math.inf for share in shares.values()):
        raise TrainingError(f"sampling_weights must not be negative, and finite, found {dict(shares)}")
    if shares and not any(shares.values()):
        raise TrainingError("sampling_weights must not be negative, nor all zero")


def _targets_of(values: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the targets of a config as a tuple of names; one name may stand alone."""
    if "targets" not in values:
        return {}
    found = values["targets"]
    names = (found,) if isinstance(found, str) else found
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TrainingError(f"targets must be names of labels, found {found!r}")
    return {"targets": tuple(names)}


def _check_known(values: Mapping[str, Any], kind: type, where: str) -> None:
    """Reject names that are not fields of a dataclass, and values of the wrong type."""
    if unknown := unknown_settings(kind, values):
        names = ", ".join(sorted(f.name for f in fields(kind)))
        raise TrainingError(f"{where} does not know {', '.join(unknown)}; it knows {names}")
    try:
        check_types(kind, values)
    except ValueError as error:
        raise TrainingError(f"{where}: {error}") from error
