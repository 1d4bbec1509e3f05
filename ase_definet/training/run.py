"""Train a network: exact resume, any number of devices, a validation table as it goes.

Every step takes one batch of structures on the same sites, because those share their geometry. The order of the
data and the dropout follow from the seed and the counters in the checkpoint alone, so that a killed run goes on
exactly where its last checkpoint was. Devices, processes and precision are Lightning Fabric's.
"""

from __future__ import annotations

import csv
import io
import json
import math
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from numpy.typing import NDArray
from torch import Tensor, nn

from ase_definet.checkpoints.format import LoadedModel, load_checkpoint, resolve_model
from ase_definet.data import PackedDataset, PairGroup
from ase_definet.errors import CheckpointError, DefiNetError, DeviceError, TrainingError
from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.definet import DefiNet
from ase_definet.model.host_routing import HostRoutedModel
from ase_definet.model.site_network import SiteNetwork
from ase_definet.structures.files import replacing
from ase_definet.structures.run_folder import RunFolder
from ase_definet.training.batches import SiteBatches
from ase_definet.training.config import CONFIG, ModelConfig, TrainConfig, make_config, with_model

Array: TypeAlias = NDArray[Any]

LAST = "last.pt"
LOG = "log.csv"
_MAX_SKIPPED = 20
"""Steps without a finite gradient that a run survives."""
_VALIDATION_BATCH = 32
_SMALLEST_MATRIX = 16
"""Matrices with fewer rows or columns are left to AdamW."""
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
"""Values that a resumed run may have other than its checkpoint."""


def build_network(model: ModelConfig) -> nn.Module:
    """Return a new network of these sizes."""
    return SiteNetwork(model) if isinstance(model, SiteNetworkConfig) else DefiNet(model)


def mean_over_sites(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of each structure, shape ``(batch,)``.

    Args:
        values: What to average, shape ``(n_sites, batch)``.
        weight: Which sites count, as 0 or 1, shape ``(n_sites, batch)``; the mean over none is 0.
    """
    return (values * weight).sum(0) / weight.sum(0).clamp_min(1)


def loss_of(predicted: Tensor, target: Tensor, real: Tensor, kind: str = "length") -> Tensor:
    """Return the mean over real atoms of the error, averaged over structures, in Å.

    Args:
        predicted: Displacements, shape ``(n_sites, batch, 3)``, in Å.
        target: Those of the relaxed structures.
        real: Which sites have an atom, as 0 or 1, shape ``(n_sites, batch)``.
        kind: ``length`` of the error of an atom, as published, or ``components``: the sum of their magnitudes, three
            times what the coordinate MAE scores.
    """
    squares = (predicted - target).square()
    size = (squares.sum(-1) + 1e-8).sqrt() if kind == "length" else (squares + 1e-8).sqrt().sum(-1)
    return mean_over_sites(size, real).mean()


def make_optimizers(network: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return what takes the steps: AdamW, and Muon for the matrices between channels if the config asks for it.

    Raises:
        TrainingError: This torch has no Muon.
    """
    matrices: list[Tensor] = []
    if config.optimizer == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise TrainingError(f"optimizer muon needs torch 2.9 or later, found {torch.__version__}; adamw does not")
        linear = (part.weight for part in network.modules() if isinstance(part, nn.Linear))
        matrices = [weight for weight in linear if min(weight.shape) >= _SMALLEST_MATRIX]
    known = {id(weight) for weight in matrices}
    rest = [weight for weight in network.parameters() if id(weight) not in known]
    decay = config.weight_decay
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=decay)
    ]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=decay))
    return optimizers


def corrupted(target: Tensor, real: Tensor, config: TrainConfig) -> Tensor:
    """Return displacements at which the atoms of a batch begin: zero for some structures, for others on their way.

    Args:
        target: Relaxed displacements, shape ``(n_sites, batch, 3)``, in Å.
        real: Which sites have an atom, as 0 or 1, shape ``(n_sites, batch)``.
        config: How many, and how much noise.
    """
    chosen, way, width = torch.rand(3, 1, target.shape[1], 1, device=target.device)
    noise = 2 * config.noise_std * width * torch.randn_like(target)
    start: Tensor = (way * target + noise) * (chosen < config.noisy_start_fraction) * real[..., None]
    return start


def withheld(state: Tensor, share: float) -> Tensor:
    """Return the codes of states with some of them unknown, drawn for each structure and property.

    Args:
        state: Codes, shape ``(1, batch, 4)``.
        share: Of the structures, for each property.
    """
    return state.masked_fill(torch.rand(state.shape, device=state.device) < share, 0)


class _Stages(nn.Module):
    """What Fabric wraps: a network fed by batches."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, batches: SiteBatches, numbers: Tensor, kinds: Tensor, start: Tensor | None, state: Tensor | None
    ) -> list[Tensor]:
        return batches.predict(self.network, numbers, kinds, start, state)


class Run:
    """A training run and all of its state.

    Args:
        config: What to do.
        fabric: Devices to do it on, launched; by default as the config says.

    Raises:
        TrainingError: The data do not hold what the config asks for.
    """

    def __init__(self, config: TrainConfig, fabric: Fabric | None = None) -> None:
        self.fabric = fabric or make_fabric(config)
        initial = load_checkpoint(resolve_model(config.initial_weights)) if config.initial_weights else None
        self.pack = PackedDataset.open(config.data)
        self.groups = _chosen_groups(self.pack, config)
        weights, card = None, None
        if initial is not None:
            weights, card = _of_groups(initial, self.groups)
            config = with_model(config, _with_dropout(weights.config, config.model))
        if config.noisy_start_fraction:
            config = with_model(config, _with_starts(config.model))
        self.config = config
        self.lineage = lineage_of(card)
        self.shares = _shares(self.groups, config)
        torch.manual_seed(config.seed)
        network = build_network(config.model)
        average = build_network(config.model)
        if weights is not None:
            begin = network.state_dict() | weights.state_dict()
            network.load_state_dict({name: begin[name] for name in network.state_dict()})
        average.load_state_dict(network.state_dict())
        self.network = network
        self.stages, *optimizers = self.fabric.setup(_Stages(network), *make_optimizers(network, config))
        self.optimizers: list[Any] = optimizers
        self.average = average.to(self.fabric.device).requires_grad_(requires_grad=False).eval()
        self.batches = [SiteBatches(group, config.model, self.fabric.device) for group in self.groups]
        self.train_pairs = [_fraction(group.indices("train"), config) for group in self.groups]
        self.step = 0
        self.drawn = [0] * len(self.groups)
        self.scale, self.best, self.stale, self.skipped = 1.0, math.inf, 0, 0
        self.seconds = 0.0
        self.table: dict[str, dict[str, float]] = {}
        self.out = Path(config.out)

    def rate(self) -> float:
        """Return the learning rate of the next step."""
        config, step = self.config, self.step
        warmup = min(config.warmup_steps, config.steps // 5)
        if step < warmup:
            return config.learning_rate * (step + 1) / warmup
        if config.schedule == "plateau":
            return config.learning_rate * self.scale
        falling = config.steps * (1 - config.cosine_fraction)
        share = min(1.0, max(0.0, (step - falling) / max(config.steps - falling, 1)))
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

    def _next_group(self) -> int:
        """Pick the group that is furthest behind its share."""
        behind = [share * (self.step + 1) - n for share, n in zip(self.shares, self.drawn, strict=True)]
        return int(np.argmax(behind))

    def _next_pairs(self, which: int) -> Array:
        """Return the next training pairs of a group, shuffled anew every epoch."""
        pairs = self.train_pairs[which]
        first = self.drawn[which] * self.config.batch_size
        wanted = np.arange(first, first + self.config.batch_size)
        out = []
        for epoch in np.unique(wanted // len(pairs)):
            order = np.random.default_rng([self.config.seed, which, int(epoch)]).permutation(pairs)
            out.append(order[wanted[wanted // len(pairs) == epoch] % len(pairs)])
        return np.concatenate(out)

    def advance(self) -> float:
        """Take one step; return its loss in Å."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        which = self._next_group()
        chosen = self._next_pairs(which)[rank::world]
        batches = self.batches[which]
        # dropout and noise depend on the counters only, so that a resumed run repeats it
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * world + rank)
        self.network.train()
        numbers, kinds, target, real = batches.batch(chosen)
        start = corrupted(target, real, self.config) if self.config.noisy_start_fraction else None
        knows_states = isinstance(self.config.model, SiteNetworkConfig) and self.config.model.states
        state = withheld(batches.states(chosen), self.config.state_dropout) if knows_states else None
        *guesses, predicted = self.stages(batches, numbers, kinds, start, state)
        kind = self.config.loss
        loss = total = loss_of(predicted, target, real, kind)
        if guesses and self.config.auxiliary_loss_weight:
            early = torch.stack([loss_of(guess, target, real, kind) for guess in guesses]).mean()
            total = loss + self.config.auxiliary_loss_weight * early
        self.network.zero_grad(set_to_none=True)
        self.fabric.backward(total)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            self.skipped += 1
            if self.skipped > _MAX_SKIPPED:
                raise TrainingError(
                    f"{self.skipped} steps without a finite gradient by step {self.step}: lower the learning rate"
                )
            self.network.zero_grad(set_to_none=True)
        rate = self.rate()
        for optimizer, own in zip(self.optimizers, (rate, self.config.muon_lr_ratio * rate), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = own
            optimizer.step()
        decay = min(self.config.ema_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
        self.drawn[which] += 1
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, limit: int | None = None) -> dict[str, dict[str, float]]:
        """Return the coordinate MAE of the averaged weights on validation pairs, in Å, by subset.

        Args:
            limit: Most pairs a group; all by default.

        Returns:
            ``mae`` of all atoms, ``a3`` within 3 Å of a defect, and ``ideal_sites`` and ``ideal_sites_a3``, the same
            of a prediction that moves nothing.
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

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {
            "config": json.dumps(self.config.plain()),
            "data": self.pack.sha256,
            "step": self.step,
            "drawn": self.drawn,
            "plateau": [self.scale, self.best, self.stale],
            "seconds": self.seconds,
            "lineage": json.dumps(self.lineage),
            "skipped": self.skipped,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def save(self) -> None:
        """Write a checkpoint: to a new file, synced, then renamed over the last one; the folder must be there."""
        content = io.BytesIO()  # torch's own writer hides why a file system refuses
        torch.save(self.state(), content)
        with replacing(self.out / LAST) as fresh:
            fresh.write_bytes(content.getbuffer())

    def resume(self) -> bool:
        """Go on from the last checkpoint, if there is one.

        Raises:
            TrainingError: It cannot be read, or is that of a run with other settings or data.
        """
        path = self.out / LAST
        if not path.exists():
            return False
        try:
            state = _checked_state(path, self.fabric.device)
            before = make_config(json.loads(state["config"])).plain()  # settings it did not know have their defaults
            data = state["data"]
        except Exception as error:  # damaged files raise anything
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
        states = state["optimizers"] if "optimizers" in state else [state["optimizer"]]  # of before there were two
        for optimizer, own in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(own)
        self.step, self.drawn = state["step"], list(state["drawn"])
        self.scale, self.best, self.stale = state["plateau"]
        self.seconds, self.skipped = state["seconds"], state["skipped"]
        if "lineage" in state:  # the weights it began with may be gone, or others by now
            self.lineage = json.loads(state["lineage"])

    def follow(self, table: dict[str, dict[str, float]]) -> None:
        """Let the ``plateau`` schedule see a validation table."""
        if not table:
            return
        average = float(np.mean([row["mae"] for row in table.values()]))
        self.stale = 0 if average < self.best else self.stale + 1
        self.best = min(self.best, average)
        if self.stale > self.config.plateau_patience:
            self.scale *= self.config.plateau_factor
            self.stale = 0


def lineage_of(card: dict[str, Any] | None) -> dict[str, Any]:
    """Say which weights a run began with, from their card."""
    if card is None:
        return {}
    earlier = card.get("training") or {}
    begun = {"name": card.get("name"), "version": card.get("version")}
    before = {"initial_weights": earlier["initial_weights"]} if "initial_weights" in earlier else {}
    return {"initial_weights": begun | {"steps": earlier.get("steps"), "config": earlier.get("config")} | before}


def make_fabric(config: TrainConfig) -> Fabric:
    """Return the devices of a config, not launched yet where they are several.

    Raises:
        DeviceError: They are not there.
    """
    if config.tf32:
        torch.set_float32_matmul_precision("high")
    several = config.devices * config.nodes > 1
    wanted = config.accelerator
    if wanted == "auto":  # Lightning would take a Mac's GPU
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
            strategy=DDPStrategy(static_graph=True) if several else "auto",  # DefiNet has weights nothing asks for
            precision=config.precision,
        )
    except Exception as error:  # of its own kinds
        raise DeviceError(
            f"{config.devices} device(s) of kind {config.accelerator!r} are not here: {error}"
        ) from error


def train(config: TrainConfig, progress: Callable[[Run, float], object] = lambda _run, _loss: None) -> Run:
    """Train to the end, resuming from the last checkpoint in ``config.out``.

    Args:
        config: What to do.
        progress: Called after every step with the run and the step's loss.

    Returns:
        The finished run.

    Raises:
        TrainingError: The run cannot be set up or resumed, or it diverged.
    """
    fabric = make_fabric(config)
    fabric.launch()
    run = Run(config, fabric)
    folder = RunFolder(
        run.out, "training", TrainingError, otherwise="give another `out`", goes_on="after its last checkpoint"
    )
    run.out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        _all_or_none(fabric, lambda: held.enter_context(folder))
        _train(run, folder, progress)
    return run


def _train(run: Run, folder: RunFolder, progress: Callable[[Run, float], object]) -> None:
    """Train in a folder that is locked."""
    config, fabric = run.config, run.fabric
    run.resume()

    def begin() -> None:
        _rows_before(run)
        with replacing(run.out / CONFIG) as fresh:
            fresh.write_text(json.dumps(config.plain(), indent=1) + "\n", encoding="utf-8")

    def record(losses: list[float], *, save: bool) -> None:
        folder.check()
        if losses:
            _log(run, float(np.mean(losses)), run.table)
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
            run.follow(run.table)
        if checked or save:
            _all_or_none(fabric, partial(record, losses if checked else [], save=save))
        if checked:
            losses.clear()
        progress(run, loss)
    run.table = run.table or run.validate()  # a finished run that is resumed has nothing else to do


def _all_or_none(fabric: Fabric, work: Callable[[], object]) -> None:
    """Do something on the first process; what goes wrong there ends all of them, lest they wait for it."""
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
    """Read the state of a run; its checksums, which torch does not look at, must fit."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise TrainingError(f"{damaged} in it is damaged")
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict):
        raise TrainingError(f"expected the state of a run, found {type(state).__name__}")
    return state


def _rows_before(run: Run) -> list[dict[str, str]]:
    """Return the rows of ``log.csv`` before the present step: a killed run did not keep what came after.

    Raises:
        TrainingError: A row is damaged.
    """
    path = run.out / LOG
    if not path.exists():
        return []
    kept = []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream, restval="nothing"):
                for value in row.values():
                    float(value or 0)  # a row of another length has something else
                if int(row["step"]) < run.step:
                    kept.append(row)
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise TrainingError(f"{path}: damaged ({error}); move it away, training needs the checkpoint only") from error
    return kept


def _log(run: Run, loss: float, table: dict[str, dict[str, float]]) -> None:
    """Append a row to ``log.csv``, drop rows of a future that a killed run did not keep, and tell TensorBoard."""
    row: dict[str, Any] = {
        "step": run.step,
        "seconds": round(run.seconds, 1),
        "learning_rate": run.rate(),
        "loss": loss,
    }
    row |= {f"{name} {key}": table[name][key] for name in table for key in ("mae", "a3")}
    kept = _rows_before(run)
    with replacing(run.out / LOG) as fresh, fresh.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys([k for old in kept for k in old] + list(row))))
        writer.writeheader()
        writer.writerows([*kept, {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}])
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional
    except ImportError:
        return
    board = run.out / "tensorboard"
    board.mkdir(exist_ok=True)  # without its parents, which SummaryWriter would make anew where the run was removed
    with _quiet_threads(), SummaryWriter(str(board)) as summary:
        for key, value in row.items():
            summary.add_scalar(key, value, run.step)


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Print no traceback of a thread to which a file system refuses something: it is raised here on closing."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def summed_errors(network: nn.Module, batches: SiteBatches, chosen: Array) -> Tensor:
    """Return sums over structures: MAE, A3, both of the ideal sites, structures, structures with atoms near.

    Args:
        network: What predicts.
        batches: The group the pairs are in.
        chosen: Their indices.

    Returns:
        Six sums, shape ``(6,)``, the first four in Å.
    """
    numbers, kinds, target, real = batches.batch(chosen)
    predicted = batches.predict(network, numbers, kinds, state=batches.states(chosen))[-1]
    close = batches.near(kinds, 3.0) * real
    has_close = (close.sum(0) > 0).float()
    columns = []
    for error in ((predicted - target).abs().mean(-1), target.abs().mean(-1)):
        columns += [mean_over_sites(error, which).sum() for which in (real, close)]
    count = torch.tensor(float(len(chosen)), device=predicted.device)
    return torch.stack([*columns, count, has_close.sum()])


def _chosen_groups(pack: PackedDataset, config: TrainConfig) -> list[PairGroup]:
    unknown = sorted(set(config.sampling_weights) - set(pack.subsets))
    if unknown:
        raise TrainingError(
            f"sampling_weights name {', '.join(unknown)}; {config.data} has {', '.join(sorted(pack.subsets))}"
        )
    wanted = [name for name, share in config.sampling_weights.items() if share > 0] or list(pack.subsets)
    groups = [group for group in pack.groups if group.subset in wanted and len(group.indices("train"))]
    if not groups:
        raise TrainingError(f"{config.data}: no training pairs in {', '.join(wanted)}")
    return groups


def _shares(groups: list[PairGroup], config: TrainConfig) -> Array:
    """Return the share of the steps of each group; those of a subset go by their numbers of pairs."""
    pairs = np.array([len(group.indices("train")) for group in groups], dtype=float)
    names = [group.subset for group in groups]
    whole = {name: sum(n for n, own in zip(pairs, names, strict=True) if own == name) for name in names}
    share = {
        name: config.sampling_weights.get(name, 0.0) if config.sampling_weights else math.sqrt(whole[name])
        for name in names
    }
    out = np.array([share[name] * n / max(whole[name], 1) for name, n in zip(names, pairs, strict=True)])
    return np.asarray(out / max(out.sum(), 1e-12))


def _fraction(pairs: Array, config: TrainConfig) -> Array:
    if config.training_fraction == 1 or not len(pairs):
        return pairs
    kept = max(1, round(config.training_fraction * len(pairs)))
    return np.sort(np.random.default_rng(0).permutation(pairs)[:kept])


def _of_groups(loaded: LoadedModel, groups: list[PairGroup]) -> tuple[Any, dict[str, Any]]:
    """Return the one network that serves all groups, and its card: of several, the general one if they share none."""
    if not isinstance(loaded.model, HostRoutedModel):
        return loaded.model, loaded.card
    found = [loaded.model.network_for(torch.as_tensor(group.host_numbers)) for group in groups]
    networks = loaded.model.networks
    place = next(k for k, network in enumerate(networks) if network is found[0])
    if not place or any(one is not found[0] for one in found):
        return loaded.model.general, loaded.card
    cards = loaded.card.get("routed", [])
    return networks[place], cards[place - 1] if len(cards) == len(networks) - 1 else {}


def _with_dropout(given: Any, wanted: ModelConfig) -> ModelConfig:
    """Take over the sizes of given weights, but the dropout of the run; the estimate of the error is fitted anew."""
    if not isinstance(given, SiteNetworkConfig):
        if isinstance(wanted, SiteNetworkConfig) and wanted.dropout:
            raise CheckpointError("dropout is not known to the published network; set it to 0")
        return given  # type: ignore[no-any-return]
    if not isinstance(wanted, SiteNetworkConfig):
        return replace(given, dropout=0.0, error_head_features=0)
    return replace(
        given,
        dropout=wanted.dropout,
        error_head_features=0,
        states=given.states or wanted.states,
        element_descriptors=given.element_descriptors or wanted.element_descriptors,
    )


def _with_starts(model: ModelConfig) -> ModelConfig:
    if not isinstance(model, SiteNetworkConfig):
        raise TrainingError("noisy_start_fraction is not known to the published network; set it to 0")
    return replace(model, noisy_starts=True)
