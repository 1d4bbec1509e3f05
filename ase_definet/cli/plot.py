"""``ase-definet plot``: one picture of one relaxation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ase_definet.cli.common import (
    FILE,
    IN_FILE,
    BadUsage,
    PositiveFloat,
    about,
    check_folder,
    checked_host,
    overwrite_option,
    refuse_existing,
)
from ase_definet.errors import DefiNetError, StructureError

if TYPE_CHECKING:
    from ase_definet.matching.extra_atoms import ExtraAtom
    from ase_definet.matching.site_map import Defect


@click.command("plot")
@click.argument("file", type=IN_FILE)
@click.argument("relaxed", type=IN_FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The figure: .png, .svg or .pdf.")
@click.option(
    "--host",
    metavar="HOST",
    help="Also mark the defect sites in this host: a library name, a structure file, or 'auto'.",
)
@click.option("--view", type=click.Choice(["top", "side"]), default="top", show_default=True)
@click.option(
    "--enlarged",
    type=PositiveFloat(),
    help="Scale factor of the arrows; by default chosen to fit the figure.",
)
@click.option("--title", default="", help="Title of the figure.")
@overwrite_option
def plot_command(
    file: Path,
    relaxed: Path,
    output: Path,
    host: str | None,
    view: str,
    enlarged: float | None,
    title: str,
    overwrite: bool,
) -> None:
    """Draw one relaxation, with arrows for the displacements.

    FILE is the structure before, RELAXED the same one after.
    """
    refuse_existing(output, overwrite=overwrite)
    check_folder(output.parent)
    resolved = None if host is None else checked_host(host)
    try:
        from ase_definet.plotting.structure import draw_relaxation
    except ImportError as error:
        raise click.ClickException(f"plot needs {error.name}: pip install 'ase-definet[plot]'") from error
    from ase_definet.matching.site_map import match_sites
    from ase_definet.structures.reading import read_structure

    before = read_structure(file)
    after = read_structure(relaxed)
    defects: list[Defect | ExtraAtom] = []
    if resolved is not None:
        with about(file):
            defects = match_sites(before, resolved).all_defects
    try:
        path = draw_relaxation(
            before,
            after,
            output,
            defects=defects,
            view=view,  # type: ignore[arg-type]
            enlarged=enlarged,
            title=title,
            overwrite=overwrite,
        )
    except StructureError:
        raise
    except DefiNetError as error:
        raise BadUsage(str(error)) from error
    click.echo(f"wrote {path}")
