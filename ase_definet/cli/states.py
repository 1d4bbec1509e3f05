"""``--charge``, ``--spin`` and ``--functional``, and what several charges in one call make of names."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.errors import DefiNetError

if TYPE_CHECKING:
    from ase import Atoms

    ChargesType = click.ParamType[tuple[int, ...]]
    NameType = click.ParamType[str]
else:  # generic since click 8.4 only
    ChargesType = NameType = click.ParamType

MOST_CHARGES = 21
"""Charges in one call, at most; more of them are a mistake."""

_RANGE = re.compile(r"\s*([+-]?\d+)\s*:\s*([+-]?\d+)\s*")


@dataclass(frozen=True)
class AskedState:
    """What the command line asks of the state of every structure; None and nothing for what each says itself.

    Attributes:
        charges: Net charges of the cell, in e, each of which makes a result of its own.
        spin_multiplicity: Number of unpaired electrons plus one.
        functional: One of :data:`~ase_definet.structures.state.FUNCTIONALS`.
    """

    charges: tuple[int, ...] = ()
    spin_multiplicity: int | None = None
    functional: str | None = None

    @property
    def several(self) -> bool:
        """Whether there is more than one result for each structure."""
        return len(self.charges) > 1

    @property
    def anything(self) -> bool:
        """Whether anything is asked."""
        return self != AskedState()

    @property
    def charge(self) -> int | None:
        """The charge, where it is one or none."""
        return self.charges[0] if self.charges else None

    @property
    def suffix(self) -> str:
        """What marks the names of the results of one of several charges: ``_q-1``, ``_q0``, ``_q+2``."""
        return f"_q{self.charges[0]:+d}" if self.charges and self.charges[0] else "_q0"

    def each(self) -> list[AskedState]:
        """Return one of these for each result that a structure is to have."""
        return [replace(self, charges=(charge,)) for charge in self.charges] or [self]

    def impose(self, atoms: Atoms) -> list[str]:
        """State this of a structure, in place; return notes on what it said otherwise.

        Raises:
            StructureError: It has another number of electrons than its spin multiplicity needs, or what it says of
                its state makes no sense.
        """
        from ase_definet.structures.state import refuse_parity, set_state

        notes = set_state(atoms, self.charge, self.spin_multiplicity, self.functional)
        refuse_parity(atoms)
        return notes


class Charges(ChargesType):
    """One net charge (``-1``), a range with both ends (``-2:2``), or a list (``-1,0,1``)."""

    name = "charge"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the charges, or fail."""
        if isinstance(value, tuple):
            return value
        text = str(value)
        if found := _RANGE.fullmatch(text):
            low, high = int(found[1]), int(found[2])
            if low > high:
                self.fail(f"{text!r} runs backwards: a range goes from the lower charge to the higher.", param, ctx)
            if high - low >= MOST_CHARGES:
                self.fail(f"{text!r} is {high - low + 1} charges, more than {MOST_CHARGES}.", param, ctx)
            return tuple(range(low, high + 1))
        try:
            charges = tuple(int(part) for part in text.split(","))
        except ValueError:
            self.fail(
                f"{text!r} is no charge: expected a whole number in e (-1), a range (-2:2) or a list (-1,0,1).",
                param,
                ctx,
            )
        twice = [charge for charge, n in Counter(charges).items() if n > 1]
        if twice:
            self.fail(f"{text!r} has the charge {twice[0]} twice.", param, ctx)
        return charges


class Functional(NameType):
    """A functional that is known, in any case."""

    name = "functional"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return its name as it is spelt, or fail."""
        from ase_definet.structures.state import functional_named

        try:
            return functional_named(value)
        except DefiNetError as error:
            self.fail(f"{error}.", param, ctx)


def state_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a state, as ``state``: an :class:`AskedState`."""

    @functools.wraps(command)
    def wrapped(
        *args: Any, charge: tuple[int, ...] | None, spin: int | None, functional: str | None, **rest: Any
    ) -> Any:
        return command(*args, state=AskedState(charge or (), spin, functional), **rest)

    for option in reversed(
        [
            click.option(
                "--charge",
                type=Charges(),
                metavar="Q|LOW:HIGH|Q,Q,...",
                help="Net charge of the cell, in e; by default what the structure says, or 0. Several charges give a "
                "result each.",
            ),
            click.option(
                "--spin",
                type=click.IntRange(min=1),
                metavar="MULTIPLICITY",
                help="Spin multiplicity: 1 for a singlet, 2 for a doublet; by default what the structure says, or "
                "unknown.",
            ),
            click.option(
                "--functional",
                type=Functional(),
                metavar="NAME",
                help="Functional whose geometry is wanted, such as PBE or HSE06; by default what the structure says, "
                "or PBE.",
            ),
        ]
    ):
        wrapped = option(wrapped)
    return wrapped


def marked(path: Path, suffix: str) -> Path:
    """Return a path with a mark of its charge before the suffix of its name."""
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")


def folder_of(folder: Path, state: AskedState) -> Path:
    """Return the folder of one of several charges, beside the one that was named."""
    named = folder if folder.name else folder.absolute()  # "." has no name
    return named.with_name(f"{named.name}{state.suffix}")


def state_rows(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the row on the state of a result, where it is not that of a neutral cell in PBE."""
    from ase_definet.structures.state import Said

    said = Said(record["charge"], record["spin_multiplicity"], record["functional"])
    if not said.ordinary and said != Said(None, None, None):
        yield "state", str(said)


def state_record(atoms: Atoms) -> dict[str, Any]:
    """Return what a structure says of its state as JSON-ready data."""
    from ase_definet.structures.state import said_of

    said = said_of(atoms)
    return {"charge": said.charge, "spin_multiplicity": said.spin_multiplicity, "functional": said.functional}
