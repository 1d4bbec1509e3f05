"""``ase-definet report``: a page to look at the results of a screen."""

from __future__ import annotations

from pathlib import Path

import click

from ase_definet.cli.common import FILE, IN_FOLDER, check_folder, overwrite_option, refuse_existing


@click.command("report")
@click.argument("results", type=IN_FOLDER)
@click.option("-o", "--output", type=FILE, required=True, help="The HTML file.")
@click.option(
    "--pictures",
    type=click.IntRange(min=0),
    default=300,
    show_default=True,
    help="Largest number of structures to draw.",
)
@overwrite_option
def report_command(results: Path, output: Path, pictures: int, overwrite: bool) -> None:
    """Write an HTML page about the results of a screen.

    RESULTS is the folder that `ase-definet screen` wrote. The page needs no other file and no internet: a table to
    sort and filter, distributions, and pictures of the structures with the largest expected errors, before and
    after.
    """
    refuse_existing(output, overwrite=overwrite)
    check_folder(output.parent)
    from ase_definet.screening.html_report import write_report

    path = write_report(results, output, pictures=pictures, overwrite=overwrite)
    click.echo(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB: open it in a browser")
