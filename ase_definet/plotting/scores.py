"""Pictures of scores and of training runs, as PNG files; needs matplotlib (``pip install 'ase-definet[plot]'``)."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ase_definet.errors import DefiNetError
from ase_definet.evaluation.scores import Score, reliability
from ase_definet.structures.files import replacing

Array: TypeAlias = NDArray[Any]

DPI = 150
FILES = ("error_by_distance.png", "parity.png", "reliability.png")
"""Names of what :func:`draw_scores` writes; the last only where there are expected errors."""
BIN = 0.5
"""Width of the bins of distance from a defect, in Å."""
REACH = 12.0
"""Where those bins end, in Å."""
FEWEST = 5
"""Atoms in a bin worth a quantile."""
SHORTEST = 1e-3
"""Displacements shorter than this are drawn as if they had this length, in Å."""

# Okabe and Ito, https://jfly.uni-koeln.de/color: told apart with any kind of colour vision
_INK, _PALE, _BLUE, _ORANGE = "#222222", "#9a9a9a", "#0072B2", "#D55E00"
_COLORS = (_BLUE, _ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#5B4B8A")
_DENSITY = LinearSegmentedColormap.from_list("density", ["#cfe2f0", "#6aaed6", "#2070b4", "#08306b", "#041a3a"])
_MARKERS = "osD^vPX*"
_PANEL = 2.5  # inches
_SMALL, _LARGE = 9, 11  # points
_COLUMNS = (3, 4)
_TICKS = ((2, (1,)), (0.8, (1, 2, 5)), (0, (1, 1.5, 2, 3, 4, 5, 6, 8)))
"""Labels in every decade of a logarithmic axis, by how many decades it spans at least."""
_LEGEND = {"frameon": False, "fontsize": _SMALL, "labelcolor": _INK}


def draw_scores(scores: list[Score], folder: Path) -> list[Path]:
    """Draw error against distance from the nearest defect, parity of displacements, and reliability.

    Args:
        scores: Of any subsets; those with expected errors make the last picture.
        folder: Where the files of :data:`FILES` go; it must exist.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: There is no such folder, or it was removed.
    """
    subsets = {name: [s for s in scores if s.subset == name] for name in sorted({s.subset for s in scores})}
    figures = [_errors_by_distance(subsets), _parity(subsets)]
    estimated = {name: [s for s in own if s.expected_error is not None] for name, own in subsets.items()}
    estimated = {name: own for name, own in estimated.items() if own}
    if estimated:
        figures.append(_reliability(estimated))
    return [save_figure(figure, folder / name) for figure, name in zip(figures, FILES, strict=False)]


def draw_learning_curve(logs: dict[str, Path], path: Path) -> Path:
    """Draw training loss and validation errors against steps, a line a run.

    Args:
        logs: What to call each run, and its ``log.csv``.
        path: The file to write; its folder must exist.

    Raises:
        DefiNetError: A file is no log of a training run, or has no rows yet.
        FileNotFoundError: There is no such folder, or it was removed.
    """
    runs = {label: _read_log(log) for label, log in logs.items()}
    if not runs:
        raise DefiNetError("no training logs were given, expected at least one log.csv")
    names = list(
        dict.fromkeys(key.removesuffix(" mae") for run in runs.values() for key in run if key.endswith(" mae"))
    )
    figure, panels = grid(1 + len(names))
    for panel, name in zip(panels, ("", *names), strict=True):
        lines = {" mae": "-", " a3": (0, (3, 1.5))} if name else {"loss": "-"}
        for (label, run), color in zip(runs.items(), _cycle(_COLORS), strict=False):
            for ending, style in lines.items():
                values = run.get(name + ending, np.array([]))
                known = np.isfinite(values)
                if known.any():
                    marker = "o" if known.sum() == 1 else ""
                    steps = run["step"][known]
                    panel.plot(steps, values[known], color=color, ls=style, lw=1.6, marker=marker, ms=4, label=label)
        panel.set_yscale("log")
        title(panel, f"{name}, validation" if name else "training loss")
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))  # noqa: PLR2004
        _plain_numbers(panel.yaxis)
    figure.supxlabel("training step", fontsize=_LARGE, color=_INK)
    figure.supylabel("error (Å)", fontsize=_LARGE, color=_INK)
    entries = [(label, {"color": color}) for label, color in zip(runs, _cycle(_COLORS), strict=False)]
    entries += [("all atoms", {"color": _INK}), ("within 3 Å of a defect", {"color": _INK, "ls": (0, (3, 1.5))})]
    _legend_above(figure, panels[0], entries)
    return save_figure(figure, path)


def _errors_by_distance(subsets: dict[str, list[Score]]) -> Figure:
    figure, panels = grid(len(subsets), share=True)
    edges = np.arange(0, REACH + BIN / 2, BIN)
    for panel, (name, scores) in zip(panels, subsets.items(), strict=True):
        distance = np.concatenate([score.distance for score in scores])
        error = np.concatenate([score.error for score in scores])
        true = np.linalg.norm(np.concatenate([score.true for score in scores]), axis=1)
        which = np.digitize(distance, edges) - 1
        filled = [k for k in range(len(edges) - 1) if (which == k).sum() >= FEWEST]
        middle = edges[filled] + BIN / 2
        for values, q, color, style in (
            (true, 0.9, _PALE, (0, (3, 1.5))),
            (true, 0.5, _PALE, "-"),
            (error, 0.9, _ORANGE, (0, (3, 1.5))),
            (error, 0.5, _BLUE, "-"),
        ):
            heights = [max(float(np.quantile(values[which == k], q)), 1e-6) for k in filled]
            panel.plot(middle, heights, color=color, ls=style, lw=1.4, marker="o", ms=3)
        panel.set_yscale("log")
        panel.set_xlim(0, REACH)
        panel.xaxis.set_major_locator(MaxNLocator(6))
        title(panel, name, f"{len(scores)} structure" + "s" * (len(scores) > 1))
    for panel in panels:
        _plain_numbers(panel.yaxis)
    figure.supxlabel("distance from the nearest defect site (Å)", fontsize=_LARGE, color=_INK)
    figure.supylabel("length per atom (Å)", fontsize=_LARGE, color=_INK)
    entries: list[tuple[str, dict[str, Any]]] = [
        ("error, median", {"color": _BLUE, "marker": "o"}),
        ("error, 90th percentile", {"color": _ORANGE, "marker": "o", "ls": (0, (3, 1.5))}),
        ("DFT displacement, median", {"color": _PALE, "marker": "o"}),
        ("DFT displacement, 90th percentile", {"color": _PALE, "marker": "o", "ls": (0, (3, 1.5))}),
    ]
    _legend_above(figure, panels[0], entries)
    return figure


def _parity(subsets: dict[str, list[Score]]) -> Figure:
    figure, panels = grid(len(subsets), share=True, square=True)
    lengths = {
        name: [
            np.maximum(np.linalg.norm(np.concatenate(part), axis=1), SHORTEST)
            for part in ([s.true for s in scores], [s.predicted for s in scores])
        ]
        for name, scores in subsets.items()
    }
    high = 1.3 * max(float(part.max()) for pair in lengths.values() for part in pair)
    extent = (math.log10(SHORTEST), math.log10(max(high, 10 * SHORTEST)))
    drawn = []
    for panel, (name, (true, predicted)) in zip(panels, lengths.items(), strict=True):
        panel.set_xscale("log")
        panel.set_yscale("log")
        drawn.append(
            panel.hexbin(
                true,
                predicted,
                gridsize=45,
                xscale="log",
                yscale="log",
                extent=(*extent, *extent),
                mincnt=1,
                cmap=_DENSITY,
                linewidths=0.1,
            )
        )
        ends = 10 ** np.array(extent)
        panel.plot(ends, ends, color=_ORANGE, lw=1)
        panel.set_xlim(*ends)
        panel.set_ylim(*ends)
        _plain_numbers(panel.xaxis)
        _plain_numbers(panel.yaxis)
        maes = [np.mean([s.maes[key]["coordinate_mae"] for s in subsets[name]]) for key in ("model", "ideal_sites")]
        title(panel, name)
        panel.text(
            0.04,
            0.96,
            f"MAE {maes[0]:.4f} Å\nideal sites {maes[1]:.4f} Å",
            transform=panel.transAxes,
            va="top",
            fontsize=_SMALL,
            color=_INK,
            linespacing=1.4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
    most = max(float(bins.get_array().max()) for bins in drawn)
    norm = LogNorm(1, max(most, 10))
    for bins in drawn:
        bins.set_norm(norm)
    bar = figure.colorbar(drawn[0], ax=list(panels), shrink=0.6, aspect=25, pad=0.02)
    bar.set_label("atoms", fontsize=_LARGE, color=_INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=_SMALL, colors=_INK)
    _plain_numbers(bar.ax.yaxis)
    figure.supxlabel("displacement in DFT (Å)", fontsize=_LARGE, color=_INK)
    figure.supylabel("predicted displacement (Å)", fontsize=_LARGE, color=_INK)
    return figure


def _reliability(subsets: dict[str, list[Score]]) -> Figure:
    figure = _figure(2.9 * _PANEL, 2.1 * _PANEL)
    panel = figure.subplots()
    everything = [score for scores in subsets.values() for score in scores]
    lines = dict(zip(subsets, zip(_cycle(_COLORS), _cycle(tuple(_MARKERS)), strict=False), strict=False))
    ends = []
    for name, scores in [*subsets.items(), ("all atoms", everything)]:
        if name == "all atoms" and len(subsets) == 1:
            continue
        rows = [row for row in reliability(scores) if row["estimate"] > 0 and row["error"] > 0]
        estimate, error = [row["estimate"] for row in rows], [row["error"] for row in rows]
        ends += estimate + error
        color, marker = lines.get(name, (_INK, "o"))
        bold = name not in lines
        panel.plot(
            estimate,
            error,
            color=color,
            marker=marker,
            ms=6 if bold else 4.5,
            lw=2.4 if bold else 1.2,
            zorder=3 if bold else 2,
            label=name,
        )
    low, high = (min(ends) / 1.3, max(ends) * 1.3) if ends else (SHORTEST, 1.0)
    panel.plot([low, high], [low, high], color=_PALE, lw=1, ls=(0, (3, 1.5)), zorder=1, label="estimate = error")
    for axis, scale, limits in (
        (panel.xaxis, panel.set_xscale, panel.set_xlim),
        (panel.yaxis, panel.set_yscale, panel.set_ylim),
    ):
        scale("log")
        limits(low, high)
        _plain_numbers(axis)
    panel.set_aspect("equal")
    panel.set_xlabel("mean estimated error of a tenth of the atoms (Å)", fontsize=_LARGE, color=_INK)
    panel.set_ylabel("their mean true error (Å)", fontsize=_LARGE, color=_INK)
    clean(panel)
    panel.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), **_LEGEND)
    return figure


def _read_log(path: Path) -> dict[str, Array]:
    """Return the columns of a ``log.csv``, not a number where a row has none."""
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows, columns = list(reader), list(reader.fieldnames or [])
    if not rows or not {"step", "loss"} <= set(columns):
        raise DefiNetError(
            f"{path}: expected the log.csv of a training run (step, loss, ...), found {columns} and {len(rows)} rows"
        )
    try:
        return {key: np.array([float(row[key] or "nan") for row in rows]) for key in columns}
    except ValueError as error:
        raise DefiNetError(f"{path}: {error}; expected numbers only, as `ase-definet train` writes them") from error


def _figure(width: float, height: float) -> Figure:
    figure = Figure(
        figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.07, wspace=0.02)
    )
    FigureCanvasAgg(figure)
    return figure


def grid(n: int, *, share: bool = False, square: bool = False) -> tuple[Figure, list[Any]]:
    """Return a figure of so many panels, in as few rows as look well."""
    columns = n if n <= max(_COLUMNS) else min(_COLUMNS, key=lambda c: (-n % c, -c))
    rows = -(-n // columns)
    width = 1.8 + _PANEL * columns if square else 0.8 + _PANEL * max(columns, 2)
    figure = _figure(width, 1.0 + _PANEL * rows * (0.95 if square else 0.9))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for panel in axes[n:]:
        panel.set_visible(False)
    for panel in axes[:n]:
        clean(panel)
        if square:
            panel.set_box_aspect(1)
        if share:
            panel.tick_params(labelbottom=list(axes).index(panel) + columns >= n)
    return figure, list(axes[:n])


def clean(panel: Any) -> None:
    """Leave what carries information."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(_PALE)
    panel.tick_params(which="both", color=_PALE, labelcolor=_INK, labelsize=_SMALL)
    panel.grid(visible=True, color="#e8e8e8", lw=0.6)
    panel.set_axisbelow(True)


def title(panel: Any, name: str, more: str = "") -> None:
    """Write the title of a panel, and what follows it in a lighter shade."""
    panel.set_title(name, loc="left", fontsize=_LARGE, color=_INK, fontweight="bold")
    if more:
        panel.set_title(more, loc="right", fontsize=_SMALL, color="#666666")


def _plain_numbers(axis: Any) -> None:
    """Write 0.01, not 10 to the power of -2, and label finer where there is no decade to label."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(subs=next(ticks for least, ticks in _TICKS if decades >= least)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_above(figure: Figure, panel: Any, entries: list[tuple[str, dict[str, Any]]]) -> None:
    handles = [panel.plot([], [], label=label, lw=1.6, ms=4, **style)[0] for label, style in entries]
    wide = figure.get_figwidth() > 3 * _PANEL
    figure.legend(handles=handles, loc="outside upper center", ncols=4 if wide else 2, **_LEGEND)


def _cycle(values: tuple[str, ...]) -> Any:
    from itertools import cycle  # noqa: PLC0415

    return cycle(values)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure completely or not at all."""
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=DPI, format="png")
    return path
