"""The published DefiNet, with the parameter names of the authors, so that their weights can be loaded.

Reference: Yang et al., npj Comput. Mater. 11, 229 (2025), Methods. Vectors are stored as
``(n_sites, 3, F)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ase_definet.errors import StructureError
from ase_definet.model.config import DefiNetConfig
from ase_definet.model.graph import VACANCY, DefectGraph
from ase_definet.model.protocol import DisplacementModel
from ase_definet.model.short_range import PaddedNeighbors
from ase_definet.model.working_set import WorkingSet

ENVELOPE_EXPONENT = 5
"""Exponent p of the polynomial envelope of the radial basis."""

LENGTH_FLOOR = 1e-8
"""Added to squared vector lengths before taking the root."""

_NEGLIGIBLE = 7
"""Gaussians further away than this many widths are neglected: they are below 1e-10."""


class DefiNet(DisplacementModel):
    """Map a graph of host sites to displacements in one pass.

    Args:
        config: Sizes and cutoff.
    """

    config: DefiNetConfig

    def __init__(self, config: DefiNetConfig) -> None:
        super().__init__()
        self.config = config
        width, layers = config.features, range(config.layers)
        self.atom_emb = _Embedding(config.n_elements, width)
        self.defect_emb = _Embedding(VACANCY + 1, width)
        self.lin_comb = nn.Linear(2 * width, width)
        self.vn_emb = nn.Embedding(1, width)
        self.virtual_scalar_layers = nn.ModuleList(_GlobalScalars(width) for _ in layers)
        self.virtual_vector_layers = nn.ModuleList(_GlobalVectors(width) for _ in layers)
        self.message_passing_layers = nn.ModuleList(_MessagePassing(width, config.n_radial) for _ in layers)
        self.message_update_layers = nn.ModuleList(_SelfUpdate(width) for _ in layers)
        self.coord_update_layers = nn.ModuleList(_CoordinateUpdate(width, config.n_radial) for _ in layers)

    def run(self, batch: Any, working_set: WorkingSet | None = None) -> tuple[Tensor, Tensor | None]:
        """Run the network on a graph, without an error estimate; see :meth:`DisplacementModel.run`."""
        if not isinstance(batch, DefectGraph):
            raise TypeError(f"DefiNet runs on explicit edges: expected a DefectGraph, found {type(batch).__name__}")
        displacement: Tensor = self(batch, working_set)
        return displacement[:, None], None

    def forward(self, graph: DefectGraph, working_set: WorkingSet | None = None) -> Tensor:
        """Predict the displacement of every site.

        Args:
            graph: One or several structures, with edges within the cutoff of this network.
            working_set: How much to process at a time; by default chosen for the device of the graph.

        Returns:
            Displacements, shape ``(n_sites, 3)``, in Å; zero on empty sites.

        Raises:
            StructureError: An atomic number exceeds the element table.
        """
        dtype = self.lin_comb.weight.dtype
        edges = _Edges(graph, dtype, self.config, working_set or WorkingSet.of(graph.pos.device))
        crowd = _Structures(graph)
        defect = self.defect_emb(graph.kinds)
        scalars = self.lin_comb(torch.cat([self.atom_emb(self._elements(graph)), defect], dim=1))
        vectors = scalars.new_zeros(len(scalars), 3, scalars.shape[1])
        global_scalars = self.vn_emb.weight.expand(graph.n_structures, -1)
        global_vectors = scalars.new_zeros(graph.n_structures, 3, scalars.shape[1])
        displacement: Tensor = scalars.new_zeros(len(scalars), 3)
        for scalar_node, vector_node, messages, update, move in self._layers():
            reach = edges.after(displacement)
            scalars = scalars + scalar_node.mlp_node(torch.cat([scalars, crowd.spread(global_scalars)], dim=1))
            vectors = vectors + vector_node.mlp_node(vectors + crowd.spread(global_vectors))
            scalars, vectors = messages(reach, self.defect_emb.embeddings.weight, graph.kinds, scalars, vectors)
            scalars, vectors = update(scalars, vectors)
            displacement = displacement + move(
                reach, self.defect_emb.embeddings.weight, graph.kinds, scalars, vectors
            )
            heard = torch.cat([crowd.mean(scalars), global_scalars], dim=1)
            global_scalars = global_scalars + scalar_node.mlp_vn(heard)
            global_vectors = global_vectors + vector_node.mlp_vn(crowd.mean(vectors) + global_vectors)
        return torch.where((graph.kinds == VACANCY)[:, None], 0.0, displacement)

    def _layers(self) -> Iterator[tuple[Any, ...]]:
        return zip(
            self.virtual_scalar_layers,
            self.virtual_vector_layers,
            self.message_passing_layers,
            self.message_update_layers,
            self.coord_update_layers,
            strict=True,
        )

    def _elements(self, graph: DefectGraph) -> Tensor:
        """Return the element on each site; for a vacancy, the missing one."""
        elements = torch.where(graph.kinds == VACANCY, graph.host_numbers, graph.numbers)
        heaviest = int(elements.max())
        if heaviest >= self.config.n_elements:
            raise StructureError(
                f"this network supports atomic numbers below {self.config.n_elements}, found {heaviest}; use weights"
                " trained with that element"
            )
        return elements


@dataclass(frozen=True)
class _Reach:
    """Neighbours of every site, padded to the same number; the padding refers to a row of zeros."""

    source: Tensor
    """Shape ``(n_sites, k)``; ``n_sites`` for padding."""
    direction: Tensor
    """Unit vectors from the images of the neighbours to the site, shape ``(n_sites, 3, k)``; zero for padding."""
    radial: Tensor
    """Shape ``(n_sites, k, n_radial)``, without the functions beyond the longest edge."""
    working_set: WorkingSet
    """How much to process at a time."""

    def by_blocks(self, width: int, work: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
        """Call a function on blocks of sites and concatenate the results.

        Blocks are sized so that ``width`` numbers per pair fit into the working set. When gradients are required,
        blocks are larger and store no activations: they are recomputed in the backward pass.

        Args:
            width: Largest number of values per pair of sites at a time.
            work: Takes sources, directions, radial functions and ``rows`` of the block.
            rows: Further values of every site.
        """
        k = self.source.shape[1]
        learning = torch.is_grad_enabled()
        most = self.working_set.training_bytes if learning else self.working_set.chunk_bytes
        size = max(1, most // (width * k * self.direction.element_size()))
        parts = zip(*(torch.split(t, size) for t in (self.source, self.direction, self.radial, *rows)), strict=True)
        done = [
            checkpoint(work, *part, use_reentrant=False, preserve_rng_state=False) if learning else work(*part)
            for part in parts
        ]
        return tuple(torch.cat(column) for column in zip(*done, strict=True))


class _Edges:
    """A fixed neighbour list, and its distances after the sites have moved."""

    def __init__(
        self, graph: DefectGraph, dtype: torch.dtype, config: DefiNetConfig, working_set: WorkingSet
    ) -> None:
        self.working_set = working_set
        self.source, self.target = graph.edge_index
        self.span = graph.edge_vectors().to(dtype)
        self.range = config.radial_range
        self.centres = torch.linspace(0, 1, config.n_radial, dtype=dtype, device=self.span.device)
        table = PaddedNeighbors.of(self.source, self.target, self.span, len(graph.kinds), math.inf)
        present = table.weight > 0
        self.padded = torch.where(present, table.source, len(graph.kinds)), table.vector, present

    def after(self, displacement: Tensor) -> _Reach:
        """Return the neighbours after every site has moved by its displacement."""
        source, vector, present = self.padded
        moved = torch.cat([displacement, displacement.new_zeros(1, 3)])
        span = vector + moved[source] - displacement[:, None]
        distance = span.norm(dim=2, keepdim=True)
        direction = (-span / distance * present[..., None]).transpose(1, 2).contiguous()
        spacing = self.range / max(len(self.centres) - 1, 1)
        furthest = float((distance * present[..., None]).detach().max()) if present.any() else 0.0
        used = min(len(self.centres), math.ceil(furthest / spacing) + _NEGLIGIBLE + 1)
        return _Reach(source, direction, self._radial(distance, used), self.working_set)

    def _radial(self, distance: Tensor, used: int | None = None) -> Tensor:
        """Return the first ``used`` Gaussians of the distance, times an envelope that ends at ``radial_range``."""
        u = (distance / self.range).clamp(max=1)
        p = ENVELOPE_EXPONENT
        envelope = 1 - (p + 1) * (p + 2) / 2 * u**p + p * (p + 2) * u ** (p + 1) - p * (p + 1) / 2 * u ** (p + 2)
        gaussians = torch.exp(-0.5 * ((u - self.centres[:used]) * (len(self.centres) - 1)).square())
        return gaussians * envelope


class _Structures:
    """Averages over the sites of each structure, and broadcasting back to the sites."""

    def __init__(self, graph: DefectGraph) -> None:
        self.structure = graph.structure
        self.count = torch.bincount(self.structure, minlength=graph.n_structures)

    def mean(self, values: Tensor) -> Tensor:
        """Average over the sites of each structure."""
        total = values.new_zeros(len(self.count), *values.shape[1:]).index_add_(0, self.structure, values)
        return total / self.count.to(values.dtype).view(-1, *(1,) * (values.ndim - 1))

    def spread(self, values: Tensor) -> Tensor:
        """Broadcast the value of each structure to its sites."""
        return values[self.structure]


class _Embedding(nn.Module):
    """A learned vector per integer."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(rows, width)

    def forward(self, index: Tensor) -> Tensor:
        rows: Tensor = self.embeddings(index)
        return rows


class _ScaledSiLU(nn.Module):
    """SiLU scaled to about unit variance."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return nn.functional.silu(x) / 0.6
        return nn.functional.silu(x, inplace=True).mul_(1 / 0.6)  # the input is an intermediate result, in cache


def _mlp(size_in: int, hidden: int, size_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size_in, hidden), _ScaledSiLU(), nn.Linear(hidden, size_out))


class _GlobalScalars(nn.Module):
    """Scalar messages between the sites and the global node (steps 1 and 5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp_node = _mlp(2 * width, width, width).append(_ScaledSiLU())
        self.mlp_vn = _mlp(2 * width, width, width).append(_ScaledSiLU())


class _GlobalVectors(nn.Module):
    """Vector messages between the sites and the global node (steps 1 and 5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp_node = nn.Linear(width, width, bias=False)
        self.mlp_vn = nn.Linear(width, width, bias=False)


class _VectorActivation(nn.Module):
    """Keep channels that point along a learned consensus direction; average the others with it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin_vec = nn.Linear(width, width, bias=False)
        self.lin_gvec = nn.Linear(width, 1, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        own, consensus = self.lin_vec(vectors), self.lin_gvec(vectors)
        agrees = (own * consensus).sum(1, keepdim=True) >= 0
        return torch.where(agrees, own, (own + consensus) / 2)


class _MessagePassing(nn.Module):
    """Defect-aware message passing (step 2)."""

    def __init__(self, width: int, radial: int) -> None:
        super().__init__()
        self.defect_proj = nn.Linear(width, 3 * width)
        self.x_proj = _mlp(width, width // 2, 3 * width)
        self.edge_proj = nn.Linear(radial, 3 * width)
        self.vec_activation = _VectorActivation(width)

    def forward(
        self, reach: _Reach, defects: Tensor, kinds: Tensor, scalars: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        n, width = scalars.shape
        weight, bias = _first_columns(self.edge_proj, reach.radial)
        table = _gated(self.x_proj(scalars) / math.sqrt(3), self.defect_proj(defects), kinds)
        p, q, s = (
            (own.contiguous(), columns, constant)
            for own, columns, constant in zip(
                table.chunk(3, dim=1), weight.chunk(3, dim=1), bias.chunk(3), strict=True
            )
        )
        moving = bool(vectors.any())  # in the first layer all vectors are zero, and p has nothing to scale
        sources = torch.cat([vectors.reshape(n, -1), vectors.new_zeros(1, 3 * width)])

        def hear(source: Tensor, direction: Tensor, radial: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
            size, k = source.shape
            rows, spread = (kind[:, None] * (n + 1) + source).reshape(-1), radial.reshape(size * k, -1)
            heard = _sent(s, spread, rows).view(size, k, width).sum(1)
            heard_vectors = torch.bmm(direction, _sent(q, spread, rows).view(size, k, width))
            if moving:
                pointing = sources.index_select(0, source.reshape(-1)).view(size, k, 3, width)
                pointing = _times(pointing, _sent(p, spread, rows).view(size, k, 1, width))
                heard_vectors = heard_vectors + pointing.sum(1)
            return heard, heard_vectors

        heard, heard_vectors = reach.by_blocks(3 * width, hear, kinds)
        heard_vectors = self.vec_activation(heard_vectors / math.sqrt(width))
        return (scalars + heard) / math.sqrt(2), vectors + heard_vectors


class _SelfUpdate(nn.Module):
    """Self-update of each site (step 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vec_proj = nn.Linear(width, 2 * width, bias=False)
        self.xvec_proj = _mlp(2 * width, width, 3 * width)
        self.vec_activation = _VectorActivation(width)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        turned, measured = self.vec_proj(vectors).chunk(2, dim=2)
        length = (measured.square().sum(1) + LENGTH_FLOOR).sqrt()
        b1, b2, b3 = self.xvec_proj(torch.cat([scalars, length], dim=1)).chunk(3, dim=1)
        scalars = (scalars + b2 / math.sqrt(2) + scalars * torch.tanh(b3)) / math.sqrt(2)
        return scalars, vectors + self.vec_activation(b1[:, None] * turned)


class _CoordinateUpdate(nn.Module):
    """Defect-aware coordinate update (step 4)."""

    def __init__(self, width: int, radial: int) -> None:
        super().__init__()
        self.lin_vec2coord = nn.Linear(width, 1, bias=False)
        self.defect_proj = nn.Linear(width, width)
        self.x_proj = _mlp(width, width, width)
        self.edge_proj = nn.Linear(radial, width)
        self.coord_mlp = _mlp(width, width, 1)

    def forward(self, reach: _Reach, defects: Tensor, kinds: Tensor, scalars: Tensor, vectors: Tensor) -> Tensor:
        n, width = scalars.shape
        weight, bias = _first_columns(self.edge_proj, reach.radial)
        table = _gated(self.x_proj(scalars), self.defect_proj(defects), kinds)

        def push(source: Tensor, direction: Tensor, radial: Tensor, kind: Tensor) -> tuple[Tensor]:
            size, k = source.shape
            rows = (kind[:, None] * (n + 1) + source).reshape(-1)
            pair = _sent((table, weight, bias), radial.reshape(size * k, -1), rows)
            return (torch.bmm(direction, self.coord_mlp(pair).view(size, k, 1)).squeeze(2),)

        (pushed,) = reach.by_blocks(2 * width, push, kinds)
        moved: Tensor = self.lin_vec2coord(vectors).squeeze(2)
        return (moved + pushed) / 2


def _times(own: Tensor, factor: Tensor) -> Tensor:
    """Multiply, in place if no gradient is required, which keeps the working set in cache."""
    return own * factor if torch.is_grad_enabled() else own.mul_(factor)


def _sent(third: tuple[Tensor, Tensor, Tensor], radial: Tensor, rows: Tensor) -> Tensor:
    """Return one third of the messages of pairs, rows of :func:`_gated` times filters, shape ``(n_pairs, F)``."""
    table, columns, constant = third
    return _times(torch.addmm(constant, radial, columns), table.index_select(0, rows))


def _first_columns(projection: nn.Linear, radial: Tensor) -> tuple[Tensor, Tensor]:
    """Return the transposed weights for the radial functions in use, and the bias."""
    return projection.weight[:, : radial.shape[-1]].T.contiguous(), projection.bias


def _gated(sent: Tensor, gates: Tensor, kinds: Tensor) -> Tensor:
    """Tabulate the message of each site to each kind of site, gated by both kinds, with a row of zeros for padding.

    Args:
        sent: Shape ``(n_sites, m)``.
        gates: Of each kind of site, shape ``(3, m)``.
        kinds: Shape ``(n_sites,)``.

    Returns:
        Shape ``(3 * (n_sites + 1), m)``, by kind of the receiving site.
    """
    own = gates[kinds]
    tables = sent[None] * (own[None] + gates[:, None])
    return torch.cat([tables, tables.new_zeros(len(gates), 1, sent.shape[1])], dim=1).flatten(0, 1)
