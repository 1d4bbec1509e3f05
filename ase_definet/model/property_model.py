"""Interface of networks that map defects to scalar properties, and the batch they run on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn

from ase_definet.model.config import NetworkConfig


@dataclass(frozen=True, eq=False, kw_only=True)
class DefectBatch:
    """Structures as graphs of their defect sites alone, padded to the largest number of defects.

    Attributes:
        kinds: Index of the kind of each defect in the config of the network, shape ``(n, n_defects)``; padding has
            the number of kinds.
        rows: Row of each pair of defects in :attr:`features`, shape ``(n, n_defects, n_defects)``.
        mask: 1 for a defect, 0 for padding, shape ``(n, n_defects)``.
        hosts: Index of the host of each structure in the config, shape ``(n,)``.
        features: Features of pairs of sites (:mod:`ase_definet.model.pair_table`), shape ``(n_rows, n_features)``.
    """

    kinds: Tensor
    rows: Tensor
    mask: Tensor
    hosts: Tensor
    features: Tensor

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self.hosts)

    def __getitem__(self, chosen: Tensor | slice) -> DefectBatch:
        """Return some of the structures, padded to their own largest number of defects."""
        mask = self.mask[chosen]
        most = int(mask.sum(dim=1).max()) if len(mask) else 0
        return DefectBatch(
            kinds=self.kinds[chosen][:, :most],
            rows=self.rows[chosen][:, :most, :most],
            mask=mask[:, :most],
            hosts=self.hosts[chosen],
            features=self.features,
        )

    def to(self, device: torch.device | str) -> DefectBatch:
        """Return the batch on a device."""
        return DefectBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class PropertyConfig(NetworkConfig, Protocol):
    """Interface of the configs of networks for properties."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the properties."""
        ...


class PropertyModel(nn.Module, ABC):
    """A network that maps defects to scalar properties of a structure.

    Attributes:
        config: Its sizes, and the properties, hosts and kinds of defects that it knows.
    """

    config: PropertyConfig

    @abstractmethod
    def forward(self, batch: DefectBatch) -> Tensor:
        """Return the properties of each structure, shape ``(n, n_targets)``, in their units."""

    def spread(self, batch: DefectBatch) -> tuple[Tensor, Tensor | None]:
        """Return the properties and the standard deviation over an ensemble; None if it is a single network."""
        return self(batch), None
