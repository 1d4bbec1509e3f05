"""The pairs of a run and their order, which depend only on its seed and counters."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.data import PackedDataset, PairGroup
from ase_definet.errors import TrainingError
from ase_definet.training.config import TrainConfig

Array: TypeAlias = NDArray[Any]


def chosen_groups(pack: PackedDataset, config: TrainConfig) -> list[PairGroup]:
    """Return the groups of pairs that a run is trained on.

    Raises:
        TrainingError: A subset is unknown, or there are no training pairs.
    """
    groups = [group for group in groups_of_subsets(pack, config) if len(group.indices("train"))]
    if not groups:
        wanted = ", ".join(config.sampling_weights or pack.subsets)
        raise TrainingError(f"{config.data}: no training pairs in {wanted}")
    return groups


def groups_of_subsets(pack: PackedDataset, config: TrainConfig) -> list[PairGroup]:
    """Return the groups of the subsets that a config names, of all by default.

    Raises:
        TrainingError: A subset is unknown.
    """
    unknown = sorted(set(config.sampling_weights) - set(pack.subsets))
    if unknown:
        raise TrainingError(
            f"sampling_weights name {', '.join(unknown)}; {config.data} has {', '.join(sorted(pack.subsets))}"
        )
    wanted = [name for name, share in config.sampling_weights.items() if share > 0] or list(pack.subsets)
    return [group for group in pack.groups if group.subset in wanted]


def shares_of(groups: list[PairGroup], config: TrainConfig) -> Array:
    """Return the share of the steps of each group; a subset's share is divided by numbers of pairs."""
    return shares_of_counts(groups, np.array([len(group.indices("train")) for group in groups], dtype=float), config)


def shares_of_counts(groups: list[PairGroup], pairs: Array, config: TrainConfig) -> Array:
    """Return the share of the steps of each group, from its number of structures; see :func:`shares_of`."""
    names = [group.subset for group in groups]
    whole = {name: sum(n for n, own in zip(pairs, names, strict=True) if own == name) for name in names}
    share = {
        name: config.sampling_weights.get(name, 0.0) if config.sampling_weights else math.sqrt(whole[name])
        for name in names
    }
    out = np.array([share[name] * n / max(whole[name], 1) for name, n in zip(names, pairs, strict=True)])
    return np.asarray(out / max(out.sum(), 1e-12))


def fraction_of(pairs: Array, config: TrainConfig) -> Array:
    """Return the training pairs of a group that the run uses, the same ones in every run."""
    if config.training_fraction == 1 or not len(pairs):
        return pairs
    kept = max(1, round(config.training_fraction * len(pairs)))
    return np.sort(np.random.default_rng(0).permutation(pairs)[:kept])


def next_pairs(pairs: Array, which: int, drawn: int, config: TrainConfig) -> Array:
    """Return the next training pairs of a group, reshuffled every epoch.

    Args:
        pairs: All its training pairs.
        which: Index of the group in the run.
        drawn: Number of batches drawn from it before.
        config: Batch size and seed.
    """
    first = drawn * config.batch_size
    wanted = np.arange(first, first + config.batch_size)
    out = []
    for epoch in np.unique(wanted // len(pairs)):
        order = np.random.default_rng([config.seed, which, int(epoch)]).permutation(pairs)
        out.append(order[wanted[wanted // len(pairs) == epoch] % len(pairs)])
    return np.concatenate(out)
