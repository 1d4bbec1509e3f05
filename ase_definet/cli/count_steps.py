"""``ase-definet count-steps``: ionic steps of finished runs, beside those of a control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import BadUsage, error_text, finite, saved_text
from ase_definet.errors import DefiNetError

if TYPE_CHECKING:
    from ase_definet.dft.ionic_steps import IonicSteps

_SHOWN = 12


@click.command("count-steps")
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1)
@click.option(
    "--control", type=click.Path(path_type=Path), help="The run without the prediction, to compare PATHS with."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def count_steps_command(paths: tuple[Path, ...], control: Path | None, as_json: bool) -> None:
    """Count the ionic steps of finished runs.

    \b
    ase-definet count-steps --control control/ predicted/

    PATHS are OUTCAR, vasprun.xml or OSZICAR files, ASE trajectories, or folders with one of them. With a control, the
    steps saved and settings that differ are shown; without one, or if it cannot be read, PATHS are listed and nothing
    is compared.
    """  # noqa: D301 - click reads \b as "leave the lines as they are"
    wanted = [path for path in paths if control is None or not _same_path(path, control)]
    if not wanted and control is None:
        raise BadUsage("expected at least one run: ase-definet count-steps [--control CONTROL] RUN...")
    failed: list[str] = []
    reference = None if control is None else _read(control, failed, "control ")
    runs = [run for path in wanted if (run := _read(path, failed)) is not None]
    problems = [text for run in runs for text in _problems(reference, run)]
    if as_json:
        shown = [] if reference is None else [_record(reference) | {"role": "control", "saved": None}]
        shown += [_record(run) | {"role": "run", "saved": _saved(reference, run)} for run in runs]
        click.echo(json.dumps({"runs": shown, "warnings": problems, "errors": failed}, indent=1))
    else:
        _print(reference, runs, problems)
    for text in failed:
        click.echo(f"Error: {text}", err=True)
    if failed:
        lost = "; nothing was compared: there is no control" if control is not None and reference is None else ""
        asked = len(wanted) + (control is not None)
        raise click.ClickException(f"{len(failed)} of {asked} could not be counted{lost}")


def _same_path(one: Path, other: Path) -> bool:
    return one.absolute() == other.absolute()


def _read(path: Path, failed: list[str], role: str = "") -> IonicSteps | None:
    """Return the steps of a run, or None and the reason at the end of a list."""
    from ase_definet.dft.ionic_steps import read_steps

    try:
        return read_steps(path)
    except (DefiNetError, OSError) as error:
        failed.append(f"{role}{error_text(error, path)}")
    return None


def _problems(control: IonicSteps | None, run: IonicSteps) -> list[str]:
    """Name what keeps a run from being compared with the control, if there is one."""
    from ase_definet.dft.ionic_steps import compare_settings

    return [] if control is None else compare_settings(control, run)


def _print(control: IonicSteps | None, runs: list[IonicSteps], problems: list[str]) -> None:
    """Print all runs, the control first."""
    if control is not None:
        for line in _lines(control, " (control)"):
            click.echo(line)
    for run in runs:
        for line in _lines(run, ""):
            click.echo(line)
        saved = _saved(control, run)
        if saved is not None:
            click.echo(f"  {saved_text(saved)} than the control" if saved < 0 else f"  {saved_text(saved)}")
    for text in problems:
        click.echo(f"warning   {text}")


def _saved(control: IonicSteps | None, run: IonicSteps) -> float | None:
    """Return the share of the control's steps that a run saves.

    None where there is no control, or one of both is known not to have converged.
    """
    if control is None or control.converged is False or run.converged is False:
        return None
    return 1 - run.steps / control.steps


def _record(run: IonicSteps) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "formula": run.formula,
        "steps": run.steps,
        "converged": run.converged,
        "fmax": run.fmax.tolist(),
        "energies": [finite(energy) for energy in run.energies],
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
