"""The command line: parsing and printing only. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys

import click

from ase_definet.cli.inputs import vasp_command
from ase_definet.cli.listings import hosts_command, models_command
from ase_definet.cli.match import match_command
from ase_definet.cli.relax import relax_command
from ase_definet.cli.weights import import_checkpoint_command
from ase_definet.errors import DefiNetError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ase-definet", prog_name="ase-definet")
def cli() -> None:
    """Relax crystal defects in one forward pass and hand them to VASP."""


for command in (
    relax_command,
    match_command,
    vasp_command,
    hosts_command,
    models_command,
    import_checkpoint_command,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; every foreseen error is one line on standard error."""
    try:
        cli()
    except DefiNetError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"Error: {error.filename or 'file system'}: {error.strerror or error}", err=True)
        sys.exit(1)
