"""``ase-definet calculators``: the calculators known by name."""

from __future__ import annotations

import click


@click.command("calculators")
def calculators_command() -> None:
    """List the calculators that relax what the network does not know.

    Any other ASE calculator is named as package.module:callable, and made with the settings of --set KEY=VALUE.
    """
    from ase_definet.relaxation.calculators import CALCULATORS, is_installed

    for name, entry in CALCULATORS.items():
        there = "installed" if is_installed(name) else f"not installed ({entry.install})"
        weights = "" if entry.weights == "none" else f"; weights {entry.weights}"
        click.echo(f"{name:10s} {entry.what}{weights}; {entry.offline}; {there}")
