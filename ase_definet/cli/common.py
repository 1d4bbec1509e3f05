"""What several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.errors import DefiNetError, StructureError

if TYPE_CHECKING:
    from ase import Atoms

    from ase_definet.sites import SiteMap

PROFILES = ("paper", "few-steps", "robust")

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing files.")
host_option = click.option(
    "--host",
    required=True,
    metavar="HOST",
    help="Pristine host: a library name (see 'ase-definet hosts'), a structure file, or 'auto'.",
)


def usage(error: DefiNetError) -> click.UsageError:
    """Turn one of our errors into click's bad usage (exit code 2)."""
    return click.UsageError(str(error))


def checked_host(host: str) -> object:
    """Resolve a host before any structure is read; an unknown one is bad usage."""
    from ase_definet.errors import HostError  # noqa: PLC0415
    from ase_definet.host import get_host  # noqa: PLC0415

    if host.lower() == "auto":
        return "auto"
    try:
        return get_host(host)
    except HostError as error:
        raise usage(error) from error


def counts(defects: Mapping[str, int]) -> str:
    """Write defect counts as people do: ``V_S x2, W_Mo x1``."""
    return ", ".join(f"{name} x{n}" for name, n in defects.items()) or "none (pristine)"


def host_line(site_map: SiteMap) -> str:
    """Describe host, supercell and strain in one line."""
    return (
        f"{site_map.host.name}, supercell {site_map.supercell_name} ({len(site_map.kinds)} sites), "
        f"strain {100 * site_map.max_strain:+.2f} %"
    )


def match_record(site_map: SiteMap) -> dict[str, Any]:
    """Return a match as JSON-ready data, distances in Å."""
    return {
        "host": site_map.host.name,
        "supercell": site_map.supercell.tolist(),
        "strain": [round(float(v), 8) + 0.0 for v in site_map.strain],
        "shift": [float(v) for v in site_map.shift],
        "margin": site_map.margin,
        "cost": site_map.cost,
        "runner_up_cost": site_map.runner_up if site_map.runner_up < float("inf") else None,
        "ambiguous": site_map.ambiguous,
        "warnings": list(site_map.warnings),
        "defects": [
            {
                "name": defect.name,
                "kind": defect.kind.name.lower(),
                "site": defect.site,
                "host_element": defect.host_element,
                "element": defect.element,
                "atom_index": defect.atom_index,
                "position": list(defect.position),
            }
            for defect in site_map.defects
        ],
    }


def file_format(path: Path) -> str:
    """Return ASE's name for the format of an existing file."""
    from ase.io.formats import UnknownFileTypeError, filetype  # noqa: PLC0415

    try:
        return str(filetype(str(path)))
    except (UnknownFileTypeError, OSError) as error:
        raise StructureError(
            f"{path}: ASE does not know this format; name it like its format (x.cif, POSCAR)"
        ) from error


def write_structure(path: Path, atoms: Atoms, fmt: str) -> None:
    """Write a structure under a temporary name and rename it, so that nothing is ever half written."""
    from ase.io import write  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    try:
        write(str(fresh), atoms, format=fmt)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
