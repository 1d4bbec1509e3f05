"""INCAR tags and POTCAR symbols: profiles, overrides, magnetic starts, dipole correction, valence electrons."""

from __future__ import annotations

import re
import warnings as python_warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms

from ase_definet.errors import InputSetError
from ase_definet.host import VACUUM_GAP

Profile = Literal["paper", "few-steps", "robust"]
Magnetic = Literal["high-spin", "parity", "none"]

_PUBLISHED: dict[str, Any] = {
    "ENCUT": 500,
    "EDIFF": 1e-6,
    "EDIFFG": -0.01,
    "ISPIN": 2,
    "ISIF": 2,
    "ISMEAR": 0,
    "SIGMA": 0.05,
    "IBRION": 2,
    "NSW": 30,
}
_CAREFUL = _PUBLISHED | {"PREC": "Accurate", "ISYM": 0, "LREAL": False}

PROFILES: Mapping[str, Mapping[str, Any]] = {
    "paper": _PUBLISHED,
    "few-steps": _CAREFUL | {"IBRION": 1, "NELMIN": 5},
    "robust": _CAREFUL,
}
"""INCAR tags of each profile. Where the paper is silent, ``paper`` leaves VASP's defaults, except for the
smearing and the ionic steps (ISMEAR, SIGMA, IBRION, NSW), whose defaults do not relax a defect."""

FUNCTIONAL = "PBE_54"
"""POTCAR release; the symbols are those pymatgen's MPScanRelaxSet chooses from it (W_sv: it has no W_pv)."""
HIGH_SPIN_MOMENT = 5.0
"""Starting moment of elements with an open d or f shell, in μB."""
LOW_SPIN_MOMENT = 0.6
"""Starting moment of all other elements, in μB."""
UNIT_MOMENT = 1.0
"""Starting moment of every atom where NUPDOWN decides, in μB; VASP's own default."""
_OPEN_SHELL = frozenset((*range(21, 30), *range(39, 48), *range(57, 80), *range(89, 113)))
_ASSIGNMENT = re.compile(r"\s*([A-Za-z][A-Za-z0-9_/]*)\s*=\s*(\S.*?)\s*", re.DOTALL)


def parse_incar_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse ``TAG=value`` strings into typed INCAR tags.

    Args:
        assignments: Such as ``["NSW=60", "LREAL=Auto"]``.

    Returns:
        Upper-case tags and their values.

    Raises:
        InputSetError: If one is no assignment, has no value of its tag's type, or repeats a tag.

    Example:
        >>> parse_incar_overrides(["nsw=60", "LDIPOL=.TRUE."])
        {'NSW': 60, 'LDIPOL': True}
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        match = _ASSIGNMENT.fullmatch(assignment)
        if match is None or "\n" in assignment:
            raise InputSetError(f"Expected an INCAR override as TAG=value, such as NSW=60; found {assignment!r}.")
        tag = match[1].upper()
        if tag in parsed:
            raise InputSetError(f"The INCAR tag {tag} is overridden twice; give it once.")
        parsed[tag] = typed(tag, match[2])
    return parsed


def spin_tags(atoms: Atoms, magnetic: str, order: np.ndarray) -> tuple[dict[str, Any], list[str]]:
    """Return ISPIN and MAGMOM, in POSCAR order."""
    own = atoms.get_initial_magnetic_moments()
    if magnetic == "none":
        lost = ["The atoms' initial magnetic moments were ignored: magnetic is 'none'."] if own.any() else []
        return {"ISPIN": 1}, lost
    if magnetic not in ("high-spin", "parity"):
        raise InputSetError(f"Unknown magnetic start {magnetic!r}; choose high-spin, parity or none.")
    if own.ndim != 1:
        raise InputSetError("Expected collinear moments, one number per atom; found vectors. Give MAGMOM in incar.")
    if not own.any():
        is_open = np.isin(atoms.numbers, list(_OPEN_SHELL))
        own = np.where(is_open, HIGH_SPIN_MOMENT, LOW_SPIN_MOMENT)
        own = np.full(len(atoms), UNIT_MOMENT) if magnetic == "parity" else own
    return {"ISPIN": 2, "MAGMOM": own[order].tolist()}, []


def dipole_tags(atoms: Atoms, gaps: list[tuple[float, float]], vacuum: list[int], charge: float) -> dict[str, Any]:
    """Return the tags of the dipole correction; DIPOL is the centre of mass, in fractions of the cell."""
    if len(vacuum) != 1:
        found = ", ".join(f"{width:.1f}" for width, _ in gaps)
        raise InputSetError(
            f"The dipole correction needs exactly one vacuum axis (a gap of {VACUUM_GAP:g} Å or more); the gaps "
            f"along a, b, c are {found} Å. Leave dipole out, or give LDIPOL, IDIPOL and DIPOL through incar."
        )
    if charge:
        raise InputSetError("VASP stops on charged cells with the dipole correction; use it for neutral slabs only.")
    edge = np.array([centre for _, centre in gaps])  # cut every axis where the cell is emptiest
    unwrapped = (atoms.get_scaled_positions(wrap=False) - edge) % 1.0
    centre = (np.average(unwrapped, axis=0, weights=atoms.get_masses()) + edge) % 1.0
    return {"LDIPOL": True, "IDIPOL": vacuum[0] + 1, "DIPOL": [round(float(x), 6) for x in centre]}


def typed(tag: str, value: Any) -> Any:
    """Return an INCAR value as pymatgen types it, or say why it is not one."""
    from pymatgen.io.vasp.inputs import BadIncarWarning, Incar  # noqa: PLC0415 - slow to import

    if _ASSIGNMENT.fullmatch(f"{tag}=x") is None:
        raise InputSetError(f"{tag!r} is not an INCAR tag; expected a name such as NSW.")
    if isinstance(value, list | tuple | np.ndarray):
        return np.asarray(value).tolist()
    text = str(value)
    typed = Incar.proc_val(tag, text)
    with python_warnings.catch_warnings(record=True) as caught:
        python_warnings.simplefilter("always", BadIncarWarning)
        Incar({tag: typed}).check_params()
    if any(" is not a " in str(item.message) for item in caught) or not _same_number(typed, text):
        raise InputSetError(f"{text!r} is not a value of the INCAR tag {tag}.")
    return typed


def _same_number(typed: Any, text: str) -> bool:
    """Return whether a parsed number is the whole of its text (pymatgen reads ``1d-6`` as 1, ``60.5`` as 60)."""
    if isinstance(typed, bool) or not isinstance(typed, int | float):
        return True
    try:
        return float(text) == typed
    except ValueError:
        return False


def final_incar(
    tags: dict[str, Any], overrides: dict[str, Any], n_atoms: int
) -> tuple[Any, dict[str, tuple[Any, Any]], list[str]]:
    """Return the Incar with its overrides, what they replaced, and what pymatgen doubts about it."""
    from pymatgen.io.vasp.inputs import BadIncarWarning, Incar  # noqa: PLC0415 - slow to import

    merged = tags | overrides
    moments = merged.get("MAGMOM")
    per_atom = 3 if merged.get("LNONCOLLINEAR") or merged.get("LSORBIT") else 1
    if moments is not None and np.size(moments) != per_atom * n_atoms:
        raise InputSetError(
            f"MAGMOM needs {per_atom * n_atoms} values for {n_atoms} atoms; found {np.size(moments)}."
        )
    written = Incar(merged)
    with python_warnings.catch_warnings(record=True) as caught:
        python_warnings.simplefilter("always", BadIncarWarning)
        written.check_params()
    overridden = {tag: (tags.get(tag), written[tag]) for tag in overrides}
    return written, overridden, [f"INCAR: {item.message}." for item in caught]


def potcar_symbols(blocks: list[str]) -> list[str]:
    """Return the POTCAR symbol of each species."""
    from pymatgen.io.vasp.sets import MPScanRelaxSet  # noqa: PLC0415 - slow to import

    table = MPScanRelaxSet.CONFIG["POTCAR"]
    missing = [symbol for symbol in blocks if symbol not in table]
    if missing:
        raise InputSetError(f"{FUNCTIONAL} has no POTCAR for {', '.join(missing)}.")
    return [table[symbol] for symbol in blocks]


def library_potcars(symbols: list[str]) -> tuple[list[Any], list[str]]:
    """Return the POTCARs of the user's library, none where there is no library or it lacks one."""
    from pymatgen.core import SETTINGS  # noqa: PLC0415 - slow to import
    from pymatgen.io.vasp.inputs import PotcarSingle  # noqa: PLC0415 - slow to import

    if not SETTINGS.get("PMG_VASP_PSP_DIR"):
        return [], []
    with python_warnings.catch_warnings(record=True) as caught:
        python_warnings.simplefilter("always")
        try:
            potcars = [PotcarSingle.from_symbol_and_functional(symbol, FUNCTIONAL) for symbol in symbols]
        except (OSError, ValueError) as error:
            return [], [f"No POTCAR was written: {' '.join(str(error).split())}"]
    return potcars, [str(item.message) for item in caught]


def valence_electrons(symbols: list[str], potcars: list[Any]) -> list[float]:
    """Return the valence electrons of each POTCAR, from the files or else from pymatgen's table of them."""
    if potcars:
        return [float(potcar.nelectrons) for potcar in potcars]
    from monty.serialization import loadfn  # noqa: PLC0415 - comes with pymatgen
    from pymatgen.io.vasp import inputs  # noqa: PLC0415 - slow to import

    try:
        table = loadfn(Path(inputs.__file__).parent / "potcar-summary-stats.json.bz2")[FUNCTIONAL]
        valence = {entry["symbol"]: float(entry["ZVAL"]) for entries in table.values() for entry in entries}
        return [valence[symbol] for symbol in symbols]
    except (OSError, KeyError) as error:
        raise InputSetError(
            "The valence electrons are unknown without POTCARs; set PMG_VASP_PSP_DIR for pymatgen or give NELECT "
            "through incar."
        ) from error
