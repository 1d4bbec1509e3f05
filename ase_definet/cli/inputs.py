"""``ase-definet vasp``: a VASP input set for any structure."""

from __future__ import annotations

from pathlib import Path

import click

from ase_definet.cli.common import (
    FILE,
    FOLDER,
    PROFILES,
    BadUsage,
    check_folder,
    error_text,
    image_notes,
    overwrite_option,
)
from ase_definet.errors import InputSetError, OutputExistsError, StructureError


@click.command("vasp")
@click.argument("file", type=FILE)
@click.option("-o", "--output", "directory", required=True, type=FOLDER, help="Folder to write to; made if need be.")
@click.option("--profile", type=click.Choice(PROFILES), default="few-steps", show_default=True)
@click.option("--incar", multiple=True, metavar="KEY=VALUE", help="Override an INCAR tag; may be repeated.")
@click.option(
    "--magnetic",
    type=click.Choice(["high-spin", "parity", "none"]),
    default="high-spin",
    show_default=True,
    help="Spin the calculation starts from.",
)
@click.option("--dipole", is_flag=True, help="Dipole correction across a neutral, asymmetric layer.")
@click.option("--charge", type=int, help="Net charge of the cell, in e; default is what FILE says, or 0.")
@overwrite_option
def vasp_command(
    file: Path,
    directory: Path,
    profile: str,
    incar: tuple[str, ...],
    magnetic: str,
    dipole: bool,  # noqa: FBT001
    charge: int | None,
    overwrite: bool,  # noqa: FBT001
) -> None:
    """Write POSCAR, INCAR, KPOINTS, POTCAR.spec and README.txt for FILE.

    Of a file with several structures the last one is taken.
    """
    from ase_definet.host import read_structure  # noqa: PLC0415
    from ase_definet.vasp import parse_incar_overrides, write_vasp_inputs  # noqa: PLC0415

    check_folder(directory)
    try:
        overrides = parse_incar_overrides(incar)
        atoms = read_structure(file)
        report = write_vasp_inputs(
            atoms,
            directory,
            profile,  # type: ignore[arg-type]
            incar=overrides,
            magnetic=magnetic,  # type: ignore[arg-type]
            dipole=dipole,
            charge=charge,
            overwrite=overwrite,
        )
    except (InputSetError, OutputExistsError) as error:
        raise BadUsage(error_text(error)) from error
    except StructureError as error:
        raise StructureError(error_text(error, file)) from error
    click.echo(f"wrote     {directory}: {', '.join(report.files)}")
    for tag, (before, after) in report.overridden.items():
        click.echo(f"override  {tag} = {after} (profile: {before if before is not None else 'not set'})")
    for text in [*image_notes(file), *report.warnings]:
        click.echo(f"warning   {text}")
