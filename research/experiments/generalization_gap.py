"""Score bundled weights on training and on validation pairs: how much of the error is memorisation.

Run as ``python -m research.experiments.generalization_gap PACK``; writes research/results/generalization_gap.json.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.format import load_checkpoint
from ase_definet.data import PackedDataset
from ase_definet.training.batches import SiteBatches
from ase_definet.training.loss import summed_errors
from research.paths import RESULTS

PAIRS = 100
BATCH = 20
OUT = RESULTS / "generalization_gap.json"


@torch.no_grad()
def main() -> None:
    """Score and write."""
    model = load_checkpoint(resolve_model("default")).model
    table = {}
    for group in PackedDataset.open(Path(sys.argv[1])).groups:
        row = table.setdefault(group.subset, {})
        network = model.network_for(torch.as_tensor(group.host_numbers))
        batches = SiteBatches(group, network.config, torch.device("cpu"))
        for split in ("train", "val"):
            chosen = np.random.default_rng(1).permutation(group.indices(split))[:PAIRS]
            parts = [summed_errors(network, batches, chosen[k : k + BATCH]) for k in range(0, len(chosen), BATCH)]
            row[split] = float(sum(part[0] for part in parts)) / len(chosen)
    OUT.write_text(json.dumps({"pairs": PAIRS, "weights": "default", "subsets": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
