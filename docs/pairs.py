"""Ask what further pairs would buy: one network from a quarter, from each half and, twice, from all pairs of a host.

Run as ``python docs/pairs.py PACK SUBSET...`` (``high/P``, say); writes docs/results/pairs-HOST.json for each, some forty
minutes on one core; finished ones are skipped. Every network has the same number of steps. Two things are read off:

- How the error on validation pairs falls with the number of training pairs.
- How alike the errors are of networks that share no pair, and of networks that share all of them and differ in their seed.
  What the first two have in common cannot be the doing of the pairs they saw.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from ase_definet.train.config import TrainConfig, make_config
from ase_definet.train.loop import Run

MODEL = {"features": 48, "layers": 5, "near_cutoff": 4.5, "dropout": 0.2, "vector_norm": True}
STEPS = {"optimizer": "muon", "loss": "components", "rate": 2e-3, "muon": 10.0, "weight_decay": 0.1}
BUDGET = {"steps": 1200, "warmup": 150, "decay": 0.75, "corrupt": 0.5, "noise": 0.15}
OUT = Path(__file__).parent / "results"


def trained(config: TrainConfig, first: float, last: float) -> tuple[int, np.ndarray, float]:
    """Train on the pairs between two shares of all, in an order that is the same every time.

    Returns:
        Their number; errors of displacements on all validation pairs, shape ``(n_sites, n_pairs, 3)`` in Å, NaN where no
        atom is; the coordinate MAE in Å.
    """
    run = Run(config)
    (own,) = run.train_pairs
    chosen = np.random.default_rng(0).permutation(own)[round(first * len(own)) : round(last * len(own))]
    run.train_pairs = [np.sort(chosen)]
    while run.step < config.steps:
        run.advance()
    batches, group = run.batches[0], run.groups[0]
    numbers, kinds, target, real = batches.batch(group.indices("val"))
    with torch.no_grad():
        guess = batches.predict(run.average, numbers, kinds)[-1]
    errors = torch.where(real[..., None] > 0, guess - target, torch.nan)
    return len(chosen), errors.numpy(), float(run.validate()[group.subset]["mae"])


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two networks' errors."""
    there = np.isfinite(one) & np.isfinite(other)
    return float(np.corrcoef(one[there], other[there])[0, 1])


def main() -> None:
    """Train and write."""
    source, *subsets = sys.argv[1:]
    for subset in subsets:
        file = OUT / f"pairs-{subset.split('/')[1]}.json"
        if file.exists():
            continue
        options = BUDGET | STEPS | {"data": source, "model": MODEL, "shares": {subset: 1.0}}
        parts = {
            "quarter": (0, 0.25),
            "half": (0, 0.5),
            "other half": (0.5, 1),
            "all": (0, 1),
            "all, other seed": (0, 1),
        }
        rows, errors = {}, {}
        for seed, (name, (first, last)) in enumerate(parts.items(), 1):
            config = make_config(options | {"out": f"runs/pairs/{subset}/{name}", "seed": seed})
            pairs, errors[name], mae = trained(config, first, last)
            rows[name] = {"pairs": pairs, "mae": mae}
            print(subset, name, rows[name], flush=True)
        content = {
            "subset": subset,
            "steps": BUDGET["steps"],
            "runs": rows,
            "correlation, no pair shared": alike(errors["half"], errors["other half"]),
            "correlation, all pairs shared": alike(errors["all"], errors["all, other seed"]),
        }
        file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
