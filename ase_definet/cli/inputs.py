"""``ase-definet vasp``: a VASP input set for any structure."""

from __future__ import annotations

from pathlib import Path

import click

from ase_definet.cli.common import PROFILES, overwrite_option, usage
from ase_definet.errors import InputSetError, OutputExistsError


@click.command("vasp")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "directory", required=True, type=click.Path(path_type=Path), help="Folder to write to."
)
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
@click.option("--charge", type=int, default=0, show_default=True, help="Net charge of the cell, in e.")
@overwrite_option
def vasp_command(
    file: Path,
    directory: Path,
    profile: str,
    incar: tuple[str, ...],
    magnetic: str,
    dipole: bool,  # noqa: FBT001
    charge: int,
    overwrite: bool,  # noqa: FBT001
) -> None:
    """Write POSCAR, INCAR, KPOINTS, POTCAR.spec and README.txt for FILE."""
    from ase_definet.host import read_structure  # noqa: PLC0415
    from ase_definet.vasp import parse_incar_overrides, write_vasp_inputs  # noqa: PLC0415

    try:
        overrides = parse_incar_overrides(incar)
        report = write_vasp_inputs(
            read_structure(file),
            directory,
            profile,  # type: ignore[arg-type]
            incar=overrides,
            magnetic=magnetic,  # type: ignore[arg-type]
            dipole=dipole,
            charge=charge,
            overwrite=overwrite,
        )
    except (InputSetError, OutputExistsError) as error:
        raise usage(error) from error
    click.echo(f"wrote {report.directory}: {', '.join(report.files)}")
    for tag, (before, after) in report.overridden.items():
        click.echo(f"override  {tag} = {after} (profile: {before if before is not None else 'not set'})")
    for text in report.warnings:
        click.echo(f"warning   {text}", err=True)
