"""``ase-definet match``: defects, sites, margin and strain, without a network."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from ase_definet.cli.common import (
    IN_FILE,
    about,
    checked_host,
    counts,
    host_line,
    host_option,
    image_notes,
    match_record,
    strain_option,
)
from ase_definet.cli.states import state_record, state_rows
from ase_definet.errors import StructureError


@click.command("match")
@click.argument("file", type=IN_FILE)
@host_option
@strain_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def match_command(file: Path, host: str, max_strain: float, as_json: bool) -> None:
    """Name the defects in FILE and where they are, without running a network.

    Atoms on no site of the host are named too: interstitials Li_i, adatoms Li_ads, split vacancies and dumbbells.

    If FILE holds several structures, the last one is used.
    """
    resolved = checked_host(host)
    from ase_definet.matching.site_map import match_sites
    from ase_definet.structures.reading import read_structure

    with about(file):
        atoms = read_structure(file)
        site_map = match_sites(atoms, resolved, max_strain=max_strain)
    record = match_record(site_map) | {"charge": None, "spin_multiplicity": None, "functional": None}
    try:
        record |= state_record(atoms)
    except StructureError as error:  # the defects are what they are
        record["warnings"].append(str(error))
    record["warnings"] += image_notes(file)
    if as_json:
        click.echo(json.dumps(record, indent=1, allow_nan=False))
        return
    second = f"{site_map.runner_up:.3f} Å" if math.isfinite(site_map.runner_up) else "none"
    click.echo(f"host      {host_line(site_map)}")
    click.echo(f"defects   {counts(site_map.defect_counts)}")
    for name, text in state_rows(record):
        click.echo(f"{name:10s}{text}")
    click.echo(f"match     rms {site_map.cost:.3f} Å, runner-up {second}, margin {site_map.margin:.2f} Å")
    for text in record["warnings"]:
        click.echo(f"warning   {text}")
    for defect in site_map.defects:
        x, y, z = (round(v, 3) + 0.0 for v in defect.position)
        atom = "" if defect.atom_index is None else f"  atom {defect.atom_index}"
        click.echo(f"  {defect.name:8s} site {defect.site:5d}  ({x:8.3f} {y:8.3f} {z:8.3f}) Å{atom}")
    for extra in site_map.extra:
        x, y, z = (round(v, 3) + 0.0 for v in extra.position)
        where = site_map.whereabouts(extra)
        click.echo(f"  {extra.name:8s} atom {extra.atom_index:5d}  ({x:8.3f} {y:8.3f} {z:8.3f}) Å  {where}")
