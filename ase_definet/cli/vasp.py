"""``ase-definet vasp``: a VASP input set for any structure."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import (
    FOLDER,
    IN_FILE,
    BadUsage,
    check_folder,
    error_text,
    image_notes,
    input_set_options,
    overwrite_option,
    refuse_existing,
    show_traceback,
)
from ase_definet.cli.relax_plan import INPUT_SET
from ase_definet.cli.states import AskedState, folder_of, state_options
from ase_definet.errors import DefiNetWarning, InputSetError, OutputExistsError, StructureError

if TYPE_CHECKING:
    from ase import Atoms


@click.command("vasp")
@click.argument("file", type=IN_FILE)
@click.option(
    "-o", "--output", "directory", required=True, type=FOLDER, help="Folder to write to; created if needed."
)
@input_set_options
@state_options
@overwrite_option
def vasp_command(
    file: Path,
    directory: Path,
    overwrite: bool,
    state: AskedState,
    input_set: dict[str, Any],
) -> None:
    """Write a VASP input set for any structure.

    The set consists of POSCAR, INCAR, KPOINTS, POTCAR.spec and README.txt. If FILE holds several structures, the last
    one is used. Several charges (--charge -2:2) give a folder each, with the charge in its name: FOLDER_q-1.
    """
    from ase_definet.structures.reading import read_structure

    folders = {folder_of(directory, one) if state.several else directory: one for one in state.each()}
    for folder in folders:
        check_folder(folder)
        if state.several:  # all or none: else some of them would be written before one is in the way
            refuse_existing(*(folder / name for name in INPUT_SET), overwrite=overwrite)
    try:
        atoms = read_structure(file)
        problems = [
            _write(file, atoms, one, folder, input_set, overwrite=overwrite) for folder, one in folders.items()
        ]
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
    file: Path, atoms: Atoms, state: AskedState, folder: Path, input_set: dict[str, Any], *, overwrite: bool
) -> InputSetError | OutputExistsError | None:
    """Write the input set of one state, and say so; return what is wrong with the options, if anything is."""
    from ase_definet.dft.vasp import write_vasp_inputs
    from ase_definet.structures.state import set_state

    given, atoms = atoms, atoms.copy()
    atoms.calc = given.calc  # it may hold moments
    notes = set_state(atoms, state.charge, state.spin_multiplicity, state.functional)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DefiNetWarning)  # the report has them too
            report = write_vasp_inputs(atoms, folder, overwrite=overwrite, **input_set)
    except (InputSetError, OutputExistsError) as error:
        return error
    click.echo(f"wrote     {folder}: {', '.join(report.files)}")
    for tag, (before, after) in report.overridden.items():
        click.echo(f"override  {tag} = {after} (profile: {before if before is not None else 'not set'})")
    for text in [*notes, *image_notes(file), *report.warnings]:
        click.echo(f"warning   {text}")
    return None
