"""``ase-definet properties``: formation energies, gaps and moments from the defects, without relaxing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import (
    PATH,
    BadUsage,
    checked_host,
    counts,
    device_option,
    error_text,
    host_line,
    host_option,
    match_record,
    mu_option,
    properties_asked,
    show_traceback,
    strain_option,
    wrong_kind,
)
from ase_definet.cli.property_text import property_lines, property_record, property_rows
from ase_definet.cli.states import AskedState, state_options, state_record, state_rows
from ase_definet.errors import DefiNetError, StructureError

if TYPE_CHECKING:
    from ase import Atoms

    from ase_definet.properties.asked_potentials import AskedPotentials
    from ase_definet.properties.predictor import PropertyPredictor


@click.command("properties")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
@host_option
@click.option(
    "--model",
    default="default",
    show_default=True,
    metavar="WEIGHTS",
    help="Bundled weights for properties by name, or a .safetensors file.",
)
@device_option
@mu_option
@click.option("--rank", metavar="NAME", help="Sort the structures by this property, the lowest first.")
@click.option("--highest", is_flag=True, help="Let the highest of --rank be the first, instead of the lowest.")
@state_options
@strain_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def properties_command(
    files: tuple[Path, ...],
    host: str,
    model: str,
    device: str,
    mu: tuple[str, ...],
    rank: str | None,
    highest: bool,
    state: AskedState,
    max_strain: float,
    as_json: bool,
) -> None:
    """Predict formation energies, gaps and magnetic moments, without relaxing anything.

    The properties follow from the defects and their sites; positions between the sites do not matter. All structures
    of a FILE are used, in the state that they say or that --charge, --spin and --functional give them; several
    charges give a result each. A FILE that cannot be used does not stop the others; the exit code is then 1.
    """
    if highest and rank is None:
        raise BadUsage("--highest is for a ranking: say by what, with --rank")
    resolved = checked_host(host)
    properties_asked(model, mu, resolved)
    from ase_definet.properties.asked_potentials import AskedPotentials
    from ase_definet.properties.predictor import PropertyPredictor

    try:
        predictor = PropertyPredictor(model, device)
    except DefiNetError as error:
        raise BadUsage(error_text(error)) from error
    check_rank(rank, predictor)
    asked = AskedPotentials.of(mu)
    records = []
    for title, given, one in _in_states(files, state):
        try:
            if isinstance(given, Exception):
                raise given  # noqa: TRY301 - one way for all that fails
            notes = one.impose(given)
            record = _predicted(given, resolved, predictor, asked, max_strain)
            record["warnings"] = [*notes, *record["warnings"]]
        except Exception as error:  # noqa: BLE001 - one bad file must not cost the others
            show_traceback(error)
            message = error_text(error, Path(title))
            click.echo(f"Error: {message}", err=True)
            record = {"error": message}
        records.append({"name": title, **record})
    if rank is not None:
        records.sort(key=lambda record: _rank_of(record, rank, highest=highest))
    _show(records, as_json=as_json)
    ranked = rank is None or _say_unranked(records, rank)
    if not ranked or any("error" in record for record in records):
        raise SystemExit(1)


def check_rank(rank: str | None, predictor: PropertyPredictor) -> None:
    """Reject a property that the weights do not predict."""
    if rank is not None and rank not in predictor.properties:
        known = ", ".join(predictor.properties)
        raise BadUsage(f"--rank {rank}: {predictor.model} predict {known}; choose one of these")


def _structures(files: tuple[Path, ...]) -> Iterator[tuple[str, Atoms | Exception]]:
    """Yield all structures of the files, with their titles."""
    from ase_definet.screening.screen import structures_of

    for file in files:
        problem = wrong_kind(file, "file")
        if problem is not None:
            yield str(file), StructureError(problem)
            continue
        for name, given in structures_of([file]):
            number = name.removeprefix(f"{file.name}#")
            title = f"{file} {name}" if number == name else f"{file}#{number}"
            yield str(file) if name == file.name else title, given


def _in_states(files: tuple[Path, ...], state: AskedState) -> Iterator[tuple[str, Atoms | Exception, AskedState]]:
    """Yield all structures of the files once for each state that is asked for, with their titles."""
    for title, given in _structures(files):
        if isinstance(given, Exception):
            yield title, given, state
            continue
        for one in state.each():
            yield f"{title}{f' {one.suffix[1:]}' if state.several else ''}", given.copy(), one


def _say_unranked(records: list[dict[str, Any]], rank: str) -> bool:
    """Say which structures have no place in a ranking, and why; return whether any has one."""
    good = [record for record in records if "error" not in record]
    without = [record for record in good if record["found"][rank].value is None]
    if not without:
        return True
    first = without[0]
    why = "; ".join(first["found"][rank].reasons)
    some = f"{len(without)} of {len(good)} structures have no {rank} and come last, the first: {first['name']}"
    text = some if len(without) < len(good) else f"nothing can be ranked: no structure has a {rank}"
    click.echo(f"{'warning   ' if len(without) < len(good) else 'Error: '}--rank {rank}: {text}: {why}", err=True)
    return len(without) < len(good)


def _predicted(
    atoms: Atoms, host: Any, predictor: PropertyPredictor, asked: AskedPotentials, max_strain: float
) -> dict[str, Any]:
    """Return the record of one structure."""
    from ase.data import chemical_symbols

    from ase_definet.matching.site_map import match_sites

    site_map = match_sites(atoms, host, max_strain=max_strain)
    involved = atoms.get_chemical_symbols()
    potentials = asked.in_host(site_map.host, involved)
    (found,) = predictor.predict([site_map], [atoms], potentials)
    elements = dict.fromkeys([*(chemical_symbols[z] for z in site_map.host.numbers), *involved])
    known = {element: potentials.of(element) for element in elements}
    return {
        "found": found,
        "site_map": site_map,
        "state": state_record(atoms),
        "potentials": {element: value for element, value in known.items() if value is not None},
        "warnings": [*site_map.warnings, *potentials.warnings],
        "model": predictor.model,
    }


def _rank_of(record: dict[str, Any], rank: str, *, highest: bool) -> tuple[int, float]:
    """Return the sorting key of a record: those without a value come last, in their order."""
    value = None if "error" in record else record["found"][rank].value
    return (1, 0.0) if value is None else (0, -value if highest else value)


def _show(records: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print the records: one in full, several as a table."""
    if as_json:
        click.echo(json.dumps([_plain(record) for record in records], indent=1, allow_nan=False))
        return
    good = [record for record in records if "error" not in record]
    if len(records) > 1:
        for line in property_lines([(record["name"], record["found"]) for record in good]):
            click.echo(line)
        for record in good:
            for text in record["warnings"]:
                click.echo(f"warning   {record['name']}: {text}", err=True)
        return
    for record in good:
        rows = [
            ("host", host_line(record["site_map"])),
            ("defects", counts(record["site_map"].defect_counts)),
            *state_rows(record["state"]),
            *property_rows(record["found"], record["potentials"], record["site_map"].host),
            *(("warning", text) for text in record["warnings"]),
            ("model", record["model"]),
        ]
        for name, text in rows:
            click.echo(f"{name:10s}{text}")


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as JSON-ready data."""
    if "error" in record:
        return record
    return {
        "name": record["name"],
        **match_record(record["site_map"]),
        **record["state"],
        "properties": property_record(record["found"]),
        "chemical_potentials": record["potentials"],
        "warnings": record["warnings"],
        "model": record["model"],
    }
