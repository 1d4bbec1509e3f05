"""``ase-definet relax``: structures in, relaxed structures and input sets of DFT codes out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ase_definet.cli.common import (
    CODES,
    FILE,
    FOLDER,
    PATH,
    BadUsage,
    calculator_settings,
    checked_host,
    code_options,
    counts,
    device_option,
    error_text,
    extrapolate_option,
    for_code,
    host_line,
    host_option,
    input_set_options,
    make_relaxer,
    model_option,
    mu_option,
    overwrite_option,
    properties_asked,
    properties_option,
    relaxation_options,
    show_traceback,
    strain_option,
    trust_line,
    unknown_error,
    wrong_kind,
)
from ase_definet.cli.progress import ProgressBar
from ase_definet.cli.property_text import property_lines, property_rows
from ase_definet.cli.relax_plan import CONTROL, Job, plan_jobs
from ase_definet.cli.relax_results import deliver, make_folders, write_report
from ase_definet.cli.states import AskedState, state_options, state_rows
from ase_definet.errors import DefiNetError, StructureError

if TYPE_CHECKING:
    from ase import Atoms

    from ase_definet.cli.property_text import Properties
    from ase_definet.relaxation.relaxer import DefiNetRelaxer
    from ase_definet.relaxation.result import RelaxFailure, RelaxResult


@click.command("relax")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
@host_option
@click.option("-o", "--output", type=FILE, help="Output file, for a single FILE; its suffix sets the format.")
@click.option("--output-dir", type=FOLDER, help="Folder for the outputs; created if needed.")
@model_option
@device_option
@click.option(
    "--vasp", type=FOLDER, help="Also write a VASP input set to this folder (for several FILEs, to a subfolder each)."
)
@click.option(
    "--dft",
    type=(click.Choice(CODES), FOLDER),
    metavar="CODE FOLDER",
    help=f"The same for any of {', '.join(CODES)}; --vasp FOLDER is short for --dft vasp FOLDER.",
)
@click.option(
    "--from-unrelaxed",
    is_flag=True,
    help="Also write a control run from the host's ideal sites, to FOLDER_unrelaxed beside that of --vasp or --dft.",
)
@input_set_options
@code_options
@state_options
@click.option("--report", type=FILE, help="Write a report as JSON.")
@click.option(
    "--initial-positions",
    type=click.Choice(["ideal", "given"]),
    default="ideal",
    show_default=True,
    help="Atomic positions given to the network: the host's ideal sites, or those of FILE.",
)
@strain_option
@extrapolate_option
@relaxation_options
@properties_option
@mu_option
@click.option("--strict", is_flag=True, help="Treat every warning about a result as an error.")
@overwrite_option
@click.option("-v", "--verbose", is_flag=True, help="Also print timings and the weights used.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def relax_command(
    files: tuple[Path, ...],
    host: str,
    output: Path | None,
    output_dir: Path | None,
    model: str,
    device: str,
    vasp: Path | None,
    dft: tuple[str, Path] | None,
    from_unrelaxed: bool,
    settings: tuple[str, ...],
    library: Path | None,
    report: Path | None,
    initial_positions: Literal["ideal", "given"],
    max_strain: float,
    extrapolate: bool,
    strict: bool,
    overwrite: bool,
    verbose: bool,
    quiet: bool,
    state: AskedState,
    input_set: dict[str, Any],
    calculation: dict[str, Any],
    properties: str,
    mu: tuple[str, ...],
) -> None:
    """Relax defect structures in one pass of the network.

    With --calculator, an iterative relaxation takes over where the network knows nothing.

    By default the result is written to STEM_relaxed.SUFFIX beside each FILE, in the same format, uncompressed. If a
    file holds several structures, the last one is relaxed. Several charges (--charge -2:2) give a result and an input
    set each, with the charge in their names: STEM_relaxed_q-1.SUFFIX. A FILE that cannot be used does not stop the
    others; the exit code is then 1.
    """
    if vasp is not None and dft is not None:
        raise BadUsage("expected --vasp or --dft, found both: leave one out")
    code, folder = dft or ("vasp", vasp)
    if folder is None:
        _refuse_input_set_options(calculator="calculator" in calculation)
    calculation, settings = _shared(calculation, settings, code if folder is not None else "vasp")
    input_set = for_code(code, input_set, settings, library)
    jobs = plan_jobs(
        *(files, output, output_dir, folder, report),
        code=code,
        control=from_unrelaxed,
        state=state,
        overwrite=overwrite,
    )
    resolved = checked_host(host)
    weights = properties_asked(properties, mu, resolved)
    if quiet:
        warnings.simplefilter("ignore")
    relaxer = make_relaxer(
        model,
        resolved,
        device,
        initial_positions=initial_positions,
        strict=strict,
        extrapolate=extrapolate,
        max_strain=max_strain,
        properties=weights,
        chemical_potentials=mu,
        **calculation,
    )
    make_folders(jobs, report)
    done = _relax(relaxer, jobs, input_set, overwrite=overwrite, quiet=quiet, verbose=verbose)
    if report is not None:
        write_report(report, done.records)
    _conclude(done, quiet=quiet)


@dataclass
class _Done:
    """What came of the structures.

    Attributes:
        records: Those of the report.
        predicted: Titles and properties of those that were relaxed.
        refused: Structures in whose host --mu asks for what there is not.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    predicted: list[tuple[str, Properties]] = field(default_factory=list)
    refused: int = 0


def _relax(
    relaxer: DefiNetRelaxer,
    jobs: list[Job],
    input_set: dict[str, Any],
    *,
    overwrite: bool,
    quiet: bool,
    verbose: bool,
) -> _Done:
    """Relax the structures, write and describe each as soon as it is done."""
    from ase_definet.relaxation.result import RelaxResult

    done = _Done()
    notes: list[list[str]] = []
    alone = len(jobs) == 1 and relaxer.calculator is None
    with ProgressBar("relaxing", len(jobs), hidden=quiet or alone) as bar:
        _steps_shown(relaxer, bar)
        for k, (job, item) in enumerate(zip(jobs, relaxer.relax_many(_read(jobs, notes)), strict=True)):
            record = _settle(job, item, notes[k] + _useless(relaxer, item), input_set, overwrite=overwrite)
            done.records.append(record)
            if isinstance(item, RelaxResult) and "error" not in record:
                if not quiet:
                    _describe(job, item, record, several=len(jobs) > 1, verbose=verbose)
                done.refused += _refused_potentials(relaxer, item)
                done.predicted += [(job.title, item.properties)] if item.properties else []
            bar.advance()
    return done


def _conclude(done: _Done, *, quiet: bool) -> None:
    """Print the properties of several structures as a table, and how many were relaxed; exit with 1 if any failed."""
    records, predicted = done.records, done.predicted
    failed = sum("error" in record for record in records)
    if len(records) > 1 and not quiet:
        for line in property_lines(predicted) if len(predicted) > 1 else ():
            click.echo(line)
        click.echo(
            f"{len(records) - failed} of {len(records)} structures relaxed" + (f", {failed} failed" if failed else "")
        )
    if done.refused:
        click.echo(
            f"Error: --mu cannot be used in the hosts of {done.refused} of {len(records)} structures", err=True
        )
    if failed or done.refused:
        raise SystemExit(1)


def _shared(
    calculation: dict[str, Any], settings: tuple[str, ...], code: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Decide whether ``--set`` is for the calculator or for the DFT code; return the options of both."""
    if not settings or "calculator" not in calculation:
        return calculation, settings
    if code != "vasp":
        raise BadUsage(
            f"--set could be for the calculator or for {code}: write the input set afterwards, with "
            "'ase-definet inputs'"
        )
    return calculator_settings(calculation, settings), ()


def _steps_shown(relaxer: DefiNetRelaxer, bar: ProgressBar) -> None:
    """Show the steps of the calculator, if there is one, beside the bar."""
    if relaxer.calculator is not None:
        relaxer.calculator.progress = lambda steps, fmax: bar.say(f"step {steps}, {fmax:.2f} eV/Å")


def _useless(relaxer: DefiNetRelaxer, result: RelaxResult | RelaxFailure) -> list[str]:
    """Return warnings about chemical potentials that change nothing for this structure."""
    from ase_definet.relaxation.result import RelaxFailure

    if isinstance(result, RelaxFailure) or relaxer.properties is None or not relaxer.properties.asked.texts:
        return []
    host, involved = result.site_map.host, result.atoms.get_chemical_symbols()
    try:
        found = relaxer.properties.asked.in_host(host, involved).warnings
    except DefiNetError:  # of a host that was found out: its properties say it
        return []
    return [text for text in found if text not in result.warnings]


def _refused_potentials(relaxer: DefiNetRelaxer, result: RelaxResult) -> bool:
    """Return whether --mu asks for what there is not in the host that was found for a structure."""
    if relaxer.properties is None:
        return False
    try:
        relaxer.properties.asked.in_host(result.site_map.host)
    except DefiNetError:
        return True
    return False


def _refuse_input_set_options(*, calculator: bool) -> None:
    """Reject options of an input set if none is requested; ``--set`` may then be for a calculator."""
    context = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    names = {"profile", "incar", "magnetic", "kpoints", "dipole", "settings", "library"}
    names -= {"settings"} if calculator else set()
    options = [option for option in context.command.params if option.name in names]
    useless = [option.opts[0] for option in options if context.get_parameter_source(str(option.name)) is given]
    if useless:
        raise BadUsage(f"{useless[0]} is for an input set: say where it goes with --vasp FOLDER or --dft CODE FOLDER")


def _read(jobs: list[Job], notes: list[list[str]]) -> Iterator[Atoms | Exception]:
    """Read the structures, each in the requested state, and note which values were replaced."""
    from ase_definet.structures.reading import read_structure

    for job in jobs:
        notes.append([])
        try:
            problem = wrong_kind(job.source, "file")
            if problem is not None:
                raise StructureError(problem)  # noqa: TRY301 - one way for all that fails
            atoms = read_structure(job.source)
            notes[-1] += job.state.impose(atoms)
        except Exception as error:  # noqa: BLE001 - one bad file must not cost the others
            yield error
        else:
            yield atoms


def _settle(
    job: Job, item: RelaxResult | RelaxFailure, notes: list[str], input_set: dict[str, Any], *, overwrite: bool
) -> dict[str, Any]:
    """Write the results of one structure, or report why there are none, without stopping the others."""
    from ase_definet.relaxation.result import RelaxFailure

    if isinstance(item, RelaxFailure):
        return _failure(job, item.error)
    try:
        return deliver(job, item, input_set, notes, overwrite=overwrite)
    except Exception as error:  # noqa: BLE001 - as above
        return _failure(job, error)


def _failure(job: Job, error: Exception) -> dict[str, Any]:
    show_traceback(error)
    click.echo(f"Error: {error_text(error, job.source)}", err=True)
    asked = {"charge": job.state.charge} if job.state.charge is not None else {}
    return {"file": str(job.source), **asked, "error": error_text(error)}


def _describe(job: Job, result: RelaxResult, record: dict[str, Any], *, several: bool, verbose: bool) -> None:
    """Print a summary of one result."""
    atom, largest = record["largest_displacement_atom"], record["largest_displacement"]
    mean = record["mean_displacement"]
    rows = [
        ("host", host_line(result.site_map)),
        ("defects", counts(result.site_map.defect_counts)),
        *state_rows(record),
        (
            "moved",
            f"at most {largest:.3f} Å (atom {atom}, {result.atoms.symbols[atom]}), {mean:.3f} Å on average",
        ),
        *_doubt(result, record),
        *property_rows(result.properties, result.chemical_potentials, result.site_map.host, record["warnings"]),
        *(("warning", text) for text in record["warnings"]),
    ]
    if verbose:
        rows += [
            ("model", result.model),
            ("seconds", ", ".join(f"{name} {value:.3f}" for name, value in result.timings.items())),
        ]
    rows.append(("wrote", str(job.output)))
    if job.code in record:
        written = record[job.code]
        rows.append(("wrote", f"{job.inputs}: {', '.join(written['files'])}"))
        rows += [
            ("override", f"{tag} = {after} (profile: {before if before is not None else 'not set'})")
            for tag, (before, after) in written["overridden"].items()
        ]
        rows += [("warning", text) for text in written["warnings"]]
    alone = job.inputs is not None and job.control is None
    older = job.inputs.with_name(f"{job.inputs.name}{CONTROL}") if alone and job.inputs else None
    if older is not None and older.exists():
        rows.append(("warning", f"{older} is the control of an earlier run: it may have other settings"))
    if "control" in record:
        rows.append(("wrote", f"{job.control}: the control run, from the host's sites"))
    if several:
        click.echo(job.title)
    for name, text in rows:
        click.echo(f"{'  ' if several else ''}{name:10s}{text}")


def _doubt(result: RelaxResult, record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows on how far the result can be trusted, and on the expected error where there is one."""
    rows = [("trust", trust_line(result))] if result.trust != "inside" else []
    if result.calculation is not None:
        done = result.calculation
        rows.append(("method", f"{result.method}: {done}"))
        if done.energy is not None:
            rows.append(("total", f"energy {done.energy:.3f} eV, to compare with others of {done.calculator} only"))
    if result.method == "calculator":
        return rows
    if result.unsupported:
        return [*rows, ("accuracy", unknown_error(result.unsupported))]
    if record["mean_expected_error"] is None:
        return rows
    atom, largest = record["largest_expected_error_atom"], record["largest_expected_error"]
    worst = f"at most {largest:.3f} Å (atom {atom}, {result.atoms.symbols[atom]})"
    return [*rows, ("accuracy", f"expected error {record['mean_expected_error']:.3f} Å on average, {worst}")]
