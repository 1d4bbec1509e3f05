"""Training runs of networks for properties: labels instead of displacements, several hosts in every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ase_definet.checkpoints.format import load_properties
from ase_definet.data import PairGroup
from ase_definet.errors import TrainingError
from ase_definet.model.config import SparseNetworkConfig
from ase_definet.model.property_model import DefectBatch
from ase_definet.model.sparse_network import SparseNetwork
from ase_definet.properties.defects import DefectSites, joined
from ase_definet.training.batches import lattice_of_group
from ase_definet.training.config import TrainConfig, with_model
from ase_definet.training.initial_weights import lineage_of
from ase_definet.training.run import TrainingRun
from ase_definet.training.sampling import fraction_of, groups_of_subsets, shares_of_counts

Array: TypeAlias = NDArray[Any]

ADDITIVE = ("formation_energy", "energy")
"""Labels that are sums over defects unless the config says otherwise, by how their names begin."""

_BUCKETS = (2, 4, 8, 16, 32)
"""Structures of a step run together with those of at most so many defects: padding costs as much as defects do."""
_VALIDATION_BATCH = 256
_RIDGE = 1e-6


class PropertyRun(TrainingRun):
    """A training run of a network for properties; every step uses structures on all hosts."""

    config: TrainConfig
    network: SparseNetwork

    def _chosen_groups(self, config: TrainConfig) -> list[PairGroup]:
        missing = [name for name in config.targets if name not in self.pack.labels]
        if missing:
            raise TrainingError(
                f"{config.data} has no labels {', '.join(missing)}; it has {', '.join(self.pack.labels) or 'none'}: "
                "pack the data with --labels"
            )
        self.columns = [list(self.pack.labels).index(name) for name in config.targets]
        return [group for group in groups_of_subsets(self.pack, config) if len(self._labelled(group, "train"))]

    def _labelled(self, group: PairGroup, split: str) -> Array:
        """Return which structures of a split have any of the labels."""
        parts = [group.labelled(split, column) for column in self.columns]
        return np.unique(np.concatenate(parts))

    def _shares(self) -> Array:
        if not self.groups:
            raise TrainingError(f"{self.config.data}: no training structure has a label {self.config.targets}")
        counts = [len(self._labelled(group, "train")) for group in self.groups]
        return shares_of_counts(self.groups, np.array(counts, dtype=float), self.config)

    def _start(self, config: TrainConfig, initial: Path | None) -> tuple[TrainConfig, SparseNetwork]:
        sizes = config.model
        assert isinstance(sizes, SparseNetworkConfig)  # the only architecture of properties that is trained
        known = self._known(config, sizes)
        self.train_pairs = [fraction_of(self._labelled(group, "train"), config) for group in self.groups]
        if initial is None:
            network = SparseNetwork(known)
        else:
            loaded = load_properties(initial)
            network = self._continued(loaded.model, known)
            known = network.config
            self.lineage = lineage_of(loaded.card)
        return with_model(config, known), network

    def _known(self, config: TrainConfig, sizes: SparseNetworkConfig) -> SparseNetworkConfig:
        """Return the config of the network with its targets, and with the hosts and defects of the data.

        Those of all subsets are listed, so that networks for some of them can be put together with others.
        """
        labelled = [g for g in self.pack.groups if len(self._labelled(g, "train")) or len(self._labelled(g, "val"))]
        hosts = sorted({tuple(sorted(group.unit_numbers.tolist())) for group in labelled})
        kinds: set[tuple[int, int, int]] = set()
        for group in labelled:
            host = hosts.index(tuple(sorted(group.unit_numbers.tolist())))
            numbers = group.numbers[np.concatenate([self._labelled(group, split) for split in ("train", "val")])]
            base = np.broadcast_to(group.host_numbers, numbers.shape)
            defective = numbers != base
            pairs = np.unique(np.stack([numbers[defective], base[defective]]), axis=1).T
            kinds |= {(int(z), int(h), host) for z, h in pairs}
        additive = sizes.additive or tuple(name for name in config.targets if name.startswith(ADDITIVE))
        additive = tuple(name for name in additive if name in config.targets)
        return replace(
            sizes, targets=config.targets, additive=additive, hosts=tuple(hosts), kinds=tuple(sorted(kinds))
        )

    def _continued(self, model: nn.Module, known: SparseNetworkConfig) -> SparseNetwork:
        """Return given weights, which must know the same properties, hosts and defects."""
        if not isinstance(model, SparseNetwork):
            raise TrainingError("initial_weights of properties must be a single network, not an ensemble")
        for name in ("targets", "hosts", "kinds"):
            if getattr(model.config, name) != getattr(known, name):
                raise TrainingError(
                    f"initial_weights know other {name} than the data: {getattr(model.config, name)}, expected "
                    f"{getattr(known, name)}; train from the beginning"
                )
        return model

    def _wrapped(self, network: SparseNetwork) -> nn.Module:
        return _Buckets(network)

    def _load_batches(self) -> None:
        sizes: Any = self.config.model
        parts, labels, places = [], [], []
        for number, group in enumerate(self.groups):
            sites = DefectSites(lattice_of_group(group), sizes)
            parts.append(sites.batch(np.asarray(group.numbers)))
            labels.append(np.asarray(group.labels[:, self.columns], dtype=float))
            places.append(np.full(len(group), number))
        self.first = np.cumsum([0, *(len(group) for group in self.groups)])
        self.whole = joined(parts).to(self.fabric.device)
        self.counts = self.whole.mask.sum(dim=1)
        self.labels = torch.as_tensor(np.concatenate(labels), dtype=torch.float32, device=self.fabric.device)
        self.group_of = torch.as_tensor(np.concatenate(places), device=self.fabric.device)
        additive = torch.tensor(self.network.is_additive, device=self.fabric.device)
        self.per = torch.where(additive[None], self.counts[:, None].clamp_min(1), 1.0)
        if not self.lineage:
            self._set_base()
        self._set_trained()
        self.typical = self._typical()

    def _training_indices(self) -> Array:
        return np.concatenate([first + own for first, own in zip(self.first, self.train_pairs, strict=False)])

    def _set_base(self) -> None:
        """Fit the term of each kind of defect, and typical values and sizes by host, to the training data."""
        sizes: Any = self.config.model
        chosen = torch.as_tensor(self._training_indices())
        kinds = torch.nn.functional.one_hot(self.whole.kinds, len(sizes.kinds) + 1).sum(dim=1)[:, :-1].double().cpu()
        hosts, labels, per = self.whole.hosts.cpu(), self.labels.double().cpu(), self.per.double().cpu()
        single = torch.zeros(len(sizes.kinds), len(sizes.targets), dtype=torch.double)
        offset = torch.zeros(len(sizes.hosts), len(sizes.targets), dtype=torch.double)
        scale = torch.ones_like(offset)
        for host in range(len(sizes.hosts)):
            for column, additive in enumerate(self.network.is_additive):
                own = chosen[(hosts[chosen] == host) & labels[chosen, column].isfinite()]
                if not len(own):
                    continue
                values = labels[own, column] / per[own, column]
                if additive:
                    counts = kinds[own] / per[own, column][:, None]
                    normal = counts.T @ counts + _RIDGE * torch.eye(len(sizes.kinds), dtype=torch.double)
                    terms = torch.linalg.solve(normal, counts.T @ values)
                    single[:, column] += terms
                    left = values - counts @ terms
                else:
                    offset[host, column] = values.median()
                    left = values - offset[host, column]
                scale[host, column] = left.abs().mean().clamp_min(1e-6)
        for network in (self.network, self.average):
            network.set_base(single.float(), offset.float(), scale.float())

    def _set_trained(self) -> None:
        """Record on which hosts there are labels: weights that the run begins with forget the others."""
        chosen = torch.as_tensor(self._training_indices())
        trained = torch.zeros_like(self.network.trained)
        for host in np.unique(self.whole.hosts[chosen].cpu().numpy()).tolist():
            own = chosen[(self.whole.hosts[chosen] == host).cpu()]
            trained[host] = self.labels[own].isfinite().any(dim=0).to(trained)
        for network in (self.network, self.average):
            network.trained.copy_(trained)

    def _typical(self) -> Tensor:
        """Return the mean size, by group and target, of what single-defect terms and typical values leave."""
        left = ((self.labels - self.network.base(self.whole)) / self.per).abs()
        out = torch.ones(len(self.groups), left.shape[1], device=left.device)
        for number, (first, own) in enumerate(zip(self.first, self.train_pairs, strict=False)):
            found = left[torch.as_tensor(first + own)]
            for column in range(found.shape[1]):
                known = found[:, column][found[:, column].isfinite()]
                if len(known):
                    out[number, column] = known.mean().clamp_min(1e-6)
        return out

    def _next_structures(self) -> Array:
        """Return the structures of this step: each group in its share, reshuffled every epoch."""
        out = []
        ahead = np.floor(self.shares * self.config.batch_size * (self.step + 1) + 1e-9)
        for number, (pairs, due) in enumerate(zip(self.train_pairs, ahead.astype(int), strict=True)):
            wanted = np.arange(self.drawn[number], due)
            for epoch in np.unique(wanted // len(pairs)):
                order = np.random.default_rng([self.config.seed, number, int(epoch)]).permutation(pairs)
                out.append(self.first[number] + order[wanted[wanted // len(pairs) == epoch] % len(pairs)])
            self.drawn[number] = max(int(due), self.drawn[number])
        return np.concatenate(out) if out else np.zeros(0, dtype=int)

    def _next_losses(self) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(self._next_structures()[self.fabric.global_rank :: self.fabric.world_size])
        order, buckets = self._buckets(chosen)
        predicted = self.stages(buckets)
        labels, per = self.labels[order], self.per[order]
        error = (predicted - labels).abs() / per / self.typical[self.group_of[order]]
        known = labels.isfinite()
        loss = torch.where(known, error, 0.0).nansum() / known.sum().clamp_min(1)
        return loss, loss

    def _buckets(self, chosen: Tensor) -> tuple[Tensor, list[DefectBatch]]:
        """Return structures in batches of similar size, and their order in them."""
        counts = self.counts[chosen]
        order, batches, low = [], [], -1
        for high in (*_BUCKETS, 10**9):
            own = chosen[((counts > low) & (counts <= high)).cpu()]
            if len(own):
                order.append(own)
                batches.append(self.whole[own])
            low = high
        return torch.cat(order) if order else chosen, batches

    @torch.no_grad()
    def validate(self, limit: int | None = None) -> dict[str, dict[str, float]]:
        """Return validation errors by subset; see :meth:`TrainingRun.validate`.

        Returns:
            Mean absolute errors of each target (of additive ones per defect site), and ``mae``, the mean of these as
            shares of what single-defect terms and typical values leave.
        """
        table: dict[str, dict[str, float]] = {}
        for name in sorted({group.subset for group in self.groups}):
            places = [k for k, group in enumerate(self.groups) if group.subset == name]
            own = [self.first[k] + self._labelled(self.groups[k], "val") for k in places]
            some = [np.random.default_rng(0).permutation(part)[:limit] for part in own]
            chosen = torch.as_tensor(np.concatenate(some))
            if not len(chosen):
                continue
            error, share = self._errors(chosen)
            row = {target: float(error[:, k].nanmean()) for k, target in enumerate(self.config.targets)}
            row = {target: value for target, value in row.items() if np.isfinite(value)}
            table[name] = {"mae": float(share.nanmean())} | row
        return table

    def _errors(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return absolute errors of the averaged weights, and as shares of what is typical."""
        order, found = [], []
        for part in torch.split(chosen[self.counts[chosen].argsort().cpu()], _VALIDATION_BATCH):
            order.append(part)
            found.append(self.average(self.whole[part]))
        places = torch.cat(order)
        error = (torch.cat(found) - self.labels[places]).abs() / self.per[places]
        return error, error / self.typical[self.group_of[places]]


class _Buckets(nn.Module):
    """The module that Fabric wraps: a network applied to batches of similar size."""

    def __init__(self, network: SparseNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batches: list[DefectBatch]) -> Tensor:
        return torch.cat([self.network(batch) for batch in batches])
