"""``ase-definet enumerate``: all symmetry-distinct defect configurations of a supercell, or a random sample."""

from __future__ import annotations

import io
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
from ase_definet.structures.files import is_vacant, new_database, others_in, replacing, replacing_folder

if TYPE_CHECKING:
    from ase_definet.screening.enumeration import Configuration, DefectSpace

_SIZE = re.compile(r"^(\d+)x(\d+)(?:x(\d+))?$")
_COUNT = re.compile(r"[*x]\s*\d")
_VANADIUM = re.compile(r"(?:^|\+)\s*V_([A-Z][a-z]?)")


@click.command("enumerate")
@click.option("--host", required=True, metavar="HOST", help="Pristine host: a library name or a structure file.")
@click.option(
    "--supercell",
    required=True,
    metavar="NxM[xK]",
    help="Repeats of the primitive cell, or the nine integers of a matrix.",
)
@click.option(
    "--defects",
    required=True,
    metavar="LIST",
    help='Such as "v_S*2 + W_Mo"; with --density, the kinds that may occur.',
)
@click.option("--max-distance", type=float, help="Largest distance between two defects, in Å.")
@click.option("--density", type=float, help="Sample random configurations with this share of defect sites instead.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random configurations.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many; required with --density.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A folder (for POSCARs), *.extxyz, *.db, or - for a pipe; without it, only count.",
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
    overwrite: bool,
) -> None:
    """List symmetry-distinct defect configurations.

    All configurations of DEFECTS in a supercell of HOST, or with --density a random sample. In *.extxyz and *.db,
    each carries its name, its multiplicity and the shortest distance between two of its defects, which a screen
    passes on; of a POSCAR, the file name is the name, and its atoms are listed species by species, those of one
    species in the order of the sites. Configurations are streamed, so that their number is not limited by memory. A
    file or a new folder appears when it is complete. --overwrite removes the files that an earlier enumeration wrote
    to the folder, and no others.
    """
    if output is not None and output.exists() and not overwrite and not (output.is_dir() and is_vacant(output)):
        raise BadUsage(f"{output} exists; choose another name or give --overwrite")
    space, chosen = configurations(
        checked_host(host), supercell, defects, max_distance=max_distance, density=density, seed=seed, limit=limit
    )
    count, multiplicity = 0, 0
    with _writer(space, output) as write:
        for configuration in chosen:
            write(configuration)
            count += 1
            multiplicity += configuration.multiplicity
    if density is not None and count < (limit or 0):
        click.echo(f"note      there are only {count} different configurations", err=True)
    if output != Path("-"):
        _summarise(space, count, multiplicity, output)


def configurations(
    host: object,
    supercell: str,
    defects: str,
    *,
    max_distance: float | None = None,
    density: float | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> tuple[DefectSpace, Iterator[Configuration]]:
    """Return the sites and the configurations that the options of an enumeration ask for.

    Args:
        host: The host, as :func:`~ase_definet.cli.common.checked_host` returns it.
        supercell: What --supercell says, and so on.
        defects: The same.
        max_distance: The same.
        density: The same.
        seed: The same.
        limit: The same.

    Raises:
        BadUsage: They make no sense.
    """
    if density is not None:
        _check_sample(defects, limit, max_distance)
    if host == "auto":
        raise BadUsage("name the host: there is no structure to infer it from")
    from ase_definet.screening.enumeration import DefectSpace, parse_defects

    try:
        space = DefectSpace(host, _matrix(supercell))  # type: ignore[arg-type]
        wanted = parse_defects(defects)
        _note_vanadium(defects)
        if density is not None:
            found = space.sample(density, list(wanted), seed)
        else:
            found = space.enumerate(wanted, max_distance)
        first = next(found, None)
    except EnumerationError as error:
        raise BadUsage(str(error)) from error
    return space, itertools.islice(itertools.chain([] if first is None else [first], found), limit)


def _check_sample(defects: str, limit: int | None, max_distance: float | None) -> None:
    """Refuse what random configurations cannot heed, and say what they do not."""
    if limit is None:
        raise BadUsage("--density needs --limit: random configurations never end")
    if max_distance is not None:
        raise BadUsage("--max-distance is for complete lists, not for --density")
    if _COUNT.search(defects):
        click.echo("note      --density says how many defects there are: counts in --defects are ignored", err=True)


def _note_vanadium(defects: str) -> None:
    """Say what V is: other tools write vacancies that way."""
    for element in dict.fromkeys(_VANADIUM.findall(defects)):
        click.echo(f"note      V_{element} is vanadium on {element}; a vacancy is v_{element}", err=True)


def _summarise(space: DefectSpace, count: int, multiplicity: int, output: Path | None) -> None:
    whole = f", {multiplicity} with their images" if multiplicity else ""
    click.echo(f"{count} configurations{whole}, {len(space.numbers)} sites of {space.host.name}")
    if output is None:
        return
    click.echo(f"wrote {output}")
    others = others_in(output) if output.is_dir() else 0
    if others:
        click.echo(f"note      {others} other files stay in {output}; a screen of it takes them too", err=True)


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
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(
                encoding="utf-8", errors="backslashreplace", newline="\n"
            )  # whatever the terminal's is: it goes into a pipe
        yield lambda configuration: _to_extxyz(sys.stdout, space, configuration)
        return
    check_folder(output.parent)
    if output.suffix not in {".extxyz", ".xyz", ".db", ""}:
        raise BadUsage(f"{output}: expected a folder, *.extxyz or *.db")
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".db":
        with replacing(output) as fresh, new_database(fresh) as database:
            yield lambda configuration: _to_database(database, space, configuration)
    elif output.suffix:
        with replacing(output) as fresh, fresh.open("w", encoding="utf-8") as stream:
            yield lambda configuration: _to_extxyz(stream, space, configuration)
    else:
        with replacing_folder(output) as fresh:
            yield lambda configuration: _to_folder(fresh, space, configuration)


def _to_extxyz(stream: Any, space: DefectSpace, configuration: Configuration) -> None:
    stream.write(space.extxyz(configuration))


def _to_database(database: Any, space: DefectSpace, configuration: Configuration) -> None:
    from ase.db.core import str_represents

    atoms = space.atoms(configuration)
    values = atoms.info | {"defects": atoms.info["defects"].replace(", ", " ")}
    # ASE refuses texts that look like numbers, as the names of host files may
    odd = {
        key: value
        for key, value in values.items()
        if isinstance(value, str) and any(str_represents(value, t) for t in (int, float, bool))
    }
    database.write(atoms, {key: value for key, value in values.items() if key not in odd}, data=odd)


def _to_folder(folder: Path, space: DefectSpace, configuration: Configuration) -> None:
    from ase.io import write

    from ase_definet.dft.input_plan import poscar_order

    atoms = space.atoms(configuration)
    # VASP needs one POTCAR block for each run of atoms of a species
    write(folder / f"{configuration.name}.vasp", atoms[poscar_order(atoms.numbers)], format="vasp", direct=True)
