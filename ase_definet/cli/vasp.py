"""``ase-definet vasp``: a VASP input set for any structure."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

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
)
from ase_definet.errors import DefiNetWarning, InputSetError, OutputExistsError, StructureError


@click.command("vasp")
@click.argument("file", type=IN_FILE)
@click.option(
    "-o", "--output", "directory", required=True, type=FOLDER, help="Folder to write to; created if needed."
)
@input_set_options
@click.option("--charge", type=int, help="Net charge of the cell, in e; by default what FILE says, or 0.")
@overwrite_option
def vasp_command(
    file: Path,
    directory: Path,
    charge: int | None,
    overwrite: bool,
    input_set: dict[str, Any],
) -> None:
    """Write a VASP input set for any structure.

    The set consists of POSCAR, INCAR, KPOINTS, POTCAR.spec and README.txt. If FILE holds several structures, the last
    one is used.
    """
    from ase_definet.dft.vasp import write_vasp_inputs
    from ase_definet.structures.reading import read_structure

    check_folder(directory)
    try:
        atoms = read_structure(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DefiNetWarning)  # the report has them too
            report = write_vasp_inputs(atoms, directory, charge=charge, overwrite=overwrite, **input_set)
    except (InputSetError, OutputExistsError) as error:
        raise BadUsage(error_text(error)) from error
    except StructureError as error:
        raise StructureError(error_text(error, file)) from error
    click.echo(f"wrote     {directory}: {', '.join(report.files)}")
    for tag, (before, after) in report.overridden.items():
        click.echo(f"override  {tag} = {after} (profile: {before if before is not None else 'not set'})")
    for text in [*image_notes(file), *report.warnings]:
        click.echo(f"warning   {text}")
