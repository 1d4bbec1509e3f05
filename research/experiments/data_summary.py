"""Count what the packed data set holds, by subset: pairs, sites and defects.

Run as ``python -m research.experiments.data_summary PACK``; writes research/results/data_summary.json.
"""

import json
import sys
from pathlib import Path

import numpy as np

from ase_definet.data import PackedDataset
from ase_definet.data.pairs import SPLITS
from research.paths import RESULTS

OUT = RESULTS / "data_summary.json"


def main() -> None:
    """Count and write."""
    pack = PackedDataset.open(Path(sys.argv[1]))
    table = {}
    for name, groups in sorted(pack.subsets.items()):
        defects = np.concatenate([(group.numbers != group.host_numbers).sum(axis=1) for group in groups])
        sites = np.concatenate([np.full(len(group), len(group.host_numbers)) for group in groups])
        table[name] = {
            "pairs": {split: sum(len(group.indices(split, relaxed=False)) for group in groups) for split in SPLITS},
            "cells": sorted({"x".join(str(abs(n)) for n in np.diag(group.supercell)[:2]) for group in groups}),
            "sites": [int(sites.min()), int(sites.max())],
            "defects": [int(defects.min()), int(defects.max())],
            "defect_share": [float((defects / sites).min()), float((defects / sites).max())],
        }
    content = {"data_sha256": pack.sha256, "subsets": table}
    OUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
