"""The state of a structure beside its atoms: charge, spin multiplicity, functional, ground or excited.

What a network sees of it are four whole numbers, one a property, zero wherever nothing is known. The tables below
give them their meaning; they may grow at their ends and nowhere else, because weights and packed data sets hold the
numbers.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_definet.errors import StructureError
from ase_definet.structures.charges import charge_of, whole_charge

if TYPE_CHECKING:
    from ase import Atoms

MAX_CHARGE = 4
"""Largest magnitude of a net charge that has a number of its own, in e."""

MAX_MULTIPLICITY = 8
"""Largest spin multiplicity that has a number of its own."""

FUNCTIONALS = ("PBE", "HSE06", "PBEsol", "SCAN", "r2SCAN", "PBE0", "LDA", "B3LYP")
"""Exchange-correlation functionals that data and users may name."""

N_CODES = (2 * MAX_CHARGE + 2, MAX_MULTIPLICITY + 1, 32, 3)
"""Values that the four numbers may take: charge, multiplicity, functional (with room for more), excitation."""


@dataclass(frozen=True, slots=True)
class State:
    """What a structure is computed as.

    Attributes:
        charge: Net charge of the cell, in e; None where it is unknown.
        spin_multiplicity: Number of unpaired electrons plus one; None where it is unknown.
        functional: One of :data:`FUNCTIONALS`; None where it is unknown.
        excited: Whether it is an electronically excited state; None where it is unknown.

    Examples:
        >>> State(charge=-1, spin_multiplicity=3).codes
        (4, 3, 1, 1)
        >>> State.from_codes((4, 3, 1, 1))
        State(charge=-1, spin_multiplicity=3, functional='PBE', excited=False)
    """

    charge: int | None = 0
    spin_multiplicity: int | None = None
    functional: str | None = "PBE"
    excited: bool | None = False

    def __post_init__(self) -> None:
        """Refuse what no structure can be.

        Raises:
            StructureError: The charge has no number, the multiplicity is below 1, the functional is not known.
        """
        if self.charge is not None and abs(self.charge) > MAX_CHARGE:
            raise StructureError(
                f"a charge of {self.charge:+d} e is larger than {MAX_CHARGE} e, which no data set here has"
            )
        multiplicity = self.spin_multiplicity
        if multiplicity is not None and not 1 <= multiplicity <= MAX_MULTIPLICITY:
            raise StructureError(
                f"the spin multiplicity must be between 1 (no unpaired electron) and {MAX_MULTIPLICITY}, found "
                f"{multiplicity}"
            )
        if self.functional is not None and self.functional not in FUNCTIONALS:
            raise StructureError(f"{self.functional!r} is not among the functionals {', '.join(FUNCTIONALS)}")

    @property
    def codes(self) -> tuple[int, int, int, int]:
        """The four numbers that a network sees, 0 for what is unknown."""
        return (
            0 if self.charge is None else self.charge + MAX_CHARGE + 1,
            self.spin_multiplicity or 0,
            0 if self.functional is None else FUNCTIONALS.index(self.functional) + 1,
            0 if self.excited is None else 1 + self.excited,
        )

    @classmethod
    def from_codes(cls, codes: Any) -> State:
        """Return the state of four numbers; the other way round of :attr:`codes`."""
        charge, multiplicity, functional, excited = (int(code) for code in codes)
        return cls(
            charge=charge - MAX_CHARGE - 1 if charge else None,
            spin_multiplicity=multiplicity or None,
            functional=FUNCTIONALS[functional - 1] if functional else None,
            excited=excited == 2 if excited else None,  # noqa: PLR2004 - 1 is the ground state
        )

    @property
    def info(self) -> dict[str, Any]:
        """What is known of it as keys of ``atoms.info``, which :func:`state_of` reads."""
        values = {name: getattr(self, name) for name in ("charge", "spin_multiplicity", "functional", "excited")}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        """Say the state in a few words: ``charge -1, triplet, HSE06``."""
        words = [
            "" if self.charge is None else f"charge {self.charge:+d}" if self.charge else "neutral",
            "" if self.spin_multiplicity is None else multiplicity_name(self.spin_multiplicity),
            self.functional or "",
            "excited" if self.excited else "",
        ]
        return ", ".join(word for word in words if word) or "unknown"


NEUTRAL = State()
"""What a structure is taken for that says nothing: neutral, any spin, PBE, in its ground state."""

_MULTIPLICITY_NAMES = ("singlet", "doublet", "triplet", "quartet", "quintet", "sextet", "septet", "octet")


def multiplicity_name(multiplicity: int) -> str:
    """Return what a spin multiplicity is called: ``triplet`` for 3."""
    return _MULTIPLICITY_NAMES[multiplicity - 1]


def state_of(atoms: Atoms) -> State:
    """Return the state that a structure says it is in.

    The charge is that of :func:`~ase_definet.structures.charges.charge_of`; ``info`` may hold ``spin_multiplicity``,
    ``functional`` (its first word counts, so that ``HSE06 a=0.32`` is HSE06) and ``excited``.

    Raises:
        StructureError: One of them is no such value.

    Examples:
        >>> from ase import Atoms
        >>> str(state_of(Atoms("N", info={"charge": 1, "spin_multiplicity": 3, "functional": "HSE06"})))
        'charge +1, triplet, HSE06'
    """
    info = atoms.info
    return State(
        charge=charge_of(atoms).value,
        spin_multiplicity=_multiplicity(info.get("spin_multiplicity")),
        functional=functional_named(info["functional"]) if info.get("functional") else NEUTRAL.functional,
        excited=_flag(info.get("excited", False)),
    )


def functional_named(text: Any) -> str:
    """Return the functional that a text begins with, spelt as in :data:`FUNCTIONALS`.

    Raises:
        StructureError: It is none of them.
    """
    word = next(iter(str(text).split()), "")
    found = {name.lower(): name for name in FUNCTIONALS}
    if word.lower() not in found:
        near = difflib.get_close_matches(word.lower(), found, n=1)
        hint = f"; did you mean {found[near[0]]}?" if near else ""
        raise StructureError(f"functional {word!r} is not known; expected one of {', '.join(FUNCTIONALS)}{hint}")
    return found[word.lower()]


def _multiplicity(value: Any) -> int | None:
    if value is None:
        return None
    try:
        number = whole_charge(value, "")
    except StructureError:
        number = 0
    if number < 1:
        raise StructureError(
            f"atoms.info['spin_multiplicity'] must be a whole number, 1 for no unpaired electron; found {value!r}"
        )
    return number


def _flag(value: Any) -> bool:
    if isinstance(value, bool | np.bool_) or value in (0, 1):
        return bool(value)
    raise StructureError(f"atoms.info['excited'] must be true or false, found {value!r}")
