"""The site network: equivariant, on ideal host geometry, with a single read-out of the displacements.

Differences from the published network (:mod:`ase_definet.model.definet`): long-range messages are sent between the
host's ideal sites, so their filters depend only on the few distinct edge lengths of a host; the input of a site
includes both its occupation and the host's element; messages are depth-wise convolutions of a scalar and a vector
field, and channels are mixed on the sites; the mean displacement over atoms is zero by construction. Between layers,
close neighbours exchange messages at the distances predicted so far (:mod:`ase_definet.model.short_range`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.edge_convolution import N_PATHS, Geometry
from ase_definet.model.elements import N_DESCRIPTORS, N_ELEMENTS, element_descriptors, valence_table
from ase_definet.model.graph import OccupiedSites
from ase_definet.model.protocol import Batch, DisplacementModel
from ase_definet.model.short_range import ShortRangeMessages
from ase_definet.model.working_set import WorkingSet
from ase_definet.structures.state import MAX_CHARGE, N_CODES

_MOST_ELECTRONS = 16
"""Largest number of excess or missing electrons, relative to the host, with an embedding of its own."""
_STATE_SCALE = 0.1
"""Standard deviation of the embeddings of a state before training."""


class SiteNetwork(DisplacementModel):
    """Map occupied host sites to displacements in one pass.

    Args:
        config: Sizes and cutoff.
    """

    config: SiteNetworkConfig
    can_fit_error_head = True
    combinable = True

    def __init__(self, config: SiteNetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.features, config.embedding
        self.element = nn.Embedding(N_ELEMENTS, embedding)
        self.host_element = nn.Embedding(N_ELEMENTS, embedding)
        self.kind = nn.Embedding(3, embedding)
        self.embed = nn.Linear(3 * embedding, width)
        self.descriptors = _Descriptors(width) if config.element_descriptors else None
        self.state = _StateEmbedding(width) if config.states else None
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        between = config.layers - 1 if config.short_range_cutoff > 0 else 0
        self.short_range = nn.ModuleList(ShortRangeMessages(config) for _ in range(between))
        self.norm = nn.LayerNorm(width)
        self.noisy_start = nn.Parameter(torch.randn(width)) if config.noisy_starts else None
        self.gate = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.read_out = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.read_out.weight, std=0.1 / math.sqrt(width))
        self.error = (
            nn.Sequential(
                nn.Linear(2 * width + 1, config.error_head_features),
                nn.SiLU(),
                nn.Linear(config.error_head_features, 1),
            )
            if config.error_head_features
            else None
        )

    def restrict_states(self, states: Tensor, *, and_before: bool = False) -> None:
        """Treat states absent from the training data as unknown; see :meth:`DisplacementModel.restrict_states`."""
        if self.state is not None:
            self.state.restrict_to(states, and_before=and_before)

    def run(self, batch: Batch, working_set: WorkingSet | None = None) -> tuple[Tensor, Tensor | None]:
        """Run the network on a batch; see :meth:`DisplacementModel.run`."""
        return self.estimate(*batch.occupied(working_set))

    def guesses(self, batch: Batch, start: Tensor | None = None) -> list[Tensor]:
        """Return the displacements predicted between layers, and the final prediction last.

        Args:
            batch: What :meth:`collate` returned.
            start: Displacements at which the atoms start, zero on empty sites, shape ``(n_sites, batch, 3)``, in Å;
                the network must have been built with ``noisy_starts``. Zero (the host's sites) by default.
        """
        geometry, numbers, host_numbers, kinds, state = batch.occupied()
        return self.stages(geometry, numbers, host_numbers, kinds, start, state)

    def with_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the displacements and the features of the error estimate, shape ``(n_sites, batch, 2 F + 1)``."""
        return self._with_features(batch.occupied())

    def forward(
        self,
        geometry: Geometry,
        numbers: Tensor,
        host_numbers: Tensor,
        kinds: Tensor,
        state: Tensor | None = None,
    ) -> Tensor:
        """Predict the displacement of every site.

        Args:
            geometry: Arrangement of the sites.
            numbers: Atomic number on each site, 0 where empty, shape ``(n_sites, batch)``.
            host_numbers: Atomic number of the host on each site, shape ``(n_sites,)``.
            kinds: Kind of each site (0 pristine, 1 substitution, 2 vacancy), shape ``(n_sites, batch)``.
            state: Codes of each structure's state (:mod:`ase_definet.structures.state`), shape
                ``(n_structures, batch, 4)``; unknown by default. Networks built without ``states`` ignore it.

        Returns:
            Displacements, shape ``(n_sites, batch, 3)``, in Å; zero on empty sites, zero mean over atoms.
        """
        return self.stages(geometry, numbers, host_numbers, kinds, state=state)[-1]

    def stages(
        self,
        geometry: Geometry,
        numbers: Tensor,
        host_numbers: Tensor,
        kinds: Tensor,
        start: Tensor | None = None,
        state: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the displacements predicted between layers, and the final prediction last; see :meth:`forward`.

        Args:
            geometry: Arrangement of the sites.
            numbers: Atomic number on each site.
            host_numbers: Atomic number of the host on each site.
            kinds: Kind of each site.
            start: Displacements at which the atoms start, zero on empty sites, shape ``(n_sites, batch, 3)``,
                in Å; the network must have been built with ``noisy_starts``. Zero (the host's sites) by default.
            state: Codes of each structure's state.
        """
        return self._run(geometry, numbers, host_numbers, kinds, start, state)[0]

    def estimate(
        self, geometry: Geometry, numbers: Tensor, host_numbers: Tensor, kinds: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the displacements and their expected errors; see :meth:`forward`.

        Returns:
            Displacements, and the expected length of their errors, shape ``(n_sites, batch)``, in Å; None if the
            weights have no error estimate.
        """
        moved, features = self._with_features(OccupiedSites(geometry, numbers, host_numbers, kinds, state))
        return moved, None if self.error is None else self.expected_error(features)

    def _with_features(self, sites: OccupiedSites) -> tuple[Tensor, Tensor]:
        geometry, numbers, host_numbers, kinds, state = sites
        stages, hidden = self._run(geometry, numbers, host_numbers, kinds, state=state)
        ones = hidden.new_ones(hidden.shape[0], 1, 1)
        pooled = geometry.spread(geometry.total(hidden) / geometry.total(ones)).expand_as(hidden)
        length = (stages[-1].square().sum(-1, keepdim=True) + 1e-8).sqrt()
        return stages[-1], torch.cat([hidden, pooled, length.log()], dim=-1)

    def expected_error(self, features: Tensor) -> Tensor:
        """Return the expected error for given features, in Å."""
        if self.error is None:
            raise RuntimeError("these weights have no error estimate")
        logarithm: Tensor = self.error(features).squeeze(-1)
        return logarithm.clamp(-12, 2).exp()

    def _run(
        self,
        geometry: Geometry,
        numbers: Tensor,
        host_numbers: Tensor,
        kinds: Tensor,
        start: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the stages and the normalised scalars of the last layer."""
        site = self._sites(geometry, numbers, host_numbers, kinds, state)
        scalars = site
        vectors = site.new_zeros(*site.shape[:2], 3, site.shape[2])
        if start is not None:
            if self.noisy_start is None:
                raise RuntimeError(
                    "this network was built without `noisy_starts`: its atoms start on the host's sites"
                )
            vectors = start[..., None] * self.noisy_start
        real = (numbers > 0).to(site.dtype)[..., None]
        guesses = []
        for number, layer in enumerate(self.layers):
            if number and self.short_range:
                near: Any = self.short_range[number - 1]
                guess = near.guess(scalars, vectors)
                guesses.append((guess if start is None else guess + start) * real)
                place = guesses[-1] if self.config.short_range_displaced else torch.zeros_like(guesses[-1])
                table = geometry.near(self.config.short_range_cutoff)
                scalars, vectors = near(table, place, scalars, vectors, geometry.working_set.short_range_bytes)
            scalars, vectors = layer(geometry, site, scalars, vectors)
        hidden = self.norm(scalars)
        gate = self.gate(hidden)
        displacement = self.read_out(gate[:, :, None] * vectors).squeeze(-1)
        if start is not None:
            displacement = displacement + start
        if self.config.zero_mean:
            mean = geometry.total(displacement * real) / geometry.total(real).clamp_min(1)
            displacement = displacement - geometry.spread(mean)
        return [*guesses, displacement * real], hidden

    def _sites(
        self, geometry: Geometry, numbers: Tensor, host_numbers: Tensor, kinds: Tensor, state: Tensor | None
    ) -> Tensor:
        """Return the initial features of every site, shape ``(n_sites, batch, F)``."""
        host = self.host_element(host_numbers)[:, None].expand(-1, numbers.shape[1], -1)
        if not self.config.host_elements:
            host = torch.zeros_like(host)
        site: Tensor = self.embed(torch.cat([self.element(numbers), host, self.kind(kinds)], dim=-1))
        if self.state is not None:
            if state is None:
                state = numbers.new_zeros(*geometry.total(numbers[:, :, None]).shape[:2], len(N_CODES))
            site = site + geometry.spread(self.state(state, self.state.excess(geometry, numbers, host_numbers)))
        if self.descriptors is not None:
            site = site + self.descriptors(numbers, host_numbers[:, None].expand_as(numbers))
        return site


class _Descriptors(nn.Module):
    """Periodic-table descriptors of the elements on a site and of the host, for elements rare in training."""

    table: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("table", element_descriptors(), persistent=False)
        self.linear = nn.Linear(2 * N_DESCRIPTORS, features, bias=False)

    def forward(self, numbers: Tensor, host_numbers: Tensor) -> Tensor:
        """Return the contribution to the features of each site, shape ``(..., F)``."""
        change = self.table[numbers] - self.table[host_numbers]
        out: Tensor = self.linear(torch.cat([self.table[numbers], change], dim=-1))
        return out


class _StateEmbedding(nn.Module):
    """Embedding of the state of a structure, added to each site: one vector per property, and one for its electrons.

    The effect of a charge depends on the defect: which levels are filled depends on the number of excess electrons
    relative to the host (C_B at +1 has as many as the host). It is the number of valence electrons of the atoms minus
    those of the host and the charge, and is embedded if the charge is known.

    States absent from the training data are treated as unknown (:meth:`restrict_to`), because their vectors are
    untrained.

    References:
        The global charge embedding of Wang, Mosquera-Lois et al., arXiv 2603.05238.
    """

    seen: Tensor
    valence: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, features) for n in N_CODES)
        self.electrons = nn.Embedding(2 * _MOST_ELECTRONS + 2, features)
        self.register_buffer("valence", valence_table(), persistent=False)
        self.register_buffer("seen", torch.ones(len(N_CODES), max(N_CODES)))
        for weight in self.parameters():
            nn.init.normal_(weight, std=_STATE_SCALE)

    def excess(self, geometry: Geometry, numbers: Tensor, host_numbers: Tensor) -> Tensor:
        """Return the excess valence electrons of neutral structures over their hosts, ``(n_structures, batch)``."""
        return geometry.total(self.valence[numbers] - self.valence[host_numbers][:, None])

    def restrict_to(self, states: Tensor, *, and_before: bool) -> None:
        """Treat codes absent from the training data as unknown; see :meth:`SiteNetwork.restrict_states`."""
        if not and_before:
            self.seen.zero_()
        self.seen[:, 0] = 1
        for k, codes in enumerate(states.T):
            self.seen[k, torch.unique(codes)] = 1

    def forward(self, state: Tensor, excess: Tensor) -> Tensor:
        """Return the embedding ``(..., F)`` of codes ``(..., 4)`` and excess electrons ``(...)``."""
        known = torch.stack([self.seen[k][state[..., k]] for k in range(len(N_CODES))], dim=-1) > 0
        state = torch.where(known, state, 0)
        parts = [table(state[..., k]) for k, table in enumerate(self.tables)]
        charge = state[..., 0]
        electrons = (excess - (charge - MAX_CHARGE - 1)).clamp(-_MOST_ELECTRONS, _MOST_ELECTRONS)
        code = torch.where(charge > 0, electrons + _MOST_ELECTRONS + 1, 0)
        return torch.stack([*parts, self.electrons(code)]).sum(0)


class _Layer(nn.Module):
    """A depth-wise message pass and a point-wise update."""

    def __init__(self, config: SiteNetworkConfig) -> None:
        super().__init__()
        width = config.features
        self.width = width
        self.dropout = config.dropout
        self.pooling, self.vector_products = config.pooling, config.vector_products
        self.site_gates, self.vector_norm = config.site_gates, config.vector_norm
        self.filters = _Filters(config)
        self.norm_in = nn.LayerNorm(width)
        self.scalar_in = nn.Linear(width, 2 * width)
        self.site_in = nn.Linear(width, width)
        self.vector_in = nn.Linear(width, width, bias=False)
        self.site_out = nn.Linear(width, 2 * width)
        self.scalar_out = nn.Linear(width, width)
        self.vector_out = nn.Linear(width, width, bias=False)
        self.pool = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.norm_update = nn.LayerNorm(width)
        self.vector_mix = nn.Linear(width, 2 * width, bias=False)
        self.update = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, 3 * width))
        for last in (self.scalar_out, self.vector_out, self.pool[2], self.update[2]):
            if isinstance(last, nn.Linear):
                nn.init.normal_(last.weight, std=0.5 / math.sqrt(last.in_features))

    def forward(self, geometry: Geometry, site: Tensor, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the updated scalars ``(n, batch, F)`` and vectors ``(n, batch, 3, F)``."""
        width = self.width
        hidden = self.norm_in(scalars)
        sent, gate = self.scalar_in(hidden).split(width, dim=-1)
        if self.site_gates:
            sent = sent * self.site_in(site)
        sent_vectors = self.vector_in(vectors) * gate[:, :, None]
        field = torch.cat([sent[:, :, None], sent_vectors], dim=2)
        heard = geometry.propagate(self.filters, field)
        if self.training and self.dropout:  # whole channels of a site, so that vectors keep their direction
            heard = heard * functional.dropout(torch.ones_like(heard[:, :, :1]), self.dropout)
        heard_scalars, heard_vectors = heard[:, :, 0], heard[:, :, 1:]
        if self.site_gates:
            gate_scalar, gate_vector = self.site_out(site).split(width, dim=-1)
            heard_scalars, heard_vectors = heard_scalars * gate_scalar, heard_vectors * gate_vector[:, :, None]
        scalars = scalars + self.scalar_out(heard_scalars)
        if self.pooling:
            ones = scalars.new_ones(scalars.shape[0], 1, 1)
            scalars = scalars + geometry.spread(self.pool(geometry.total(hidden) / geometry.total(ones)))
        vectors = vectors + self.vector_out(heard_vectors)

        known_vectors = vectors
        if self.vector_norm:  # otherwise long vectors grow with the square of their length in every layer
            known_vectors = vectors * (1 + vectors.square().sum(2, keepdim=True).mean(-1, keepdim=True)).rsqrt()
        left, right = self.vector_mix(known_vectors).split(width, dim=-1)
        length = (right.square().sum(2) + 1e-6).sqrt()
        # of degree one in the vectors: a plain product can diverge over the layers in training
        product = (left * right).sum(2) / (1 + left.square().sum(2)).sqrt()
        if not self.vector_products:
            product = torch.zeros_like(product)
        known = torch.cat([self.norm_update(scalars), length, product], dim=-1)
        mixed = self.update(functional.dropout(known, self.dropout, self.training))
        add, scale, turn = mixed.split(width, dim=-1)
        return scalars + add + scale * product, vectors + turn[:, :, None] * left


class _Filters(nn.Module):
    """Filter values of every edge class, from its length and the host elements at its ends."""

    centres: Tensor

    def __init__(self, config: SiteNetworkConfig) -> None:
        super().__init__()
        self.cutoff = config.cutoff
        self.out = (N_PATHS, config.features)
        self.register_buffer(
            "centres", torch.linspace(config.radial_min, config.cutoff, config.n_radial), persistent=False
        )
        self.inverse_width = (config.n_radial - 1) / (config.cutoff - config.radial_min)
        self.scale = 1 / math.sqrt(config.avg_num_neighbors)
        self.source = nn.Embedding(N_ELEMENTS, config.embedding)
        self.target = nn.Embedding(N_ELEMENTS, config.embedding)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_radial + 2 * config.embedding, 64), nn.SiLU(), nn.Linear(64, math.prod(self.out))
        )

    def forward(self, geometry: Geometry) -> Tensor:
        """Return the filters, shape ``(n_classes, 5, F)``."""
        d = geometry.class_distance[:, None]
        gaussians = torch.exp(-0.5 * ((d - self.centres) * self.inverse_width).square())
        ends = geometry.class_numbers
        features = torch.cat([gaussians, self.target(ends[:, 0]), self.source(ends[:, 1])], dim=1)
        envelope = 0.5 * (1 + torch.cos(math.pi * (d / self.cutoff).clamp(max=1)))
        out: Tensor = (self.mlp(features) * (envelope * self.scale)).view(-1, *self.out)
        return out
