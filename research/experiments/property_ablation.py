"""Compare representations of defects for formation energies on equal terms: the ablation of docs/properties.md.

Run as ``python -m research.experiments.property_ablation PACK [ROW...]``. All rows are trained on the same high-density
structures of three hosts and scored on their validation structures, in meV per defect site:

- ``single``, ``pair-additive``: least squares and ridge regression;
- ``sparse-without-pairs``, ``sparse``: the sparse network of the bundled weights, its defects blind to each other or not;
- ``full-ideal``: a sum over all sites of a read-out of what the bundled network for displacements knows of each site (the
  scalars of its last layer, on ideal geometry), and of the distances to its neighbours on ideal sites;
- ``full-relaxed``: the same with the distances in the geometry that it predicts.

Writes ``results/property_ablation.json``, row by row; rows that are there are kept.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ase_definet.data import PackedDataset, PairGroup
from ase_definet.evaluation.pair_additive import PairAdditive
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.structures.files import replacing
from ase_definet.structures.neighbors import neighbor_list
from ase_definet.training.batches import SiteBatches
from ase_definet.training.config import make_config
from ase_definet.training.property_run import PropertyRun
from research.paths import RESULTS, ROOT

OUT = RESULTS / "property_ablation.json"
KEPT = ROOT / "runs" / "property_ablation"
LABEL = "formation_energy"
SUBSETS = ("high/P", "high/MoS2", "high/BN")
ROWS = ("single", "pair-additive", "sparse-without-pairs", "sparse", "full-ideal", "full-relaxed")
STEPS = 1000
"""Of every network."""
REACH = 5.0
"""Neighbours whose distances are read, in Å."""
_CENTRES = np.linspace(1.4, REACH, 16)
_BATCH = 16
_FULL_BATCH = 32


def main(pack: PackedDataset, wanted: list[str]) -> None:
    """Measure the rows that are missing."""
    found: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {"rows": {}}
    found |= {"command": "python -m research.experiments.property_ablation PACK", "steps": STEPS}
    found |= {"subsets": list(SUBSETS), "data_sha256": pack.sha256}
    groups = [group for group in pack.groups if group.subset in SUBSETS]
    column = list(pack.labels).index(LABEL)
    inputs: dict[str, Any] = {}
    for row in wanted:
        if row in found["rows"]:
            continue
        began = time.perf_counter()
        if row in {"single", "pair-additive"}:
            errors = {g.subset: fitted(g, column, pairs=row != "single") for g in groups}
        elif row.startswith("sparse"):
            errors = sparse(pack, pairs=row == "sparse")
        else:
            inputs = inputs or {g.subset: kept_inputs(g) for g in groups}
            errors = {g.subset: full(g, column, inputs[g.subset], relaxed=row == "full-relaxed") for g in groups}
        found["rows"][row] = {name: round(1e3 * value, 2) for name, value in errors.items()}
        print(row, found["rows"][row], f"{time.perf_counter() - began:.0f} s", flush=True)
        with replacing(OUT) as fresh:
            fresh.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def fitted(group: PairGroup, column: int, *, pairs: bool) -> float:
    """Return the error of single-defect terms, or of those and terms of pairs, in eV per defect site."""
    fit = PairAdditive([group], column, pairs=pairs)
    chosen = group.labelled("val", column)
    count = (group.numbers[chosen] != group.host_numbers).sum(axis=1)
    return float(np.mean(np.abs(fit.predict(group, chosen) - group.labels[chosen, column]) / count))


def sparse(pack: PackedDataset, *, pairs: bool) -> dict[str, float]:
    """Train a sparse network; return its errors in eV per defect site."""
    model = {"architecture": "sparse", "features": 32, "pair_features": 16, "layers": 2, "pairs": pairs}
    with tempfile.TemporaryDirectory() as folder:
        values: dict[str, Any] = {"data": str(pack.path), "out": f"{folder}/run", "targets": [LABEL], "steps": STEPS}
        values |= {"model": model, "sampling_weights": dict.fromkeys(SUBSETS, 1.0)}
        run = PropertyRun(make_config(values, "properties"))
        while run.step < STEPS:
            run.advance()
        return {name: row[LABEL] for name, row in run.validate().items()}


def kept_inputs(group: PairGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is known of every site, from a file where it was computed before."""
    path = KEPT / f"{group.subset.replace('/', '-')}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as fresh:
            torch.save(site_inputs(group), fresh)
    found: tuple[Tensor, Tensor, Tensor] = torch.load(path, weights_only=True)
    return found


@torch.no_grad()
def site_inputs(group: PairGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is known of every site of every structure.

    Returns:
        Last scalars of the network for displacements, and Gaussians over the distances to neighbours that are the host's
        own or not, on ideal and on predicted geometry; each of shape ``(n, n_sites, ...)``, half precision.
    """
    network = DefiNetRelaxer().network.network_for(torch.as_tensor(group.host_numbers)).eval()
    width: Any = network.config
    batches = SiteBatches(group, network.config, torch.device("cpu"))
    target, source, _, vector = neighbor_list(group.sites, group.cell, group.pbc, REACH)
    scalars, ideal, relaxed = [], [], []
    for chosen in np.array_split(np.arange(len(group)), max(1, len(group) // _BATCH)):
        numbers = torch.as_tensor(group.numbers[chosen].T.astype(np.int64))
        kinds = torch.where(numbers == 0, 2, (numbers != batches.host_numbers[:, None]).long())
        state = batches.states(chosen) if network.config.states else None
        moved, features = network.with_features(batches.host.other_occupations(numbers, kinds, state))
        scalars.append(features[..., : width.features].transpose(0, 1).half())
        for out, places in ((ideal, torch.zeros_like(moved)), (relaxed, moved)):
            out.append(neighbours(places, kinds, target, source, vector).half())
    return torch.cat(scalars), torch.cat(ideal), torch.cat(relaxed)


def neighbours(moved: Tensor, kinds: Tensor, target: Any, source: Any, vector: Any) -> Tensor:
    """Return Gaussians over the distances to occupied neighbours, shape ``(batch, n_sites, 32)``."""
    length = (torch.as_tensor(vector, dtype=moved.dtype)[:, None] + moved[source] - moved[target]).norm(dim=-1)
    envelope = (1 + torch.cos(torch.pi * (length / REACH).clamp(max=1))) / 2
    centres = torch.as_tensor(_CENTRES, dtype=moved.dtype)
    radial = torch.exp(-(((length[..., None] - centres) / 0.25) ** 2) / 2) * envelope[..., None]
    out = []
    for kind in (0, 1):
        own = radial * (kinds[source] == kind)[..., None]
        out.append(moved.new_zeros(*kinds.shape, len(centres)).index_add(0, torch.as_tensor(target), own))
    return torch.cat(out, dim=-1).transpose(0, 1)


def full(group: PairGroup, column: int, inputs: tuple[Tensor, Tensor, Tensor], *, relaxed: bool) -> float:
    """Train a read-out summed over sites, on top of single-defect terms; return its error in eV per defect site."""
    fit = FullReadOut(group, column, inputs, relaxed=relaxed)
    val = group.labelled("val", column)
    count = (group.numbers[val] != group.host_numbers).sum(axis=1)
    found = fit.predict(group, tuple(part[torch.as_tensor(val)] for part in inputs), val)
    return float(np.mean(np.abs(found - group.labels[val, column]) / count))


class FullReadOut:
    """A read-out summed over all sites, on top of single-defect terms.

    Args:
        group: Structures; those of the training split are fitted.
        column: Column of the label.
        inputs: What :func:`site_inputs` returned for them.
        relaxed: Whether distances are those of the predicted geometry.
        seed: Of weights and order.
    """

    def __init__(
        self, group: PairGroup, column: int, inputs: Sequence[Tensor], *, relaxed: bool, seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.relaxed = relaxed
        self.single = PairAdditive([group], column, pairs=False)
        train = group.labelled("train", column)
        count = torch.as_tensor((group.numbers[train] != group.host_numbers).sum(axis=1)).float()
        left = torch.as_tensor(group.labels[train, column] - self.single.predict(group, train)).float() / count
        self.scale = float(left.abs().mean())
        sites = self._sites([part[torch.as_tensor(train)] for part in inputs])
        self.mean, self.deviation = (f(sites.float().flatten(0, 1), 0) for f in (torch.mean, torch.std))
        self.net = nn.Sequential(
            nn.Linear(sites.shape[-1], 64), nn.SiLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.SiLU()
        )
        self.last = nn.Linear(64, 1)
        nn.init.zeros_(self.last.weight)
        weights = [*self.net.parameters(), *self.last.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            chosen = torch.randint(len(train), (_FULL_BATCH,))
            loss = (self._summed(sites[chosen]) / count[chosen] - left[chosen] / self.scale).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
        self.net.eval()

    def _sites(self, inputs: Sequence[Tensor]) -> Tensor:
        return torch.cat([inputs[0], inputs[2 if self.relaxed else 1]], dim=-1)

    def _summed(self, sites: Tensor) -> Tensor:
        total: Tensor = self.last(self.net((sites.float() - self.mean) / (self.deviation + 1e-3)))
        return total.sum(dim=(1, 2))

    @torch.no_grad()
    def predict(self, group: PairGroup, inputs: Sequence[Tensor], chosen: Any) -> Any:
        """Return the property of structures of a group in eV, from their inputs."""
        parts = torch.cat([self._summed(part) for part in self._sites(inputs).split(_FULL_BATCH)])
        return self.single.predict(group, chosen) + self.scale * parts.double().numpy()


if __name__ == "__main__":
    main(PackedDataset.open(Path(sys.argv[1])), sys.argv[2:] or list(ROWS))
