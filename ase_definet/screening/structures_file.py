"""The relaxed structures of a screen: as text that anything reads, or in an Arrow stream, for very many.

Both are files to which blocks are appended, so that a screen that was killed goes on after what its journal records.
A stream of Arrow holds the same structures as the extended XYZ in a third of the space, and is written and read at
the speed of the disk. :func:`read_structures` reads either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from ase import Atoms
from ase.constraints import dict2constraint
from numpy.typing import NDArray

from ase_definet.errors import ScreeningError
from ase_definet.structures.extxyz import StreamError, frame_text, printable, read_frames

if TYPE_CHECKING:
    from pyarrow import Schema

Array: TypeAlias = NDArray[Any]

STRUCTURES, ARROW = "structures.extxyz", "structures.arrows"

_OWN = ("numbers", "positions", "definet_displacement", "definet_expected_error")
"""Arrays with a column of their own."""


class StructuresFile(Protocol):
    """How relaxed structures are written."""

    name: str
    """Name of the file."""
    title: str
    """Name of the format."""

    def header(self) -> bytes:
        """Return what the file begins with."""

    def prepared(self, atoms: Atoms) -> tuple[Any, list[str]]:
        """Return a structure in the form in which it is written, and what of it the format cannot hold.

        Raises:
            StructureError: The structure itself cannot be written.
        """

    def content(self, prepared: list[Any]) -> bytes:
        """Return what is appended for some structures."""


class ExtxyzFile:
    """Extended XYZ: text that ASE, OVITO and others read."""

    name, title = STRUCTURES, "extended XYZ"

    def header(self) -> bytes:
        """Return what the file begins with."""
        return b""

    def prepared(self, atoms: Atoms) -> tuple[str, list[str]]:
        """Return a structure as text, and what extended XYZ cannot hold; see :func:`frame_text`."""
        text, left_out = frame_text(atoms)
        return text, left_out

    def content(self, prepared: list[str]) -> bytes:
        """Return what is appended for some structures."""
        return "".join(prepared).encode()


class ArrowFile:
    """A stream of Arrow (IPC): one row for each structure, numbers as they are in memory."""

    name, title = ARROW, "Arrow"

    def header(self) -> bytes:
        """Return what the file begins with."""
        return bytes(_schema().serialize())

    def prepared(self, atoms: Atoms) -> tuple[dict[str, Any], list[str]]:
        """Return a structure as a row, and what has no form that can be written."""
        more, left_out = _more(atoms)
        doubt = atoms.arrays.get("definet_expected_error")
        moved = atoms.arrays.get("definet_displacement", np.zeros((len(atoms), 3)))
        row = {
            "name": str(atoms.info.get("name", "")),
            "numbers": atoms.numbers.astype(np.uint8),
            "positions": atoms.positions.ravel(),
            "cell": atoms.cell.array.ravel(),
            "pbc": atoms.pbc.tolist(),
            "displacement": moved.astype(np.float32).ravel(),
            "expected_error": None if doubt is None else doubt.astype(np.float32),
            "more": json.dumps(more),
        }
        return row, left_out

    def content(self, prepared: list[dict[str, Any]]) -> bytes:
        """Return what is appended for some structures."""
        import pyarrow as pa  # noqa: PLC0415 - an extra

        if not prepared:
            return b""
        schema = _schema()
        columns = [_column([row[field.name] for row in prepared], field.type) for field in schema]
        return bytes(pa.RecordBatch.from_arrays(columns, schema=schema).serialize())


FORMATS: dict[str, type[ExtxyzFile | ArrowFile]] = {"extxyz": ExtxyzFile, "arrow": ArrowFile}
"""Formats by name."""


def read_structures(results: str | Path) -> Iterator[Atoms]:
    """Read the relaxed structures of a screen one by one, whichever format they are in.

    Args:
        results: The folder of the screen, or its file of structures.

    Raises:
        ScreeningError: There is no such file, it is damaged, or pyarrow is needed and not installed.

    Examples:
        >>> from ase_definet.screening.structures_file import read_structures
        >>> relaxed = list(read_structures("results"))  # doctest: +SKIP
    """
    path = Path(results)
    if path.is_dir():
        path = structures_path(path)
    if not path.exists():
        raise ScreeningError(f"{path}: no such file; expected a folder that `ase-definet screen` wrote")
    return _from_arrow(path) if path.suffix == Path(ARROW).suffix else _from_extxyz(path)


def structures_path(folder: Path) -> Path:
    """Return the file with the structures of a screen, in whichever format."""
    return next((folder / name for name in (ARROW, STRUCTURES) if (folder / name).exists()), folder / STRUCTURES)


def check_arrow() -> None:
    """Make sure that streams of Arrow can be written.

    Raises:
        ScreeningError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # noqa: F401, PLC0415
    except ImportError as error:
        raise ScreeningError("the format arrow needs pyarrow: pip install 'ase-definet[screen]'") from error


def _from_extxyz(path: Path) -> Iterator[Atoms]:
    with path.open(encoding="utf-8") as stream:
        for number, found in enumerate(read_frames(stream)):
            if not isinstance(found, Atoms):
                more = "" if isinstance(found, StreamError) else ", or not what a screen writes"
                raise ScreeningError(f"{path}: structure {number}: damaged{more} ({found})")
            yield found


def _from_arrow(path: Path) -> Iterator[Atoms]:
    check_arrow()
    import pyarrow as pa  # noqa: PLC0415

    try:
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                columns = {name: batch.column(name) for name in batch.schema.names}
                for row in range(batch.num_rows):
                    yield _atoms({name: column[row] for name, column in columns.items()})
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise ScreeningError(f"{path}: damaged, or not what a screen writes ({error})") from error


def _schema() -> Schema:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    lists = {
        "numbers": pa.uint8(),
        "positions": pa.float64(),
        "displacement": pa.float32(),
        "expected_error": pa.float32(),
    }
    types = {"name": pa.string(), **{name: pa.list_(kind) for name, kind in lists.items()}, "more": pa.string()}
    types |= {"cell": pa.list_(pa.float64(), 9), "pbc": pa.list_(pa.bool_(), 3)}
    return pa.schema(list(types.items()))


def _column(values: list[Any], kind: Any) -> Any:
    """Return a column; lists of numbers of any length are joined, not converted one by one."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    if not pa.types.is_list(kind):
        return pa.array([value.tolist() if isinstance(value, np.ndarray) else value for value in values], kind)
    there = [value for value in values if value is not None]
    ends = np.cumsum([0, *(0 if value is None else len(value) for value in values)]).astype(np.int32)
    joined = pa.array(np.concatenate(there) if there else [], kind.value_type)
    mask = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(ends), joined, kind, mask=mask)


def _more(atoms: Atoms) -> tuple[dict[str, Any], list[str]]:
    """Return what has no column of its own, as it is written, and the names of what cannot be."""
    left_out = []
    kept: dict[str, dict[str, str]] = {"info": {}, "arrays": {}}
    own = {"info": atoms.info, "arrays": {key: atoms.arrays[key] for key in atoms.arrays if key not in _OWN}}
    for kind, values in own.items():
        for key, value in values.items():
            written = None
            with suppress(Exception):  # an object of the user's may raise anything
                written = _encoded(value)
            if written is None or not isinstance(key, str):
                left_out.append(printable(key))
            else:
                kept[kind][printable(key)] = written
    constraints = []
    for constraint in atoms.constraints:
        try:
            constraints.append(_encoded(constraint.todict()))
        except Exception:  # noqa: BLE001 - as above
            left_out.append(type(constraint).__name__)
    out: dict[str, Any] = {key: values for key, values in kept.items() if values}
    return out | ({"constraints": constraints} if constraints else {}), left_out


def _encoded(value: Any) -> str:
    """Return a value as text that can be decoded: ASE writes some that it cannot read."""
    from ase.io.jsonio import decode, encode  # noqa: PLC0415

    text = str(encode(printable(value) if isinstance(value, str) else value))
    if not isinstance(value, str | bool | int | float):
        decode(text, always_array=False)
    return text


def _atoms(row: dict[str, Any]) -> Atoms:
    """Return the structure of a row."""
    from ase.io.jsonio import decode  # noqa: PLC0415

    numbers = row["numbers"].values.to_numpy()
    atoms = Atoms(
        numbers,
        row["positions"].values.to_numpy().reshape(-1, 3),
        cell=np.reshape(row["cell"].as_py(), (3, 3)),
        pbc=row["pbc"].as_py(),
    )
    atoms.set_array("definet_displacement", row["displacement"].values.to_numpy().reshape(-1, 3).astype(float))
    if row["expected_error"].is_valid:
        atoms.set_array("definet_expected_error", row["expected_error"].values.to_numpy().astype(float))
    more = json.loads(row["more"].as_py())
    atoms.info = {key: decode(value, always_array=False) for key, value in more.get("info", {}).items()}
    for key, value in more.get("arrays", {}).items():
        atoms.set_array(key, np.asarray(decode(value)))
    atoms.set_constraint([dict2constraint(decode(value)) for value in more.get("constraints", [])])
    return atoms
