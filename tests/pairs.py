"""Pairs of structures made here, for the tests of data and training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ase_definet.data import PackedDataset, PairSource, pack_pairs
from tests.conftest import pristine


def radial_pair(rng: np.random.Generator, host: Atoms) -> tuple[Atoms, Atoms]:
    """Return a vacancy and its relaxation away from it, a field that an equivariant network can learn."""
    gone = int(rng.integers(len(host)))
    delta = host.get_distances(gone, range(len(host)), mic=True, vector=True)
    length = np.linalg.norm(delta, axis=1, keepdims=True)
    moves = 0.3 * delta / np.maximum(length, 1) ** 3
    unrelaxed = host.copy()
    del unrelaxed[gone]
    relaxed = unrelaxed.copy()
    relaxed.positions += np.delete(moves, gone, axis=0)
    return unrelaxed, relaxed


def radial_pairs(
    train: int = 18,
    val: int = 6,
    subset: str = "high/MoS2",
    seed: int = 0,
    host: Atoms | None = None,
    name: Any = "MoS2",
) -> Iterator[PairSource]:
    """Yield pairs on the same sites, 4 x 4 cells of MoS2 unless another host is given."""
    rng = np.random.default_rng(seed)
    host = pristine("MoS2", 4) if host is None else host
    for k in range(train + val):
        unrelaxed, relaxed = radial_pair(rng, host)
        split = "train" if k < train else "val"
        yield PairSource(f"{subset}-{seed}-{k}", subset, split, name, unrelaxed, relaxed)


def pack_of(path: Path, *references: Iterator[PairSource]) -> PackedDataset:
    """Pack pairs that are all good."""
    pack, problems = pack_pairs((one for some in references for one in some), path, workers=1)
    assert problems == []
    return pack
