"""Train and score everything docs/results.md compares, one JSON file each; finished ones are skipped.

Run as ``python docs/experiments.py PACK [NAME...]``; killed, it goes on where it was. Every run of a table has the same
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

OUT = Path(__file__).parent / "results" / "experiments"
RUNS = Path("runs/experiments")
HIGH = ("high/MoS2", "high/WSe2", "high/BN", "high/GaSe", "high/InSe", "high/P")
SMALL = {"features": 48, "layers": 4, "short_range_cutoff": 4.5, "dropout": 0.1}
BUDGET = {"steps": 500, "rate": 2e-3, "warmup": 100, "decay": 0.6, "check": 250, "save": 100}

ABLATIONS = {
    "all": {},
    "no close messages": {"short_range_cutoff": 0.0},
    "close messages on ideal sites (no coordinate updates)": {"short_range_displaced": False},
    "no gates by what is on a site (no defect-aware messages)": {"site_gates": False},
    "no mean over the structure (no global node)": {"pooling": False},
    "vectors do not act on each other": {"vector_products": False},
    "host's element not known": {"host_elements": False},
    "mean displacement not taken off": {"zero_mean": False},
    "no dropout": {"dropout": 0.0},
    "messages to 5 Å instead of 7": {"cutoff": 5.0},
    "two layers instead of four": {"layers": 2},
}

NOISY = {"corrupt": 0.5, "noise": 0.15}
STRONG = {"model": SMALL | {"dropout": 0.25}}
BY_HEART = {
    "dropout 0.1": {},
    "dropout 0.1, half of the structures start on their way": NOISY,
    "dropout 0.25": STRONG,
    "dropout 0.25, half of the structures start on their way": STRONG | NOISY,
}


DEEP = {"layers": 8, "vector_norm": True}
MUON = {"optimizer": "muon", "rate": 2e-3, "weight_decay": 0.1}
STEPS = {
    "AdamW": {},
    "AdamW, loss by components": {"loss": "components"},
    "Muon": MUON,
    "Muon, long vectors scaled": MUON | {"model": {"vector_norm": True}},
    "Muon, long vectors scaled, eight layers": MUON | {"model": DEEP},
    "AdamW, long vectors scaled, eight layers": {"model": DEEP},
}


def experiments() -> dict[str, dict]:
    """Return options of every run by name; ``score`` names subsets to score besides those trained on."""
    out = {}
    even = dict.fromkeys(HIGH, 1.0)
    for name, changes in ABLATIONS.items():
        out[f"ablation: {name}"] = {"shares": even, "model": SMALL | changes}
    for share in (
        0.1,
        0.3,
        1.0,
    ):  # at the budget of the ablations, the network has not had time to learn 10 % by heart
        out[f"data: {share:.0%}"] = {"shares": even, "model": SMALL, "fraction": share, "steps": 2500}
    out["transfer: high to low"] = {
        "shares": {"high/MoS2": 1.0, "high/WSe2": 1.0},
        "model": SMALL,
        "score": ["low/MoS2", "low/WSe2"],
    }
    out["transfer: low to high"] = {
        "shares": {"low/MoS2": 1.0, "low/WSe2": 1.0},
        "model": SMALL,
        "score": ["high/MoS2", "high/WSe2"],
    }
    out["held out: all but InSe"] = {"shares": {k: 1.0 for k in HIGH if k != "high/InSe"}, "model": SMALL}
    for pairs in (10, 40, 130, 400):
        few = {"shares": {"high/InSe": 1.0}, "fraction": pairs / 400, "model": SMALL, "steps": 200, "warmup": 40}
        out[f"scratch: {pairs} pairs of InSe"] = few
        out[f"fine-tuned: {pairs} pairs of InSe"] = few | {"init": "held out: all but InSe", "rate": 5e-4}
    for name in HIGH:
        out[f"alone: {name}"] = {"shares": {name: 1.0}, "model": SMALL, "steps": 200, "warmup": 40}
    for name, changes in STEPS.items():
        model = SMALL | {"dropout": 0.2} | changes.get("model", {})
        out[f"steps: {name}"] = {"shares": {"high/P": 1.0}, "steps": 400} | NOISY | changes | {"model": model}
    for name, changes in BY_HEART.items():  # long enough for 405 pairs of one host to be learned by heart
        out[f"by heart: {name}"] = {"shares": {"high/P": 1.0}, "steps": 1500, "model": SMALL} | changes
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
        if "init" in options:
            options["init"] = str(RUNS / stem(options["init"]) / "weights.safetensors")
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
