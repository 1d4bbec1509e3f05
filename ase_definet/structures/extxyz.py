"""Extended XYZ, one structure at a time: streamed reading in little memory, and writing that can be read back.

ASE reads a whole pipe into memory, and writes names, keys and arrays that its own reader cannot parse, which loses
all structures after them.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.errors import StructureError

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

LARGEST_FRAME = 128 * 2**20
"""Largest size of one structure, a million atoms or more, in characters."""
LONGEST_TEXT = 8192
"""Longer names and reasons are truncated, in characters."""

_RESERVED = frozenset({"Lattice", "Properties", "pbc"})
_AFTER = "what_follows"  # ASE takes the text after an empty value as the value
_EXACT = 2e-8
"""Precision of eight decimals, in Å."""
_PLAIN = 1e6
"""Coordinates below this are written in columns of their own, with all their decimals, in Å."""


def printable(text: object) -> str:
    r"""Return a text as one line of printable characters, with all others escaped.

    >>> print(printable("a\nb\udcff"))
    a\nb\udcff
    """
    found = str(text)
    if not found.isprintable():
        found = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in found)
    if len(found) > LONGEST_TEXT:
        found = f"{found[:LONGEST_TEXT]}... ({len(found)} characters)"
    return found


class StreamError(StructureError):
    """A stream ends in the middle of a structure, or the beginning of the next one is unknown."""


def read_frames(stream: Iterable[str]) -> Iterator[Atoms | StructureError]:
    """Read structures from lines, with only one of them in memory at a time.

    A structure that cannot be read is replaced by its error. If the beginning of the next structure is then unknown,
    the error is the last item.

    Args:
        stream: A text file, or lines with their ends.
    """
    from ase.io.extxyz import read_extxyz  # noqa: PLC0415

    # a pipe of other data may have no line ends
    readline = getattr(stream, "readline", None)
    lines = iter(stream) if readline is None else iter(lambda: readline(LARGEST_FRAME + 1), "")
    kept: list[str] = []  # read to see whether it still belongs to the structure before
    while True:
        head = kept.pop() if kept else next(lines, None)
        if head is None:
            return
        if not head.strip():
            continue
        try:
            frame = _frame(head, lines, kept)
        except StreamError as error:
            yield error
            return
        try:
            atoms = next(read_extxyz(io.StringIO(frame), 0))
        except Exception as error:  # noqa: BLE001 - ASE's readers raise various exceptions
            reason = printable(error) or "no reason given"
            yield StructureError(f"cannot be read as extended XYZ ({type(error).__name__}: {reason})")
        else:
            yield atoms


def _frame(head: str, lines: Iterator[str], kept: list[str]) -> str:
    """Return the lines of one structure.

    Raises:
        StreamError: Lines are missing.
    """
    number = re.fullmatch(r"[0-9]{1,18}", head.strip())
    if number is None:
        raise StreamError(
            f"expected the number of atoms of the next structure, found {printable(head.strip()[:60])!r}: what "
            "follows cannot be read"
        )
    count = int(number[0])
    out = [head]
    size = 0
    for _ in range(count + 1):
        line = next(lines, None)
        if line is None:
            raise StreamError(
                f"cut off: expected a structure of {count} atoms, found {max(0, len(out) - 2)}; was it copied or "
                "written to its end?"
            )
        size += len(line)
        if size > LARGEST_FRAME:
            raise StreamError(
                f"a structure of {count} atoms is longer than {LARGEST_FRAME // 2**20} MiB: is the number of atoms "
                "right?"
            )
        out.append(line)
    for line in lines:  # cell vectors of another dialect
        if not line.lstrip().startswith("VEC"):
            kept.append(line)
            break
        out.append(line)
    return "".join(out)


def frame_text(atoms: Atoms) -> tuple[str, list[str]]:
    """Write a structure such that it and any text after it can be read back.

    Info and arrays that the format cannot store are omitted, but never numbers, positions, cell and periodic axes.

    Args:
        atoms: The structure, without a calculator.

    Returns:
        The text, and the names of omitted items.

    Raises:
        StructureError: The structure itself cannot be written.
    """
    info, odd = _info(atoms.info)
    arrays, more = _arrays(atoms)
    text = _written(atoms, info, arrays)
    if text is not None:
        return text, odd + more
    # each may be written alone, and not be what ASE takes it for: energy="unknown"
    good = {key: value for key, value in info.items() if _written(atoms, {key: value}, {}) is not None}
    fine = {key: value for key, value in arrays.items() if _written(atoms, {}, {key: value}) is not None}
    text = _written(atoms, good, fine)
    if text is None:
        good, fine = {}, {}
        text = _written(atoms, good, fine)
    if text is None:
        raise StructureError("extended XYZ cannot hold its cell or positions")
    lost = [key for key in (*info, *arrays) if key not in good and key not in fine]
    return text, odd + more + lost


def _info(values: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return info in the form that ASE writes, and the names of items that it cannot write."""
    out: dict[str, Any] = {}
    odd = []
    for name, value in values.items():
        key = re.sub(r"[^\w.:+-]", "_", str(name), flags=re.ASCII)
        written = _value(key, value)
        if written is None or not key or key in _RESERVED or key in out:
            odd.append(printable(name))
        else:
            out[key] = written[0]
    return out, odd


def _value(key: str, value: Any) -> tuple[Any] | None:
    """Return a value in a form that ASE reads back, None if there is none."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "ifb":
        value = value.tolist()
    plain = value is None or isinstance(value, np.ndarray | np.generic | bool | int | float)
    tries: list[Any] = [value] if plain else []
    if isinstance(value, str):
        tries.append(_escaped(printable(value)))
    with suppress(TypeError, ValueError, RecursionError):  # an object, or a cycle
        text = json.dumps(printable(value) if isinstance(value, str) else value)
        tries.append("_JSON " + _escaped(text, r"[\\=]"))
    for written in tries:
        if _reads_back(key, written, value):
            return (written,)
    return None


def _escaped(text: str, special: str = r"\\") -> str:
    """Add the backslashes that ASE's reader removes."""
    return re.sub(special, lambda found: "\\" + found[0], text)


def _reads_back(key: str, written: Any, value: Any) -> bool:
    """Whether ASE reads an item back, and a text as the same text."""
    if isinstance(value, str | bool | int | float):  # most items are the same in all structures of a screen
        return _plain_reads_back(key, written, value)
    return _really_reads_back(key, written, value)


@lru_cache(maxsize=4096, typed=True)  # True, 1 and 1.0 are equal, and written in other ways
def _plain_reads_back(key: str, written: Any, value: Any) -> bool:
    return _really_reads_back(key, written, value)


def _really_reads_back(key: str, written: Any, value: Any) -> bool:
    from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = key_val_dict_to_str({key: written, _AFTER: 1})
        if not text.isprintable():
            return False
        found = key_val_str_to_dict(text)
    except Exception:  # noqa: BLE001 - ASE raises various exceptions
        return False
    return list(found) == [key, _AFTER] and (not isinstance(value, str) or str(found[key]) == printable(value))


def _arrays(atoms: Atoms) -> tuple[dict[str, Array], list[str]]:
    """Return arrays in the form that ASE writes, and the names of arrays that it cannot write."""
    out: dict[str, Array] = {}
    odd = []
    for name, values in atoms.arrays.items():
        if name in {"numbers", "positions"}:
            continue
        key = re.sub(r"[^\w.+-]", "_", str(name), flags=re.ASCII)
        array = _column(np.asarray(values))
        taken = key in out or key in {"", "numbers", "positions", "symbols", "species", "pos", "Z", "move_mask"}
        if array is None or taken:
            odd.append(printable(name))
        else:
            out[key] = array
    return out, odd


def _column(values: Array) -> Array | None:
    """Return values of atoms in a form that fits columns of text, None if there is none."""
    if values.ndim not in {1, 2} or values.size == 0:
        return None
    if values.dtype.kind in "fib":
        return values
    if values.dtype.kind == "u":
        whole = values.astype(np.int64)
        return whole if (whole == values).all() else None
    if values.dtype.kind not in "USO":
        return None
    texts = [str(value) for value in values.ravel()]
    if not all(text and text.isprintable() and not re.search(r"\s", text) for text in texts):
        return None
    return np.array(texts).reshape(values.shape)


def _written(atoms: Atoms, info: Mapping[str, Any], arrays: Mapping[str, Array]) -> str | None:
    """Return the text of a structure, None if it does not read back.

    Numbers of every atom are written alike: where there is nothing else, it is enough to read the first atom back.
    """
    from ase import Atoms  # noqa: PLC0415
    from ase.io.extxyz import write_extxyz  # noqa: PLC0415

    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bare.info = dict(info)
    out = io.StringIO()
    try:
        bare.set_constraint(atoms.constraints)
        bare.arrays.update(arrays)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_extxyz(out, bare, write_results=False)
        text = out.getvalue()
        lines = text.splitlines(keepends=True)
        alike = not atoms.constraints and all(values.dtype.kind in "fib" for values in arrays.values())
        alike = alike and bool((np.abs(atoms.positions) < _PLAIN).all())
        read = 1 if alike and len(atoms) else len(atoms)
        found = list(read_frames(io.StringIO("".join([f"{read}\n", *lines[1 : 2 + read]]))))
    except Exception:  # noqa: BLE001 - ASE raises various exceptions
        return None
    if text.count("\n") != len(atoms) + 2 or len(lines) != len(atoms) + 2 or len(found) != 1:
        return None
    back = found[0]
    same = (
        not isinstance(back, StructureError)
        and np.array_equal(back.numbers, atoms.numbers[:read])
        and np.abs(back.positions - atoms.positions[:read]).max(initial=0.0) < _EXACT
        and np.abs(back.cell.array - atoms.cell.array).max() < _EXACT
        and np.array_equal(back.pbc, atoms.pbc)
    )
    return text if same else None
