"""``ase-definet calculators``: the calculators known by name."""

from __future__ import annotations

import click


@click.command("calculators")
def calculators_command() -> None:
    """List the calculators that relax what the network does not know.

    Any other ASE calculator is named as package.module:callable, and made with the settings of --set KEY=VALUE.
    """
    from ase_definet.relaxation.calculators import CALCULATORS, lacking_of

    for name, entry in CALCULATORS.items():
        lacking = lacking_of(name)
        there = f"needs {lacking} ({entry.install})" if lacking else "ready"
        weights = "" if entry.weights == "none" else f"; weights {entry.weights}"
        offline = f"without network: {entry.offline}" if entry.weights == "downloaded" else entry.offline
        click.echo(f"{name:10s} {entry.what}{weights}; {offline}; {there}")
