"""Input sets of all DFT codes read back, by ASE and pymatgen rather than by what wrote them."""

from __future__ import annotations

import ast
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from ase.data import atomic_numbers
from ase.io import read
from ase.io.espresso import read_fortran_namelist
from pymatgen.io.cp2k.inputs import Cp2kInput, KeywordList, SectionList

NEW_CODES = ("espresso", "cp2k", "aims", "gpaw")

UPF = """<UPF version="2.0.1">
  <PP_HEADER element="{element}" pseudo_type="NC" functional="{functional}" z_valence="{valence:.8E}"
    wfc_cutoff="{cutoff}" rho_cutoff="{density}" mesh_size="10"/>
  <PP_MESH/>
</UPF>
"""


def pseudopotentials(folder: Path, *elements: str, functional: str = "PBE", listed: bool = True) -> Path:
    """Make a folder of headers of pseudopotentials, with a list as SSSP has one or without."""
    folder.mkdir(exist_ok=True)
    content = {}
    for element in elements:
        name = f"{element}.pbe.UPF"
        valence = 1 + atomic_numbers[element] % 14
        text = UPF.format(element=element, functional=functional, valence=valence, cutoff=44.0, density=352.0)
        (folder / name).write_text(text)
        content[element] = {"filename": name, "cutoff_wfc": 55.0, "cutoff_rho": 440.0}
    if listed:
        (folder / "SSSP.json").write_text(json.dumps(content))
    return folder


def species_defaults(folder: Path, *elements: str) -> Path:
    """Make a folder of species defaults as FHI-aims has it."""
    folder.mkdir(exist_ok=True)
    for element in elements:
        name = f"{atomic_numbers[element]:02d}_{element}_default"
        (folder / name).write_text(f"  species        {element}\n    nucleus  {atomic_numbers[element]}\n")
    return folder


@dataclass
class Told:
    """What a code is told."""

    atoms: Atoms
    charge: float
    spin: bool
    unpaired: float | None
    grid: tuple[int, ...]


def held(atoms: Atoms) -> np.ndarray:
    """Return which atoms are held along which Cartesian axes."""
    mask = np.zeros((len(atoms), 3), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            mask[constraint.index] = True
        else:
            assert isinstance(constraint, FixCartesian)
            mask[constraint.index] |= constraint.mask
    return mask


def told(code: str, folder: Path) -> Told:
    """Read an input set back."""
    return {"espresso": _espresso, "cp2k": _cp2k, "aims": _aims, "gpaw": _gpaw}[code](folder)


def _espresso(folder: Path) -> Told:
    with (folder / "espresso.pwi").open() as stream:
        data, cards = read_fortran_namelist(stream)
    system = data["system"]
    at = next(k for k, line in enumerate(cards) if line.startswith("K_POINTS"))
    grid = (1, 1, 1) if "gamma" in cards[at] else tuple(map(int, cards[at + 1].split()[:3]))
    if "gamma" not in cards[at]:
        assert cards[at + 1].split()[3:] == ["0", "0", "0"]
    return Told(
        read(folder / "espresso.pwi", format="espresso-in"),
        system.get("tot_charge", 0.0),
        system.get("nspin", 1) == 2,
        system.get("tot_magnetization"),
        grid,
    )


def _cp2k(folder: Path) -> Told:
    parsed = Cp2kInput.from_file(folder / "cp2k.inp")
    dft = parsed["FORCE_EVAL"]["DFT"]
    atoms = read(folder / "cp2k.inp", format="cp2k-restart")
    constraints: list[Any] = []
    if parsed["MOTION"].get_section("CONSTRAINT") is not None:
        found = parsed["MOTION"]["CONSTRAINT"]["FIXED_ATOMS"]
        for section in found.sections if isinstance(found, SectionList) else [found]:
            lists = section.get_keyword("LIST")
            lines = lists.keywords if isinstance(lists, KeywordList) else [lists]
            members = [int(number) - 1 for line in lines for number in line.values]
            components = str(section.get_keyword("COMPONENTS_TO_FIX").values[0])
            constraints.append(FixCartesian(members, [axis in components for axis in "XYZ"]))
    atoms.set_constraint(constraints)
    grid = (1, 1, 1)
    if dft.get_section("KPOINTS") is not None:
        points = dft["KPOINTS"].get_keyword("KPOINT")
        points = points.keywords if isinstance(points, KeywordList) else [points]
        values = np.array([point.values for point in points], dtype=float)
        whole = np.vstack([values[:, :3], -values[:, :3]])  # k and -k
        grid = tuple(len(np.unique(np.round(whole[:, axis] % 1.0 % 1.0, 6) % 1.0)) for axis in range(3))
        assert values[:, 3].sum() == np.prod(grid)
    return Told(
        atoms,
        float(dft.get_keyword("CHARGE").values[0]),
        bool(dft.get_keyword("UKS").values[0]),
        float(dft.get_keyword("MULTIPLICITY").values[0]) - 1,
        grid,
    )


def _aims(folder: Path) -> Told:
    values = {}
    for line in (folder / "control.in").read_text().splitlines():
        if line.strip().startswith("species"):
            break
        if line.strip():
            key, *rest = line.split()
            values[key] = rest
    moment = values.get("fixed_spin_moment")
    return Told(
        _quiet(folder / "geometry.in"),
        float(values["charge"][0]),
        values["spin"] == ["collinear"],
        None if moment is None else float(moment[0]),
        tuple(map(int, values["k_grid"])),
    )


def _quiet(path: Path) -> Atoms:
    """Read a geometry.in without ASE's plans for its own reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return read(path, format="aims")


def _gpaw(folder: Path) -> Told:
    tree = ast.parse((folder / "relax.py").read_text())
    parameters = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "PARAMETERS"
    )
    atoms = read(folder / "start.extxyz")
    fixed = parameters["occupations"].get("fixmagmom", False)
    assert parameters["kpts"]["gamma"] is True
    return Told(
        atoms,
        parameters["charge"],
        parameters["spinpol"],
        float(atoms.get_initial_magnetic_moments().sum()) if fixed else None,
        parameters["kpts"]["size"],
    )
