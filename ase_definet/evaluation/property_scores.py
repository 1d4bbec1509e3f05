"""Score predicted properties on labelled data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.data import PackedDataset
from ase_definet.errors import StructureError
from ase_definet.evaluation.pair_additive import fit_pair_additive
from ase_definet.model.property_model import PropertyModel
from ase_definet.structures.metrics import rank_correlation, reliability_bins
from ase_definet.training.property_predictions import labelled_predictions

Array: TypeAlias = NDArray[Any]

N_WORST = 5


@dataclass(frozen=True, eq=False)
class PropertyScores:
    """Predictions of one property on one group of structures, beside the labels.

    Attributes:
        subset: What they belong to.
        target: The property; of additive ones all values are per defect site.
        unit: Its unit.
        ids: Names of the structures.
        labels: True values, shape ``(n,)``.
        values: Predicted values, shape ``(n,)``.
        expected: Expected absolute errors, shape ``(n,)``; None where the weights have no such estimate.
        baseline: Values of the pair-additive baseline, shape ``(n,)``; None where it was not fitted.
    """

    subset: str
    target: str
    unit: str
    ids: tuple[str, ...]
    labels: Array
    values: Array
    expected: Array | None
    baseline: Array | None = None


def score_properties(
    model: PropertyModel, pack: PackedDataset, split: str = "val", *, baseline: bool = False
) -> tuple[list[PropertyScores], list[str]]:
    """Predict every labelled structure of a split and compare.

    Args:
        model: A network for properties, in evaluation mode.
        pack: The data.
        split: ``train``, ``val`` or ``test``.
        baseline: Whether to fit the pair-additive baseline to the training data of additive properties, and score it.

    Returns:
        The scores, and ids of structures with defects that the network does not know.

    Raises:
        StructureError: No structure of the split has a label that the network predicts.
    """
    config: Any = model.config
    fits = {}
    if baseline:
        fits = {name: fit_pair_additive(pack, name) for name in config.additive if name in pack.labels}
    scores: list[PropertyScores] = []
    left_out: list[str] = []
    for found in labelled_predictions(model, pack, split):
        group = found.group
        left_out += [f"{group.subset} {key}: a defect that the weights do not know" for key in found.left_out]
        host = tuple(sorted(group.unit_numbers.tolist()))
        for column, name in enumerate(config.targets):
            own = np.flatnonzero(np.isfinite(found.labels[:, column]))
            if not len(own):
                continue
            per = np.maximum(found.n_defects[own], 1) if name in config.additive else np.ones(len(own))
            fit = fits.get(name, {}).get(host)
            scores.append(
                PropertyScores(
                    subset=group.subset,
                    target=name,
                    unit=pack.labels[name],
                    ids=tuple(group.ids[int(k)] for k in found.chosen[own]),
                    labels=found.labels[own, column] / per,
                    values=found.values[own, column] / per,
                    expected=None if found.expected is None else found.expected[own, column] / per,
                    baseline=None if fit is None else fit.predict(group, found.chosen[own]) / per,
                )
            )
    if not scores:
        raise StructureError(
            f"{pack.path}: no structure of the {split} split has a label {' or '.join(config.targets)} on a host "
            "that the weights know; pack the data with --labels"
        )
    return scores, left_out


def summarise_properties(scores: Sequence[PropertyScores]) -> dict[str, Any]:
    """Return the tables of scores, ready for JSON.

    Returns:
        By property: ``unit``, ``subsets.NAME`` and ``overall`` (their mean; ``n`` is the sum) with ``n``, ``mae``,
        ``median_error``, ``rmse``, ``r2``, ``rank_correlation``, ``baseline_mae`` where it was fitted, and
        ``expected_error`` where the weights estimate it.
    """
    out: dict[str, Any] = {}
    for name in dict.fromkeys(score.target for score in scores):
        own = [score for score in scores if score.target == name]
        subsets = {}
        for subset in sorted({score.subset for score in own}):
            subsets[subset] = _row([score for score in own if score.subset == subset])
        keys = [key for key in next(iter(subsets.values())) if key not in {"worst", "expected_error"}]
        overall = {
            key: float(np.mean([row[key] for row in subsets.values()]))
            for key in keys
            if all(row.get(key) is not None for row in subsets.values())
        }
        overall["n"] = sum(row["n"] for row in subsets.values())
        out[name] = {"unit": own[0].unit, "subsets": subsets, "overall": overall}
    return out


def _row(scores: Sequence[PropertyScores]) -> dict[str, Any]:
    labels, values = (np.concatenate([getattr(s, part) for s in scores]) for part in ("labels", "values"))
    error = values - labels
    variance = float(labels.var())
    row: dict[str, Any] = {
        "n": len(labels),
        "mae": float(np.abs(error).mean()),
        "median_error": float(np.median(np.abs(error))),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": 1 - float((error**2).mean()) / variance if variance > 0 else None,
        "rank_correlation": _finite(rank_correlation(values, labels)),
    }
    baselines = [s.baseline for s in scores if s.baseline is not None]
    if len(baselines) == len(scores):
        row["baseline_mae"] = float(np.abs(np.concatenate(baselines) - labels).mean())
    ids = [key for s in scores for key in s.ids]
    worst = np.argsort(-np.abs(error))[:N_WORST]
    row["worst"] = {ids[k]: float(np.abs(error[k])) for k in worst}
    estimates = [s.expected for s in scores if s.expected is not None]
    if len(estimates) == len(scores):
        expected = np.concatenate(estimates)
        row["expected_error"] = {
            "mean_estimate": float(expected.mean()),
            "rank_correlation": _finite(rank_correlation(expected, np.abs(error))),
            "within_twice": float((np.abs(error) <= 2 * expected).mean()),
            "bins": reliability_bins(expected, np.abs(error), 4),
        }
    return row


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
