"""The domain of a model: the respects in which a structure lies outside its training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import permutations
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from ase_definet.checkpoints.card import ErrorModelRecord, HostRecord, ModelCard, TrainingRecord
from ase_definet.errors import HostError, MatchError
from ase_definet.matching.complexes import side_by_side
from ase_definet.matching.host import Host
from ase_definet.matching.library import is_library_host, library
from ase_definet.matching.site_map import SiteMap, match_sites, strain_notice
from ase_definet.relaxation.expected_error import weights_for
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

ALIKE, STRETCH = 0.3, 0.08
"""Hosts of the same structure are alike if their sites, scaled to the same size, are this close (root mean square, in
Å), and if the lengths differ by no more than this share: those of InSe are 7 % longer than those of GaSe."""

TRIED_DENSITY = 1.8
"""Factor over the largest density up to which a higher one was tried: 12.5 % after 6.9 %."""

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
        word: ``host``, ``species``, ``defects``, ``complex``, ``extra`` (atoms on no site), ``density``, ``strain``,
            ``sites``, ``charge``, ``spin``, ``functional``, ``excited``, ``pristine``, or ``training`` if the
            training data are unknown.
        reason: The same as a sentence.
        trust: Trust level of results in spite of it.
        error_factor: Factor by which errors are expected to be larger; None if nothing supports a number.
        sites: The sites concerned; None for all.
        detail: What tells reservations of one word apart: of a charge, how many electrons it is from the closest
            one seen; ``low`` of a density; ``WS2`` of a host.
        kind: What several details have in common, where something was measured of that: ``alike`` of a host.
        foreseen: Whether what was measured of the kind also tells how large errors are, not only that the network
            still beats the ideal sites.
    """

    word: str
    reason: str
    trust: Trust = "outside"
    error_factor: float | None = None
    sites: tuple[int, ...] | None = None
    detail: str = ""
    kind: str = ""
    foreseen: bool = True

    @property
    def key(self) -> str:
        """Under which a card has what was measured of it: ``charge:1``, ``spin``, ``host:WS2``."""
        return f"{self.word}:{self.detail}" if self.detail else self.word

    @property
    def kind_key(self) -> str:
        """Under which a card has what was measured of all of its kind: ``host:alike``."""
        return f"{self.word}:{self.kind}" if self.kind else self.key


@dataclass(frozen=True, slots=True)
class Judgement:
    """How far a result can be trusted.

    Attributes:
        reservations: Every respect in which the structure lies outside the training data.
        error_model: How long errors are expected to be, if the weights were measured outside of their training data.
        host: Name of the host in the library, if it is one.
    """

    reservations: tuple[Reservation, ...] = ()
    error_model: ErrorModelRecord | None = None
    host: str | None = None

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
        known = set() if self.error_model is None else set(self.error_model.respects)
        return tuple(
            one.word
            for one in self.reservations
            if one.error_factor is None
            and (one.trust == "outside" or not one.foreseen or not {one.key, one.kind_key} & known)
        )

    @property
    def error_weights(self) -> Array | None:
        """Weights of the features of an atom from which its error is expected; None if no model is for this."""
        if self.error_model is None or self.trust == "outside" or not all(one.foreseen for one in self.reservations):
            return None
        known = self.error_model.respects
        real = [one for one in self.reservations if one.word != "pristine"]
        return weights_for(
            self.error_model, [one.key if one.key in known else one.kind_key for one in real], self.host
        )

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


@dataclass(frozen=True)
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

    @cached_property
    def _crystals(self) -> dict[int, list[Host]]:
        """The hosts in the training data of each network that are not in the library."""
        return {place: _recorded_crystals(self.training(place)) for place in range(len(self.card.routed) + 1)}

    def known(self, host: Host, place: int = 0) -> tuple[str | None, float, float]:
        """Find the host of the training data, or else of the library, that a host given in any way is.

        Args:
            host: The host.
            place: Index of the network that serves it, of several.

        Returns:
            As :func:`known_host`.
        """
        found = known_host(host)
        training = self.training(place)
        if training is None or found[0] in training.hosts:
            return found
        others = (_as_crystal(host, crystal) for crystal in self._crystals[place])
        return next((other for other in others if other is not None), found)

    def trained_on(self, host: Host, place: int = 0) -> bool:
        """Return whether a host, given in any way, is in the training data of a network, to the digits of a file.

        Args:
            host: The host.
            place: Index of the network that serves it, of several.
        """
        name, strain, offset = self.known(host, place)
        training = self.training(place)
        seen = training is None or name in training.hosts  # without a record, the library's hosts are taken as known
        return name is not None and seen and abs(strain) < SAME_STRAIN and offset < SAME_OFFSET

    def judge(self, atoms: Atoms, site_map: SiteMap, place: int = 0) -> Judgement:
        """Determine how far the result for a structure can be trusted.

        Args:
            atoms: The structure.
            site_map: Its match to the host.
            place: Index of the network that serves it, of several.
        """
        known = self.known(site_map.host, place)
        found = self._reservations(atoms, site_map, self.training(place), known)
        host, _, _ = known
        return Judgement(tuple(self._judged(one, site_map, host) for one in found), self._error_model(place), host)

    def _error_model(self, place: int) -> ErrorModelRecord | None:
        """Return how long the errors of one of several networks are expected to be."""
        routed = self.card.routed
        own = routed[place - 1].error_model if 0 < place <= len(routed) else None
        return own or self.card.error_model

    def _judged(self, one: Reservation, site_map: SiteMap, host: str | None) -> Reservation:
        """Return a reservation with its measured trust level, if there is one."""
        found = self.card.near.get(one.key) or self.card.near.get(one.kind_key)
        if found is None:
            return one
        other = found.defects and not set(site_map.defect_counts) <= set(found.defects)
        elsewhere = found.hosts and host not in found.hosts
        if found.share >= 1 or other or elsewhere:
            return replace(one, trust="outside")
        return replace(one, trust="near", error_factor=found.error_factor if one.foreseen else None)

    def _reservations(
        self,
        atoms: Atoms,
        site_map: SiteMap,
        training: TrainingRecord | None,
        known: tuple[str | None, float, float],
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
        name, strain, offset = known
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
            yield from _of_host(site_map, name or site_map.host.name, training)
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
    away = min((abs(charge.value - known) for known in charges), default=abs(charge.value))
    if not any(charges):
        return Reservation("charge", text, detail=str(away))
    # what was tried is one or two steps from neutral, with networks of neutral cells: that tells nothing of how large
    # errors are beyond other charges, nor whether two steps beyond them are any good
    kind = "1" if away == 1 else "further"
    return Reservation("charge", text, detail=f"{away} from charged", kind=kind, foreseen=False)


def _of_host(site_map: SiteMap, name: str, training: TrainingRecord) -> Iterator[Reservation]:
    """Yield reservations about a host that is not in the training data.

    It is of the kind ``alike`` if hosts of the same structure are, and each of its elements was seen on the sites
    that it has, as the host's own or as a substitution: MoSe2, after MoS2 with Se_S and WSe2 with Mo_W. Its defects
    are compared with those of the hosts that it is like.
    """
    seen, high = _seen_in_alike_hosts(site_map.host, training)
    alike = bool(seen) and all(symbol in occupants for symbol, occupants in seen.items())
    known = ", ".join(training.hosts)
    reason = f"host {name} was not in the training data ({known})"
    yield Reservation("host", reason, detail=name, kind="alike" if alike else "other")
    if not alike:
        return
    new = [
        defect
        for defect in site_map.defect_counts
        if defect.partition("_")[0] not in seen.get(defect.partition("_")[2], ())
    ]
    if new:
        sites = tuple(defect.site for defect in site_map.defects if defect.name in new)
        text = f"defects never seen in hosts like {name}: {', '.join(new)}"
        yield Reservation("defects", text, sites=sites, kind="alike")
    if site_map.density > high * 1.001:
        yield _of_density(site_map, f"in hosts like {name}", (0.0, high))


def _seen_in_alike_hosts(host: Host, training: TrainingRecord) -> tuple[dict[str, set[str]], float]:
    """Return what was seen in all hosts that are like one.

    Returns:
        What was on the sites of each of its elements, ``v`` for nothing; and the largest share of defect sites.
    """
    out: dict[str, set[str]] = {}
    high = 0.0
    for name, places in alike_hosts(host):
        if name not in training.hosts:
            continue
        for own, other in places:
            there = {word.rpartition("_")[0] for word in training.hosts[name].defects if word.endswith(f"_{other}")}
            out.setdefault(own, set()).update(there | {other})
        high = max(high, training.hosts[name].density[1])
    return out, high


def _sites_where(chosen: Array) -> tuple[int, ...]:
    return tuple(int(k) for k in np.flatnonzero(chosen))


def _of_defects(site_map: SiteMap, name: str, seen: HostRecord) -> Iterator[Reservation]:
    """Yield reservations about the defects in a host of the training data."""
    on_sites = {defect.name for defect in site_map.defects}
    new = [defect for defect in site_map.defect_counts if defect in on_sites and defect not in seen.defects]
    if new:
        sites = tuple(defect.site for defect in site_map.defects if defect.name in new)
        yield Reservation("defects", f"defects never seen in {name}: {', '.join(new)}", sites=sites)
    if seen.side_by_side is not None:
        beside = sorted(side_by_side(site_map.kinds[None], site_map.sites.neighbors) - set(seen.side_by_side))
        if beside:
            text = ", ".join(" beside a ".join(kinds.split("+")) for kinds in beside)
            yield Reservation("complex", f"never seen in {name}: a {text}")
    low, high = seen.density
    # a host seen with isolated defects is taken to be seen at any lower density, in cells of any size
    if site_map.defects and not (0.0 if low < DILUTE else low * 0.999) <= site_map.density <= high * 1.001:
        yield _of_density(site_map, f"in {name}", (low, high))


def _of_density(site_map: SiteMap, where: str, seen: tuple[float, float]) -> Reservation:
    low, high = seen
    beyond = "high" if site_map.density <= high * TRIED_DENSITY * 1.001 else "beyond"
    return Reservation(
        "density",
        f"{site_map.density:.2%} of the sites are defects, training {where} had {low:.2%} to {high:.2%}",
        "near" if site_map.density <= high * NEAR_DENSITY else "outside",
        detail="low" if site_map.density < low else beyond,
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


@lru_cache(maxsize=32)
def known_host(host: Host) -> tuple[str | None, float, float]:
    """Find the library host that a given host corresponds to.

    Returns:
        Its library name, None for a different crystal; its largest principal strain against the library's cell; and
        the root mean square distance of its sites from the library's, in Å.
    """
    if is_library_host(host):
        return host.name, 0.0, 0.0
    for name, candidate in library().items():
        if candidate.composition != host.composition or candidate.layered != host.layered:
            continue
        found = _matched(host, candidate, host.numbers)
        if found is not None:
            return name, found.max_strain, found.cost
    return None, 0.0, 0.0


def _recorded_crystals(training: TrainingRecord | None) -> list[Host]:
    """Return the hosts of which a record holds the crystal."""
    return [
        Host(
            name,
            np.array(crystal.numbers),
            np.array(crystal.positions),
            np.array(crystal.cell),
            layered=crystal.layered,
            source="training data",
        )
        for name, record in (training.hosts if training else {}).items()
        if (crystal := record.crystal) is not None
    ]


@lru_cache(maxsize=32)
def _as_crystal(host: Host, crystal: Host) -> tuple[str, float, float] | None:
    """Compare a host with a crystal that is not in the library; None if it is another, else as :func:`known_host`."""
    if crystal.composition != host.composition or crystal.layered != host.layered:
        return None
    found = _matched(host, crystal, host.numbers)
    return None if found is None else (crystal.name, found.max_strain, found.cost)


@lru_cache(maxsize=32)
def alike_hosts(host: Host) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Find library hosts of the same structure with other elements.

    The cell is scaled to the other's size first; what is left of the difference must be small (:data:`ALIKE`).

    Returns:
        The library name of each, and pairs of symbols: an element of the host, and what the other has in its place.
    """
    own = list(host.composition)
    out = []
    for name, candidate in library().items():
        same = sorted(candidate.composition.values()) == sorted(host.composition.values())
        if candidate.composition == host.composition or candidate.layered != host.layered or not same:
            continue
        if abs(_size(candidate) / _size(host) - 1) > STRETCH:
            continue
        for others in permutations(candidate.composition):
            place = dict(zip(own, others, strict=True))
            found = _matched(host, candidate, np.array([place[z] for z in host.numbers]), _size(candidate))
            if found is not None and found.cost < ALIKE:
                out.append((name, tuple((chemical_symbols[z], chemical_symbols[k]) for z, k in place.items())))
    return tuple(out)


def _size(host: Host) -> float:
    """Return the length that scales a host's cell: root of the area of a layer, cube root of the volume, in Å."""
    if host.layered:
        return float(np.sqrt(np.linalg.norm(np.cross(host.cell[0], host.cell[1]))))
    return float(np.cbrt(abs(np.linalg.det(host.cell))))


def _matched(host: Host, candidate: Host, numbers: Array, size: float | None = None) -> SiteMap | None:
    """Match a pristine host, with other elements and scaled to a size, to a candidate; None if it does not fit."""
    from ase import Atoms  # noqa: PLC0415

    scale = 1.0 if size is None else size / _size(host)
    cell = host.cell * scale
    if host.layered:
        cell[2] = host.cell[2]
    repeat = (2, 2, 1 if host.layered else 2)
    atoms = Atoms(numbers=numbers, positions=host.positions * scale, cell=cell, pbc=True).repeat(repeat)
    try:
        found = match_sites(atoms, candidate)
    except (HostError, MatchError):
        return None
    return None if found.defect_counts else found
