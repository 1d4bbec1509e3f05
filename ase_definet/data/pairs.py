"""Find pairs of unrelaxed and relaxed structures in common layouts of files.

Supported are

- the layout of 2DMD (doi:10.5281/zenodo.14027373): folders of CIFs with ``train.csv``, ``val.csv``, ``test.csv``;
- a folder of ``ID_unrelaxed.*`` and ``ID_relaxed.*`` in any format ASE reads;
- extended XYZ or an ASE database, one structure after the other: either every frame is unrelaxed and carries the
  array ``relaxed_positions``, or pairs of frames share an ``id`` and have ``stage=unrelaxed`` or
  ``stage=relaxed``; ``split``, ``subset`` and ``host`` (or ``host_file``, a file in the same folder) are used if
  given, and so is the state: ``charge``, ``spin_multiplicity``, ``functional``, ``excited``;
- the same formats with relaxed structures only, whose unrelaxed atoms are on the sites of the host;
- an ASE trajectory of one relaxation: its first and last image;
- VASP runs: folders with a POSCAR, and a vasprun.xml or a CONTCAR.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect

from ase_definet.errors import DefiNetError, HostError, StructureError
from ase_definet.matching.host import Host
from ase_definet.matching.library import get_host
from ase_definet.structures.reading import read_structure, read_structures

SPLITS = ("train", "val", "test")
FRACTIONS = (0.8, 0.1, 0.1)
"""Shares of train, val and test if the source does not define splits."""

_SUFFIX = re.compile(r"(_spin)?(_\d+)?$")
_FILES_OF_2DMD = ("CIF", "CIF_POSCAR")
_RESULTS_OF_VASP = ("vasprun.xml", "vasprun.xml.gz", "CONTCAR")
_DENSITIES = {"high_density_defects": "high", "low_density_defects": "low"}


@dataclass(frozen=True)
class PairSource:
    """Location of one pair.

    Attributes:
        id: Its name, unique within the subset.
        subset: Its subset, such as ``high/MoS2``.
        split: ``train``, ``val`` or ``test``.
        host: Its host: a name, a file or a :class:`~ase_definet.matching.host.Host`.
        unrelaxed: The structure, or its file; None if the atoms start on the sites of the host.
        relaxed: The structure, or its file; None if there is none.
        problem: Why a frame of a file is not part of a pair, if so.
        labels: Properties of the relaxed structure by name (:mod:`ase_definet.data.labels`).
        label_names: Properties that are read from the structures themselves: info keys, results of a calculator.
    """

    id: str
    subset: str
    split: str
    host: Any
    unrelaxed: Atoms | Path | None
    relaxed: Atoms | Path | None
    problem: DefiNetError | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()

    def load(self) -> tuple[Atoms | None, Atoms | None]:
        """Read both structures.

        Raises:
            StructureError: A file cannot be read, or a VASP run did not converge.
            DefiNetError: The :attr:`problem`.
        """
        if self.problem is not None:
            raise self.problem
        return tuple(None if what is None else _load(what) for what in (self.unrelaxed, self.relaxed))  # type: ignore[return-value]


def find_pairs(
    source: Path,
    host: Any = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    *,
    relaxed_only: bool = False,
) -> Iterator[PairSource]:
    """Find all pairs of a source, in a fixed order.

    Args:
        source: A folder or a file, as described at the top of this module.
        host: Host of all pairs; required if the source does not name one.
        fractions: Shares of train, val and test if the source does not define splits.
        seed: Seed of the random split.
        relaxed_only: Whether all structures of the file are relaxed ones, which start from the sites of their host.

    Raises:
        StructureError: There are no pairs of structures.
        HostError: No host is given and none can be inferred.
    """
    if not source.exists():
        raise StructureError(f"{source}: no such file or folder")
    if source.name in {"", ".."}:  # subsets are named after folders
        source = source.resolve()
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:  # noqa: PLR2004 - rounding
        raise DefiNetError(f"the shares of train, val and test must add up to 1, found {fractions}")
    if relaxed_only and (source.is_dir() or source.suffix == ".traj"):
        raise StructureError(f"{source}: relaxed structures alone are read from an extended XYZ file or a database")
    found = _from_folder(source, host) if source.is_dir() else _from_file(source, host, relaxed_only=relaxed_only)
    yield from _split(found, fractions, seed)


def _from_folder(source: Path, host: Any) -> Iterator[PairSource]:
    subsets = sorted({p.parent for kind in _FILES_OF_2DMD for p in source.glob(f"**/{kind}") if p.is_dir()})
    if not subsets and source.name in _FILES_OF_2DMD:
        subsets = [source.parent]
    if subsets:
        for folder in subsets:
            yield from _from_2dmd(folder, host)
        return
    named = sorted(source.glob("**/*_unrelaxed.*"))
    if named:
        listed: dict[Path, dict[str, str]] = {}
        for path in named:
            if path.parent not in listed:
                listed[path.parent] = dict(_listed(path.parent)) or dict(_listed(path.parent.parent))
            yield _named_pair(path, source, host, listed[path.parent])
        return
    runs = sorted(p.parent for p in source.glob("**/POSCAR"))
    if not runs:
        raise StructureError(
            f"{source}: no pairs found; expected the 2DMD layout, ID_unrelaxed.* and ID_relaxed.*, or VASP runs with "
            "a POSCAR and a vasprun.xml or CONTCAR"
        )
    for folder in runs:
        name = folder.relative_to(source).as_posix()
        done = next((p for f in _RESULTS_OF_VASP if (p := folder / f).exists() and p.stat().st_size), None)
        yield PairSource(
            folder.name if name == "." else name, source.name, "", _required(host, source), folder / "POSCAR", done
        )


def _from_2dmd(folder: Path, host: Any) -> Iterator[PairSource]:
    files = next(p for kind in _FILES_OF_2DMD if (p := folder / kind).is_dir())
    name = _SUFFIX.sub("", folder.name)
    own = host if host is not None else _host_beside(folder, name)
    label = own.name if isinstance(own, Host) else name
    density = _DENSITIES.get(folder.parent.name, folder.parent.name)
    listed = list(_listed(folder))
    if not listed:
        listed = [(p.name.removesuffix("_unrelaxed.cif"), "") for p in sorted(files.glob("*_unrelaxed.cif"))]
    for key, split in listed:
        relaxed = files / f"{key}_relaxed.cif"
        yield PairSource(
            key,
            f"{density}/{label}",
            split,
            own,
            files / f"{key}_unrelaxed.cif",
            relaxed if relaxed.exists() else None,
        )


def _host_beside(folder: Path, name: str) -> Host:
    try:
        return get_host(name)
    except HostError:
        beside = folder.parent / f"{name}.cif"
        if beside.exists():
            return get_host(beside)
        raise


def _listed(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield ids and splits from ``train.csv`` and so on (one column, ``atoms_id``)."""
    for split in SPLITS:
        path = folder / f"{split}.csv"
        if path.exists():
            try:
                with path.open(newline="", encoding="utf-8") as stream:
                    rows = list(csv.DictReader(stream))
            except (ValueError, csv.Error) as error:  # invalid UTF-8 raises a ValueError
                raise StructureError(f"{path}: cannot be read as a list of ids: {error}") from error
            for row in rows:
                if not row.get("atoms_id"):
                    found = ", ".join(str(key) for key in row)
                    raise StructureError(f"{path}: expected a column atoms_id with an id in every row, found {found}")
                yield row["atoms_id"], split


def _named_pair(path: Path, source: Path, host: Any, splits: dict[str, str]) -> PairSource:
    stem, _, suffix = path.name.rpartition("_unrelaxed")
    relaxed = path.with_name(f"{stem}_relaxed{suffix}")
    if not relaxed.exists():
        relaxed = next(iter(sorted(path.parent.glob(f"{stem}_relaxed.*"))), relaxed)
    folder = path.parent.relative_to(source).as_posix()
    key = stem if folder == "." else f"{folder}/{stem}"
    return PairSource(
        key, source.name, splits.get(stem, ""), _required(host, source), path, relaxed if relaxed.exists() else None
    )


def _required(host: Any, source: Path) -> Any:
    if host is None:
        raise HostError(f"{source}: no host is named there; give one (a name, or the file of the pristine host)")
    return host


def _from_file(source: Path, host: Any, *, relaxed_only: bool) -> Iterator[PairSource]:
    if source.suffix == ".traj":
        yield PairSource(source.stem, source.stem, "", _required(host, source), _read(source, 0), _read(source, -1))
        return
    good, bad = 0, []
    for reference in _of_one_fidelity(_from_frames(source, host, relaxed_only=relaxed_only)):
        if reference.problem is None:
            good += 1
            yield reference
        else:
            bad.append(reference)
    if bad and not good:
        raise bad[0].problem or StructureError(f"{source}: holds no pairs")
    yield from bad


def _of_one_fidelity(references: Iterable[PairSource]) -> Iterator[PairSource]:
    """Reject frames without a functional if others of the same file have one, because it is ambiguous."""
    found = list(references)
    named = {str(info["functional"]) for one in found if (info := _info_of(one)).get("functional")}
    for one in found:
        if named and one.problem is None and not _info_of(one).get("functional"):
            text = f"no functional is named, where others of this file say {', '.join(sorted(named))}; say which"
            yield replace(one, problem=StructureError(text))
        else:
            yield one


def _info_of(reference: PairSource) -> dict[str, Any]:
    """Return the metadata of a structure of a file."""
    atoms = reference.unrelaxed if reference.unrelaxed is not None else reference.relaxed
    return atoms.info if isinstance(atoms, Atoms) else {}


def _from_frames(source: Path, host: Any, *, relaxed_only: bool) -> Iterator[PairSource]:
    """Yield the pairs among the frames of a file, and the frames without a partner."""
    waiting: dict[tuple[str, str], Atoms] = {}
    number = 0
    for number, atoms in enumerate(_frames(source), start=1):
        info = atoms.info
        key = str(info.get("id", number))
        pair_key = (str(info.get("subset", "")), key)
        if relaxed_only:
            yield _frame_pair(source, key, None, atoms, host)
        elif "relaxed_positions" in atoms.arrays:
            relaxed = atoms.copy()
            relaxed.positions = atoms.arrays["relaxed_positions"]
            yield _frame_pair(source, key, atoms, relaxed, host)
        elif (stage := info.get("stage")) not in {"unrelaxed", "relaxed"}:
            problem = (
                f"{source}, structure {number}: expected an array relaxed_positions, or id and stage=unrelaxed or "
                f"stage=relaxed; found arrays {sorted(atoms.arrays)} and keys {sorted(info)}"
            )
            yield _frame_pair(source, key, atoms, None, host, problem)
        elif pair_key not in waiting:
            waiting[pair_key] = atoms
        elif waiting[pair_key].info["stage"] == stage:
            problem = f"{source}, structure {number}: a second {stage} structure of {key}"
            yield _frame_pair(source, key, atoms, None, host, problem)
        else:
            pair = {stage: atoms, waiting[pair_key].info["stage"]: waiting.pop(pair_key)}
            yield _frame_pair(source, key, pair["unrelaxed"], pair["relaxed"], host)
    for (_, key), atoms in waiting.items():
        alone = atoms.info["stage"] == "relaxed"
        problem = f"{source}: {key} has a relaxed structure and no unrelaxed one" if alone else ""
        yield _frame_pair(source, key, atoms, None, host, problem)
    if not number:
        raise StructureError(f"{source}: holds no structures")


def _frame_pair(
    source: Path, key: str, unrelaxed: Atoms | None, relaxed: Atoms | None, host: Any, problem: str = ""
) -> PairSource:
    info = (unrelaxed or relaxed or Atoms()).info
    own = host if host is not None else info.get("host")
    if host is None and info.get("host_file"):
        own = _host_in(source.parent / str(info["host_file"]))
    wrong: DefiNetError | None = StructureError(problem) if problem else None
    try:
        _required(own, source)
    except HostError as error:
        wrong = wrong or error
    return PairSource(
        key, str(info.get("subset", source.stem)), str(info.get("split", "")), own, unrelaxed, relaxed, wrong
    )


@lru_cache(maxsize=32)
def _host_in(path: Path) -> Host | Path:
    """Return the host in a file; if it cannot be read, return its name, and the error is reported for its pairs."""
    try:
        return get_host(path)
    except (DefiNetError, OSError):
        return path


def _frames(source: Path) -> Iterator[Atoms]:
    """Yield every structure of a file."""
    database = source.suffix in {".db", ".json"}
    if not database:
        yield from read_structures(source)
        return
    try:
        yield from _frames_of_database(source)
    except Exception as error:  # readers raise various exceptions
        raise StructureError(f"{source}: cannot be read: {_reason(error)}") from error


def _frames_of_database(source: Path) -> Iterator[Atoms]:
    with connect(source) as database:
        for row in database.select():
            atoms = row.toatoms()
            atoms.info |= {"id": row.id} | row.key_value_pairs
            if "pair" in atoms.info:
                atoms.info["id"] = atoms.info["pair"]
            if "relaxed_positions" in row.data:
                atoms.set_array("relaxed_positions", np.asarray(row.data["relaxed_positions"]))
            yield atoms


def _split(found: Iterable[PairSource], fractions: tuple[float, float, float], seed: int) -> Iterator[PairSource]:
    """Assign splits if the source defines none: a fixed shuffle in each subset, with exact shares."""
    open_: dict[str, list[PairSource]] = {}
    for reference in found:
        if reference.split:
            yield reference
        else:
            open_.setdefault(reference.subset, []).append(reference)
    for references in open_.values():
        place = np.random.default_rng(seed).permutation(len(references))
        ends = np.round(np.cumsum(fractions) * len(references))
        for reference, rank in zip(references, place, strict=True):
            yield replace(reference, split=SPLITS[int((rank >= ends[:2]).sum())])


def _load(what: Atoms | Path) -> Atoms:
    return what if isinstance(what, Atoms) else _read(what)


def _read(path: Path, index: int = -1) -> Atoms:
    if not path.is_file():
        raise StructureError(f"{path}: cannot be read: no such file")
    atoms = read_structure(path, index)
    if path.name.startswith("vasprun.xml"):
        _refuse_unconverged(path)
    return atoms


def _reason(error: Exception) -> str:
    """Return the error of a reader in one line; some have no message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _refuse_unconverged(path: Path) -> None:
    from pymatgen.io.vasp import Vasprun  # noqa: PLC0415 - slow to import, only for VASP runs

    with warnings.catch_warnings():  # it warns about what is an error here
        warnings.simplefilter("ignore")
        try:
            run = Vasprun(str(path), parse_dos=False, parse_eigen=False, parse_potcar_file=False)
        except Exception as error:  # readers raise various exceptions
            raise StructureError(f"{path}: cannot be read: {_reason(error)}") from error
    if not run.converged:
        raise StructureError(f"{path}: the relaxation did not converge; let it finish, or use its CONTCAR")
