"""Atoms on no site of the host: their kind of defect, position, and alternative interpretations."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.formula import Formula
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ase_definet.matching.naming import adatom_name, defect_name, interstitial_name
from ase_definet.matching.registration import GATE, Assignment, Placement, nearby_pairs
from ase_definet.structures.neighbors import pairs_within

Array: TypeAlias = NDArray[Any]

OUTSIDE = 0.7
"""An atom further than this beyond the outermost sites of a layer is an adatom, in Å: half a short bond."""

DUMBBELL_BALANCE = 0.4
"""Two atoms share a site if the distance of the nearer one exceeds this fraction of that of the other."""

OPPOSITE = -0.7
"""Two directions are opposite if the cosine of their angle is less, which excludes 120° as in a hexagon."""

SPLIT_BALANCE = 0.25
"""An atom lies midway between two free sites if its distances from them differ by less than this, in Å."""

LEAST_SPLIT = 0.5
"""An atom closer to a free site than this is on it, in Å."""

DISPLACED_REACH = 2.5
"""Largest distance of an atom from the free site of its own element that it may have left, in Å."""

ON_TOP = 0.4
"""Subtracted from the margin of an atom close to an occupied site, in Å: only the bond of H2 is below 0.9 Å."""

UNBOUND = 4.0
"""An atom further than this from all sites is not bound to the host, in Å."""

BOND = 1.2
"""Two atoms closer than this multiple of the sum of their covalent radii are bonded."""

_NONMETALS = frozenset({1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 52, 53})  # elements of molecules
_REACH = 3.0  # of the first look around an atom, in Å


class ExtraKind(enum.StrEnum):
    """Kind of an atom on no site; unlike :class:`SiteKind`, the networks have no markers for these."""

    INTERSTITIAL = "interstitial"
    ADATOM = "adatom"
    SPLIT_VACANCY = "split vacancy"
    SPLIT_INTERSTITIAL = "split interstitial"
    DISPLACED = "displaced host atom"


@dataclass(frozen=True)
class ExtraAtom:
    """One atom on no site of the host.

    Attributes:
        name: Without charge: ``Li_i``; an adatom is ``Li_ads`` (see :mod:`~ase_definet.matching.naming`).
        kind: An adatom lies outside a layer, an interstitial inside of a crystal or layer. In a split interstitial
            (dumbbell) it shares a site with another atom, in a split vacancy it lies midway between two free sites.
            A displaced host atom is an interstitial beside a free site of its own element.
        element: Its element.
        atom_index: Its index in the caller's order.
        position: Its given position, in Å.
        sites: The site it shares, the two it lies between, or else the nearest one.
        distance: From the nearest of these, in Å.
        height: Distance of an adatom from the outermost sites of the layer, in Å; else None.
        side: Side of an adatom, ``"above"`` (in the direction of the cell vector across the layer) or ``"below"``;
            else None.
        partner: In a split interstitial, index of the other atom in the caller's order; else None.
        origin: The nearest free site of its own element, within :data:`DISPLACED_REACH`, that it may have left; else
            None.
    """

    name: str
    kind: ExtraKind
    element: str
    atom_index: int
    position: tuple[float, float, float]
    sites: tuple[int, ...]
    distance: float
    height: float | None = None
    side: str | None = None
    partner: int | None = None
    origin: int | None = None


@dataclass(frozen=True, eq=False)
class Described:
    """An assignment with descriptions of its atoms on no site.

    Attributes:
        assigned: The assignment, without the atoms of split vacancies; margins include alternative interpretations.
        extra: The atoms on no site, in the caller's order.
        doubts: Positions and alternative interpretations of atoms on no site that are close to one.
    """

    assigned: Assignment
    extra: tuple[ExtraAtom, ...]
    doubts: Mapping[int, str]


def describe_extra_atoms(
    sites: Array, host_numbers: Array, assigned: Assignment, placed: Placement, given: Array, *, layered: bool
) -> Described:
    """Describe the unassigned atoms and those midway between two free sites.

    Args:
        sites: Positions of the sites, shape ``(n_sites, 3)``, in Å.
        host_numbers: Their atomic numbers, shape ``(n_sites,)``.
        assigned: The assignment of atoms to sites.
        placed: The atoms.
        given: Their original positions, shape ``(n_atoms, 3)``, in Å.
        layered: Whether the host is a layer, its normal the last vector of the cell.
    """
    if (assigned.site >= 0).all() and not _may_be_split(assigned).any():
        return Described(assigned, (), {})
    return _Description(sites, host_numbers, assigned, placed, given, layered=layered).run()


def _may_be_split(assigned: Assignment) -> Array:
    """Return which atoms are displaced from their site and at a similar distance from another one."""
    off = (assigned.offset**2).sum(axis=1) > LEAST_SPLIT**2
    return np.asarray((assigned.site >= 0) & off & (assigned.margin < SPLIT_BALANCE))


@dataclass(frozen=True, eq=False)
class _Around:
    """Sites around an atom, nearest first: their indices, the vectors from them to the atom, and distances, in Å."""

    site: Array
    vector: Array
    distance: Array


class _Description:
    """Working state of the description; the assignment is copied and modified."""

    def __init__(
        self,
        sites: Array,
        host_numbers: Array,
        assigned: Assignment,
        placed: Placement,
        given: Array,
        *,
        layered: bool,
    ) -> None:
        self.sites, self.host_numbers, self.placed, self.given = sites, host_numbers, placed, given
        self.site, self.offset, self.margin = assigned.site.copy(), assigned.offset.copy(), assigned.margin.copy()
        self.suspects = np.flatnonzero(_may_be_split(assigned)).tolist()
        self.loose = np.flatnonzero(assigned.site < 0).tolist()
        self.around = _look(sites, placed, [*self.suspects, *self.loose])
        self.atom_on = np.full(len(sites), -1)
        on = self.site >= 0
        self.atom_on[self.site[on]] = np.flatnonzero(on)
        normal = placed.cell[2] / np.linalg.norm(placed.cell[2])
        self.heights = placed.positions @ normal if layered else None
        levels = sites @ normal
        self.bottom, self.top = float(levels.min()), float(levels.max())
        self.shared: set[int] = set()
        self.extra: list[ExtraAtom] = []
        self.doubts: dict[int, str] = {}

    def run(self) -> Described:
        """Describe all atoms, split vacancies first, because their sites are then free for others."""
        left = []
        for atom, around in self.around.items():
            between = self._split_vacancy(atom, around)
            if between is not None:
                self._add_split_vacancy(atom, between, around)
            elif self.site[atom] < 0:
                left.append(atom)
        for atom in left:
            shared = self._shared(self.around[atom])
            if shared is not None:
                self._add_dumbbell(atom, shared)
            else:
                self._add_other(atom, self.around[atom])
        assigned = Assignment(self.site, self.offset, self.margin)
        return Described(assigned, tuple(sorted(self.extra, key=lambda a: a.atom_index)), self.doubts)

    def _look(self, atom: int) -> _Around:
        if atom not in self.around:
            self.around |= _look(self.sites, self.placed, [atom])
        return self.around[atom]

    def _free(self, around: _Around) -> Array:
        return np.flatnonzero(self.atom_on[around.site] < 0)

    def _split_vacancy(self, atom: int, around: _Around) -> tuple[int, int] | None:
        """Return the two sites around an atom that form a split vacancy, or None."""
        own = self.site[atom]
        free = [n for n in range(len(around.site)) if self.atom_on[around.site[n]] < 0 or around.site[n] == own]
        if own >= 0:  # it leaves its site only for a position midway to another one
            free.sort(key=lambda n: around.site[n] != own)
        elements = self.host_numbers[around.site]
        for k, a in enumerate(free):
            for b in free[k + 1 :]:
                balanced = abs(around.distance[a] - around.distance[b]) < SPLIT_BALANCE
                off = min(around.distance[a], around.distance[b]) > LEAST_SPLIT
                cosine = _cosine(around.vector[a], around.vector[b])
                if elements[a] == elements[b] and balanced and off and cosine < OPPOSITE:
                    return a, b
            if own >= 0:
                break
        return None

    def _shared(self, around: _Around) -> int | None:
        """Return the site that an atom shares with the atom on it, or None."""
        for n in np.flatnonzero(around.distance <= GATE):
            site = int(around.site[n])
            other = int(self.atom_on[site])
            if other < 0 or site in self.shared:
                continue
            move = self.offset[other]
            balanced = np.linalg.norm(move) > DUMBBELL_BALANCE * around.distance[n]
            if balanced and _cosine(move, around.vector[n]) < OPPOSITE:
                return site
        return None

    def _outside(self, atom: int) -> tuple[float, str] | None:
        """Return the height of an atom beyond a layer and the side it is on, None if it is inside."""
        if self.heights is None:
            return None
        above, below = float(self.heights[atom] - self.top), float(self.bottom - self.heights[atom])
        height, side = max((above, "above"), (below, "below"))
        return (height, side) if height > OUTSIDE else None

    def _put(self, atom: int, site: int) -> None:
        """Assign an atom to a site, or to none (-1)."""
        if self.site[atom] >= 0:
            self.atom_on[self.site[atom]] = -1
        self.site[atom] = site
        self.offset[atom] = 0.0
        if site >= 0:
            around = self._look(atom)
            self.offset[atom] = around.vector[int(np.flatnonzero(around.site == site)[0])]
            self.atom_on[site] = atom

    def _add(self, atom: int, kind: ExtraKind, sites: Sequence[int], distance: float, **more: Any) -> None:
        number = int(self.placed.numbers[atom])
        x, y, z = (float(v) for v in self.given[atom])
        self.extra.append(
            ExtraAtom(
                name=adatom_name(number) if kind is ExtraKind.ADATOM else interstitial_name(number),
                kind=kind,
                element=chemical_symbols[number],
                atom_index=atom,
                position=(x, y, z),
                sites=tuple(int(site) for site in sites),
                distance=float(distance),
                **more,
            )
        )

    def _add_split_vacancy(self, atom: int, between: tuple[int, int], around: _Around) -> None:
        chosen = list(between)
        near, far = np.sort(around.distance[chosen])
        own = int(self.site[atom])
        # beyond the gate there is no alternative; within it, it is likelier the closer the atom is to a site
        self.margin[atom] = GATE if own < 0 else GATE / 2 - (far - near)
        self.doubts[atom] = (
            f"lies {near:.2f} and {far:.2f} Å from two free sites: the other reading is that it is on one, site {own}"
        )
        self._put(atom, -1)
        self._add(atom, ExtraKind.SPLIT_VACANCY, sorted(around.site[chosen].tolist()), near)

    def _add_dumbbell(self, atom: int, site: int) -> None:
        self.shared.add(site)
        other, own = int(self.atom_on[site]), self.host_numbers[site]
        if self.placed.numbers[other] != own and self.placed.numbers[atom] == own:  # the host's atom keeps it
            self._put(other, -1)
            self._put(atom, site)
            atom, other = other, atom
        for one in (atom, other):
            around = self._look(one)
            distance = float(around.distance[around.site == site][0])
            free = around.distance[self._free(around)]
            self.margin[one] = min(GATE, float(free.min(initial=np.inf)) - distance)
        around = self._look(atom)
        distance = float(around.distance[around.site == site][0])
        self.doubts[atom] = f"lies {distance:.2f} Å from site {site}, which it shares, and as near to a free one"
        self._add(atom, ExtraKind.SPLIT_INTERSTITIAL, [site], distance, partner=other)

    def _add_other(self, atom: int, around: _Around) -> None:
        outside = self._outside(atom)
        near = self._free(around)
        near = near[around.distance[near] < DISPLACED_REACH]
        left = around.site[near][self.host_numbers[around.site[near]] == self.placed.numbers[atom]]
        more: dict[str, Any] = {"origin": int(left[0])} if len(left) else {}
        kind = ExtraKind.DISPLACED if len(left) else ExtraKind.INTERSTITIAL
        if outside is not None:
            kind = ExtraKind.ADATOM
            more |= {"height": outside[0], "side": outside[1]}
        self._judge(atom, around)
        self._add(atom, kind, around.site[:1].tolist(), float(around.distance[0]), **more)

    def _judge(self, atom: int, around: _Around) -> None:
        """Find the closest alternative interpretation of an atom on no site, and its margin."""
        margin, doubt = GATE, ""
        for n, site in enumerate(around.site.tolist()):
            distance, other = float(around.distance[n]), int(self.atom_on[site])
            host = chemical_symbols[self.host_numbers[site]]
            if other < 0:
                gap = distance - GATE
                name = self._named(atom, site) or f"{host} on its site"
                text = f"lies {distance:.2f} Å from site {site} ({host}), which is free: the other reading is {name}"
            elif distance < GATE:
                gap = distance - float(np.linalg.norm(self.offset[other])) - ON_TOP
                text = f"lies {distance:.2f} Å from site {site} ({host}), on top of atom {other}: "
                if self.placed.numbers[other] == self.placed.numbers[atom]:
                    text += "the other reading is that the two share the site"
                else:
                    names = self._named(atom, site), interstitial_name(int(self.placed.numbers[other]))
                    text += f"the other reading is {' and '.join(name for name in names if name)}"
            else:
                continue
            if gap < margin:
                margin, doubt = gap, text
        self.margin[atom] = margin
        if doubt:
            self.doubts[atom] = doubt

    def _named(self, atom: int, site: int) -> str:
        """Return the name of an atom as a defect on a site, empty for the host's own element."""
        number, host = int(self.placed.numbers[atom]), int(self.host_numbers[site])
        return "" if number == host else defect_name(number, host)


def _look(sites: Array, placed: Placement, atoms: Sequence[int]) -> dict[int, _Around]:
    """Find the sites around atoms, each within a radius that includes at least one."""
    out: dict[int, _Around] = {}
    left, radius = list(atoms), _REACH
    while left:
        chosen = Placement(placed.positions[left], placed.numbers[left], placed.cell, placed.pbc)
        row, site, vector = nearby_pairs(sites, chosen, radius)
        distance = np.linalg.norm(vector, axis=1)
        order = np.lexsort((site, distance, row))
        row, site, vector, distance = row[order], site[order], vector[order], distance[order]
        ends = np.searchsorted(row, np.arange(len(left) + 1))
        for atom, first, last in zip(left, ends[:-1], ends[1:], strict=True):
            if last > first:
                out[atom] = _Around(site[first:last], vector[first:last], distance[first:last])
        left = [atom for atom in left if atom not in out]
        radius *= 2
    return out


def other_reading(sites: Array, host_numbers: Array, assigned: Assignment, placed: Placement, atom: int) -> str:
    """Describe the interpretation of an atom on a site and the alternative, empty if there is no simple one.

    Args:
        sites: Positions of the sites, shape ``(n_sites, 3)``, in Å.
        host_numbers: Their atomic numbers, shape ``(n_sites,)``.
        assigned: The assignment of atoms to sites.
        placed: The atoms.
        atom: Index of the atom.
    """
    own, number = int(assigned.site[atom]), int(placed.numbers[atom])
    around = _look(sites, placed, [atom])[atom]
    others = np.flatnonzero((around.site != own) & (around.distance < GATE))

    def on(site: int) -> list[str]:
        return [] if number == host_numbers[site] else [defect_name(number, int(host_numbers[site]))]

    left = defect_name(0, int(host_numbers[own]))
    if not len(others):
        here, there = on(own), [f"{chemical_symbols[number]} on no site", left]
    elif (assigned.site == around.site[others[0]]).any():
        return ""
    else:
        second = int(around.site[others[0]])
        here, there = [*on(own), defect_name(0, int(host_numbers[second]))], [*on(second), left]
        if here == there:
            return f"read as {' and '.join(here)}, the other reading has it on site {second}"
    return f"read as {' and '.join(here) or 'on its own site'}, the other reading is {' and '.join(there)}"


def remarks(extra: Sequence[ExtraAtom], placed: Placement) -> Iterator[str]:
    """Yield warnings about atoms on no site: molecules, and unbound atoms."""
    index = np.array([atom.atom_index for atom in extra if atom.origin is None], dtype=int)
    for group in molecules(index, placed):
        named = ", ".join(str(k) for k in group)
        formula = Formula.from_list([chemical_symbols[z] for z in placed.numbers[group]]).format("hill")
        yield (
            f"atoms {named} ({formula}) lie on no site and are bonded to one another: if they are a molecule, it is "
            "no point defect; they are named one by one"
        )
    for atom in extra:
        if atom.distance > UNBOUND:
            yield (
                f"atom {atom.atom_index} ({atom.element}) lies {atom.distance:.1f} Å from the nearest site of the "
                "host and is bound to none: is it part of the defect?"
            )


def molecules(index: Array, placed: Placement) -> list[list[int]]:
    """Return groups of nonmetal atoms, among those given, that are bonded to one another.

    Args:
        index: Indices of the atoms, shape ``(n,)``.
        placed: All atoms.
    """
    index = np.array([k for k in index if int(placed.numbers[k]) in _NONMETALS], dtype=int)
    if len(index) < 2:  # noqa: PLR2004 - a molecule has two atoms
        return []
    radii = covalent_radii[placed.numbers[index]]
    i, j, vector = pairs_within(placed.positions[index], placed.cell, placed.pbc, 2 * BOND * float(radii.max()))
    bonded = np.linalg.norm(vector, axis=1) < BOND * (radii[i] + radii[j])
    graph = coo_array((np.ones(bonded.sum()), (i[bonded], j[bonded])), shape=(len(index), len(index)))
    _, label = connected_components(graph, directed=False)
    groups = [index[label == k].tolist() for k in np.unique(label)]
    return [group for group in groups if len(group) > 1]


def _cosine(a: Array, b: Array) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
