"""The domain of a model: the respects in which a structure lies outside its training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from ase_definet.checkpoints.card import HostRecord, ModelCard, TrainingRecord
from ase_definet.errors import HostError, MatchError
from ase_definet.matching.host import Host
from ase_definet.matching.library import ROUNDED_SOURCE, is_library_host, library
from ase_definet.matching.site_map import SiteMap, match_sites, strain_notice
from ase_definet.structures.charges import charge_of
from ase_definet.structures.metrics import near_sites
from ase_definet.structures.state import Said, excited_of, multiplicity_name, said_of

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

SEEN_STRAIN = 0.005
"""The training data are unstrained; a strain up to this is treated as none."""

DILUTE = 0.01
"""Below this share of defect sites, defects are isolated."""

SEEN_OFFSET = 0.05
"""Sites of a host this close to those of a library host are considered the same, root mean square, in Å."""

NEAR_STRAIN = 0.02
NEAR_OFFSET = 0.15
NEAR_DENSITY = 1.25
"""Strain, root mean square offset of the sites (Å), and factor over the largest density up to which the
prediction is used although its error was not measured there; the expected error is then unknown."""

SAME_STRAIN, SAME_OFFSET = 5e-4, 5e-3
"""A host of the user's that differs by less from the library's, in strain and in Å, is the library's."""

REACH = 7.0
"""Sites this close to a defect absent from the training data are as unreliable as the defect, in Å."""

Trust: TypeAlias = Literal["inside", "near", "outside"]
TRUST: tuple[Trust, ...] = ("inside", "near", "outside")
"""How far a result can be trusted. ``inside``: like the training data. ``near``: outside of them in a respect in
which the network still beat the ideal sites where this was tested. ``outside``: no support for the prediction."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """One respect in which a structure lies outside the training data.

    Attributes:
        word: ``host``, ``species``, ``defects``, ``extra`` (atoms on no site), ``density``, ``strain``, ``sites``,
            ``charge``, ``spin``, ``functional``, ``excited``, ``pristine``, or ``training`` if the training data are
            unknown.
        reason: The same as a sentence.
        trust: Trust level of results in spite of it.
        error_factor: Factor by which errors are expected to be larger; None if nothing supports a number.
        sites: The sites concerned; None for all.
        detail: What tells reservations of one word apart: ``1`` of a charge, ``low`` of a density, ``WS2`` of a host.
    """

    word: str
    reason: str
    trust: Trust = "outside"
    error_factor: float | None = None
    sites: tuple[int, ...] | None = None
    detail: str = ""

    @property
    def key(self) -> str:
        """Under which a card has what was measured of it: ``charge:1``, ``spin``."""
        return f"{self.word}:{self.detail}" if self.detail else self.word


@dataclass(frozen=True, slots=True)
class Judgement:
    """How far a result can be trusted.

    Attributes:
        reservations: Every respect in which the structure lies outside the training data.
    """

    reservations: tuple[Reservation, ...] = ()

    @property
    def trust(self) -> Trust:
        """The trust level of the worst reservation."""
        return max((one.trust for one in self.reservations), key=TRUST.index, default="inside")

    @property
    def error_factor(self) -> float | None:
        """Factor by which expected errors are multiplied; None if nothing supports a number."""
        factors = [one.error_factor for one in self.reservations]
        if None in factors:
            return None
        return max((factor for factor in factors if factor is not None), default=1.0)

    @property
    def outside(self) -> tuple[str, ...]:
        """The respects in which the structure lies outside the training data, one word each."""
        return tuple(one.word for one in self.reservations)

    @property
    def unsupported(self) -> tuple[str, ...]:
        """The respects in which nothing supports an expected error, one word each."""
        return tuple(one.word for one in self.reservations if one.error_factor is None)

    def of_sites(self, site_map: SiteMap) -> Array:
        """Return the trust level of every site as an index into :data:`TRUST`, shape ``(n_sites,)``.

        A reservation about some sites applies to all sites within :data:`REACH`; all others in the structure are
        ``near`` at best, because the network passes messages between all atoms.
        """
        levels = np.zeros(len(site_map.kinds), dtype=int)
        for one in self.reservations:
            level = TRUST.index(one.trust)
            if one.sites is None:
                levels = np.maximum(levels, level)
                continue
            doubtful = site_map.positions[list(one.sites)]
            close = near_sites(site_map.positions, doubtful, site_map.cell, REACH)
            levels = np.maximum(levels, np.where(close, level, min(level, 1)))
        return levels


@dataclass(frozen=True, slots=True)
class Domain:
    """The training data of a model, and its measured accuracy just outside of them.

    Attributes:
        card: Card of the model.
        model: Name of the model in messages.
    """

    card: ModelCard
    model: str

    def training(self, place: int) -> TrainingRecord | None:
        """Return the record of one of several networks; that of the model if the network has none."""
        routed = self.card.routed
        own = routed[place - 1].training if 0 < place <= len(routed) else self.card.general
        return own or self.card.training

    def judge(self, atoms: Atoms, site_map: SiteMap, place: int = 0) -> Judgement:
        """Determine how far the result for a structure can be trusted.

        Args:
            atoms: The structure.
            site_map: Its match to the host.
            place: Index of the network that serves it, of several.
        """
        found = self._reservations(atoms, site_map, self.training(place))
        return Judgement(tuple(self._judged(one, site_map) for one in found))

    def _judged(self, one: Reservation, site_map: SiteMap) -> Reservation:
        """Return a reservation with its measured trust level, if there is one."""
        found = self.card.near.get(one.key)
        if found is None:
            return one
        other = found.defects and not set(site_map.defect_counts) <= set(found.defects)
        elsewhere = found.hosts and known_host(site_map.host)[0] not in found.hosts
        if found.share >= 1 or other or elsewhere:
            return replace(one, trust="outside")
        return replace(one, trust="near", error_factor=found.error_factor)

    def _reservations(
        self, atoms: Atoms, site_map: SiteMap, training: TrainingRecord | None
    ) -> Iterator[Reservation]:
        """Yield every respect in which a structure lies outside the training data, as it is without measurements."""
        state = said_of(atoms)
        if site_map.extra:
            names = ", ".join(dict.fromkeys(f"{extra.name} ({extra.kind})" for extra in site_map.extra))
            yield Reservation(
                "extra",
                f"{names}: the network has no kind of site for atoms on no site of the host",
                sites=tuple(dict.fromkeys(site for extra in site_map.extra for site in extra.sites)),
            )
        if training is None:
            if state.charge:
                reason = f"net charge {state.charge:+d}: nothing is recorded of the charges in the training data"
                yield Reservation("charge", reason, "near")
            yield Reservation(
                "training",
                f"model {self.model} has no record of its training data: its range of validity is unknown",
                "near",
            )
            return
        name, strain, offset = known_host(site_map.host)
        seen = training.hosts.get(name or "")
        yield from _of_state(atoms, state, seen or HostRecord(defects=[]))
        elements = set(training.elements)
        found = [e for e in dict.fromkeys(atoms.get_chemical_symbols()) if e not in elements]
        if found:
            yield Reservation(
                "species",
                f"elements never seen in training: {', '.join(found)}",
                sites=_sites_where(np.isin(site_map.numbers, [atomic_numbers[e] for e in found])),
            )
        if not site_map.all_defects:
            yield Reservation("pristine", "no defects found: the structure is the pristine host", "inside", 1.0)
        if seen is None or name is None:
            known = ", ".join(training.hosts)
            yield Reservation(
                "host",
                f"host {site_map.host.name} was not in the training data ({known})",
                detail=name or site_map.host.name,
            )
            return
        yield from _of_defects(site_map, name, seen)
        strain += site_map.max_strain
        if abs(strain) > SEEN_STRAIN:
            own = f"; {strain_notice(site_map)}" if abs(site_map.max_strain - strain) > SEEN_STRAIN else ""
            yield Reservation(
                "strain",
                f"the cell is strained by {strain:+.1%} against the {name} of the training data{own}",
                "near" if abs(strain) <= NEAR_STRAIN else "outside",
            )
        if offset > SEEN_OFFSET:
            yield Reservation(
                "sites",
                f"the host's sites lie {offset:.2f} Å (rms) from those of the {name} in the training data",
                "near" if offset <= NEAR_OFFSET else "outside",
            )


def _of_state(atoms: Atoms, state: Said, seen: HostRecord) -> Iterator[Reservation]:
    """Yield reservations about the state of a structure."""
    if state.charge and state.charge not in seen.charges:
        yield _of_charge(atoms, seen.charges)
    multiplicity = state.spin_multiplicity
    if multiplicity is not None and multiplicity not in seen.spin_multiplicities:
        yield Reservation("spin", f"no {multiplicity_name(multiplicity)} was in the training data of this host")
    if state.functional and state.functional not in seen.functionals:
        known = " and ".join(seen.functionals) or "no functional that is known"
        yield Reservation("functional", f"trained on {known} for this host, not on {state.functional}")
    if excited_of(atoms) and not seen.excited:
        yield Reservation("excited", "no excited state was in the training data of this host")


def _of_charge(atoms: Atoms, charges: Sequence[int]) -> Reservation:
    charge = charge_of(atoms)
    source = f" ({charge.note})" if charge.note else ""
    reason = (
        "the model was trained on neutral cells and ignores it"
        if list(charges) == [0]
        else f"the model was trained on charges {', '.join(f'{q:+d}' for q in charges)} in this host"
    )
    text = f"net charge {charge.value:+d}: {reason}{source}"
    return Reservation("charge", text, detail=str(abs(charge.value)))


def _sites_where(chosen: Array) -> tuple[int, ...]:
    return tuple(int(k) for k in np.flatnonzero(chosen))


def _of_defects(site_map: SiteMap, name: str, seen: HostRecord) -> Iterator[Reservation]:
    """Yield reservations about the defects in a host of the training data."""
    on_sites = {defect.name for defect in site_map.defects}
    new = [defect for defect in site_map.defect_counts if defect in on_sites and defect not in seen.defects]
    if new:
        sites = tuple(defect.site for defect in site_map.defects if defect.name in new)
        yield Reservation("defects", f"defects never seen in {name}: {', '.join(new)}", sites=sites)
    low, high = seen.density
    # a host seen with isolated defects is taken to be seen at any lower density, in cells of any size
    if site_map.defects and not (0.0 if low < DILUTE else low * 0.999) <= site_map.density <= high * 1.001:
        fewer = site_map.density < low
        yield Reservation(
            "density",
            f"{site_map.density:.2%} of the sites are defects, training in {name} had {low:.2%} to {high:.2%}",
            "near" if site_map.density <= high * NEAR_DENSITY else "outside",
            detail="low" if fewer else "high",
        )


def far_moves(site_map: SiteMap, displacement: Array) -> Iterator[str]:
    """Yield a warning if an atom moves further than the distance between sites of the host.

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


def is_as_trained(host: Host) -> bool:
    """Whether a host, given in any way, is one of the library's to the digits of a file.

    Crystals that are in the library for calculators alone are not.
    """
    name, strain, offset = known_host(host)
    if name is None or library()[name].source == ROUNDED_SOURCE:
        return False
    return abs(strain) < SAME_STRAIN and offset < SAME_OFFSET


@lru_cache(maxsize=32)
def known_host(host: Host) -> tuple[str | None, float, float]:
    """Find the library host that a given host corresponds to.

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
        if not found.defect_counts:
            return name, found.max_strain, found.cost
    return None, 0.0, 0.0
