"""Fine-tune on charged pairs as a user would: ``python -m research.experiments.own_charged HBN.extxyz``.

HBN.extxyz is what :mod:`research.recipes.hbn_database` writes. The weights that begin are those of the left-out
experiment ``hbn-charged`` (:mod:`research.experiments.left_out`), which have seen neutral defects alone. Forty charged
monolayers and ten to validate with are "mine"; the charged monolayers of the database's validation split, whose
compositions none of them has, tell what that was worth. Everything goes through the commands of docs/states.md with
examples/charged.toml; the scores go to ``research/results/own_charged.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import iread, write

from research.experiments.left_out import RUNS
from research.paths import RESULTS, ROOT

OUT = RESULTS / "own_charged.json"
SUBSET = "hbn/monolayer-charged"
PAIRS = (40,)
VALIDATED = 10
FOLDER = Path("runs/own_charged")


def choose(source: Path, pairs: int, out: Path) -> None:
    """Write what a user has, and what is held out (as the split ``test``)."""
    frames = [atoms for atoms in iread(source, ":") if atoms.info["subset"] == SUBSET]
    mine = [atoms for atoms in frames if atoms.info["split"] == "train"]
    held = [atoms for atoms in frames if atoms.info["split"] == "val"]
    order = np.random.default_rng(0).permutation(len(mine))
    train, val = order[: max(PAIRS)][:pairs], order[max(PAIRS) :][:VALIDATED]
    for split, some in (("train", [mine[k] for k in train]), ("val", [mine[k] for k in val]), ("test", held)):
        for atoms in some:
            atoms.info["split"] = split
    write(out, [mine[k] for k in (*train, *val)] + held, format="extxyz")


def run(*words: object) -> str:
    """Run a command, show it, and return it as a line."""
    line = " ".join(map(str, words))
    print("$", line, flush=True)
    subprocess.run([str(word) for word in words], check=True)
    return line


def score(data: Path, weights: Path) -> dict[str, Any]:
    """Return how good weights are on what is held out, wherever they answer."""
    out = FOLDER / "scores.json"
    run("ase-definet", "evaluate", "--data", data, "--split", "test", "--model", weights, "--device", "cpu",
        "--no-superposition", "--extrapolate", "--json", out, "--overwrite")  # fmt: skip
    row = json.loads(out.read_text(encoding="utf-8"))["subsets"][SUBSET]
    return {
        "n": row["n"],
        "coordinate_mae": round(row["coordinate_mae"], 5),
        "a3": round(row["a3"], 5),
        "ideal_sites": round(row["ideal_sites"]["coordinate_mae"], 5),
        "trust": row["trust"],
    }


def main() -> None:
    """Fine-tune and write."""
    source = Path(sys.argv[1])
    FOLDER.mkdir(parents=True, exist_ok=True)
    first = RUNS / "hbn-charged" / "weights.safetensors"
    recipe = (ROOT / "examples" / "charged.toml").read_text(encoding="utf-8")
    out: dict[str, Any] = {"command": f"python -m research.experiments.own_charged {source.name}", "units": "Å"}
    for pairs in PAIRS:
        folder = FOLDER / str(pairs)
        folder.mkdir(exist_ok=True)
        data, weights, toml = folder / "mine.pack", folder / "mine.safetensors", folder / "charged.toml"
        choose(source, pairs, folder / "mine.extxyz")
        settings = {'"mine.pack"': f'"{data}"', '"runs/mine"': f'"{folder / "run"}"', '"default"': f'"{first}"'}
        text = recipe
        for old, new in settings.items():
            text = text.replace(old, new)
        toml.write_text(text, encoding="utf-8")
        run("ase-definet", "data", "pack", folder / "mine.extxyz", data, "--relaxed-only", "--overwrite")
        run("ase-definet", "train", toml)
        run("ase-definet", "weights", "export", folder / "run", weights, "--version", "1", "--overwrite")
        out |= {"before": score(data, first), f"after {pairs} pairs": score(data, weights)}
    OUT.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
