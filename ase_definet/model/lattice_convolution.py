"""Messages on a perfect supercell as products in reciprocal space: the fast path of training and inference."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ase_definet.model.edge_convolution import Filters, classify
from ase_definet.model.short_range import PaddedNeighbors
from ase_definet.model.working_set import WorkingSet

MOST_DENSE = 300
"""Up to this many primitive cells the transform is a matrix product, beyond it a fast Fourier transform."""
_AXES = (0, 2, 1)
"""Axes of the fast transform; the last one is halved, so it should not be the out-of-plane axis of a layer."""
_FINE = 1 << 20
"""Resolution of fractions of a supercell; their denominators, at most its number of cells, are far smaller."""


class LatticeGeometry:
    """Messages as in :class:`~ase_definet.model.edge_convolution.EdgeGeometry`, on a perfect supercell.

    Sites are ordered cell by cell, and within a cell as in the primitive cell; the batch dimension holds different
    occupations of the same host. The geometry is built on the CPU; use :meth:`to` to move it.

    Args:
        source: Source sublattice of each edge of one cell, shape ``(n_edges,)``.
        target: Target sublattice, in the cell at the origin, shape ``(n_edges,)``.
        cell_shift: Cell of the source, shape ``(n_edges, 3)``.
        edge_vector: From the target to the source, shape ``(n_edges, 3)``, in Å.
        host_numbers: Host element of each sublattice, shape ``(n_sub,)``.
        supercell: Integer matrix, rows in the primitive vectors, shape ``(3, 3)``.
        cells: Its primitive cells, integers, shape ``(n_cells, 3)``.
        waves: The wave vectors that fit into it, in reciprocal primitive vectors, shape ``(n_cells, 3)``.
        tolerance: Edges whose lengths differ by less, between the same host elements, share their filters, in Å.
        keep_kernels: Whether kernels are cached for networks with unchanged filters when no gradient is required, at
            the cost of memory.
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
        *,
        keep_kernels: bool = False,
    ) -> None:
        self._edges = (source, target, cell_shift, edge_vector)
        self._supercell, self._cells = supercell, cells
        self._near: dict[float, PaddedNeighbors] = {}
        self._keep_kernels = keep_kernels
        self._kept: weakref.WeakKeyDictionary[Any, _Kernels] = weakref.WeakKeyDictionary()
        self.device = edge_vector.device
        self.working_set = WorkingSet.of(self.device)
        self.n_sub = len(host_numbers)
        self.n_cells = len(cells)
        distance = edge_vector.norm(dim=1)
        self._direction = edge_vector / distance[:, None]
        pair = host_numbers[target] * 256 + host_numbers[source]
        self._edge_class, self.class_distance, class_pair = classify(pair, distance, tolerance)
        self.class_numbers = torch.stack([class_pair // 256, class_pair % 256], dim=1)
        self._padded = _pad(target * self.n_sub + source, self.n_sub**2)
        self._shift = torch.cat([cell_shift.double(), torch.zeros(1, 3, dtype=torch.float64)])[self._padded]
        self._shape = _shape_of(supercell) if self.n_cells > MOST_DENSE else None
        dtype = edge_vector.dtype
        if self._shape is None:
            kept, weights = _half_of(waves)
            self._waves = waves[kept].double()
            phase = 2 * math.pi * self._waves @ cells.double().T
            weight = (weights / self.n_cells)[:, None]
            self._forward = torch.cat([phase.cos(), -phase.sin()]).to(dtype)
            self._inverse = torch.cat([weight * phase.cos(), -weight * phase.sin()]).T.contiguous().to(dtype)
        else:
            size = torch.tensor(self._shape)
            half = (self._shape[0], self._shape[1] // 2 + 1, self._shape[2])
            self._waves = torch.cartesian_prod(*(torch.arange(n) for n in half)).double() / size
            strides = torch.tensor([self._shape[1] * self._shape[2], self._shape[2], 1])
            place = ((cells % size) * strides).sum(1)
            inside = torch.equal(place, torch.arange(len(place)))  # as cells are listed: nothing to be moved
            self._to_grid: Tensor | None = None if inside else torch.argsort(place)
            self._from_grid: Tensor | None = None if inside else place

    @staticmethod
    def suits(supercell: Tensor) -> bool:
        """Whether this is the faster path for a supercell: if it is small, or a grid of primitive cells."""
        small = abs(float(torch.linalg.det(supercell.double()))) <= MOST_DENSE
        return small or _shape_of(supercell) is not None

    def to(self, device: torch.device | str, working_set: WorkingSet | None = None) -> LatticeGeometry:
        """Move the operators to a device, in place.

        Args:
            device: The device.
            working_set: How much to process at a time; by default chosen for the device.
        """
        self.device = torch.device(device)
        self.working_set = working_set or WorkingSet.of(self.device)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in {"_supercell", "_cells"}:
                setattr(self, name, value.to(device))
        self._near.clear()
        self._kept.clear()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Omit the cache, whose weak references cannot be pickled; it is rebuilt when needed."""
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore with an empty cache of kernels."""
        vars(self).update(state, _kept=weakref.WeakKeyDictionary())

    def propagate(self, filters: Filters, field: Tensor) -> Tensor:
        """Sum messages into every site; see :meth:`~ase_definet.model.edge_convolution.EdgeGeometry.propagate`."""
        if self._shape is None:
            spectrum = self._forward @ field.reshape(self.n_cells, -1)
            return (self._inverse @ self._multiply(self._kernels(filters), spectrum, field)).view(field.shape)
        return self._propagate_fast(filters, field)

    def _propagate_fast(self, filters: Filters, field: Tensor) -> Tensor:
        if self._shape is None:
            raise RuntimeError("a fast transform requires the grid of a diagonal supercell")
        # CUDA has no Fourier transform for the half-precision types of mixed precision
        wide = field.to(torch.promote_types(field.dtype, torch.float32))
        grid = wide.reshape(self.n_cells, -1)
        grid = grid if self._to_grid is None else grid[self._to_grid]
        spectrum = torch.fft.rfftn(grid.view(*self._shape, -1), dim=_AXES)
        half = spectrum.shape
        spectrum = spectrum.reshape(len(self._waves), -1)
        parts, stacked = [], self._stacked_blocks(filters(self))
        for part in self._chunks(field):
            kernels = self._kernel_by_pairs(stacked, part)
            parts.append(self._multiply_by_pairs(*kernels, spectrum[part], field))
        out: Tensor = torch.fft.irfftn(
            torch.cat(parts).view(half), s=[self._shape[axis] for axis in _AXES], dim=_AXES
        )
        out = out.reshape(self.n_cells, -1)
        return (out if self._from_grid is None else out[self._from_grid]).reshape(field.shape)

    def _chunks(self, field: Tensor) -> Iterator[slice]:
        row = 2 * (4 * self.n_sub) ** 2 * field.shape[-1] * field.element_size()
        step = max(1, self.working_set.kernel_bytes // row)
        return (slice(start, start + step) for start in range(0, len(self._waves), step))

    def _multiply(self, kernels: Tensor, spectrum: Tensor, field: Tensor) -> Tensor:
        """Apply kernels to a spectrum, whose real parts of all waves come before the imaginary ones.

        One product of complex matrices is several times faster than four of real ones.
        """
        _, batch, _, width = field.shape
        n, waves = self.n_sub, len(self._waves)
        parts = spectrum.view(2, waves, n, batch, 4, width).permute(5, 1, 4, 2, 3, 0)
        parts = parts.to(torch.promote_types(parts.dtype, torch.float32)).contiguous()  # none is complex and half
        heard = torch.bmm(kernels, torch.view_as_complex(parts).view(width * waves, 4 * n, batch))
        heard = torch.view_as_real(heard).view(width, waves, 4, n, batch, 2).permute(5, 1, 3, 4, 2, 0)
        return heard.reshape(2 * waves, -1).to(field.dtype)

    def _multiply_by_pairs(self, k_re: Tensor, k_im: Tensor, spectrum: Tensor, field: Tensor) -> Tensor:
        """Do the same with kernels in their original layout: for few structures, reordering them does not pay off."""
        n, waves = self.n_sub, len(spectrum)
        _, batch, _, width = field.shape
        re, im = (
            part.reshape(waves, n, batch, 4, width).permute(1, 3, 2, 4, 0).contiguous()
            for part in (spectrum.real, spectrum.imag)
        )
        real = re.new_zeros(n, 4, batch, width, waves)
        imaginary = torch.zeros_like(real)
        for source in range(n):
            for component in range(4):
                kernel_re, kernel_im = (k[:, source, :, component, None] for k in (k_re, k_im))
                x_re, x_im = re[source, component], im[source, component]
                real.addcmul_(kernel_re, x_re).addcmul_(kernel_im, x_im, value=-1)
                imaginary.addcmul_(kernel_re, x_im).addcmul_(kernel_im, x_re)
        return torch.complex(real, imaginary).permute(4, 0, 2, 1, 3).reshape(waves, -1)

    def _kernels(self, filters: Filters) -> Tensor:
        """Return the complex kernels of all waves, shape ``(F * n_waves, 4 n_sub, 4 n_sub)``.

        Cached kernels are identified by their filter values, which are cheap to compute. Neither the identity of a
        module nor the version counters of its weights would be safe: identities are reused, and writing through
        ``weight.data`` does not increase the counter.
        """
        values = filters(self)
        keep = self._keep_kernels and not torch.is_grad_enabled()
        kept = self._kept.get(filters) if keep else None
        if kept is not None and kept.are_of(values):
            return kept.kernels
        n = self.n_sub
        stacked = self._stacked_blocks(values.to(torch.promote_types(values.dtype, torch.float32)))
        parts = (
            part.permute(4, 5, 2, 0, 3, 1).reshape(-1, 4 * n, 4 * n)
            for part in self._kernel_by_pairs(stacked, slice(None))
        )
        kernels = torch.complex(*parts)
        if keep:
            self._kept[filters] = _Kernels(values.clone(), kernels)
        return kernels

    def _stacked_blocks(self, values: Tensor) -> Tensor:
        """Return the kernels of the edges of each pair of sublattices, shape ``(n_sub**2, k, 16 F)``."""
        blocks = torch.cat([self._edge_blocks(values).flatten(1), values.new_zeros(1, 16 * values.shape[-1])])
        return blocks[self._padded]

    def _kernel_by_pairs(self, stacked: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Return the real and imaginary kernels of some waves, shape ``(n_sub, n_sub, 4, 4, F, n_waves)``.

        The first axes are target and source sublattice, then come target and source component. Waves come last, so
        that products with a spectrum run over long rows.

        Args:
            stacked: The kernels of the edges, as of :meth:`_stacked_blocks`.
            part: The waves.
        """
        n = self.n_sub
        waves = self._waves[part]
        angle = 2 * math.pi * (waves @ self._shift.transpose(1, 2))  # (pairs, waves, k)
        wide = torch.promote_types(stacked.dtype, torch.float32)  # mixed precision multiplies in half
        products = (stacked.transpose(1, 2) @ wave.to(stacked.dtype).mT for wave in (angle.cos(), angle.sin()))
        re, im = (product.view(n, n, 4, 4, -1, len(waves)).to(wide) for product in products)
        return re, im

    def _edge_blocks(self, filters: Tensor) -> Tensor:
        """Return the kernel of every edge of a cell, shape ``(n_edges, 4, 4, F)``: target, then source component."""
        p_ss, p_vs, p_sv, p_vv, p_vt = filters[self._edge_class].unbind(1)
        e = self._direction[:, :, None]
        first = torch.cat([p_ss[:, None], p_vs[:, None] * e], dim=1)
        same = torch.eye(3, dtype=e.dtype, device=e.device)[None, :, :, None] * p_vv[:, None, None]
        along = e[:, :, None] * e[:, None] * p_vt[:, None, None]
        rest = torch.cat([(p_sv[:, None] * e)[:, :, None], same + along], dim=2)
        return torch.cat([first[:, None], rest], dim=1)

    def near(self, cutoff: float) -> PaddedNeighbors:
        """Return the neighbours of every site within a cutoff, in Å."""
        if cutoff not in self._near:
            source, target, shift, vector = (part.cpu() for part in self._edges)
            short = vector.norm(dim=1) < cutoff
            source, target, shift, vector = source[short], target[short], shift[short], vector[short]
            inverse = torch.linalg.inv(self._supercell.double())
            known = _key(self._cells.double() @ inverse)
            wanted = _key((self._cells[:, None] + shift[None]).double() @ inverse)  # (cells, edges)
            order = torch.argsort(known)
            owner = order[torch.searchsorted(known[order], wanted)]
            first = torch.arange(self.n_cells)[:, None] * self.n_sub
            self._near[cutoff] = PaddedNeighbors.of(
                (owner * self.n_sub + source).reshape(-1),
                (first + target).reshape(-1),
                vector.repeat(self.n_cells, 1),
                self.n_cells * self.n_sub,
                cutoff,
            ).to(self.device)
        return self._near[cutoff]

    def total(self, values: Tensor) -> Tensor:
        """Sum over the sites: ``(n_sites, ...)`` to ``(1, ...)``."""
        return values.sum(0, keepdim=True)

    def spread(self, values: Tensor) -> Tensor:
        """Broadcast the value to every site."""
        return values


@dataclass(frozen=True, eq=False)
class _Kernels:
    """Kernels, and the filter values they were computed from."""

    values: Tensor
    kernels: Tensor

    def are_of(self, values: Tensor) -> bool:
        """Whether the kernels belong to these filter values: bitwise equal, of the same type, on the same device."""
        same = (values.dtype, values.device, values.shape) == (
            self.values.dtype,
            self.values.device,
            self.values.shape,
        )
        return same and torch.equal(values, self.values)


def _shape_of(supercell: Tensor) -> tuple[int, int, int] | None:
    """Return the repeats of a supercell that is a grid of primitive cells, else None."""
    repeats = supercell.diagonal().tolist()
    if min(repeats) < 1 or not torch.equal(supercell, torch.diag(supercell.diagonal())):
        return None
    return int(repeats[0]), int(repeats[1]), int(repeats[2])


def _pad(owner: Tensor, n: int) -> Tensor:
    """List the edges of each pair of sublattices, padded with the number of edges, shape ``(n, k)``."""
    order = torch.argsort(owner, stable=True)
    count = torch.bincount(owner, minlength=n)
    slot = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner[order]]
    out = torch.full((n, max(int(count.max()), 1) if len(owner) else 1), len(owner))
    out[owner[order], slot] = order
    return out


def _key(fractions: Tensor) -> Tensor:
    """Encode points modulo the lattice as one integer each."""
    fine = torch.round((fractions % 1) * _FINE).long() % _FINE
    return (fine * torch.tensor([_FINE * _FINE, _FINE, 1])).sum(-1)


def _half_of(waves: Tensor) -> tuple[Tensor, Tensor]:
    """Keep one of each pair of conjugate waves; return their indices and weights."""
    first, second = _key(waves.double()), _key(-waves.double())
    kept = torch.nonzero(first <= second).squeeze(1)
    weights = torch.where(first == second, 1.0, 2.0).double()[kept]
    return kept, weights
