"""``ase-definet hosts``: the built-in hosts."""

from __future__ import annotations

import click


@click.command("hosts")
def hosts_command() -> None:
    """List the built-in hosts and their other names."""
    import numpy as np

    from ase_definet.matching.library import ALIASES, library

    click.echo(f"{'name':8s} {'a, b (Å)':18s} {'height (Å)':11s} other names")
    for name, host in library().items():
        a, b = np.linalg.norm(host.cell[:2], axis=1)
        height = np.ptp(host.positions[:, 2])
        others = ", ".join(sorted(k for k, v in ALIASES.items() if v == name))
        click.echo(f"{name:8s} {f'{a:.5f}, {b:.5f}':18s} {height:<11.4f} {others}".rstrip())
    click.echo(
        "'ase-definet weights list' shows which hosts the weights were trained on. Any structure file can be a host, "
        "with a warning."
    )
