"""``ase-definet data pack|info|check``: data sets of unrelaxed and relaxed structures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import (
    FILE,
    IN_EITHER,
    IN_FILE,
    BadUsage,
    check_folder,
    checked_host,
    error_text,
    overwrite_option,
    refuse_existing,
)
from ase_definet.cli.progress import ProgressBar
from ase_definet.errors import HostError, StructureError

if TYPE_CHECKING:
    from ase_definet.data import PackedDataset, PairGroup, PairSource, Problem

SHOWN = 20

_source = click.argument("source", type=IN_EITHER)
_host = click.option(
    "--host",
    metavar="HOST",
    help="Host of all pairs: a library name or a file; required if SOURCE does not name one.",
)
_fractions = click.option(
    "--split",
    "fractions",
    type=(float, float, float),
    default=(0.8, 0.1, 0.1),
    show_default=True,
    metavar="TRAIN VAL TEST",
    help="Shares of the splits, if SOURCE does not define them.",
)
_seed = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the random assignment to splits."
)
_relaxed_only = click.option(
    "--relaxed-only",
    is_flag=True,
    help="All structures of SOURCE are relaxed ones, which start from the sites of their host.",
)
_labels = click.option(
    "--labels",
    type=IN_FILE,
    help="Table of properties (CSV with a column `id`; units in the names: formation_energy_eV).",
)
_label = click.option(
    "--label",
    "names",
    multiple=True,
    metavar="NAME",
    help="Property to take: a column of the table, an info key or a calculator result (energy); repeatable.",
)
_workers = click.option("--workers", type=click.IntRange(min=1), help="Number of processes; by default one per core.")


@click.group("data")
def data_group() -> None:
    """Pack, describe and check pairs of unrelaxed and relaxed structures.

    SOURCE may be the 2DMD layout (folders of CIFs with train.csv, val.csv and test.csv), a folder of ID_unrelaxed.*
    and ID_relaxed.*, an extended XYZ file or ASE database, a trajectory, or a folder of VASP runs.
    """


@data_group.command("pack")
@_source
@click.argument("out", type=FILE)
@_host
@_fractions
@_seed
@_relaxed_only
@_labels
@_label
@_workers
@overwrite_option
def pack_command(
    source: Path,
    out: Path,
    host: str | None,
    fractions: tuple[float, float, float],
    seed: int,
    relaxed_only: bool,
    labels: Path | None,
    names: tuple[str, ...],
    workers: int | None,
    overwrite: bool,
) -> None:
    """Pack the valid pairs of SOURCE into OUT.

    OUT is one compact file for training and evaluation; every pair is checked first. Properties of the relaxed
    structures come from a table (--labels), or with --label from the structures themselves. With --labels, SOURCE may
    be a packed data set, which is written to OUT with these labels.
    """
    refuse_existing(out, overwrite=overwrite)
    check_folder(out.parent)
    if source.is_file() and is_packed(source):
        _label_packed(source, out, labels, names)
        return
    found = references(source, host, fractions, seed, relaxed_only=relaxed_only)
    found, units = _labelled(found, labels, names)
    pack, problems = packed(found, out, workers, units)
    missing = [name for name in names if property_name(name) not in pack.labels]
    if missing:
        click.echo(f"warning   no structure has a label {', '.join(missing)}", err=True)
    show_problems(problems)
    n = sum(len(group) for group in pack.groups)
    click.echo(f"wrote {out}: {n} pairs, {out.stat().st_size / 1e6:.1f} MB, sha256 {pack.sha256[:12]}")
    if problems:
        click.echo(f"left out {len(problems)}")


@data_group.command("check")
@_source
@_host
@_relaxed_only
@_workers
def check_command(source: Path, host: str | None, relaxed_only: bool, workers: int | None) -> None:
    """Report every pair of SOURCE that does not match.

    The exit code is 1 if there is one.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = references(source, host, relaxed_only=relaxed_only)
        _, problems = packed(found, Path(folder) / "pack", workers)
    show_problems(problems, shown=None)
    if problems:
        raise click.ClickException(f"{source}: {len(problems)} pairs do not belong together")
    click.echo("every pair is sound")


@data_group.command("info")
@click.argument("pack", type=IN_FILE)
def info_command(pack: Path) -> None:
    """Describe a packed data set.

    Lists subsets, numbers of pairs, hosts, defects and displacements.
    """
    from ase_definet.data import PackedDataset

    opened = PackedDataset.open(pack)
    click.echo(f"{pack}: {sum(len(g) for g in opened.groups)} pairs, sha256 {opened.sha256}")
    for name, groups in sorted(opened.subsets.items()):
        click.echo(name)
        for group in groups:
            for line in (*_describe(group), *_describe_labels(group, opened.labels)):
                click.echo(f"  {line}")


def references(
    source: Path,
    host: str | None,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    *,
    relaxed_only: bool = False,
) -> list[PairSource]:
    """Find the pairs of a source."""
    from ase_definet.data import find_pairs

    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:  # noqa: PLR2004 - rounding
        raise BadUsage(f"--split needs shares of train, val and test that add up to 1, found {fractions}")
    known = None if host is None else checked_host(host)
    try:
        return list(find_pairs(source, known, fractions, seed, relaxed_only=relaxed_only))
    except HostError as error:
        raise BadUsage(f"{error_text(error)}: --host") from error


def is_packed(source: Path) -> bool:
    """Return whether a file is a packed data set."""
    from ase_definet.data import is_pack

    return is_pack(source)


def _label_packed(source: Path, out: Path, labels: Path | None, names: tuple[str, ...]) -> None:
    """Write a packed data set with the labels of a table."""
    from ase_definet.data import PackedDataset, label_pack, read_labels

    if labels is None:
        raise BadUsage(f"{source} is packed already; give --labels to add labels to it")
    pack = label_pack(PackedDataset.open(source), read_labels(labels, names), out, warn=_warn)
    click.echo(f"wrote {out}: {sum(len(g) for g in pack.groups)} pairs, labels {', '.join(pack.labels)}")


def _warn(text: str) -> None:
    click.echo(f"warning   {text}", err=True)


def property_name(column: str) -> str:
    """Return the name of the property in a column: without its unit."""
    from ase_definet.data.labels import property_of

    return property_of(column)[0]


def _labelled(
    found: list[PairSource], labels: Path | None, names: tuple[str, ...]
) -> tuple[list[PairSource], dict[str, str]]:
    """Join the labels of a table to pairs, or have them read from the structures; return the units, too."""
    from dataclasses import replace

    from ase_definet.data import read_labels, with_labels

    if labels is None:
        return [replace(one, label_names=names) for one in found], {}
    table = read_labels(labels, names)
    found, warnings = with_labels(found, table)
    for text in warnings:
        _warn(text)
    return found, dict(table.units)


def packed(
    pairs: Iterable[PairSource], out: Path, workers: int | None = None, units: dict[str, str] | None = None
) -> tuple[PackedDataset, list[Problem]]:
    """Pack pairs with a progress bar."""
    from ase_definet.data import pack_pairs

    pairs = list(pairs)
    warnings: list[str] = []
    with ProgressBar("reading pairs", len(pairs)) as bar:
        found = pack_pairs(pairs, out, workers=workers, progress=bar.advance, units=units, warn=warnings.append)
    for text in warnings:
        _warn(text)
    return found


def show_problems(problems: list[Problem], shown: int | None = SHOWN) -> None:
    """Print which pairs were rejected, and why."""
    for problem in problems[:shown]:
        click.echo(f"left out  {problem.subset} {problem.id}: {problem.reason}", err=True)
    if shown is not None and len(problems) > shown:
        click.echo(f"left out  {len(problems) - shown} more; see `ase-definet data check`", err=True)


def _describe(group: PairGroup) -> Iterable[str]:
    import numpy as np

    from ase_definet.data import SPLITS
    from ase_definet.matching.naming import defect_name
    from ase_definet.matching.supercell import describe

    numbers, host = group.numbers, group.host_numbers
    defective = numbers != host
    found: Counter[str] = Counter()
    for z, h in zip(numbers[defective], np.broadcast_to(host, numbers.shape)[defective], strict=True):
        found[defect_name(z, h)] += 1
    splits = ", ".join(f"{name} {int((group.split == k).sum())}" for k, name in enumerate(SPLITS))
    missing = int((~group.has_relaxed).sum())
    density = defective.mean(axis=1)
    yield f"host {group.host}, {describe(group.supercell)} ({len(host)} sites), {len(group)} pairs: {splits}" + (
        f"; {missing} without a relaxed structure" if missing else ""
    )
    yield f"defect sites {density.min():.1%} to {density.max():.1%}: " + ", ".join(
        f"{name} x{n}" for name, n in found.most_common()
    )
    relaxed = np.flatnonzero(group.has_relaxed)
    if len(relaxed):
        length: Any = np.linalg.norm(group.moves(relaxed), axis=2)[numbers[relaxed] > 0]
        quantiles = ", ".join(f"{q:.0%} {np.quantile(length, q):.3f}" for q in (0.5, 0.9, 0.99))
        yield f"displacement of the atoms, Å: mean {length.mean():.4f}, {quantiles}, largest {length.max():.3f}"


def _describe_labels(group: PairGroup, labels: Mapping[str, str]) -> Iterable[str]:
    import numpy as np

    for (name, unit), values in zip(labels.items(), group.labels.T, strict=True):
        known = values[np.isfinite(values)]
        if len(known):
            span = f"{known.min():.4g} to {known.max():.4g}, mean {known.mean():.4g}"
            yield f"{name}, {unit}: {len(known)} labels, {span}"


def open_or_pack(source: Path, host: str | None) -> PackedDataset:
    """Open a packed data set, or pack a source into the cache; the same source is packed once.

    Args:
        source: A file made by ``data pack``, or anything that command reads.
        host: Host of all pairs where the source names none.
    """
    import hashlib
    import os

    from ase_definet.data import FORMAT, PackedDataset, is_pack

    if source.is_file() and is_pack(source):
        return PackedDataset.open(source)
    pairs = references(source, host)
    digest = hashlib.sha256(repr((FORMAT, str(source.resolve()), host)).encode())
    for pair in pairs:
        for what in (pair.unrelaxed, pair.relaxed):
            stamp = _stamp(what) if isinstance(what, Path) else None
            digest.update(repr((pair.id, pair.split, stamp)).encode())
    for path in (source, Path(host or "")):
        if path.is_file():
            digest.update(repr(_stamp(path)).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ase-definet"
    path = cache / f"{digest.hexdigest()[:24]}.pack"
    if path.exists():
        with suppress(StructureError):  # damaged: nobody but this command needs it, so it is made anew
            return PackedDataset.open(path)
    click.echo(f"packing {len(pairs)} pairs of {source} into {path}, once", err=True)
    pack, problems = packed(pairs, path)
    show_problems(problems)
    return pack


def _stamp(path: Path) -> tuple[str, int, int] | None:
    """Return a fingerprint that changes with a file."""
    if not path.exists():
        return None
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size
