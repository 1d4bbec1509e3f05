"""Count ionic steps in what VASP and ASE leave behind, and compare a control with a prediction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ase.io import read
from ase.io.formats import UnknownFileTypeError
from numpy.typing import NDArray

from ase_definet.errors import StructureError

Array: TypeAlias = NDArray[Any]

CANDIDATES = ("vasprun.xml", "vasprun.xml.gz", "OUTCAR", "OUTCAR.gz", "OSZICAR")
"""What is looked for in a folder, the most telling first."""
COMPARED = ("ENCUT", "EDIFF", "EDIFFG", "IBRION", "ISPIN", "ISMEAR", "SIGMA", "ISIF", "NKPTS", "NELECT", "PREC")
"""Settings in which a control and a prediction must not differ."""

_OUTCAR_TAG = re.compile(r"^\s+(ENCUT|EDIFF|EDIFFG|IBRION|ISPIN|ISMEAR|ISIF|NELECT|PREC)\s*=\s*(\S+)")
_OUTCAR_SIGMA = re.compile(r"SIGMA\s*=\s*([0-9.]+)")
_OUTCAR_KPOINTS = re.compile(r"\bNKPTS\s*=\s*(\d+)")
_OSZICAR_STEP = re.compile(r"^\s*\d+\s+F=\s*(\S+)")
_REACHED = "reached required accuracy - stopping structural energy minimisation"
_ENDED = "General timing and accounting informations for this job"


@dataclass(frozen=True, eq=False)
class IonicSteps:
    """The course of one relaxation.

    Attributes:
        path: The file it was read from.
        formula: Composition, empty where the file does not tell.
        energies: Energy at each ionic step, shape ``(n,)``, in eV.
        fmax: Largest force at each step, shape ``(n,)``, in eV/Å; empty where the file does not tell.
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
    energies = [float(m[1]) for line in path.read_text().splitlines() if (m := _OSZICAR_STEP.match(line))]
    if not energies:
        raise StructureError(f"{path}: no complete ionic step")
    return IonicSteps(path, "", np.array(energies), np.array([]), None, {}, ("OSZICAR tells no forces",))


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
    notes = () if _ENDED in text else ("the file is cut off: the run was killed or still goes on",)
    images = _images(path, "vasp-out")
    energies, fmax, formula = _course(images, path)
    return IonicSteps(path, formula, energies, fmax, _REACHED in text, settings, notes)


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
    return IonicSteps(
        path,
        run.final_structure.to_ase_atoms().get_chemical_formula(),
        np.array([float(step["e_0_energy"]) for step in steps]),
        np.array([np.linalg.norm(step["forces"], axis=1).max() for step in steps]),
        bool(run.converged_ionic),
        settings,
    )


def _from_images(path: Path) -> IonicSteps:
    energies, fmax, formula = _course(_images(path, None), path)
    return IonicSteps(path, formula, energies, fmax, None, {})


def _text_of(path: Path) -> str:
    import gzip  # noqa: PLC0415

    if path.suffix == ".gz":
        with gzip.open(path, "rt") as stream:
            return stream.read()
    return path.read_text(errors="replace")


def _images(path: Path, fmt: str | None) -> list[Any]:
    try:
        images = read(path, ":", format=fmt)
    except (UnknownFileTypeError, OSError) as error:
        raise StructureError(f"{path}: ASE cannot read it: {error}") from error
    except Exception as error:  # a file cut off in its first step raises anything
        raise StructureError(f"{path}: no complete ionic step, or cut off ({type(error).__name__})") from error
    return list(images)


def _course(images: list[Any], path: Path) -> tuple[Array, Array, str]:
    images = [image for image in images if image.calc is not None and "forces" in image.calc.results]
    if not images:
        raise StructureError(f"{path}: no ionic step with energy and forces")
    energies = np.array([image.get_potential_energy() for image in images])
    fmax = np.array([np.linalg.norm(image.get_forces(), axis=1).max() for image in images])
    return energies, fmax, images[0].get_chemical_formula()
