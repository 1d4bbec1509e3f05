"""Train a network: exactly resumable, on any number of devices, with regular validation.

Every step uses a batch of structures on the same sites, which share their geometry. Data order and dropout depend
only on the seed and the counters in the checkpoint, so that a killed run resumes exactly from its last checkpoint.
Devices, processes and precision are handled by Lightning Fabric.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from numpy.typing import NDArray
from torch import Tensor, nn

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.format import load_checkpoint
from ase_definet.data import PackedDataset, PairGroup
from ase_definet.errors import DefiNetError, DeviceError, TrainingError
from ase_definet.model.architectures import build_network, predicts_properties
from ase_definet.model.protocol import DisplacementModel
from ase_definet.structures.files import replacing
from ase_definet.structures.run_folder import RunFolder
from ase_definet.training.batches import SiteBatches, states_of_groups
from ase_definet.training.config import CONFIG, TrainConfig, make_config, with_model
from ase_definet.training.initial_weights import network_of_groups, sizes_of, with_noisy_starts
from ase_definet.training.log import rows_before, write_row
from ase_definet.training.loss import corrupted, loss_of, summed_errors, withheld
from ase_definet.training.optimizers import Plateau, averaged, learning_rate, make_optimizers, set_steps
from ase_definet.training.sampling import chosen_groups, fraction_of, next_pairs, shares_of

Array: TypeAlias = NDArray[Any]

LAST = "last.pt"
_MAX_SKIPPED = 20
"""Number of steps without a finite gradient that a run tolerates."""
_VALIDATION_BATCH = 32
_MAY_CHANGE = {
    "data",
    "out",
    "steps",
    "validate_every",
    "checkpoint_every",
    "validation_size",
    "accelerator",
    "devices",
    "nodes",
    "initial_weights",
    "cosine_fraction",
    "attribution",
    "license",
}
"""Settings of a resumed run that may differ from its checkpoint."""


class _Stages(nn.Module):
    """The module that Fabric wraps: a network applied to batches."""

    def __init__(self, network: DisplacementModel) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, batches: SiteBatches, numbers: Tensor, kinds: Tensor, start: Tensor | None, state: Tensor | None
    ) -> list[Tensor]:
        return batches.predict(self.network, numbers, kinds, start, state)


class TrainingRun(ABC):
    """A training run and all of its state: what runs of all kinds of networks share.

    Args:
        config: The settings.
        fabric: The devices, launched; by default those of the config.

    Attributes:
        LOGGED: Columns of the validation table that are logged; all by default.
        UNIT: Unit of ``mae`` in that table.

    Raises:
        TrainingError: The data lack what the config requests.
    """

    LOGGED: ClassVar[tuple[str, ...]] = ()
    UNIT: ClassVar[str] = ""
    train_pairs: list[Array]

    def __init__(self, config: TrainConfig, fabric: Fabric | None = None) -> None:
        self.fabric = fabric or make_fabric(config)
        initial = config.initial_weights
        self.pack = PackedDataset.open(config.data)
        self.groups = self._chosen_groups(config)
        self.lineage: dict[str, Any] = {}
        torch.manual_seed(config.seed)
        self.config, network = self._start(config, resolve_model(initial) if initial else None)
        self.shares = self._shares()
        average = averaged(network, self.config.ema_decay)
        self.network = network
        self.stages, *optimizers = self.fabric.setup(self._wrapped(network), *make_optimizers(network, self.config))
        self.optimizers: list[Any] = optimizers
        self.averaged = average.to(self.fabric.device).requires_grad_(requires_grad=False).eval()
        self._load_batches()
        self.step = 0
        self.drawn = [0] * len(self.groups)
        self.plateau, self.skipped = Plateau(), 0
        self.seconds = 0.0
        self.table: dict[str, dict[str, float]] = {}
        self.out = Path(config.out)

    @abstractmethod
    def _chosen_groups(self, config: TrainConfig) -> list[PairGroup]:
        """Return the groups that are trained on."""

    @abstractmethod
    def _shares(self) -> Array:
        """Return the share of each group."""

    @abstractmethod
    def _start(self, config: TrainConfig, initial: Path | None) -> tuple[TrainConfig, Any]:
        """Return the config with the final sizes of the network, and the network.

        Args:
            config: The settings.
            initial: File of the initial weights.
        """

    @abstractmethod
    def _wrapped(self, network: Any) -> nn.Module:
        """Return the module that Fabric wraps."""

    @abstractmethod
    def _load_batches(self) -> None:
        """Set up the batches, and which pairs of each group are trained on."""

    @abstractmethod
    def _next_losses(self) -> tuple[Tensor, Tensor]:
        """Return the loss of this step's structures, and the total that is minimised; counts what was drawn."""

    @abstractmethod
    def validate(self, limit: int | None = None) -> dict[str, dict[str, float]]:
        """Return the validation errors of the averaged weights by subset, ``mae`` among them.

        Args:
            limit: Largest number of structures per group; all by default.
        """

    @property
    def average(self) -> Any:
        """The network with the moving average of the weights, which is validated and exported."""
        return self.averaged.module

    def rate(self) -> float:
        """Return the learning rate of the next step."""
        return learning_rate(self.config, self.step, self.plateau.scale)

    def advance(self) -> float:
        """Take one step; return its loss."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        # dropout and noise depend on the counters only, so that a resumed run repeats it
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * world + rank)
        self.network.train()
        loss, total = self._next_losses()
        self.network.zero_grad(set_to_none=True)
        self.fabric.backward(total)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            self._skip()
        rate = self.rate()
        for optimizer, own in zip(self.optimizers, (rate, self.config.muon_lr_ratio * rate), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = own
            optimizer.step()
        self.averaged.update_parameters(self.network)
        self.step += 1
        return float(loss.detach())

    def _skip(self) -> None:
        """Skip a step without a finite gradient; only the momenta change.

        Raises:
            TrainingError: There were too many of them.
        """
        self.skipped += 1
        if self.skipped > _MAX_SKIPPED:
            raise TrainingError(
                f"{self.skipped} steps without a finite gradient by step {self.step}: lower the learning rate"
            )
        self.network.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Return the state from which a run is resumed."""
        return {
            "config": json.dumps(self.config.plain()),
            "data": self.pack.sha256,
            "step": self.step,
            "drawn": self.drawn,
            "plateau": [self.plateau.scale, self.plateau.best, self.plateau.stale],
            "seconds": self.seconds,
            "lineage": json.dumps(self.lineage),
            "skipped": self.skipped,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def save(self) -> None:
        """Write a checkpoint: to a new file, synced, then renamed over the last one; the folder must exist."""
        content = io.BytesIO()  # torch's own writer hides the reason of file system errors
        torch.save(self.state(), content)
        with replacing(self.out / LAST) as fresh:
            fresh.write_bytes(content.getbuffer())

    def resume(self) -> bool:
        """Resume from the last checkpoint, if there is one.

        Raises:
            TrainingError: It cannot be read, or belongs to a run with other settings or data.
        """
        path = self.out / LAST
        if not path.exists():
            return False
        try:
            state = _checked_state(path, self.fabric.device)
            before = make_config(json.loads(state["config"])).plain()  # settings added since have their defaults
            data = state["data"]
        except Exception as error:  # damaged files raise various exceptions
            raise TrainingError(f"{path}: cannot be read ({error}); delete it to start anew") from error
        now = self.config.plain()
        differ = [k for k in now if before[k] != now[k] and k not in _MAY_CHANGE]
        if data != self.pack.sha256:
            differ.append("data set")
        if self.config.initial_weights and before["initial_weights"] != self.config.initial_weights:
            differ.append("initial_weights")
        if differ:
            raise TrainingError(
                f"{path} is the checkpoint of a run with another {', '.join(differ)}; give another `out`, or its "
                "settings"
            )
        try:
            self._restore(state)
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)  # torch lists all tensors
            raise TrainingError(
                f"{path}: does not hold what a run needs ({reason}); delete it to start anew"
            ) from error
        return True

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        states = state["optimizers"] if "optimizers" in state else [state["optimizer"]]  # before there were two
        for optimizer, own in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(own)
        self.step, self.drawn = state["step"], list(state["drawn"])
        set_steps(self.averaged, self.step)
        scale, best, stale = state["plateau"]
        self.plateau = Plateau(scale, best, stale)
        self.seconds, self.skipped = state["seconds"], state["skipped"]
        if "lineage" in state:  # the initial weights may have been removed or replaced
            self.lineage = json.loads(state["lineage"])


class Run(TrainingRun):
    """A training run of a network for displacements; every step uses structures on the same sites."""

    LOGGED = ("mae", "a3")
    UNIT = "Å"

    def _chosen_groups(self, config: TrainConfig) -> list[PairGroup]:
        return chosen_groups(self.pack, config)

    def _shares(self) -> Array:
        return shares_of(self.groups, self.config)

    def _start(self, config: TrainConfig, initial: Path | None) -> tuple[TrainConfig, DisplacementModel]:
        weights: DisplacementModel | None = None
        if initial is not None:
            weights, self.lineage = network_of_groups(load_checkpoint(initial), self.groups)
            config = with_model(config, sizes_of(weights.config, config.model))
        if config.noisy_start_fraction:
            config = with_model(config, with_noisy_starts(config.model))
        torch.manual_seed(config.seed)
        network = build_network(config.model)
        if weights is not None:
            begin = network.state_dict() | weights.state_dict()
            network.load_state_dict({name: begin[name] for name in network.state_dict()})
        knows = weights is not None and weights.config.states
        network.restrict_states(states_of_groups(self.groups), and_before=knows)
        return config, network

    def _wrapped(self, network: DisplacementModel) -> nn.Module:
        return _Stages(network)

    def _load_batches(self) -> None:
        self.batches = [SiteBatches(group, self.config.model, self.fabric.device) for group in self.groups]
        self.train_pairs = [fraction_of(group.indices("train"), self.config) for group in self.groups]

    def _next_group(self) -> int:
        """Pick the group that is furthest behind its share."""
        behind = [share * (self.step + 1) - n for share, n in zip(self.shares, self.drawn, strict=True)]
        return int(np.argmax(behind))

    def _next_pairs(self, which: int) -> Array:
        """Return the next training pairs of a group."""
        return next_pairs(self.train_pairs[which], which, self.drawn[which], self.config)

    def _next_losses(self) -> tuple[Tensor, Tensor]:
        which = self._next_group()
        chosen = self._next_pairs(which)[self.fabric.global_rank :: self.fabric.world_size]
        loss, total = self._losses(self.batches[which], chosen)
        self.drawn[which] += 1
        return loss, total

    def _losses(self, batches: SiteBatches, chosen: Array) -> tuple[Tensor, Tensor]:
        """Return the loss of the predictions for some pairs, and the total with the auxiliary loss, in Å."""
        config = self.config
        numbers, kinds, target, real = batches.batch(chosen)
        start = corrupted(target, real, config) if config.noisy_start_fraction else None
        state = withheld(batches.states(chosen), config.state_dropout) if config.model.states else None
        *guesses, predicted = self.stages(batches, numbers, kinds, start, state)
        loss = total = loss_of(predicted, target, real, config.loss)
        if guesses and config.auxiliary_loss_weight:
            early = torch.stack([loss_of(guess, target, real, config.loss) for guess in guesses]).mean()
            total = loss + config.auxiliary_loss_weight * early
        return loss, total

    @torch.no_grad()
    def validate(self, limit: int | None = None) -> dict[str, dict[str, float]]:
        """Return the coordinate MAE of the averaged weights on validation pairs, in Å, by subset.

        Args:
            limit: Largest number of pairs per group; all by default.

        Returns:
            ``mae`` of all atoms, ``a3`` within 3 Å of a defect, and ``ideal_sites`` and ``ideal_sites_a3``, the same
            for the ideal sites.
        """
        sums: dict[str, Tensor] = {}
        for group, batches in zip(self.groups, self.batches, strict=True):
            chosen = np.random.default_rng(0).permutation(group.indices("val"))[:limit]
            mine = chosen[self.fabric.global_rank :: self.fabric.world_size]
            for start in range(0, len(mine), _VALIDATION_BATCH):
                part = summed_errors(self.average, batches, mine[start : start + _VALIDATION_BATCH])
                sums[group.subset] = sums.get(group.subset, 0) + part
        table = {}
        for name in sorted({group.subset for group in self.groups}):
            own = sums.get(name, torch.zeros(6, device=self.fabric.device))
            whole: Any = self.fabric.all_reduce(own, reduce_op="sum")
            values = whole.tolist()
            n, n_near = values[4:]
            if n:
                keys = {"mae": n, "a3": n_near, "ideal_sites": n, "ideal_sites_a3": n_near}
                table[name] = {k: v / max(m, 1) for (k, m), v in zip(keys.items(), values, strict=False)}
        return table


def make_fabric(config: TrainConfig) -> Fabric:
    """Return the devices of a config; several devices still have to be launched.

    Raises:
        DeviceError: They are not available.
    """
    if config.tf32:
        torch.set_float32_matmul_precision("high")
    several = config.devices * config.nodes > 1
    wanted = config.accelerator
    if wanted == "auto":  # Lightning would use the GPU of a Mac
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted in {"mps", "gpu"} and not torch.cuda.is_available():
        raise DeviceError(
            f"accelerator {config.accelerator!r} is not supported here: the phases of a lattice need double "
            "precision, which MPS does not have, and torch sees no CUDA device; use cpu"
        )
    try:
        return Fabric(
            accelerator=wanted,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=DDPStrategy(static_graph=True) if several else "auto",  # DefiNet has unused weights
            precision=config.precision,
        )
    except Exception as error:  # of various kinds
        raise DeviceError(
            f"{config.devices} device(s) of kind {config.accelerator!r} are not here: {error}"
        ) from error


def train(
    config: TrainConfig, progress: Callable[[TrainingRun, float], object] = lambda _run, _loss: None
) -> TrainingRun:
    """Train to the end, resuming from the last checkpoint in ``config.out``.

    Args:
        config: The settings.
        progress: Called after every step with the run and the step's loss.

    Returns:
        The finished run.

    Raises:
        TrainingError: The run cannot be set up or resumed, or it diverged.
    """
    fabric = make_fabric(config)
    fabric.launch()
    run = run_of(config, fabric)
    folder = RunFolder(
        run.out, "training", TrainingError, otherwise="give another `out`", goes_on="after its last checkpoint"
    )
    run.out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        _all_or_none(fabric, lambda: held.enter_context(folder))
        _train(run, folder, progress)
    return run


def run_of(config: TrainConfig, fabric: Fabric | None = None) -> TrainingRun:
    """Return a new run of the kind that trains a network of this config.

    Args:
        config: The settings.
        fabric: The devices, launched; by default those of the config.

    Raises:
        TrainingError: The data lack what the config requests.
    """
    if predicts_properties(config.model):
        from ase_definet.training.property_run import PropertyRun  # noqa: PLC0415 - it builds on this module

        return PropertyRun(config, fabric)
    return Run(config, fabric)


def _train(run: TrainingRun, folder: RunFolder, progress: Callable[[TrainingRun, float], object]) -> None:
    """Train in a folder that is locked."""
    config, fabric = run.config, run.fabric
    run.resume()

    def begin() -> None:
        rows_before(run.out, run.step)
        with replacing(run.out / CONFIG) as fresh:
            fresh.write_text(json.dumps(config.plain(), indent=1) + "\n", encoding="utf-8")

    def record(losses: list[float], *, save: bool) -> None:
        folder.check()
        if losses:
            write_row(run.out, _row(run, float(np.mean(losses))))
        if save:
            run.save()
        folder.check()

    _all_or_none(fabric, begin)
    losses: list[float] = []
    began = time.perf_counter() - run.seconds
    while run.step < config.steps:
        loss = run.advance()
        losses.append(loss)
        run.seconds = time.perf_counter() - began
        done = run.step == config.steps
        checked = run.step % config.validate_every == 0 or done
        save = run.step % config.checkpoint_every == 0 or done
        if checked:
            run.table = run.validate(None if done else config.validation_size)
            run.plateau.follow(run.table, config)
        if checked or save:
            _all_or_none(fabric, partial(record, losses if checked else [], save=save))
        if checked:
            losses.clear()
        progress(run, loss)
    run.table = run.table or run.validate()  # a finished run that is resumed has nothing else to do


def _row(run: TrainingRun, loss: float) -> dict[str, Any]:
    """Return the log row of a validation."""
    row: dict[str, Any] = {
        "step": run.step,
        "seconds": round(run.seconds, 1),
        "learning_rate": run.rate(),
        "loss": loss,
    }
    return row | {
        f"{name} {key}": run.table[name][key] for name in run.table for key in run.LOGGED or run.table[name]
    }


def _all_or_none(fabric: Fabric, work: Callable[[], object]) -> None:
    """Call a function on the first process, and raise its errors on all, so that none waits for it."""
    wrong: DefiNetError | OSError | None = None
    if fabric.global_rank == 0:
        try:
            work()
        except (DefiNetError, OSError) as error:
            wrong = error
    wrong = fabric.broadcast(wrong)
    if wrong is not None:
        raise wrong


def _checked_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read the state of a run and verify its checksums, which torch ignores."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise TrainingError(f"{damaged} in it is damaged")
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict):
        raise TrainingError(f"expected the state of a run, found {type(state).__name__}")
    return state
