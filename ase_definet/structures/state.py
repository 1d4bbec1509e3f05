"""The state of a structure: charge, spin multiplicity, functional, ground or excited state.

Networks receive it as four integer codes, one per property, with zero for unknown. The tables below define the codes.
They may only be extended at their ends, because weights and packed data sets contain the codes.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_definet.errors import StructureError
from ase_definet.structures.charges import UNKNOWN, charge_of, is_unknown, set_charge, whole_charge

if TYPE_CHECKING:
    from ase import Atoms

MAX_CHARGE = 4
"""Largest magnitude of a net charge that has a code, in e."""

MAX_MULTIPLICITY = 8
"""Largest spin multiplicity that has a code."""

FUNCTIONALS = ("PBE", "HSE06", "PBEsol", "SCAN", "r2SCAN", "PBE0", "LDA", "B3LYP")
"""Supported exchange-correlation functionals."""

N_CODES = (2 * MAX_CHARGE + 2, MAX_MULTIPLICITY + 1, 32, 3)
"""Numbers of codes of each property: charge, multiplicity, functional (with room for more), excitation."""


PREDICTED_STATE = "definet_state"
"""Key of ``atoms.info`` with the state that a geometry was predicted for, in words."""


@dataclass(frozen=True, slots=True)
class State:
    """The state in which a structure is computed.

    Attributes:
        charge: Net charge of the cell, in e; None if unknown.
        spin_multiplicity: Number of unpaired electrons plus one; None if unknown.
        functional: One of :data:`FUNCTIONALS`; None if unknown.
        excited: Whether it is an electronically excited state; None if unknown.

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
        """Check the values.

        Raises:
            StructureError: The charge or multiplicity is out of range, or the functional is not supported.
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
        """The four codes that a network receives, 0 for unknown."""
        return (
            0 if self.charge is None else self.charge + MAX_CHARGE + 1,
            self.spin_multiplicity or 0,
            0 if self.functional is None else FUNCTIONALS.index(self.functional) + 1,
            0 if self.excited is None else 1 + self.excited,
        )

    @classmethod
    def from_codes(cls, codes: Any) -> State:
        """Return the state of four codes; the inverse of :attr:`codes`."""
        charge, multiplicity, functional, excited = (int(code) for code in codes)
        return cls(
            charge=charge - MAX_CHARGE - 1 if charge else None,
            spin_multiplicity=multiplicity or None,
            functional=FUNCTIONALS[functional - 1] if functional else None,
            excited=excited == 2 if excited else None,  # noqa: PLR2004 - 1 is the ground state
        )

    @property
    def info(self) -> dict[str, Any]:
        """The state as entries of ``atoms.info`` that :func:`state_of` reads back."""
        values = {name: getattr(self, name) for name in ("charge", "functional", "excited")}
        said = {name: UNKNOWN if value is None else value for name, value in values.items()}
        return said | ({} if self.spin_multiplicity is None else {"spin_multiplicity": self.spin_multiplicity})

    def __str__(self) -> str:
        """Return a short description: ``charge -1, triplet, HSE06``."""
        return _words(self.charge, self.spin_multiplicity, self.functional, "excited" if self.excited else "")


NEUTRAL = State()
"""Default state: neutral, unknown spin, PBE, ground state."""

_MULTIPLICITY_NAMES = ("singlet", "doublet", "triplet", "quartet", "quintet", "sextet", "septet", "octet")


def multiplicity_name(multiplicity: int) -> str:
    """Return the name of a spin multiplicity: ``triplet`` for 3, ``spin multiplicity 9`` beyond the names."""
    named = 1 <= multiplicity <= len(_MULTIPLICITY_NAMES)
    return _MULTIPLICITY_NAMES[multiplicity - 1] if named else f"spin multiplicity {multiplicity}"


@dataclass(frozen=True, slots=True)
class Said:
    """The state given with a structure, which need not have codes.

    Attributes:
        charge: Net charge of the cell, in e; None if unknown.
        spin_multiplicity: Number of unpaired electrons plus one; None if unknown.
        functional: One of :data:`FUNCTIONALS`; None if unknown.
    """

    charge: int | None
    spin_multiplicity: int | None
    functional: str | None

    @property
    def ordinary(self) -> bool:
        """Whether this is the default: a neutral cell of unknown spin, in PBE."""
        return self == Said(0, None, "PBE")

    def __str__(self) -> str:
        """Return a short description, as for a :class:`State`."""
        return _words(self.charge, self.spin_multiplicity, self.functional)


def said_of(atoms: Atoms) -> Said:
    """Return the state given with a structure.

    Raises:
        StructureError: A charge, multiplicity or functional is invalid.
    """
    info = atoms.info
    functional = info.get("functional")
    charge = charge_of(atoms).value
    return Said(
        charge=None if is_unknown(info.get("charge")) else charge,
        spin_multiplicity=_multiplicity(info.get("spin_multiplicity")),
        functional=(None if is_unknown(functional) else functional_named(functional))
        if functional
        else NEUTRAL.functional,
    )


def codes_of(atoms: Atoms) -> tuple[int, int, int, int]:
    """Return the four codes of the state of a structure; values without a code are encoded as unknown.

    Raises:
        StructureError: A charge, multiplicity or functional is invalid.
    """
    said = said_of(atoms)
    charge, multiplicity = said.charge, said.spin_multiplicity
    return State(
        charge=None if charge is None or abs(charge) > MAX_CHARGE else charge,
        spin_multiplicity=None if multiplicity is None or multiplicity > MAX_MULTIPLICITY else multiplicity,
        functional=said.functional,
        excited=excited_of(atoms),
    ).codes


def excited_of(atoms: Atoms) -> bool | None:
    """Return whether a structure is in an electronically excited state; None if unknown.

    Raises:
        StructureError: The value is invalid.
    """
    excited = atoms.info.get("excited", False)
    return None if is_unknown(excited) else _flag(excited)


def _words(charge: int | None, multiplicity: int | None, functional: str | None, more: str = "") -> str:
    words = [
        "" if charge is None else f"charge {charge:+d}" if charge else "neutral",
        "" if multiplicity is None else multiplicity_name(multiplicity),
        functional or "",
        more,
    ]
    return ", ".join(word for word in words if word) or UNKNOWN


def state_of(atoms: Atoms) -> State:
    """Return the state of a structure.

    The charge is that of :func:`~ase_definet.structures.charges.charge_of`; ``info`` may hold ``spin_multiplicity``,
    ``functional`` (its first word counts, so that ``HSE06 a=0.32`` is HSE06) and ``excited``. Any of them may be
    ``"unknown"``; a missing spin multiplicity is unknown.

    Raises:
        StructureError: A value is invalid.

    Examples:
        >>> from ase import Atoms
        >>> str(state_of(Atoms("N", info={"charge": 1, "spin_multiplicity": 3, "functional": "HSE06"})))
        'charge +1, triplet, HSE06'
    """
    said = said_of(atoms)
    return State(
        charge=said.charge,
        spin_multiplicity=said.spin_multiplicity,
        functional=said.functional,
        excited=excited_of(atoms),
    )


def set_state(
    atoms: Atoms, charge: int | None = None, spin_multiplicity: int | None = None, functional: str | None = None
) -> list[str]:
    """Set charge, spin multiplicity and functional of a structure, in place.

    Args:
        atoms: The structure.
        charge: Net charge of the cell, in e; None to keep that of the structure.
        spin_multiplicity: Number of unpaired electrons plus one; None to keep that of the structure.
        functional: One of :data:`FUNCTIONALS`; None to keep that of the structure.

    Returns:
        A note for each value of the structure that was replaced.

    Examples:
        >>> from ase import Atoms
        >>> set_state(Atoms("N", info={"charge": 1}), charge=-1, spin_multiplicity=3)
        ['charge -1 was asked for and replaces the charge 1 that the structure says it has']
    """
    notes = []
    asked = {"charge": charge, "spin_multiplicity": spin_multiplicity, "functional": functional}
    for name, value in asked.items():
        if value is None:
            continue
        own = atoms.info.get(name)
        same = own is not None and _same(name, own, value)
        if own is not None and not same:
            word = name.replace("_", " ")
            shown = f"{value:+d}" if name == "charge" and value else value
            notes.append(f"{word} {shown} was asked for and replaces the {word} {own} that the structure says it has")
        if charge is not None and name == "charge":
            set_charge(atoms, charge)
        elif not same:  # the given text may contain more, such as the mixing of a hybrid
            atoms.info[name] = value
    return notes


def _same(name: str, own: Any, value: Any) -> bool:
    """Return whether a structure already has the requested values; invalid values count as different."""
    try:
        if name == "charge":
            return whole_charge(own, name) == int(value)
        return bool((functional_named(own) if name == "functional" else _multiplicity(own)) == value)
    except StructureError:
        return False


def refuse_parity(atoms: Atoms) -> None:
    """Reject a spin multiplicity that is impossible for the number of electrons.

    All electrons are counted; closed shells do not change the parity, so that no table of valences is needed. Nothing
    is raised if the multiplicity or the charge is unknown.

    Raises:
        StructureError: The number of unpaired electrons is even where that of all is odd, or the other way round.
    """
    said = said_of(atoms)
    if said.spin_multiplicity is None or said.charge is None:
        return
    problem = wrong_parity(said.spin_multiplicity, int(atoms.numbers.sum()) - said.charge, said.charge)
    if problem is not None:
        raise StructureError(problem)


def wrong_parity(multiplicity: int, electrons: int, charge: int, kind: str = "electrons") -> str | None:
    """Return an error message if a spin multiplicity is impossible for a number of electrons, else None.

    Args:
        multiplicity: Number of unpaired electrons plus one.
        electrons: Number of electrons of the cell at that charge.
        charge: Net charge of the cell, in e.
        kind: Name of the electrons in the message.
    """
    unpaired = multiplicity - 1
    if (electrons - unpaired) % 2 == 0:
        return None
    found, fits = ("an odd", "2, 4 or another even") if electrons % 2 else ("an even", "1, 3 or another odd")
    return (
        f"a spin multiplicity of {multiplicity} ({unpaired} unpaired electron{'' if unpaired == 1 else 's'}) does "
        f"not go with {electrons} {kind} (charge {f'{charge:+d}' if charge else '0'}), {found} number: expected "
        f"{fits} multiplicity, or a charge that differs by one"
    )


def functional_named(text: Any) -> str:
    """Return the functional at the beginning of a text, spelt as in :data:`FUNCTIONALS`.

    Raises:
        StructureError: It is not a supported functional.
    """
    word = next(iter(str(text).split()), "")
    found = {name.lower(): name for name in FUNCTIONALS}
    if word.lower() not in found:
        near = difflib.get_close_matches(word.lower(), found, n=1)
        hint = f"; did you mean {found[near[0]]}?" if near else ""
        raise StructureError(f"functional {word!r} is not known; expected one of {', '.join(FUNCTIONALS)}{hint}")
    return found[word.lower()]


def _multiplicity(value: Any) -> int | None:
    if value is None or is_unknown(value):
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
