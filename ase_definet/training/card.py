"""Model cards: training data, accuracy and attribution of weights."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ase_definet.checkpoints.card import HostRecord, ModelCard
from ase_definet.checkpoints.format import save_checkpoint, write_card
from ase_definet.data import PairGroup
from ase_definet.matching.complexes import neighbors, side_by_side
from ase_definet.matching.host import Host
from ase_definet.matching.naming import defect_name
from ase_definet.matching.site_kind import SiteKind
from ase_definet.model.architectures import ARCHITECTURES, architecture_of
from ase_definet.model.property_model import PropertyModel
from ase_definet.relaxation.domain import known_host
from ase_definet.structures.state import State
from ase_definet.training import property_ensemble
from ase_definet.training.error_estimate import FOLDS, fit_error_estimate
from ase_definet.training.property_predictions import labelled_predictions
from ase_definet.training.run import Run, TrainingRun

Array: TypeAlias = NDArray[Any]

LABELLED = "labelled/"
"""Prefix of subsets that were labelled by other networks, not by DFT; see research/distill.py."""

UNITS = "Å: mae over all atoms, a3 within 3 Å of a defect, ideal_sites: the prediction that moves nothing"

LIMITS = (
    "Fixed cells, hosts and kinds of defects as in the training data. A symmetry of structure and host that DFT "
    "would break is kept: no deterministic equivariant network can choose."
)


def build_card(run: TrainingRun, name: str, version: str) -> ModelCard:
    """Describe a finished run.

    Args:
        run: The run; its averaged weights are validated on all validation pairs.
        name: Name of the weights.
        version: Version of the weights.
    """
    model = run.config.model
    return ModelCard.read(
        {
            "name": name,
            "version": version,
            "date": datetime.now(tz=UTC).date().isoformat(),
            "architecture": ARCHITECTURES[architecture_of(model)].title,
            "parameters": sum(p.numel() for p in run.network.parameters()),
            "attribution": run.config.attribution or f"Trained on {Path(run.config.data).name}.",
            "license": run.config.license,
            "training": training_record(run),
            "validation": {
                k: {m: round(v, 5) for m, v in row.items() if isinstance(run, Run) or m != "mae"}
                for k, row in run.validate().items()
            },
            "units": UNITS if isinstance(run, Run) else property_ensemble.UNITS,
            "limits": LIMITS if isinstance(run, Run) else property_ensemble.LIMITS,
            **_property_scores(run),
        }
    )


def _property_scores(run: TrainingRun) -> dict[str, Any]:
    """Return how much better than the mean a run predicts properties, as an entry of its card; nothing for others."""
    network: Any = run.average
    if not isinstance(network, PropertyModel):
        return {}
    found = list(labelled_predictions(network.eval(), run.pack, "val"))
    scores = property_ensemble.property_scores(network, found, run.pack)
    return {"property_scores": scores} if scores else {}


def training_record(run: TrainingRun) -> dict[str, Any]:
    """Return the training data and settings of a run as plain JSON values."""
    elements: set[str] = set()
    labelled: dict[str, int] = {}
    for group, train in zip(run.groups, run.train_pairs, strict=True):
        if group.subset.startswith(LABELLED):
            labelled[group.host] = labelled.get(group.host, 0) + len(train)
            continue
        numbers = group.numbers[train]
        elements |= {chemical_symbols[z] for z in np.unique(numbers) if z}
    hosts = host_records(run.groups, run.train_pairs)
    return {
        "elements": sorted(elements),
        "hosts": {host: record.plain() for host, record in hosts.items()},
        "steps": run.step,
        "batch_size": run.config.batch_size,
        "data_sha256": run.pack.sha256,
        "config": run.config.plain(),
        **({"labelled_by_networks": labelled} if labelled else {}),
        **run.lineage,
    }


def host_records(groups: Sequence[PairGroup], pairs: Sequence[Array]) -> dict[str, HostRecord]:
    """Describe what is seen of each host, by its name.

    Args:
        groups: Groups of pairs; those that were labelled by other networks do not count.
        pairs: Which pairs of each group.
    """
    hosts: dict[str, HostRecord] = {}
    for group, chosen in zip(groups, pairs, strict=True):
        if group.subset.startswith(LABELLED) or not len(chosen):
            continue
        record = _host_record(group.numbers[chosen], group.host_numbers) | _states_record(group.state[chosen])
        host = _host(group)
        record["side_by_side"] = _complexes(group, host, group.numbers[chosen])
        if known_host(host)[0] != group.host:
            record["crystal"] = _crystal_record(host)
        own = HostRecord.model_validate(record)
        hosts[group.host] = hosts[group.host].joined(own, disjoint=True) if group.host in hosts else own
    return hosts


def _host(group: PairGroup) -> Host:
    """Return the host of a group of pairs."""
    layered = not group.pbc[2]
    return Host(group.host, group.unit_numbers, group.unit_positions, group.unit_cell, layered=layered, source="")


def _crystal_record(host: Host) -> dict[str, Any]:
    """Return what a card must hold of a host that is not in the library, to recognise it."""
    return {
        "numbers": host.numbers.tolist(),
        "positions": np.round(host.positions, 5).tolist(),
        "cell": np.round(host.cell, 5).tolist(),
        "layered": host.layered,
    }


def _complexes(group: PairGroup, host: Host, numbers: Array) -> list[str]:
    """Return the kinds of defects that are neighbours in some structure of a group."""
    kinds = np.where(numbers == 0, SiteKind.VACANCY, (numbers != group.host_numbers).astype(int))
    return sorted(side_by_side(kinds, neighbors(group.sites, group.cell, host.periodic, host.nearest_neighbor)))


def _host_record(numbers: Array, host_numbers: Array) -> dict[str, Any]:
    """Describe the training pairs of one group.

    Args:
        numbers: Atomic number on each site, 0 where empty, shape ``(n_pairs, n_sites)``.
        host_numbers: Atomic number of the host on each site, shape ``(n_sites,)``.
    """
    base = np.broadcast_to(host_numbers, numbers.shape)
    defective = numbers != base
    pairs = np.unique(np.stack([numbers[defective], base[defective]]), axis=1).T
    density = defective.mean(axis=1)
    return {
        "sites": numbers.shape[1],
        "density": [min(1.0, float(density.min())), max(0.0, float(density.max()))],
        "defects": sorted({defect_name(z, h) for z, h in pairs}),
        "training_pairs": len(numbers),
    }


def _states_record(codes: Array) -> dict[str, Any]:
    """Return the states of the training pairs of one group from their codes, shape ``(n_pairs, 4)``."""
    states = [State.from_codes(code) for code in np.unique(codes, axis=0)]
    return {
        "charges": sorted({state.charge for state in states if state.charge is not None}),
        "spin_multiplicities": sorted({s.spin_multiplicity for s in states if s.spin_multiplicity is not None}),
        "functionals": sorted({state.functional for state in states if state.functional is not None}),
        "excited": any(state.excited for state in states),
    }


def export_weights(run: TrainingRun, path: Path, name: str, version: str) -> Path:
    """Fit the error estimate of a run, and write its averaged weights and their model card.

    Args:
        run: The run.
        path: ``*.safetensors``; it and the ``*.json`` of the same name are replaced.
        name: Name of the weights.
        version: Version of the weights.
    """
    card = build_card(run, name, version)
    network = run.average
    if (
        isinstance(run, Run)
        and network.can_fit_error_head
        and sum(len(g.indices("val")) for g in run.groups) >= FOLDS
    ):
        network, reliability = fit_error_estimate(network, run.batches)
        card = card.changed(expected_error=reliability)
    save_checkpoint(path, network, card, overwrite=True)
    write_card(path, overwrite=True)
    return path
