"""Relax any number of structures in batches, on several processes or a cluster, resumably.

Results go to a folder: ``structures.extxyz`` or ``structures.arrows`` (relaxed), ``table.csv`` (a row per structure),
``failures.csv``, ``inputs.csv`` (digests of the inputs), ``run.json`` (the request) and ``journal.json``. A block of
structures counts once the journal records it. What an interrupted run wrote after its last journal entry is truncated
when the screen is resumed, so that no structure is lost or relaxed twice. The journal also holds digests of the other
files, by which later changes to them are noticed.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import math
import numbers
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from ase.formula import Formula
from ase.io.formats import ioformats
from numpy.typing import NDArray

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.format import load_checkpoint
from ase_definet.errors import DefiNetError, OtherRequestError, ScreeningError, StructureError
from ase_definet.matching.host import Host
from ase_definet.matching.library import get_host
from ase_definet.matching.shared_sites import Matcher, Placed
from ase_definet.relaxation.calculation import CalculatorStage
from ase_definet.relaxation.devices import checked_device
from ase_definet.relaxation.domain import TRUST
from ase_definet.relaxation.property_stage import DEFAULT
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.result import RelaxFailure, RelaxResult
from ase_definet.screening.enumeration import Configuration
from ase_definet.screening.structures_file import FORMATS, StructuresFile
from ase_definet.structures.cell import completed_cell
from ase_definet.structures.conversion import with_moments
from ase_definet.structures.extxyz import StreamError, printable, read_frames
from ase_definet.structures.files import is_vacant, refuse_incomplete, replacing
from ase_definet.structures.metrics import near_sites
from ase_definet.structures.reading import COMPRESSED, format_by_name, read_each, read_structure, structure_format
from ase_definet.structures.run_folder import HOLDER, LOCK, RunFolder
from ase_definet.structures.state import refuse_parity, said_of, set_state

Array: TypeAlias = NDArray[Any]
Named: TypeAlias = tuple[str, "Atoms | Configuration | Exception"]

BLOCK = 64
"""Number of structures that are relaxed, written and recorded together."""
NEAR = 3.0
"""Atoms closer than this to a defect site are near it, in Å."""
TABLE, FAILURES, INPUTS = "table.csv", "failures.csv", "inputs.csv"
RUN, JOURNAL = "run.json", "journal.json"
PARQUET = "table.parquet"
COLUMNS = (
    *("index", "name", "formula", "host", "supercell", "sites", "defects", "density", "multiplicity"),
    *("charge", "spin_multiplicity", "functional"),
    *("largest_displacement", "mean_displacement", "mean_displacement_near", "largest_expected_error"),
    *("mean_expected_error", "mean_expected_error_near", "strain"),
    *(
        "formation_energy",
        "formation_energy_error",
        "formation_energy_per_defect",
        "formation_energy_per_defect_error",
    ),
    *("gap_min", "gap_min_error", "total_mag", "total_mag_error", "other_properties", "property_trust"),
    *("trust", "method", "calculator", "steps", "fmax", "converged", "energy", "outside", "warnings", "seconds"),
)
PROPERTIES = ("formation_energy", "formation_energy_per_defect", "gap_min", "total_mag")
"""Properties with columns of their own, each followed by its expected error."""
NUMBERS = frozenset(
    (
        *("index", "sites", "density", "multiplicity", "charge", "spin_multiplicity"),
        *("largest_displacement", "mean_displacement"),
        *("mean_displacement_near", "largest_expected_error", "mean_expected_error", "mean_expected_error_near"),
        *("steps", "fmax", "energy", "strain", "seconds"),
        *(f"{name}{suffix}" for name in PROPERTIES for suffix in ("", "_error")),
    )
)
"""Columns that hold numbers."""
FAILURE_COLUMNS = ("index", "name", "reason")
INPUT_COLUMNS = ("name", "digest")
REPLACED = "definet_state_replaced"
"""Key of ``atoms.info`` with what a structure said of its state before another one was asked for."""
UNREADABLE = "unreadable"
"""Stands for the digest of an input that could not be read."""
_HEAD = 50_000  # what ASE looks at
FEW = 256
"""Up to so many structures, more processes than one take longer to start than they save."""


@dataclass(frozen=True)
class Block:
    """The results of some consecutive structures.

    Attributes:
        names: Names of all structures, in order.
        digests: Digest of each input: see :func:`digest_of`.
        structures: Relaxed structures, as they are written.
        rows: Rows of the table.
        failures: Index, name and reason of each failure.
    """

    names: tuple[str, ...]
    digests: tuple[str, ...]
    structures: bytes
    rows: list[dict[str, Any]]
    failures: list[dict[str, Any]]


@dataclass
class Progress:
    """Progress of a screen.

    Attributes:
        done: Number of structures in the results, failures included.
        failed: Number of failures.
        resumed: Number of structures that were in the results when this run began.
    """

    done: int = 0
    failed: int = 0
    resumed: int = 0


def structures_of(paths: Iterable[Path], skipped: Callable[[str], object] = lambda _: None) -> Iterator[Named]:
    """Read structures one by one, with their names; a structure that cannot be read is replaced by its error.

    Args:
        paths: Files of any format ASE reads, all structures in them, and folders of such files.
        skipped: Called with name and reason of every file in such a folder that is not a structure.

    A structure has the name that it carries, or else that of its file. Files of the same name in several places are
    distinguished by their folders, relative to the last folder that all paths have in common.

    Raises:
        ScreeningError: A folder is incomplete, because the program that wrote it was interrupted.
    """
    paths = list(paths)
    entries = {path: _entries(path) for path in paths if path.is_dir()}
    name_of = _file_names(paths, entries)
    for path in paths:
        if path not in entries:
            yield from _from_file(path, name_of(path))
            continue
        refuse_incomplete(path)
        for one in entries[path]:
            if one.is_dir():
                skipped(f"{printable(one)}: a folder in a folder; give it by its name")
            elif (reason := _no_structure(one)) is not None:
                skipped(reason if reason.startswith(printable(one)) else f"{printable(one)}: {reason}")
            else:
                found = _from_file(one, name_of(one))
                for name, first in islice(found, 1):
                    if isinstance(first, StructureError) and _may_be_anything(one):
                        skipped(printable(first))
                    elif isinstance(first, Atoms) and not len(first) and _may_be_anything(one):
                        skipped(f"{printable(one)}: holds no atoms")
                    else:
                        yield name, first
                yield from found


def _entries(folder: Path) -> list[Path]:
    refuse_incomplete(folder)
    return sorted(one for one in folder.iterdir() if not one.name.startswith("."))


def _file_names(paths: list[Path], entries: dict[Path, list[Path]]) -> Callable[[Path], str]:
    """Return a function that names files, the same from whichever folder the screen is run.

    Args:
        paths: What was given.
        entries: What lies in the folders among them.
    """
    folders = dict.fromkeys(path if path in entries else path.parent for path in paths)
    places = {folder: os.path.realpath(folder) for folder in folders}
    if len(set(places.values())) < 2:  # noqa: PLR2004 - in one folder, names differ
        return lambda file: file.name
    counts = Counter(file.name for path in dict.fromkeys(paths) for file in entries.get(path, [path]))
    try:
        common = os.path.commonpath(places.values())
    except ValueError:  # several drives
        common = ""

    def name_of(file: Path) -> str:
        if counts[file.name] == 1:
            return file.name
        place = places[file.parent]
        return (Path(os.path.relpath(place, common) if common else place) / file.name).as_posix()

    return name_of


def _may_be_anything(path: Path) -> bool:
    """Return whether nothing in the name of a file says that it must hold a structure, broken or not."""
    if format_by_name(path) != "json":
        return format_by_name(path) is None
    try:
        json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError):  # a structure that was cut off, perhaps
        return False
    return True


def _no_structure(path: Path) -> str | None:
    """Return why a file is not even a broken structure, None if it may be one."""
    if format_by_name(path) is not None:
        return None
    if not path.is_file():
        return "not a file; a broken link?"
    try:
        form = ioformats.get(structure_format(path))
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except StructureError as error:
        return printable(error)
    except OSError:
        return None  # it may be one
    if form is not None and form.magic and path.suffix not in COMPRESSED and not form.match_magic(head):
        return f"has the ending of {form.description}, and does not begin like one"
    return None


def _from_file(path: Path, name: str) -> Iterator[Named]:
    """Read the structures of a file of this name."""
    try:
        form = ioformats.get(structure_format(path))
    except (StructureError, OSError) as error:
        yield name, error
        return
    if form is None or form.single:
        try:
            yield name, read_structure(path)
        except StructureError as error:
            yield name, error
        return
    number = -1
    for number, found in enumerate(read_each(path)):
        whole = number == 0 and isinstance(found, StructureError) and form.name != "extxyz"
        yield name if whole else _name_of(found, name, number), found
    if number < 0:
        yield name, StructureError(f"{path}: holds no structures")


def structures_from(stream: Iterable[str], name: str) -> Iterator[Named]:
    """Read structures from lines of extended XYZ as they arrive, no more than one ahead.

    Args:
        stream: The lines, for example of a pipe.
        name: Name of the stream, for structures that have none of their own.

    Raises:
        ScreeningError: The stream ends in the middle of a structure, or is not extended XYZ.
    """
    for number, found in enumerate(read_frames(stream)):
        if isinstance(found, StreamError):
            raise ScreeningError(
                f"{name}: structure {number}: {found} (what came before it counts: if the command that writes to the "
                "pipe was stopped, run both again, and the screen goes on from there)"
            )
        wrong = isinstance(found, StructureError)
        yield _name_of(found, name, number), StructureError(f"{name}: {found}") if wrong else with_moments(found)


def _name_of(found: Atoms | StructureError, source: str, number: int) -> str:
    given = None if isinstance(found, StructureError) else found.info.get("name")
    return f"{source}#{number}" if given is None else str(given)


def relax_block(names: tuple[str, ...], structures: list[Any], first: int, settings: dict[str, Any]) -> Block:
    """Relax some structures; this runs on the workers.

    An error in one of them, at any stage, is recorded as its failure and does not affect the others.

    Args:
        names: Name of each structure.
        structures: Atoms, matched or not, configurations of an enumeration, or the error of a structure that could
            not be read.
        first: Index of the first structure.
        settings: ``model``, ``device``, ``host`` (a name, a file, or a :class:`~ase_definet.matching.host.Host`,
            which does not change while the screen runs), ``max_strain``, and, if they are known, ``extrapolate``,
            ``calculation`` (keyword arguments of the relaxer, with a calculator by its name), ``sha256`` of the
            weights, ``properties`` (weights for properties, None for none), their ``properties_sha256``, ``mu``
            (chemical potentials as texts), and ``structures`` (one of
            :data:`~ase_definet.screening.structures_file.FORMATS`).

    Raises:
        ScreeningError: The weights are not those of that ``sha256``.
    """
    relaxer = _relaxer(settings)
    written = FORMATS[settings.get("structures", "extxyz")]()
    rows, failures, out = [], [], []
    names = tuple(printable(name) for name in names)
    records = relaxer.relax_many(map(_checked, structures), host=settings["host"])
    for index, (name, given, record) in enumerate(zip(names, structures, records, strict=True), start=first):
        try:
            if isinstance(record, RelaxFailure):
                raise record.error  # noqa: TRY301 - one way for all that fails
            row, prepared = _finished(index, name, record, _replaced(given), written)
        except Exception as error:  # noqa: BLE001 - one bad structure must not cost the others
            failures.append({"index": index, "name": name, "reason": _reason(error)})
        else:
            rows.append(row)
            out.append(prepared)
    return Block(names, tuple(map(digest_of, structures)), written.content(out), rows, failures)


def match_block(structures: list[Any], settings: dict[str, Any]) -> list[Any]:
    """Match some structures ahead of :func:`relax_block`, which is left to match those that cannot be.

    Args:
        structures: As there.
        settings: As there.
    """
    matcher, host, out = _matcher(), settings["host"], []
    known = host if isinstance(host, str) and host.lower() == "auto" else get_host(host)
    for given in structures:
        found = given
        if isinstance(given, Atoms):
            with suppress(DefiNetError):  # said by relax_block
                found = Placed(given, matcher.match(given, known, settings["max_strain"]))
        out.append(found)
    return out


@lru_cache(maxsize=1)
def _matcher() -> Matcher:
    """Return the matcher of this process."""
    return Matcher()


def in_state(given: Atoms, charge: int | None, spin_multiplicity: int | None, functional: str | None) -> Atoms:
    """Return a structure in the state that is asked for; what it said otherwise is noted in its row of the table.

    Args:
        given: The structure, which stays as it is.
        charge: Net charge of the cell, in e; None for what it says, as for the others.
        spin_multiplicity: Number of unpaired electrons plus one.
        functional: Name of the functional.
    """
    atoms = given.copy()
    notes = set_state(atoms, charge, spin_multiplicity, functional)
    if notes:
        atoms.info[REPLACED] = "; ".join(notes)
    return atoms


def _checked(given: Any) -> Any:
    """Return a structure, or what is wrong with the state that it says it has."""
    if isinstance(given, Configuration):
        return given.space.placed(given)
    atoms = given.atoms if isinstance(given, Placed) else given
    if not isinstance(atoms, Atoms):
        return given
    try:
        refuse_parity(atoms)
    except StructureError as error:
        return error
    return given


def digest_of(given: object) -> str:
    """Return a digest of everything that a structure holds, :data:`UNREADABLE` for an error.

    It covers the numbers, not the file: the same structure in another format may have another digest.
    """
    if isinstance(given, Exception):
        return UNREADABLE
    if isinstance(given, Placed):
        return digest_of(given.atoms)
    digest = hashlib.blake2b(digest_size=12)
    if isinstance(given, Configuration):  # the request has the host and the supercell
        digest.update(repr((given.sites, [kind.element for kind in given.kinds], given.multiplicity)).encode())
        return digest.hexdigest()
    if not isinstance(given, Atoms):
        digest.update(_plain(given))
        return digest.hexdigest()
    for values in (given.cell.array, given.pbc, *(given.arrays[key] for key in sorted(given.arrays, key=str))):
        digest.update(f"{values.dtype.str} {values.shape}".encode())
        digest.update(_plain(values.tolist()) if values.dtype.hasobject else np.ascontiguousarray(values).data)
    digest.update(_plain(sorted(map(str, given.arrays))))
    digest.update(_plain([[str(key), value] for key, value in given.info.items()]))
    digest.update(_plain([constraint.todict() for constraint in given.constraints]))
    return digest.hexdigest()


def _plain(values: object) -> bytes:
    """Return values as text that is the same in every process; objects are replaced by their type."""

    def default(value: object) -> object:
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else f"<{type(value).__name__}>"

    try:
        return json.dumps(values, default=default).encode()
    except (TypeError, ValueError, RecursionError):  # keys that are no text, a cycle
        return f"<{type(values).__name__}>".encode()


def host_digest(host: Host) -> str:
    """Return a digest of the elements, positions and cell of a host, to 1e-5 Å, whatever its file is called."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(np.asarray(host.numbers, dtype="<i8").tobytes())
    for lengths in (host.positions, host.cell):
        digest.update((np.round(lengths, 5) + 0.0).astype("<f8").tobytes())
    digest.update(bytes([host.layered]))
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """Return in one line why a structure failed."""
    text = " ".join(str(error).split())
    if not isinstance(error, DefiNetError) or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return printable(text)


def _replaced(given: Any) -> str:
    """Return what was asked for instead of the state that a structure came with."""
    atoms = given.atoms if isinstance(given, Placed) else given
    return str(getattr(atoms, "info", {}).get(REPLACED, ""))


def _finished(
    index: int, name: str, result: RelaxResult, replaced: str, written: StructuresFile
) -> tuple[dict[str, Any], Any]:
    """Return the row of a relaxed structure, and the structure as it is written."""
    atoms = result.atoms.copy()
    if not np.isfinite(atoms.positions).all():
        raise StructureError("the prediction holds positions that are not numbers")
    row = _row(index, name, result)
    row["warnings"] = printable("; ".join(filter(None, (replaced, row["warnings"]))))
    # our own first: where two names become one, they stay
    atoms.info = {"name": name, "defect_sites": defect_sites(result)} | {
        key: value for key, value in atoms.info.items() if key not in {"name", "defect_sites"}
    }
    atoms.set_array("definet_displacement", result.displacement)
    prepared, left_out = written.prepared(atoms)
    if left_out:
        note = f"{written.title} cannot hold {', '.join(left_out)}: left out"
        row["warnings"] = printable("; ".join(filter(None, (row["warnings"], note))))
    return row, prepared


def defect_sites(result: RelaxResult) -> str:
    """Write the defects of a result as text that any format keeps: ``v_S 1.234 5.678 9.012; W_Mo ...``, in Å."""
    sites = ((defect.name, *defect.position) for defect in result.site_map.all_defects)
    return "; ".join(f"{name} {x:.4f} {y:.4f} {z:.4f}" for name, x, y, z in sites)


def _relaxer(settings: dict[str, Any]) -> DefiNetRelaxer:
    """Return the relaxer of this process.

    Raises:
        ScreeningError: The weights are not those that the screen began with.
    """
    model = settings["model"]
    wanted = settings.get("sha256") or load_checkpoint(resolve_model(model)).sha256
    relaxer = _kept_relaxer(
        model,
        settings["device"],
        settings["max_strain"],
        settings.get("extrapolate", False),
        json.dumps(settings.get("calculation", {})),
        settings.get("properties", DEFAULT),
        tuple(settings.get("mu", ())),
        (wanted, settings.get("properties_sha256")),
    )
    _refuse_replaced(model, relaxer.sha256, wanted)
    if relaxer.properties is not None and settings.get("properties_sha256"):
        found = relaxer.properties.predictor.sha256
        _refuse_replaced(settings["properties"], found, settings["properties_sha256"])
    return relaxer


def _refuse_replaced(model: str, found: str, wanted: str) -> None:
    """Refuse weights other than those that a screen began with."""
    if found != wanted:
        _kept_relaxer.cache_clear()
        raise ScreeningError(
            f"{model}: the weights were replaced since this screen began (SHA-256 {found[:12]}, expected "
            f"{wanted[:12]}); put them back, or screen into another folder"
        )


@lru_cache(maxsize=2)
def _kept_relaxer(
    model: str,
    device: str,
    max_strain: float,
    extrapolate: bool,  # noqa: FBT001 - a cache wants arguments in order
    calculation: str,
    properties: str | None,
    mu: tuple[str, ...],
    _sha256: tuple[str, str | None],
) -> DefiNetRelaxer:
    options = json.loads(calculation)
    options |= {"properties": properties, "chemical_potentials": mu}
    return DefiNetRelaxer(model, device=device, max_strain=max_strain, extrapolate=extrapolate, **options)


def _row(index: int, name: str, result: RelaxResult) -> dict[str, Any]:
    site_map = result.site_map
    length = np.linalg.norm(result.displacement, axis=1)
    defects = np.array([defect.position for defect in site_map.all_defects])
    atoms = result.atoms
    given = atoms.positions - result.displacement
    near = np.zeros(len(atoms), bool)
    if len(defects):
        near = near_sites(given, defects, completed_cell(atoms.cell.array, given, atoms.pbc), NEAR)
    doubt = result.expected_error
    row: dict[str, Any] = {
        "index": index,
        "name": name,
        "formula": _formula(atoms.numbers),
        "host": printable(site_map.host.name),
        "supercell": site_map.supercell_name,
        "sites": len(site_map.kinds),
        "defects": " ".join(f"{defect}x{n}" for defect, n in site_map.defect_counts.items()),
        "density": round(site_map.density, 6),
        "multiplicity": _whole(atoms.info.get("multiplicity")),
        **{name: "" if value is None else value for name, value in asdict(said_of(atoms)).items()},
        "largest_displacement": round(float(length.max()), 5),
        "mean_displacement": round(float(length.mean()), 5),
        "mean_displacement_near": round(float(length[near].mean()), 5) if near.any() else "",
        "strain": round(site_map.max_strain, 6),
        "trust": result.trust,
        "method": result.method,
        "outside": " ".join(result.outside),
        "warnings": printable("; ".join(result.warnings)),
        "seconds": round(sum(result.timings.values()), 5),
    }
    row |= _property_columns(result)
    done = result.calculation
    if done is not None:
        row |= {
            "calculator": printable(done.calculator),
            "steps": done.steps,
            "fmax": "" if done.fmax is None else round(done.fmax, 5),
            "converged": "yes" if done.converged else "no",
            "energy": "" if done.energy is None else round(done.energy, 6),
        }
    if doubt is not None:
        row |= {
            "largest_expected_error": round(float(doubt.max()), 5),
            "mean_expected_error": round(float(doubt.mean()), 5),
            "mean_expected_error_near": round(float(doubt[near].mean()), 5) if near.any() else "",
        }
    return row


def _formula(numbers: Array) -> str:
    """Return a formula as ``Atoms.get_chemical_formula``, which parses one of a symbol for each atom."""
    elements, counts = np.unique(numbers, return_counts=True)
    symbols = (chemical_symbols[element] for element in elements)
    return str(Formula.from_dict(dict(zip(symbols, counts.tolist(), strict=True))).format("hill"))


def _property_columns(result: RelaxResult) -> dict[str, Any]:
    """Return the columns about properties; what is unknown is left empty."""
    row: dict[str, Any] = {}
    others = []
    for name, one in result.properties.items():
        if one.value is None:
            continue
        if name not in PROPERTIES:
            error = "" if one.expected_error is None else f"±{one.expected_error:.6g}"
            others.append(f"{name}={one.value:.6g}{error}")
            continue
        row[name] = round(one.value, 5)
        row[f"{name}_error"] = "" if one.expected_error is None else round(one.expected_error, 5)
    trusts = [one.trust for one in result.properties.values()]
    if trusts:  # the worst of all: some may be unknown for want of labels
        known = [one.trust for one in result.properties.values() if one.value is not None]
        row["property_trust"] = max(known or trusts, key=TRUST.index)
    row["other_properties"] = printable(" ".join(others))
    return row


def _whole(value: object) -> int | str:
    """Return a count, or nothing if the value is not one: users may have another meaning for the name."""
    number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(value) if number and 0 <= value < 1 << 63 else ""  # type: ignore[operator, call-overload]


class Results:
    """A folder of results that only one process writes to at a time.

    Args:
        folder: The folder.
        asked: The request of this run; a folder with the results of another request is refused, unless that kept
            fewer of the same ranking.

    Raises:
        OtherRequestError: The folder holds the results of another request.
        ScreeningError: The folder is damaged or in use.
    """

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        self.folder = folder
        self.progress = Progress()
        self.structures = FORMATS[asked.get("structures") or "extxyz"]()
        self._headers = {self.structures.name: self.structures.header()} | {
            name: _csv([dict(zip(columns, columns, strict=True))], columns) for name, columns in _TABLES.items()
        }
        self._files: dict[str, BinaryIO] = {}
        self._digests: dict[str, Any] = {}
        self._held = ExitStack()
        self._place = RunFolder(
            folder, "screen", ScreeningError, otherwise="give another folder", goes_on="where its journal is"
        )
        with ExitStack() as held:
            held.enter_context(self._place)
            held.callback(self._close_files)
            self._begin(asked)
            self._held = held.pop_all()

    def _begin(self, asked: dict[str, Any]) -> None:
        run, journal = self.folder / RUN, self.folder / JOURNAL
        if run.exists():
            before = read_json(run)
            differ = sorted(k for k in asked.keys() | before.keys() if before.get(k) != asked.get(k))
            if differ == ["keep"] and (asked.get("keep") or 0) > (before.get("keep") or math.inf):
                _replace(
                    run, json.dumps(asked, indent=1) + "\n"
                )  # more of the same ranking: those so far stay the first
            elif differ:
                raise OtherRequestError(
                    f"{self.folder} holds the results of another request (other {', '.join(differ)}); give another "
                    "folder, or the same request to go on with it"
                )
        elif not is_vacant(self.folder, LOCK, HOLDER):
            raise OtherRequestError(f"{self.folder} is not empty and holds no screen; give another folder")
        else:
            _replace(run, json.dumps(asked, indent=1) + "\n")
        state: dict[str, Any] = {}
        if journal.exists():
            state = read_json(journal)
            _check_journal(journal, state, set(self._headers))
        else:
            self._refuse_orphans()
        self.progress = Progress(state.get("done", 0), state.get("failed", 0), state.get("done", 0))
        self.complete = state.get("complete", False)
        for name, header in self._headers.items():
            path = self.folder / name
            stream = path.open("r+b" if path.exists() else "x+b")
            self._files[name] = stream
            if state:
                whole = state["complete"]
                self._digests[name] = _verified(
                    path, stream, state["sizes"][name], state["digests"][name], whole=whole
                )
            else:
                self._digests[name] = hashlib.blake2b(digest_size=16)
                stream.truncate(0)
                self._write(name, header)
        if not state:
            self._record(self.progress)

    def _refuse_orphans(self) -> None:
        """Refuse results without a journal, which is written before the first block."""
        for name, header in self._headers.items():
            path = self.folder / name
            if path.exists() and path.stat().st_size > len(header):
                raise ScreeningError(
                    f"{self.folder / JOURNAL} is gone, and {path} holds results; restore it, or begin again in "
                    "another folder"
                )

    def add(self, block: Block) -> None:
        """Write a block, then the journal: only then does it count.

        Raises:
            ScreeningError: The folder, or a file in it, was moved, replaced or removed since the screen began.
            OSError: The file system refuses.
        """
        if self.complete:  # the input has grown: what a kill leaves of this block is no longer somebody's edit
            self._record(self.progress)
        self._write(self.structures.name, block.structures)
        self._write(TABLE, _csv(block.rows, COLUMNS))
        self._write(FAILURES, _csv(block.failures, FAILURE_COLUMNS))
        pairs = zip(block.names, block.digests, strict=True)
        self._write(INPUTS, _csv([dict(zip(INPUT_COLUMNS, pair, strict=True)) for pair in pairs], INPUT_COLUMNS))
        done = self.progress.done + len(block.names)
        failed = self.progress.failed + len(block.failures)
        self._record(Progress(done, failed))
        self.progress.done, self.progress.failed = done, failed

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Yield names and digests of the structures in the results, failures included."""
        with (self.folder / INPUTS).open(newline="", encoding="utf-8") as stream:
            rows = csv.reader(stream, strict=True)
            next(rows)
            yield from ((name, digest) for name, digest in islice(rows, self.progress.done))

    def _write(self, name: str, content: bytes) -> None:
        """Append to a file of the results, and wait until it is on the disk."""
        stream = self._files[name]
        try:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        except OSError as error:
            error.filename = error.filename or str(self.folder / name)
            raise
        self._digests[name].update(content)

    def recorded(self) -> int:
        """Return how many structures count by the journal, which an interruption may leave a block ahead."""
        return int(read_json(self.folder / JOURNAL)["done"])

    def finish(self) -> None:
        """Record that all inputs are in the results: anything after them was not written by this screen."""
        self._record(self.progress, complete=True)

    def _record(self, progress: Progress, *, complete: bool = False) -> None:
        """Write the journal, only ever in the folder in which this screen began."""
        self._check()
        self.complete = complete
        state = {
            "done": progress.done,
            "failed": progress.failed,
            "complete": complete,
            "sizes": {name: stream.tell() for name, stream in self._files.items()},
            "digests": {name: digest.hexdigest() for name, digest in self._digests.items()},
        }
        _replace(self.folder / JOURNAL, json.dumps(state) + "\n")
        self._check()

    def _check(self) -> None:
        self._place.check()
        for name, stream in self._files.items():
            self._place.check_file(stream, name)

    def _close_files(self) -> None:
        for stream in self._files.values():
            with suppress(OSError):  # what a full disk had no room for does not count
                stream.close()

    def close(self) -> None:
        """Close the files and release the folder."""
        self._held.close()


_TABLES: dict[str, tuple[str, ...]] = {TABLE: COLUMNS, FAILURES: FAILURE_COLUMNS, INPUTS: INPUT_COLUMNS}
"""The tables that grow block by block, as the structures do, and their columns."""


def _verified(path: Path, stream: BinaryIO, size: int, digest: str, *, whole: bool) -> Any:
    """Check the part of a file that the journal records, truncate the rest, and return the running digest.

    Args:
        path: The file.
        stream: The same file, open.
        size: Number of bytes that the journal records.
        digest: Their digest.
        whole: Whether the screen was complete, so that nothing may follow.

    Raises:
        ScreeningError: The file is not what the screen wrote.
    """
    found, left = hashlib.blake2b(digest_size=16), size
    while left and (part := stream.read(min(left, 1 << 20))):
        found.update(part)
        left -= len(part)
    if left:
        raise ScreeningError(
            f"{path} is shorter than its journal says: it was changed; begin again in another folder"
        )
    if found.hexdigest() != digest:
        raise ScreeningError(
            f"{path} was changed since this screen wrote it; put it back as it was, or begin again in another folder"
        )
    if whole and stream.read(1):
        raise ScreeningError(
            f"{path} is longer than this complete screen wrote it; put it back as it was, or begin again in another "
            "folder"
        )
    stream.seek(size)
    stream.truncate(size)  # what a killed run wrote after its last journal entry
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a screen.

    Raises:
        ScreeningError: The file does not hold one.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 are a ValueError
        raise ScreeningError(f"{path}: damaged ({error}); restore it, or begin again in another folder") from error
    if not isinstance(values, dict):
        raise ScreeningError(
            f"{path}: damaged (expected an object, found {type(values).__name__}); restore it, or begin again in "
            "another folder"
        )
    return values


def _check_journal(path: Path, state: dict[str, Any], files: set[str]) -> None:
    """Refuse a journal that was not written by a screen."""
    counts = [state.get("done"), state.get("failed")]
    sizes, digests = state.get("sizes"), state.get("digests")
    named = all(isinstance(values, dict) and set(values) == files for values in (sizes, digests))
    counts += list(sizes.values()) if isinstance(sizes, dict) else [None]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in counts)
    whole = whole and isinstance(state.get("complete"), bool)
    if not (named and whole and state["failed"] <= state["done"]):
        raise ScreeningError(
            f"{path}: damaged (expected done, failed, complete, and the sizes and digests of {', '.join(files)}); "
            "restore it, or begin again in another folder"
        )


def read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Read a table of a screen, with its numbers as floats.

    Args:
        path: The file.
        columns: Columns that it must have.

    Raises:
        ScreeningError: There is no such file, or a screen did not write it.
    """
    if not path.exists():
        raise ScreeningError(f"{path}: no such file; expected a folder that `ase-definet screen` wrote")
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            if tuple(reader.fieldnames or ()) != columns:
                raise ScreeningError(f"{path}: damaged (its first line does not name the columns of a screen)")
            return [_checked_row(row) for row in reader]
    except (ValueError, TypeError, csv.Error) as error:
        if isinstance(error, ScreeningError):
            raise
        raise ScreeningError(f"{path}: damaged ({error}); restore it, or begin again in another folder") from error


def _checked_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with numbers for numbers, or raise a ValueError or TypeError."""
    out = {key: float(value) if key in NUMBERS and value else value for key, value in row.items()}
    if None in row or None in row.values():
        raise ValueError("a row has other columns than the first line")
    wrong = [key for key, value in out.items() if isinstance(value, float) and not math.isfinite(value)]
    if wrong:
        raise ValueError(f"{wrong[0]} is {row[wrong[0]]}, expected a finite number")
    if not isinstance(out["index"], float) or out["index"] != int(out["index"]):
        raise ValueError(f"index is {row['index']!r}, expected a whole number")
    return out


def screen(
    source: Iterable[Named],
    results: Results,
    settings: dict[str, Any],
    *,
    workers: int | None = 1,
    scheduler: str | None = None,
    block: int = BLOCK,
    progress: Callable[[Progress], object] = lambda _: None,
) -> Progress:
    """Relax all structures of a source that are not in the results yet.

    Args:
        source: Names and structures, in the same order every time.
        results: The folder of results.
        settings: As in :func:`relax_block`.
        workers: Number of processes on this machine (see :class:`~ase_definet.screening.cluster.Crew`); more than one
            need Dask. None for one for each core if there are many structures, and Dask.
        scheduler: Address of a Dask scheduler to use instead, ``tcp://...``.
        block: Number of structures that are relaxed and recorded together.
        progress: Called after every block.

    Returns:
        How many structures are in the results.

    Raises:
        ScreeningError: The source is not the one that the results began with, or Dask is needed and not installed.
    """
    stream = iter(source)
    _same_so_far(stream, results.inputs())
    tasks = _tasks(stream, results.progress.done, settings, block)
    if workers is None:
        workers, tasks = (1, tasks) if scheduler else _workers_for(tasks, settings)
    with _mapper(workers, scheduler, settings["device"]) as run_all:
        for finished in run_all(tasks):
            results.add(finished)
            progress(results.progress)
    results.finish()
    return results.progress


def _same_so_far(stream: Iterator[Named], before: Iterator[tuple[str, str]]) -> None:
    """Skip the inputs that are in the results already, and make sure that they have not changed.

    Raises:
        ScreeningError: They have.
    """
    for number, (name, digest) in enumerate(before, start=1):
        named, given = next(stream, (None, None))
        found = "nothing" if named is None else printable(named)
        was = f"structure {number} was {name}{' (unreadable)' if digest == UNREADABLE else ''}"
        if named is None or found != name:
            raise ScreeningError(
                f"{was} when this screen began, and is {found} now; give the same input in the same order, or screen "
                "into another folder"
            )
        now = digest_of(given)
        if now != digest:
            change = {UNREADABLE: "cannot be read", digest: "is the same"}.get(now, "holds another structure")
            raise ScreeningError(
                f"{was} when this screen began, and {change} now: the input was changed; put back what it was, or "
                "screen into another folder"
            )


def check_settings(settings: dict[str, Any], *, workers: int | None = 1, scheduler: str | None = None) -> None:
    """Make sure that a screen can run, before its folder is created.

    Args:
        settings: As in :func:`relax_block`.
        workers: As in :func:`screen`.
        scheduler: As in :func:`screen`; its workers may have devices that this machine lacks.

    Raises:
        CheckpointError: The weights cannot be read.
        DeviceError: The device is not available.
        CalculatorError: There is no such calculator here.
        ScreeningError: Dask is needed and not installed.
        DefiNetError: ``max_strain`` is not positive.
    """
    if workers in {None, 1} and scheduler is None:
        _relaxer(settings)  # the one that relaxes
        return
    check_dask()
    if scheduler is None:
        checked_device(settings["device"])
        CalculatorStage.of(**{"calculator": None} | settings.get("calculation", {}))


def check_parquet() -> None:
    """Make sure, before a screen, that its table can be written as Parquet.

    Raises:
        ScreeningError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ScreeningError("Parquet needs pyarrow: pip install 'ase-definet[screen]'") from error


def check_dask() -> None:
    """Make sure that Dask is there for several workers.

    Raises:
        ScreeningError: Dask is not installed.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ScreeningError("several workers need Dask: pip install 'ase-definet[screen]'") from error


def write_parquet(folder: Path) -> Path:
    """Write the table of a screen as ``table.parquet`` beside ``table.csv``, block by block.

    Args:
        folder: The results of the screen.

    Returns:
        The file.

    Raises:
        ScreeningError: pyarrow is not installed, or there is no table.
    """
    check_parquet()
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    source, target = folder / TABLE, folder / PARQUET
    if not source.exists():
        raise ScreeningError(f"{source}: no such file; expected a folder that `ase-definet screen` wrote")
    whole = dict.fromkeys(("index", "sites", "multiplicity", "charge", "spin_multiplicity", "steps"), pa.int64())
    types = {name: whole.get(name, pa.float64()) if name in NUMBERS else pa.string() for name in COLUMNS}
    schema = pa.schema(list(types.items()))
    convert = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    try:
        with (
            replacing(target) as fresh,
            pa.csv.open_csv(source, convert_options=convert) as reader,
            pa.parquet.ParquetWriter(fresh, schema) as writer,
        ):
            for batch in reader:
                writer.write_batch(batch)
    except (pa.ArrowException, ValueError) as error:
        raise ScreeningError(f"{source}: damaged ({error}); restore it, or begin again in another folder") from error
    return target


def _tasks(stream: Iterator[Named], first: int, settings: dict[str, Any], block: int) -> Iterator[tuple[Any, ...]]:
    broken: ScreeningError | None = None
    while broken is None:
        part: list[Named] = []
        try:
            for one in islice(stream, block):
                part.append(one)  # noqa: PERF402 - what came before an error counts
        except ScreeningError as error:
            broken = error
        if not part:
            break
        names, structures = zip(*part, strict=True)
        yield names, list(structures), first, settings
        first += len(part)
    if broken is not None:
        raise broken


@contextmanager
def _mapper(workers: int, scheduler: str | None, device: str) -> Iterator[Callable[[Iterator[Any]], Iterator[Block]]]:
    """Yield a function that runs tasks and returns their results in order."""
    if workers == 1 and scheduler is None:
        yield lambda tasks: (relax_block(*task) for task in tasks)
        return
    check_dask()
    from distributed import Client

    from ase_definet.screening.cluster import Crew, local_client, on_cluster

    if scheduler is not None:
        with Client(scheduler) as client:
            yield lambda tasks: on_cluster(client, tasks)
        return
    crew = Crew.of(device, workers)
    with local_client(crew) as client:
        yield lambda tasks: on_cluster(client, tasks, crew)


def _workers_for(tasks: Iterator[tuple[Any, ...]], settings: dict[str, Any]) -> tuple[int, Iterator[tuple[Any, ...]]]:
    """Return how many processes pay for some tasks, and the tasks: one for few structures, else one for each core."""
    from ase_definet.screening.cluster import MOST_WORKERS

    most = min(MOST_WORKERS, torch.get_num_threads())
    if most == 1 or settings.get("calculation") or importlib.util.find_spec("distributed") is None:
        return 1, tasks
    head: list[tuple[Any, ...]] = []
    try:
        for task in tasks:
            head.append(task)
            if sum(len(names) for names, *_ in head) > FEW:
                return most, chain(head, tasks)
    except ScreeningError as error:  # the tasks have ended; what came before it counts
        return 1, _then(head, error)
    return 1, iter(head)


def _then(tasks: list[tuple[Any, ...]], error: ScreeningError) -> Iterator[tuple[Any, ...]]:
    yield from tasks
    raise error


def _csv(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> bytes:
    out = io.StringIO(newline="")
    csv.DictWriter(out, columns, restval="").writerows(rows)
    return out.getvalue().encode()


def _replace(path: Path, text: str) -> None:
    """Replace a small file atomically."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
