"""The pair-additive baseline: a sum of terms for defects and for pairs of defects, fitted by ridge regression.

Every network for energies has to beat it. The terms of a pair are linear in its features
(:mod:`ase_definet.model.pair_table`), separately for each two kinds of defects; the strength of the regularisation is
chosen by cross-validation on the training data, for each host.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.data import PackedDataset, PairGroup
from ase_definet.model.config import SparseNetworkConfig
from ase_definet.properties.defects import DefectSites
from ase_definet.training.batches import lattice_of_group

Array: TypeAlias = NDArray[Any]

STRENGTHS = (1e-3, 1e-2, 3e-2, 0.1, 0.3)
"""Regularisations that are tried."""
FOLDS = 4
_FREE = 1e-6
_MANY = 2000
"""From this number of structures, one fold is enough."""


class PairAdditive:
    """Terms of defects and pairs for one host.

    Args:
        groups: Groups on this host; their training structures are fitted.
        column: Column of the label.
        pairs: Whether to fit terms of pairs, too.
    """

    def __init__(self, groups: Sequence[PairGroup], column: int, *, pairs: bool = True) -> None:
        self.column, self.pairs = column, pairs
        self.config = _config_of(groups)
        chosen = [group.labelled("train", column) for group in groups]
        found = [self.features(group, own) for group, own in zip(groups, chosen, strict=True)]
        features = np.concatenate(found)
        values = np.concatenate([g.labels[own, column] for g, own in zip(groups, chosen, strict=True)])
        per = np.maximum(features[:, : len(self.config.kinds)].sum(axis=1), 1)
        features, values = features / per[:, None], values / per
        self.strength = self._chosen_strength(features, values) if pairs else _FREE
        self.terms = self._fitted(features, values, [self.strength])[0]

    def features(self, group: PairGroup, chosen: Array) -> Array:
        """Return counts of defects and summed features of pairs, shape ``(n, n_features)``."""
        sites = DefectSites(lattice_of_group(group), self.config)
        batch = sites.batch(np.asarray(group.numbers)[chosen])
        kinds, mask = batch.kinds.numpy(), batch.mask.numpy()
        n_kinds = len(self.config.kinds)
        counts = np.stack([((kinds == k) & (mask > 0)).sum(axis=1) for k in range(n_kinds)], axis=1).astype(float)
        if not self.pairs:
            return counts
        table, rows = batch.features.numpy(), batch.rows.numpy()
        own = np.eye(rows.shape[1], dtype=bool)
        out = [counts]
        for a, b in combinations_with_replacement(range(n_kinds), 2):
            both = (kinds[:, :, None] == a) & (kinds[:, None, :] == b) & ~own
            part = np.zeros((len(rows), len(table)))
            structure, i, j = np.nonzero(both)
            np.add.at(part, (structure, rows[structure, i, j]), 0.5 if a == b else 1.0)
            out.append(part @ table)
        return np.concatenate(out, axis=1)

    def predict(self, group: PairGroup, chosen: Array) -> Array:
        """Return the fitted property of structures, shape ``(n,)``."""
        return np.asarray(self.features(group, chosen) @ self.terms)

    def _fitted(self, features: Array, values: Array, strengths: Sequence[float]) -> list[Array]:
        """Return the terms at each regularisation; those of single defects are not regularised."""
        n_kinds = len(self.config.kinds)
        single = np.arange(features.shape[1]) < n_kinds
        if len(features) > features.shape[1]:
            normal, right = features.T @ features, features.T @ values
            return [np.linalg.solve(normal + np.diag(np.where(single, _FREE, s)), right) for s in strengths]
        # fewer structures than features: the same solution from products between structures
        own, pairs = features[:, single], features[:, ~single]
        of_own, of_pairs = own @ own.T / _FREE, pairs @ pairs.T
        out = []
        for strength in strengths:
            weights = np.linalg.solve(of_own + of_pairs / strength + np.eye(len(values)), values)
            out.append(features.T @ weights / np.where(single, _FREE, strength))
        return out

    def _chosen_strength(self, features: Array, values: Array) -> float:
        fold = np.random.default_rng(0).permutation(len(values)) % FOLDS
        error = np.zeros(len(STRENGTHS))
        for k in range(FOLDS if len(values) < _MANY else 1):
            terms = self._fitted(features[fold != k], values[fold != k], STRENGTHS)
            error += [np.abs(features[fold == k] @ own - values[fold == k]).sum() for own in terms]
        return STRENGTHS[int(error.argmin())]


def fit_pair_additive(pack: PackedDataset, label: str, *, pairs: bool = True) -> dict[tuple[int, ...], PairAdditive]:
    """Fit the baseline to the training data of every host, by the atomic numbers of its primitive cell.

    Args:
        pack: The data.
        label: The property, which must be additive.
        pairs: Whether to fit terms of pairs, too.
    """
    column = list(pack.labels).index(label)
    hosts: dict[tuple[int, ...], list[PairGroup]] = {}
    for group in pack.groups:
        if len(group.labelled("train", column)):
            hosts.setdefault(tuple(sorted(group.unit_numbers.tolist())), []).append(group)
    return {host: PairAdditive(groups, column, pairs=pairs) for host, groups in hosts.items()}


def _config_of(groups: Sequence[PairGroup]) -> SparseNetworkConfig:
    kinds: set[tuple[int, int, int]] = set()
    for group in groups:
        numbers = np.asarray(group.numbers)
        base = np.broadcast_to(group.host_numbers, numbers.shape)
        defective = numbers != base
        kinds |= {
            (int(z), int(h), 0) for z, h in np.unique(np.stack([numbers[defective], base[defective]]), axis=1).T
        }
    host = tuple(sorted(groups[0].unit_numbers.tolist()))
    return SparseNetworkConfig(hosts=(host,), kinds=tuple(sorted(kinds)))
