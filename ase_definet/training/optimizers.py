"""Optimizers, the learning rate schedule, and the moving average of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ase_definet.errors import TrainingError
from ase_definet.training.config import TrainConfig

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]

_SMALLEST_MATRIX = 16
"""Matrices with fewer rows or columns use AdamW."""


def make_optimizers(network: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return the optimizers: AdamW, and Muon for the matrices between channels if the config requests it.

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


def learning_rate(config: TrainConfig, step: int, scale: float = 1.0) -> float:
    """Return the learning rate of a step.

    Args:
        config: The schedule.
        step: Number of previous steps.
        scale: Present factor of the ``plateau`` schedule.
    """
    warmup = min(config.warmup_steps, config.steps // 5)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "plateau":
        return config.learning_rate * scale
    falling = config.steps * (1 - config.cosine_fraction)
    share = min(1.0, max(0.0, (step - falling) / max(config.steps - falling, 1)))
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


@dataclass
class Plateau:
    """State of the ``plateau`` schedule.

    Attributes:
        scale: Multiplies the learning rate.
        best: Lowest error so far, in Å.
        stale: Number of validations since then.
    """

    scale: float = 1.0
    best: float = math.inf
    stale: int = 0

    def follow(self, table: dict[str, dict[str, float]], config: TrainConfig) -> None:
        """Process a validation table; reduce the rate if it has not improved for long enough."""
        if not table:
            return
        average = float(np.mean([row["mae"] for row in table.values()]))
        self.stale = 0 if average < self.best else self.stale + 1
        self.best = min(self.best, average)
        if self.stale > config.plateau_patience:
            self.scale *= config.plateau_factor
            self.stale = 0


def averaged(network: nn.Module, most: float) -> AveragedModel:
    """Return the moving average of the weights of a network, initialised with the present weights.

    It follows quickly at first: its decay rises from 0.1 with the number of steps.

    Args:
        network: The network, which is copied.
        most: Largest decay.
    """

    def average(own: Tensors, current: Tensors, n_averaged: Tensor | int) -> None:
        step = int(n_averaged) - 1
        follow: Any = get_ema_multi_avg_fn(min(most, (step + 1) / (step + 10)))  # type: ignore[no-untyped-call]
        follow(own, current, n_averaged)

    out = AveragedModel(network, multi_avg_fn=average)
    set_steps(out, 0)
    return out


def set_steps(average: AveragedModel, steps: int) -> None:
    """Set the number of steps of a moving average; the initial weights count as one more."""
    average.n_averaged.fill_(steps + 1)
