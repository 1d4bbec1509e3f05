"""``ase-definet hosts`` and ``ase-definet models``."""

from __future__ import annotations

import click


@click.command("hosts")
def hosts_command() -> None:
    """List the built-in hosts and their other names."""
    import numpy as np  # noqa: PLC0415

    from ase_definet.matching.library import ALIASES, library  # noqa: PLC0415

    click.echo(f"{'name':6s} {'a, b (Å)':18s} {'height (Å)':11s} other names")
    for name, host in library().items():
        a, b = np.linalg.norm(host.cell[:2], axis=1)
        height = np.ptp(host.positions[:, 2])
        others = ", ".join(sorted(k for k, v in ALIASES.items() if v == name))
        click.echo(f"{name:6s} {f'{a:.5f}, {b:.5f}':18s} {height:<11.4f} {others}".rstrip())
    click.echo(
        "The weights have seen these cells only, unstrained. Any structure file may be a host, with a warning."
    )


@click.command("models")
def models_command() -> None:
    """List the bundled weights, what they were trained on and how well they do."""
    from ase_definet.checkpoints.bundled import bundled_cards  # noqa: PLC0415

    for name, bundled in bundled_cards().items():
        card = bundled.card
        click.echo(f"{name} {card.version}: {card.architecture}, {card.parameters:,} parameters, {card.date}")
        if card.training is not None:
            click.echo(f"  hosts     {', '.join(card.training.hosts)}")
        if card.routed:
            served = "; ".join(", ".join(one.hosts) for one in card.routed)
            click.echo(f"  networks  one each for {served}; one for all others")
        if card.training is not None:
            click.echo(f"  elements  {', '.join(card.training.elements)}")
        click.echo("  validation, coordinate MAE in Å (all atoms, within 3 Å of a defect; unrelaxed: the same):")
        for subset, row in card.validation.items():
            click.echo(
                f"    {subset:12s} {row.mae:.4f}  {row.a3:.4f};  {row.ideal_sites:.4f}  {row.ideal_sites_a3:.4f}"
            )
        click.echo(f"  sha256    {bundled.sha256}")
        click.echo(f"  {card.attribution}")
