"""CP2K: Quickstep with GTH pseudopotentials and MOLOPT basis sets, in ASE's input sections."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers
from ase.units import Bohr, Hartree
from numpy.typing import NDArray

from ase_definet.dft.input_set import FORCE, SMEARING, STEPS, Code, Files, InputSet, by_components, override
from ase_definet.dft.run_output import IonicSteps, doubts, largest, read_images, refuse_other_atoms, text_of
from ase_definet.errors import InputSetError, StructureError

if TYPE_CHECKING:
    from ase.calculators.cp2k import InputSection

Array: TypeAlias = NDArray[Any]

INPUT, OUTPUT, PROJECT = "cp2k.inp", "cp2k.out", "relax"
BASIS_FILE, BASIS = "BASIS_MOLOPT", "DZVP-MOLOPT-SR-GTH"
POTENTIAL_FILE, POTENTIAL = "GTH_POTENTIALS", "GTH-PBE"
SOURCE = "https://github.com/cp2k/cp2k/tree/master/data (Debian: cp2k-data)"
PLACES = ("/usr/share/cp2k", "/usr/local/share/cp2k/data", "/opt/cp2k/data")
"""Where CP2K's data may be, if CP2K_DATA_DIR does not say."""
KNOWN = frozenset(
    (*range(1, 57), *range(72, 87))  # without the lanthanides
)
"""Atomic numbers that have the basis set in CP2K's data, for want of the file itself."""
OPTIMIZER = "MOTION/GEO_OPT"
SCF = "FORCE_EVAL/DFT/SCF"

_KELVIN = 8.617333262e-5
_PARAMETER = "_SECTION_PARAMETERS_"
_CONVERGED = "GEOMETRY OPTIMIZATION COMPLETED"
_STOPPED = "MAXIMUM NUMBER OF OPTIMIZATION STEPS REACHED"
_ENDED = "PROGRAM ENDED AT"
_NO_SCF = "SCF run NOT converged"
_ENERGY_LINE = re.compile(r"\s*ENERGY\| Total FORCE_EVAL .*?(-?\d+\.\d+)\s*$")
# in versions up to 2024.1, and later
_FORCES_BEGIN = re.compile(r"\s*(ATOMIC FORCES in \[a\.u\.\]|FORCES\| Atomic forces \[hartree/bohr\])")
_FORCE_ROW = re.compile(r"\s*(?:FORCES\|\s+)?\d+\s+(?:\d+\s+)?([A-Z]\w*)" + r"\s+(-?\d+\.\d+(?:[Ee][+-]\d+)?)" * 3)
_FORCES_END = re.compile(r"\s*(SUM OF ATOMIC FORCES|FORCES\|\s+Sum)", re.IGNORECASE)
_SAME_ENERGY = 1e-4
_ENERGY = re.compile(r"\bE\s*=\s*(-?[\d.]+)")
_PROJECT = re.compile(r"GLOBAL\| Project name\s+(\S+)")
_INPUT = re.compile(r"GLOBAL\| Input file name\s+(\S+)")
_VALENCE = re.compile(r"-q(\d+)$")
_PER_LINE = 12
"""Atoms that a line of FIXED_ATOMS names."""


def files(plan: InputSet) -> Files:
    """Write CP2K's input.

    Raises:
        InputSetError: There is no basis set or pseudopotential for an element, or CP2K cannot have the spin.
    """
    from ase.calculators.cp2k import InputSection  # noqa: PLC0415 - slow to import

    kinds, notes = _kinds(plan)
    multiplicity, warnings = _multiplicity(plan)
    values = _values(plan, multiplicity)
    overridden = override(values, _by_path(plan.settings))
    root = InputSection("CP2K_INPUT")
    for path, text in values.items():
        section, keyword = path.rsplit("/", 1)
        root.add_keyword(section, f"{keyword} {text}")
    _add_structure(root, plan, kinds)
    if not plan.gamma:
        section = root.get_subsection("FORCE_EVAL/DFT/KPOINTS")
        section.keywords += [
            "SCHEME GENERAL",
            "UNITS B_VECTOR",
            *(f"KPOINT {x:.10f} {y:.10f} {z:.10f} {weight}" for x, y, z, weight in _half(plan.grid)),
        ]
    notes += [
        f"{BASIS} and {POTENTIAL}, from {BASIS_FILE} and {POTENTIAL_FILE} of CP2K's data (set CP2K_DATA_DIR).",
        by_components("CP2K", "MAX_FORCE"),
        "Its criteria for the length of a step are set so wide that forces alone decide.",
        f"Orbitals that an earlier run left in this folder ({PROJECT}-RESTART.wfn) are where the first step begins.",
        f"If MAX_ITER steps do not suffice: cp2k -i {PROJECT}-1.restart -o {OUTPUT}",
    ]
    held = multiplicity if _holds(plan) else None
    text = "\n".join(root.write()) + "\n"
    return Files({INPUT: text}, f"cp2k -i {INPUT} -o {OUTPUT}", notes, warnings, overridden, held)


def _by_path(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the user's settings by their paths.

    Raises:
        InputSetError: One is no path.
    """
    for key in settings:
        if "/" not in key:
            raise InputSetError(
                f"{key}: expected a CP2K setting by its whole path, such as FORCE_EVAL/DFT/MGRID/CUTOFF=500."
            )
    return {key.upper(): str(value) for key, value in settings.items()}


def _values(plan: InputSet, multiplicity: int) -> dict[str, str]:
    """Return the keywords by their paths, but for the structure and the k-points."""
    dft, geo = "FORCE_EVAL/DFT", OPTIMIZER
    values = {
        "GLOBAL/PROJECT": PROJECT,
        "GLOBAL/RUN_TYPE": "GEO_OPT",
        "GLOBAL/PRINT_LEVEL": "LOW",
        f"{geo}/TYPE": "MINIMIZATION",
        f"{geo}/OPTIMIZER": "BFGS",
        f"{geo}/MAX_ITER": str(STEPS),
        f"{geo}/MAX_FORCE": f"{FORCE / Hartree * Bohr:.5e}",
        f"{geo}/RMS_FORCE": f"{FORCE / Hartree * Bohr:.5e}",
        f"{geo}/MAX_DR": "1.0",
        f"{geo}/RMS_DR": "1.0",
        "MOTION/PRINT/TRAJECTORY/FORMAT": "XYZ",
        "MOTION/PRINT/TRAJECTORY/EACH/GEO_OPT": "1",
        f"FORCE_EVAL/PRINT/FORCES/{_PARAMETER}": "ON",
        "FORCE_EVAL/METHOD": "QUICKSTEP",
        f"{dft}/BASIS_SET_FILE_NAME": BASIS_FILE,
        f"{dft}/POTENTIAL_FILE_NAME": POTENTIAL_FILE,
        f"{dft}/CHARGE": str(plan.charge),
        f"{dft}/UKS": "T" if plan.spin and (multiplicity > 1 or plan.own_moments) else "F",
        f"{dft}/MULTIPLICITY": str(multiplicity),
        f"{dft}/QS/EPS_DEFAULT": "1.0E-12",
        f"{dft}/MGRID/CUTOFF": "400",
        f"{dft}/MGRID/REL_CUTOFF": "50",
        f"{SCF}/EPS_SCF": "1.0E-6",
        f"{SCF}/SCF_GUESS": "RESTART",  # from atoms where there are no orbitals yet
        f"{dft}/XC/XC_FUNCTIONAL/{_PARAMETER}": "PBE",
    }
    values |= _ot(plan) if plan.gamma else _diagonalization(plan)
    if plan.dipole:
        values |= {f"{dft}/SURFACE_DIPOLE_CORRECTION": "T", f"{dft}/SURF_DIP_DIR": "XYZ"[plan.across()]}
    if plan.profile == "robust":
        values[f"{geo}/BFGS/TRUST_RADIUS"] = "0.1"  # Å; by default 0.25
    return values


def _ot(plan: InputSet) -> dict[str, str]:
    """Return the orbital transformation, for Γ: whole occupations, no smearing.

    The preconditioner is the one that CP2K's manual recommends for all but very large cells. It is made anew every
    ten iterations: the first one comes from orbitals far from the solution. Of the extrapolations, linear projection
    suits the shorter and shorter steps of a relaxation best: the default is made for molecular dynamics.
    """
    robust = plan.profile == "robust"
    return {
        f"{SCF}/MAX_SCF": "10",
        f"{SCF}/OT/{_PARAMETER}": "ON",
        f"{SCF}/OT/MINIMIZER": "CG" if robust else "DIIS",
        f"{SCF}/OT/PRECONDITIONER": "FULL_ALL",
        f"{SCF}/OUTER_SCF/{_PARAMETER}": "ON",
        f"{SCF}/OUTER_SCF/MAX_SCF": "50",
        f"{SCF}/OUTER_SCF/EPS_SCF": "1.0E-6",
        "FORCE_EVAL/DFT/QS/EXTRAPOLATION": "PS",
        "FORCE_EVAL/DFT/QS/EXTRAPOLATION_ORDER": "1",
    }


def _diagonalization(plan: InputSet) -> dict[str, str]:
    """Return the diagonalization that several k-points need, with the smearing that CP2K has where it can."""
    values = {
        f"{SCF}/MAX_SCF": "100",
        f"{SCF}/DIAGONALIZATION/{_PARAMETER}": "ON",
        f"{SCF}/MIXING/METHOD": "BROYDEN_MIXING",
        f"{SCF}/MIXING/ALPHA": "0.1" if plan.profile == "robust" else "0.2",
    }
    if _holds(plan):  # CP2K stops on smearing with a fixed moment and several k-points
        return values
    return values | {
        f"{SCF}/ADDED_MOS": str(max(10, len(plan.atoms))),
        f"{SCF}/SMEAR/{_PARAMETER}": "ON",
        f"{SCF}/SMEAR/METHOD": "FERMI_DIRAC",
        f"{SCF}/SMEAR/ELECTRONIC_TEMPERATURE": f"[K] {SMEARING / _KELVIN:.1f}",
    }


def _holds(plan: InputSet) -> bool:
    """Return whether the run keeps the spin multiplicity that it starts with."""
    return plan.gamma or (plan.spin and plan.multiplicity is not None)


def _add_structure(root: InputSection, plan: InputSet, kinds: list[tuple[str, str, str, str, float | None]]) -> None:
    """Add cell, coordinates, kinds and what is held."""
    from ase.calculators.cp2k import InputSection  # noqa: PLC0415 - slow to import

    subsys = root.get_subsection("FORCE_EVAL/SUBSYS")
    cell = root.get_subsection("FORCE_EVAL/SUBSYS/CELL")
    cell.keywords += [
        f"{name} {x:.12f} {y:.12f} {z:.12f}"
        for name, (x, y, z) in zip("ABC", np.asarray(plan.atoms.cell), strict=True)
    ]
    cell.keywords.append("PERIODIC XYZ")
    labels = _labels(plan)
    root.get_subsection("FORCE_EVAL/SUBSYS/COORD").keywords += [
        f"{label} {x:.12f} {y:.12f} {z:.12f}" for label, (x, y, z) in zip(labels, plan.atoms.positions, strict=True)
    ]
    for label, element, basis, potential, moment in kinds:
        section = InputSection("KIND", label)
        section.keywords += [f"ELEMENT {element}", f"BASIS_SET {basis}", f"POTENTIAL {potential}"]
        section.keywords += [] if moment is None else [f"MAGNETIZATION {moment:g}"]
        subsys.subsections.append(section)
    held = plan.held
    for mask in np.unique(held[held.any(axis=1)], axis=0):
        section = InputSection("FIXED_ATOMS")
        section.keywords.append(f"COMPONENTS_TO_FIX {''.join(np.array(list('XYZ'))[mask])}")
        members = (np.flatnonzero((held == mask).all(axis=1)) + 1).tolist()
        section.keywords += [
            f"LIST {' '.join(map(str, members[k : k + _PER_LINE]))}" for k in range(0, len(members), _PER_LINE)
        ]
        root.get_subsection("MOTION/CONSTRAINT").subsections.append(section)


def _labels(plan: InputSet) -> list[str]:
    """Return the kind of each atom: its element, numbered where atoms of it have different moments of their own."""
    symbols = plan.atoms.get_chemical_symbols()
    if not plan.own_moments:
        return list(symbols)
    moments = plan.atoms.get_initial_magnetic_moments().round(4).tolist()
    seen: dict[str, list[float]] = {}
    labels = []
    for symbol, moment in zip(symbols, moments, strict=True):
        known = seen.setdefault(symbol, [])
        if moment not in known:
            known.append(moment)
        number = known.index(moment)
        labels.append(symbol if number == 0 else f"{symbol}_{number}")
    return labels


def _kinds(plan: InputSet) -> tuple[list[tuple[str, str, str, str, float | None]], list[str]]:
    """Return label, element, basis set, pseudopotential and moment of each kind, and what to say about them.

    Raises:
        InputSetError: An element has no basis set, or no pseudopotential.
    """
    folder = data_folder(plan.library)
    if folder is None:
        lacking = [element for element in plan.species if atomic_numbers[element] not in KNOWN]
        if lacking:
            raise InputSetError(
                f"No basis set {BASIS} for {', '.join(lacking)} in CP2K's data; give a folder with a {BASIS_FILE} "
                f"and a {POTENTIAL_FILE} that have one (--library FOLDER)."
            )
        names = dict.fromkeys(plan.species, (BASIS, POTENTIAL))
        notes = ["CP2K's data were not found here: nothing was checked against them."]
    else:
        names = _names(folder, plan.species)
        notes = []
    symbols, labels = plan.atoms.get_chemical_symbols(), _labels(plan)
    moments = plan.atoms.get_initial_magnetic_moments() if plan.own_moments else None
    kinds = []
    for label in dict.fromkeys(labels):
        atom = labels.index(label)
        moment = None if moments is None else float(moments[atom])
        kinds.append((label, symbols[atom], *names[symbols[atom]], moment))
    return kinds, notes


def data_folder(library: Path | None) -> Path | None:
    """Return the folder of CP2K's data, None where there is none here.

    Raises:
        InputSetError: The folder that was named does not have them.
    """
    if library is not None:
        folder = library.expanduser().resolve()
        for name in (BASIS_FILE, POTENTIAL_FILE):
            if not (folder / name).is_file():
                raise InputSetError(f"Expected CP2K's data in {folder}, found no {name}; get them from {SOURCE}.")
        return folder
    named = os.environ.get("CP2K_DATA_DIR")
    for place in (named, *PLACES):
        if place and all((Path(place) / name).is_file() for name in (BASIS_FILE, POTENTIAL_FILE)):
            return Path(place)
    return None


def _names(folder: Path, elements: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the names of each element's basis set and of the pseudopotential with as many valence electrons.

    Raises:
        InputSetError: Some elements lack one of them, or those of one do not go together.
    """
    files = (("basis set", BASIS_FILE, BASIS), ("pseudopotential", POTENTIAL_FILE, POTENTIAL))
    found = []
    for what, file, name in files:
        entries = {element: _entries(folder / file, element, name) for element in elements}
        lacking = [element for element, some in entries.items() if not some]
        if lacking:
            raise InputSetError(
                f"No {what} {name} for {', '.join(lacking)} in {folder}; get one from {SOURCE}, or give a folder "
                "that has it (--library FOLDER)."
            )
        found.append(entries)
    return {element: _matching(folder, element, *(entries[element] for entries in found)) for element in elements}


def _matching(folder: Path, element: str, bases: list[str], potentials: list[str]) -> tuple[str, str]:
    """Return the first basis set and pseudopotential that have the same number of valence electrons."""
    for basis in bases:
        for potential in potentials:
            if _valence(basis) == _valence(potential):
                return basis, potential
    raise InputSetError(
        f"The basis sets of {element} in {folder} ({', '.join(bases)}) have other valence electrons than its "
        f"pseudopotentials ({', '.join(potentials)})."
    )


def _entries(path: Path, element: str, name: str) -> list[str]:
    """Return the full names, with the valence, of what a data file has for an element under a name."""
    wanted = re.compile(rf"{re.escape(name)}(-q\d+)?")
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split("#")[0].split()
        if len(words) > 1 and words[0] == element:
            matching = [word for word in words[1:] if wanted.fullmatch(word)]
            found += sorted(matching, key=len)[-1:]  # the one with the valence, where there is one
    return list(dict.fromkeys(found))


def _valence(name: str) -> str:
    match = _VALENCE.search(name)
    return match[1] if match else ""


def _multiplicity(plan: InputSet) -> tuple[int, list[str]]:
    """Return the spin multiplicity, which CP2K holds or starts from, and what to say about it.

    Raises:
        InputSetError: The spins are to be paired, but the number of electrons is odd.
    """
    electrons = int(plan.atoms.numbers.sum()) - plan.charge
    if plan.multiplicity is not None:
        return plan.multiplicity, []
    lowest = 1 + electrons % 2
    verb = "holds" if _holds(plan) else "starts from"
    if not plan.spin:
        if lowest != 1:
            raise InputSetError(
                f"CP2K cannot pair {electrons} electrons (charge {plan.charge:+d}), an odd number: give magnetic "
                "high-spin or parity."
            )
        return 1, []
    if plan.own_moments:
        unpaired = abs(round(float(plan.atoms.get_initial_magnetic_moments().sum())))
        if unpaired % 2 == electrons % 2 and unpaired <= electrons:
            return unpaired + 1, [
                f"CP2K {verb} the spin multiplicity {unpaired + 1}, as the atoms' moments sum up to."
            ]
    return lowest, [
        f"CP2K {verb} the lowest spin multiplicity, {lowest}: for another state give the spin multiplicity (--spin)."
    ]


def _half(grid: tuple[int, int, int]) -> list[tuple[float, float, float, int]]:
    """Return a Γ-centred grid of k-points with their weights, of k and -k the first only."""
    points: dict[tuple[int, ...], int] = {}
    for index in np.ndindex(*grid):
        opposite = tuple((-i) % n for i, n in zip(index, grid, strict=True))
        if opposite in points:
            points[opposite] += 1
        else:
            points[index] = 1
    out = []
    for index, weight in points.items():
        x, y, z = (i / n - (1 if 2 * i > n else 0) for i, n in zip(index, grid, strict=True))
        out.append((x, y, z, weight))
    return out


def read_steps(path: Path) -> IonicSteps:
    """Read the ionic steps of CP2K's output, which prints energies and forces, and the trajectory beside it.

    Atoms held fixed, the cell and the settings are those of the input beside it.

    Raises:
        StructureError: There is no complete step, or the input beside it is of other atoms.
    """
    text = text_of(path)
    match = _PROJECT.search(text)
    if match is None:
        raise StructureError(f"{path}: no GLOBAL| Project name in it: not an output of CP2K, or cut off at once")
    steps = _evaluations(path, text)
    settings, start = _beside(path, text)
    notes = doubts(text, _ENDED, _NO_SCF)
    symbols = steps[0][2]
    if start is None:
        notes.append("no input beside it: atoms held fixed, if any, count in the largest force; the cell is unknown")
        atoms = Atoms(symbols)
    else:
        refuse_other_atoms(path, Atoms(symbols), *start)
        atoms = start[1]
    energies = np.array([energy for energy, _, _ in steps])
    fmax = np.array([largest(atoms, forces) for _, forces, _ in steps])
    last = None if start is None else _last(path.with_name(f"{match[1]}-pos-1.xyz"), atoms, energies, notes)
    if last is not None:
        last.calc = SinglePointCalculator(last, energy=float(energies[-1]), forces=steps[-1][1])
    return IonicSteps(
        path,
        atoms.get_chemical_formula(),
        energies,
        fmax,
        True if _CONVERGED in text else False if _ENDED in text or _STOPPED in text else None,
        settings,
        tuple(notes),
        code="cp2k",
        atoms=last,
        input_settings=bool(settings),
    )


def _evaluations(path: Path, text: str) -> list[tuple[float, Array, list[str]]]:
    """Return energy in eV, forces in eV/Å and elements of each evaluation of the forces that is printed whole.

    The energy is evaluated once more at the minimum, which is no step.
    """
    steps: list[tuple[float, Array, list[str]]] = []
    energy: float | None = None
    rows: list[list[float]] = []
    symbols: list[str] = []
    inside = False
    for line in text.split(_CONVERGED, maxsplit=1)[0].splitlines():
        if found := _ENERGY_LINE.match(line):
            energy = float(found[1])
        elif _FORCES_BEGIN.match(line):
            inside, rows, symbols = True, [], []
        elif inside and (found := _FORCE_ROW.match(line)):
            symbols.append(re.sub(r"[^A-Za-z].*", "", found[1]).capitalize())
            rows.append([float(number) for number in found.group(2, 3, 4)])
        elif inside and _FORCES_END.match(line):
            inside = False
            if energy is not None and rows:
                steps.append((energy * Hartree, np.array(rows) * Hartree / Bohr, symbols))
            energy = None
    if not steps:
        what = "an energy, but no forces: switch on FORCE_EVAL/PRINT/FORCES" if energy is not None else "no step"
        raise StructureError(f"{path}: no complete ionic step: it holds {what}")
    return steps


def _last(path: Path, start: Atoms, energies: Array, notes: list[str]) -> Atoms | None:
    """Return the structure of the last step; note where there is none."""
    last = start.copy()
    if len(energies) == 1:
        return last
    frames = _frames(path) if path.is_file() else []
    for symbols, positions, comment in reversed(frames[-2:]):  # the last may be the minimum, evaluated once more
        found = _ENERGY.search(comment)
        energy = float(found[1]) * Hartree if found else np.nan
        if len(symbols) == len(start) and abs(energy - energies[-1]) < _SAME_ENERGY:
            last.set_positions(positions, apply_constraint=False)
            return last
    notes.append(f"{path.name} lacks the structure of the last step")
    return None


def _frames(path: Path) -> list[tuple[list[str], Array, str]]:
    """Return elements, three columns and the comment of each whole frame of an XYZ file.

    ASE's reader drops the comment, which holds the energy.
    """
    lines = text_of(path).splitlines()
    frames, at = [], 0
    while at < len(lines):
        try:
            number = int(lines[at])
            rows = [line.split() for line in lines[at + 2 : at + 2 + number]]
            values = np.array([row[1:4] for row in rows], dtype=float)
            symbols = [re.sub(r"[^A-Za-z].*", "", row[0]).capitalize() for row in rows]
        except (ValueError, IndexError):
            break  # cut off within a number
        if values.shape != (number, 3):
            break
        frames.append((symbols, values, lines[at + 1]))
        at += 2 + number
    return frames


def _beside(path: Path, text: str) -> tuple[dict[str, str], tuple[Path, Atoms] | None]:
    """Return the settings and the structure of the input beside an output."""
    match = _INPUT.search(text)
    beside = path.with_name(Path(match[1]).name if match else INPUT)
    if not beside.is_file():
        return {}, None
    return read_input(beside)


def read_input(path: Path) -> tuple[dict[str, str], tuple[Path, Atoms]]:
    """Return the settings of CP2K's input, by their paths, and its structure with what is held.

    Raises:
        StructureError: It cannot be read.
    """
    from ase.calculators.cp2k import parse_input  # noqa: PLC0415 - slow to import
    from ase.constraints import FixAtoms, FixCartesian  # noqa: PLC0415 - as above

    root = parse_input(text_of(path))
    (atoms,) = read_images(path, "cp2k-restart")
    atoms.pbc = True
    constraints: list[Any] = []
    for section in root.get_subsection("MOTION/CONSTRAINT").subsections:
        if section.name != "FIXED_ATOMS":
            continue
        components, members = "XYZ", []
        for line in section.keywords:
            word, *rest = line.split()
            if word.upper() == "COMPONENTS_TO_FIX":
                components = rest[0].upper()
            if word.upper() == "LIST":
                members += [number - 1 for item in rest for number in _range(item)]
        mask = [axis in components for axis in "XYZ"]
        constraints.append(FixAtoms(members) if all(mask) else FixCartesian(members, mask))
    atoms.set_constraint(constraints)
    return dict(_settings(root, "")), (path, atoms)


def _range(item: str) -> range:
    """Return the numbers of an item of a list: ``7``, or ``3..9``."""
    first, _, last = item.partition("..")
    return range(int(first), int(last or first) + 1)


def _settings(section: InputSection, path: str) -> list[tuple[str, str]]:
    """Return all keywords of a section and those below it, by their paths, but for structures and names."""
    out: list[tuple[str, str]] = []
    if path.startswith(("GLOBAL", "FORCE_EVAL/SUBSYS", "MOTION/CONSTRAINT", "MOTION/PRINT", "EXT_RESTART")):
        return out
    out += [(path, section.params)] if section.params and path else []
    for line in section.keywords:
        word, _, rest = line.partition(" ")
        if word.upper() == "KPOINT":
            out.append((f"{path}/{word.upper()} {rest.strip()}", "T"))
        else:
            out.append((f"{path}/{word.upper()}", " ".join(rest.split())))
    for below in section.subsections:
        out += _settings(below, f"{path}/{below.name}".lstrip("/"))
    return out


CODE = Code("cp2k", "CP2K", files, (INPUT,), (OUTPUT,), read_steps, banner="CP2K|")
