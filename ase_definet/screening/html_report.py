"""An HTML page about the results of a screen, in one self-contained file."""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors

from ase_definet import __version__
from ase_definet.errors import ScreeningError
from ase_definet.screening.screen import (
    COLUMNS,
    FAILURE_COLUMNS,
    FAILURES,
    JOURNAL,
    NUMBERS,
    PROPERTIES,
    TABLE,
    read_json,
    read_rows,
)
from ase_definet.screening.structures_file import read_structures, structures_path
from ase_definet.structures.cell import facing
from ase_definet.structures.files import keep_existing, replacing

MOST_ROWS = 20_000
MOST_PICTURES = 300
_STATE = ("charge", "spin_multiplicity", "functional")
_PLAIN = ("", "PBE")
_CALCULATION = ("calculator", "steps", "fmax", "converged", "energy")
_PROPERTY_COLUMNS = (
    *(f"{name}{suffix}" for name in PROPERTIES for suffix in ("", "_error")),
    *("other_properties", "property_trust"),
)


def write_report(
    results: Path,
    out: Path,
    *,
    pictures: int = MOST_PICTURES,
    rows: int = MOST_ROWS,
    rank: str | None = None,
    highest: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write an HTML page about the results of a screen.

    Args:
        results: Folder that ``ase-definet screen`` wrote.
        out: The HTML file.
        pictures: Number of structures to draw, at most: those that come first.
        rows: Number of rows in the table, at most: those that come first.
        rank: Column by which rows are ranked, the lowest first; that of a ranked screen by default, and of any other
            the largest expected errors come first.
        highest: Whether the highest come first.
        overwrite: Whether to replace an existing file.

    Returns:
        The file.

    Raises:
        ScreeningError: The folder does not hold the results of a screen, or none yet, or no such column.
        OutputExistsError: The file exists and ``overwrite`` is False.
    """
    results = results.absolute()  # "." has no name
    keep_existing(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    _refuse_others(results)
    table = read_rows(results / TABLE, COLUMNS)
    failures = read_rows(results / FAILURES, FAILURE_COLUMNS) if (results / FAILURES).exists() else []
    if not table and not failures:
        raise ScreeningError(f"{results}: no results yet")
    run = read_json(results / "run.json") if (results / "run.json").exists() else {}
    run = {key: value for key, value in run.items() if value not in (None, [])}
    if rank is None and run.get("rank") in NUMBERS:
        rank, highest = str(run["rank"]), bool(run.get("highest"))
    _refuse_unranked(results, table, rank)
    table.sort(key=lambda row: -_doubt(row) if rank is None else _place(row, rank, highest=highest))
    kept = table[:rows]
    wanted = {row["index"] for row in kept[:pictures]}
    drawn = _pictures(results, _in_order(table), wanted)
    # where all is neutral PBE of any spin, three columns would say so in every row
    plain = all(not row["charge"] and row["spin_multiplicity"] == "" and row["functional"] in _PLAIN for row in table)
    calculated = any(row["calculator"] for row in table)
    hidden = {*(_STATE if plain else ()), *(() if calculated else _CALCULATION)}
    hidden |= {name for name in _PROPERTY_COLUMNS if all(row[name] == "" for row in table)}
    data = {
        "rows": kept,
        "pictures": drawn,
        "failures": failures[:rows],
        "total": len(table),
        "failed": len(failures),
        "unknown": sum(bool(unsupported(row)) for row in table),
        "unsupported": {int(row["index"]): words for row in kept if (words := unsupported(row))},
        "folder": _address(results, out.parent),
        "structures": structures_path(results).name,
        "elements": {chemical_symbols[z]: _element(z) for z in _elements(drawn)},
        "columns": [name for name in kept[0] if name not in hidden] if kept else [],
        "rank": None if rank is None else {"column": rank, "up": not highest},
    }
    template = (files("ase_definet.screening") / "report.html").read_text(encoding="utf-8")
    title = f"{results.name}: {len(table)} structures relaxed"
    about = ", ".join(f"{key} {_setting(value)}" for key, value in run.items()) + f"; ase-definet {__version__}"
    page = _filled(template, {"title": _text(title), "about": _text(about), "data": _script_data(data)})
    with replacing(out) as fresh:
        fresh.write_text(page, encoding="utf-8")
    return out


def _refuse_unranked(folder: Path, table: list[dict[str, Any]], rank: str | None) -> None:
    """Refuse to rank by what is no number, or by what no structure has."""
    if rank is None:
        return
    if rank not in NUMBERS:
        raise ScreeningError(f"no column {rank!r} to rank by; expected one of {', '.join(sorted(NUMBERS))}")
    if table and all(row[rank] == "" for row in table):
        raise ScreeningError(f"{folder}: no structure has a value of {rank} to rank by")


def _place(row: dict[str, Any], rank: str, *, highest: bool) -> tuple[int, float, float]:
    """Return the key of a ranked row: those without a value come last, ties stay in their order."""
    value = row[rank]
    if value == "":
        return 1, 0.0, float(row["index"])
    return 0, -float(value) if highest else float(value), float(row["index"])


def _refuse_others(folder: Path) -> None:
    """Refuse a folder that no screen wrote, rather than call its files damaged."""
    header = ",".join(COLUMNS).encode()
    table = folder / TABLE
    ours = table.is_file() and table.read_bytes()[: len(header)] == header
    if not ours and not (folder / JOURNAL).exists():
        raise ScreeningError(
            f"{folder}: not the results of a screen (no {JOURNAL}); expected the folder that `ase-definet screen` "
            "was given with -o"
        )


def _setting(value: Any) -> str:
    """Return a setting of a run as text, with long lists and hashes shortened."""
    if isinstance(value, dict):
        return " ".join(f"{key}={part}" for key, part in value.items() if part is not None)
    if isinstance(value, list):
        shown = ", ".join(str(part) for part in value[:2])
        return shown if len(value) <= 2 else f"{shown} and {len(value) - 2} more"  # noqa: PLR2004
    return str(value)[:12] if re.fullmatch(r"[0-9a-f]{64}", str(value)) else str(value)


def _filled(template: str, values: dict[str, str]) -> str:
    """Return a template with its ``{{placeholders}}`` filled, all at once: values may hold such words themselves."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)


def _text(text: str) -> str:
    """Return text for an element or a quoted attribute of HTML; bytes that were no UTF-8 are shown by their code."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _script_data(value: Any) -> str:
    """Return JSON for a ``<script>`` element, in ASCII, without the characters by which HTML leaves a script."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True)
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _address(folder: Path, base: Path) -> str:
    """Return the relative URL of a folder; no name turns it into another scheme (``javascript:``) or a query."""
    try:
        path = Path(os.path.relpath(folder, base))
    except ValueError:  # on another drive
        return folder.as_uri()
    return "./" + quote(os.fsencode(path.as_posix()))


def _pictures(path: Path, rows: list[dict[str, Any]], wanted: set[Any]) -> dict[int, dict[str, Any]]:
    """Return the pictures of structures, by index.

    Args:
        path: The folder of the screen.
        rows: Rows of the table, in the order of the structures.
        wanted: Indices of the structures to draw.

    Raises:
        ScreeningError: The structures cannot be read, or were not written by a screen.
    """
    drawn = {}
    try:
        for row, atoms in zip(rows, read_structures(path) if rows else (), strict=False):
            if row["index"] in wanted:
                drawn[int(row["index"])] = _picture(atoms)
    except OSError:
        raise
    except Exception as error:  # ASE's readers raise anything
        raise ScreeningError(
            f"{path}: damaged, or not what a screen writes ({type(error).__name__}: {error}); restore it, or begin "
            "again in another folder"
        ) from error
    return drawn


def _doubt(row: dict[str, Any]) -> float:
    """Return the key that rows are sorted by, largest first; an unknown expected error comes before all others."""
    if unsupported(row):
        return math.inf
    for key in ("mean_expected_error_near", "mean_expected_error", "largest_displacement"):
        if isinstance(row.get(key), float):
            return float(row[key])
    return 0.0


def unsupported(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return in which respects a row lies outside the training data, where no error is expected because of that."""
    if isinstance(row.get("mean_expected_error"), float):
        return ()
    return tuple(word for word in row["outside"].split() if word != "pristine")


def _in_order(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(table, key=lambda row: float(row["index"]))


def _picture(atoms: Atoms) -> dict[str, Any]:
    """Return the picture of one structure, with lengths in hundredths of an Å."""
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise ValueError("a coordinate is not a number")
    displacement = atoms.arrays.get("definet_displacement", np.zeros((len(atoms), 3)))
    doubt = atoms.arrays.get("definet_expected_error")
    named = [part.split() for part in str(atoms.info.get("defect_sites", "")).split(";")]
    sites = [part for part in named if len(part) == 4]  # noqa: PLR2004 - ASE reads no text at all back as a truth value
    depth, sides = facing(atoms.cell.array, atoms.positions, atoms.pbc)
    return {
        "symbols": atoms.get_chemical_symbols(),
        "before": np.round(100 * (atoms.positions - displacement)).astype(int).tolist(),
        "after": np.round(100 * atoms.positions).astype(int).tolist(),
        "doubt": None if doubt is None else np.round(1000 * doubt).astype(int).tolist(),
        "cell": np.round(100 * sides).astype(int).tolist(),
        "axes": [(depth + 1) % 3, (depth + 2) % 3, depth],
        "defects": [[part[0], *(round(100 * float(v)) for v in part[1:4])] for part in sites],
    }


def _elements(drawn: dict[int, dict[str, Any]]) -> list[int]:
    symbols = {symbol for picture in drawn.values() for symbol in picture["symbols"]}
    return sorted(chemical_symbols.index(symbol) for symbol in symbols)


def _element(z: int) -> dict[str, Any]:
    color = "#" + "".join(f"{round(255 * v):02x}" for v in jmol_colors[z])
    return {"color": color, "radius": round(float(covalent_radii[z]), 2)}
