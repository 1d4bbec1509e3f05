"""Label random structures with formation energies of read-outs on the full graph, for sparse networks to learn.

Run as ``python -m research.distill_energies PACK OUT N SUBSET...``: the teachers are read-outs on predicted geometry
(:mod:`research.experiments.property_ablation`), trained on the training structures of the subset. Each random structure
has the defects of a training structure on other sites. Writes PACK with N of them for each subset, under ``labelled/``.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from ase_definet.data import SPLITS, PackedDataset, PairGroup, save_groups
from ase_definet.training.card import LABELLED
from research.experiments.property_ablation import LABEL, FullReadOut, kept_inputs, site_inputs

SEED = 0
TEACHERS = 2


def random_structures(group: PairGroup, n: int, column: int) -> PairGroup:
    """Return structures with the defects of training structures on random sites of the same elements."""
    rng = np.random.default_rng(SEED)
    host = group.host_numbers
    numbers = np.tile(host, (n, 1)).astype(np.uint8)
    for row, source in zip(numbers, rng.choice(group.labelled("train", column), n), strict=True):
        given = group.numbers[source]
        for element in np.unique(host):
            there = np.flatnonzero(host == element)
            own = given[there][given[there] != element]
            row[rng.choice(there, len(own), replace=False)] = own
    return replace(
        group,
        subset=f"{LABELLED}{group.host}",
        ids=tuple(f"random-{k}" for k in range(n)),
        split=np.full(n, SPLITS.index("train"), dtype=np.uint8),
        numbers=numbers,
        offset=np.zeros((n, *group.offset.shape[1:]), dtype=np.int16),
        offset_scale=np.ones(n, dtype=np.float32),
        move=np.zeros((n, *group.move.shape[1:]), dtype=np.int16),
        move_scale=np.full(n, np.nan, dtype=np.float32),
        state=np.repeat(np.asarray(group.state[:1]), n, axis=0),
        labels=np.full((n, group.labels.shape[1]), np.nan),
    )


def main(pack: PackedDataset, out: Path, n: int, subsets: list[str]) -> None:
    """Label structures, and write them with the pack."""
    column = list(pack.labels).index(LABEL)
    new = []
    for group in pack.groups:
        if group.subset in subsets:
            known = kept_inputs(group)
            teachers = [FullReadOut(group, column, known, relaxed=True, seed=k) for k in range(TEACHERS)]
            made = random_structures(group, n, column)
            inputs = site_inputs(made)
            found = [teacher.predict(made, inputs, np.arange(n)) for teacher in teachers]
            made.labels[:, column] = np.mean(found, axis=0)
            val = group.labelled("val", column)
            parts = tuple(part[val] for part in known)
            check = (
                np.mean([teacher.predict(group, parts, val) for teacher in teachers], axis=0)
                - group.labels[val, column]
            )
            count = (group.numbers[val] != group.host_numbers).sum(axis=1)
            print(
                group.subset, f"teachers {1e3 * np.mean(np.abs(check) / count):.1f} meV per defect site", flush=True
            )
            new.append(made)
    save_groups([*pack.groups, *new], out, pack.labels)


if __name__ == "__main__":
    main(PackedDataset.open(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
