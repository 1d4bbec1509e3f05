"""INCAR tags and POTCAR symbols: profiles, overrides, magnetic starts, dipole correction, valence electrons."""

from __future__ import annotations

import math
import re
import warnings as python_warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ase_definet.dft.incar_rules import PER_SPECIES
from ase_definet.errors import InputSetError
from ase_definet.structures.cell import VACUUM_GAP

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

FUNCTIONAL_TAGS: Mapping[str, Mapping[str, Any]] = {
    "PBE": {},
    "PBEsol": {"GGA": "PS"},
    "SCAN": {"METAGGA": "SCAN", "LASPH": True, "ALGO": "All"},
    "r2SCAN": {"METAGGA": "R2SCAN", "LASPH": True, "ALGO": "All"},
    "HSE06": {"LHFCALC": True, "HFSCREEN": 0.2, "AEXX": 0.25, "ALGO": "All"},
    "PBE0": {"LHFCALC": True, "AEXX": 0.25, "ALGO": "All"},
}
"""What makes a functional of the PBE of the POTCARs; a functional that is not here gets an input set in PBE.

ALGO = All suits defects with a gap; VASP's Fast and VeryFast do not work with hybrids.
"""
FUNCTIONAL = "PBE_54"
"""POTCAR release; the symbols are those pymatgen's MPScanRelaxSet chooses from it (W_sv: it has no W_pv)."""
CALCULATED_MOMENTS = "MAGMOM has the moments that the atoms' calculator found, for want of initial ones."
"""What to say where moments are no initial ones."""
HIGH_SPIN_MOMENT = 5.0
"""Starting moment of elements with an open d or f shell, in μB."""
LOW_SPIN_MOMENT = 0.6
"""Starting moment of all other elements, in μB."""
UNIT_MOMENT = 1.0
"""Starting moment of every atom where NUPDOWN decides, in μB; VASP's own default."""
_MOMENT_DIGITS = 6
_OPEN_SHELL = frozenset((*range(21, 30), *range(39, 48), *range(57, 80), *range(89, 113)))
_TEXT_LISTS = ("LOCPROJ",)
_NOT_NAMED: Mapping[str, float] = {"LDAUL": -1}
_LATER_VALUES: Mapping[str, tuple[str, ...]] = {
    "ALGO": ("N", "F", "V", "Very_Fast", "A", "D", "C", "S", "E", "CRPA", "CRPAR", "2E4W", "2E4WA", "CHIR"),
    "GGA": ("MS", "BF", "HL", "WI", "B3", "B5", "PBE", "SL", "RP", "--"),
    "IBRION": ("11", "12", "40"),
    "ICHARG": ("5",),
    "ISYM": ("-2",),
    "IVDW": ("3", "13", "14", "15", "22", "263"),
    "LORBIT": ("13", "14"),
    "LREAL": ("T", "F"),
    "MDALGO": ("4", "5"),
    "METAGGA": (
        *("NONE", "--", "LIBXC", "R2SCAN", "RSCAN", "SCANL", "RSCANL", "R2SCANL", "OFR2", "LMBJ", "TASK", "LAK"),
        *("REVTPSS", "M06-L", "MN15L", "REVM06L", "MS0", "MSB86BL", "RMS0", "PKZB", "HLE17", "TM", "RTM"),
        *("SREGTM1", "SREGTM2", "SREGTM3", "SREGTM2L", "V1-SREGTM", "V2-SREGTM", "V3-SREGTM", "V2-SREGTM-L"),
    ),
    "PREC": ("L", "M", "H", "N", "S", "A", "SingleN"),
    "PRECFOCK": ("L", "M", "F", "N", "A", "Single"),
}
"""Tags and values of VASP that are missing from pymatgen's lists."""
_LATER_TAGS = re.compile(
    r"XC|XC_C|LIBXC[12](_P\d+)?|ML_\w+|PHON_\w+|LH5|L\w+H5|KERNEL_TRUNCATION/\w+|ESF_\w+|NCORE_IN_IMAGE1|BEXT|LSFBXC"
    r"|ISPHER|LVACPOTAV|NELMGW|NUM_WANN|LSCDM|LDISENTANGLE\w*|LASPH|LMP2\w*|LTRIPLET|IVDW_NL|ELPH_\w+|TRANSPORT_\w+"
    r"|EB_K|TAU|LAMBDA_D_K|NC_K|SIGMA_K|LRHOB|LRHOION|LNLDIEL"  # VASPsol
    r"|IOPT|LCLIMB|LNEBCELL|MAXMOVE|ILBFGSMEM|TIMESTEP|ICHAIN|LTANGENTOLD|DROTMAX|DFNMIN|DFNMAX"  # VTST
)
"""Tags that VASP, or its well-known extensions, have and pymatgen's list lacks."""
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
        if match is None or not assignment.replace("\t", " ").isprintable():  # bytes that are no UTF-8 are not
            raise InputSetError(f"Expected an INCAR override as TAG=value, such as NSW=60; found {assignment!r}.")
        tag = match[1].upper()
        if tag in parsed:
            raise InputSetError(f"The INCAR tag {tag} is overridden twice; give it once.")
        parsed[tag] = typed(tag, match[2])
    return parsed


def spin_tags(
    atoms: Atoms, magnetic: str, order: np.ndarray, overrides: Mapping[str, Any], unpaired: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return ISPIN and MAGMOM, in POSCAR order, and what to say about them.

    Moments that the atoms have are what MAGMOM says, zeros too. Without any, those of a known number of unpaired
    electrons add up to it.
    """
    if magnetic not in ("high-spin", "parity", "none"):
        raise InputSetError(f"Unknown magnetic start {magnetic!r}; choose high-spin, parity or none.")
    vectors = bool(overrides.get("LNONCOLLINEAR") or overrides.get("LSORBIT"))
    own, notes = own_moments(atoms)
    if magnetic == "none" or (overrides.get("ISPIN") == 1 and not vectors):
        why = "magnetic is 'none'" if magnetic == "none" else "ISPIN is 1"
        lost = own is not None and own.any()
        return {"ISPIN": 1}, [f"The atoms' initial magnetic moments were ignored: {why}."] if lost else []
    if own is None:
        own = starting_moments(atoms.numbers, magnetic)
        own = own if unpaired is None or vectors else np.round(own * unpaired / own.sum(), _MOMENT_DIGITS)
    elif not own.any():
        notes.append(
            "All initial magnetic moments of the atoms are 0 and MAGMOM says so: VASP will find no spin from there. "
            "For another start remove them: del atoms.arrays['initial_magmoms']."
        )
    if not vectors and own.ndim > 1:
        raise InputSetError(
            "Expected collinear moments, one number per atom; found vectors. Give LNONCOLLINEAR = True or LSORBIT = "
            "True in incar (--incar LSORBIT=True) to have them written, or set one number per atom."
        )
    if not vectors:
        return {"ISPIN": 2, "MAGMOM": own[order].tolist()}, notes
    if own.ndim == 1:
        own = np.column_stack([np.zeros((len(own), 2)), own])
        if "MAGMOM" not in overrides:
            notes.append("MAGMOM has vectors, as LNONCOLLINEAR and LSORBIT need them: all moments along SAXIS (z).")
    return {"MAGMOM": own[order].tolist()}, notes


def starting_moments(numbers: np.ndarray, magnetic: str) -> np.ndarray:
    """Return the moments from which atoms start that have none of their own, shape ``(n_atoms,)``, in μB."""
    if magnetic == "parity":
        return np.full(len(numbers), UNIT_MOMENT)
    return np.where(np.isin(numbers, list(_OPEN_SHELL)), HIGH_SPIN_MOMENT, LOW_SPIN_MOMENT)


def own_moments(atoms: Atoms) -> tuple[np.ndarray | None, list[str]]:
    """Return the moments given with the atoms, shape ``(n_atoms,)`` or ``(n_atoms, 3)`` in μB, and what to say.

    Initial moments come first; without them the moments that a calculator found are a start as good.
    """
    results = getattr(atoms.calc, "results", None) or {}
    found = results.get("magmoms")
    if atoms.has("initial_magmoms"):
        own, notes = atoms.get_initial_magnetic_moments(), []
    elif found is not None and np.any(found):
        own = np.asarray(found, dtype=float)
        notes = [CALCULATED_MOMENTS]
    else:
        return None, []
    if own.shape not in {(len(atoms),), (len(atoms), 3)} or not np.isfinite(own).all():
        raise InputSetError(
            f"Expected one finite magnetic moment, or vector, for each of {len(atoms)} atoms; found shape "
            f"{own.shape}{'' if np.isfinite(own).all() else ' with values that are not finite'}."
        )
    return own, notes


def dipole_tags(atoms: Atoms, gaps: list[tuple[float, float]], vacuum: list[int], charge: int) -> dict[str, Any]:
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
    """Return an INCAR value in its tag's type, text as it was written, or say why it is not one."""
    from pymatgen.io.vasp.inputs import Incar  # noqa: PLC0415 - slow to import

    if _ASSIGNMENT.fullmatch(f"{tag}=x") is None:
        raise InputSetError(f"{tag!r} is not an INCAR tag; expected a name such as NSW.")
    kinds = {kind.strip() for kind in (Incar.INCAR_PARAMS.get(tag, {}).get("type") or "").split("|")} - {""}
    shown = value if isinstance(value, str) else repr(value)
    refusal = InputSetError(f"{shown} is not a value of the INCAR tag {tag}.")
    if isinstance(value, Mapping):
        return _by_element(tag, value)
    if isinstance(value, list | tuple | np.ndarray):
        values = np.asarray(value)
        if (kinds and "list" not in kinds) or values.dtype.kind not in "bif" or not np.isfinite(values).all():
            raise refusal
        return values.tolist()
    if isinstance(value, bool | np.bool_) and kinds and not kinds & {"bool", "list"}:
        raise refusal
    text = str(value).strip()
    if "list" in kinds and tag not in _TEXT_LISTS:
        numbers = _list_of(text)
        if numbers is None:
            raise refusal
        return numbers
    read = Incar.proc_val(tag, text)
    if isinstance(read, str):  # pymatgen writes it with one capital: R2scan
        read = text
    names = {"bool": bool, "int": int, "float": float, "str": str, "list": list}
    fits = not kinds or tag in _TEXT_LISTS or any(isinstance(read, names[kind]) for kind in kinds)
    if not fits or not text or not _same_number(read, text):
        raise refusal
    return read


def _by_element(tag: str, value: Mapping[Any, Any]) -> dict[str, float]:
    """Return a value given by element, checked."""
    if tag not in (*PER_SPECIES, "MAGMOM"):
        raise InputSetError(f"{tag} is not given by element; only MAGMOM and {', '.join(PER_SPECIES)} are.")
    out = {}
    for key, number in value.items():
        if key not in chemical_symbols[1:] or isinstance(number, bool) or not isinstance(number, int | float):
            raise InputSetError(
                f"{tag} by element needs a number for each symbol, such as {{'Mo': 4}}; found {key!r}: {number!r}."
            )
        if not np.isfinite(number):
            raise InputSetError(f"{tag} by element needs finite numbers; found {key!r}: {number!r}.")
        out[str(key)] = number
    return out


def named(incar: Mapping[str, Any]) -> dict[str, Any]:
    """Return tags in capitals with values in their types.

    Raises:
        InputSetError: A value is not one of its tag, or a tag comes twice in other capitals.
    """
    out: dict[str, Any] = {}
    for name, value in incar.items():
        tag = name.strip().upper()
        if tag in out:
            raise InputSetError(f"The INCAR tag {tag} is overridden twice; give it once.")
        out[tag] = typed(tag, value)
    return out


def expanded(overrides: Mapping[str, Any], symbols: Sequence[str]) -> dict[str, Any]:
    """Write out what was given by element.

    Args:
        overrides: Typed tags; of those given by element, others than named get VASP's value for none of it.
        symbols: Element of each atom, in POSCAR order.
    """
    species = list(dict.fromkeys(symbols))
    out = dict(overrides)
    for tag, value in overrides.items():
        if isinstance(value, Mapping):
            names, rest = (symbols, LOW_SPIN_MOMENT) if tag == "MAGMOM" else (species, _NOT_NAMED.get(tag, 0))
            out[tag] = [value.get(name, rest) for name in names]
    return out


def _list_of(text: str) -> list[Any] | None:
    """Return numbers and flags written as in an INCAR (``2*5 0.6``), None where the text has anything else in it."""
    out: list[Any] = []
    for token in text.replace(",", " ").split():
        *counts, last = token.split("*")
        value = _item(last)
        if value is None or not all(count.isdecimal() for count in counts):
            return None
        out += [value] * math.prod(map(int, counts))
    return out or None


def _item(token: str) -> float | bool | None:
    """Return the number or flag that a token is, None where it is neither."""
    if flag := re.fullmatch(r"\.?([TF])(RUE|ALSE)?\.?", token.upper()):
        return flag[1] == "T"
    try:
        return int(token)
    except ValueError:
        pass
    try:
        number = float(token)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _same_number(typed: Any, text: str) -> bool:
    """Return whether a parsed number is the whole of its text (pymatgen reads ``1d-6`` as 1, ``60.5`` as 60)."""
    if isinstance(typed, bool) or not isinstance(typed, int | float):
        return True
    try:
        return float(text) == typed and math.isfinite(typed)
    except ValueError:
        return False


def final_incar(
    tags: Mapping[str, Any], overrides: Mapping[str, Any], own: Mapping[str, Any] | None = None
) -> tuple[Any, dict[str, tuple[Any, Any]], list[str]]:
    """Return the Incar with its overrides, what they replaced, and its unknown tags and values.

    Args:
        tags: Those of the input set.
        overrides: What replaces or extends them.
        own: The tags as they would be without overrides, which may shape others; ``tags`` by default.
    """
    from ase_definet.dft.incar_file import VerbatimIncar  # noqa: PLC0415 - slow to import

    written = VerbatimIncar(dict(tags) | dict(overrides))
    own = tags if own is None else own
    overridden = {tag: (own.get(tag), written[tag]) for tag in overrides}
    return written, overridden, [text for tag, value in written.items() if (text := _doubt(tag, value))]


def _doubt(tag: str, value: Any) -> str:
    """Return a warning if a tag or its value is unknown to VASP."""
    from pymatgen.io.vasp.inputs import Incar  # noqa: PLC0415 - slow to import

    if tag not in Incar.INCAR_PARAMS:
        return "" if _LATER_TAGS.fullmatch(tag) else f"INCAR: Cannot find {tag} in the list of INCAR tags."
    listed = Incar.INCAR_PARAMS[tag].get("values")
    if listed is None:
        return ""
    known = {str(item).upper() for item in listed} | {item.upper() for item in _LATER_VALUES.get(tag, ())}
    name = str(value).upper()
    if tag == "METAGGA":
        name = re.sub("_[XC]$", "", name)  # exchange or correlation alone
    return "" if name in known else f"INCAR: {tag} = {value} is not among its known values."


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


def largest_enmax(potcars: list[Any]) -> float | None:
    """Return the largest ENMAX of POTCARs, in eV; None where they do not tell."""
    found = [potcar.keywords.get("ENMAX") for potcar in potcars]
    return max((float(enmax) for enmax in found if enmax is not None), default=None)


def valence_electrons(symbols: list[str], potcars: list[Any]) -> list[float]:
    """Return the valence electrons of each POTCAR, from the files or else from pymatgen's table of them."""
    if potcars:
        return [float(potcar.nelectrons) for potcar in potcars]
    try:
        table = _known_valences()
        return [table[symbol] for symbol in symbols]
    except (OSError, KeyError) as error:
        raise InputSetError(
            "The valence electrons are unknown without POTCARs; set PMG_VASP_PSP_DIR for pymatgen or give NELECT "
            "through incar."
        ) from error


@cache
def _known_valences() -> Mapping[str, float]:
    """Return the valence electrons of every POTCAR of the release that pymatgen's table has; it takes a second."""
    from monty.serialization import loadfn  # noqa: PLC0415 - comes with pymatgen
    from pymatgen.io.vasp import inputs  # noqa: PLC0415 - slow to import

    table = loadfn(Path(inputs.__file__).parent / "potcar-summary-stats.json.bz2")[FUNCTIONAL]
    return {entry["symbol"]: float(entry["ZVAL"]) for entries in table.values() for entry in entries}
