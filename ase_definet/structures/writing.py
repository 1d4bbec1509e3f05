"""Write a structure to a file and verify that it can be read back unchanged.

ASE writes some seventy formats. Some are inputs that need more than a structure, some are images, some lack the cell
or the elements. Written files are therefore read back and compared.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ase import Atoms

from ase_definet.errors import StructureError
from ase_definet.structures.cell import lacking_vectors
from ase_definet.structures.files import new_database

KEPT = 2e-3
"""Largest change of an atom or a cell vector on reading back, in Å."""

_DATABASES = frozenset({"db", "json"})
_REFUSED = {
    "espresso-in": "an input of Quantum ESPRESSO, which needs pseudopotentials: write it with --dft espresso FOLDER",
    **dict.fromkeys(("mysql", "mariadb", "postgresql"), "a database on a server, not a file"),
}
_EXTRA: dict[str, dict[str, Any]] = {"lammps-data": {"masses": True}}  # without masses, only types are stored


def check_format(path: Path, fmt: str) -> None:
    """Reject a format that cannot store a structure, before there is one to write.

    Args:
        path: The file to write.
        fmt: ASE's name of the format.

    Raises:
        StructureError: ASE cannot write it, or the written file does not store the structure.
    """
    problem = _problem(fmt)
    if problem:
        raise StructureError(f"{path}: {problem}; choose another format, such as -o x.vasp or x.extxyz")


def write_structure(path: Path, atoms: Atoms, fmt: str, *, name: Path | None = None) -> None:
    """Write a structure and verify that the file stores it.

    Args:
        path: The file to write.
        atoms: The structure.
        fmt: ASE's name of the format.
        name: What to call the file in errors; default is its path.

    Raises:
        StructureError: The format cannot store this structure.
        OSError: The file cannot be written.
    """
    from ase.io import write  # noqa: PLC0415 - slow to import

    name = name or path
    try:
        if fmt in _DATABASES:
            with new_database(path, fmt) as database:
                database.write(atoms, data=_plain(atoms.info))
            return
        write(str(path), atoms, format=fmt, **_EXTRA.get(fmt, {}))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # ASE's writers raise various exceptions
        cell = np.asarray(atoms.cell)
        if 0 < np.linalg.matrix_rank(cell) < len(cell):
            raise StructureError(
                f"{name}: {fmt} needs three independent cell vectors, {lacking_vectors(cell)}; or write extended "
                "XYZ, which needs none: -o NAME.extxyz"
            ) from error
        raise StructureError(
            f"{name}: ASE cannot write this structure as {fmt} ({type(error).__name__}: {error}); choose "
            "another format with -o"
        ) from error
    lost = _lost(path, atoms, fmt)
    if lost:
        raise StructureError(f"{name}: {lost}; choose another format with -o, such as x.vasp or x.extxyz")


def _plain(info: dict[Any, Any]) -> dict[str, Any]:
    """Return the info of a structure that a database can store as data; it has no field for info."""
    plain = {str(name): value for name, value in info.items() if np.isscalar(value)}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in plain.items()}


@cache
def _problem(fmt: str) -> str:
    """Return the known or tested fault of a format, empty if there is none."""
    from ase.io.formats import ioformats  # noqa: PLC0415 - slow to import

    if fmt not in ioformats or not ioformats[fmt].can_write:
        return f"ASE cannot write the format {fmt}"
    if fmt in _DATABASES:
        return ""
    if fmt in _REFUSED:
        return f"{fmt} is {_REFUSED[fmt]}"
    if not ioformats[fmt].can_read:
        return f"{fmt} is no format to keep a structure in: ASE writes it, but cannot read it back"
    return _tried(fmt, next(iter(ioformats[fmt].extensions), "dat"))


def _tried(fmt: str, suffix: str) -> str:
    """Write a small structure in a format and return what is lost, empty if nothing is."""
    # orthorhombic and sorted by element, because some formats store nothing else
    trial = Atoms("MoWS2", [[0, 0, 5], [3, 2.7, 5], [1.5, 0.9, 6.6], [0.1, 3.2, 3.4]], cell=[6, 5, 15], pbc=True)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            write_structure(Path(folder) / f"trial.{suffix}", trial, fmt, name=Path("trial"))
        except OSError:  # not for the format to answer for
            return ""
        except StructureError as error:
            cause = error.__cause__
            if isinstance(cause, ImportError):
                return f"{fmt} needs the package {cause.name or cause}, which is not installed"
            if cause is not None:
                return f"{fmt} needs more than a structure ({type(cause).__name__}: {cause})"
            return str(error).removeprefix("trial: ").split(";", maxsplit=1)[0]
    return ""


def _lost(path: Path, atoms: Atoms, fmt: str) -> str:
    """Return what a file lacks of the structure written to it, empty if nothing."""
    from ase.io import read  # noqa: PLC0415 - slow to import
    from ase.io.formats import ioformats  # noqa: PLC0415 - as above

    if not ioformats[fmt].can_read:
        return ""  # rejected before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(str(path), format=fmt, do_not_split_by_at_sign=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - ASE's readers raise various exceptions
        return f"ASE cannot read back what it wrote as {fmt} ({type(error).__name__}: {error})"
    if sorted(found.numbers) != sorted(atoms.numbers):
        return f"{fmt} does not hold the elements: read back it is {found.get_chemical_formula() or 'empty'}"
    if not np.array_equal(found.numbers, atoms.numbers):
        return f"{fmt} does not keep the order of the atoms"
    return _moved(found, atoms, fmt)


def _moved(found: Atoms, atoms: Atoms, fmt: str) -> str:
    """Describe how cell and positions differ after reading back."""
    cell = np.asarray(atoms.cell)
    if np.linalg.matrix_rank(cell) < len(cell):  # layers without a vector across: most formats complete the cell
        return ""
    if np.abs(found.cell.lengths() - atoms.cell.lengths()).max() > KEPT or not _same_angles(found, atoms):
        return f"{fmt} does not hold the cell"
    apart = found.get_scaled_positions(wrap=False) - atoms.get_scaled_positions(wrap=False)
    apart -= np.round(apart)
    furthest = float(np.linalg.norm(apart @ cell, axis=1).max())
    return f"{fmt} rounds positions to {furthest:.3f} Å" if furthest > KEPT else ""


def _same_angles(one: Atoms, other: Atoms) -> bool:
    """Return whether two cells have the same angles, to within :data:`KEPT` at the ends of the vectors."""
    apart = np.radians(np.abs(one.cell.angles() - other.cell.angles()))
    return bool(apart.max() * other.cell.lengths().max() < 2 * KEPT)
