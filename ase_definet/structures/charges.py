"""The net charge of a structure, and its source."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ase_definet.errors import StructureError

if TYPE_CHECKING:
    from ase import Atoms

Source: TypeAlias = Literal["none", "stated", "initial charges"]

CHARGE_SOURCE = "charge_source"
"""Key of ``atoms.info`` that preserves the source of a charge through conversions to other packages."""

STATED_TOLERANCE = 1e-3
"""Tolerance for a given charge to be a whole number, in e."""
SUMMED_TOLERANCE = 0.02
"""Tolerance for the sum of atomic charges to be a whole number, in e; it accumulates rounding errors."""

STATED: Source = "stated"
"""Source of a charge that was set explicitly."""

UNKNOWN = "unknown"
"""Value in ``atoms.info`` of an unknown charge, functional or excitation; a missing value means the default."""

_SUMMED: Source = "initial charges"


@dataclass(frozen=True)
class NetCharge:
    """Net charge of a cell.

    Attributes:
        value: In units of e; +1 is one electron fewer.
        source: ``stated`` by ``info["charge"]``, taken from the sum of the atoms' ``initial charges``, or ``none``.
        note: Notice for the user, or empty: that a charge was inferred, or that atomic charges were not taken as
            a charge.
    """

    value: int
    source: Source = "none"
    note: str = ""


def charge_of(atoms: Atoms) -> NetCharge:
    """Return the net charge of a structure and its source.

    ``info["charge"]`` takes precedence. Without it, a sum of the initial charges close to a non-zero whole number is
    used, with a note: partial charges of a neutral cell add up to about zero, but formal charges of a neutral vacancy
    do not. Oxidation states and a charge of :data:`UNKNOWN` are not taken as a charge.

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
    """Set the net charge of a structure, in e, in place, overriding all other sources."""
    atoms.info["charge"] = charge
    atoms.info.pop(CHARGE_SOURCE, None)


def is_unknown(value: Any) -> bool:
    """Return whether a value of ``atoms.info`` means unknown."""
    return isinstance(value, str) and value.strip().lower() == UNKNOWN


def whole_charge(value: Any, name: str) -> int:
    """Return a given charge as an integer, in e.

    Args:
        value: A number, or text that is one, such as ``"+1"``.
        name: Its name in errors.

    Raises:
        StructureError: It is not a whole number.
    """
    try:
        # booleans are rejected, arrays with one element are accepted
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
    """Return the charge inferred from the charges of the atoms, with its note."""
    charges = np.asarray(atoms.get_initial_charges())
    total = float(charges.sum()) if charges.dtype.kind in "biuf" else np.nan  # a file may hold text there
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
    """Return the sum of the oxidation states set by pymatgen, in e."""
    states = atoms.arrays.get("oxi_states")
    if states is None:
        return 0.0
    return float(sum(float(state) for state in states if isinstance(state, Real)))
