"""Model cards: what the weights were trained on, how well they do, whom to cite."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from ase_definet.checkpoints.format import save_checkpoint, write_card
from ase_definet.matching.naming import defect_name
from ase_definet.model.config import DefiNetConfig
from ase_definet.model.site_network import SiteNetwork
from ase_definet.training.error_estimate import FOLDS, fit_error_estimate
from ase_definet.training.run import Run

LABELLED = "labelled/"
"""Start of the names of subsets that other networks have labelled, see research/distill.py: they are no DFT data."""

LIMITS = (
    "Fixed cells, hosts and kinds of defects as in the training data. A symmetry of structure and host that DFT "
    "would break is kept: no deterministic equivariant network can choose."
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
    labelled: dict[str, int] = {}
    for group, train in zip(run.groups, run.train_pairs, strict=True):
        if group.subset.startswith(LABELLED):
            labelled[group.host] = labelled.get(group.host, 0) + len(train)
            continue
        host = group.host
        numbers = group.numbers[train]
        base = np.broadcast_to(group.host_numbers, numbers.shape)
        defective = numbers != base
        pairs = np.unique(np.stack([numbers[defective], base[defective]]), axis=1).T
        defects = {defect_name(z, h) for z, h in pairs}
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
    published = isinstance(run.config.model, DefiNetConfig)
    return {
        "name": name,
        "version": version,
        "date": datetime.now(tz=UTC).date().isoformat(),
        "architecture": "DefiNet as published" if published else "site network on ideal host geometry",
        "parameters": sum(p.numel() for p in run.network.parameters()),
        "attribution": run.config.attribution or f"Trained on {Path(run.config.data).name}.",
        "license": run.config.license,
        "training": {
            "elements": sorted(elements),
            "hosts": hosts,
            "steps": run.step,
            "batch_size": run.config.batch_size,
            "data_sha256": run.pack.sha256,
            "config": run.config.plain(),
        }
        | ({"labelled_by_networks": labelled} if labelled else {})
        | run.lineage,
        "validation": {k: {m: round(v, 5) for m, v in row.items()} for k, row in run.validate().items()},
        "units": "Å: mae over all atoms, a3 within 3 Å of a defect, ideal_sites: the prediction that moves nothing",
        "limits": LIMITS,
    }


def export_weights(run: Run, path: Path, name: str, version: str) -> Path:
    """Write a run's averaged weights and, beside them, their card; fit the estimate of their error first.

    Args:
        run: The run.
        path: ``*.safetensors``; it and the ``*.json`` beside it are replaced.
        name: Name of the weights.
        version: Version of the weights.
    """
    card = build_card(run, name, version)
    network = run.average
    if isinstance(network, SiteNetwork) and sum(len(g.indices("val")) for g in run.groups) >= FOLDS:
        network, card["expected_error"] = fit_error_estimate(network, run.batches)
    save_checkpoint(path, network, card, overwrite=True)
    write_card(path, overwrite=True)
    return path
