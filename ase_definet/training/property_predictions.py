"""Predictions of property networks on labelled data: what evaluation and the fit of expected errors start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ase_definet.data import PackedDataset, PairGroup
from ase_definet.model.config import PropertyEnsembleConfig, SparseNetworkConfig
from ase_definet.model.property_model import PropertyModel
from ase_definet.properties.defects import DefectSites
from ase_definet.training.batches import lattice_of_group

Array: TypeAlias = NDArray[Any]

_BATCH = 256


@dataclass(frozen=True, eq=False)
class LabelledPredictions:
    """Predictions beside labels, for one group.

    Attributes:
        group: The structures.
        chosen: Indices of those predicted, shape ``(n,)``.
        host: Index of their host in the config of the network.
        n_defects: Their defect sites, shape ``(n,)``.
        labels: Labels, NaN where unknown, shape ``(n, n_targets)``.
        values: Predictions, shape ``(n, n_targets)``.
        spread: Standard deviation over the ensemble, shape ``(n, n_targets)``; None for a single network.
        expected: Expected absolute errors, shape ``(n, n_targets)``; None for a single network.
        left_out: Ids of structures with defects that the network does not know.
    """

    group: PairGroup
    chosen: Array
    host: int
    n_defects: Array
    labels: Array
    values: Array
    spread: Array | None
    expected: Array | None
    left_out: tuple[str, ...]


def sizes_in(model: PropertyModel) -> SparseNetworkConfig:
    """Return the config of a network, of an ensemble that of its first network."""
    config: Any = model.config
    sizes: SparseNetworkConfig = config.first if isinstance(config, PropertyEnsembleConfig) else config
    return sizes


@torch.no_grad()
def labelled_predictions(model: PropertyModel, pack: PackedDataset, split: str) -> Iterator[LabelledPredictions]:
    """Predict all structures of a split that have a label, group by group.

    Args:
        model: A network, in evaluation mode.
        pack: The data.
        split: ``train``, ``val`` or ``test``.
    """
    config = sizes_in(model)
    targets = model.config.targets
    columns = [list(pack.labels).index(name) if name in pack.labels else None for name in targets]
    device = next(model.parameters()).device
    for group in pack.groups:
        key = tuple(sorted(group.unit_numbers.tolist()))
        chosen = group.indices(split, relaxed=False)
        labels = np.full((len(group), len(targets)), np.nan)
        for place, column in enumerate(columns):
            if column is not None:
                labels[:, place] = group.labels[:, column]
        chosen = chosen[np.isfinite(labels[chosen]).any(axis=1)]
        if not len(chosen) or key not in config.hosts:
            continue
        sites = DefectSites(lattice_of_group(group), config)
        numbers = np.asarray(group.numbers)
        known = sites.known(numbers[chosen])
        left_out = tuple(group.ids[int(k)] for k in chosen[~known])
        chosen = chosen[known]
        count = (numbers[chosen] != group.host_numbers).sum(axis=1)
        chosen = chosen[np.argsort(count, kind="stable")]
        found = []
        for part in np.array_split(chosen, max(1, len(chosen) // _BATCH)):
            batch = sites.batch(numbers[part]).to(device)
            mean, spread = model.spread(batch)
            expected = None if spread is None else model.expected_error(batch, spread)  # type: ignore[operator]
            found.append((mean, spread, expected))
        values, spreads, errors = (
            None if parts[0] is None else torch.cat(parts).double().cpu().numpy()
            for parts in zip(*found, strict=True)
        )
        yield LabelledPredictions(
            group=group,
            chosen=chosen,
            host=sites.host,
            n_defects=np.sort(count),
            labels=labels[chosen],
            values=values if values is not None else np.empty((0, len(targets))),
            spread=spreads,
            expected=errors,
            left_out=left_out,
        )
