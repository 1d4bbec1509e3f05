"""Labelled structures made here: energies that are sums over defects and pairs, gaps that are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms

from ase_definet.data import PackedDataset, PairSource, pack_pairs
from tests.conftest import pristine

TERMS = {"v_S": 2.0, "Se_S": 0.3, "W_Mo": -0.4}


def planted(atoms: Atoms, changes: dict[int, str]) -> tuple[float, float]:
    """Return the planted energy and gap of defects on sites of a pristine host, in eV."""
    energy = sum(TERMS[what] for what in changes.values())
    sites = list(changes)
    for k, one in enumerate(sites):
        for other in sites[k + 1 :]:
            energy += 0.5 * np.exp(-atoms.get_distance(one, other, mic=True) / 2)
    return energy, 1.8 - (1.0 if "v_S" in changes.values() else 0.1 * len(changes))


def defective(rng: np.random.Generator, host: Atoms, n_defects: int) -> tuple[Atoms, dict[int, str]]:
    """Return a host with random defects, and what was put where."""
    changes = {}
    for site in rng.choice(len(host), n_defects, replace=False):
        changes[int(site)] = "W_Mo" if host.numbers[site] == 42 else str(rng.choice(["v_S", "Se_S"]))
    out = host.copy()
    for site, what in changes.items():
        if what != "v_S":
            out.symbols[site] = what.partition("_")[0]
    del out[[site for site, what in changes.items() if what == "v_S"]]
    return out, changes


def labelled_sources(n_train: int = 60, n_val: int = 12, seed: int = 0, cells: int = 4) -> Iterator[PairSource]:
    """Yield structures without a relaxed one, with a planted energy and gap."""
    rng = np.random.default_rng(seed)
    host = pristine("MoS2", cells)
    for k in range(n_train + n_val):
        atoms, changes = defective(rng, host, int(rng.integers(1, 5)))
        energy, gap = planted(host, changes)
        labels = {"formation_energy": energy, "gap_min": gap}
        split = "train" if k < n_train else "val"
        yield PairSource(f"own-{seed}-{k}", "own/MoS2", split, "MoS2", atoms, None, labels=labels)


def labelled_pack(path: Path, **options: int) -> PackedDataset:
    """Pack such structures."""
    pack, problems = pack_pairs(labelled_sources(**options), path, workers=1)
    assert problems == []
    return pack
