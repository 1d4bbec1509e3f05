"""Train a site network: one process, exact resume, a validation table as it goes.

Every step takes one batch of structures of one host, because those share their geometry. The order of
the data follows from the seed and the counters in the checkpoint alone, so that a killed run goes on exactly
where its last checkpoint was.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.site_network import SiteNetwork
from ase_definet.train.occupations import OccupationSet

_CLIP = 1.0
"""Largest norm of the gradient."""
_MAX_SKIPPED = 20
"""Steps without a finite gradient that a run survives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything a run depends on.

    Attributes:
        data: Folder of packed subsets (``*.npz``).
        out: Folder for checkpoints and logs.
        weights: Share of the steps that each subset gets, by name (``high-MoS2``).
        model: Sizes of the network.
        steps: Length of the run.
        batch: Structures a step.
        rate: Peak learning rate.
        warmup: Steps of linear warm-up.
        decay: Last share of the run over which the rate falls to zero.
        weight_decay: Decoupled weight decay.
        ema: Decay of the moving average of the weights.
        seed: Of initial weights and data order.
        check: Steps between validations.
        save: Steps between checkpoints.
        check_size: Structures a subset in the running validation.
        device: Where to run.
    """

    data: str
    out: str
    weights: dict[str, float]
    model: SiteNetworkConfig = field(default_factory=SiteNetworkConfig)
    steps: int = 30000
    batch: int = 16
    rate: float = 2e-3
    warmup: int = 500
    decay: float = 0.4
    weight_decay: float = 0.01
    ema: float = 0.999
    seed: int = 0
    check: int = 1000
    save: int = 500
    check_size: int = 96
    device: str = "cpu"


def rate_at(config: TrainConfig, step: int) -> float:
    """Return the learning rate at a step: warm-up, plateau, then a cosine to zero."""
    falling = config.steps * (1 - config.decay)
    if step < config.warmup:
        return config.rate * (step + 1) / config.warmup
    if step < falling:
        return config.rate
    return config.rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - falling) / (config.steps - falling))))


def loss_of(predicted: Tensor, target: Tensor, real: Tensor) -> Tensor:
    """Return the mean over real atoms of the length of the error, averaged over structures, in Å."""
    length = ((predicted - target).square().sum(-1) + 1e-8).sqrt() * real
    return (length.sum(0) / real.sum(0)).mean()


class Run:
    """A training run and all of its state."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.device = torch.device(config.device)
        self.net = SiteNetwork(config.model).to(self.device)
        self.average = SiteNetwork(config.model).to(self.device)
        self.average.load_state_dict(self.net.state_dict())
        self.average.requires_grad_(requires_grad=False)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.sets = {
            name: OccupationSet(Path(config.data) / f"{name}.npz", config.model.cutoff, self.device)
            for name in config.weights
        }
        self.step = 0
        self.skipped = 0
        self.norms: list[float] = []
        self.drawn = dict.fromkeys(config.weights, 0)
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)

    def _next_subset(self) -> str:
        """Pick the subset that is furthest behind its share."""
        total = sum(self.config.weights.values())
        share = {k: w / total for k, w in self.config.weights.items()}
        return max(share, key=lambda k: share[k] * (self.step + 1) - self.drawn[k])

    def _next_batch(self, name: str) -> np.ndarray:
        """Return the next indices of a subset's training pairs, shuffled anew every epoch."""
        train = self.sets[name].indices("train")
        first = self.drawn[name] * self.config.batch
        wanted = np.arange(first, first + self.config.batch)
        tag = sorted(self.sets).index(name)
        out = []
        for epoch in np.unique(wanted // len(train)):
            order = np.random.default_rng([self.config.seed, tag, int(epoch)]).permutation(train)
            out.append(order[wanted[wanted // len(train) == epoch] % len(train)])
        return np.concatenate(out)

    def advance(self) -> float:
        """Take one step; return its loss in Å."""
        name = self._next_subset()
        chosen = self._next_batch(name)
        subset = self.sets[name]
        numbers, kinds, target, real = subset.batch(chosen)
        predicted = self.net(subset.geometry, numbers, subset.host_numbers, kinds)
        loss = loss_of(predicted, target, real)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), _CLIP)
        self.norms.append(float(norm))
        if not math.isfinite(self.norms[-1]):
            self.skipped += 1
            if self.skipped > _MAX_SKIPPED:
                raise FloatingPointError(
                    f"{self.skipped} steps without a finite gradient by step {self.step}: lower the learning rate"
                )
            self.optimizer.zero_grad(set_to_none=True)
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.config, self.step)
            group["weight_decay"] = self.config.weight_decay
        self.optimizer.step()
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - decay)
        self.drawn[name] += 1
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, limit: int | None = None) -> dict[str, dict[str, float]]:
        """Return the coordinate MAE over all atoms and within 3 Å of a defect, in Å, by subset."""
        table = {}
        for name, subset in self.sets.items():
            chosen = subset.indices("val")
            chosen = chosen[:: max(1, len(chosen) // limit)] if limit else chosen
            all_atoms, near, dummy, dummy_near = [], [], [], []
            for start in range(0, len(chosen), 32):
                part = chosen[start : start + 32]
                numbers, kinds, target, real = subset.batch(part)
                predicted = self.average(subset.geometry, numbers, subset.host_numbers, kinds)
                error = (predicted - target).abs().mean(-1)
                close = subset.near(kinds, 3.0) * real
                all_atoms.append((error * real).sum(0) / real.sum(0))
                near.append((error * close).sum(0) / close.sum(0))
                unrelaxed = target.abs().mean(-1)
                dummy.append((unrelaxed * real).sum(0) / real.sum(0))
                dummy_near.append((unrelaxed * close).sum(0) / close.sum(0))
            table[name] = {
                "mae": float(torch.cat(all_atoms).mean()),
                "a3": float(torch.cat(near).mean()),
                "dummy": float(torch.cat(dummy).mean()),
                "dummy_a3": float(torch.cat(dummy_near).mean()),
            }
        return table

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {
            "step": self.step,
            "drawn": self.drawn,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def save(self) -> None:
        """Write a checkpoint: to a new file, synced, then renamed over the last one."""
        path = self.out / "last.pt"
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as stream:
            torch.save(self.state(), stream)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)

    def resume(self) -> bool:
        """Go on from the last checkpoint, if there is one."""
        path = self.out / "last.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.drawn = state["step"], state["drawn"]
        return True


def train(config: TrainConfig) -> Run:
    """Train to the end, resuming from the last checkpoint in ``config.out``."""
    run = Run(config)
    run.resume()
    (run.out / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    log = run.out / "log.csv"
    losses: list[float] = []
    began = time.perf_counter()
    while run.step < config.steps:
        losses.append(run.advance())
        if run.step % config.save == 0 or run.step == config.steps:
            run.save()
        if run.step % config.check == 0 or run.step == config.steps:
            table = run.validate(None if run.step == config.steps else config.check_size)
            row: dict[str, Any] = {
                "step": run.step,
                "seconds": round(time.perf_counter() - began, 1),
                "rate": rate_at(config, run.step),
                "loss": round(float(np.mean(losses)), 5),
                "gradient": round(float(np.median(run.norms)), 4),
                "gradient_max": round(float(np.max(run.norms)), 4),
            }
            run.norms.clear()
            row |= {
                f"{name} {key}": round(v, 5)
                for name, r in table.items()
                for key, v in r.items()
                if not key.startswith("dummy")
            }
            losses.clear()
            new = not log.exists()
            with log.open("a", newline="") as stream:
                writer = csv.DictWriter(stream, list(row))
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)  # noqa: T201
    return run
