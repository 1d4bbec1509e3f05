"""The sparse network: properties of a structure from the graph of its defect sites alone.

Nodes are the defects (what is on the site, including nothing, and what the host has there), edges all pairs of them
up to a large cutoff, with periodic images, described in the frame of the host and symmetrised by its point group.
The host is a feature of every node. An additive property, such as the formation energy, is the sum of a term for each
kind of defect (fitted before training), one for each defect and one for each pair; others are pooled by attention.

References:
    Kazeev et al., npj Comput. Mater. 9, 113 (2023), the sparse representation of defects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ase_definet.model.config import PropertyEnsembleConfig, SparseNetworkConfig
from ase_definet.model.pair_table import N_ANGULAR
from ase_definet.model.property_model import DefectBatch, PropertyModel

_SMALL = 0.1
"""Scale of the read-outs before training."""
_COUNT = 10.0
_LEAST_SPREAD = 1e-6


class SparseNetwork(PropertyModel):
    """Map the defects of a structure to its properties.

    Args:
        config: Sizes, and the properties, hosts and kinds of defects that it knows.
    """

    config: SparseNetworkConfig
    single: Tensor
    offset: Tensor
    scale: Tensor
    trained: Tensor

    def __init__(self, config: SparseNetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, edge, n_targets = config.features, config.pair_features, len(config.targets)
        n_features = config.n_radial * N_ANGULAR
        self.kind = nn.Embedding(len(config.kinds) + 1, width)
        self.host = nn.Embedding(max(len(config.hosts), 1), width)
        self.pair_in = nn.Sequential(nn.Linear(n_features, edge), nn.SiLU(), nn.Linear(edge, edge))
        # without a bias there is no message where there are no features: beyond the cutoff
        self.envelope = nn.Linear(n_features, edge, bias=config.long_range)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.is_additive = [name in config.additive for name in config.targets]
        n_additive = sum(self.is_additive)
        self.site_out = _read_out(width, width, n_additive, config.dropout) if n_additive else None
        self.pair_out = nn.Linear(edge, n_additive, bias=False) if n_additive else None
        self.pool = _Pool(config, n_targets - n_additive) if n_targets > n_additive else None
        if self.pair_out is not None:
            nn.init.normal_(self.pair_out.weight, std=_SMALL / edge**0.5)
        self.register_buffer("single", torch.zeros(len(config.kinds) + 1, n_targets))
        self.register_buffer("offset", torch.zeros(max(len(config.hosts), 1), n_targets))
        self.register_buffer("scale", torch.ones(max(len(config.hosts), 1), n_targets))
        self.register_buffer("trained", torch.ones(max(len(config.hosts), 1), n_targets))

    @torch.no_grad()
    def set_base(self, single: Tensor, offset: Tensor, scale: Tensor) -> None:
        """Set what the network starts from.

        Args:
            single: Term of each kind of defect, shape ``(n_kinds, n_targets)``; zero for properties that are pooled.
            offset: Typical value of each pooled property by host, shape ``(n_hosts, n_targets)``; zero for others.
            scale: Typical size of what these leave, by host, shape ``(n_hosts, n_targets)``.
        """
        self.single[:-1] = single
        self.offset.copy_(offset)
        self.scale.copy_(scale)

    def knows(self, host: int) -> dict[str, bool]:
        """Return of which properties the network has learnt anything on a host."""
        return {
            name: bool(value) for name, value in zip(self.config.targets, self.trained[host].tolist(), strict=True)
        }

    def base(self, batch: DefectBatch) -> Tensor:
        """Return the properties from single-defect terms and typical values alone, shape ``(n, n_targets)``."""
        return self.single[batch.kinds].sum(dim=1) + self.offset[batch.hosts]

    def forward(self, batch: DefectBatch) -> Tensor:
        """Return the properties of each structure; see :meth:`PropertyModel.forward`."""
        mask = batch.mask
        defects = self.kind(batch.kinds) + self.host(batch.hosts)[:, None]
        # filters are computed once for each different pair of sites
        pairs = self.pair_in(batch.features)[batch.rows]
        envelope = self.envelope(batch.features)[batch.rows]
        size = mask.shape[1]
        both = mask[:, :, None] * mask[:, None] * (1 - torch.eye(size, dtype=mask.dtype, device=mask.device))
        envelope = envelope * (both if self.config.pairs else torch.zeros_like(both))[..., None]
        for layer in self.layers:
            defects, pairs = layer(defects, pairs, envelope)
        defects = self.norm(defects)
        out = self.base(batch)
        scale = self.scale[batch.hosts]
        parts = []
        additive = pooled = None
        if self.site_out is not None and self.pair_out is not None:
            sites = (self.site_out(defects) * mask[..., None]).sum(dim=1)
            additive = sites + self.pair_out((pairs * envelope).sum(dim=(1, 2)))
        if self.pool is not None:
            pooled = self.pool(defects, mask)
        places = [0, 0]
        for is_additive in self.is_additive:
            source: Any = additive if is_additive else pooled
            parts.append(source[:, places[is_additive]])
            places[is_additive] += 1
        return out + torch.stack(parts, dim=1) * scale if parts else out


class _Layer(nn.Module):
    """An update of the pairs by their defects, and of the defects by their pairs."""

    def __init__(self, config: SparseNetworkConfig) -> None:
        super().__init__()
        width, edge = config.features, config.pair_features
        self.norm = nn.LayerNorm(width)
        self.pair_norm = nn.LayerNorm(edge)
        self.receiver = nn.Linear(width, edge)
        self.sender = nn.Linear(width, edge)
        self.pair_mix = nn.Linear(edge, edge)
        self.pair_update = nn.Linear(edge, edge)
        self.message = nn.Linear(edge, width)
        self.update = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(width, width)
        )

    def forward(self, defects: Tensor, pairs: Tensor, envelope: Tensor) -> tuple[Tensor, Tensor]:
        """Return the updated defects ``(n, n_defects, F)`` and pairs ``(n, n_defects, n_defects, E)``."""
        own = self.norm(defects)
        mixed = self.receiver(own)[:, :, None] + self.sender(own)[:, None] + self.pair_mix(self.pair_norm(pairs))
        change = self.pair_update(functional.silu(mixed))
        pairs = pairs + change
        received = (functional.silu(change + pairs) * envelope).sum(dim=2)
        return defects + self.update(torch.cat([own, self.message(received)], dim=-1)), pairs


class _Pool(nn.Module):
    """Pool the defects of a structure by attention, mean and maximum."""

    def __init__(self, config: SparseNetworkConfig, n_out: int) -> None:
        super().__init__()
        width, heads = config.features, config.heads
        self.heads, self.size = heads, max(width // 4, 1)
        self.attention = nn.Linear(width, heads)
        self.value = nn.Linear(width, heads * self.size)
        self.out = _read_out(heads * self.size + 2 * width + 1, width, n_out, config.dropout)

    def forward(self, defects: Tensor, mask: Tensor) -> Tensor:
        """Return the pooled properties, shape ``(n, n_out)``."""
        empty = mask[..., None] == 0
        share = self.attention(defects).masked_fill(empty, -1e4).softmax(dim=1)
        values = self.value(defects).unflatten(-1, (self.heads, self.size))
        attended = (share[..., None] * values).sum(dim=1).flatten(1)
        count = mask.sum(dim=1, keepdim=True)
        mean = (defects * mask[..., None]).sum(dim=1) / count.clamp_min(1)
        most = defects.masked_fill(empty, -1e4).amax(dim=1)
        out: Tensor = self.out(torch.cat([attended, mean, most, count / _COUNT], dim=-1))
        return out


def _read_out(n_in: int, width: int, n_out: int, dropout: float) -> nn.Sequential:
    last = nn.Linear(width, n_out)
    with torch.no_grad():
        last.weight *= _SMALL
        last.bias.zero_()
    return nn.Sequential(nn.Linear(n_in, width), nn.SiLU(), nn.Dropout(dropout), last)


class PropertyEnsemble(PropertyModel):
    """Several networks: the mean of those that know a property of a host, and an expected error from their spread.

    The expected absolute error of a property is ``exp(a + b log(spread + c) + d log(n_defects))`` with numbers for
    each host, fitted to validation data after training.

    Args:
        config: Of the networks.
    """

    config: PropertyEnsembleConfig
    error_weights: Tensor

    def __init__(self, config: PropertyEnsembleConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(SparseNetwork(member) for member in config.members)
        shape = (max(len(config.first.hosts), 1), len(config.targets), 4)
        self.register_buffer("error_weights", torch.zeros(shape))

    def spread(self, batch: DefectBatch) -> tuple[Tensor, Tensor | None]:
        """Return the mean and the standard deviation of the networks, shape ``(n, n_targets)``."""
        return self.spread_of(batch, set(self.config.targets))

    def smallest(self, asked: set[str], host: int) -> list[int]:
        """Return the smallest network for each of some properties on a host.

        Args:
            asked: Names of the properties.
            host: Index of the host.
        """
        out: set[int] = set()
        members: list[Any] = list(self.members)
        for name in asked:
            having = [k for k, one in enumerate(members) if one.knows(host).get(name)]
            if having:
                out.add(min(having, key=lambda k: sum(weight.numel() for weight in members[k].parameters())))
        return sorted(out)

    def spread_of(
        self, batch: DefectBatch, asked: set[str], members: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of the networks for some properties.

        Args:
            batch: The structures.
            asked: Names of the properties; networks that know none of them do not run.
            members: Indices of the only networks to run; all by default.

        Returns:
            Both of shape ``(n, n_targets)``, NaN for other properties.
        """
        targets = self.config.targets
        found: list[Tensor] = []
        known: list[Tensor] = []
        for number, module in enumerate(self.members):
            if members is not None and number not in members:
                continue
            member: Any = module
            # a network counts where it was trained: some are for some of the hosts only
            counts = member.trained[batch.hosts]
            columns = [k for k, name in enumerate(member.config.targets) if name in asked]
            if not columns or not bool(counts[:, columns].any()):
                continue
            values = member(batch)
            places = [targets.index(member.config.targets[k]) for k in columns]
            empty, into = values.new_zeros(len(batch), len(targets)), _indices(places, values)
            found.append(empty.index_copy(1, into, values[:, columns]))
            known.append(empty.index_copy(1, into, counts[:, columns]))
        if not found:
            nothing = torch.full((len(batch), len(targets)), float("nan"), device=batch.mask.device)
            return nothing, nothing
        values, weights = torch.stack(found), torch.stack(known)
        total = weights.sum(dim=0)  # zero divided by zero is NaN where no network was trained
        mean = (weights * values).sum(dim=0) / total
        return mean, ((weights * (values - mean).square()).sum(dim=0) / total).sqrt()

    def knows(self, host: int) -> dict[str, bool]:
        """Return of which properties any of the networks has learnt anything on a host."""
        out: dict[str, bool] = dict.fromkeys(self.config.targets, False)
        for member in self.members:
            network: Any = member
            for name, known in network.knows(host).items():
                out[name] |= known
        return out

    def forward(self, batch: DefectBatch) -> Tensor:
        """Return the mean of the networks; see :meth:`PropertyModel.forward`."""
        return self.spread(batch)[0]

    def expected_error(self, batch: DefectBatch, spread: Tensor) -> Tensor:
        """Return the expected absolute error of each property, shape ``(n, n_targets)``."""
        a, b, c, d = self.error_weights[batch.hosts].unbind(dim=-1)
        count = batch.mask.sum(dim=1, keepdim=True).clamp_min(1)
        return (a + b * (spread + c + _LEAST_SPREAD).log() + d * count.log()).exp()


def _indices(places: list[int], like: Tensor) -> Tensor:
    return torch.tensor(places, device=like.device)
