"""Parity of predicted properties, as PNG files; needs matplotlib (``pip install 'ase-definet[plot]'``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ase_definet.evaluation.property_scores import PropertyScores
from ase_definet.plotting.scores import clean, grid, save_figure, title

_BLUE, _INK = "#0072B2", "#222222"
_MARGIN = 0.03


def picture_names(targets: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the files that :func:`draw_parity` writes."""
    return tuple(f"parity_{target}.png" for target in targets)


def draw_parity(scores: Sequence[PropertyScores], folder: Path) -> list[Path]:
    """Draw predictions against labels, one picture per property and one panel per subset.

    Args:
        scores: The scores.
        folder: Where the pictures go; it must exist.

    Returns:
        The files written.
    """
    out = []
    for target in dict.fromkeys(score.target for score in scores):
        own = [score for score in scores if score.target == target]
        subsets = sorted({score.subset for score in own})
        figure, panels = grid(len(subsets), square=True)
        for panel, subset in zip(panels, subsets, strict=False):
            mine = [score for score in own if score.subset == subset]
            labels = np.concatenate([score.labels for score in mine])
            values = np.concatenate([score.values for score in mine])
            low, high = float(min(labels.min(), values.min())), float(max(labels.max(), values.max()))
            margin = _MARGIN * (high - low or 1.0)
            ends = (low - margin, high + margin)
            panel.plot(ends, ends, color=_INK, linewidth=0.8)
            panel.scatter(labels, values, s=6, color=_BLUE, alpha=0.5, linewidths=0)
            panel.set(xlim=ends, ylim=ends)
            clean(panel)
            title(panel, subset, f"MAE {np.abs(values - labels).mean():.3f} {own[0].unit}")
        figure.supxlabel(f"DFT, {own[0].unit}", fontsize=9, color=_INK)
        figure.supylabel(f"predicted, {own[0].unit}", fontsize=9, color=_INK)
        out.append(save_figure(figure, folder / f"parity_{target}.png"))
    return out
