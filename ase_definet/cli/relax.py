"""``ase-definet relax``: structures in, relaxed structures and VASP input sets out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import (
    PROFILES,
    checked_host,
    counts,
    file_format,
    host_line,
    host_option,
    match_record,
    overwrite_option,
    usage,
    write_structure,
)
from ase_definet.errors import CheckpointError, DefiNetError, DeviceError, StructureError

if TYPE_CHECKING:
    from ase import Atoms

    from ase_definet.relaxer import RelaxResult


@dataclass(frozen=True)
class _Job:
    """One input file and where its results go."""

    source: Path
    output: Path
    vasp: Path | None


@click.command("relax")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@host_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Output file, for a single FILE.")
@click.option("--output-dir", type=click.Path(path_type=Path), help="Folder for the outputs.")
@click.option(
    "--model", default="default", show_default=True, help="Bundled weights by name, or a .safetensors file."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--vasp", type=click.Path(path_type=Path), help="Also write a VASP input set to this folder.")
@click.option(
    "--profile", type=click.Choice(PROFILES), default="few-steps", show_default=True, help="Of the input set."
)
@click.option("--report", type=click.Path(path_type=Path), help="Write what was found and done as JSON.")
@click.option("--keep-positions", is_flag=True, help="Predict from the given positions, not the host's ideal sites.")
@click.option("--strict", is_flag=True, help="Fail where a result is not to be trusted, instead of warning.")
@overwrite_option
@click.option("-v", "--verbose", is_flag=True, help="Print timings and the weights used.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def relax_command(
    files: tuple[Path, ...],
    host: str,
    output: Path | None,
    output_dir: Path | None,
    model: str,
    device: str,
    vasp: Path | None,
    profile: str,
    report: Path | None,
    keep_positions: bool,  # noqa: FBT001
    strict: bool,  # noqa: FBT001
    overwrite: bool,  # noqa: FBT001
    verbose: bool,  # noqa: FBT001
    quiet: bool,  # noqa: FBT001
) -> None:
    """Relax defect structures in one pass of the network.

    The default output is STEM_relaxed.SUFFIX beside each FILE, in the same format.
    """
    jobs = _plan(files, output, output_dir, vasp)
    _refuse_existing(jobs, report, overwrite=overwrite)
    resolved = checked_host(host)
    from ase_definet.relaxer import DefiNetRelaxer, RelaxFailure  # noqa: PLC0415

    try:
        relaxer = DefiNetRelaxer(model, resolved, device, start="given" if keep_positions else "ideal", strict=strict)
    except (CheckpointError, DeviceError) as error:
        raise usage(error) from error
    records: list[dict[str, Any]] = []
    failed = 0
    with warnings.catch_warnings(), _progress(len(jobs), quiet=quiet) as advance:
        warnings.simplefilter("ignore")
        for job, item in zip(jobs, relaxer.relax_many(_read(jobs)), strict=True):
            record: dict[str, Any] = {"file": str(job.source)}
            try:
                if isinstance(item, RelaxFailure):
                    raise item.error
                record |= _deliver(job, item, profile, overwrite=overwrite)
                if not quiet:
                    _describe(job, item, record, several=len(jobs) > 1, verbose=verbose)
            except (DefiNetError, OSError) as error:
                failed += 1
                record["error"] = str(error)
                name = str(job.source)
                click.echo(f"Error: {error}" if str(error).startswith(name) else f"Error: {name}: {error}", err=True)
            records.append(record)
            advance()
    if report is not None:
        _write_report(report, records)
    if len(jobs) > 1 and not quiet:
        click.echo(
            f"{len(jobs) - failed} of {len(jobs)} structures relaxed" + (f", {failed} failed" if failed else "")
        )
    if failed:
        raise SystemExit(1)


def _plan(files: tuple[Path, ...], output: Path | None, output_dir: Path | None, vasp: Path | None) -> list[_Job]:
    """Work out where every result goes; refuse what cannot be meant."""
    if output is not None and len(files) > 1:
        raise click.UsageError(f"-o names one output, but {len(files)} files were given: use --output-dir")
    if output is not None and output_dir is not None:
        raise click.UsageError("give -o or --output-dir, not both")
    jobs = []
    for file in files:
        target = output or (output_dir or file.parent) / f"{file.stem}_relaxed{file.suffix}"
        folder = None if vasp is None else (vasp if len(files) == 1 else vasp / file.stem)
        jobs.append(_Job(file, target, folder))
    seen: dict[Path, Path] = {}
    for job in jobs:
        other = seen.setdefault(job.output.resolve(), job.source)
        if other is not job.source:
            raise click.UsageError(f"{other} and {job.source} would both be written to {job.output}: rename one")
        if job.output.resolve() == job.source.resolve():
            raise click.UsageError(f"the output {job.output} is the input: choose another name")
    folders = [job.vasp for job in jobs if job.vasp is not None]
    if len(set(folders)) < len(folders):
        raise click.UsageError("two files of one name would share a VASP folder: rename one")
    return jobs


def _refuse_existing(jobs: list[_Job], report: Path | None, *, overwrite: bool) -> None:
    if overwrite:
        return
    existing = [job.output for job in jobs if job.output.exists()]
    existing += [job.vasp / "INCAR" for job in jobs if job.vasp is not None and (job.vasp / "INCAR").exists()]
    existing += [report] if report is not None and report.exists() else []
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise click.UsageError(
            f"{existing[0]}{more} exists: pass --overwrite to replace it, or choose another output"
        )


def _read(jobs: list[_Job]) -> Iterator[Atoms | Exception]:
    from ase_definet.host import read_structure  # noqa: PLC0415

    for job in jobs:
        try:
            yield read_structure(job.source)
        except (StructureError, OSError) as error:
            yield error


def _output_format(job: _Job) -> str:
    """Return the format of the output: that of its suffix if it has one of its own, else that of the input."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats  # noqa: PLC0415

    fmt = file_format(job.source)
    if job.output.suffix != job.source.suffix:
        try:
            fmt = str(filetype(str(job.output), read=False))
        except UnknownFileTypeError as error:
            raise StructureError(
                f"{job.output}: ASE does not know this format; name it like x.cif or x.vasp"
            ) from error
    if not ioformats[fmt].can_write:
        raise StructureError(
            f"{job.output}: ASE reads the format {fmt} but cannot write it; choose one with -o x.vasp"
        )
    return fmt


def _deliver(job: _Job, result: RelaxResult, profile: str, *, overwrite: bool) -> dict[str, Any]:
    """Write the structure and the input set; return the report's record."""
    import numpy as np  # noqa: PLC0415

    fmt = _output_format(job)
    write_structure(job.output, result.atoms, fmt)
    length = np.linalg.norm(result.displacement, axis=1)
    largest = int(length.argmax())
    record: dict[str, Any] = {
        "output": str(job.output),
        **match_record(result.site_map),
        "n_atoms": len(length),
        "largest_displacement": float(length[largest]),
        "largest_displacement_atom": largest,
        "mean_displacement": float(length.mean()),
        "model": result.model,
        "timings": dict(result.timings),
    }
    record["warnings"] = list(result.warnings)
    if job.vasp is not None:
        record["vasp"] = _write_input_set(job.vasp, result, profile, overwrite=overwrite)
    return record


def _write_input_set(directory: Path, result: RelaxResult, profile: str, *, overwrite: bool) -> dict[str, Any]:
    from ase_definet.vasp import write_vasp_inputs  # noqa: PLC0415

    info = result.atoms.info
    written = write_vasp_inputs(
        result.atoms,
        directory,
        profile,  # type: ignore[arg-type]
        charge=int(info.get("charge", 0) or 0),
        notes=result.warnings,
        provenance={
            "model": result.model,
            "host": f"{result.site_map.host.name} {result.site_map.supercell_name}",
            "defects": info["definet_defects"],
            "version": info["definet_version"],
        },
        overwrite=overwrite,
    )
    return {"directory": str(written.directory), "files": list(written.files), "warnings": list(written.warnings)}


def _describe(job: _Job, result: RelaxResult, record: dict[str, Any], *, several: bool, verbose: bool) -> None:
    """Print what a person wants to know of one result."""
    if several:
        click.echo(str(job.source))
    click.echo(f"host      {host_line(result.site_map)}")
    click.echo(f"defects   {counts(result.site_map.defect_counts)}")
    atom = record["largest_displacement_atom"]
    click.echo(
        f"moved     at most {record['largest_displacement']:.3f} Å (atom {atom}, {result.atoms.symbols[atom]}), "
        f"{record['mean_displacement']:.3f} Å on average"
    )
    for text in record["warnings"]:
        click.echo(f"warning   {text}")
    if verbose:
        click.echo(f"model     {result.model}")
        click.echo("seconds   " + ", ".join(f"{k} {v:.3f}" for k, v in result.timings.items()))
    click.echo(f"wrote     {job.output}")
    if "vasp" in record:
        click.echo(f"wrote     {record['vasp']['directory']}: {', '.join(record['vasp']['files'])}")
        for text in record["vasp"]["warnings"]:
            click.echo(f"warning   {text}")


def _write_report(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(records, indent=1) + "\n")
    fresh.replace(path)


def _progress(total: int, *, quiet: bool) -> AbstractContextManager[Callable[[], None]]:
    """Return a context that yields a function to call after each structure."""
    if total == 1 or quiet or not click.get_text_stream("stderr").isatty():
        return nullcontext(lambda: None)
    return _Bar(total)


class _Bar:
    def __init__(self, total: int) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import Progress  # noqa: PLC0415

        self.bar = Progress(console=Console(stderr=True))
        self.task = self.bar.add_task("relaxing", total=total)

    def __enter__(self) -> Callable[[], None]:
        self.bar.start()
        return lambda: self.bar.advance(self.task)

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
