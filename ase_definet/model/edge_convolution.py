"""Linear message operators on explicit edges.

A geometry gives a network the classes of its edges, one depth-wise, distance-filtered message pass over a field on
the sites, the neighbours of each site, and sums over the structures. :class:`EdgeGeometry` works for any graph.
:class:`~ase_definet.model.lattice_convolution.LatticeGeometry` requires a perfect supercell of a host and computes
the same sum as a product in reciprocal space, several times faster.

A field is a scalar and a vector per site and channel, stored as four components ``(n_sites, batch, 4, F)``.
The message of edge ``j -> i`` with unit vector ``e`` (from i to the image of j) is the 4 x 4 kernel ::

    [ p_ss      p_vs e^T              ]
    [ p_sv e    p_vv I + p_vt e e^T   ]

acting on ``(scalar, vector)`` of j, each ``p`` a filter value per channel and class of edge.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ase_definet.model.short_range import PaddedNeighbors
from ase_definet.model.working_set import WorkingSet

N_PATHS = 5
"""Independent filters of one message: s->s, v->s, s->v, v->v (identity), v->v (along the edge)."""


class Filters(Protocol):
    """A function that returns the filter values of every edge class of a geometry, shape ``(n_classes, 5, F)``."""

    def __call__(self, geometry: Geometry, /) -> Tensor:
        """Return the filter values."""
        ...


class Geometry(Protocol):
    """What a site network requires of the arrangement of the sites."""

    class_distance: Tensor
    """Edge length of each class, shape ``(n_classes,)``, in Å."""
    class_numbers: Tensor
    """Host elements (target, source) of each class, shape ``(n_classes, 2)``."""
    working_set: WorkingSet
    """How much to process at a time."""

    def propagate(self, filters: Filters, field: Tensor) -> Tensor:
        """Sum the messages into every site."""
        ...

    def near(self, cutoff: float) -> PaddedNeighbors:
        """Return the neighbours of every site within a cutoff, in Å."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """Sum over the sites of each structure."""
        ...

    def spread(self, values: Tensor) -> Tensor:
        """Broadcast the value of each structure to its sites."""
        ...


class EdgeGeometry:
    """Messages over an explicit list of edges, for any graph or batch of graphs.

    Args:
        edge_index: Source and target of each edge, shape ``(2, n_edges)``.
        edge_vector: From the target to the image of the source, shape ``(n_edges, 3)``, in Å.
        host_numbers: Host element of each site, shape ``(n_sites,)``.
        structure: Index of the structure each site belongs to, shape ``(n_sites,)``.
        n_structures: Number of structures.
        tolerance: Edges whose lengths differ by less than this, between the same host elements, share their
            filters, in Å. With zero, every edge has its own.
        working_set: How much to process at a time; by default chosen for the device of the tensors.
    """

    def __init__(
        self,
        edge_index: Tensor,
        edge_vector: Tensor,
        host_numbers: Tensor,
        structure: Tensor,
        n_structures: int,
        tolerance: float = 1e-5,
        working_set: WorkingSet | None = None,
    ) -> None:
        self.working_set = working_set or WorkingSet.of(edge_vector.device)
        self.source, self.target = edge_index[0], edge_index[1]
        distance = edge_vector.norm(dim=1)
        self.vector = edge_vector
        self.direction = edge_vector / distance.clamp_min(1e-12)[:, None]
        self.structure = structure
        self.n_structures = n_structures
        self._near: dict[float, PaddedNeighbors] = {}
        pair = host_numbers[self.target] * 256 + host_numbers[self.source]
        self.edge_class, self.class_distance, class_pair = classify(pair, distance, tolerance)
        self.class_numbers = torch.stack([class_pair // 256, class_pair % 256], dim=1)

    def propagate(self, filters: Filters, field: Tensor) -> Tensor:
        """Sum the messages into every site, in chunks of bounded memory.

        Args:
            filters: Returns the filter values, shape ``(n_classes, 5, F)``.
            field: Scalar and vector components, shape ``(n_sites, batch, 4, F)``.

        Returns:
            The summed messages, shape ``(n_sites, batch, 4, F)``.
        """
        out = torch.zeros_like(field)
        values = filters(self)
        row_bytes = 4 * field[0].numel() * field.element_size()
        step = max(1, self.working_set.chunk_bytes // row_bytes)
        for start in range(0, len(self.source), step):
            part = slice(start, start + step)
            e = self.direction[part][:, None, :, None]
            p_ss, p_vs, p_sv, p_vv, p_vt = values[self.edge_class[part]][:, None].unbind(2)
            sent = field[self.source[part]]
            scalar, vector = sent[:, :, 0], sent[:, :, 1:]
            along = (vector * e).sum(2)
            message = torch.cat(
                [
                    (p_ss * scalar + p_vs * along)[:, :, None],
                    (p_sv * scalar + p_vt * along)[:, :, None] * e + p_vv[:, :, None] * vector,
                ],
                dim=2,
            )
            out.index_add_(0, self.target[part], message)
        return out

    def near(self, cutoff: float) -> PaddedNeighbors:
        """Return the neighbours of every site within a cutoff, in Å."""
        if cutoff not in self._near:
            self._near[cutoff] = PaddedNeighbors.of(
                self.source, self.target, self.vector, len(self.structure), cutoff
            )
        return self._near[cutoff]

    def total(self, values: Tensor) -> Tensor:
        """Sum over the sites of each structure: ``(n_sites, ...)`` to ``(n_structures, ...)``."""
        out = values.new_zeros((self.n_structures, *values.shape[1:]))
        return out.index_add_(0, self.structure, values)

    def spread(self, values: Tensor) -> Tensor:
        """Broadcast the value of each structure to its sites: ``(n_structures, ...)`` to ``(n_sites, ...)``."""
        return values[self.structure]


def classify(pair: Tensor, distance: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Group edges of equal host pair and length; return the class of each edge, and length and pair of each class.

    Consecutive lengths within the tolerance form one class, but a class is never wider than the tolerance: a large
    structure off its sites has edges of all lengths, which would otherwise merge into one class.
    """
    by_distance = torch.argsort(distance)
    order = by_distance[torch.argsort(pair[by_distance], stable=True)]
    sorted_pair, sorted_distance = pair[order], distance[order]
    new = torch.ones(len(order), dtype=torch.bool, device=pair.device)
    if tolerance > 0:
        new[1:] = (sorted_pair[1:] != sorted_pair[:-1]) | (sorted_distance.diff() > tolerance)
        place = torch.arange(len(order), device=pair.device)
        first = torch.where(new, place, 0).cummax(0).values
        step = ((sorted_distance - sorted_distance[first]) / tolerance).floor()
        new[1:] |= step.diff() > 0
    number = new.cumsum(0) - 1
    edge_class = torch.empty_like(order)
    edge_class[order] = number
    n_classes = int(number[-1]) + 1 if len(number) else 0
    count = torch.bincount(number, minlength=n_classes)
    # in double precision: the sum of many equal lengths would lose the digits of their mean
    total = count.new_zeros(n_classes, dtype=torch.float64).index_add_(0, number, sorted_distance.double())
    return edge_class, (total / count).to(distance.dtype), sorted_pair[new]
