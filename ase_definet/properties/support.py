"""Which properties weights predict well enough to be shown: judged by their own validation on the host."""

from __future__ import annotations

from collections.abc import Mapping

from ase_definet.checkpoints.card import ModelCard, PropertyScoreRecord

LEAST = 0.5
"""Share of the variance that a property's predictions must explain on a host, and their rank correlation with the
labels, both at least: below, always saying the mean is nearly as good, and an order by the property nearly random."""


def weakest_score(card: ModelCard, target: str, host: str) -> PropertyScoreRecord | None:
    """Return how well a property is predicted on a host, on the subset where that is worst; None if not recorded.

    Args:
        card: Of the weights.
        target: The property.
        host: Name of the host in the training data.
    """
    scores = [one for one in card.property_scores.get(target, {}).values() if one.host == host]
    return min(scores, key=_quality, default=None)


def no_support(card: ModelCard, host: str, units: Mapping[str, str]) -> dict[str, str]:
    """Return the properties whose predictions on a host mean nothing, with the reasons.

    Properties of which nothing is recorded are not judged.

    Args:
        card: Of the weights.
        host: Name of the host in the training data.
        units: The properties and their units.
    """
    scores = {name: weakest_score(card, name, host) for name in units}
    return {
        name: _reason(score, name, units[name])
        for name, score in scores.items()
        if score is not None and _quality(score) < LEAST
    }


def _reason(score: PropertyScoreRecord, name: str, unit: str) -> str:
    rank = "unknown" if score.rank_correlation is None else f"{score.rank_correlation:.2f}"
    error, mean = (" ".join(filter(None, (f"{value:.3g}", unit))) for value in (score.mae, score.mean_mae))
    return (
        f"on validation data of {score.host}, {name} is hardly predicted better than by always saying the mean: mean "
        f"error {error} instead of {mean}, {max(score.r2, 0):.0%} of the variance explained, rank correlation {rank}"
    )


def _quality(score: PropertyScoreRecord) -> float:
    """Return the share of the variance explained or the rank correlation, the lower one."""
    return min(score.r2, -1.0 if score.rank_correlation is None else score.rank_correlation)
