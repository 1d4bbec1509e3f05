"""Model cards: what the weights were trained on, how well they do, whom to cite."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from ase_definet.checkpoint import save_checkpoint, write_card
from ase_definet.train.loop import Run

ATTRIBUTION = (
    "Trained on 2DMD: Z. Yang and L. Shen, DefiNet Dataset, Zenodo 14027373, CC BY 4.0 "
    "(doi:10.5281/zenodo.14027373); structures from Huang et al., npj 2D Mater. Appl. 7, 6 (2023). "
    "Method: Yang et al., npj Comput. Mater. 11, 229 (2025)."
)


def build_card(run: Run, name: str, version: str) -> dict[str, Any]:
    """Describe a finished run.

    Args:
        run: The run; its averaged weights are validated on all validation pairs.
        name: Name of the weights.
        version: Version of the weights.

    Returns:
        A card ready for JSON, distances in Å.
    """
    hosts: dict[str, dict[str, Any]] = {}
    elements: set[str] = set()
    for subset_name, subset in run.sets.items():
        host = subset_name.split("-", 1)[1]
        train = subset.indices("train")
        numbers = subset.numbers[torch.as_tensor(train)].numpy()
        base = np.broadcast_to(subset.host_numbers.numpy(), numbers.shape)
        defective = numbers != base
        pairs = np.unique(np.stack([numbers[defective], base[defective]]), axis=1).T
        defects = {f"{chemical_symbols[z] if z else 'V'}_{chemical_symbols[h]}" for z, h in pairs}
        elements |= {chemical_symbols[z] for z in np.unique(numbers) if z}
        density = defective.mean(axis=1)
        entry = hosts.setdefault(
            host,
            {"sites": numbers.shape[1], "density": [1.0, 0.0], "defects": [], "training_pairs": 0},
        )
        entry["density"] = [
            min(entry["density"][0], float(density.min())),
            max(entry["density"][1], float(density.max())),
        ]
        entry["defects"] = sorted(set(entry["defects"]) | defects)
        entry["training_pairs"] += len(train)
    return {
        "name": name,
        "version": version,
        "date": datetime.now(tz=UTC).date().isoformat(),
        "architecture": "site network on ideal host geometry",
        "parameters": sum(p.numel() for p in run.net.parameters()),
        "attribution": ATTRIBUTION,
        "license": "MIT (weights); data CC BY 4.0",
        "training": {"elements": sorted(elements), "hosts": hosts, "steps": run.step, "batch": run.config.batch},
        "validation": {k: {m: round(v, 5) for m, v in row.items()} for k, row in run.validate().items()},
        "units": "Å: mae over all atoms, a3 within 3 Å of a defect, dummy: the ideal sites as the prediction",
        "limits": (
            "Neutral cells at the fixed PBE lattice of the six hosts. Planar h-BN stays planar: its buckling, "
            "up or down, breaks a symmetry that no deterministic equivariant network can break."
        ),
    }


def export_weights(run: Run, directory: Path, name: str, version: str) -> Path:
    """Write a run's averaged weights and their card as ``NAME.safetensors`` and ``NAME.json``.

    Args:
        run: The run.
        directory: Where to; existing files of this name are replaced.
        name: Name of the weights.
        version: Version of the weights.
    """
    card = build_card(run, name, version)
    path = save_checkpoint(directory / f"{name}.safetensors", run.average, card, overwrite=True)
    write_card(path, overwrite=True)
    return path
