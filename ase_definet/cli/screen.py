"""``ase-definet screen``: relax any number of structures, resumably."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import (
    FOLDER,
    INTERRUPTED,
    BadUsage,
    calculator_settings,
    check_folder,
    checked_host,
    device_option,
    error_text,
    extrapolate_option,
    host_option,
    model_option,
    relaxation_options,
    set_option,
    strain_option,
)
from ase_definet.cli.progress import ProgressBar
from ase_definet.cli.states import AskedState, state_options
from ase_definet.errors import CalculatorError, CheckpointError, DeviceError

if TYPE_CHECKING:
    from ase_definet.screening.screen import Named, Progress


_NAMED = 20
"""Skipped files that are named at the end, at most."""
_SILENCE = 60.0
"""Seconds without a word where there is no progress bar."""


@click.command("screen")
@click.argument("inputs", type=click.Path(path_type=Path, allow_dash=True), nargs=-1, required=True)
@host_option
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    required=True,
    help="Folder for the results; an unfinished screen in it is resumed.",
)
@model_option
@device_option
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes; several need Dask."
)
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Use the workers of this Dask scheduler instead.")
@click.option(
    "--block",
    type=click.IntRange(min=1),
    help="Structures relaxed and recorded together.  [default: 64, with a calculator 1]",
)
@state_options
@click.option("--parquet", is_flag=True, help="Also write the finished table as table.parquet.")
@strain_option
@extrapolate_option
@relaxation_options
@set_option
def screen_command(
    inputs: tuple[Path, ...],
    host: str,
    output: Path,
    model: str,
    device: str,
    workers: int,
    scheduler: str | None,
    block: int | None,
    parquet: bool,
    max_strain: float,
    extrapolate: bool,
    settings: tuple[str, ...],
    state: AskedState,
    calculation: dict[str, Any],
) -> None:
    """Relax any number of structures; an interrupted screen can be resumed.

    INPUTS are files with one or many structures, folders of such files, or - for extended XYZ from a pipe. If a
    screen is interrupted, the same command resumes it. Several charges (--charge -2:2) give each structure a row for
    each of them, with the charge in its name: NAME_q-1. Structures that fail are listed in failures.csv with the
    reason; other files in a folder are skipped and named.
    """
    piped = _is_pipe(inputs)
    calculation = calculator_settings(calculation, settings)
    resolved = checked_host(host)
    check_folder(output)
    # the host as it is now: its file may be replaced while the screen runs
    chosen = {"model": model, "device": device, "host": resolved, "max_strain": max_strain}
    chosen |= {"extrapolate": extrapolate, "calculation": calculation}
    chosen["sha256"] = _ready(chosen, workers, scheduler, parquet=parquet)
    asked = _asked(inputs, host, chosen, state)
    skipped: list[str] = []
    source = _from_pipe() if piped else _from_paths(inputs, skipped)
    if state.anything:
        source = _in_states(source, state)
    meter = _Meter()
    block = block or (1 if calculation else 64)
    done = _run(source, output, asked, chosen, meter, workers=workers, scheduler=scheduler, block=block)
    for reason in skipped[:_NAMED]:
        click.echo(f"skipped   {reason}", err=True)
    if len(skipped) > _NAMED:
        click.echo(f"skipped   {len(skipped) - _NAMED} more that are no structures", err=True)
    if not done.done:
        hint = "is the enumeration before it empty?" if piped else "are they in a folder below, or in another?"
        raise click.ClickException(f"no structures in {', '.join(map(str, inputs))}: {hint}")
    if parquet:
        from ase_definet.screening.screen import write_parquet

        write_parquet(output)
    _summarise(output, done, len(skipped), meter.speed(done))


def _ready(settings: dict[str, Any], workers: int, scheduler: str | None, *, parquet: bool) -> str:
    """Make sure that a screen can start, before there is a folder of it; return the SHA-256 of its weights."""
    from ase_definet.checkpoints.bundled import resolve_model
    from ase_definet.checkpoints.format import load_checkpoint
    from ase_definet.screening.screen import check_parquet, check_settings

    if parquet:
        check_parquet()
    try:
        weights = load_checkpoint(resolve_model(settings["model"])).sha256
        check_settings(settings | {"sha256": weights}, workers=workers, scheduler=scheduler)
    except (CalculatorError, CheckpointError, DeviceError) as error:
        raise BadUsage(error_text(error)) from error
    return weights


def _in_states(source: Iterator[Named], state: AskedState) -> Iterator[Named]:
    """Put structures into the states that are asked for; what cannot be read stays one failure."""
    from ase_definet.screening.screen import in_state

    for name, given in source:
        if isinstance(given, Exception):
            yield name, given
            continue
        for one in state.each():
            suffix = one.suffix if state.several else ""
            yield f"{name}{suffix}", in_state(given, one.charge, one.spin_multiplicity, one.functional)


def _asked(inputs: tuple[Path, ...], host: str, settings: dict[str, Any], state: AskedState) -> dict[str, Any]:
    """Return the request that a screen is recognised by when it is resumed."""
    from ase_definet.matching.host import Host
    from ase_definet.screening.screen import host_digest

    resolved = settings["host"]
    return {
        "inputs": [str(path) if str(path) == "-" else str(path.resolve()) for path in inputs],
        "host": resolved.name if isinstance(resolved, Host) else host,
        "host_digest": host_digest(resolved) if isinstance(resolved, Host) else "",
        "model": settings["sha256"],
        "max_strain": settings["max_strain"],
        "extrapolate": settings["extrapolate"],
        "calculation": settings["calculation"] or None,
        "charge": list(state.charges) or None,
        "spin_multiplicity": state.spin_multiplicity,
        "functional": state.functional,
    }


def _run(
    source: Iterator[Named],
    output: Path,
    asked: dict[str, Any],
    settings: dict[str, Any],
    meter: _Meter,
    *,
    workers: int,
    scheduler: str | None,
    block: int,
) -> Progress:
    """Run or resume a screen; Ctrl-C stops it after the last recorded block."""
    from ase_definet.screening.screen import Results, screen

    output.parent.mkdir(parents=True, exist_ok=True)  # once: what is moved away later is not made anew
    results = Results(output, asked)
    try:
        if results.progress.resumed:
            click.echo(f"{output}: going on after {results.progress.resumed} structures", err=True)
        return screen(source, results, settings, workers=workers, scheduler=scheduler, block=block, progress=meter)
    except KeyboardInterrupt:
        meter.bar.close()
        same = "the same commands go on" if asked["inputs"] == ["-"] else "the same command goes on"
        click.echo(f"\nstopped after {results.progress.done} structures; {same}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        meter.bar.close()
        results.close()


def _summarise(output: Path, done: Progress, skipped: int, speed: str) -> None:
    """Print how many structures were relaxed, and why others failed."""
    from ase_definet.screening.screen import FAILURE_COLUMNS, FAILURES, read_rows

    click.echo(
        f"{done.done} structures in {output}: {done.done - done.failed} relaxed, {done.failed} failed"
        f"{f', {skipped} skipped' if skipped else ''}{speed}"
    )
    if done.failed:
        first = next(iter(read_rows(output / FAILURES, FAILURE_COLUMNS)), None)
        reason = "none is there" if first is None else f"{first['name']}: {first['reason']}"
        click.echo(f"reasons in {output / FAILURES}, the first: {reason}", err=True)
    if done.failed == done.done:
        raise click.ClickException("none could be relaxed")


def _is_pipe(inputs: tuple[Path, ...]) -> bool:
    """Return whether the structures come through a pipe; refuse inputs that do not exist."""
    piped = inputs == (Path("-"),)
    if Path("-") in inputs and not piped:
        raise BadUsage("- stands for a pipe alone: give it without other inputs")
    missing = [str(path) for path in inputs if str(path) != "-" and not path.exists()]
    if missing:  # a screen that began without it could not be resumed with it
        raise click.ClickException(f"no such file or folder: {', '.join(missing)}")
    return piped


def _from_paths(inputs: tuple[Path, ...], skipped: list[str]) -> Iterator[Named]:
    """Read files and folders, and note what is no structure."""
    from ase_definet.screening.screen import structures_of

    return structures_of(inputs, skipped.append)


def _from_pipe() -> Iterator[Named]:
    """Read what comes through a pipe, in any encoding that contains ASCII."""
    from ase_definet.screening.screen import structures_from

    binary = getattr(sys.stdin, "buffer", None)
    if binary is None:
        yield from structures_from(sys.stdin, "pipe")
        return
    text = io.TextIOWrapper(binary, encoding="utf-8", errors="surrogateescape")
    try:
        yield from structures_from(text, "pipe")
    finally:
        with suppress(ValueError):  # closed before this was
            text.detach()


class _Meter:
    """Say how far a screen is: a progress bar on a terminal, a line a minute in a log file."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.bar = ProgressBar("relaxing")

    def __call__(self, progress: Progress) -> None:
        text = f"{progress.failed} failed{self.speed(progress)}"
        now = time.monotonic()
        if self.bar.shown:
            self.bar.update(progress.done, text)
        elif now - self.last > _SILENCE:
            self.last = now
            click.echo(f"{progress.done} done, {text}", err=True)

    def speed(self, progress: Progress) -> str:
        seconds = time.monotonic() - self.began
        new = progress.done - progress.resumed
        return f", {new / seconds:.1f} structures/s" if new and seconds > 0 else ""
