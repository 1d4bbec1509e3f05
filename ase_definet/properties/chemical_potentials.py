"""Chemical potentials: the reference phases of formation energies, other values, and host-rich and host-poor limits.

The formation energy of a neutral defect is ``E(defect) - E(host) - sum(dn * mu)``, with ``dn`` atoms of an element
more than in the host, and ``mu`` its chemical potential in eV per atom. The networks learn it relative to the bulk
phases of the elements; for other potentials it shifts by ``-sum(dn * (mu - mu_ref))``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from ase_definet.errors import DefiNetError
from ase_definet.matching.host import Host

Array: TypeAlias = NDArray[Any]

REFERENCES: Mapping[str, float] = MappingProxyType(
    {
        "Mo": -10.9332,
        "S": -4.127,
        "W": -13.0106,
        "Se": -3.489,
        "B": -6.704,
        "N": -8.324,
        "Ga": -3.03,
        "In": -2.715,
        "P": -5.362,
        "C": -9.226,
    }
)
"""Energy per atom of the bulk phases of the elements, PBE in VASP, in eV."""

HOST_ENERGIES: Mapping[str, float] = MappingProxyType(
    {
        "MoS2": -1398.1131 / 64,
        "WSe2": -1384.9085 / 64,
        "BN": -1124.4346 / 64,
        "GaSe": -554.0446 / 36,
        "InSe": -522.7948 / 36,
        "P": -772.1556 / 36,
    }
)
"""Energy per primitive cell of the hosts of the library, PBE in VASP, in eV."""

SOURCE = "Huang et al., npj 2D Mater. Appl. 7, 6 (2023); Kazeev et al., npj Comput. Mater. 9, 113 (2023)"
"""Source of both tables."""

ABOVE, FAR_BELOW = 0.05, 10.0
"""A chemical potential further than this above or below that of the element's bulk phase is doubted, in eV: above,
the bulk phase forms; no compound binds its elements so much that one lies so far below."""

RICH = "rich"
POOR = "poor"


@dataclass(frozen=True)
class ChemicalPotentials:
    """Chemical potentials that formation energies are shown for.

    Attributes:
        values: In eV per atom, by element; those of the reference phases for all others.
        warnings: What to know about them.
    """

    values: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    def of(self, element: str) -> float | None:
        """Return the chemical potential of an element in eV; None if neither it nor its reference is known."""
        return self.values.get(element, REFERENCES.get(element))

    def shift(self, numbers: Array, host_numbers: Array) -> Array:
        """Return what formation energies relative to the reference phases change by, shape ``(n,)``, in eV.

        Args:
            numbers: Atomic number on each site, 0 where empty, shape ``(n, n_sites)``.
            host_numbers: Atomic number of the host there, shape ``(n_sites,)``.
        """
        out = np.zeros(len(numbers))
        for element, value in self.values.items():
            number = atomic_numbers[element]
            more = (numbers == number).sum(axis=1) - (host_numbers == number).sum()
            out -= more * (value - REFERENCES.get(element, value))
        return out


def parse_potentials(texts: Iterable[str], host: Host, host_name: str, involved: Iterable[str]) -> ChemicalPotentials:
    """Read chemical potentials as they are given on the command line.

    Args:
        texts: Each ``S=-4.5`` (eV per atom), or ``rich:S`` or ``poor:S`` for a limit of the host.
        host: The host.
        host_name: Its name in the library.
        involved: Symbols of the elements of the defects and the host.

    Raises:
        DefiNetError: A text cannot be read, or a limit needs an energy of the host that is not known.
    """
    values: dict[str, float] = {}
    warnings: list[str] = []
    known = set(involved) | {chemical_symbols[z] for z in host.numbers}
    for text in texts:
        symbol = element_of(text)
        kind, colon, _ = text.partition(":")
        found = limit(host, host_name, symbol, poor=kind.strip() == POOR) if colon else {symbol: _number(text)}
        twice = [element for element in found if element in values]
        if twice:
            raise DefiNetError(f"{text!r}: the chemical potential of {twice[0]} is given twice; leave one out")
        if colon:
            values |= found
            continue
        value = found[symbol]
        if symbol not in known:
            warnings.append(
                f"the chemical potential of {symbol} changes nothing: neither host nor defects contain it"
            )
        elif symbol not in REFERENCES:
            warnings.append(f"no reference energy is known for {symbol}: its chemical potential is not used")
            continue
        elif text := doubtful_potential(symbol, value):
            warnings.append(text)
        values[symbol] = value
    return ChemicalPotentials(values, tuple(warnings))


def doubtful_potential(element: str, value: float) -> str:
    """Return a warning if a chemical potential cannot be meant, above the bulk phase's or far below, else nothing.

    Args:
        element: Symbol of the element.
        value: Its chemical potential, in eV per atom.
    """
    bulk = REFERENCES.get(element)
    if bulk is None or bulk - FAR_BELOW <= value <= bulk + ABOVE:
        return ""
    wrong = "is a sign missing?" if np.sign(value) != np.sign(bulk) else "is it relative to the bulk phase?"
    what = f"above that of its bulk phase ({bulk:g} eV), which would form"
    if value < bulk:
        wrong, what = "is it per atom, in eV?", f"below that of its bulk phase ({bulk:g} eV)"
    return (
        f"the chemical potential {element}={value:g} eV lies {abs(value - bulk):.2f} eV {what}; values are absolute, "
        f"as in the table of docs/properties.md: {wrong}"
    )


def element_of(text: str) -> str:
    """Return the element of a chemical potential as it is given on the command line.

    Raises:
        DefiNetError: The text cannot be read.
    """
    kind, colon, rest = (part.strip() for part in text.partition(":"))
    symbol, equals, _ = (part.strip() for part in text.partition("="))
    if not equals and not (colon and kind in {RICH, POOR}):
        raise DefiNetError(f"cannot read the chemical potential {text!r}; expected S=-4.5, rich:S or poor:S")
    symbol = symbol if equals else rest
    if not atomic_numbers.get(symbol):  # X is number 0
        raise DefiNetError(
            f"cannot read the chemical potential {text!r}: {symbol!r} is no element; expected S=-4.5, rich:S or "
            "poor:S"
        )
    if equals:
        _number(text)
    return symbol


def _number(text: str) -> float:
    """Return the value of ``S=-4.5``."""
    number = text.partition("=")[2].strip()
    try:
        value = float(number)
    except ValueError as error:
        raise DefiNetError(f"the chemical potential {text!r} needs a number in eV, found {number!r}") from error
    if not np.isfinite(value):
        raise DefiNetError(f"the chemical potential {text!r} must be finite")
    return value


def limit(host: Host, host_name: str, element: str, *, poor: bool = False) -> dict[str, float]:
    """Return the chemical potentials at a limit of the host's stability.

    Rich in an element means in equilibrium with its bulk phase; the host's other element then follows from the energy
    of the host. Poor in it means rich in the other one.

    Args:
        host: The host, of one or two elements.
        host_name: Its name in the library.
        element: Symbol of one of its elements.
        poor: Whether the host is poor in it.

    Raises:
        DefiNetError: The element is not the host's, or the energy of the host is not known.
    """
    symbols = [chemical_symbols[z] for z in host.numbers]
    elements = list(dict.fromkeys(symbols))
    if element not in elements:
        raise DefiNetError(f"host {host.name} holds {' and '.join(elements)}, not {element}: give its own element")
    energy = HOST_ENERGIES.get(host_name)
    if energy is None or any(symbol not in REFERENCES for symbol in elements):
        raise DefiNetError(
            f"no energy of host {host.name} is known (known: {', '.join(HOST_ENERGIES)}): give the chemical "
            f"potentials as numbers, such as {element}=-4.5"
        )
    if len(elements) == 1:
        return {element: REFERENCES[element]}
    if len(elements) > 2:  # noqa: PLR2004 - binary
        raise DefiNetError(f"host {host.name} has {len(elements)} elements: give all chemical potentials as numbers")
    (other,) = (symbol for symbol in elements if symbol != element)
    rich, left = (other, element) if poor else (element, other)
    value = (energy - symbols.count(rich) * REFERENCES[rich]) / symbols.count(left)
    return {rich: REFERENCES[rich], left: value}


def distance_from_equilibrium(host: Host, host_name: str, values: Mapping[str, float]) -> float | None:
    """Return by how much the chemical potentials of a host's elements exceed its energy, per primitive cell, in eV.

    Zero means that the host can exchange atoms with the reservoirs, as in an experiment; the bulk phases of all its
    elements together exceed it by minus its energy of formation.

    Args:
        host: The host.
        host_name: Its name in the library.
        values: Chemical potentials by element, in eV; those of the bulk phases where they lack an element.

    Returns:
        None if the energy of the host is not known.
    """
    energy = HOST_ENERGIES.get(host_name)
    every = dict(REFERENCES) | dict(values)
    symbols = [chemical_symbols[z] for z in host.numbers]
    if energy is None or any(symbol not in every for symbol in symbols):
        return None
    return sum(every[symbol] for symbol in symbols) - energy
