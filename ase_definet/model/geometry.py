"""Linear message operators: who hears whom, over explicit edges or over a perfect host lattice.

Both classes answer the same three questions of a network: which classes of edge exist, what a field on the
sites becomes after one depth-wise, distance-filtered message pass, and what the mean over a structure is.
:class:`EdgeGeometry` works for any graph. :class:`LatticeGeometry` needs a perfect supercell of a host and
does the same sum as a product in reciprocal space, which makes training several times quicker.

A field is a scalar and a vector per site and channel, stored as four components ``(n_sites, batch, 4, F)``.
The message of edge ``j -> i`` with unit vector ``e`` (from i to j's image) is the 4 x 4 kernel ::

    [ p_ss      p_vs e^T              ]
    [ p_sv e    p_vv I + p_vt e e^T   ]

acting on ``(scalar, vector)`` of j, each ``p`` a filter value per channel and class of edge.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ase_definet.model.near import NearTable

N_PATHS = 5
"""Independent filters of one message: s->s, v->s, s->v, v->v (identity), v->v (along the edge)."""

_FINE = 1 << 20
"""Fractions of a supercell are told apart by this; denominators, at most its number of cells, are far smaller."""

CHUNK_BYTES = 2 * 2**20
"""Working set of one chunk of edges in :meth:`EdgeGeometry.propagate`: about what a core's cache holds."""


class Geometry(Protocol):
    """What a site network asks of the arrangement of the sites."""

    class_distance: Tensor
    """Edge length of each class, shape ``(n_classes,)``, in Å."""
    class_numbers: Tensor
    """Host elements (target, source) of each class, shape ``(n_classes, 2)``."""

    def propagate(self, filters: Tensor, field: Tensor) -> Tensor:
        """Sum the messages into every site."""
        ...

    def near(self, cutoff: float) -> NearTable:
        """Return the neighbours of every site within a cutoff, in Å."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """Sum over the sites of each structure."""
        ...

    def spread(self, values: Tensor) -> Tensor:
        """Hand each structure's value to its sites."""
        ...


class EdgeGeometry:
    """Messages over an explicit list of edges, for any graph or batch of graphs.

    Args:
        edge_index: Source and target of each edge, shape ``(2, n_edges)``.
        edge_vector: From the target to the source's image, shape ``(n_edges, 3)``, in Å.
        host_numbers: Host element of each site, shape ``(n_sites,)``.
        structure: Index of the structure each site belongs to, shape ``(n_sites,)``.
        n_structures: Number of structures.
        tolerance: Edges whose lengths differ by less than this, between the same host elements, share their
            filters, in Å. Zero gives every edge its own.
    """

    def __init__(
        self,
        edge_index: Tensor,
        edge_vector: Tensor,
        host_numbers: Tensor,
        structure: Tensor,
        n_structures: int,
        tolerance: float = 1e-5,
    ) -> None:
        self.source, self.target = edge_index[0], edge_index[1]
        distance = edge_vector.norm(dim=1)
        self.vector = edge_vector
        self.direction = edge_vector / distance.clamp_min(1e-12)[:, None]
        self.structure = structure
        self.n_structures = n_structures
        self._near: dict[float, NearTable] = {}
        pair = host_numbers[self.target] * 256 + host_numbers[self.source]
        self.edge_class, self.class_distance, class_pair = _classify(pair, distance, tolerance)
        self.class_numbers = torch.stack([class_pair // 256, class_pair % 256], dim=1)

    def propagate(self, filters: Tensor, field: Tensor) -> Tensor:
        """Sum the messages into every site, in chunks of bounded memory.

        Args:
            filters: Filter values, shape ``(n_classes, 5, F)``.
            field: Scalar and vector components, shape ``(n_sites, batch, 4, F)``.

        Returns:
            The summed messages, shape ``(n_sites, batch, 4, F)``.
        """
        out = torch.zeros_like(field)
        row_bytes = 4 * field[0].numel() * field.element_size()
        step = max(1, CHUNK_BYTES // row_bytes)
        for start in range(0, len(self.source), step):
            part = slice(start, start + step)
            e = self.direction[part][:, None, :, None]
            p_ss, p_vs, p_sv, p_vv, p_vt = filters[self.edge_class[part]][:, None].unbind(2)
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

    def near(self, cutoff: float) -> NearTable:
        """Return the neighbours of every site within a cutoff, in Å."""
        if cutoff not in self._near:
            self._near[cutoff] = NearTable.of(self.source, self.target, self.vector, len(self.structure), cutoff)
        return self._near[cutoff]

    def total(self, values: Tensor) -> Tensor:
        """Sum over the sites of each structure: ``(n_sites, ...)`` to ``(n_structures, ...)``."""
        out = values.new_zeros((self.n_structures, *values.shape[1:]))
        return out.index_add_(0, self.structure, values)

    def spread(self, values: Tensor) -> Tensor:
        """Hand each structure's value to its sites: ``(n_structures, ...)`` to ``(n_sites, ...)``."""
        return values[self.structure]


class LatticeGeometry:
    """The same messages on a perfect supercell, as products in reciprocal space.

    Sites are ordered cell by cell, and within a cell as in the primitive cell; the batch dimension holds different
    occupations of the same host.

    Args:
        source: Source sublattice of each edge of one cell, shape ``(n_edges,)``.
        target: Target sublattice, in the cell at the origin, shape ``(n_edges,)``.
        cell_shift: Cell of the source, shape ``(n_edges, 3)``.
        edge_vector: From the target to the source, shape ``(n_edges, 3)``, in Å.
        host_numbers: Host element of each sublattice, shape ``(n_sub,)``.
        supercell: Integer matrix, rows in the primitive vectors, shape ``(3, 3)``.
        cells: Its primitive cells, integers, shape ``(n_cells, 3)``.
        waves: The wave vectors that fit into it, in reciprocal primitive vectors, shape ``(n_cells, 3)``.
        tolerance: As in :class:`EdgeGeometry`.
    """

    def __init__(
        self,
        source: Tensor,
        target: Tensor,
        cell_shift: Tensor,
        edge_vector: Tensor,
        host_numbers: Tensor,
        supercell: Tensor,
        cells: Tensor,
        waves: Tensor,
        tolerance: float = 1e-5,
    ) -> None:
        dtype = edge_vector.dtype
        self._edges = (source, target, cell_shift, edge_vector)
        self._supercell, self._cells = supercell, cells
        self._near: dict[float, NearTable] = {}
        self._device = torch.device("cpu")
        distance = edge_vector.norm(dim=1)
        e = (edge_vector / distance[:, None]).double()
        pair = host_numbers[target] * 256 + host_numbers[source]
        edge_class, self.class_distance, class_pair = _classify(pair, distance, tolerance)
        self.class_numbers = torch.stack([class_pair // 256, class_pair % 256], dim=1)
        self.n_sub = len(host_numbers)
        self.n_cells = len(cells)
        kept, weights = _half_of(waves)
        angles = 2 * math.pi * waves[kept].double()
        phase = angles @ cells.double().T
        weight = (weights / self.n_cells)[:, None]
        self._forward = torch.cat([phase.cos(), -phase.sin()]).to(dtype)
        self._inverse = torch.cat([weight * phase.cos(), -weight * phase.sin()]).T.contiguous().to(dtype)
        self._n_waves = len(kept)
        self._kernel = self._kernel_map(angles @ cell_shift.double().T, source, target, edge_class, e).to(dtype)

    def _kernel_map(self, angle: Tensor, source: Tensor, target: Tensor, edge_class: Tensor, e: Tensor) -> Tensor:
        """Build the constant matrix from (class, path) to (re/im, wave, target comp., source comp.)."""
        n, waves = self.n_sub, self._n_waves
        n_classes = len(self.class_distance)
        table = torch.zeros(n_classes, N_PATHS, 2, waves, 4, n, 4, n, dtype=torch.float64)
        blocks = torch.zeros(len(e), N_PATHS, 4, 4, dtype=torch.float64)
        blocks[:, 0, 0, 0] = 1
        blocks[:, 1, 0, 1:] = e
        blocks[:, 2, 1:, 0] = e
        blocks[:, 3, 1:, 1:] = torch.eye(3, dtype=torch.float64)
        blocks[:, 4, 1:, 1:] = e[:, :, None] * e[:, None, :]
        wave = torch.stack([angle.cos(), angle.sin()])  # (2, waves, edges)
        for k in range(len(e)):
            table[edge_class[k], :, :, :, :, target[k], :, source[k]] += (
                blocks[k, :, None, None] * wave[None, :, :, k, None, None]
            )
        return table.reshape(n_classes * N_PATHS, -1)

    def propagate(self, filters: Tensor, field: Tensor) -> Tensor:
        """Sum the messages into every site; see :meth:`EdgeGeometry.propagate`."""
        n_sites, batch, _, width = field.shape
        waves, n = self._n_waves, self.n_sub
        kernel = (filters.reshape(-1, width).T @ self._kernel).view(width, 2, waves, 4 * n, 4 * n)
        k_re, k_im = (kernel[:, part].reshape(width * waves, 4 * n, 4 * n) for part in (0, 1))
        spectrum = self._forward @ field.reshape(self.n_cells, -1)
        spectrum = spectrum.view(2, waves, n, batch, 4, width).permute(0, 5, 1, 4, 2, 3)
        re, im = spectrum.reshape(2, width * waves, 4 * n, batch).unbind(0)
        out = torch.stack([torch.baddbmm(k_re @ re, k_im, im, alpha=-1), torch.baddbmm(k_re @ im, k_im, re)])
        out = out.view(2, width, waves, 4, n, batch).permute(0, 2, 4, 5, 3, 1)
        return (self._inverse @ out.reshape(2 * waves, -1)).view(n_sites, batch, 4, width)

    def to(self, device: torch.device | str) -> LatticeGeometry:
        """Move the operators to a device, in place."""
        for name in ("class_distance", "class_numbers", "_forward", "_inverse", "_kernel"):
            setattr(self, name, getattr(self, name).to(device))
        self._device = torch.device(device)
        self._near.clear()
        return self

    @classmethod
    def repeated(
        cls,
        source: Tensor,
        target: Tensor,
        cell_shift: Tensor,
        edge_vector: Tensor,
        host_numbers: Tensor,
        repeats: tuple[int, int, int],
    ) -> LatticeGeometry:
        """Build the geometry of ``n1 x n2 x n3`` cells, last repeat quickest."""
        cells = torch.cartesian_prod(*(torch.arange(n) for n in repeats))
        size = torch.tensor(repeats)
        return cls(
            source, target, cell_shift, edge_vector, host_numbers, torch.diag(size), cells, cells.double() / size
        )

    def near(self, cutoff: float) -> NearTable:
        """Return the neighbours of every site within a cutoff, in Å."""
        if cutoff not in self._near:
            source, target, shift, vector = self._edges
            inverse = torch.linalg.inv(self._supercell.double())
            fine = (self._cells[:, None] + shift[None]).double() @ inverse  # (cells, edges, 3)
            owner = (_key(fine)[..., None] == _key(self._cells.double() @ inverse)).long().argmax(-1)
            first = torch.arange(self.n_cells)[:, None] * self.n_sub
            self._near[cutoff] = NearTable.of(
                (owner * self.n_sub + source).reshape(-1),
                (first + target).reshape(-1),
                vector.repeat(self.n_cells, 1),
                self.n_cells * self.n_sub,
                cutoff,
            ).to(self._device)
        return self._near[cutoff]

    def total(self, values: Tensor) -> Tensor:
        """Sum over the sites: ``(n_sites, ...)`` to ``(1, ...)``."""
        return values.sum(0, keepdim=True)

    def spread(self, values: Tensor) -> Tensor:
        """Hand the value to every site, by broadcasting."""
        return values


def _classify(pair: Tensor, distance: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Group edges of equal host pair and length; return class of each edge, mean length, pair."""
    order = torch.argsort(distance.double() + pair.double() * 1e3)
    sorted_pair, sorted_distance = pair[order], distance[order]
    new = torch.ones(len(order), dtype=torch.bool, device=pair.device)
    if tolerance > 0:
        new[1:] = (sorted_pair[1:] != sorted_pair[:-1]) | (sorted_distance.diff() > tolerance)
    number = new.cumsum(0) - 1
    edge_class = torch.empty_like(order)
    edge_class[order] = number
    n_classes = int(number[-1]) + 1 if len(number) else 0
    count = torch.bincount(number, minlength=n_classes).to(distance.dtype)
    total = distance.new_zeros(n_classes).index_add_(0, number, sorted_distance)
    return edge_class, total / count, sorted_pair[new]


def _key(fractions: Tensor) -> Tensor:
    """Name points modulo the lattice by one integer each."""
    fine = torch.round((fractions % 1) * _FINE).long() % _FINE
    return (fine * torch.tensor([_FINE * _FINE, _FINE, 1])).sum(-1)


def _half_of(waves: Tensor) -> tuple[Tensor, Tensor]:
    """Keep one of each pair of conjugate waves; return their indices and weights."""
    first, second = _key(waves.double()), _key(-waves.double())
    kept = torch.nonzero(first <= second).squeeze(1)
    weights = torch.where(first == second, 1.0, 2.0).double()[kept]
    return kept, weights
