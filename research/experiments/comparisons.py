"""Train and score everything docs/results.md compares, one JSON file each; finished ones are skipped.

Run as ``python -m research.experiments.comparisons PACK [NAME...]``; killed, it goes on with the run it was in. Every run of a table has the same
budget. Scores are on validation pairs.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

from ase_definet.checkpoints.format import save_checkpoint
from ase_definet.training.config import TrainConfig, make_config
from ase_definet.training.run import Run, train
from research.paths import RESULTS

OUT = RESULTS / "comparisons"
RUNS = Path("runs/comparisons")
HIGH = ("high/MoS2", "high/WSe2", "high/BN", "high/GaSe", "high/InSe", "high/P")
SMALL = {"features": 48, "layers": 4, "short_range_cutoff": 4.5, "dropout": 0.1}
BUDGET = {
    "steps": 500,
    "learning_rate": 2e-3,
    "warmup_steps": 100,
    "cosine_fraction": 0.6,
    "validate_every": 250,
    "checkpoint_every": 100,
}

ABLATIONS = {
    "all": {},
    "no short-range messages": {"short_range_cutoff": 0.0},
    "short-range messages at ideal sites (no coordinate updates)": {"short_range_displaced": False},
    "no site-kind gates (no defect-aware messages)": {"site_gates": False},
    "no mean over the structure (no global node)": {"pooling": False},
    "no products of vectors": {"vector_products": False},
    "host element unknown": {"host_elements": False},
    "mean displacement not removed": {"zero_mean": False},
    "no dropout": {"dropout": 0.0},
    "messages to 5 Å instead of 7": {"cutoff": 5.0},
    "two layers instead of four": {"layers": 2},
}

NOISY = {"noisy_start_fraction": 0.5, "noise_std": 0.15}
STRONG = {"model": SMALL | {"dropout": 0.25}}
MEMORISATION = {
    "dropout 0.1": {},
    "dropout 0.1, noisy starts in half of the structures": NOISY,
    "dropout 0.25": STRONG,
    "dropout 0.25, noisy starts in half of the structures": STRONG | NOISY,
}


DEEP = {"layers": 8, "vector_norm": True}
MUON = {"optimizer": "muon", "learning_rate": 2e-3, "weight_decay": 0.1}
OPTIMIZERS = {
    "AdamW": {},
    "AdamW, component loss": {"loss": "components"},
    "Muon": MUON,
    "Muon, vector normalisation": MUON | {"model": {"vector_norm": True}},
    "Muon, vector normalisation, eight layers": MUON | {"model": DEEP},
    "AdamW, vector normalisation, eight layers": {"model": DEEP},
}


def experiments() -> dict[str, dict]:
    """Return options of every run by name; ``score`` names subsets to score besides those trained on."""
    out = {}
    even = dict.fromkeys(HIGH, 1.0)
    for name, changes in ABLATIONS.items():
        out[f"ablation: {name}"] = {"sampling_weights": even, "model": SMALL | changes}
    for share in (
        0.1,
        0.3,
        1.0,
    ):  # at the budget of the ablations the network has no time to memorise 10 %
        out[f"data: {share:.0%}"] = {
            "sampling_weights": even,
            "model": SMALL,
            "training_fraction": share,
            "steps": 2500,
        }
    out["transfer: high to low"] = {
        "sampling_weights": {"high/MoS2": 1.0, "high/WSe2": 1.0},
        "model": SMALL,
        "score": ["low/MoS2", "low/WSe2"],
    }
    out["transfer: low to high"] = {
        "sampling_weights": {"low/MoS2": 1.0, "low/WSe2": 1.0},
        "model": SMALL,
        "score": ["high/MoS2", "high/WSe2"],
    }
    out["held out: all but InSe"] = {"sampling_weights": {k: 1.0 for k in HIGH if k != "high/InSe"}, "model": SMALL}
    for pairs in (10, 40, 130, 400):
        few = {
            "sampling_weights": {"high/InSe": 1.0},
            "training_fraction": pairs / 400,
            "model": SMALL,
            "steps": 200,
            "warmup_steps": 40,
        }
        out[f"scratch: {pairs} pairs of InSe"] = few
        out[f"fine-tuned: {pairs} pairs of InSe"] = few | {
            "initial_weights": "held out: all but InSe",
            "learning_rate": 5e-4,
        }
    for name in HIGH:
        out[f"alone: {name}"] = {"sampling_weights": {name: 1.0}, "model": SMALL, "steps": 200, "warmup_steps": 40}
    for name, changes in OPTIMIZERS.items():
        model = SMALL | {"dropout": 0.2} | changes.get("model", {})
        out[f"optimizer: {name}"] = (
            {"sampling_weights": {"high/P": 1.0}, "steps": 400} | NOISY | changes | {"model": model}
        )
    for name, changes in MEMORISATION.items():  # long enough for 405 pairs of one host to be memorised
        out[f"memorisation: {name}"] = {"sampling_weights": {"high/P": 1.0}, "steps": 1500, "model": SMALL} | changes
    return out


def score(run: Run, subsets: list[str]) -> dict:
    """Validate a finished run, on further subsets too."""
    table = run.validate()
    if subsets:
        other = Run(replace(run.config, sampling_weights=dict.fromkeys(subsets, 1.0), out=f"{run.config.out}/other"))
        other.average.load_state_dict(run.average.state_dict())
        table |= other.validate()
    return table


def stem(name: str) -> str:
    """Return the name of an experiment's files."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def main() -> None:
    """Run what is asked for and not there yet."""
    pack, *wanted = sys.argv[1:]
    OUT.mkdir(parents=True, exist_ok=True)
    for name, options in experiments().items():
        file = OUT / f"{stem(name)}.json"
        if file.exists() or (wanted and not any(part in name for part in wanted)):
            continue
        subsets = options.pop("score", [])
        if "initial_weights" in options:
            options["initial_weights"] = str(RUNS / stem(options["initial_weights"]) / "weights.safetensors")
        config: TrainConfig = make_config(BUDGET | {"data": pack, "out": str(RUNS / file.stem)} | options)
        print(name, flush=True)
        run = train(config)
        save_checkpoint(RUNS / file.stem / "weights.safetensors", run.average, {"name": name}, overwrite=True)
        content = {
            "name": name,
            "validation": score(run, subsets),
            "parameters": sum(p.numel() for p in run.network.parameters()),
            "seconds": round(run.seconds),
            "config": config.plain(),
        }
        file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
