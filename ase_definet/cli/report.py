"""``ase-definet report``: a page to look at the results of a screen."""

from __future__ import annotations

from pathlib import Path

import click

from ase_definet.cli.common import FILE, IN_FOLDER, BadUsage, check_folder, overwrite_option, refuse_existing


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
@click.option(
    "--rank",
    metavar="COLUMN",
    help="List and draw the lowest of this column first, such as formation_energy.  [default: --rank of the screen, "
    "or the largest expected errors]",
)
@click.option("--highest", is_flag=True, help="The highest of --rank first instead.")
@overwrite_option
def report_command(
    results: Path, output: Path, pictures: int, rank: str | None, highest: bool, overwrite: bool
) -> None:
    """Write an HTML page about the results of a screen.

    RESULTS is the folder that `ase-definet screen` wrote. The page needs no other file and no internet: a table to
    sort and filter, distributions, and pictures of the structures with the largest expected errors, or of the best
    of --rank, before and after.
    """
    if highest and rank is None:
        raise BadUsage("--highest is for a ranking: say by which column, with --rank")
    refuse_existing(output, overwrite=overwrite)
    check_folder(output.parent)
    from ase_definet.screening.html_report import write_report
    from ase_definet.screening.screen import NUMBERS

    if rank is not None and rank not in NUMBERS:
        raise BadUsage(f"--rank {rank}: no such column of numbers; expected one of {', '.join(sorted(NUMBERS))}")
    path = write_report(results, output, pictures=pictures, rank=rank, highest=highest, overwrite=overwrite)
    click.echo(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB: open it in a browser")
