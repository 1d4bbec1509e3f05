"""``ase-definet inputs``: the input set of any DFT code for any structure."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

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
)
from ase_definet.errors import DefiNetWarning, InputSetError, OutputExistsError, StructureError


@click.command("inputs")
@click.argument("file", type=IN_FILE)
@click.option("--code", type=click.Choice(CODES), required=True, help="The DFT code to write for.")
@click.option(
    "-o", "--output", "directory", required=True, type=FOLDER, help="Folder to write to; created if needed."
)
@input_set_options
@code_options
@click.option("--charge", type=int, help="Net charge of the cell, in e; by default what FILE says, or 0.")
@click.option(
    "--multiplicity", type=click.IntRange(min=1), help="Spin multiplicity to hold; by default what FILE says."
)
@overwrite_option
def inputs_command(
    file: Path,
    code: str,
    directory: Path,
    charge: int | None,
    multiplicity: int | None,
    settings: tuple[str, ...],
    library: Path | None,
    overwrite: bool,
    input_set: dict[str, Any],
) -> None:
    """Write the input set of a DFT code for any structure.

    \b
    ase-definet inputs POSCAR --code cp2k -o run

    What each set consists of is in docs/dft.md; all have a README.txt. If FILE holds several structures, the last one
    is used.
    """  # noqa: D301 - click reads \b as "leave the lines as they are"
    from ase_definet.dft.codes import write_inputs
    from ase_definet.structures.reading import read_structure

    options = for_code(code, input_set, settings, library)
    check_folder(directory)
    try:
        atoms = read_structure(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DefiNetWarning)  # the report has them too
            report = write_inputs(
                atoms, directory, charge=charge, multiplicity=multiplicity, overwrite=overwrite, **options
            )
    except (InputSetError, OutputExistsError) as error:
        raise BadUsage(error_text(error)) from error
    except StructureError as error:
        raise StructureError(error_text(error, file)) from error
    click.echo(f"wrote     {directory}: {', '.join(report.files)}")
    for key, (before, after) in report.overridden.items():
        click.echo(f"override  {key} = {after} (profile: {before if before is not None else 'not set'})")
    for text in [*image_notes(file), *report.warnings]:
        click.echo(f"warning   {text}")
