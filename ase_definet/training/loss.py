"""The loss, the noise added to the inputs in training, and the error sums of validation."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from ase_definet.model.protocol import DisplacementModel
from ase_definet.training.batches import SiteBatches
from ase_definet.training.config import TrainConfig

Array: TypeAlias = NDArray[Any]


def mean_over_sites(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of each structure, shape ``(batch,)``.

    Args:
        values: What to average, shape ``(n_sites, batch)``.
        weight: Which sites count, as 0 or 1, shape ``(n_sites, batch)``; the mean over no sites is 0.
    """
    return (values * weight).sum(0) / weight.sum(0).clamp_min(1)


def loss_of(predicted: Tensor, target: Tensor, real: Tensor, kind: str = "length") -> Tensor:
    """Return the mean error over atoms, averaged over structures, in Å.

    Args:
        predicted: Displacements, shape ``(n_sites, batch, 3)``, in Å.
        target: Those of the relaxed structures.
        real: Which sites have an atom, as 0 or 1, shape ``(n_sites, batch)``.
        kind: ``length`` of the error of an atom, as published, or ``components``: the sum of their magnitudes, three
            times the coordinate MAE.
    """
    squares = (predicted - target).square()
    size = (squares.sum(-1) + 1e-8).sqrt() if kind == "length" else (squares + 1e-8).sqrt().sum(-1)
    return mean_over_sites(size, real).mean()


def corrupted(target: Tensor, real: Tensor, config: TrainConfig) -> Tensor:
    """Return initial displacements: zero, or noisy interpolations to the relaxed ones for some structures.

    Args:
        target: Relaxed displacements, shape ``(n_sites, batch, 3)``, in Å.
        real: Which sites have an atom, as 0 or 1, shape ``(n_sites, batch)``.
        config: Share of these structures, and amount of noise.
    """
    chosen, way, width = torch.rand(3, 1, target.shape[1], 1, device=target.device)
    noise = 2 * config.noise_std * width * torch.randn_like(target)
    start: Tensor = (way * target + noise) * (chosen < config.noisy_start_fraction) * real[..., None]
    return start


def withheld(state: Tensor, share: float) -> Tensor:
    """Return the codes of states, with some set to unknown at random for each structure and property.

    Args:
        state: Codes, shape ``(1, batch, 4)``.
        share: Share of the structures, for each property.
    """
    return state.masked_fill(torch.rand(state.shape, device=state.device) < share, 0)


def summed_errors(network: DisplacementModel, batches: SiteBatches, chosen: Array) -> Tensor:
    """Return sums over structures: MAE, A3, both for the ideal sites, and the numbers of terms in MAE and A3.

    Args:
        network: The network.
        batches: The group of the pairs.
        chosen: Indices of the pairs.

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
