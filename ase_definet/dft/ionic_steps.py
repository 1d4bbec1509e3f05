"""Count ionic steps in what VASP and ASE leave behind, and compare a control with a prediction."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms
from ase.io import read
from ase.io.formats import UnknownFileTypeError
from numpy.typing import NDArray

from ase_definet.errors import StructureError
from ase_definet.structures.constraints import free_forces, held_directions, hold

Array: TypeAlias = NDArray[Any]

CANDIDATES = ("vasprun.xml", "vasprun.xml.gz", "OUTCAR", "OUTCAR.gz", "OSZICAR")
"""What is looked for in a folder, the most telling first."""
POSITIONS = ("CONTCAR", "POSCAR")
"""Beside an OUTCAR, these tell which atoms are held fixed; the first that can be read does."""
COMPARED = ("ENCUT", "EDIFF", "EDIFFG", "IBRION", "ISPIN", "ISMEAR", "SIGMA", "ISIF", "NKPTS", "NELECT", "PREC")
"""Settings in which a control and a prediction must not differ."""

_OUTCAR_TAG = re.compile(r"^\s+(ENCUT|EDIFF|EDIFFG|IBRION|ISPIN|ISMEAR|ISIF|NELECT|PREC)\s*=\s*(\S+)")
_OUTCAR_SIGMA = re.compile(r"SIGMA\s*=\s*([0-9.]+)")
_OUTCAR_KPOINTS = re.compile(r"\bNKPTS\s*=\s*(\d+)")
_OSZICAR_STEP = re.compile(r"^\s*\d+\s.*\bF=\s*\S+\s+E0=\s*(\S+)")
_REACHED = "reached required accuracy - stopping structural energy minimisation"
_ENDED = "General timing and accounting informations for this job"


@dataclass(frozen=True, eq=False)
class IonicSteps:
    """The course of one relaxation.

    Attributes:
        path: The file it was read from.
        formula: Composition, empty where the file does not tell.
        energies: Energy at each ionic step, without the entropy of the smearing (VASP's E0), shape ``(n,)``, in eV.
        fmax: Largest force at each step along directions in which atoms may move, shape ``(n,)``, in eV/Å; empty
            where the file does not tell.
        converged: Whether it reached its own criterion; None where the file does not tell.
        settings: Of :data:`COMPARED`, as far as the file tells.
        notes: What is incomplete about the file.
    """

    path: Path
    formula: str
    energies: Array
    fmax: Array
    converged: bool | None
    settings: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Number of ionic steps: evaluations of the forces."""
        return len(self.energies)


def read_steps(path: Path) -> IonicSteps:
    """Read the ionic steps of a run.

    Args:
        path: An OUTCAR, vasprun.xml, OSZICAR or ASE trajectory, or a folder with one of the first three.

    Raises:
        StructureError: There is no such file, or no complete ionic step in it.
    """
    if path.is_dir():
        found = [path / name for name in CANDIDATES if (path / name).exists()]
        if not found:
            raise StructureError(f"{path}: expected one of {', '.join(CANDIDATES)}, found none of them")
        for candidate in found[:-1]:
            try:
                return read_steps(candidate)
            except StructureError:  # cut off, perhaps: the next may tell more
                continue
        path = found[-1]
    if not path.exists():
        raise StructureError(f"{path}: no such file")
    name = path.name.upper()
    if "OSZICAR" in name:
        return _from_oszicar(path)
    if "OUTCAR" in name:
        return _from_outcar(path)
    if "VASPRUN" in name or path.suffix == ".xml":
        return _from_vasprun(path)
    return _from_images(path)


def compare_settings(one: IonicSteps, other: IonicSteps) -> list[str]:
    """Name what keeps two runs from being compared.

    Args:
        one: A control.
        other: A prediction.
    """
    problems = []
    if one.formula and other.formula and one.formula != other.formula:
        problems.append(f"other composition: {one.formula} in {one.path}, {other.formula} in {other.path}")
    for key in COMPARED:
        first, second = one.settings.get(key), other.settings.get(key)
        if first is not None and second is not None and not _same(first, second):
            problems.append(f"{key} differs: {first} in {one.path}, {second} in {other.path}")
    return problems


def _same(first: str, second: str) -> bool:
    try:
        return bool(np.isclose(float(first), float(second), rtol=1e-6, atol=1e-12))
    except ValueError:
        return first.lower() == second.lower()


def _from_oszicar(path: Path) -> IonicSteps:
    energies = [_number(m[1]) for line in _text_of(path).splitlines() if (m := _OSZICAR_STEP.match(line))]
    if not energies:
        raise StructureError(f"{path}: no complete ionic step")
    return IonicSteps(path, "", np.array(energies), np.array([]), None, {}, ("OSZICAR tells no forces",))


def _number(text: str) -> float:
    """Return a number as Fortran prints it, NaN where the field was too narrow for it."""
    return float("nan") if "*" in text else float(text)


def _from_outcar(path: Path) -> IonicSteps:
    text = _text_of(path)
    settings: dict[str, str] = {}
    for line in text.splitlines():
        if found := _OUTCAR_TAG.match(line):
            settings.setdefault(found[1], found[2].rstrip(";"))
        if "SIGMA" in line and (found := _OUTCAR_SIGMA.search(line)):
            settings.setdefault("SIGMA", found[1])
        if "NKPTS" in line and (found := _OUTCAR_KPOINTS.search(line)):
            settings.setdefault("NKPTS", found[1])
    notes = [] if _ENDED in text else ["the file is cut off: the run was killed or still goes on"]
    stream = io.StringIO(text)
    stream.name = str(path / path.name)  # else ASE takes the constraints of any CONTCAR beside it, or fails on it
    images = _images(path, "vasp-out", stream)
    held, note = _held_beside(path, images[0])
    for image in images:
        hold(image, held)
    energies, fmax, formula = _course(images, path)
    return IonicSteps(path, formula, energies, fmax, _REACHED in text, settings, (*notes, *note))


def _held_beside(path: Path, atoms: Atoms) -> tuple[Array, list[str]]:
    """Return what selective dynamics holds in the run of an OUTCAR, and what to say where that is not known."""
    free = np.zeros((len(atoms), 3), dtype=bool)
    for name in POSITIONS:
        beside = path.with_name(name)
        if not beside.is_file() or beside.stat().st_size == 0:
            continue
        try:
            (found,) = _images(beside, "vasp")
        except StructureError:  # a CONTCAR that is being written
            continue
        if not np.array_equal(found.numbers, atoms.numbers):
            note = f"{beside} holds other atoms: those held fixed, if any, count in the largest force"
            return free, [note]
        return held_directions(found)[0], []
    return free, [f"no {' or '.join(POSITIONS)} beside it: atoms held fixed, if any, count in the largest force"]


def _from_vasprun(path: Path) -> IonicSteps:
    from pymatgen.io.vasp import Vasprun  # noqa: PLC0415 - slow to import

    try:
        run = Vasprun(
            str(path), parse_dos=False, parse_eigen=False, parse_potcar_file=False, exception_on_bad_xml=False
        )
    except Exception as error:  # parsers raise anything
        raise StructureError(
            f"{path}: cannot be read as vasprun.xml: not one, or cut off in its first steps; give the OUTCAR"
        ) from error
    steps = [step for step in run.ionic_steps if "forces" in step and step.get("e_0_energy") is not None]
    if not steps:
        raise StructureError(f"{path}: no complete ionic step")
    known = {**run.parameters, **run.incar}
    settings = {key: str(known[key]) for key in COMPARED if key in known}
    settings["NKPTS"] = str(len(run.actual_kpoints))
    atoms = Atoms(
        [site.specie.symbol for site in run.initial_structure],
        scaled_positions=run.initial_structure.frac_coords,
        cell=run.initial_structure.lattice.matrix,
        pbc=True,
    )
    hold(atoms, _held_in_vasprun(path, len(atoms)))
    return IonicSteps(
        path,
        atoms.get_chemical_formula(),
        np.array([_sigma_to_zero(step) for step in steps]),
        np.array([_largest(atoms, np.array(step["forces"], dtype=float)) for step in steps]),
        bool(run.converged_ionic),
        settings,
    )


def _held_in_vasprun(path: Path, n_atoms: int) -> Array:
    """Return which atoms a vasprun.xml holds along which cell vectors; it tells that of the first structure only."""
    from xml.etree import ElementTree as ET  # noqa: PLC0415 - the file was parsed before

    held = np.zeros((n_atoms, 3), dtype=bool)
    with _opened(path) as stream:
        for _, element in ET.iterparse(stream):  # noqa: S314 - as above
            if element.tag == "varray" and element.get("name") == "selective":
                return ~np.array([[flag.startswith("T") for flag in (row.text or "").split()] for row in element])
            if element.tag == "calculation" or (element.tag == "structure" and element.get("name") == "initialpos"):
                break
    return held


def _sigma_to_zero(step: Mapping[str, Any]) -> float:
    """Return E0 of an ionic step: where VASP writes it wrong, the last electronic step has what it differs by from F.

    References:
        https://www.vasp.at/forum/viewtopic.php?t=16942
    """
    electronic = step.get("electronic_steps") or [{}]
    free, last_free = step.get("e_fr_energy"), electronic[-1].get("e_fr_energy")
    last = electronic[-1].get("e_0_energy")
    if free is None or last_free is None or last is None:
        return float(step["e_0_energy"])
    return float(free) + float(last) - float(last_free)


def _from_images(path: Path) -> IonicSteps:
    energies, fmax, formula = _course(_images(path, None), path)
    return IonicSteps(path, formula, energies, fmax, None, {})


def _opened(path: Path) -> Any:
    """Open a file to read bytes, compressed or not."""
    import gzip  # noqa: PLC0415

    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _text_of(path: Path) -> str:
    with _opened(path) as stream:
        return str(stream.read().decode(errors="replace"))


def _images(path: Path, fmt: str | None, stream: io.StringIO | None = None) -> list[Any]:
    try:
        images = read(stream or path, ":", format=fmt, do_not_split_by_at_sign=True)
    except (UnknownFileTypeError, OSError) as error:
        raise StructureError(f"{path}: ASE cannot read it: {error}") from error
    except Exception as error:  # a file cut off in its first step raises anything
        raise StructureError(f"{path}: no complete ionic step, or cut off ({type(error).__name__})") from error
    if not images:
        raise StructureError(f"{path}: no complete ionic step")
    return list(images)


def _course(images: list[Any], path: Path) -> tuple[Array, Array, str]:
    images = [image for image in images if image.calc is not None and "forces" in image.calc.results]
    if not images:
        raise StructureError(f"{path}: no ionic step with energy and forces")
    energies = np.array([image.get_potential_energy() for image in images])
    fmax = np.array([_largest(image, image.get_forces(apply_constraint=False)) for image in images])
    return energies, fmax, images[0].get_chemical_formula()


def _largest(atoms: Atoms, forces: Array) -> float:
    return float(np.linalg.norm(free_forces(atoms, forces), axis=1).max())
