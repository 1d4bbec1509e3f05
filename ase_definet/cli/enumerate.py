"""``ase-definet enumerate``: all symmetry-distinct defect configurations of a supercell, or a random sample."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import BadUsage, check_folder, checked_host, overwrite_option
from ase_definet.errors import EnumerationError
from ase_definet.files import replacing

if TYPE_CHECKING:
    from ase_definet.enumeration import Configuration, DefectSpace

_SIZE = re.compile(r"^(\d+)x(\d+)(?:x(\d+))?$")


@click.command("enumerate")
@click.option("--host", required=True, metavar="HOST", help="Pristine host: a library name or a structure file.")
@click.option("--supercell", required=True, metavar="NxM[xK]", help="Repeats, or nine integers of a matrix.")
@click.option(
    "--defects", required=True, metavar="LIST", help='Such as "v_S*2 + W_Mo"; with --density, what may occur.'
)
@click.option("--max-distance", type=float, help="No two defects further apart, in Å.")
@click.option(
    "--density", type=float, help="Random configurations with this share of defective sites instead of all."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random configurations.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many; needed with --density.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="A folder (POSCARs), *.extxyz or *.db; else only count."
)
@overwrite_option
def enumerate_command(
    host: str,
    supercell: str,
    defects: str,
    max_distance: float | None,
    density: float | None,
    seed: int,
    limit: int | None,
    output: Path | None,
    overwrite: bool,  # noqa: FBT001
) -> None:
    """List all symmetry-distinct configurations of DEFECTS in a supercell of HOST, or a random sample.

    Each carries its name, its multiplicity and the shortest distance between two of its defects. Any number is
    streamed: nothing is held but the one that is written.
    """
    if density is not None and limit is None:
        raise BadUsage("--density needs --limit: random configurations never end")
    if density is not None and max_distance is not None:
        raise BadUsage("--max-distance is for complete lists, not for --density")
    if (
        output is not None
        and output.exists()
        and not overwrite
        and not (output.is_dir() and not any(output.iterdir()))
    ):
        raise BadUsage(f"{output} exists; choose another name or give --overwrite")
    resolved = checked_host(host)
    if resolved == "auto":
        raise BadUsage("name the host: there is no structure to infer it from")
    from ase_definet.enumeration import DefectSpace, parse_defects  # noqa: PLC0415

    try:
        space = DefectSpace(resolved, _matrix(supercell))  # type: ignore[arg-type]
        wanted = parse_defects(defects)
        if density is not None:
            found = space.sample(density, list(wanted), seed)
        else:
            found = space.enumerate(wanted, max_distance)
        first = next(found, None)
    except EnumerationError as error:
        raise BadUsage(str(error)) from error
    chosen = itertools.islice(itertools.chain([] if first is None else [first], found), limit)
    count, multiplicity = 0, 0
    with _writer(space, output) as write:
        for configuration in chosen:
            write(configuration)
            count += 1
            multiplicity += configuration.multiplicity
    if output == Path("-"):
        return
    whole = f", {multiplicity} with their images" if multiplicity else ""
    click.echo(f"{count} configurations{whole}, {len(space.numbers)} sites of {space.host.name}")
    if output is not None:
        click.echo(f"wrote {output}")


def _matrix(text: str) -> list[list[int]]:
    if found := _SIZE.match(text.strip().lower()):
        a, b, c = (int(v) if v else 1 for v in found.groups())
        return [[a, 0, 0], [0, b, 0], [0, 0, c]]
    try:
        values = [int(v) for v in re.split(r"[\s,;]+", text.strip())]
    except ValueError:
        values = []
    if len(values) != 9:  # noqa: PLR2004
        raise BadUsage(f"--supercell: expected 8x8, 8x8x1 or nine integers, found {text!r}")
    return [values[0:3], values[3:6], values[6:9]]


@contextmanager
def _writer(space: DefectSpace, output: Path | None) -> Iterator[Any]:
    """Yield a function that writes one configuration; a file appears only when it is complete."""
    if output is None:
        yield lambda _: None
        return
    if output == Path("-"):
        yield lambda configuration: _to_extxyz(sys.stdout, space, configuration)
        return
    check_folder(output.parent)
    if output.suffix in {".extxyz", ".xyz"}:
        with replacing(output) as fresh, fresh.open("w") as stream:
            yield lambda configuration: _to_extxyz(stream, space, configuration)
    elif output.suffix == ".db":
        from ase.db import connect  # noqa: PLC0415

        with replacing(output) as fresh, connect(fresh) as database:
            yield lambda configuration: _to_database(database, space, configuration)
    elif output.suffix:
        raise BadUsage(f"{output}: expected a folder, *.extxyz or *.db")
    else:
        output.mkdir(parents=True, exist_ok=True)
        yield lambda configuration: _to_folder(output, space, configuration)


def _to_extxyz(stream: Any, space: DefectSpace, configuration: Configuration) -> None:
    from ase.io import write  # noqa: PLC0415

    write(stream, space.atoms(configuration), format="extxyz")


def _to_database(database: Any, space: DefectSpace, configuration: Configuration) -> None:
    atoms = space.atoms(configuration)
    values = {key: value for key, value in atoms.info.items() if key != "defects"}
    database.write(atoms, defects=atoms.info["defects"].replace(", ", " "), **values)


def _to_folder(folder: Path, space: DefectSpace, configuration: Configuration) -> None:
    from ase.io import write  # noqa: PLC0415

    write(folder / f"{configuration.name}.vasp", space.atoms(configuration), format="vasp", direct=True)
