"""``ase-definet collect``: take the result of a DFT run back."""

from __future__ import annotations

from pathlib import Path

import click

from ase_definet.cli.common import FILE, PATH, BadUsage, error_text, overwrite_option, refuse_existing, saved_text
from ase_definet.errors import DefiNetError, StructureError


@click.command("collect")
@click.argument("folder", type=PATH)
@click.option(
    "-o", "--output", type=FILE, help="File to write; its suffix sets the format.  [default: FOLDER/relaxed.extxyz]"
)
@click.option(
    "--control", type=click.Path(path_type=Path), help="The run without the prediction, to compare FOLDER with."
)
@overwrite_option
def collect_command(folder: Path, output: Path | None, control: Path | None, overwrite: bool) -> None:
    """Read the result of a DFT run.

    \b
    ase-definet collect run -o relaxed.vasp

    FOLDER is where an input set was written and its code was run. The structure of the last step is written in the
    order that the atoms had before the input set was written. Steps, largest forces on free atoms and whether the run
    converged are printed, and with a control the settings that differ from it.
    """  # noqa: D301 - click reads \b as "leave the lines as they are"
    from ase_definet.cli.count_steps import differences, run_lines, saved_share
    from ase_definet.cli.relax_plan import named_format
    from ase_definet.cli.relax_results import staged, writable
    from ase_definet.dft.collect import collect
    from ase_definet.dft.ionic_steps import read_steps

    target = output or (folder if folder.is_dir() else folder.parent) / "relaxed.extxyz"
    try:
        fmt = named_format(target)
    except StructureError as error:
        raise BadUsage(error_text(error)) from error
    refuse_existing(target, overwrite=overwrite)
    try:
        run, atoms = collect(folder)
        reference = None if control is None else read_steps(control)
    except (DefiNetError, OSError) as error:
        raise click.ClickException(error_text(error)) from error
    atoms, lost = writable(atoms, fmt)
    with staged(target, atoms, fmt):
        pass
    for line in run_lines(run, ""):
        click.echo(line)
    saved = saved_share(reference, run)
    if saved is not None:
        click.echo(f"  {saved_text(saved)}{' than the control' if saved < 0 else ''}")
    click.echo(f"wrote     {target}")
    if run.converged is False:
        lost = ["not converged: the structure is that of the last step, not of a minimum", *lost]
    if run.converged is None:
        lost = ["nothing says that the run converged: the structure is that of the last step so far", *lost]
    for text in [*lost, *differences(reference, run)]:
        click.echo(f"warning   {text}")
