"""Candidate supercells of large cells from the diffraction pattern of the structure.

Thousands of supercells may fit a large cell with about the right strain and number of sites; the atomic positions
select the right one. The reflection ``h`` of a host (integers in its reciprocal primitive vectors) appears in the
defect cell at the integer vector ``k = matrix @ h``. A few strong reflections that span the lattice are searched at
all ``k`` of about the right length, and the brightest are combined to supercell matrices. Defects, strain and
rattling weaken reflections but do not shift them. The cost is linear in the number of sites.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.matching.host import Host

Array: TypeAlias = NDArray[Any]

_ATOMS = 300  # of each element: a reflection is then hundreds of times as bright as the background
_BRIGHT = (0.3, 0.1, 0.02)  # intensities, of 1, that reflections of the host must have: the first set that spans
_DIM = 0.2  # of the brightest vector of a reflection: others are background
_SPOTS = 48  # vectors kept for each reflection
_ORDERS = 4  # reflections of the host looked at, in units of its reciprocal vectors
_PHASES = 4_000_000  # complex phases held at once


def supercell_candidates(host: Host, frame: Array, positions: Array, numbers: Array, limit: float) -> Array:
    """Return the integer supercell matrices consistent with the reflections of a structure.

    Args:
        host: The host.
        frame: Cell of the structure as rows, shape ``(3, 3)``, in Å; the normal last for a layer.
        positions: Of its atoms, shape ``(n_atoms, 3)``, in Å.
        numbers: Their atomic numbers, shape ``(n_atoms,)``.
        limit: Largest principal strain of the host onto the cell.

    Returns:
        Matrices of the periodic axes, shape ``(n, 3, 3)``, or ``(n, 2, 2)`` for a layer; rows in the host's vectors.
    """
    n = 2 if host.layered else 3
    classes = _fractions(positions @ np.linalg.inv(frame)[:, :n], numbers, host)
    # rows of the reciprocal bases; a layer's normal is orthogonal to its periodic vectors
    reciprocal, own = (np.linalg.pinv(cell[:n]).T for cell in (frame, host.cell))
    found = np.zeros((0, n, n), dtype=int)
    for reflections in _spanning(host, own, n):
        spots = [_spots(classes, reciprocal, float(np.linalg.norm(h @ own)), limit) for h in reflections]
        if all(len(s) for s in spots):
            found = np.concatenate([found, _matrices(spots, np.array(reflections))])
            break
    return np.unique(found, axis=0)


def _fractions(fractions: Array, numbers: Array, host: Host) -> list[Array]:
    """Return some fractional positions of each element of the host, of all atoms where the structure has none."""
    rng = np.random.default_rng(0)
    out = []
    for element in np.unique(host.numbers):
        own = np.flatnonzero(numbers == element)
        if len(own):
            out.append(fractions[rng.choice(own, min(len(own), _ATOMS), replace=False)])
    return out or [fractions[rng.choice(len(fractions), min(len(fractions), _ATOMS), replace=False)]]


def _spanning(host: Host, own: Array, n: int) -> Iterator[list[Array]]:
    """Yield sets of short, strong reflections of the host that span its lattice, the strongest first."""
    scaled = host.positions @ np.linalg.inv(host.cell)[:, :n]
    orders = np.array(list(itertools.product(range(-_ORDERS, _ORDERS + 1), repeat=n)))
    orders = orders[[tuple(h) > (0,) * n for h in orders.tolist()]]  # one of each pair of Friedel
    factors = np.exp(2j * np.pi * orders @ scaled.T)
    intensity = np.mean(
        [np.abs(factors[:, host.numbers == e].mean(axis=1)) ** 2 for e in np.unique(host.numbers)], axis=0
    )
    order = np.argsort(np.linalg.norm(orders @ own, axis=1), kind="stable")
    orders, intensity = orders[order], intensity[order]
    for least in _BRIGHT:
        chosen: list[Array] = []
        for h in orders[intensity >= least]:
            if np.linalg.matrix_rank(np.array([*chosen, h])) > len(chosen):
                chosen.append(h)
        if len(chosen) == n:
            yield chosen


def _spots(classes: list[Array], reciprocal: Array, length: float, limit: float) -> Array:
    """Return the brightest integer vectors of the cell whose length a strain takes to that of a reflection."""
    n = len(reciprocal)
    shortest, reach = length / (1 + limit) * (1 - 1e-6), length / (1 - limit) * (1 + 1e-6)
    bound = np.ceil(reach * np.linalg.norm(np.linalg.pinv(reciprocal), axis=0)).astype(int)
    rest = np.stack(np.meshgrid(*(np.arange(-b, b + 1) for b in bound[1:]), indexing="ij"), axis=-1).reshape(
        -1, n - 1
    )
    kept = []
    for first in range(bound[0] + 1):  # plane by plane: the whole box need not be held; -k is as bright as k
        plane = np.column_stack([np.full(len(rest), first), rest])
        size = np.linalg.norm(plane @ reciprocal, axis=1)
        kept.append(plane[(size >= shortest) & (size <= reach)])
    vectors = np.concatenate(kept)
    if len(vectors) == 0:
        return vectors
    power = np.zeros(len(vectors))
    for fractions in classes:
        step = max(1, _PHASES // len(fractions))
        for start in range(0, len(vectors), step):
            phases = np.exp(-2j * np.pi * (vectors[start : start + step] @ fractions.T))
            power[start : start + step] += np.abs(phases.mean(axis=1)) ** 2
    brightest = np.argsort(-power, kind="stable")[:_SPOTS]
    brightest = brightest[power[brightest] >= _DIM * power.max()]
    return np.unique(np.concatenate([vectors[brightest], -vectors[brightest]]), axis=0)


def _matrices(spots: list[Array], reflections: Array) -> Array:
    """Combine the vectors of each reflection to matrices of integers: ``k = matrix @ h``."""
    n = len(reflections)
    index = np.stack(np.meshgrid(*(np.arange(len(s)) for s in spots), indexing="ij"), axis=-1).reshape(-1, n)
    columns = np.stack([s[index[:, k]] for k, s in enumerate(spots)], axis=-1)
    found = columns @ np.linalg.inv(reflections.T)
    whole = np.round(found)
    fits = (np.abs(found - whole) < 1e-6).all(axis=(1, 2)) & (np.abs(np.linalg.det(whole)) > 0.5)  # noqa: PLR2004
    return np.asarray(whole[fits], dtype=int)
