"""``ase-definet evaluate``: score weights on pairs that DFT has relaxed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import (
    FILE,
    FOLDER,
    IN_EITHER,
    BadUsage,
    check_folder,
    device_option,
    finite,
    make_relaxer,
    model_option,
    overwrite_option,
    refuse_existing,
    training_missing,
)
from ase_definet.cli.data import open_or_pack
from ase_definet.cli.progress import ProgressBar
from ase_definet.structures.files import replacing

if TYPE_CHECKING:
    from ase_definet.data import PackedDataset

_COLUMNS = ("coordinate_mae", "a3", "a4", "a5", "a6")
_LEFT_OUT_SHOWN = 10


@click.command("evaluate")
@click.option("--data", required=True, type=IN_EITHER, help="Packed data set, or any source that `data pack` reads.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="val", show_default=True)
@model_option
@click.option("--host", metavar="HOST", help="Host of all pairs, if the data do not name one.")
@click.option("--subset", multiple=True, metavar="NAME", help="Only this subset, such as high/MoS2; repeatable.")
@device_option
@click.option("--limit", type=click.IntRange(min=1), help="Largest number of pairs per set of sites, evenly spread.")
@click.option(
    "--properties",
    metavar="WEIGHTS",
    help="Score weights for properties instead: bundled ones by name (default), or a .safetensors file.",
)
@click.option(
    "--pair-additive", is_flag=True, help="Fit the pair-additive baseline of additive properties, too (minutes)."
)
@click.option("--no-superposition", is_flag=True, help="Omit the sum of single-defect fields.")
@click.option(
    "--without-state",
    is_flag=True,
    help="Withhold charge, spin and excitation, to measure their effect.",
)
@click.option("--json", "out", type=FILE, help="Write everything to this file.")
@click.option("--plot", type=FOLDER, help="Draw error against distance, parity and reliability into this folder.")
@overwrite_option
def evaluate_command(
    data: Path,
    split: str,
    model: str,
    host: str | None,
    subset: tuple[str, ...],
    device: str,
    limit: int | None,
    properties: str | None,
    pair_additive: bool,
    no_superposition: bool,
    without_state: bool,
    out: Path | None,
    plot: Path | None,
    overwrite: bool,
) -> None:
    """Score weights on pairs relaxed with DFT.

    Prints the coordinate MAE in Å, averaged over structures, of the prediction, of the ideal sites and of a
    superposition of single-defect fields; A3 to A6 count the atoms within 3 to 6 Å of a defect site. With
    --properties, prints MAE, RMSE, R² and rank correlation of every labelled property.
    """
    if properties is not None or _holds_properties(model):
        pack = _only(open_or_pack(data, host), subset)
        _evaluate_properties(properties or model, pack, split, out, plot, baseline=pair_additive, overwrite=overwrite)
        return
    _check_targets(out, plot, overwrite=overwrite)
    from ase_definet.evaluation.scores import reliability, score_pairs, summarise

    relaxer = make_relaxer(model, device=device)
    pack = _only(open_or_pack(data, host), subset)
    total = sum(min(len(group.indices(split)), limit or len(group)) for group in pack.groups)
    with ProgressBar("scoring", total) as bar:
        scores, left_out = score_pairs(
            relaxer,
            pack,
            split,
            superposition=not no_superposition,
            with_state=not without_state,
            limit=limit,
            progress=bar.advance,
        )
    _show_left_out(left_out)
    result: dict[str, Any] = {"model": relaxer.model, "split": split, "data_sha256": pack.sha256}
    result["with_state"] = not without_state
    result |= summarise(scores) | {"left_out": left_out}
    if all(score.expected_error is not None for score in scores):
        result["reliability"] = reliability(scores)
    for line in table_lines(result):
        click.echo(line)
    if out is not None:
        with replacing(out) as fresh:
            fresh.write_text(json.dumps(_plain(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        click.echo(f"wrote {out}")
    if plot is not None:
        from ase_definet.plotting.scores import draw_scores

        for path in draw_scores(scores, plot):
            click.echo(f"wrote {path}")


def _holds_properties(model: str) -> bool:
    """Return whether --model is a file of weights for properties."""
    from ase_definet.checkpoints.format import holds_properties

    return Path(model).is_file() and holds_properties(model)


def _evaluate_properties(
    weights: str,
    pack: PackedDataset,
    split: str,
    out: Path | None,
    plot: Path | None,
    *,
    baseline: bool,
    overwrite: bool,
) -> None:
    """Score weights for properties."""
    from ase_definet.checkpoints.bundled import resolve_properties
    from ase_definet.checkpoints.format import load_properties

    try:
        from ase_definet.evaluation.property_scores import score_properties, summarise_properties
    except ModuleNotFoundError as error:
        raise training_missing(error) from error
    loaded = load_properties(resolve_properties(weights))
    config: Any = loaded.config
    names = [f"parity_{name}.png" for name in config.targets]
    _check_targets(out, plot, overwrite=overwrite, names=names)
    scores, left_out = score_properties(loaded.model.eval(), pack, split, baseline=baseline)
    _show_left_out(left_out)
    found = {"weights": loaded.card.name, "version": loaded.card.version, "sha256": loaded.sha256}
    result: dict[str, Any] = found | {"split": split, "data_sha256": pack.sha256}
    result |= {"properties": summarise_properties(scores), "left_out": left_out}
    for line in property_lines(result):
        click.echo(line)
    if out is not None:
        with replacing(out) as fresh:
            fresh.write_text(json.dumps(_plain(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        click.echo(f"wrote {out}")
    if plot is not None:
        from ase_definet.plotting.property_scores import draw_parity

        for path in draw_parity(scores, plot):
            click.echo(f"wrote {path}")


def property_lines(result: dict[str, Any]) -> list[str]:
    """Return the tables of properties as lines of text."""
    lines = []
    for name, table in result["properties"].items():
        rows = [*table["subsets"].items(), ("average", table["overall"])]
        width = max(len(subset) for subset, _ in rows)
        per = " per defect site" if name.startswith("formation_energy") else ""
        lines.append(f"{name}, {result['split']}, {table['unit']}{per}")
        lines.append(f"{'subset':{width}s}      n      MAE     RMSE      R²    rank  expected  pair-additive")
        for subset, row in rows:
            numbers = [row.get(key) for key in ("mae", "rmse", "r2", "rank_correlation")]
            numbers += [row.get("expected_error", {}).get("mean_estimate"), row.get("baseline_mae")]
            cells = ("" if v is None else f"{v:.4f}" for v in numbers)
            sizes = (8, 8, 7, 7, 9, 14)
            lines.append(
                f"{subset:{width}s} {row['n']:6d} "
                + " ".join(f"{c:>{w}s}" for c, w in zip(cells, sizes, strict=True))
            )
    return lines


def _check_targets(
    out: Path | None, plot: Path | None, *, overwrite: bool, names: Sequence[str] | None = None
) -> None:
    """Check that the outputs can be written, before any work is done, and create their folders."""
    targets = [] if out is None else [out]
    if plot is not None:
        try:
            from ase_definet.plotting.scores import FILES
        except ModuleNotFoundError as error:
            raise click.ClickException(f"plots need {error.name}: pip install 'ase-definet[plot]'") from error
        targets += [plot / name for name in (FILES if names is None else names)]
    for target in targets:
        check_folder(target.parent)
        refuse_existing(target, overwrite=overwrite)
    for target in targets:  # here, and not when all is scored: a folder that goes in between is missed then
        target.parent.mkdir(parents=True, exist_ok=True)


def _only(pack: PackedDataset, subset: tuple[str, ...]) -> PackedDataset:
    unknown = sorted(set(subset) - set(pack.subsets))
    if unknown:
        raise BadUsage(f"{pack.path} has no subset {', '.join(unknown)}; it has {', '.join(sorted(pack.subsets))}")
    return replace(pack, groups=tuple(group for group in pack.groups if group.subset in subset or not subset))


def _show_left_out(left_out: list[str]) -> None:
    for text in left_out[:_LEFT_OUT_SHOWN]:
        click.echo(f"left out  {text}", err=True)
    if len(left_out) > _LEFT_OUT_SHOWN:
        click.echo(f"left out  {len(left_out) - _LEFT_OUT_SHOWN} more, in the JSON", err=True)


def table_lines(result: dict[str, Any]) -> list[str]:
    """Return the table of a result as lines of text."""
    rows = [*result["subsets"].items(), ("average", result["overall"])]
    width = max(len(name) for name, _ in rows)
    blind = "" if result.get("with_state", True) else ", charge and spin withheld"
    lines = [f"{result['model']}, {result['split']}{blind}: coordinate MAE in Å"]
    head = "     n     all      A3      A4      A5      A6   ideal s.      A3 superpos.      A3     ms"
    lines.append(f"{'subset':{width}s} {head}")
    for name, row in rows:
        own = " ".join(f"{row.get(key, float('nan')):7.4f}" for key in _COLUMNS)
        others = " ".join(
            f"{other.get('coordinate_mae', float('nan')):9.4f} {other.get('a3', float('nan')):7.4f}"
            for other in (row.get("ideal_sites", {}), row.get("superposition", {}))
        )
        lines.append(f"{name:{width}s} {row['n']:6d} {own} {others} {1e3 * row['seconds_per_structure']:6.0f}")
    if "expected_error" in result["overall"]:
        own = result["overall"]["expected_error"]
        lines.append(
            f"expected error: rank correlation with the error {own['rank_correlation']:.2f} (atoms), "
            f"{own['rank_correlation_of_structures']:.2f} (structures); "
            f"mean {own['mean_estimate']:.4f} Å expected, {own['mean_error']:.4f} Å found"
        )
    return lines


def _plain(value: Any) -> Any:
    """Replace values that JSON cannot represent, such as an undefined rank correlation, by null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return finite(value) if isinstance(value, float) else value
