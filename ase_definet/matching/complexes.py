"""Kinds of defects that are neighbours: what a complex is made of."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.matching.site_kind import SiteKind
from ase_definet.structures.neighbors import pairs_within

Array: TypeAlias = NDArray[Any]

BESIDE = 1.5
"""Sites closer than this are neighbours, in distances between the closest sites of the host."""

_KINDS = {SiteKind.SUBSTITUTION: "substitution", SiteKind.VACANCY: "vacancy"}


def neighbors(positions: Array, cell: Array, pbc: tuple[bool, bool, bool], closest: float) -> tuple[Array, Array]:
    """Return all pairs of neighbouring sites, as indices, each pair both ways.

    Args:
        positions: The sites, shape ``(n_sites, 3)``, in Å.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        pbc: Which of them are periodic.
        closest: Distance between the closest sites of the host, in Å.
    """
    one, other, _ = pairs_within(positions, cell, pbc, BESIDE * closest)
    return one, other


def side_by_side(kinds: Array, pairs: tuple[Array, Array]) -> set[str]:
    """Return the kinds of defects that are neighbours: ``substitution+vacancy``.

    Args:
        kinds: :class:`SiteKind` of every site of each structure, shape ``(n_structures, n_sites)``.
        pairs: Neighbouring sites, as of :func:`neighbors`.

    Examples:
        >>> import numpy as np
        >>> sorted(side_by_side(np.array([[0, 1, 2, 2]]), (np.array([0, 1, 2]), np.array([1, 2, 3]))))
        ['substitution+vacancy', 'vacancy+vacancy']
    """
    defective = kinds > 0
    structure, pair = np.nonzero(defective[:, pairs[0]] & defective[:, pairs[1]])
    beside = np.sort([kinds[structure, index[pair]] for index in pairs], axis=0)
    return {"+".join(_KINDS[SiteKind(kind)] for kind in both) for both in set(map(tuple, beside.T.tolist()))}
