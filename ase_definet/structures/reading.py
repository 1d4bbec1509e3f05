"""Read structures from files: all formats of ASE, and some that its readers misread or do not support.

Files may be compressed, in any Unicode encoding, and have any of the usual names.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from ase_definet.errors import DefiNetWarning, StructureError
from ase_definet.structures.conversion import (
    OCCUPANCY,
    SITE_LABEL,
    WHOLE,
    from_structure,
    refuse_partial,
    with_moments,
)
from ase_definet.structures.extxyz import read_frames
from ase_definet.structures.poscar import looks_like_poscar, normalised

if TYPE_CHECKING:
    from ase import Atoms
    from ase.io.cif import CIFBlock

LARGEST_EXPANDED = 512 * 2**20
"""Largest uncompressed size of a compressed file, in bytes."""

LARGEST_POSCAR = 128 * 2**20
"""Largest size of a POSCAR, a million atoms or more, in bytes."""

COMPRESSED = frozenset({".gz", ".bz2", ".xz"})
"""Suffixes of compressed files, lower case."""

_IN_MEMORY = 16 * 2**20
_CHUNK = 2**20
_PEEK = 2**16
_TAR_MAGIC = slice(257, 262)
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "compressed with zstd", b"\x1f\x9d": "compressed"}
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

# suffixes that determine the format, whatever else the name contains: CONFIG_7.vasp, POSCAR_1.cif
_BY_SUFFIX = {
    ".cif": "cif",
    ".mcif": "mcif",
    ".vasp": "vasp",
    ".poscar": "vasp",
    ".contcar": "vasp",
    ".extxyz": "extxyz",
    ".xyz": "extxyz",
    ".json": "json",
    ".db": "db",
    ".traj": "traj",
    ".xsf": "xsf",
}
_DATABASES = frozenset({"db", "json"})
_POSCAR_NAME = re.compile(r"(?i)poscar|contcar|centcar")
_OF_VASP = {
    "INCAR": "settings",
    "POTCAR": "pseudopotentials",
    "KPOINTS": "k-points",
    "OSZICAR": "energies",
    "WAVECAR": "wave functions",
    "CHGCAR": "a charge density",
    "CHG": "a charge density",
    "LOCPOT": "a potential",
    "PARCHG": "a charge density",
    "ELFCAR": "a localisation function",
    "DOSCAR": "a density of states",
    "EIGENVAL": "eigenvalues",
    "PROCAR": "projections",
    "IBZKPT": "k-points",
}
_SYMOPS = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
_MAGNETIC = re.compile(r"(?mi)^[ \t]*_(?:atom_site_moment|space_group_symop_magn)")
_TWICE = re.compile(r"scaled_positions (\d+) and (\d+) are equivalent")
_SPIN = re.compile(r",spin=([-+.\deE]+)$")


def read_structure(path: str | Path, index: int = -1) -> Atoms:
    """Read one structure from a file.

    Args:
        path: A file of any format that ASE reads, a JSON file of pymatgen or a magnetic CIF.
        index: Which one of several; the last by default.

    Returns:
        The structure; magnetic moments in the file become initial moments, in μB.

    Raises:
        StructureError: The file does not exist, contains no complete structure, or has partially occupied sites.
    """
    path = Path(path)
    with _reasons(path), closing(_frames(path, slice(index, index + 1 or None))) as frames:
        atoms = next(frames, None)
    if atoms is None or len(atoms) == 0:
        raise StructureError(f"{path}: holds no atoms")
    try:
        refuse_partial(atoms)
    except StructureError as error:
        raise StructureError(f"{path}: {error}") from error
    return atoms


def read_structures(path: str | Path) -> Iterator[Atoms]:
    """Read all structures of a file, one after the other.

    Partially occupied sites are left to :func:`~ase_definet.structures.conversion.as_atoms`, so that one structure
    does not affect the others.

    Raises:
        StructureError: As in :func:`read_structure`, after the structures that could be read.
    """
    path = Path(path)
    with _reasons(path):
        yield from _frames(path, slice(None))


def read_each(path: str | Path) -> Iterator[Atoms | StructureError]:
    """Read all structures of a file, in order and in little memory; those that cannot be read are yielded as errors.

    In extended XYZ, reading continues after a broken structure; in all other formats it is the last item.
    """
    path = Path(path)
    try:
        if structure_format(path) != "extxyz":
            yield from read_structures(path)
            return
        with _reasons(path), _expanded(path) as stream:
            head = stream.read(_PEEK)
            stream.seek(0)
            _refuse_binary(head, "extxyz", path)
            text = io.TextIOWrapper(stream, encoding=_encoding(head), errors="replace")
            try:
                for found in read_frames(text):
                    wrong = isinstance(found, StructureError)
                    yield StructureError(f"{path}: {found}") if wrong else with_moments(found)
            finally:
                text.detach()
    except StructureError as error:
        yield error


def format_by_name(path: str | Path) -> str | None:
    """Return ASE's name of the format implied by a file name, None if there is none."""
    name = Path(Path(path).name)
    if name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    known = _BY_SUFFIX.get(name.suffix.lower())
    return "vasp" if known is None and _POSCAR_NAME.search(name.name) else known


def structure_format(path: str | Path) -> str:
    """Return ASE's name of the format of an existing file; ``mcif`` for magnetic CIF, which ASE lacks.

    The format is determined from the suffix, then by ASE, then from the first lines.

    Raises:
        StructureError: It is not a structure file.
    """
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats  # noqa: PLC0415

    path = _existing(path)
    known = format_by_name(path)
    if known is not None:
        return known
    name = Path(path.name)
    if name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    if name.stem.upper() in _OF_VASP:
        what = _OF_VASP[name.stem.upper()]
        raise StructureError(
            f"{path}: holds {what} of VASP, no structure: give the POSCAR or CONTCAR that belongs to it"
        )
    with _expanded(path) as stream:
        head = stream.read(_PEEK)
    try:
        # a neutral name that ASE does not take for a database address or an output
        found = str(filetype(_Named(head, f"./{name.name}")))
    except UnknownFileTypeError:
        found = ""
    if found in ioformats and ioformats[found].can_read:
        return found
    return _format_of(_text(head), path)


class _Named(io.BytesIO):
    """Binary stream with the name of a file."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def _format_of(text: str, path: Path) -> str:
    """Return the format of a file whose name does not imply one."""
    lines = text.splitlines()
    if looks_like_poscar(text):
        return "vasp"
    if re.search(r"(?m)^data_\S*[ \t]*$", text) and "_cell_length_a" in text:
        return "cif"
    if len(lines) > 1 and lines[0].strip().isdigit() and "Lattice=" in lines[1]:
        return "extxyz"
    raise StructureError(
        f"{path}: cannot be read as a structure: it is {_looks_like(path, text)}; name a structure like its format "
        "(x.cif, x.vasp, POSCAR)"
    )


def _looks_like(path: Path, text: str) -> str:
    if not text.strip():
        return "blank"
    if path.suffix.lower() == ".py":
        return "a Python script"
    if "\x00" in text or sum(not c.isprintable() and not c.isspace() for c in text) > len(text) // 10:
        return "a binary file of a format that is not known"
    first = (text.strip().splitlines() or [""])[0][:60]
    return f"of no format that ASE knows (it begins with {first!r})"


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        inside = [path / name for name in ("CONTCAR", "POSCAR") if (path / name).is_file()]
        such = f", such as {inside[0]}" if inside else ""
        raise StructureError(f"{path}: no such file, only a folder of that name: give a file in it{such}")
    if not path.is_file():
        raise StructureError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise StructureError(f"{path}: the file is empty and cannot be read as a structure")
    return path


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Convert any exception of a reader to a one-line error that names the file."""
    try:
        yield
    except (StructureError, DefiNetWarning, GeneratorExit):
        raise
    except EOFError as error:
        raise StructureError(f"{path}: the compressed file is cut off: copy it again") from error
    except PermissionError as error:
        raise StructureError(f"{path}: no permission to read it") from error
    except Exception as error:  # ASE's readers raise various exceptions
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        if isinstance(error, KeyError) and re.fullmatch(r"'[A-Z][a-z]{0,2}'", reason):  # of ASE's table of elements
            raise StructureError(f"{path}: {reason} is no element: correct the symbol, or remove the site") from error
        raise StructureError(
            f"{path}: cannot be read as a structure ({type(error).__name__}: {reason}); "
            "check that the file is complete and its name tells the format"
        ) from error


# Bytes and text


@contextmanager
def _expanded(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed if it is compressed, whatever its name.

    Raises:
        StructureError: It is an archive, or expands to more than :data:`LARGEST_EXPANDED`.
    """
    with path.open("rb") as stream:
        start = stream.read(_TAR_MAGIC.stop)
        opener = next((found for magic, found in _OPENERS.items() if start.startswith(magic)), None)
        archive = next((what for magic, what in _ARCHIVES.items() if start.startswith(magic)), None)
        if start[_TAR_MAGIC] == b"ustar":
            archive = "a tar archive"
        if archive:
            raise StructureError(f"{path}: is {archive}: unpack it, and give the structure in it")
        stream.seek(0)
        if opener is None:
            yield stream
            return
        with (
            cast("IO[bytes]", opener(stream, "rb")) as packed,
            tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as fresh,
        ):
            size = 0
            while chunk := packed.read(_CHUNK):
                if not size and chunk[_TAR_MAGIC] == b"ustar":
                    raise StructureError(f"{path}: is a tar archive: unpack it, and give the structure in it")
                size += len(chunk)
                if size > LARGEST_EXPANDED:
                    raise StructureError(
                        f"{path}: expands to more than {LARGEST_EXPANDED // 2**20} MiB: if it really is a structure, "
                        "unpack it first"
                    )
                fresh.write(chunk)
            fresh.seek(0)
            yield cast("IO[bytes]", fresh)


def _encoding(head: bytes) -> str:
    """Return the encoding of a text from its first bytes: byte order marks and UTF-16, or Latin-1 (old files)."""
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if marked is not None:
        return marked
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        cut_off = error.start > len(head) - 4 and error.reason == "unexpected end of data"
        return "utf-8" if cut_off else "latin-1"
    return "utf-8"


def _text(content: bytes) -> str:
    text = content.decode(_encoding(content), errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_text(path: Path, fmt: str, limit: int | None = None) -> str:
    """Read a file as text.

    Raises:
        StructureError: It is not text, or longer than the limit, in bytes.
    """
    with _expanded(path) as stream:
        content = stream.read() if limit is None else stream.read(limit + 1)
    if limit is not None and len(content) > limit:
        raise StructureError(f"{path}: is larger than {limit // 2**20} MiB: expected one structure ({fmt})")
    _refuse_binary(content[:_PEEK], fmt, path)
    return _text(content)


def _refuse_binary(head: bytes, fmt: str, path: Path) -> None:
    if b"\x00" in head and not _encoding(head).startswith("utf-16"):
        raise StructureError(f"{path}: cannot be read: expected text of the format {fmt}, found a binary file")


# Structures


def _frames(path: Path, index: slice) -> Generator[Atoms, None, None]:
    """Yield all structures of a file, or one."""
    fmt = structure_format(path)
    if fmt == "vasp":
        yield from [_read_poscar(path)][index]
    elif fmt in {"cif", "mcif"}:
        yield from _read_cif(path, index)
    elif fmt == "json" and (structure := _pymatgen_json(path)) is not None:
        yield from [structure][index]
    else:
        yield from map(with_moments, _read_with_ase(path, fmt, index))


def _read_with_ase(path: Path, fmt: str, index: slice) -> Iterator[Atoms]:
    from ase.io import iread  # noqa: PLC0415
    from ase.io.formats import ioformats  # noqa: PLC0415

    form = ioformats[fmt]
    if not form.can_read:
        raise StructureError(f"{path}: ASE reads no structures from files of the format {fmt}")
    with _expanded(path) as stream:
        # ASE determines the format from the name
        packed = not isinstance(stream, io.BufferedReader) or path.suffix.lower() in COMPRESSED
        head = b"" if form.isbinary else stream.read(_PEEK)
        stream.seek(0)
        encoding = _encoding(head)
        if form.acceptsfd and not form.isbinary:
            _refuse_binary(head, fmt, path)
        if not form.acceptsfd or (not packed and (form.isbinary or encoding == "utf-8")):
            if packed:
                raise StructureError(f"{path}: files of the format {fmt} can be read unpacked only: unpack it first")
            if fmt in _DATABASES:
                yield from _rows(str(path.absolute()), index, fmt)
                return
            yield from iread(str(path.absolute()), index, format=fmt, do_not_split_by_at_sign=True)
        elif form.isbinary:
            yield from iread(stream, index, format=fmt)
        else:
            text = io.TextIOWrapper(stream, encoding=encoding, errors="replace")
            try:
                yield from _rows(text, index, fmt) if fmt in _DATABASES else iread(text, index, format=fmt)
            finally:
                text.detach()


def _rows(source: str | IO[str], index: slice, fmt: str) -> Iterator[Atoms]:
    """Yield the structures of an ASE database, with its key-value pairs, which ASE's reader drops, as info.

    Texts and numbers in the data of a row are included: ASE allows no values that are texts which look like numbers.
    """
    from ase.db import connect  # noqa: PLC0415

    with connect(source, type=fmt, serial=True, use_lock_file=False) as database:
        start, stop, _ = index.indices(database.count())
        if start >= stop:
            return
        for row in database.select(offset=start, limit=stop - start):
            atoms: Atoms = row.toatoms()
            data = row.data if isinstance(row.data, Mapping) else {}
            plain = {key: value for key, value in data.items() if isinstance(value, str | int | float)}
            atoms.info = plain | row.key_value_pairs | atoms.info
            yield atoms


def _read_poscar(path: Path) -> Atoms:
    from ase.io import read  # noqa: PLC0415

    poscar = normalised(_read_text(path, "vasp", LARGEST_POSCAR), path)
    atoms: Atoms = read(io.StringIO(poscar.text), format="vasp")
    if poscar.spins is not None:
        atoms.set_initial_magnetic_moments(poscar.spins)
    return atoms


def _read_cif(path: Path, index: slice) -> Iterator[Atoms]:
    from ase.io.cif import parse_cif  # noqa: PLC0415

    text = _read_text(path, "CIF")
    if _MAGNETIC.search(text):
        yield from _read_magnetic(text, path)[index]
        return
    # ASE decodes a CIF as Latin-1
    parsed = parse_cif(io.BytesIO(text.encode("latin-1", errors="replace")))
    try:
        blocks = [block for block in parsed if _tidied(block).has_structure()]
    except AssertionError as error:  # what ASE raises where a block should begin
        first = (text.strip().splitlines() or [""])[0][:60]
        raise StructureError(f"{path}: cannot be read: expected a CIF, found {first!r}") from error
    if not blocks:
        raise StructureError(f"{path}: holds no structure: no atom sites with symbols and coordinates")
    for block in blocks[index]:
        yield _atoms_of_block(block, path)


def _atoms_of_block(block: CIFBlock, path: Path) -> Atoms:
    """Return the Atoms of a CIF block, with occupancies and labels if sites are partially occupied."""
    tags: dict[str, Any] = dict(block)
    kinds = _column(tags, "_atom_site_type_symbol")
    labels = _column(tags, "_atom_site_label") or kinds
    spins = [_SPIN.search(str(kind)) for kind in kinds]
    shares = np.array([_occupancy(value) for value in _column(tags, "_atom_site_occupancy") or [1.0] * len(labels)])
    if "?" in _column(tags, "_atom_site_occupancy"):
        unknown = [str(label) for label, v in zip(labels, tags["_atom_site_occupancy"], strict=True) if v == "?"]
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        text = f"{path}: occupancies given as unknown were taken as 1: site {unknown[0]}{more}"
        warnings.warn(text, DefiNetWarning, stacklevel=2)
    block = _tidied(block)
    if not (np.abs(shares - 1) <= WHOLE).all():
        atoms: Atoms = block.get_unsymmetrized_structure()
        atoms.set_array(OCCUPANCY, shares)
        atoms.set_array(SITE_LABEL, np.array([str(label) for label in labels]))
        return atoms
    if not _lists_all_sites(block):
        atoms = _with_equivalent_sites(block, labels, path)
        if any(spins):
            text = f"{path}: the spins of its symbols were left out: they do not say those of equivalent atoms"
            warnings.warn(text, DefiNetWarning, stacklevel=2)
        return atoms
    # without ASE's search for equivalent sites, quadratic in the atoms
    atoms = block.get_unsymmetrized_structure()
    atoms.pbc = True
    if any(spins):
        atoms.set_initial_magnetic_moments([float(found[1]) if found else 0.0 for found in spins])
    return atoms


def _tidied(block: CIFBlock) -> CIFBlock:
    """Return a block with symbols that ASE supports, and without occupancies."""
    from ase.io.cif import CIFBlock  # noqa: PLC0415

    tags: dict[str, Any] = {name: value for name, value in block.items() if name != "_atom_site_occupancy"}
    if kinds := _column(tags, "_atom_site_type_symbol"):
        tags["_atom_site_type_symbol"] = [_symbol(kind) for kind in kinds]
    return CIFBlock(block.name, tags)


def _with_equivalent_sites(block: CIFBlock, labels: list[Any], path: Path) -> Atoms:
    """Apply the symmetry of a block. ASE keeps only one of several sites at one position, whatever their elements."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        atoms: Atoms = block.get_atoms()
    symbols = block.get_symbols()
    for warning in said:
        twice = _TWICE.search(str(warning.message))
        if twice is None:
            warnings.warn(warning.message, warning.category, stacklevel=2)
        elif symbols[a := int(twice[1])] != symbols[b := int(twice[2])]:
            raise StructureError(
                f"{path}: sites {labels[a]} ({symbols[a]}) and {labels[b]} ({symbols[b]}) share one place: remove one"
            )
    return atoms


def _column(tags: Mapping[str, Any], name: str) -> list[Any]:
    values = tags.get(name, [])
    return [str(v) if isinstance(v, str) else v for v in (values if isinstance(values, list) else [values])]


def _symbol(kind: object) -> object:
    """Return a type symbol in the form that ASE supports: ``SE`` would be sulphur, ``mo`` an error."""
    from ase.data import atomic_numbers  # noqa: PLC0415

    letters = re.match(r"[A-Za-z]+", str(kind))
    element = letters[0].capitalize() if letters else ""
    return element if element in atomic_numbers or element == "D" else kind


def _occupancy(value: object) -> float:
    """Return an occupancy; 1 by default, as in the CIF dictionary."""
    if value in {"?", "."}:
        return 1.0
    try:
        return float(re.sub(r"\(\d*\)$", "", str(value)))
    except ValueError:
        return float("nan")


def _lists_all_sites(block: CIFBlock) -> bool:
    """Whether a block has no symmetry except the identity."""
    operations: Any = next((block[key] for key in _SYMOPS if key in block), [])
    if isinstance(operations, str):
        operations = [operations]
    number = str(block.get("_symmetry_int_tables_number") or block.get("_space_group_it_number") or 0)
    return block.get_cell().rank > 0 and (number == "1" if not operations else len(operations) == 1)


def _read_magnetic(text: str, path: Path) -> list[Atoms]:
    """Read a magnetic CIF, whose moments and symmetry ASE ignores."""
    from pymatgen.io.cif import CifParser  # noqa: PLC0415

    with warnings.catch_warnings():  # of rounded coordinates and the like
        warnings.simplefilter("ignore")
        found = CifParser(io.StringIO(text), occupancy_tolerance=np.inf).parse_structures(primitive=False)
    return [_named(from_structure, structure, path) for structure in found]


def _named(convert: Any, structure: Any, path: Path) -> Atoms:
    """Convert a structure; errors name its file."""
    try:
        atoms: Atoms = convert(structure)
    except StructureError as error:
        raise StructureError(f"{path}: {error}") from error
    return atoms


def _pymatgen_json(path: Path) -> Atoms | None:
    """Return the structure of a pymatgen JSON file; None if it is an ASE database.

    Raises:
        StructureError: It is neither.
    """
    text = _read_text(path, "json")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise StructureError(f"{path}: is no complete JSON file ({error})") from error
    if isinstance(content, Mapping) and ("ids" in content or "1" in content):
        return None
    if isinstance(content, Mapping) and {"lattice", "sites"} <= content.keys():
        from pymatgen.core import Structure  # noqa: PLC0415

        with warnings.catch_warnings():  # of charges that its oxidation states do not sum to
            warnings.simplefilter("ignore")
            structure = Structure.from_dict(_harmless(content))
        return _named(from_structure, structure, path)
    if isinstance(content, Mapping):
        what = content.get("@class") or f"an object with the keys {', '.join(map(str, [*content][:5])) or '(none)'}"
    else:
        what = f"a {type(content).__name__}"
    raise StructureError(
        f"{path}: expected a database of ASE or a Structure of pymatgen, found {what}: read it with the package that "
        "wrote it and give the structure"
    )


def _harmless(content: Any) -> Any:
    """Return JSON that only references classes of pymatgen, because its decoder imports any module."""
    if isinstance(content, Mapping):
        own = str(content.get("@module", "pymatgen.")).startswith("pymatgen.")
        return {k: _harmless(v) for k, v in content.items() if own or not str(k).startswith("@")}
    return [_harmless(item) for item in content] if isinstance(content, list) else content
