"""``ase-definet compare-steps``: how many ionic steps a prediction saves, with a calculator of your own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import (
    FILE,
    PATH,
    BadUsage,
    PositiveFloat,
    about,
    calculator_option,
    calculator_settings,
    check_folder,
    checked_host,
    counts,
    error_text,
    host_option,
    make_relaxer,
    model_option,
    overwrite_option,
    refuse_existing,
    saved_text,
    set_option,
    wrong_kind,
)
from ase_definet.errors import CalculatorError, DefiNetError, StructureError
from ase_definet.structures.files import replacing

if TYPE_CHECKING:
    from ase_definet.evaluation.compare_steps import Comparison
    from ase_definet.relaxation.relaxer import DefiNetRelaxer
    from ase_definet.relaxation.result import RelaxResult

_OPTIMIZERS = ("BFGS", "LBFGS", "FIRE", "CG")


@click.command("compare-steps")
@click.argument("files", type=PATH, nargs=-1, required=True)
@host_option
@calculator_option("The calculator that counts", required=True)
@click.option("--optimizer", type=click.Choice(_OPTIMIZERS), default="BFGS", show_default=True)
@click.option(
    "--fmax",
    type=PositiveFloat(),
    default=0.05,
    show_default=True,
    help="Largest force of a converged structure, in eV/Å.",
)
@click.option(
    "--max-steps", type=click.IntRange(min=1), default=200, show_default=True, help="Limit of each relaxation."
)
@model_option
@set_option
@click.option(
    "--fit-lattice",
    is_flag=True,
    help="First fit the lattice constant of the host with the calculator, and scale the cell to it.",
)
@click.option("--json", "out", type=FILE, help="Write everything to this file.")
@overwrite_option
def compare_steps_command(
    files: tuple[Path, ...],
    host: str,
    calculator: str,
    optimizer: str,
    fmax: float,
    max_steps: int,
    model: str,
    settings: tuple[str, ...],
    fit_lattice: bool,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Count the ionic steps that a prediction saves.

    Each of FILES is relaxed twice with a calculator, at fixed cell: from the host's ideal sites and from the
    prediction. An ionic step is one evaluation of the forces. A relaxation that does not converge is a result, not an
    error.
    """
    _check_output(out, overwrite=overwrite)
    chosen = calculator_settings({"calculator": calculator}, settings).get("calculator_settings", {})
    make = _maker(calculator, chosen)
    resolved = checked_host(host)
    from ase_definet.evaluation.compare_steps import compare_steps

    relaxer = make_relaxer(model, resolved)
    head = {"model": relaxer.model, "calculator": calculator, "optimizer": optimizer, "fmax": fmax}
    head |= {"settings": chosen} if chosen else {}
    fitted = _Fitted(make) if fit_lattice else None
    records: list[dict[str, Any]] = []
    for file in files:
        result = _predicted(relaxer, file)
        if isinstance(result, str):
            records.append({"file": str(file), "error": result})
            continue
        try:
            scale = 1.0 if fitted is None else fitted(result)
        except CalculatorError as error:
            click.echo(f"Error: {error_text(error, file)}", err=True)
            records.append({"file": str(file), "error": error_text(error)})
            continue
        click.echo(f"{file}: {counts(result.site_map.defect_counts)}, {len(result.atoms)} atoms, {calculator}")
        if fitted is not None:
            click.echo(f"  the lattice constant of {calculator} is {scale - 1:+.2%} off; the cell was scaled to it")
        comparison = compare_steps(result, make, optimizer, fmax, max_steps, scale)
        for line in table_lines(comparison):
            click.echo(f"  {line}")
        record = {"file": str(file), "warnings": list(result.warnings)} | comparison.summary()
        if not (comparison.unrelaxed.steps or comparison.predicted.steps):
            record["error"] = comparison.unrelaxed.error
        records.append(record)
        _write(out, head, records)  # a long calculation must not lose the ones before it
    _write(out, head, records)
    if out is not None:
        click.echo(f"wrote {out}")
    failed = sum("error" in record for record in records)
    if failed:
        raise click.ClickException(f"{failed} of {len(files)} structures could not be used")


class _Fitted:
    """The scale of every supercell, each fitted once."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.known: dict[tuple[object, ...], float] = {}

    def __call__(self, result: RelaxResult) -> float:
        from ase_definet.evaluation.compare_steps import fit_scale

        key = (result.site_map.supercell.tobytes(), result.site_map.cell.round(4).tobytes())
        if key not in self.known:
            self.known[key] = fit_scale(result, self.make)
        return self.known[key]


def _check_output(out: Path | None, *, overwrite: bool) -> None:
    if out is None:
        return
    refuse_existing(out, overwrite=overwrite)
    check_folder(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)


def _maker(calculator: str, settings: dict[str, Any]) -> Callable[[], Any]:
    """Return what makes the calculator, tried once."""
    from ase_definet.relaxation.calculators import get_calculator

    def make() -> Any:
        return get_calculator(calculator, **settings)

    try:
        make()
    except CalculatorError as error:
        raise BadUsage(error_text(error)) from error
    return make


def _predicted(relaxer: DefiNetRelaxer, file: Path) -> RelaxResult | str:
    """Return the prediction for a file, or what is wrong with it; say its warnings."""
    from ase_definet.structures.reading import read_structure

    try:
        if (problem := wrong_kind(file, "file")) is not None:
            raise StructureError(problem)
        with about(file):
            result = relaxer.predict(read_structure(file))
    except (click.ClickException, DefiNetError) as error:
        click.echo(f"Error: {error}", err=True)
        return str(error)
    for text in result.warnings:
        click.echo(f"warning   {file}: {text}", err=True)
    return result


def table_lines(comparison: Comparison) -> list[str]:
    """Return the comparison as lines of text."""
    lines = ["from        steps  first |F|max  energy above its end      s"]
    for name in ("unrelaxed", "predicted"):
        run = getattr(comparison, name)
        numbers = run.summary()
        if run.error:
            lines.append(f"{name:10s}  failed after {run.steps} steps: {run.error}")
            continue
        state = "" if run.converged else "  not converged"
        above = numbers["first_energy_above_last"]
        lines.append(
            f"{name:10s}  {run.steps:5d}  {numbers['first_fmax']:8.3f} eV/Å  {above:18.3f} eV  {run.seconds:5.0f}"
            f"{state}"
        )
    where = "the same minimum" if comparison.same_minimum else f"other minima, {comparison.distance:.2f} Å apart"
    if comparison.saved is not None:
        lines.append(f"{saved_text(comparison.saved)}; {where}")
    if not (comparison.unrelaxed.steps and comparison.predicted.steps):
        return lines
    lines.append(
        f"coordinate MAE to the end of each run: host's sites {comparison.ideal_sites_error:.4f} Å, prediction "
        f"{comparison.prediction_error:.4f} Å"
    )
    return lines


def _write(out: Path | None, head: dict[str, Any], records: list[dict[str, Any]]) -> None:
    if out is not None:
        with replacing(out) as fresh:
            fresh.write_text(json.dumps(head | {"structures": records}, indent=1) + "\n", encoding="utf-8")
