"""Labels: scalar properties of structures, such as a formation energy or a gap, from a table or the structures.

A table is a CSV file (or ``.csv.xz``, ``.csv.gz``) with a column ``id`` and one column per property. The unit is part
of the column's name: ``formation_energy_eV`` is the property ``formation_energy`` in eV; values in meV are converted.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO, TypeAlias

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ase_definet.data.pairs import PairSource
from ase_definet.errors import StructureError

Array: TypeAlias = NDArray[Any]

UNITS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {"eV": ("eV", 1.0), "meV": ("eV", 1e-3), "muB": ("µB", 1.0), "A": ("Å", 1.0), "e": ("e", 1.0)}
)
"""Unit and factor of the suffixes of column names."""

_BY_WORD = (("gap", "eV"), ("energy", "eV"), ("homo", "eV"), ("lumo", "eV"), ("mag", "µB"))
"""Unit of a property that does not name its own, by a word in its name."""

RANGES: Mapping[str, tuple[float, float]] = MappingProxyType({"formation_energy": (-30.0, 60.0), "gap": (0.0, 20.0)})
"""Possible values in eV, by a word in the name: formation energies per defect site, and gaps."""

_OPENERS: Mapping[str, Callable[..., Any]] = MappingProxyType({".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open})
_NAMED = 3


@dataclass(frozen=True)
class LabelTable:
    """Labels by id.

    Attributes:
        rows: Values by property, by id; a missing value is left out.
        units: Unit of each property.
        warnings: What was wrong with the table.
    """

    rows: Mapping[str, Mapping[str, float]]
    units: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def property_of(column: str) -> tuple[str, str, float]:
    """Return the property that a column holds, its unit, and the factor to that unit.

    Examples:
        >>> property_of("formation_energy_eV"), property_of("gap_meV"), property_of("total_mag")
        (('formation_energy', 'eV', 1.0), ('gap', 'eV', 0.001), ('total_mag', 'µB', 1.0))
    """
    stem, _, suffix = column.rpartition("_")
    if stem and suffix in UNITS:
        return stem, *UNITS[suffix]
    return column, next((unit for word, unit in _BY_WORD if word in column), ""), 1.0


def read_labels(path: Path, only: Sequence[str] = ()) -> LabelTable:
    """Read a table of labels.

    Args:
        path: The file.
        only: Properties to read, by their names with or without the unit; every column of numbers by default.

    Raises:
        StructureError: The file cannot be read, or lacks ids or a property asked for.
    """
    columns, lines = _lines_of(path)
    chosen = _chosen_columns(path, columns, lines, only)
    rows: dict[str, dict[str, float]] = {}
    doubtful: set[str] = set()
    repeated = 0
    unreadable: list[str] = []
    for line in lines:
        key, values = line["id"] or "", _values_of(line, chosen, unreadable)
        repeated += key in rows
        if rows.setdefault(key, values) != values:
            doubtful.add(key)
    warnings = []
    if doubtful:
        warnings.append(
            f"{path.name}: {len(doubtful)} ids have several rows that differ, none of them is used: {_some(doubtful)}"
        )
    elif repeated:
        warnings.append(f"{path.name}: {repeated} rows repeat an id with the same labels; each counts once")
    if unreadable:
        warnings.append(f"{path.name}: {len(unreadable)} labels are no numbers and are left out: {_some(unreadable)}")
    kept = {key: values for key, values in rows.items() if key not in doubtful}
    return LabelTable(kept, {property_of(c)[0]: property_of(c)[1] for c in chosen}, tuple(warnings))


def with_labels(pairs: Iterable[PairSource], table: LabelTable) -> tuple[list[PairSource], list[str]]:
    """Join labels to pairs by id.

    Args:
        pairs: The pairs.
        table: The labels.

    Returns:
        The pairs, those in the table with their labels, and warnings about ids that are only in one of the two.
    """
    found = list(pairs)
    out = [replace(one, labels=dict(one.labels) | dict(table.rows.get(one.id, {}))) for one in found]
    return out, mismatches(table, [one.id for one in found])


def mismatches(table: LabelTable, ids: Sequence[str]) -> list[str]:
    """Return the warnings of a table, and one about ids that are only in the table or only in the data.

    Args:
        table: The labels.
        ids: The ids of the data.
    """
    warnings, names = list(table.warnings), set(ids)
    unknown = [key for key in table.rows if key not in names]
    if unknown:
        warnings.append(f"{len(unknown)} of {len(table.rows)} labelled ids are not in the data: {_some(unknown)}")
    missing = [key for key in ids if key not in table.rows]
    if missing:
        warnings.append(f"{len(missing)} of {len(ids)} structures have no labels in the table: {_some(missing)}")
    return warnings


def labels_in(unrelaxed: Atoms | None, relaxed: Atoms | None, names: Sequence[str]) -> dict[str, float]:
    """Return labels that structures carry, as info keys or results of a calculator; those of the relaxed one first.

    Args:
        unrelaxed: The unrelaxed structure.
        relaxed: The relaxed structure.
        names: The labels to read, such as ``energy`` or ``gap_meV``.
    """
    out: dict[str, float] = {}
    for atoms in (relaxed, unrelaxed):
        if atoms is None:
            continue
        results = getattr(atoms.calc, "results", {}) if atoms.calc is not None else {}
        for given in names:
            name, _, factor = property_of(given)
            value = _number(atoms.info.get(given, results.get(given)))
            if value is not None and math.isfinite(value):
                out.setdefault(name, value * factor)
    return out


def implausible(name: str, values: Array, n_defects: Array) -> tuple[Array, str]:
    """Find labels that cannot be in eV.

    Args:
        name: The property.
        values: Its values, NaN where missing, shape ``(n,)``.
        n_defects: Defect sites of each structure, shape ``(n,)``.

    Returns:
        Which of them are impossible, and a warning with their range; empty if there are none.
    """
    word = next((word for word in RANGES if word in name), None)
    if word is None:
        return np.zeros(len(values), dtype=bool), ""
    low, high = RANGES[word]
    compared = values / np.maximum(n_defects, 1) if word == "formation_energy" else values
    bad = np.isfinite(values) & ((compared < low) | (compared > high))
    if not bad.any():
        return bad, ""
    per = " per defect site" if word == "formation_energy" else ""
    return bad, (
        f"{name}: {int(bad.sum())} of {int(np.isfinite(values).sum())} labels cannot be in eV and are left out: they "
        f"range from {compared[bad].min():.4g} to {compared[bad].max():.4g}{per}, expected {low:g} to {high:g} eV; "
        "name the unit in the column (gap_meV) or convert them"
    )


def _lines_of(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and the rows of a table."""
    try:
        with _opened(path) as stream:
            reader = csv.DictReader(stream)
            columns, lines = list(reader.fieldnames or ()), list(reader)
    except (OSError, ValueError, EOFError, csv.Error, lzma.LZMAError) as error:
        raise StructureError(f"{path}: cannot be read as a table of labels: {error}") from error
    if "id" not in columns:
        found = ", ".join(columns) or "nothing"
        raise StructureError(f"{path}: expected a column `id` in the first line, found {found}")
    return columns, lines


def _values_of(line: Mapping[str, str], columns: Sequence[str], unreadable: list[str]) -> dict[str, float]:
    """Return the labels of a row; those that are neither numbers nor empty are listed."""
    values = {}
    for column in columns:
        name, _, factor = property_of(column)
        text = (line[column] or "").strip()
        value = _number(text)
        if value is not None and math.isfinite(value):
            values[name] = value * factor
        elif text.lower() not in {"", "nan"}:
            unreadable.append(f"{line['id']}: {column} is {text!r}")
    return values


def _opened(path: Path) -> TextIO:
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        return path.open(newline="", encoding="utf-8")
    stream: TextIO = opener(path, "rt", newline="", encoding="utf-8")
    return stream


def _chosen_columns(path: Path, columns: list[str], lines: list[dict[str, str]], only: Sequence[str]) -> list[str]:
    """Return the columns of labels: those asked for, or all that hold numbers."""
    if not only:
        return [c for c in columns if c != "id" and any(_number(line[c]) is not None for line in lines)]
    out = []
    for name in only:
        found = [column for column in columns if name in {column, property_of(column)[0]}]
        if not found:
            raise StructureError(f"{path}: has no column {name}; it has {', '.join(columns)}")
        out.append(found[0])
    return out


def _number(value: Any) -> float | None:
    """Return a scalar as a number, None where it is none."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    rest = len(found) - _NAMED
    return ", ".join(found[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
