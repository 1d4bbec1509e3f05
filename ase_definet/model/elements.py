"""Period and valence electrons of the elements."""

from __future__ import annotations

import torch
from torch import Tensor

N_ELEMENTS = 119
"""Rows of an element table: 0 is an empty site, the others are atomic numbers."""

N_DESCRIPTORS = 6
"""Numbers of :func:`element_descriptors` for each element."""

_NOBLE_GASES = (0, 2, 10, 18, 36, 54, 86)
_F_BLOCK = 14
_D_BLOCK = 10


def period(number: int) -> int:
    """Return the period of an element, 0 for an empty site.

    Examples:
        >>> period(1), period(34), period(74)
        (1, 4, 6)
    """
    return sum(number > gas for gas in _NOBLE_GASES)


def valence_electrons(number: int) -> int:
    """Return the electrons outside closed shells: s and p, or s and d, those of the f block counted as three.

    Examples:
        >>> [valence_electrons(z) for z in (0, 5, 7, 31, 34, 42, 74, 82)]  # B, N, Ga, Se, Mo, W, Pb
        [0, 3, 5, 3, 6, 6, 6, 4]
    """
    if not number:
        return 0
    row = period(number)
    beyond = number - _NOBLE_GASES[row - 1]
    if row > 5 and beyond > 2:  # noqa: PLR2004 - the f block follows two s electrons
        beyond = max(3, beyond - _F_BLOCK)
    in_core = row > 3 and beyond > 12  # noqa: PLR2004 - d electrons of the p block
    return beyond - _D_BLOCK if in_core else beyond


def in_d_block(number: int) -> bool:
    """Whether an element has d electrons in its valence shell, or f electrons below it.

    Examples:
        >>> [in_d_block(z) for z in (13, 21, 30, 31, 42, 58, 74, 82)]  # Al, Sc, Zn, Ga, Mo, Ce, W, Pb
        [False, True, True, False, True, True, True, False]
    """
    row = period(number)
    if row <= 3:  # noqa: PLR2004 - the first rows have none
        return False
    beyond = number - _NOBLE_GASES[row - 1]
    last = 12 + (_F_BLOCK if row > 5 else 0)  # noqa: PLR2004 - as above
    return 2 < beyond <= last  # noqa: PLR2004 - after two s electrons


def valence_table() -> Tensor:
    """Return the valence electrons of every element, integers, shape ``(119,)``."""
    return torch.tensor([valence_electrons(z) for z in range(N_ELEMENTS)])


def element_descriptors() -> Tensor:
    """Return numbers of order one that vary as elements do, shape ``(119, 6)``, zero for an empty site."""
    rows = []
    for z in range(N_ELEMENTS):
        row, valence = period(z) / 4, valence_electrons(z) / 4
        rows.append([row, valence, row * valence, row * row, valence * valence, float(in_d_block(z))])
    return torch.tensor(rows)
