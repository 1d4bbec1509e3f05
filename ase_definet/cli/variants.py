"""``ase-definet variants``: the distinct minima of one defect, ranked by energy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import (
    CODES,
    FILE,
    FOLDER,
    IN_FILE,
    INTERRUPTED,
    BadUsage,
    PositiveFloat,
    about,
    calculator_option,
    calculator_settings,
    check_folder,
    checked_host,
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
    refuse_existing,
    set_option,
    strain_option,
)
from ase_definet.cli.progress import ProgressBar
from ase_definet.cli.states import AskedState, state_options
from ase_definet.errors import DefiNetError, DefiNetWarning, OtherRequestError, VariantsError

if TYPE_CHECKING:
    from ase_definet.variants.search import End, Search


@click.command("variants")
@click.argument("file", type=IN_FILE)
@host_option
@calculator_option("The calculator whose minima are looked for", required=True)
@set_option
@click.option("-n", "number", type=click.IntRange(min=1), default=12, show_default=True, help="Number of starts.")
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    help="Folder for the results; an unfinished search in it is resumed.  [default: STEM_variants beside FILE]",
)
@click.option(
    "--fmax",
    type=PositiveFloat(),
    default=0.03,
    show_default=True,
    help="Largest force of a minimum, in eV/Å.",
)
@click.option(
    "--max-steps",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Force evaluations for one start, at most.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random displacements.")
@click.option(
    "--without-distortions", is_flag=True, help="No bond distortions, which need ShakeNBreak: rattles instead."
)
@click.option(
    "--dft",
    "code",
    type=click.Choice(CODES),
    help="Also write an input set of this code for each minimum, to inputs/NAME.",
)
@input_set_options
@click.option("--library", type=FOLDER, help="Folder of pseudopotentials, data files or species defaults.")
@click.option("--no-pictures", is_flag=True, help="Draw no pictures (they need matplotlib).")
@state_options
@model_option
@device_option
@strain_option
@extrapolate_option
@click.option("--json", "report", type=FILE, help="Write the table as JSON as well.")
def variants_command(
    file: Path,
    host: str,
    calculator: str,
    settings: tuple[str, ...],
    number: int,
    output: Path | None,
    fmax: float,
    max_steps: int,
    seed: int,
    without_distortions: bool,
    code: str | None,
    library: Path | None,
    no_pictures: bool,
    model: str,
    device: str,
    max_strain: float,
    extrapolate: bool,
    report: Path | None,
    state: AskedState,
    input_set: dict[str, Any],
) -> None:
    """Find distinct minima of one defect with a calculator, ranked by energy.

    Starts are the undistorted structure, the network's answer, bond distortions by ShakeNBreak, rattles, the network
    from noisy positions and, where the calculator knows them, spin states. What ends in the same minimum up to a
    symmetry of the host counts once. Each start is a file of the results, and the same command resumes: a larger -n
    adds starts. Pictures and input sets that exist are left as they are.
    """
    chosen = calculator_settings({"calculator": calculator}, settings)
    options = None if code is None else for_code(code, input_set, (), library)
    resolved = checked_host(host)
    folder = output or file.with_name(f"{file.stem}_variants")
    _check(folder, report, state, distortions=not without_distortions)
    relaxer = make_relaxer(
        model,
        resolved,
        device,
        max_strain=max_strain,
        extrapolate=extrapolate,
        fmax=fmax,
        max_steps=max_steps,
        seed=seed,
        **chosen,
    )
    from ase_definet.structures.reading import read_structure
    from ase_definet.variants.search import search

    draw = None if no_pictures else _drawing()
    with about(file):
        atoms = read_structure(file)
        notes = state.impose(atoms)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with ProgressBar("relaxing", number) as bar:
            try:
                found = search(
                    *(atoms, relaxer, folder, number),
                    seed=seed,
                    distortions=not without_distortions,
                    asked={"settings": chosen.get("calculator_settings")},
                    progress=bar.say,
                    done=bar.advance,
                )
            except KeyboardInterrupt:
                bar.close()
                click.echo(f"\nstopped; the same command goes on with {folder}", err=True)
                raise click.exceptions.Exit(INTERRUPTED) from None
            except OtherRequestError as error:
                raise BadUsage(error_text(error)) from error
    for text in [*notes, *found.notes]:
        click.echo(f"warning   {text}", err=True)
    name = relaxer.calculator.name if relaxer.calculator else calculator
    _describe(found, f"{name}, largest force {fmax:g} eV/Å, at most {max_steps} steps", folder)
    if not found.variants:
        raise click.ClickException(f"{file}: none of {len(found.failed)} starts converged; see {folder}")
    if draw is not None:
        _pictures(found, folder, draw)
    if options is not None:
        _input_sets(found, folder, options)
    if report is not None:
        _write_report(found, report)


def _check(folder: Path, report: Path | None, state: AskedState, *, distortions: bool) -> None:
    """Refuse, before any work is done, what cannot be meant or written."""
    from ase_definet.variants.starts import check_shakenbreak

    if state.several:
        raise BadUsage("variants are those of one charge: give one --charge")
    check_folder(folder)
    if report is not None:
        refuse_existing(report, overwrite=False)
        check_folder(report.parent)
    try:
        if distortions:
            check_shakenbreak()
    except VariantsError as error:
        raise BadUsage(error_text(error)) from error


def _drawing() -> Any:
    """Return what draws a relaxation, None if matplotlib is not installed."""
    try:
        from ase_definet.plotting.structure import draw_relaxation
    except ImportError as error:
        click.echo(f"warning   no pictures: they need {error.name} (pip install 'ase-definet[plot]')", err=True)
        return None
    return draw_relaxation


def _describe(found: Search, method: str, folder: Path) -> None:
    """Print how the minima were looked for, and the table."""
    from ase_definet.variants.search import table_rows

    click.echo(f"host      {host_line(found.site_map)}")
    click.echo(f"defects   {counts(found.site_map.defect_counts)}")
    click.echo(f"method    {method}")
    if found.resumed:
        click.echo(f"resumed   {found.resumed} starts were relaxed before")
    rows = list(table_rows(found.variants))
    width = max((len(str(row["name"])) for row in rows), default=4)
    click.echo(f"rank  above (eV)  found  {'name':{width}s}  symmetry  what changed")
    for row in rows:
        spin = "" if row["spin_multiplicity"] is None else f", spin multiplicity {row['spin_multiplicity']}"
        words = f"{row['changed']}; {row['defects']}{spin}"
        numbers = f"{row['rank']:4d}  {row['above']:10.3f}  {row['found']:5d}"
        click.echo(f"{numbers}  {row['name']:{width}s}  {row['symmetry']:8s}  {words}")
    for end in found.failed:
        click.echo(f"none      {end.name}: {_why(end)}")
    click.echo(f"wrote     {folder}: table.csv, variants.extxyz, starts, unrelaxed")


def _why(end: End) -> str:
    done = end.calculation
    if done.error:
        return f"failed after {done.steps} steps: {done.error}"
    if done.unbound:
        return f"no minimum of a defect: {len(done.unbound)} atoms are bonded to nothing"
    return f"largest force {done.fmax:.3f} eV/Å after {done.steps} steps, not converged to {done.fmax_limit:g} eV/Å"


def _pictures(found: Search, folder: Path, draw: Any) -> None:
    """Draw each minimum against the undistorted structure; what is there stays."""
    for variant in found.variants:
        path = folder / "pictures" / f"{variant.name}.png"
        if not path.exists():
            title = f"{variant.name}, {variant.above:.3f} eV, {variant.changed}"
            defects = found.site_map.all_defects
            draw(found.undistorted, variant.end.atoms, path, defects=defects, view="top", title=title)
    click.echo(f"wrote     {folder / 'pictures'}")


def _input_sets(found: Search, folder: Path, options: dict[str, Any]) -> None:
    """Write an input set for each minimum; one that is there stays."""
    from ase_definet import __version__
    from ase_definet.dft.codes import write_inputs

    for variant in found.variants:
        target = folder / "inputs" / variant.name
        if (target / "README.txt").exists():
            click.echo(f"kept      {target}: it was there")
            continue
        target.parent.mkdir(exist_ok=True)
        provenance = {
            "host": f"{found.site_map.host.name} {found.site_map.supercell_name}",
            "defects": variant.defects,
            "method": "calculator",
            "calculation": str(variant.end.calculation),
            "above": f"{variant.above:.3f} eV above the lowest minimum found",
            "version": __version__,
        }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DefiNetWarning)  # the report has them too
                written = write_inputs(
                    variant.end.atoms,
                    target,
                    provenance=provenance,
                    predicted=True,
                    spin_multiplicity=variant.end.spin_multiplicity,
                    **options,
                )
        except DefiNetError as error:
            raise click.ClickException(f"{target}: {error_text(error)}") from error
        click.echo(f"wrote     {target}: {', '.join(written.files)}")
        for text in written.warnings:
            click.echo(f"warning   {text}")


def _write_report(found: Search, path: Path) -> None:
    import json

    from ase_definet.structures.files import replacing
    from ase_definet.variants.search import table_rows

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(list(table_rows(found.variants)), indent=1) + "\n", encoding="utf-8")
