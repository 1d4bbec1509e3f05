"""``ase-definet vasp``: a VASP input set for any structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ase_definet.cli.common import FOLDER, IN_FILE, for_code, input_set_options, overwrite_option
from ase_definet.cli.inputs import write_for_states
from ase_definet.cli.states import AskedState, state_options


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
    """Write a VASP input set for any structure: short for ``inputs --code vasp``.

    The set consists of POSCAR, INCAR, KPOINTS, POTCAR.spec and README.txt. If FILE holds several structures, the last
    one is used. Several charges (--charge -2:2) give a folder each, with the charge in its name: FOLDER_q-1.
    """
    write_for_states(file, directory, state, for_code("vasp", input_set, (), None), overwrite=overwrite)
