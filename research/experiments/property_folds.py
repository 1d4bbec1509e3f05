"""How hard the validation structures of 2DMD are: the pair-additive fit in ten-fold cross-validation.

Run as ``python -m research.experiments.property_folds PACK``. For each high-density subset, the labelled structures of
training and validation together are split into ten folds; each is predicted by a fit to the others. Where the structures of
the validation split have larger errors than all of them on average, the split is harder than the data, by chance. Writes
``results/property_folds.json``: mean absolute errors in meV per defect site, with standard errors.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from ase_definet.data import SPLITS, PackedDataset
from ase_definet.evaluation.pair_additive import PairAdditive
from ase_definet.structures.files import replacing
from research.paths import RESULTS

LABEL = "formation_energy"
FOLDS = 10


def main(pack: PackedDataset) -> None:
    """Measure every high-density subset."""
    column = list(pack.labels).index(LABEL)
    rows = {}
    for given in pack.groups:
        if not given.subset.startswith("high/"):
            continue
        group = given.in_memory()
        everything = np.concatenate([group.labelled(split, column) for split in ("train", "val")])
        fold = np.random.default_rng(0).permutation(len(everything)) % FOLDS
        error = np.zeros(len(everything))
        count = (group.numbers[everything] != group.host_numbers).sum(axis=1)
        for k in range(FOLDS):
            split = np.full(len(group), SPLITS.index("test"), dtype=np.uint8)
            split[everything[fold != k]] = SPLITS.index("train")
            fit = PairAdditive([replace(group, split=split)], column)
            own = everything[fold == k]
            error[fold == k] = np.abs(fit.predict(group, own) - group.labels[own, column]) / count[fold == k]
        inside = np.isin(everything, group.labelled("val", column))
        rows[group.subset] = {
            "all": round(1e3 * float(error.mean()), 1),
            "validation": round(1e3 * float(error[inside].mean()), 1),
            "standard_error": round(1e3 * float(error[inside].std() / np.sqrt(inside.sum())), 1),
            "n": len(everything),
            "n_validation": int(inside.sum()),
        }
        print(group.subset, rows[group.subset], flush=True)
    found = {
        "command": "python -m research.experiments.property_folds PACK",
        "data_sha256": pack.sha256,
        "rows": rows,
    }
    with replacing(RESULTS / "property_folds.json") as fresh:
        fresh.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(PackedDataset.open(Path(sys.argv[1])))
