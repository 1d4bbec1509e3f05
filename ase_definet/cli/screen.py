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
    check_folder,
    checked_host,
    error_text,
    host_option,
    strain_option,
)
from ase_definet.cli.progress import ProgressBar
from ase_definet.errors import CheckpointError, DeviceError

if TYPE_CHECKING:
    from ase_definet.screening.screen import Named, Progress


_NAMED = 20
"""Files that are no structures, named at the end at most."""
_SILENCE = 60.0
"""Seconds without a word where there is no progress bar."""


@click.command("screen")
@click.argument("inputs", type=click.Path(path_type=Path, allow_dash=True), nargs=-1, required=True)
@host_option
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder for the results; a screen in it is resumed.")
@click.option("--model", default="default", show_default=True, help="Bundled weights or a .safetensors file.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes (Dask if several)."
)
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="A Dask scheduler to use instead.")
@click.option(
    "--block", type=click.IntRange(min=1), default=64, show_default=True, help="Structures recorded at a time."
)
@click.option("--parquet", is_flag=True, help="Write the finished table as table.parquet too.")
@strain_option
def screen_command(
    inputs: tuple[Path, ...],
    host: str,
    output: Path,
    model: str,
    device: str,
    workers: int,
    scheduler: str | None,
    block: int,
    parquet: bool,  # noqa: FBT001
    max_strain: float,
) -> None:
    """Relax every structure of INPUTS: files, folders, files with many structures, or - for extended XYZ from a pipe.

    Killed, the same command goes on exactly where it was. Bad structures go to failures.csv with the reason; what
    else lies in a folder is skipped and named.
    """
    piped = _is_pipe(inputs)
    resolved = checked_host(host)
    check_folder(output)
    from ase_definet.checkpoints.format import load_checkpoint, resolve_model  # noqa: PLC0415
    from ase_definet.matching.host import Host  # noqa: PLC0415
    from ase_definet.screening.screen import (  # noqa: PLC0415
        FAILURES,
        Results,
        check_parquet,
        check_settings,
        host_digest,
        screen,
        structures_of,
        write_parquet,
    )

    if parquet:
        check_parquet()
    try:
        weights = load_checkpoint(resolve_model(model)).sha256
    except CheckpointError as error:
        raise BadUsage(error_text(error)) from error
    # the host as it is now: its file may be replaced while the screen runs
    settings = {"model": model, "device": device, "host": resolved, "max_strain": max_strain, "sha256": weights}
    try:
        check_settings(settings, workers=workers, scheduler=scheduler)
    except DeviceError as error:
        raise BadUsage(error_text(error)) from error
    asked: dict[str, Any] = {
        "inputs": [str(path) if str(path) == "-" else str(path.resolve()) for path in inputs],
        "host": resolved.name if isinstance(resolved, Host) else host,
        "host_digest": host_digest(resolved) if isinstance(resolved, Host) else "",
        "model": weights,
        "max_strain": max_strain,
    }
    skipped: list[str] = []
    source = _from_pipe() if piped else structures_of(inputs, skipped.append)
    output.parent.mkdir(parents=True, exist_ok=True)  # once: what is moved away later is not made anew
    results = Results(output, asked)
    meter = _Meter()
    try:
        if results.progress.resumed:
            click.echo(f"{output}: going on after {results.progress.resumed} structures", err=True)
        done = screen(source, results, settings, workers=workers, scheduler=scheduler, block=block, progress=meter)
    except KeyboardInterrupt:
        meter.bar.close()
        same = "the same commands go on" if piped else "the same command goes on"
        click.echo(f"\nstopped after {results.progress.done} structures; {same}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        meter.bar.close()
        results.close()
    _tell(skipped)
    if not done.done:
        hint = "is the enumeration before it empty?" if piped else "are they in a folder below, or in another?"
        raise click.ClickException(f"no structures in {', '.join(map(str, inputs))}: {hint}")
    if parquet:
        write_parquet(output)
    click.echo(
        f"{done.done} structures in {output}: {done.done - done.failed} relaxed, {done.failed} failed"
        f"{f', {len(skipped)} skipped' if skipped else ''}{meter.speed(done)}"
    )
    if done.failed:
        click.echo(f"reasons in {output / FAILURES}, the first: {_first_reason(output / FAILURES)}", err=True)
    if done.failed == done.done:
        raise click.ClickException("none could be relaxed")


def _is_pipe(inputs: tuple[Path, ...]) -> bool:
    """Return whether the structures come through a pipe, and refuse what is not there."""
    piped = inputs == (Path("-"),)
    if Path("-") in inputs and not piped:
        raise BadUsage("- stands for a pipe alone: give it without other inputs")
    missing = [str(path) for path in inputs if str(path) != "-" and not path.exists()]
    if missing:  # it belongs to what a screen is asked: one that begins without it could not be resumed with it
        raise click.ClickException(f"no such file or folder: {', '.join(missing)}")
    return piped


def _first_reason(path: Path) -> str:
    from ase_definet.screening.screen import FAILURE_COLUMNS, read_rows  # noqa: PLC0415

    row = next(iter(read_rows(path, FAILURE_COLUMNS)), None)
    return "none is there" if row is None else f"{row['name']}: {row['reason']}"


def _from_pipe() -> Iterator[Named]:
    """Read what comes through a pipe, in any encoding that contains ASCII."""
    from ase_definet.screening.screen import structures_from  # noqa: PLC0415

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


def _tell(skipped: list[str]) -> None:
    """Name what was no structure."""
    for reason in skipped[:_NAMED]:
        click.echo(f"skipped   {reason}", err=True)
    if len(skipped) > _NAMED:
        click.echo(f"skipped   {len(skipped) - _NAMED} more that are no structures", err=True)


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
