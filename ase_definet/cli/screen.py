"""``ase-definet screen``: relax any number of structures, resumably."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
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
    is_auto,
    model_option,
    mu_option,
    properties_asked,
    properties_option,
    relaxation_options,
    set_option,
    strain_option,
)
from ase_definet.cli.enumerate import configurations
from ase_definet.cli.progress import ProgressBar
from ase_definet.cli.properties import check_rank
from ase_definet.cli.states import AskedState, state_options
from ase_definet.errors import CalculatorError, CheckpointError, DeviceError, OtherRequestError

if TYPE_CHECKING:
    from ase_definet.screening.enumeration import Configuration, DefectSpace
    from ase_definet.screening.screen import Named, Progress

    Source = Iterator[Named] | tuple[DefectSpace, Iterator[Configuration]]

_TYPED = click.core.ParameterSource.COMMANDLINE
_NAMED = 20
"""Skipped files that are named at the end, at most."""
_SILENCE = 60.0
"""Seconds without a word where there is no progress bar."""


@click.command("screen")
@click.argument("inputs", type=click.Path(path_type=Path, allow_dash=True), nargs=-1)
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
    "--workers",
    type=click.IntRange(min=1),
    help="Processes; several need Dask.  [default: 1, with Dask one for each core if there are many structures]",
)
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Use the workers of this Dask scheduler instead.")
@click.option(
    "--block",
    type=click.IntRange(min=1),
    help="Structures relaxed and recorded together.  [default: 64, with a calculator 1]",
)
@properties_option
@mu_option
@click.option("--rank", metavar="NAME", help="Rank by a property first, such as formation_energy, without relaxing.")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Relax only the N best of --rank.")
@click.option("--highest", is_flag=True, help="Let the highest be the best of --rank, instead of the lowest.")
@click.option("--supercell", metavar="NxM[xK]", help="With --defects: screen an enumeration instead of INPUTS.")
@click.option("--defects", metavar="LIST", help="As for 'ase-definet enumerate', as the next five options.")
@click.option("--max-distance", type=float, help="Largest distance between two defects, in Å.")
@click.option("--density", type=float, help="Random configurations with this share of defect sites instead.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random configurations.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop the enumeration after this many.")
@state_options
@click.option(
    "--format",
    "structures",
    type=click.Choice(["extxyz", "arrow"]),
    default="extxyz",
    show_default=True,
    help="Format of the relaxed structures; arrow is for tens of thousands.",
)
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
    workers: int | None,
    scheduler: str | None,
    block: int | None,
    structures: str,
    parquet: bool,
    max_strain: float,
    extrapolate: bool,
    settings: tuple[str, ...],
    properties: str,
    mu: tuple[str, ...],
    rank: str | None,
    keep: int | None,
    highest: bool,
    state: AskedState,
    calculation: dict[str, Any],
    **enumeration: Any,
) -> None:
    """Relax any number of structures; an interrupted screen can be resumed.

    INPUTS are files with one or many structures, folders of such files, or - for extended XYZ from a pipe; with
    --defects and --supercell, the structures are those of an enumeration instead. With --rank and --keep, all
    structures are ranked by a property of their defects first, and only the best are relaxed. If a screen is
    interrupted, the same command resumes it. Several charges (--charge -2:2) give each structure a row for each of
    them, with the charge in its name: NAME_q-1. Structures that fail are listed in failures.csv with the reason;
    other files in a folder are skipped and named.
    """
    enumerated = _check_enumeration(inputs, enumeration)
    _check_ranking(rank, keep, highest=highest)
    piped = _is_pipe(inputs)
    calculation = calculator_settings(calculation, settings)
    resolved = checked_host(host)
    weights = properties_asked(properties, mu, resolved)
    check_folder(output)
    # the host as it is now: its file may be replaced while the screen runs
    chosen = {"model": model, "device": device, "host": resolved, "max_strain": max_strain}
    chosen |= {
        "structures": structures,
        "extrapolate": extrapolate,
        "calculation": calculation,
        "properties": weights,
        "mu": list(mu),
    }
    chosen["properties_sha256"] = _check_properties(weights, rank)
    chosen["sha256"] = _ready(chosen, workers, scheduler, parquet=parquet)
    asked = _asked(inputs, host, chosen, state)
    asked |= {"rank": rank, "keep": keep, "highest": highest or None, "enumeration": enumeration or None}
    skipped: list[str] = []
    source: Source
    if enumerated:
        source = configurations(resolved, **enumeration)
    else:
        source = _from_pipe() if piped else _from_paths(inputs, skipped)
    if state.anything:
        source = _in_states(_all_named(source), state)
    job = _Job(rank, keep, highest=highest, block=block or (1 if calculation else 64))
    done = _run(source, output, asked, chosen, job, workers=workers, scheduler=scheduler)
    for reason in skipped[:_NAMED]:
        click.echo(f"skipped   {reason}", err=True)
    if len(skipped) > _NAMED:
        click.echo(f"skipped   {len(skipped) - _NAMED} more that are no structures", err=True)
    if not done.done:
        hint = "is the enumeration before it empty?" if piped else "are they in a folder below, or in another?"
        where = f"--defects {enumeration['defects']}" if enumerated else ", ".join(map(str, inputs))
        raise click.ClickException(f"no structures in {where}" + ("" if enumerated else f": {hint}"))
    if parquet:
        from ase_definet.screening.screen import write_parquet

        write_parquet(output)
    _summarise(output, done, len(skipped), job.meter.speed(done))
    _note_useless(output, resolved, mu)


def _check_enumeration(inputs: tuple[Path, ...], options: dict[str, Any]) -> bool:
    """Return whether an enumeration is screened, and take away its options if not; refuse half of one."""
    needed = [options["defects"], options["supercell"]]
    if all(value is not None for value in needed):
        if inputs:
            raise BadUsage("--defects and --supercell stand for an enumeration: give it without INPUTS")
        return True
    given = click.get_current_context()
    typed = [f"--{name.replace('_', '-')}" for name in options if given.get_parameter_source(name) is _TYPED]
    if typed:
        raise BadUsage(f"{typed[0]} is for an enumeration: give both --defects and --supercell")
    if not inputs:
        raise BadUsage("expected INPUTS (files, folders or -), or an enumeration with --defects and --supercell")
    options.clear()
    return False


def _check_ranking(rank: str | None, keep: int | None, *, highest: bool) -> None:
    """Refuse half of a ranking."""
    if rank is None and keep is not None:
        raise BadUsage("--keep says how many of the best are relaxed: say by what they are ranked, with --rank")
    if rank is None and highest:
        raise BadUsage("--highest is for a ranking: say by what, with --rank")
    if rank is not None and keep is None:
        raise BadUsage("--rank needs --keep N: how many of the best are relaxed")


def _check_properties(weights: str | None, rank: str | None) -> str | None:
    """Return the SHA-256 of the weights for properties, None without any; refuse a rank that they do not predict."""
    from ase_definet.checkpoints.bundled import bundled_properties
    from ase_definet.properties.predictor import PropertyPredictor

    if rank is not None and weights is None:
        raise BadUsage("--rank needs weights for properties: leave out --properties none")
    if weights is None or (weights not in bundled_properties() and weights == "default" and rank is None):
        return None
    try:
        predictor = PropertyPredictor(weights, "cpu")
    except CheckpointError as error:
        raise BadUsage(f"--properties: {error_text(error)}") from error
    check_rank(rank, predictor)
    return predictor.sha256


def _note_useless(output: Path, host: Any, mu: tuple[str, ...]) -> None:
    """Say which chemical potentials changed nothing."""
    if not mu or is_auto(host):
        return
    from ase.formula import Formula

    from ase_definet.properties.asked_potentials import AskedPotentials
    from ase_definet.screening.screen import TABLE

    asked = AskedPotentials.of(mu)
    left = asked.useless(host, ())
    with (output / TABLE).open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if not left:
                break
            left = tuple(element for element in left if element not in Formula(row["formula"]).count())
    for text in asked.in_host(host, [element for element in asked.elements if element not in left]).warnings:
        click.echo(f"note      {text}", err=True)


def _ready(settings: dict[str, Any], workers: int | None, scheduler: str | None, *, parquet: bool) -> str:
    """Make sure that a screen can start, before there is a folder of it; return the SHA-256 of its weights."""
    from ase_definet.checkpoints.bundled import resolve_model
    from ase_definet.checkpoints.format import load_checkpoint
    from ase_definet.screening.screen import check_parquet, check_settings
    from ase_definet.screening.structures_file import check_arrow

    if parquet:
        check_parquet()
    if settings["structures"] == "arrow":
        check_arrow()
    try:
        weights = load_checkpoint(resolve_model(settings["model"])).sha256
        check_settings(settings | {"sha256": weights}, workers=workers, scheduler=scheduler)
    except (CalculatorError, CheckpointError, DeviceError) as error:
        raise BadUsage(error_text(error)) from error
    return weights


def _in_states(source: Iterator[Named], state: AskedState) -> Iterator[Named]:
    """Put structures into the states that are asked for; what cannot be read stays one failure."""
    from ase_definet.screening.enumeration import Configuration
    from ase_definet.screening.screen import in_state

    for name, given in source:
        if isinstance(given, Exception):
            yield name, given
            continue
        atoms = given.space.atoms(given) if isinstance(given, Configuration) else given
        for one in state.each():
            suffix = one.suffix if state.several else ""
            yield f"{name}{suffix}", in_state(atoms, one.charge, one.spin_multiplicity, one.functional)


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
        "structures": settings["structures"] if settings["structures"] != "extxyz" else None,
        "properties": settings["properties_sha256"],
        "chemical_potentials": settings["mu"] or None,
    }


@dataclass
class _Job:
    """How a screen runs.

    Attributes:
        rank: Name of the property that is ranked by, if any.
        keep: How many of the best are relaxed.
        highest: Whether the highest are the best.
        block: Structures relaxed together.
    """

    rank: str | None
    keep: int | None
    highest: bool
    block: int
    meter: _Meter = field(default_factory=lambda: _Meter("relaxing"))


def _run(
    source: Source,
    output: Path,
    asked: dict[str, Any],
    settings: dict[str, Any],
    job: _Job,
    *,
    workers: int | None,
    scheduler: str | None,
) -> Progress:
    """Run or resume a screen; Ctrl-C stops it after the last recorded block."""
    from ase_definet.screening.screen import Results, screen

    output.parent.mkdir(parents=True, exist_ok=True)  # once: what is moved away later is not made anew
    try:
        results = Results(output, asked)
    except OtherRequestError as error:
        raise BadUsage(error_text(error)) from error
    doing = "ranking"
    try:
        named = _all_named(source) if job.rank is None else iter(_ranked(source, output, settings, job))
        doing = "structures"
        if results.progress.resumed:
            click.echo(f"{output}: going on after {results.progress.resumed} structures", err=True)
        job.meter = _Meter("relaxing")
        return screen(
            named, results, settings, workers=workers, scheduler=scheduler, block=job.block, progress=job.meter
        )
    except KeyboardInterrupt:
        job.meter.bar.close()
        same = "the same commands go on" if asked["inputs"] == ["-"] else "the same command goes on"
        where = "while ranking" if doing == "ranking" else f"after {results.recorded()} structures"
        click.echo(f"\nstopped {where}; {same}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        job.meter.bar.close()
        results.close()


def _ranked(source: Source, output: Path, settings: dict[str, Any], job: _Job) -> list[Named]:
    """Rank a source and return the best."""
    from ase_definet.properties.asked_potentials import AskedPotentials
    from ase_definet.properties.predictor import PropertyPredictor
    from ase_definet.screening.ranking import RANKING, UNRANKED, UNRANKED_COLUMNS, Configurations, Ranking, Structures
    from ase_definet.screening.screen import Progress, read_rows

    predictor = PropertyPredictor(settings["properties"], settings["device"])
    potentials = AskedPotentials.of(settings["mu"])
    rank, keep = str(job.rank), job.keep or 1
    candidates: Any
    if isinstance(source, tuple):
        candidates = Configurations(*source, predictor, rank, potentials)
    else:
        candidates = Structures(source, settings["host"], predictor, rank, potentials, settings["max_strain"])
    ranking: Ranking[Any] = Ranking(output, candidates, keep, highest=job.highest)
    job.meter = _Meter("ranking")
    best = ranking.run(lambda done: job.meter(Progress(done, ranking.unranked, ranking.resumed)))
    speed = job.meter.speed(Progress(ranking.done, 0, ranking.resumed))
    job.meter.bar.close()
    if ranking.done and not best:
        first = next(iter(read_rows(output / UNRANKED, UNRANKED_COLUMNS)))
        raise click.ClickException(
            f"none of {ranking.done} structures could be ranked by {rank}, the first, {first['name']}: "
            f"{first['reason']}; all reasons are in {output / UNRANKED}"
        )
    ranked = ranking.done - ranking.unranked
    where = output / RANKING
    click.echo(f"{ranked} structures ranked by {rank}, the {len(best)} best in {where}{speed}")
    if ranking.unranked:
        first = next(iter(read_rows(output / UNRANKED, UNRANKED_COLUMNS)))
        click.echo(
            f"{ranking.unranked} could not be ranked, reasons in {output / UNRANKED}, the first: {first['name']}: "
            f"{first['reason']}",
            err=True,
        )
    return best


def _all_named(source: Source) -> Iterator[Named]:
    """Return the names and structures of a source."""
    if not isinstance(source, tuple):
        return source
    _, found = source
    return ((one.name, one) for one in found)


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

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self.began = self.last = time.monotonic()
        self.bar = ProgressBar(doing)

    def __call__(self, progress: Progress) -> None:
        text = f"{progress.failed} {'without a value' if self.doing == 'ranking' else 'failed'}{self.speed(progress)}"
        now = time.monotonic()
        if self.bar.shown:
            self.bar.update(progress.done, text)
        elif now - self.last > _SILENCE:
            self.last = now
            click.echo(f"{progress.done} {'ranked' if self.doing == 'ranking' else 'done'}, {text}", err=True)

    def speed(self, progress: Progress) -> str:
        seconds = time.monotonic() - self.began
        new = progress.done - progress.resumed
        return f", {new / seconds:.1f} structures/s" if new and seconds > 0 else ""
