"""One compact file for a whole data set: memory-mapped, hash-checked, grouped by host supercell.

The file is in safetensors format. Pairs on the same sites form a group; its arrays are ``numbers`` (uint8),
``offset`` and ``move`` (int16 in units of a scale per pair, which keeps 1e-5 of its largest component), ``split``,
``state`` (uint8, the four codes of :mod:`ase_definet.structures.state`), ``labels`` (float64, one column for each
property named in the metadata, NaN where unknown) and the lines of ``ids``. The metadata describe the sites and
contain a digest of the whole content.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ase_definet.data.examine import MatchedPair, Problem, examine
from ase_definet.data.labels import LabelTable, implausible, mismatches, property_of
from ase_definet.data.pairs import SPLITS, PairSource
from ase_definet.errors import StructureError
from ase_definet.matching.supercell import cells_of, waves_of
from ase_definet.structures.files import replacing
from ase_definet.structures.state import State

Array: TypeAlias = NDArray[Any]

KIND = "ase-definet pairs"
FORMAT = f"{KIND} 4"
"""Format version. Version 1 had a digest of the arrays only, without cells, hosts and ids; version 2 had no
states."""
UNLABELLED = f"{KIND} 3"
"""The version before labels, which is still read."""
SAME_SITES = 2e-3
"""Pairs whose unit cells and basis agree this well are on the same sites, in Å."""
_STEPS = 32767
_DTYPES: Mapping[str, Any] = {"U8": np.uint8, "I16": np.int16, "F32": np.float32, "F64": np.float64}
_HEADER = 1 << 24
"""Bytes at the beginning of a file that identify a pack."""


@dataclass(frozen=True, eq=False)
class PairGroup:
    """Pairs on the same sites.

    Attributes:
        subset: Their subset, such as ``high/MoS2``.
        host: Name of the host.
        unit_numbers: Atomic numbers of the primitive cell, shape ``(n_basis,)``.
        unit_positions: Positions in it, shape ``(n_basis, 3)``, in Å.
        unit_cell: Its vectors as rows, shape ``(3, 3)``, in Å; for a layer the vacuum last.
        pbc: Which of them are periodic.
        supercell: Integer matrix, rows in the primitive vectors, shape ``(3, 3)``.
        ids: Names of the pairs.
        split: Split of each pair, indices into :data:`~ase_definet.data.pairs.SPLITS`, shape ``(n,)``.
        numbers: Atomic number on every site, 0 where empty, shape ``(n, n_sites)``.
        offset: Unrelaxed position minus site, shape ``(n, n_sites, 3)``, integers.
        offset_scale: Length of one unit of ``offset``, shape ``(n,)``, in Å.
        move: Relaxed minus unrelaxed position, shape ``(n, n_sites, 3)``, integers.
        move_scale: Length of one unit of ``move``, shape ``(n,)``, in Å; NaN without a relaxed structure.
        state: Codes of each pair's state (:mod:`ase_definet.structures.state`), shape ``(n, 4)``.
        labels: Properties of each relaxed structure, NaN where unknown, shape ``(n, n_labels)``.
    """

    subset: str
    host: str
    unit_numbers: Array
    unit_positions: Array
    unit_cell: Array
    pbc: tuple[bool, bool, bool]
    supercell: Array
    ids: tuple[str, ...]
    split: Array
    numbers: Array
    offset: Array
    offset_scale: Array
    move: Array
    move_scale: Array
    state: Array
    labels: Array = field(default_factory=lambda: np.empty((0, 0)))

    def __post_init__(self) -> None:
        """Give groups without labels an array of the right length."""
        if not self.labels.size:
            object.__setattr__(self, "labels", np.empty((len(self.ids), 0)))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.ids)

    @property
    def cells(self) -> Array:
        """Primitive cells of the supercell in the order of the sites, integers, shape ``(n_cells, 3)``."""
        return cells_of(self.supercell)

    @property
    def waves(self) -> Array:
        """Wave vectors that fit into the supercell, in reciprocal primitive vectors, shape ``(n_cells, 3)``."""
        return waves_of(self.supercell)

    @property
    def cell(self) -> Array:
        """Vectors of the supercell as rows, shape ``(3, 3)``, in Å."""
        return np.asarray(self.supercell @ self.unit_cell)

    @property
    def sites(self) -> Array:
        """Positions of the sites, cell by cell, shape ``(n_sites, 3)``, in Å."""
        shifts = self.cells @ self.unit_cell
        return np.asarray((shifts[:, None] + self.unit_positions).reshape(-1, 3))

    @property
    def host_numbers(self) -> Array:
        """Atomic number of the host on every site, shape ``(n_sites,)``."""
        return np.tile(self.unit_numbers, len(self.cells))

    @property
    def has_relaxed(self) -> Array:
        """Which pairs have a relaxed structure, shape ``(n,)``."""
        return np.isfinite(self.move_scale)

    def labelled(self, split: str, column: int) -> Array:
        """Return which pairs of a split have a label, with a relaxed structure or without."""
        chosen = self.indices(split, relaxed=False)
        return np.asarray(chosen[np.isfinite(self.labels[chosen, column])])

    def indices(self, split: str, *, relaxed: bool = True) -> Array:
        """Return which pairs belong to a split, by default those with a relaxed structure."""
        wanted = self.split == SPLITS.index(split)
        return np.flatnonzero(wanted & self.has_relaxed if relaxed else wanted)

    def offsets(self, chosen: Array) -> Array:
        """Return unrelaxed positions minus sites of some pairs, shape ``(n_chosen, n_sites, 3)``, in Å."""
        return np.asarray(self.offset[chosen] * self.offset_scale[chosen, None, None])

    def moves(self, chosen: Array) -> Array:
        """Return relaxed minus unrelaxed positions of some pairs, shape ``(n_chosen, n_sites, 3)``, in Å."""
        return np.asarray(self.move[chosen] * self.move_scale[chosen, None, None])

    def in_memory(self) -> PairGroup:
        """Return the group with its arrays in memory, independent of its file."""
        names = ("split", "numbers", "offset", "offset_scale", "move", "move_scale", "state", "labels")
        arrays: dict[str, Any] = {name: np.array(getattr(self, name)) for name in names}
        return replace(self, **arrays)

    def atoms(self, index: int) -> tuple[Atoms, Atoms | None]:
        """Return both structures of a pair, atoms in the order of the sites and their state in ``info``."""
        numbers = self.numbers[index]
        real = numbers > 0
        at = (self.sites + self.offsets(np.array([index]))[0])[real]
        state = State.from_codes(self.state[index])
        unrelaxed = Atoms(numbers[real], at, cell=self.cell, pbc=True, info=state.info)
        if not self.has_relaxed[index]:
            return unrelaxed, None
        relaxed = unrelaxed.copy()
        relaxed.positions += self.moves(np.array([index]))[0][real]
        return unrelaxed, relaxed


@dataclass(frozen=True, eq=False)
class PackedDataset:
    """A packed data set.

    Attributes:
        path: Its file.
        sha256: Digest of its arrays and metadata.
        groups: Its pairs, by sites.
        labels: Units of the properties by name, in the order of the columns of :attr:`PairGroup.labels`.
    """

    path: Path
    sha256: str
    groups: tuple[PairGroup, ...]
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def subsets(self) -> dict[str, list[PairGroup]]:
        """Groups by subset."""
        out: dict[str, list[PairGroup]] = {}
        for group in self.groups:
            out.setdefault(group.subset, []).append(group)
        return out

    @classmethod
    def open(cls, path: Path | str) -> PackedDataset:
        """Open a packed data set; arrays are read from the file as they are used.

        Raises:
            StructureError: The file is not a packed data set, has another version, or is damaged.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="np") as file:  # also checks the layout
                metadata = file.metadata() or {}
        except (OSError, SafetensorError, MemoryError) as error:
            raise StructureError(
                f"{path}: cannot be read as a packed data set ({error}); make one with `ase-definet data pack`"
            ) from error
        found = str(metadata.get("format"))
        if found not in {FORMAT, UNLABELLED}:
            how = "pack it anew" if found.startswith(KIND) else "make it"
            raise StructureError(
                f"{path}: expected format {FORMAT!r}, found {found!r}; {how} with `ase-definet data pack`"
            )
        try:
            arrays = _mapped(path)
            digest = _digest(metadata, arrays)
            if digest != metadata.get("sha256"):
                raise StructureError(
                    f"{path}: damaged (its content does not have the digest written with it); pack it anew"
                )
            labels = json.loads(metadata.get("labels", "{}"))
            return cls(path, digest, _groups(metadata, arrays, len(labels)), labels)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, StructureError):
                raise
            raise StructureError(f"{path}: damaged ({type(error).__name__}: {error}); pack it anew") from error


def is_pack(path: Path) -> bool:
    """Return whether a file is marked as a packed data set, of any version, damaged or not."""
    try:
        with path.open("rb") as stream:
            return KIND.encode() in stream.read(_HEADER)
    except OSError:
        return False


def pack_pairs(
    references: Iterable[PairSource],
    out: Path,
    *,
    workers: int | None = None,
    progress: Any = None,
    units: Mapping[str, str] | None = None,
    warn: Callable[[str], object] = lambda _: None,
) -> tuple[PackedDataset, list[Problem]]:
    """Check, match and pack pairs, on all cores.

    Args:
        references: The pairs.
        out: File to write; it appears only when it is complete.
        workers: Processes, by default one per core.
        progress: Called with each :class:`MatchedPair` or :class:`Problem` when it is ready.
        units: Units of the labels by name; by default what the names suggest.
        warn: Called with each warning about the labels.

    Returns:
        The packed data set, and the rejected pairs with their reasons.

    Raises:
        StructureError: No pair is valid.
    """
    return pack_rows(_examined(references, workers), out, progress=progress, units=units, warn=warn)


def pack_rows(
    results: Iterable[MatchedPair | Problem],
    out: Path,
    *,
    progress: Any = None,
    units: Mapping[str, str] | None = None,
    warn: Callable[[str], object] = lambda _: None,
) -> tuple[PackedDataset, list[Problem]]:
    """Pack pairs that are on their sites already.

    Args:
        results: The pairs, and the rejected ones.
        out: File to write; it appears only when it is complete. Its folder is created if necessary.
        progress: Called with each result when it is ready.
        units: Units of the labels by name; by default what the names suggest.
        warn: Called with each warning about the labels: those that cannot be in eV are left out.

    Returns:
        The packed data set, and the rejected pairs with their reasons.

    Raises:
        StructureError: No pair is valid.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    building: list[tuple[MatchedPair, list[MatchedPair]]] = []
    problems: list[Problem] = []
    seen: set[tuple[str, str]] = set()
    for result in results:
        if progress is not None:
            progress(result)
        if isinstance(result, Problem):
            problems.append(result)
            continue
        if (result.subset, result.id) in seen:
            problems.append(Problem(result.id, result.subset, result.split, "this id occurs twice; the first counts"))
            continue
        seen.add((result.subset, result.id))
        rows = next((rows for first, rows in building if _same_sites(first, result)), None)
        if rows is None:
            building.append((result, rows := []))
        rows.append(result)
    if not building:
        reasons = "; ".join(f"{p.id}: {p.reason}" for p in problems[:3])
        raise StructureError(f"no pair could be used ({len(problems)} have problems): {reasons or 'none was found'}")
    names = list(dict.fromkeys(name for _, rows in building for row in rows for name in row.labels))
    groups = _plausible([_group_of(rows, names) for _, rows in building], names, warn)
    known = {name: property_of(name)[1] for name in names} | dict(units or {})
    return save_groups(groups, out, {name: known[name] for name in names}), problems


def label_pack(
    pack: PackedDataset, table: LabelTable, out: Path, *, warn: Callable[[str], object] = lambda _: None
) -> PackedDataset:
    """Write a data set that is packed already with the labels of a table, which replace its own.

    Args:
        pack: The data set.
        table: The labels.
        out: File to write; it appears only when it is complete.
        warn: Called with each warning about the labels.
    """
    names = list(table.units)
    for text in mismatches(table, [key for group in pack.groups for key in group.ids]):
        warn(text)
    rows = [[table.rows.get(key, {}) for key in group.ids] for group in pack.groups]
    columns = [np.array([[row.get(name, np.nan) for name in names] for row in own], dtype=float) for own in rows]
    groups = [
        replace(group, labels=own.reshape(len(group), len(names)))
        for group, own in zip(pack.groups, columns, strict=True)
    ]
    return save_groups(_plausible(groups, names, warn), out, {name: table.units[name] for name in names})


def _plausible(groups: list[PairGroup], names: list[str], warn: Callable[[str], object]) -> list[PairGroup]:
    """Leave out labels that cannot be in their unit, with a warning for each property."""
    counts = [(group.numbers != group.host_numbers).sum(axis=1) for group in groups]
    for column, name in enumerate(names):
        bad, text = implausible(name, np.concatenate([g.labels[:, column] for g in groups]), np.concatenate(counts))
        if text:
            warn(text)
        ends = np.cumsum([len(group) for group in groups])[:-1]
        for group, wrong in zip(groups, np.split(bad, ends), strict=True):
            group.labels[wrong, column] = np.nan
    return groups


def _examined(references: Iterable[PairSource], workers: int | None) -> Iterator[MatchedPair | Problem]:
    if workers == 1:
        yield from map(examine, references)
        return
    with ProcessPoolExecutor(workers, initializer=_end_with_parent) as pool:
        yield from pool.map(examine, references, chunksize=16)


def _end_with_parent() -> None:
    """End this worker when its parent process ends, even if that was killed."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)  # the working thread may be in C code


def _same_sites(one: MatchedPair, other: MatchedPair) -> bool:
    return (
        one.subset == other.subset
        and one.host == other.host
        and one.pbc == other.pbc
        and np.array_equal(one.supercell, other.supercell)
        and np.array_equal(one.unit_numbers, other.unit_numbers)
        and bool(np.abs(one.unit_cell - other.unit_cell).max() < SAME_SITES)
        and bool(np.abs(one.unit_positions - other.unit_positions).max() < SAME_SITES)
    )


def _group_of(rows: list[MatchedPair], names: list[str]) -> PairGroup:
    first = rows[0]
    offset, offset_scale = _quantise([row.offset for row in rows])
    move, move_scale = _quantise([row.move for row in rows])
    return PairGroup(
        subset=first.subset,
        host=first.host,
        unit_numbers=first.unit_numbers,
        unit_positions=first.unit_positions,
        unit_cell=first.unit_cell,
        pbc=first.pbc,
        supercell=first.supercell,
        ids=tuple(row.id for row in rows),
        split=np.array([SPLITS.index(row.split) for row in rows], dtype=np.uint8),
        numbers=np.array([row.numbers for row in rows], dtype=np.uint8),
        offset=offset,
        offset_scale=offset_scale,
        move=move,
        move_scale=move_scale,
        state=np.array([row.state.codes for row in rows], dtype=np.uint8),
        labels=np.array([[row.labels.get(name, np.nan) for name in names] for row in rows], dtype=float),
    )


def save_groups(groups: Iterable[PairGroup], out: Path, labels: Mapping[str, str] | None = None) -> PackedDataset:
    """Write groups, of one data set or of several, to one file.

    Args:
        groups: Content of the file.
        out: File to write; it appears only when it is complete.
        labels: Units of the properties by name, in the order of the columns of :attr:`PairGroup.labels`.
    """
    arrays: dict[str, Array] = {}
    heads = []
    for number, group in enumerate(groups):
        heads.append(
            {
                "subset": group.subset,
                "host": group.host,
                "unit_numbers": group.unit_numbers.tolist(),
                "unit_positions": group.unit_positions.tolist(),
                "unit_cell": group.unit_cell.tolist(),
                "pbc": list(group.pbc),
                "supercell": group.supercell.tolist(),
            }
        )
        arrays[f"{number}.ids"] = np.frombuffer("\n".join(group.ids).encode(), dtype=np.uint8)
        for name in ("split", "numbers", "offset", "offset_scale", "move", "move_scale", "state"):
            arrays[f"{number}.{name}"] = np.ascontiguousarray(getattr(group, name))
        if labels:
            arrays[f"{number}.labels"] = np.ascontiguousarray(group.labels, dtype=float)
    metadata = {"format": FORMAT, "groups": json.dumps(heads), "labels": json.dumps(dict(labels or {}))}
    content = save(arrays, metadata | {"sha256": _digest(metadata, arrays)})
    with replacing(out) as fresh:
        fresh.write_bytes(content)  # its own writer hides the reason of file system errors
    return PackedDataset.open(out)


def _groups(metadata: Mapping[str, str], arrays: Mapping[str, Array], n_labels: int) -> tuple[PairGroup, ...]:
    """Assemble the groups of a file."""
    groups = []
    for number, head in enumerate(json.loads(metadata["groups"])):
        own = {key.split(".")[1]: array for key, array in arrays.items() if key.split(".")[0] == str(number)}
        if n_labels and own["labels"].shape != (len(own["split"]), n_labels):
            raise ValueError(f"labels of shape {own['labels'].shape}, expected {(len(own['split']), n_labels)}")
        groups.append(
            PairGroup(
                subset=head["subset"],
                host=head["host"],
                unit_numbers=np.array(head["unit_numbers"]),
                unit_positions=np.array(head["unit_positions"]),
                unit_cell=np.array(head["unit_cell"]),
                pbc=tuple(head["pbc"]),
                supercell=np.array(head["supercell"]),
                ids=tuple(bytes(own.pop("ids")).decode().split("\n")),
                **own,
            )
        )
    return tuple(groups)


def _quantise(fields: list[Array | None]) -> tuple[Array, Array]:
    shape = (
        next(field.shape for field in fields if field is not None) if any(f is not None for f in fields) else (0, 3)
    )
    whole = np.zeros((len(fields), *shape), dtype=np.int16)
    scale = np.full(len(fields), np.nan, dtype=np.float32)
    for k, one in enumerate(fields):
        if one is not None:
            scale[k] = max(float(np.abs(one).max()), 1e-9) / _STEPS * (1 + 1e-6)
            whole[k] = np.round(one / scale[k])
    return whole, scale


def _digest(metadata: Mapping[str, str], arrays: Mapping[str, Array]) -> str:
    """Return the digest of the content of a pack, except for the digest itself."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {"sha256"}):
        digest.update(f"{key}={metadata[key]}\0".encode())
    for key in sorted(arrays):
        digest.update(f"{key}:{arrays[key].dtype}:{arrays[key].shape}\0".encode())
        digest.update(np.ascontiguousarray(arrays[key]).data)
    return digest.hexdigest()


def _mapped(path: Path) -> dict[str, Array]:
    """Return memory-mapped arrays of a safetensors file (the reader of safetensors copies them)."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    data = np.memmap(path, mode="r", offset=8 + length)
    out = {}
    for key, entry in header.items():
        if key != "__metadata__":
            start, end = entry["data_offsets"]
            out[key] = data[start:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return out
