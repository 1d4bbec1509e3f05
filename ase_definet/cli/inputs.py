"""``ase-definet inputs``: the input set of any DFT code for any structure."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import (
    CODES,
    FOLDER,
    IN_FILE,
    BadUsage,
    check_folder,
    code_options,
    error_text,
    for_code,
    image_notes,
    input_set_options,
    overwrite_option,
    refuse_existing,
    show_traceback,
)
from ase_definet.cli.states import AskedState, folder_of, state_options
from ase_definet.errors import DefiNetWarning, InputSetError, OutputExistsError, StructureError

if TYPE_CHECKING:
    from ase import Atoms


@click.command("inputs")
@click.argument("file", type=IN_FILE)
@click.option("--code", type=click.Choice(CODES), required=True, help="The DFT code to write for.")
@click.option(
    "-o", "--output", "directory", required=True, type=FOLDER, help="Folder to write to; created if needed."
)
@input_set_options
@code_options
@state_options
@overwrite_option
def inputs_command(
    file: Path,
    code: str,
    directory: Path,
    settings: tuple[str, ...],
    library: Path | None,
    overwrite: bool,
    state: AskedState,
    input_set: dict[str, Any],
) -> None:
    """Write the input set of a DFT code for any structure.

    \b
    ase-definet inputs POSCAR --code cp2k -o run

    What each set consists of is in docs/dft.md; all have a README.txt. If FILE holds several structures, the last one
    is used. Several charges (--charge -2:2) give a folder each, with the charge in its name: FOLDER_q-1.
    """  # noqa: D301 - click reads \b as "leave the lines as they are"
    options = for_code(code, input_set, settings, library)
    write_for_states(file, directory, state, options, overwrite=overwrite)


def write_for_states(
    file: Path, directory: Path, state: AskedState, options: dict[str, Any], *, overwrite: bool
) -> None:
    """Write an input set for each of the states that are asked for."""
    from ase_definet.dft import codes
    from ase_definet.structures.reading import read_structure

    names = (*codes.CODES[options["code"]].writes, "README.txt")
    folders = {folder_of(directory, one) if state.several else directory: one for one in state.each()}
    for folder in folders:
        check_folder(folder)
        if state.several:  # all or none: else some of them would be written before one is in the way
            refuse_existing(*(folder / name for name in names), overwrite=overwrite)
    try:
        atoms = read_structure(file)
        problems = [_write(file, atoms, one, folder, options, overwrite=overwrite) for folder, one in folders.items()]
    except StructureError as error:
        raise StructureError(error_text(error, file)) from error
    failed = [problem for problem in problems if problem is not None]
    if len(failed) == len(folders):  # nothing was written
        raise BadUsage(error_text(failed[0])) from failed[0]
    for problem in failed:
        show_traceback(problem)
        click.echo(f"Error: {error_text(problem)}", err=True)
    if failed:
        raise SystemExit(1)


def _write(
    file: Path, atoms: Atoms, state: AskedState, folder: Path, options: dict[str, Any], *, overwrite: bool
) -> InputSetError | OutputExistsError | None:
    """Write the input set of one state, and say so; return what is wrong with the options, if anything is."""
    from ase_definet.dft.codes import write_inputs
    from ase_definet.structures.state import set_state

    given, atoms = atoms, atoms.copy()
    atoms.calc = given.calc  # it may hold moments
    notes = set_state(atoms, state.charge, state.spin_multiplicity, state.functional)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DefiNetWarning)  # the report has them too
            report = write_inputs(atoms, folder, overwrite=overwrite, **options)
    except (InputSetError, OutputExistsError) as error:
        return error
    click.echo(f"wrote     {folder}: {', '.join(report.files)}")
    for tag, (before, after) in report.overridden.items():
        click.echo(f"override  {tag} = {after} (profile: {before if before is not None else 'not set'})")
    for text in [*notes, *image_notes(file), *report.warnings]:
        click.echo(f"warning   {text}")
    return None
