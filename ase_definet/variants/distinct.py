"""What is distinct: relaxed structures of one defect, compared up to the symmetry of the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.matching.site_map import SiteMap
from ase_definet.matching.symmetry import space_group_operations
from ase_definet.structures.cell import completed_cell
from ase_definet.structures.metrics import minimum_image, near_sites

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

SAME_DISTANCE = 0.25
"""Two structures are the same if some symmetry of the host brings every atom this close to its like, in Å."""

SAME_ENERGY = 0.02
"""Two structures whose energies differ by more than this are not the same, in eV."""

NEAR_DEFECT = 4.0
"""Atoms this close to a defect are looked at for what bonds have formed, in Å."""

_ON_SITE = 1e-3  # of a fractional coordinate of a site and its image under an operation


@dataclass(frozen=True, eq=False)
class HostSymmetry:
    """The symmetry operations of a host's supercell that leave the defects on its sites where they are.

    Attributes:
        site_map: The match of the structure.
        rotations: Shape ``(n, 3, 3)``, for columns of fractional coordinates.
        translations: Shape ``(n, 3)``.
    """

    site_map: SiteMap
    rotations: Array
    translations: Array

    @classmethod
    def of(cls, site_map: SiteMap) -> HostSymmetry:
        """Return the operations for a matched structure.

        Args:
            site_map: The match.
        """
        fractions = site_map.positions @ np.linalg.inv(site_map.cell)
        rotations, translations = space_group_operations(
            site_map.cell, site_map.positions, site_map.host_numbers, layered=not site_map.pbc[2]
        )
        changed = np.flatnonzero(site_map.numbers != site_map.host_numbers)
        kept = [
            k
            for k, (rotation, translation) in enumerate(zip(rotations, translations, strict=True))
            if _keeps(fractions[changed], site_map.numbers[changed], rotation, translation)
        ]
        return cls(site_map, rotations[kept], translations[kept])

    def distance(self, one: Atoms, other: Atoms, enough: float = SAME_DISTANCE) -> float:
        """Return how far two structures are apart: the largest distance of an atom from its like, in Å.

        The operation that brings them closest is taken; infinite if in none every atom has its own like.

        Args:
            one: A structure in the order of the one that was matched.
            other: Another one.
            enough: A distance below which no better operation is looked for, in Å.
        """
        inverse = np.linalg.inv(self.site_map.cell)
        a, b = self._centred(one) @ inverse, self._centred(other) @ inverse
        alike = one.numbers[:, None] == other.numbers[None]
        best = np.inf
        for rotation, translation in zip(self.rotations, self.translations, strict=True):
            turned = a @ rotation.T + translation
            best = min(best, self._apart(turned, b, alike))
            if best < enough / 2:
                break
        return best

    def _apart(self, a: Array, b: Array, alike: Array) -> float:
        """Return the largest distance between like atoms of two sets of fractional coordinates."""
        gap = a[:, None] - b[None]
        gap -= np.round(gap)  # the nearest image, of atoms that are close at all
        vectors = gap @ self.site_map.cell
        length = np.where(alike, np.linalg.norm(vectors, axis=2), np.inf)
        partner = length.argmin(axis=1)
        if len(np.unique(partner)) < len(a):
            return float(np.inf)
        matched = vectors[np.arange(len(a)), partner]
        return float(np.linalg.norm(matched - matched.mean(axis=0), axis=1).max())

    def _centred(self, atoms: Atoms) -> Array:
        """Return positions against the host's sites, without a drift of all atoms."""
        site_map = self.site_map
        on = np.flatnonzero(site_map.atom_index >= 0)
        away = minimum_image(atoms.positions[site_map.atom_index[on]] - site_map.positions[on], site_map.cell)
        return np.asarray(atoms.positions - np.median(away, axis=0))


def _keeps(fractions: Array, numbers: Array, rotation: Array, translation: Array) -> bool:
    """Return whether an operation maps the defect sites onto themselves, each onto one with the same atom."""
    if not len(fractions):
        return True
    gap = (fractions @ rotation.T + translation)[:, None] - fractions[None]
    gap -= np.round(gap)
    close = (np.abs(gap) < _ON_SITE).all(axis=2)
    return bool((close & (numbers[:, None] == numbers[None])).any(axis=1).all())


def changed_pair(before: Atoms, after: Atoms, where: Array) -> str:
    """Return the pair of elements near the defects whose shortest distance changed most: ``Te-Te 2.78 Å (was 4.68)``.

    Args:
        before: The undistorted structure.
        after: A relaxed one.
        where: Positions of the defects, shape ``(n, 3)``, in Å.
    """
    cell = completed_cell(before.cell.array, before.positions, before.pbc)
    near = np.flatnonzero(near_sites(before.positions, where, cell, NEAR_DEFECT))
    was, now = (_shortest_pairs(atoms, near, cell) for atoms in (before, after))
    if not was:
        return ""
    pair = min(was, key=lambda pair: -abs(np.log(now[pair] / was[pair])))
    return f"{'-'.join(pair)} {now[pair]:.2f} Å (was {was[pair]:.2f})"


def _shortest_pairs(atoms: Atoms, near: Array, cell: Array) -> dict[tuple[str, str], float]:
    """Return the shortest distance of each pair of elements among some atoms, in Å."""
    i, j = np.triu_indices(len(near), 1)
    vectors = minimum_image(atoms.positions[near[j]] - atoms.positions[near[i]], cell)
    out: dict[tuple[str, str], float] = {}
    for a, b, length in zip(near[i], near[j], np.linalg.norm(vectors, axis=1), strict=True):
        first, second = sorted((str(atoms.symbols[a]), str(atoms.symbols[b])))
        out[first, second] = min(float(length), out.get((first, second), np.inf))
    return out
