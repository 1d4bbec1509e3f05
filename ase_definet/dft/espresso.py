"""Quantum ESPRESSO: the input of pw.x, written and read by ASE."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.units import create_units

from ase_definet.dft.input_set import (
    FORCE,
    SMEARING,
    STEPS,
    Code,
    Files,
    InputSet,
    by_components,
    follows_z,
    override,
)
from ase_definet.dft.run_output import IonicSteps, course, doubts, read_images, take_start, text_of
from ase_definet.errors import InputSetError, StructureError

INPUT, OUTPUT = "espresso.pwi", "espresso.pwo"
SOURCE = "https://www.materialscloud.org/discover/sssp"
"""Where pseudopotentials are, checked and with converged cutoffs: the SSSP library."""
LEAST_CUTOFF = 50.0
"""What a pseudopotential suggests itself is a minimum; less is not taken from it, in Ry."""
USUAL_CUTOFF = 80.0
"""Cutoff where a pseudopotential suggests none, in Ry."""

_UNITS = create_units("2006")  # as pw.x has them, and ASE where it reads its output
_BOHR = float(_UNITS["Bohr"])
_SMALL = 1e-6
_LEAST_HEIGHT = 11.5
"""With two-dimensional truncation half of the cell must hold pw.x's radius of a pseudopotential, 10 bohr; in Å."""
_ELECTRON_EXTENT = 2.0
"""How far the electrons of a layer reach beyond its outermost nuclei, in Å."""
_EMPTY = 0.1
"""Width of the region in which the saw-tooth potential falls, as a part of the cell vector."""
_ATTRIBUTE = re.compile(r'([\w:]+)\s*=\s*["\']\s*([^"\']*?)\s*["\']')
_PLACES = frozenset({"pseudo_dir", "outdir", "prefix", "title", "wfcdir", "restart_mode", "max_seconds", "disk_io"})
"""Keys that change nothing about the result."""
_CONVERGED = "bfgs converged in"
_STOPPED = "The maximum number of steps has been reached"
_DONE = "JOB DONE."
_NO_SCF = "convergence NOT achieved"
_FORCES = "Forces acting on atoms"


@dataclass(frozen=True)
class Pseudopotential:
    """What is known of a pseudopotential file.

    Attributes:
        file: Its name.
        element: Its element.
        functional: What its header says.
        valence: Number of valence electrons.
        cutoff: Cutoff of wave functions in Ry, 0 where nobody suggests one.
        density_cutoff: The same of the density.
        checked: Whether the cutoffs are the converged ones of a library, not the file's own suggestion.
    """

    file: str
    element: str
    functional: str
    valence: float
    cutoff: float
    density_cutoff: float
    checked: bool = False


def files(plan: InputSet) -> Files:
    """Write the input of pw.x.

    Raises:
        InputSetError: A pseudopotential is missing or none for PBE, or a setting is unknown.
    """
    from ase.io.espresso import write_espresso_in  # noqa: PLC0415 - slow to import

    folder = _folder(plan)
    pseudopotentials = _find_all(folder, plan.species)
    cutoff, density_cutoff, warnings = _cutoffs(list(pseudopotentials.values()), plan.settings)
    atoms = plan.atoms.copy()
    values = _values(plan, cutoff, density_cutoff) | {"pseudo_dir": folder.as_posix()}
    extra, isolated = _across(plan)
    values |= extra
    warnings += isolated
    if plan.spin:
        valence = np.array([pseudopotentials[symbol].valence for symbol in atoms.get_chemical_symbols()])
        fractions = np.clip(atoms.get_initial_magnetic_moments() / valence, -1.0, 1.0)
        atoms.set_initial_magnetic_moments(fractions.round(6))
        warnings += [] if fractions.any() or plan.unpaired is not None else [_no_start()]
    overridden = override(values, _namelist_values(plan.settings))
    text = io.StringIO()
    write_espresso_in(
        text,
        atoms,
        input_data=values,
        pseudopotentials={element: found.file for element, found in pseudopotentials.items()},
        kpts=None if plan.gamma else plan.grid,
    )
    notes = [
        f"Pseudopotentials from {folder}: {', '.join(found.file for found in pseudopotentials.values())}.",
        "  Elsewhere, change pseudo_dir; an empty one stands for $ESPRESSO_PSEUDO.",
        f"Cutoffs {values['ecutwfc']:g} and {values['ecutrho']:g} Ry: converge them before you compare energies.",
        by_components("pw.x", "forc_conv_thr"),
        "If nstep steps do not suffice: set restart_mode = 'restart' and run again.",
    ]
    # ASE writes all namelists that any pw.x knows; older ones take the empty ones at the end for cards
    shown = re.sub(r"&(CELL|FCP|RISM)\n/\n", "", text.getvalue())
    return Files({INPUT: shown}, f"pw.x -in {INPUT} > {OUTPUT}", notes, warnings, overridden)


def _namelist_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's settings by the names that pw.x has for them.

    Raises:
        InputSetError: pw.x does not know one.
    """
    from ase.io.espresso import str_to_value  # noqa: PLC0415 - slow to import
    from ase.io.espresso_namelist.keys import pw_keys  # noqa: PLC0415 - as above

    known = {key.lower() for keys in pw_keys.values() for key in keys}
    values = {}
    for key, value in settings.items():
        name = key.lower()
        if re.sub(r"\(.*\)$", "", name) not in known:
            raise InputSetError(f"{key} is no key of pw.x; expected one such as ecutwfc or mixing_beta.")
        values[name] = str_to_value(value) if isinstance(value, str) else value
    return values


def _values(plan: InputSet, cutoff: float, density_cutoff: float) -> dict[str, Any]:
    """Return the namelists' values that hold for every structure, flat."""
    n_atoms = len(plan.atoms)
    values: dict[str, Any] = {
        "calculation": "relax",
        "prefix": "relax",
        "outdir": "./out",
        "tprnfor": True,
        "nstep": STEPS,
        "forc_conv_thr": float(f"{FORCE / float(_UNITS['Ry']) * _BOHR:.4e}"),
        "etot_conv_thr": float(f"{1e-5 * n_atoms:.4e}"),
        "ecutwfc": cutoff,
        "ecutrho": density_cutoff,
        "occupations": "smearing",
        "smearing": "gaussian",
        "degauss": float(f"{SMEARING / float(_UNITS['Ry']):.6e}"),
        "conv_thr": float(f"{2e-10 * max(n_atoms, 5):.4e}"),
        "mixing_beta": 0.4,
        "electron_maxstep": 200,
        "ion_dynamics": "bfgs",
    }
    if plan.charge:
        values["tot_charge"] = float(plan.charge)
    if plan.spin:
        values["nspin"] = 2
        if plan.unpaired is not None:
            values["tot_magnetization"] = float(plan.unpaired)
    if plan.careful:
        values["nosym"] = True
    if plan.profile == "robust":
        values |= {"trust_radius_ini": 0.2, "trust_radius_max": 0.4, "mixing_beta": 0.2}
    return values


def _across(plan: InputSet) -> tuple[dict[str, Any], list[str]]:
    """Return what holds across the vacuum of a layer, and what to say about it.

    Two-dimensional truncation is for charged layers alone: neutral ones are periodic as in every other code.
    """
    if plan.dipole:
        axis = plan.axis_of_vacuum()
        edge = _emptiest(plan, axis)
        return {
            "tefield": True,
            "dipfield": True,
            "edir": axis + 1,
            "emaxpos": round((edge - _EMPTY / 2) % 1.0, 6),
            "eopreg": _EMPTY,
            "eamp": 0.0,
        }, []
    if not plan.charge or not plan.vacuum:
        return {}, []
    cell = np.asarray(plan.atoms.cell)
    if len(plan.vacuum) == 1 and follows_z(cell, plan.vacuum[0]):
        height = float(cell[2, 2])
        needed = max(2 * (height - plan.gaps[2] + 2 * _ELECTRON_EXTENT), _LEAST_HEIGHT)
        if needed <= height:
            note = (
                "Charged layer: assume_isolated = '2D' cuts the Coulomb interaction off along z, not within the "
                "layer. No other code here does this."
            )
            return {"assume_isolated": "2D"}, [note]
        why = f"assume_isolated = '2D' needs a cell of {needed:.1f} Å or more along z, this one has {height:.1f}"
    else:
        why = "assume_isolated = '2D' needs the one vacuum axis to be c, along z, and a and b normal to it"
    return {}, [f"The charged cell is periodic along all axes: {why}."]


def _emptiest(plan: InputSet, axis: int) -> float:
    """Return the fractional centre of the vacuum."""
    from ase_definet.structures.cell import widest_gap  # noqa: PLC0415 - one use

    atoms = plan.atoms
    return widest_gap(np.asarray(atoms.cell), atoms.get_scaled_positions(wrap=False), axis)[1]


def _no_start() -> str:
    return "nspin = 2 with no moments to start from: pw.x finds no spin from there."


def _folder(plan: InputSet) -> Path:
    """Return the folder of pseudopotentials.

    Raises:
        InputSetError: Nobody says where it is, or it is no folder.
    """
    elements = ", ".join(plan.species)
    from_shell = os.environ.get("ESPRESSO_PSEUDO")
    if plan.library is None and not from_shell:
        raise InputSetError(
            f"Quantum ESPRESSO needs pseudopotentials for {elements}: get the SSSP library (PBE) from {SOURCE}, and "
            "say where it is with library (--library FOLDER) or ESPRESSO_PSEUDO."
        )
    folder = Path(plan.library or from_shell or "").expanduser().resolve()
    if not folder.is_dir():
        raise InputSetError(f"Expected a folder of pseudopotentials, found none at {folder}; SSSP is at {SOURCE}.")
    return folder


def _find_all(folder: Path, elements: Sequence[str]) -> dict[str, Pseudopotential]:
    """Return the one PBE pseudopotential that a folder has for each element.

    Raises:
        InputSetError: There is none for some elements, or there are several for one.
    """
    found = {element: _candidates(folder, element) for element in elements}
    usable = {element: [one for one in some if _is_pbe(one.functional)] for element, some in found.items()}
    lacking = [element for element, some in usable.items() if not some]
    if lacking:
        others = [one.file for element in lacking for one in found[element]]
        why = f" ({', '.join(others)}: not PBE)" if others else ""
        raise InputSetError(
            f"No PBE pseudopotential for {', '.join(lacking)} in {folder}{why}; get one from {SOURCE}."
        )
    for element, some in usable.items():
        if len(some) > 1:
            raise InputSetError(
                f"Several PBE pseudopotentials for {element} in {folder} ({', '.join(one.file for one in some)}): "
                "leave one in the folder, or put a list beside them as SSSP has (its JSON file)."
            )
    return {element: one for element, (one,) in usable.items()}


def _candidates(folder: Path, element: str) -> list[Pseudopotential]:
    """Return the pseudopotentials of an element, of whatever functional.

    The list that comes with a library (SSSP's JSON file, in the folder) decides, where there is one.

    Raises:
        InputSetError: The file that the list names is missing, or a header cannot be read.
    """
    listed = _listed(folder, element)
    if listed is None:
        mine = re.compile(rf"{element}([^a-z].*)?\.upf", re.IGNORECASE)
        found = [read_header(path) for path in sorted(folder.iterdir()) if mine.fullmatch(path.name)]
        # fully relativistic ones are for spin-orbit coupling
        return [header for header in found if header.element == element and ".rel-" not in header.file]
    path = folder / listed["filename"]
    if not path.is_file():
        raise InputSetError(
            f"No pseudopotential for {element}: {path.name}, which the list in {folder} names, is not there; get "
            f"it from {SOURCE}."
        )
    cutoff, density_cutoff = float(listed["cutoff_wfc"]), float(listed["cutoff_rho"])
    return [replace(read_header(path), cutoff=cutoff, density_cutoff=density_cutoff, checked=True)]


def _listed(folder: Path, element: str) -> Any:
    """Return what a library's list says of an element, None where there is no list or it lacks the element."""
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        entry = content.get(element) if isinstance(content, dict) else None
        if isinstance(entry, dict) and {"filename", "cutoff_wfc", "cutoff_rho"} <= set(entry):
            return entry
    return None


def read_header(path: Path) -> Pseudopotential:
    """Read the header of a UPF file, of version 1 or 2.

    Raises:
        InputSetError: It has none.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    begin, end = text.find("<PP_HEADER"), text.find("<PP_MESH")
    header = text[begin : end if end > begin else None]
    if begin < 0:
        raise InputSetError(f"{path} is no pseudopotential in the UPF format: it has no header; get another.")
    try:
        if not header.startswith("<PP_HEADER>"):
            values = {name.lower(): value for name, value in _ATTRIBUTE.findall(header)}
            cutoff = float(values.get("wfc_cutoff") or 0.0)
            return Pseudopotential(
                path.name,
                values["element"].strip(),
                values["functional"],
                float(values["z_valence"].upper().replace("D", "E")),
                cutoff,
                float(values.get("rho_cutoff") or 0.0) if cutoff else 0.0,
            )
        lines = header.splitlines()[1:]
        cutoffs = [float(number) for number in lines[7].split()[:2]]
        return Pseudopotential(
            path.name, lines[1].split()[0], lines[4], float(lines[5].split()[0]), cutoffs[0], cutoffs[1]
        )
    except (KeyError, ValueError, IndexError) as error:
        raise InputSetError(f"{path}: its header cannot be read; get the pseudopotential anew.") from error


def _is_pbe(functional: str) -> bool:
    """Return whether a header's functional is PBE, by its name or as its parts."""
    words = functional.upper().split("EXCHANGE")[0].replace("-", " ").replace("+", " ").split()
    parts = {"SLA", "PW", "PBX", "PBC"}
    return words[:1] == ["PBE"] or words[:4] == ["SLA", "PW", "PBE", "PBE"] or set(words) - {"PBE"} == parts


def _cutoffs(found: list[Pseudopotential], settings: Any) -> tuple[float, float, list[str]]:
    """Return the cutoffs that all pseudopotentials need, in Ry, and what to say about them."""
    cutoff = density = 0.0
    guessed = []
    for one in found:
        mine = one.cutoff if one.checked else max(one.cutoff or USUAL_CUTOFF, LEAST_CUTOFF)
        # 4 for norm-conserving ones, 8 for others, which suggest more themselves
        ratio = one.density_cutoff / one.cutoff if one.cutoff else 4.0
        cutoff, density = max(cutoff, mine), max(density, mine * max(ratio, 4.0))
        guessed += [] if one.checked else [one.file]
    cutoff, density = math.ceil(cutoff - _SMALL), math.ceil(density - _SMALL)
    if not guessed or "ecutwfc" in {key.lower() for key in settings}:
        return cutoff, density, []
    rule = (
        f"No list with converged cutoffs beside {', '.join(guessed)}: {cutoff:g} and {density:g} Ry are by rule of "
        "thumb; check them, or give ecutwfc and ecutrho."
    )
    return cutoff, density, [rule]


def read_steps(path: Path) -> IonicSteps:
    """Read the ionic steps of an output of pw.x.

    Atoms held fixed, and the settings, are those of the input beside it.

    Raises:
        StructureError: There is no complete step in it, or the input beside it is of other atoms.
    """
    text = text_of(path)
    images = _whole_images(path, text)
    notes = doubts(text, _DONE, _NO_SCF)
    settings, start = _beside(path)
    if start is None:
        notes.append("no input (*.pwi) beside it: atoms held fixed, if any, count in the largest force")
    else:
        take_start(path, images, *start)
    energies, fmax, formula, last = course(images, path)
    converged = True if _CONVERGED in text else False if _DONE in text or _STOPPED in text else None
    return IonicSteps(
        path,
        formula,
        energies,
        fmax,
        converged,
        settings,
        tuple(notes),
        code="espresso",
        atoms=last,
        input_settings=bool(settings),
    )


def _whole_images(path: Path, text: str) -> list[Atoms]:
    """Return the steps of an output; where its end cannot be read, those before it."""
    while True:
        stream = io.StringIO(text)
        stream.name = str(path)
        try:
            images = read_images(path, "espresso-out", stream)
            course(images, path)
        except StructureError:
            cut = text.rfind(_FORCES)
            if cut < 0:
                raise
            text = text[:cut]
        else:
            return images


def _beside(path: Path) -> tuple[dict[str, str], tuple[Path, Atoms] | None]:
    """Return the settings and the structure of the input beside an output."""
    from ase.io.espresso import read_espresso_in, read_fortran_namelist  # noqa: PLC0415 - slow to import

    own = path.with_suffix(".pwi")
    found = [own] if own.is_file() else sorted(path.parent.glob("*.pwi"))
    if len(found) != 1:
        return {}, None
    try:
        with found[0].open(encoding="utf-8") as stream:
            data, cards = read_fortran_namelist(stream)
        with found[0].open(encoding="utf-8") as stream:
            atoms = read_espresso_in(stream)
    except Exception as error:  # ASE's reader raises anything
        raise StructureError(f"{found[0]}: cannot be read as an input of pw.x ({type(error).__name__})") from error
    settings = {key: str(value) for part in data.values() for key, value in part.items() if key not in _PLACES}
    points = next((k for k, line in enumerate(cards) if line.upper().startswith("K_POINTS")), None)
    if points is not None:
        gamma = "gamma" in cards[points].lower()
        settings["k-points"] = "1 1 1 0 0 0" if gamma else " ".join(cards[points + 1].split())
    return settings, (found[0], atoms)


CODE = Code("espresso", "Quantum ESPRESSO", files, (INPUT,), (OUTPUT, "*.pwo"), read_steps, banner="Program PWSCF")
