"""Chemical potentials as a user gives them, before the host is known: ``S=-4.5``, ``rich:S``, ``{"S": -4.5}``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ase.data import chemical_symbols

from ase_definet.matching.host import Host
from ase_definet.properties.chemical_potentials import (
    ChemicalPotentials,
    doubtful_potential,
    element_of,
    parse_potentials,
)
from ase_definet.relaxation.domain import known_host


@dataclass(frozen=True)
class AskedPotentials:
    """Chemical potentials to show formation energies for, in any host.

    Attributes:
        texts: Each ``S=-4.5`` (eV per atom), ``rich:S`` or ``poor:S``; no element occurs twice.
    """

    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Iterable[str] | Mapping[str, float] | AskedPotentials | None) -> AskedPotentials:
        """Return chemical potentials given as texts, or as numbers by element.

        Raises:
            DefiNetError: One of them cannot be read, or an element occurs twice.
        """
        if isinstance(given, AskedPotentials):
            return given
        if isinstance(given, Mapping):
            given = [f"{element}={value}" for element, value in given.items()]
        elif isinstance(given, str):
            given = [given]
        out = cls(tuple(given or ()))
        for text in out.texts:
            element_of(text)
        return out

    @property
    def elements(self) -> tuple[str, ...]:
        """The elements that are named, each once."""
        return tuple(dict.fromkeys(element_of(text) for text in self.texts))

    def in_host(self, host: Host, involved: Iterable[str] | None = None) -> ChemicalPotentials:
        """Return the potentials in a host.

        Args:
            host: The host.
            involved: Symbols of the elements of the structure; by default all that are named, so that none is
                called useless.

        Raises:
            DefiNetError: A limit is asked for in a host whose energy is not known, or that lacks the element.
        """
        name = known_host(host)[0] or host.name
        return parse_potentials(self.texts, host, name, self.elements if involved is None else involved)

    def useless(self, host: Host, involved: Iterable[str]) -> tuple[str, ...]:
        """Return the named elements that neither a host nor structures contain.

        Args:
            host: The host.
            involved: Symbols of the elements of the structures.
        """
        known = {chemical_symbols[z] for z in host.numbers} | set(involved)
        return tuple(element for element in self.elements if element not in known)

    def doubts(self, involved: Iterable[str]) -> tuple[str, ...]:
        """Return warnings about potentials of elements that cannot be meant: of the wrong sign, for example.

        Args:
            involved: Symbols of the elements of the host and the structure.
        """
        known = set(involved)
        numbers = [text.partition("=") for text in self.texts if ":" not in text]
        found = (doubtful_potential(element.strip(), float(value)) for element, _, value in numbers)
        return tuple(
            text for (element, _, _), text in zip(numbers, found, strict=True) if text and element.strip() in known
        )
