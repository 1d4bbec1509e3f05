"""Measure what storing weights in half precision costs: ``python -m research.experiments.half_precision PACK WEIGHTS [N]``.

PACK is 2DMD, packed; WEIGHTS are in single precision (those of before: ``git show
0588e45:ase_definet/weights/default.safetensors``); N is the most pairs of a subset. All validation pairs are predicted with the
weights as they are and with rounded ones, computed in single precision throughout.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint
from ase_definet.data import PackedDataset
from ase_definet.evaluation.scores import Score, score_pairs
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from research.paths import RESULTS

OUT = RESULTS / "half_precision.json"
MATRIX = 2
"""Dimensions of a tensor that is rounded where only matrices are, at least."""

CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "float16, matrices": lambda value: value.half().float() if value.ndim >= MATRIX else value,
    "float16, everything": lambda value: value.half().float(),
    "bfloat16, matrices": lambda value: value.bfloat16().float() if value.ndim >= MATRIX else value,
}


def scores_of(
    source: Path, change: Callable[[Tensor], Tensor], pack: PackedDataset, limit: int | None
) -> list[Score]:
    """Return the scores of weights that are changed first."""
    loaded = load_checkpoint(source)
    loaded.model.load_state_dict({name: change(value) for name, value in loaded.model.state_dict().items()})
    with tempfile.TemporaryDirectory() as folder:
        weights = save_checkpoint(Path(folder) / "weights.safetensors", loaded.model, loaded.card)
        relaxer = DefiNetRelaxer(str(weights), device="cpu")
        scores, _ = score_pairs(relaxer, pack, superposition=False, limit=limit)
    return scores


def compared(scores: list[Score], reference: list[Score]) -> dict[str, Any]:
    """Return by how much predictions and their errors differ."""
    names = sorted({score.subset for score in scores})
    mae = {
        name: float(
            np.mean(
                [
                    one.maes["model"]["coordinate_mae"] - other.maes["model"]["coordinate_mae"]
                    for one, other in zip(scores, reference, strict=True)
                    if one.subset == name
                ]
            )
        )
        for name in names
    }
    moved = np.concatenate(
        [np.abs(one.predicted - other.predicted).ravel() for one, other in zip(scores, reference, strict=True)]
    )
    return {
        "mae_change": mae,
        "prediction_change": {
            "mean": float(moved.mean()),
            "99.9 %": float(np.quantile(moved, 0.999)),
            "max": float(moved.max()),
        },
        "trust_changed": sum(one.trust != other.trust for one, other in zip(scores, reference, strict=True)),
    }


def main() -> None:
    """Compare all choices with the weights as they are."""
    torch.set_num_threads(1)
    pack, source, *rest = sys.argv[1:]
    limit = int(rest[0]) if rest else None
    data, weights = PackedDataset.open(Path(pack)), Path(source)
    reference = scores_of(weights, lambda value: value, data, limit)
    card = load_checkpoint(weights).card
    content: dict[str, Any] = {
        "command": "python -m research.experiments.half_precision 2dmd.pack full.safetensors",
        "weights": f"default {card.version}",
        "unit": "Å",
        "structures": len(reference),
        "choices": {},
    }
    for name, change in CHOICES.items():
        content["choices"][name] = compared(scores_of(weights, change, data, limit), reference)
        OUT.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(name, content["choices"][name], flush=True)


if __name__ == "__main__":
    main()
