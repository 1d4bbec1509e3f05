"""Normalise POSCAR dialects to the form that ASE reads.

Supported are element lines with oxidation states, POTCAR suffixes or hashes, or none at all as in VASP 4; all
spellings of flags; and molecular dynamics data after the coordinates.

References:
    https://www.vasp.at/wiki/POSCAR
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from ase.data import chemical_symbols

from ase_definet.errors import DefiNetWarning, StructureError

_ELEMENTS = frozenset(chemical_symbols[1:])
_SPECIES = re.compile(r"([A-Za-z]{1,2})(?:\d*|\d*\.?\d*[+-]|[+-]\d*\.?\d*)(?:,spin=\S+)?")
_SPIN = re.compile(r",spin=([-+.\deE]+)\s*$")
_FORMULA = re.compile(r"(?:[A-Z][a-z]?\d*){2,}")
_PART = re.compile(r"([A-Z][a-z]?)(\d*)")
_EXPONENT = re.compile(r"(?<=\d)[dD](?=[-+]?\d)|(?<=\d\.)[dD](?=[-+]?\d)")
_COMMENT = re.compile(r"[!#].*")
_HEAD = 5
_LATTICE = 8
"""Lines of a block of lattice velocities: its title, a flag, three velocities and three vectors."""


@dataclass(frozen=True)
class Poscar:
    """A POSCAR in the form ASE reads.

    Attributes:
        text: The file, with plain element symbols, and nothing after the coordinates.
        spins: Moment of each atom, in μB, if every line of coordinates has one, as written by pymatgen.
    """

    text: str
    spins: tuple[float, ...] | None


def looks_like_poscar(text: str) -> bool:
    """Whether the first lines of a file are scale and cell vectors, as in a POSCAR."""
    scale, *vectors = [line.split() for line in text.splitlines()[1:_HEAD]] or [[]]
    return _numbers(scale[:1]) == 1 and [_numbers(words[:3]) for words in vectors] == [3, 3, 3]


def normalised(text: str, path: Path) -> Poscar:
    """Convert a POSCAR to the form that ASE reads, with warnings about dropped data.

    Args:
        text: Content of the file.
        path: The file, for messages and to find a POTCAR in its folder if the VASP 4 format has no elements.

    Raises:
        StructureError: Elements or coordinates are missing, or do not fit each other.
    """
    lines = text.splitlines()
    if len(lines) <= _HEAD + 1:
        raise StructureError(f"{path}: cannot be read: found {len(lines)} lines of a POSCAR, the file is cut off")
    head = [lines[0], *(_EXPONENT.sub("e", line) for line in lines[1:_HEAD])]
    row = _COMMENT.sub("", lines[_HEAD]).split()
    old = all(word.isdigit() for word in row) and bool(row)
    at = _HEAD if old else _HEAD + 1
    counts = _counts(lines[at], at, path)
    at += 1
    selective = at < len(lines) and lines[at].strip()[:1].lower() == "s"
    at += selective
    mode = lines[at].strip() if at < len(lines) else ""
    if _numbers(mode.split()[:3]):
        raise StructureError(f"{path}: line {at + 1} of a POSCAR says Direct or Cartesian, found {mode!r}")
    body = lines[at + 1 : at + 1 + sum(counts)]
    if not mode or len([line for line in body if line.strip()]) < sum(counts):
        found = len([line for line in body if line.strip()])
        raise StructureError(
            f"{path}: cannot be read: expected {sum(counts)} lines of coordinates, found {found}; the file is cut off"
        )
    symbols = _old_symbols(lines[0], counts, body, path) if old else _symbols(row, counts, path)
    rows = [_coordinates(line, number, path, selective=selective) for number, line in enumerate(body, at + 2)]
    _say_what_is_left_out(lines[at + 1 + sum(counts) :], len(body), path)
    spins = [_SPIN.search(line) for line in body] if ",spin=" in text else []
    out = [*head, " ".join(symbols), " ".join(map(str, counts)), *(["Selective dynamics"] if selective else []), mode]
    return Poscar(
        "\n".join([*out, *rows, ""]),
        tuple(float(found[1]) if found else 0.0 for found in spins) if any(spins) else None,
    )


def _counts(line: str, at: int, path: Path) -> list[int]:
    words = _COMMENT.sub("", line).split()
    try:
        counts = [int(word) for word in words]
    except ValueError:
        counts = []
    if not counts or min(counts) < 0 or not sum(counts):
        raise StructureError(
            f"{path}: line {at + 1} of a POSCAR holds the number of atoms of each element, found {line.strip()!r}"
        )
    return counts


def _symbols(row: list[str], counts: list[int], path: Path) -> list[str]:
    """Return the elements of the element line."""
    if len(row) != len(counts):
        raise StructureError(
            f"{path}: line {_HEAD + 1} names {len(row)} elements ({' '.join(row)}) and line {_HEAD + 2} counts "
            f"{len(counts)} ({' '.join(map(str, counts))}): expected one number for each"
        )
    symbols = [element_of(word) for word in row]
    for word, symbol in zip(row, symbols, strict=True):
        if symbol is None:
            raise StructureError(
                f"{path}: {word!r} in line {_HEAD + 1} is no element: expected symbols such as Mo, Mo_pv or Mo4+"
            )
    return [symbol for symbol in symbols if symbol is not None]


def element_of(word: str) -> str | None:
    """Return the element of a word such as ``Mo``, ``Mo_pv``, ``Mo_sv/0123456`` or ``Mo4+``; None if there is none.

    >>> [element_of(word) for word in ("Mo_sv/0123456", "S2-", "se", "Qq")]
    ['Mo', 'S', 'Se', None]
    """
    found = _SPECIES.fullmatch(word.split("/", maxsplit=1)[0].split("_", maxsplit=1)[0])
    if found is None:
        return None
    return next((symbol for symbol in (found[1], found[1].capitalize()) if symbol in _ELEMENTS), None)


def _old_symbols(comment: str, counts: list[int], body: list[str], path: Path) -> list[str]:
    """Find the elements of a file in the VASP 4 format, which need not name them."""
    for place, symbols in (
        ("the labels of its coordinates", _labels(counts, body)),
        ("its first line", _listed(comment, counts)),
        ("the POTCAR or OUTCAR beside it", _beside(counts, path)),
        ("the formula in its first line", _in_formula(comment, counts)),
    ):
        if symbols:
            text = f"{path}: has no line of elements (VASP 4); those of {place} were taken: {' '.join(symbols)}"
            warnings.warn(text, DefiNetWarning, stacklevel=4)
            return symbols
    numbers = " ".join(map(str, counts))
    raise StructureError(
        f"{path}: the line of elements is missing (the format of VASP 4), and neither the first line nor a POTCAR "
        f"beside it names {len(counts)} elements: add a line such as 'Mo S' above the numbers of atoms ({numbers})"
    )


def _labels(counts: list[int], body: list[str]) -> list[str]:
    symbols, start = [], 0
    for count in counts:
        named = {element_of(words[-1]) for line in body[start : start + count] if len(words := line.split()) > 3}  # noqa: PLR2004
        start += count
        only = named.pop() if len(named) == 1 else None
        if only is None or any(line.split()[-1] in {"T", "F"} for line in body[start - count : start]):
            return []
        symbols.append(only)
    return symbols


def _listed(comment: str, counts: list[int]) -> list[str]:
    """Return the elements of a first line that lists only elements: ``Mo S``, ``Mo16 S31``, ``Mo_pv S``."""
    words = comment.split()
    if len(words) != len(counts):
        return []
    symbols = []
    for word, count in zip(words, counts, strict=True):
        part = _PART.fullmatch(word)
        if part and part[2] and int(part[2]) != count and len(counts) > 1:
            return []
        symbol = element_of(word)
        if symbol is None or not word.startswith(symbol):
            return []
        symbols.append(symbol)
    return symbols


def _in_formula(comment: str, counts: list[int]) -> list[str]:
    """Return the elements of the only word that is a formula of about this composition: ``MoS2 with a hole``."""
    found = []
    words = comment.replace(",", " ").split()
    for word in words:
        if word.isupper() and len(words) > 1:
            continue  # BN, but PBC and SCF too
        parts = _PART.findall(word) if _FORMULA.fullmatch(word) else []
        elements = [element for element, _ in parts]
        if len(elements) == len(counts) == len(set(elements)) and set(elements) <= _ELEMENTS:
            shares = [int(number or 1) for _, number in parts]
            units = [count / share for count, share in zip(counts, shares, strict=True)]
            if min(units) > max(units) / 2:
                found.append(elements)
    return found[0] if len(found) == 1 else []


def _beside(counts: list[int], path: Path) -> list[str]:
    """Return the elements of the POTCAR or OUTCAR in the same folder."""
    from ase.io.vasp import atomtypes_outpot  # noqa: PLC0415

    try:
        words = atomtypes_outpot(str(path), len(counts))
    except Exception:  # noqa: BLE001 - no such file, or none that can be read
        return []
    symbols = [element_of(word) for word in words]
    return [symbol for symbol in symbols if symbol is not None] if all(symbols) else []


def _coordinates(line: str, number: int, path: Path, *, selective: bool) -> str:
    """Return a line of coordinates with plain numbers and flags, without its label."""
    words = _EXPONENT.sub("e", line).split()
    if _numbers(words[:3]) != 3:  # noqa: PLR2004
        raise StructureError(f"{path}: expected three coordinates in line {number}, found {line.strip()!r}")
    if not selective:
        return " ".join(words[:3])
    flags = [word.strip(".").upper()[:1] for word in words[3:6]]
    if len(flags) != 3 or not set(flags) <= {"T", "F"}:  # noqa: PLR2004
        raise StructureError(
            f"{path}: selective dynamics needs three flags, T or F, in line {number}, found {line.strip()!r}"
        )
    return " ".join(words[:3] + flags)


def _say_what_is_left_out(lines: list[str], n_atoms: int, path: Path) -> None:
    """Warn about velocities and other data after the coordinates, unless they are all zero."""
    left = []
    if lines and lines[0].strip()[:1].lower() == "l":
        if _moving(lines[2:5]):
            left.append("lattice velocities")
        lines = lines[_LATTICE:]
    if lines and not _is_vector(lines[0]):
        lines = lines[1:]  # blank, or how the velocities are given
    if len([line for line in lines[:n_atoms] if _is_vector(line)]) == n_atoms:
        if _moving(lines[:n_atoms]):
            left.append("velocities")
        lines = lines[n_atoms:]
    if any(line.strip() for line in lines):
        left.append("predictor-corrector data" if any(map(_is_vector, lines)) else "text behind the coordinates")
    if left:
        text = f"{path}: left out, as a relaxation starts at rest: {' and '.join(left)}"
        warnings.warn(text, DefiNetWarning, stacklevel=4)


def _moving(lines: list[str]) -> bool:
    return any(float(_EXPONENT.sub("e", word)) for line in lines if _is_vector(line) for word in line.split()[:3])


def _is_vector(line: str) -> bool:
    words = _EXPONENT.sub("e", line).split()
    return len(words) == 3 and _numbers(words) == 3  # noqa: PLR2004


def _numbers(words: list[str]) -> int:
    """Return the number of words if all of them are numbers, else 0."""
    try:
        return len([float(word) for word in words])
    except ValueError:
        return 0
