"""Fit the error estimate of each atom on validation pairs, and measure its reliability by cross-fitting.

The network is not changed: a small head on its final scalars learns the mean length of the error (the loss is the
negative log-likelihood of an exponential distribution, whose optimum is the mean) from pairs that the network was not
trained on. For the reliability, each structure is evaluated with a head that was fitted without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ase_definet.errors import TrainingError
from ase_definet.model.architectures import build_network
from ase_definet.model.protocol import DisplacementModel
from ase_definet.structures.metrics import rank_correlation, reliability_bins
from ase_definet.training.batches import SiteBatches

Array: TypeAlias = NDArray[Any]

HIDDEN = 32
FOLDS = 5
_STEPS = 1500
_ATOMS = 4096
_RATE = 3e-3
_DECAY = 0.1
_LARGEST = 150
"""Largest number of validation pairs per group, so that those of low density do not dominate."""
_SMALLEST = 1e-4
"""Errors below this are rounding errors, in Å."""


@dataclass(frozen=True, eq=False)
class _Atoms:
    features: Tensor
    error: Tensor
    structure: Tensor
    subset: Array


def fit_error_estimate(
    network: DisplacementModel,
    batches: list[SiteBatches],
    seed: int = 0,
    *,
    steps: int | None = None,
    cross_fit: bool = True,
) -> tuple[DisplacementModel, dict[str, Any]]:
    """Return the network with an error estimate, and its reliability on structures not used in the fit.

    Args:
        network: The trained network; not changed.
        batches: Groups with validation pairs.
        seed: Seed of the folds and the fit.
        steps: Length of a fit; 1500 by default.
        cross_fit: Whether to fit the estimate several times more to measure its reliability.

    Returns:
        The network; and, unless it was not cross-fitted, by subset ``rank_correlation`` of the atoms,
        ``rank_correlation_of_structures``, ``mean_estimate``, ``mean_error`` (Å) and ``reliability`` (pairs of mean
        estimate and mean error in ten bins of equal numbers of atoms).

    Raises:
        TrainingError: There are fewer validation structures than folds.
    """
    steps = steps or _STEPS
    atoms = _atoms(network, batches)
    structures = int(atoms.structure.max()) + 1
    if structures < FOLDS:
        raise TrainingError(f"an error estimate needs at least {FOLDS} validation pairs, found {structures}")
    device = atoms.features.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # not of others' devices
        torch.manual_seed(seed)
        sizes: Any = network.config
        out: Any = build_network(replace(sizes, error_head_features=HIDDEN)).to(device)
        out.load_state_dict(network.state_dict(), strict=False)
        fold = torch.as_tensor(np.random.default_rng(seed).permutation(structures) % FOLDS, device=device)
        of_atom = fold[atoms.structure]
        estimate = torch.zeros_like(atoms.error)
        for k in range(FOLDS if cross_fit else 0):
            _fit(out, atoms, of_atom != k, steps)
            with torch.no_grad():
                estimate[of_atom == k] = out.expected_error(atoms.features[of_atom == k])
        _fit(out, atoms, torch.ones_like(of_atom, dtype=torch.bool), steps)
    out.eval().requires_grad_(requires_grad=False)
    return out, _report(atoms, estimate) if cross_fit else {}


@torch.no_grad()
def _atoms(network: DisplacementModel, batches: list[SiteBatches]) -> _Atoms:
    """Collect the input of the head and the true error of every validation atom."""
    network.eval()
    features, errors, structures, subsets = [], [], [], []
    count = 0
    for own in batches:
        chosen = np.random.default_rng(0).permutation(own.group.indices("val"))[:_LARGEST]
        for start in range(0, len(chosen), 25):
            numbers, kinds, target, real = own.batch(chosen[start : start + 25])
            found, error = own.with_features(network, numbers, kinds, target, own.states(chosen[start : start + 25]))
            present = real > 0
            index = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers) + count
            features.append(found[present])
            errors.append(error[present])
            structures.append(index[present])
            subsets.append(np.full(int(present.sum()), own.group.subset))
            count += numbers.shape[1]
    if not features:
        raise TrainingError("an error estimate needs validation pairs, found none")
    return _Atoms(torch.cat(features), torch.cat(errors), torch.cat(structures), np.concatenate(subsets))


def _fit(network: Any, atoms: _Atoms, chosen: Tensor, steps: int) -> None:
    """Fit a new head to some atoms, with equal weights of all subsets."""
    head = network.error
    if head is None:
        raise TrainingError("the network has no head to fit")
    for layer in head:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
            layer.requires_grad_(requires_grad=True)
    index = torch.nonzero(chosen).squeeze(1)
    error = atoms.error[index].clamp_min(_SMALLEST)
    last: Any = head[2]
    with torch.no_grad():
        last.bias.fill_(float(error.log().mean()))
    names = atoms.subset[index.cpu().numpy()]
    counts = dict(zip(*np.unique(names, return_counts=True), strict=True))
    weight = torch.as_tensor([1.0 / counts[name] for name in names], device=error.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        part = torch.multinomial(weight, min(_ATOMS, len(index)), replacement=True)
        expected = network.expected_error(atoms.features[index[part]])
        loss = (expected.log() + error[part] / expected).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def _report(atoms: _Atoms, estimate: Tensor) -> dict[str, Any]:
    error, guess, structure = atoms.error.cpu().numpy(), estimate.cpu().numpy(), atoms.structure.cpu().numpy()
    out = {}
    for name in sorted(set(atoms.subset.tolist())):
        own = atoms.subset == name
        e, g, s = error[own], guess[own], structure[own] - structure[own].min()
        size = np.bincount(s)
        means = [np.bincount(s, weights=v)[size > 0] / size[size > 0] for v in (g, e)]
        out[name] = {
            "rank_correlation": _finite(rank_correlation(g, e), 3),
            "rank_correlation_of_structures": _finite(rank_correlation(*means), 3),
            "mean_estimate": round(float(g.mean()), 5),
            "mean_error": round(float(e.mean()), 5),
            "reliability": [[round(a, 5), round(b, 5)] for a, b, _ in reliability_bins(g, e)],
        }
    return out


def _finite(value: float, digits: int) -> float | None:
    """Round a number; None if it is undefined, such as the rank correlation of two equal structures."""
    return round(value, digits) if math.isfinite(value) else None
