"""The net charge of a structure, and who says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ase_definet.errors import StructureError

if TYPE_CHECKING:
    from ase import Atoms

Source: TypeAlias = Literal["none", "stated", "initial charges"]

CHARGE_SOURCE = "charge_source"
"""Key of ``atoms.info`` that keeps the source of a charge on its way through other packages' structures."""

STATED_TOLERANCE = 1e-3
"""A charge that is stated lies this close to a whole number, in e."""
SUMMED_TOLERANCE = 0.02
"""A sum of the atoms' charges this close to a whole number is that number, in e; it adds many roundings."""

STATED: Source = "stated"
"""Source of a charge that somebody gave."""

UNKNOWN = "unknown"
"""In ``atoms.info``, what to say of a charge, functional or excitation that nobody knows: silence has a meaning."""

_SUMMED: Source = "initial charges"


@dataclass(frozen=True)
class NetCharge:
    """Net charge of a cell.

    Attributes:
        value: In units of e; +1 is one electron fewer.
        source: ``stated`` by ``info["charge"]``, taken from the sum of the atoms' ``initial charges``, or ``none``.
        note: What the user must know about it, empty where there is nothing to say: a charge that was not stated, or
            charges of atoms that were not taken for one.
    """

    value: int
    source: Source = "none"
    note: str = ""


def charge_of(atoms: Atoms) -> NetCharge:
    """Return the net charge a structure says it has, and where it says so.

    ``info["charge"]`` decides. Without it a sum of the initial charges that lies near a whole number other than zero
    is taken, with a note: partial charges of a neutral cell come near zero, but formal ones of a neutral vacancy do
    not. Oxidation states never make a charge, nor does a charge that is said to be :data:`UNKNOWN`.

    Raises:
        StructureError: ``info["charge"]`` is not a whole number.

    Examples:
        >>> from ase import Atoms
        >>> charge_of(Atoms("MgO", charges=[2, -2])).value
        0
        >>> charge_of(Atoms("MgMgO", charges=[2, 2, -2])).value
        2
    """
    summed, doubt = _summed(atoms)
    given = atoms.info.get("charge")
    if given is None:
        return NetCharge(summed, _SUMMED if summed else "none", doubt)
    if is_unknown(given):
        return NetCharge(0)
    value = whole_charge(given, "atoms.info['charge']")
    if value and value == summed and atoms.info.get(CHARGE_SOURCE) == _SUMMED:
        return NetCharge(summed, _SUMMED, doubt)
    return NetCharge(value, STATED)


def set_charge(atoms: Atoms, charge: int) -> None:
    """State the net charge of a structure, in e, in place; whatever said something else gives way."""
    atoms.info["charge"] = charge
    atoms.info.pop(CHARGE_SOURCE, None)


def is_unknown(value: Any) -> bool:
    """Return whether a value of ``atoms.info`` says that it is unknown."""
    return isinstance(value, str) and value.strip().lower() == UNKNOWN


def whole_charge(value: Any, name: str) -> int:
    """Return a stated charge as a whole number, in e.

    Args:
        value: A number, or text that is one, such as ``"+1"``.
        name: What to call it in an error.

    Raises:
        StructureError: It is no number, or no whole one.
    """
    try:
        # a flag is no number, and an array of one is
        number = float("") if isinstance(value, bool | np.bool_) else float(np.asarray(value).item())
    except (TypeError, ValueError) as error:
        raise StructureError(f"{name} must be a number in e, such as 1 or -2; found {value!r}") from error
    if not np.isfinite(number) or abs(number - round(number)) > STATED_TOLERANCE:
        raise StructureError(
            f"{name} must be a whole number in e, such as 1 or -2; found {value!r}: partial charges belong in the "
            "atoms' initial charges, a fractional number of electrons in NELECT of the INCAR"
        )
    return round(number)


def _summed(atoms: Atoms) -> tuple[int, str]:
    """Return the charge that the charges of the atoms make, and what to say about it."""
    total = float(atoms.get_initial_charges().sum())
    if not np.isfinite(total):
        return 0, "the atoms' initial charges are not all numbers: no net charge was taken from them"
    nearest = round(total)
    if abs(total - nearest) > SUMMED_TOLERANCE:
        return 0, (
            f"the atoms' initial charges sum to {total:+.4g}, no whole number: the cell is taken as neutral; set "
            "info['charge'] or give --charge if it is charged"
        )
    if nearest:
        return nearest, (
            f"net charge {nearest:+d} taken from the sum of the atoms' initial charges; set info['charge'] = 0 or "
            "give --charge 0 if that is not meant"
        )
    states = _oxidation_states(atoms)
    if abs(states) > SUMMED_TOLERANCE:
        return 0, (
            f"the oxidation states sum to {states:+.4g}, which makes no net charge: the cell is taken as neutral; "
            "if it is charged, state that with info['charge'] or --charge"
        )
    return 0, ""


def _oxidation_states(atoms: Atoms) -> float:
    """Return the sum of the oxidation states that pymatgen left, in e."""
    states = atoms.arrays.get("oxi_states")
    if states is None:
        return 0.0
    return float(sum(float(state) for state in states if state is not None))
