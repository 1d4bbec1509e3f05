"""``ase-definet count-steps``: ionic steps of finished runs, a control and predictions side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import error_text, saved_text
from ase_definet.errors import DefiNetError

if TYPE_CHECKING:
    from ase_definet.outputs import IonicSteps

_SHOWN = 12


@click.command("count-steps")
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def count_command(paths: tuple[Path, ...], as_json: bool) -> None:  # noqa: FBT001
    """Count the ionic steps of PATHS: OUTCAR, vasprun.xml, OSZICAR, ASE trajectories, or folders with one of them.

    Of several the first is the control, and the others are compared with it: steps saved, and settings that differ.
    """
    from ase_definet.outputs import compare_settings, read_steps  # noqa: PLC0415

    runs: list[IonicSteps] = []
    failed: list[str] = []
    for path in paths:
        try:
            runs.append(read_steps(path))
        except (DefiNetError, OSError) as error:
            failed.append(error_text(error, path))
    problems = [text for run in runs[1:] for text in compare_settings(runs[0], run)]
    if as_json:
        records = [_record(run) | {"saved": _saved(runs[0], run) if run is not runs[0] else None} for run in runs]
        click.echo(json.dumps({"runs": records, "warnings": problems, "errors": failed}, indent=1))
    else:
        for run in runs:
            for line in _lines(run, " (control)" if run is runs[0] and len(runs) > 1 else ""):
                click.echo(line)
            saved = _saved(runs[0], run) if run is not runs[0] else None
            if saved is not None:
                click.echo(f"  {saved_text(saved)} than the control" if saved < 0 else f"  {saved_text(saved)}")
        for text in problems:
            click.echo(f"warning   {text}")
    for text in failed:
        click.echo(f"Error: {text}", err=True)
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(paths)} could not be counted")


def _saved(control: IonicSteps, run: IonicSteps) -> float | None:
    """Return the share of the control's steps that a run saves; None where one is known not to have converged."""
    if control.converged is False or run.converged is False:
        return None
    return 1 - run.steps / control.steps


def _record(run: IonicSteps) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "formula": run.formula,
        "steps": run.steps,
        "converged": run.converged,
        "fmax": run.fmax.tolist(),
        "energies": run.energies.tolist(),
        "settings": dict(run.settings),
        "notes": list(run.notes),
    }


def _lines(run: IonicSteps, role: str) -> list[str]:
    state = {True: "converged", False: "not converged", None: "convergence not known"}[run.converged]
    lines = [f"{run.path}{role}", f"  steps     {run.steps}, {state}{f', {run.formula}' if run.formula else ''}"]
    if len(run.fmax):
        shown = [f"{value:.3f}" for value in run.fmax]
        if len(shown) > _SHOWN:
            shown = [*shown[: _SHOWN - 2], "...", shown[-1]]
        lines.append(f"  |F|max    {' '.join(shown)} eV/Å")
    lines.append(f"  energy    {run.energies[0]:.4f} to {run.energies[-1]:.4f} eV")
    return [*lines, *(f"  note      {text}" for text in run.notes)]
