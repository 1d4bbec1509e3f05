"""Does the ranking of three vacancies in WSe2 hold against PBE? The example of docs/screening.md, checked.

Run as ``python -m research.experiments.three_defects PACK`` with the labelled pack of 2DMD. Takes every training and
validation structure of 8x8 WSe2 with one tungsten and two selenium vacancies, and compares the predicted formation
energies with those of PBE. Writes ``results/three_defects.json``: the mean absolute error and the rank correlation of
both splits, how many of the lowest of PBE are among the lowest predicted, and the lowest few, in eV, with their
distances in Å.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase.geometry import get_distances
from scipy.stats import spearmanr

from ase_definet.data import SPLITS, PackedDataset
from ase_definet.matching.supercell import cells_of
from ase_definet.properties.predictor import FORMATION_ENERGY, PropertyPredictor
from ase_definet.structures.files import replacing
from research.paths import RESULTS

SUBSET = "low/WSe2"
VACANCIES = {74: 1, 34: 2}
LOWEST = (5, 10, 50)
SHOWN = 6


def main(pack: PackedDataset) -> None:
    """Compare all arrangements with labels."""
    column = list(pack.labels).index(FORMATION_ENERGY)
    predictor = PropertyPredictor()
    energy, found, error, split, apart = [], [], [], [], []
    for given in pack.groups:
        if given.subset != SUBSET:
            continue
        group = given.in_memory()
        empty = group.numbers == 0
        chosen = ((group.numbers != group.host_numbers) == empty).all(axis=1) & np.isfinite(group.labels[:, column])
        for number, count in VACANCIES.items():
            chosen &= (empty & (group.host_numbers == number)).sum(axis=1) == count
        rows = np.flatnonzero(chosen)
        if not len(rows):
            continue
        values = predictor.predict_occupations(
            "WSe2", group.supercell, group.numbers[rows], targets=[FORMATION_ENERGY]
        )
        sites = ((cells_of(group.supercell) @ group.unit_cell)[:, None] + group.unit_positions).reshape(-1, 3)
        for row in rows:
            places = sites[empty[row]]
            lengths = get_distances(places, cell=group.supercell @ group.unit_cell, pbc=group.pbc)[1]
            apart.append(np.sort(lengths[np.triu_indices(len(places), 1)]).round(2).tolist())
        energy.append(group.labels[rows, column])
        found.append(values[FORMATION_ENERGY])
        error.append(values[f"{FORMATION_ENERGY}_error"])
        split.append(group.split[rows])
    pbe, predicted, expected, splits = (np.concatenate(part) for part in (energy, found, error, split))
    result: dict[str, Any] = {"weights": predictor.model, "n": len(pbe)}
    for k, name in enumerate(SPLITS):
        own = splits == k
        if own.any():
            result[name] = {
                "n": int(own.sum()),
                "mae": round(float(np.abs(pbe - predicted)[own].mean()), 4),
                "rank_correlation": round(float(spearmanr(pbe[own], predicted[own]).statistic), 4),
            }
    order, ranked = np.argsort(pbe), np.argsort(predicted)
    result["lowest_found"] = {str(n): int(np.isin(order[:n], ranked[:n]).sum()) for n in LOWEST}
    result["lowest"] = [
        {
            "pbe": round(float(pbe[k]), 4),
            "predicted": round(float(predicted[k]), 4),
            "expected_error": round(float(expected[k]), 4),
            "split": SPLITS[splits[k]],
            "distances": apart[k],
        }
        for k in order[:SHOWN]
    ]
    with replacing(RESULTS / "three_defects.json") as fresh:
        fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(PackedDataset.open(Path(sys.argv[1])))
