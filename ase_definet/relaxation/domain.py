"""The domain of a model: in which respects a structure lies outside of its training data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ase_definet.checkpoints.card import HostRecord, TrainingRecord
from ase_definet.errors import HostError, MatchError
from ase_definet.matching.host import Host
from ase_definet.matching.library import is_library_host, library
from ase_definet.matching.site_map import SiteMap, match_sites, strain_notice
from ase_definet.structures.charges import charge_of

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

SEEN_STRAIN = 0.005
"""The training data have no strain at all; up to this much is taken for none."""

DILUTE = 0.01
"""Below this share of defect sites, defects are isolated."""

SEEN_OFFSET = 0.05
"""Sites of a host this close to those of the library's are called the same, in Å, root mean square."""

HARMLESS = frozenset({"pristine"})
"""Respects in which a structure may lie outside the training data and still have an expected error."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """One respect in which a structure lies outside the training data.

    Attributes:
        word: ``host``, ``species``, ``defects``, ``density``, ``strain``, ``sites``, ``charge``, ``pristine``, or
            ``training`` where nothing is known of the training data.
        reason: The same as a sentence.
    """

    word: str
    reason: str


@dataclass(frozen=True, slots=True)
class Domain:
    """What a model was trained on.

    Attributes:
        training: The record on its card; None where there is none.
        model: What the model is called in messages.
        knows_states: Whether the network takes charge and spin into account.
    """

    training: TrainingRecord | None
    model: str
    knows_states: bool = False

    def reservations(self, atoms: Atoms, site_map: SiteMap) -> Iterator[Reservation]:
        """Yield every respect in which a structure lies outside the training data.

        Args:
            atoms: The structure.
            site_map: Its match to the host.
        """
        yield from self._of_charge(atoms)
        if self.training is None:
            yield Reservation(
                "training",
                f"model {self.model} has no record of its training data: nothing is known about its reach",
            )
            return
        elements = set(self.training.elements)
        found = [e for e in dict.fromkeys(atoms.get_chemical_symbols()) if e not in elements]
        if found:
            yield Reservation("species", f"elements never seen in training: {', '.join(found)}")
        if not site_map.defects:
            yield Reservation("pristine", "no defects found: the structure is the pristine host")
        hosts = self.training.hosts
        name, strain, offset = known_host(site_map.host)
        if name is None or name not in hosts:
            known = ", ".join(hosts)
            yield Reservation(
                "host",
                f"host {site_map.host.name} was not in the training data ({known}): do not trust this result",
            )
            return
        yield from _of_defects(site_map, name, hosts[name])
        strain += site_map.max_strain
        if abs(strain) > SEEN_STRAIN:
            own = f"; {strain_notice(site_map)}" if abs(site_map.max_strain - strain) > SEEN_STRAIN else ""
            yield Reservation(
                "strain", f"the cell is strained by {strain:+.1%} against the {name} of the training data{own}"
            )
        if offset > SEEN_OFFSET:
            yield Reservation(
                "sites", f"the host's sites lie {offset:.2f} Å (rms) from those of the {name} in the training data"
            )

    def _of_charge(self, atoms: Atoms) -> Iterator[Reservation]:
        charge = charge_of(atoms)
        if not charge.value:
            return
        source = f" ({charge.note})" if charge.note else ""
        reason = (
            "nothing is recorded of the charges that the model was trained on"
            if self.knows_states
            else "the model was trained on neutral cells and ignores it"
        )
        yield Reservation("charge", f"net charge {charge.value:+d}: {reason}{source}")


def _of_defects(site_map: SiteMap, name: str, seen: HostRecord) -> Iterator[Reservation]:
    """Yield what is new about the defects in a host of the training data."""
    new = [defect for defect in site_map.defect_counts if defect not in seen.defects]
    if new:
        yield Reservation("defects", f"defects never seen in {name}: {', '.join(new)}")
    low, high = seen.density
    # a host seen with isolated defects is taken to be seen at any lower density, in cells of any size
    if site_map.defects and not (0.0 if low < DILUTE else low * 0.999) <= site_map.density <= high * 1.001:
        yield Reservation(
            "density",
            f"{site_map.density:.2%} of the sites are defects, training in {name} had {low:.2%} to {high:.2%}",
        )


def far_moves(site_map: SiteMap, displacement: Array) -> Iterator[str]:
    """Yield a warning where an atom moves further than the sites of the host are apart.

    Args:
        site_map: The match.
        displacement: Of every site, shape ``(n_sites, 3)``, in Å; that of empty sites is ignored.
    """
    length = np.where(site_map.atom_index >= 0, np.linalg.norm(displacement, axis=1), 0.0)
    bond = site_map.host.nearest_neighbor
    far = np.count_nonzero(length > bond)
    if far:
        site = int(length.argmax())
        atom = f"atom {site_map.atom_index[site]} ({chemical_symbols[site_map.numbers[site]]})"
        more = f", and {far - 1} more such atoms" if far > 1 else ""
        yield (
            f"{atom} is predicted {length[site]:.2f} Å from its site, further than a bond of the host is long "
            f"({bond:.2f} Å){more}: look at the result before you use it"
        )


@lru_cache(maxsize=32)
def known_host(host: Host) -> tuple[str | None, float, float]:
    """Find a host given in any way in the library.

    Returns:
        Its library name, None for a different crystal; its largest principal strain against the library's cell; and
        the root mean square distance of its sites from the library's, in Å.
    """
    from ase import Atoms  # noqa: PLC0415

    if is_library_host(host):
        return host.name, 0.0, 0.0
    repeat = (2, 2, 1 if host.layered else 2)
    atoms = Atoms(numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=True).repeat(repeat)
    for name, candidate in library().items():
        if candidate.composition != host.composition or candidate.layered != host.layered:
            continue
        try:
            found = match_sites(atoms, candidate)
        except (HostError, MatchError):
            continue
        if not found.defects:
            return name, found.max_strain, found.cost
    return None, 0.0, 0.0
