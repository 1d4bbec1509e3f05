"""Measure how the error falls with the number of training pairs: a quarter, each half and, twice, all pairs of a host.

Run as ``python -m research.experiments.error_vs_pairs PACK SUBSET...`` (``high/P``, say); writes research/results/error_vs_pairs/HOST.json for each, some forty
minutes on one core; finished ones are skipped. Every network has the same number of steps. Two things are read off:

- How the error on validation pairs falls with the number of training pairs.
- How alike the errors are of networks that share no pair, and of networks that share all of them and differ in their seed.
  What the first two have in common cannot come from the pairs they saw.
"""

import json
import sys
from typing import Any

import numpy as np

from ase_definet.training.config import TrainConfig, make_config
from ase_definet.training.run import Run
from research.experiments.data_limits import Part, alike, predicted_parts, sizes
from research.paths import RESULTS

MODEL = {"features": 48, "layers": 5, "short_range_cutoff": 4.5, "dropout": 0.2, "vector_norm": True}
STEPS = {"optimizer": "muon", "loss": "components", "learning_rate": 2e-3, "muon_lr_ratio": 10.0, "weight_decay": 0.1}
BUDGET = {"steps": 1200, "warmup_steps": 150, "cosine_fraction": 0.75, "noisy_start_fraction": 0.5, "noise_std": 0.15}
SHARES = {"quarter": 0.25, "half": 0.5, "other half": 0.5, "all": 1.0, "all, other seed": 1.0}
OUT = RESULTS / "error_vs_pairs"


def options(source: str, subset: str, name: str, fraction: float, seed: int) -> dict[str, Any]:
    """Return the settings of one run."""
    own = {"data": source, "out": f"runs/error_vs_pairs/{subset}/{name}", "sampling_weights": {subset: 1.0}}
    return BUDGET | STEPS | own | {"model": MODEL, "training_fraction": fraction, "seed": seed}


def trained(config: TrainConfig, *, others: bool) -> tuple[int, list[Part]]:
    """Train on the share of the pairs that a run is given, or on all others.

    Returns:
        Their number, and what the network predicts for all validation pairs.
    """
    run = Run(config)
    (group,), (batches,), (pairs,) = run.groups, run.batches, run.train_pairs
    if others:
        pairs = np.setdiff1d(group.indices("train"), pairs)
        run.train_pairs = [pairs]
    while run.step < config.steps:
        run.advance()
    return len(pairs), predicted_parts(group, batches, run.average)


def main() -> None:
    """Train and write."""
    source, *subsets = sys.argv[1:]
    for subset in subsets:
        file = OUT / f"{subset.split('/')[1]}.json"
        if file.exists():
            continue
        rows, parts = {}, {}
        for seed, (name, fraction) in enumerate(SHARES.items(), 1):
            config = make_config(options(source, subset, name, fraction, seed))
            pairs, parts[name] = trained(config, others=name == "other half")
            rows[name] = {"pairs": pairs, "mae": float(sizes(parts[name]).mean())}
            print(subset, name, rows[name], flush=True)
        content = {
            "subset": subset,
            "steps": BUDGET["steps"],
            "runs": rows,
            "correlation, no pair shared": alike(parts["half"], parts["other half"]),
            "correlation, all pairs shared": alike(parts["all"], parts["all, other seed"]),
        }
        file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
