"""Read the ionic steps of VASP."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray

from ase_definet.dft.run_output import IonicSteps, course, largest, opened, read_images, text_of
from ase_definet.errors import StructureError
from ase_definet.structures.constraints import held_directions, hold

Array: TypeAlias = NDArray[Any]

POSITIONS = ("CONTCAR", "POSCAR")
"""Beside an OUTCAR, these tell which atoms are held fixed; the first that can be read does."""
COMPARED = ("ENCUT", "EDIFF", "EDIFFG", "IBRION", "ISPIN", "ISMEAR", "SIGMA", "ISIF", "NKPTS", "NELECT", "PREC")
"""Settings in which a control and a prediction must not differ."""

_OUTCAR_TAG = re.compile(r"^\s+(ENCUT|EDIFF|EDIFFG|IBRION|ISPIN|ISMEAR|ISIF|NELECT|PREC)\s*=\s*(\S+)")
_OUTCAR_SIGMA = re.compile(r"SIGMA\s*=\s*([0-9.]+)")
_OUTCAR_KPOINTS = re.compile(r"\bNKPTS\s*=\s*(\d+)")
_OSZICAR_STEP = re.compile(r"^\s*\d+\s.*\bF=\s*\S+\s+E0=\s*(\S+)")
_REACHED = "reached required accuracy - stopping structural energy minimisation"
_ROUNDED = 5e-5
_ENDED = "General timing and accounting informations for this job"


def read_vasp_steps(path: Path) -> IonicSteps:
    """Read the ionic steps of an OUTCAR, vasprun.xml or OSZICAR.

    Raises:
        StructureError: There is no complete ionic step in it.
    """
    name = path.name.upper()
    if "OSZICAR" in name:
        return _from_oszicar(path)
    return _from_outcar(path) if "OUTCAR" in name else _from_vasprun(path)


def _from_oszicar(path: Path) -> IonicSteps:
    energies = [_number(m[1]) for line in text_of(path).splitlines() if (m := _OSZICAR_STEP.match(line))]
    if not energies:
        raise StructureError(f"{path}: no complete ionic step")
    return IonicSteps(path, "", np.array(energies), np.array([]), None, {}, ("OSZICAR tells no forces",), code="vasp")


def _number(text: str) -> float:
    """Return a number as Fortran prints it, NaN where the field was too narrow for it."""
    return float("nan") if "*" in text else float(text)


def _from_outcar(path: Path) -> IonicSteps:
    text = text_of(path)
    settings: dict[str, str] = {}
    for line in text.splitlines():
        if found := _OUTCAR_TAG.match(line):
            settings.setdefault(found[1], found[2].rstrip(";"))
        if "SIGMA" in line and (found := _OUTCAR_SIGMA.search(line)):
            settings.setdefault("SIGMA", found[1])
        if "NKPTS" in line and (found := _OUTCAR_KPOINTS.search(line)):
            settings.setdefault("NKPTS", found[1])
    notes = [] if _ENDED in text else ["the file is cut off: the run was killed or is still running"]
    stream = io.StringIO(text)
    stream.name = str(path / path.name)  # else ASE takes the constraints of any CONTCAR beside it, or fails on it
    images = read_images(path, "vasp-out", stream)
    held, note = _held_beside(path, images[0])
    for image in images:
        hold(image, held)
    energies, fmax, formula, last = course(images, path)
    return IonicSteps(
        path,
        formula,
        energies,
        fmax,
        _REACHED in text,
        settings,
        (*notes, *note),
        code="vasp",
        atoms=_precise(path, last),
    )


def _precise(path: Path, last: Atoms) -> Atoms:
    """Return the last structure of an OUTCAR, which rounds to 1e-5 Å, as the CONTCAR has it if that is the same."""
    beside = path.with_name("CONTCAR")
    try:
        (found,) = read_images(beside, "vasp")
    except StructureError:
        return last
    if np.array_equal(found.numbers, last.numbers):
        apart = last.get_scaled_positions(wrap=False) - found.get_scaled_positions(wrap=False)
        if np.abs((apart - np.round(apart)) @ np.asarray(last.cell)).max() < _ROUNDED:
            last.positions += (np.round(apart) - apart) @ np.asarray(last.cell)
    return last


def _held_beside(path: Path, atoms: Atoms) -> tuple[Array, list[str]]:
    """Return what selective dynamics holds in the run of an OUTCAR, and what to say where that is not known."""
    free = np.zeros((len(atoms), 3), dtype=bool)
    for name in POSITIONS:
        beside = path.with_name(name)
        if not beside.is_file() or beside.stat().st_size == 0:
            continue
        try:
            (found,) = read_images(beside, "vasp")
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
    last = atoms.copy()
    last.set_scaled_positions(steps[-1]["structure"].frac_coords)
    last.calc = SinglePointCalculator(
        last, energy=_sigma_to_zero(steps[-1]), forces=np.array(steps[-1]["forces"], dtype=float)
    )
    return IonicSteps(
        path,
        atoms.get_chemical_formula(),
        np.array([_sigma_to_zero(step) for step in steps]),
        np.array([largest(atoms, np.array(step["forces"], dtype=float)) for step in steps]),
        bool(run.converged_ionic),
        settings,
        code="vasp",
        atoms=last,
    )


def _held_in_vasprun(path: Path, n_atoms: int) -> Array:
    """Return which atoms a vasprun.xml holds along which cell vectors; it tells that of the first structure only."""
    from xml.etree import ElementTree as ET  # noqa: PLC0415 - the file was parsed before

    held = np.zeros((n_atoms, 3), dtype=bool)
    with opened(path) as stream:
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
