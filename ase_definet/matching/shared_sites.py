"""Structures on the sites of another: matched without a search, with the same result to the bit.

Of the structures of a screen, thousands lie in one cell and differ by what is on the sites. The first is matched in
full; of the others, those whose atoms lie on its sites are recognised. What lies elsewhere, or what a full match
might read differently, is left to that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ase_definet.errors import StructureError
from ase_definet.matching.host import Host
from ase_definet.matching.registration import GATE, SHIFT_STEP, SPECIES_PENALTY, offsets_from
from ase_definet.matching.site_kind import SiteKind
from ase_definet.matching.site_map import (
    MIN_ADVANTAGE,
    MIN_MARGIN,
    MIN_PRISTINE,
    SUBLATTICE,
    SiteMap,
    match_sites,
    occupied,
)
from ase_definet.structures.cell import HEAVIEST, layer_frame
from ase_definet.structures.neighbors import pairs_within

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

ON_SITE = 0.01
"""Atoms closer than this to a site of another structure are on it, in Å."""

_ROUNDING = 1e-9
_KEPT = 4
"""Cells whose sites are remembered."""
_WORST = GATE**2 + SPECIES_PENALTY
"""What one atom adds to the squared cost of a registration, at most, in Å²."""


class SharedSites:
    """The sites of a structure that was matched, on which others in the same cell are recognised.

    Args:
        site_map: The match.
        atoms: The structure.
    """

    def __init__(self, site_map: SiteMap, atoms: Atoms) -> None:
        self.known, self.sites = site_map, site_map.sites
        self._given, self._pbc = atoms.cell.array.copy(), atoms.pbc.copy()
        self._inverse = np.linalg.inv(site_map.cell)
        self._scaled = site_map.positions @ self._inverse
        self._tree = cKDTree(_wrapped(self._scaled), boxsize=1.0)
        host_numbers = site_map.host_numbers
        kinds, counts = np.unique(host_numbers, return_counts=True)
        self._sublattices = kinds[counts >= SUBLATTICE * len(host_numbers)]

    @cached_property
    def _close(self) -> tuple[Array, Array, Array]:
        """Pairs of sites so close that an atom on one might be on the other, and the vectors between them, in Å."""
        return pairs_within(self.sites.positions, self.sites.cell, self.sites.pbc, GATE + 2 * ON_SITE)

    @staticmethod
    def serves(site_map: SiteMap) -> bool:
        """Return whether other structures can be recognised on the sites of a match: if it is beyond doubt."""
        return not site_map.extra and not site_map.ambiguous

    def match(self, atoms: Atoms) -> SiteMap | None:
        """Return the match of a structure, None if only a full match can tell.

        Args:
            atoms: The structure.
        """
        same_cell = np.array_equal(atoms.cell.array, self._given) and np.array_equal(atoms.pbc, self._pbc)
        if not same_cell or not 0 < len(atoms) <= len(self.sites):
            return None
        if not np.isfinite(atoms.positions).all() or not (
            1 <= atoms.numbers.min() <= atoms.numbers.max() <= HEAVIEST
        ):
            return None
        try:
            frame, positions, _ = layer_frame(self._given, atoms.positions, self._pbc)
        except StructureError:
            return None
        if not np.array_equal(frame, self.sites.cell):  # so much is gone that it has vacuum elsewhere
            return None
        scaled = positions @ self._inverse
        _, site = self._tree.query(_wrapped(scaled))
        off = scaled - self._scaled[site]
        near = (off - np.where(self.sites.pbc, np.round(off), 0.0)) @ self.sites.cell
        if ((near**2).sum(axis=1) > ON_SITE**2).any() or np.bincount(site).max() > 1:
            return None
        return self.occupied(atoms.numbers, site, offsets_from(self.sites.positions, site, positions, near, frame))

    def occupied(self, numbers: Array, site: Array, offset: Array) -> SiteMap | None:
        """Return the match of atoms on known sites, None if a full match might read them differently.

        Args:
            numbers: Atomic numbers of the atoms, shape ``(n_atoms,)``.
            site: Site of every atom, each once, shape ``(n_atoms,)``.
            offset: Vector from the site to the atom, shape ``(n_atoms, 3)``, in Å.
        """
        if np.abs(np.median(offset, axis=0)).max() > SHIFT_STEP / 2 - _ROUNDING:  # it has a shift of its own
            return None
        found = occupied(self.sites, numbers, site, offset)
        if not self._left_of_host(found):
            return None
        foreign = np.count_nonzero(found.kinds == SiteKind.SUBSTITUTION)
        squared = (offset**2).sum() + SPECIES_PENALTY * foreign
        cost = float(np.sqrt(squared / len(numbers)))
        runner_up = self._at_least(found)
        margin = self._margin(found)
        if margin < MIN_MARGIN or runner_up < cost + MIN_ADVANTAGE:
            return None
        return replace(found, cost=cost, runner_up=runner_up, margin=margin, warnings=self.known.warnings)

    def _left_of_host(self, found: SiteMap) -> bool:
        """Return whether as much of the host, and of each of its sublattices, is left as a match requires."""
        host_numbers = self.sites.numbers
        if np.count_nonzero(found.numbers == host_numbers) < MIN_PRISTINE * len(host_numbers):
            return False
        foreign = host_numbers[found.kinds == SiteKind.SUBSTITUTION]
        own = ((np.count_nonzero(foreign == e), np.count_nonzero(host_numbers == e)) for e in self._sublattices)
        return all(replaced <= MIN_PRISTINE * there for replaced, there in own)

    def _at_least(self, found: SiteMap) -> float:
        """Return what another registration costs at least, from what it costs of the structure that was matched."""
        here, there = np.count_nonzero(found.numbers), np.count_nonzero(self.known.numbers)
        other = np.count_nonzero(found.numbers != self.known.numbers)
        squared = self.known.runner_up**2 * there - other * _WORST
        return float(np.sqrt(max(0.0, squared) / here))

    def _margin(self, found: SiteMap) -> float:
        one, _, vector = self._close
        second = np.full(len(self.sites), GATE)
        np.minimum.at(second, one, np.linalg.norm(vector - found.offsets[one], axis=1))
        real = found.atom_index >= 0
        return float((second - np.linalg.norm(found.offsets, axis=1))[real].min())


@dataclass(frozen=True, eq=False)
class Placed:
    """A structure whose sites are known, as those of an enumeration are.

    Attributes:
        atoms: The structure.
        site_map: Its match.
    """

    atoms: Atoms
    site_map: SiteMap


class Matcher:
    """Match structures, and recognise those on the sites of others."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[SiteMap, Atoms] | SharedSites] = {}

    def match(self, atoms: Atoms, host: Host | str, max_strain: float) -> SiteMap:
        """Match a structure.

        Args:
            atoms: The structure.
            host: Its host, or ``auto``, of which nothing is remembered.
            max_strain: As in :func:`~ase_definet.matching.site_map.match_sites`.

        Raises:
            DefiNetError: As :func:`~ase_definet.matching.site_map.match_sites`.
        """
        if isinstance(host, str):
            return match_sites(atoms, host, max_strain=max_strain)
        key = (host, max_strain, atoms.cell.array.tobytes(), atoms.pbc.tobytes())
        found = self._known.pop(key, None)
        if found is not None:
            shared = found if isinstance(found, SharedSites) else SharedSites(*found)
            self._known[key] = shared
            site_map = shared.match(atoms)
            if site_map is not None:
                return site_map
        site_map = match_sites(atoms, host, max_strain=max_strain)
        if found is None and SharedSites.serves(site_map):
            self._known[key] = (site_map, atoms)
            while len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
        return site_map


def _wrapped(scaled: Array) -> Array:
    """Return fractional coordinates in [0, 1)."""
    out = scaled % 1.0
    out[out >= 1.0] = 0.0
    return out
