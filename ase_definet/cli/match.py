"""``ase-definet match``: defects, sites, margin and strain, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ase_definet.cli.common import checked_host, counts, host_line, host_option, match_record


@click.command("match")
@click.argument("file", type=click.Path(path_type=Path))
@host_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def match_command(file: Path, host: str, as_json: bool) -> None:  # noqa: FBT001
    """Say which defects FILE holds and where, without running a network."""
    resolved = checked_host(host)
    from ase_definet.host import read_structure  # noqa: PLC0415
    from ase_definet.sites import match_sites  # noqa: PLC0415

    site_map = match_sites(read_structure(file), resolved)
    if as_json:
        click.echo(json.dumps(match_record(site_map), indent=1))
        return
    click.echo(f"host      {host_line(site_map)}")
    click.echo(f"defects   {counts(site_map.defect_counts)}")
    click.echo(
        f"match     rms {site_map.cost:.3f} Å, runner-up {site_map.runner_up:.3f} Å, margin {site_map.margin:.2f} Å"
    )
    for text in site_map.warnings:
        click.echo(f"warning   {text}")
    for defect in site_map.defects:
        x, y, z = defect.position
        atom = "" if defect.atom_index is None else f"  atom {defect.atom_index}"
        click.echo(f"  {defect.name:8s} site {defect.site:5d}  ({x:8.3f} {y:8.3f} {z:8.3f}) Å{atom}")
