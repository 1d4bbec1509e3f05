"""How much goes through a network at a time: the only values that differ from device to device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_SITE_BYTES = 256 * 2**10
"""Memory of one site in one pass, rounded up: the published network, at 512 channels, takes most."""
_PARTS = 32
"""A chunk gets one in so many parts of the free memory: some ten tensors of its size live at the same time."""
_LEAST, _MOST = 16 * 2**20, 512 * 2**20
"""Bounds of a chunk on an accelerator: less leaves it waiting for its next launch, more gains nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSet:
    """What goes through a network at a time. It changes time and memory, and no answer beyond rounding.

    Attributes:
        sites: Sites in one pass, at most, unless a single structure has more.
        chunk_bytes: Messages of a chunk of edges, kernels of a chunk of waves, or messages of a block of sites.
        short_range_bytes: Messages between close sites of a chunk of sites, where no gradient is wanted.
        training_bytes: Messages of a block of sites where gradients are wanted, whose sums cost a pass over all
            sites a block.

    Examples:
        >>> WorkingSet.of(torch.device("cpu")).sites
        2000
        >>> WorkingSet.of(torch.device("cuda"), free=80 * 2**30).sites
        327680
    """

    sites: int
    chunk_bytes: int
    short_range_bytes: int
    training_bytes: int

    @classmethod
    def of(cls, device: torch.device, free: int | None = None) -> WorkingSet:
        """Return what suits a device: a core's cache on a CPU, the free memory on anything else.

        Args:
            device: Where the network is.
            free: Free memory of the device, in bytes; by default CUDA is asked.
        """
        if device.type == "cpu":
            return _CPU
        if free is None:
            free = torch.cuda.mem_get_info(device)[0]
        chunk = min(max(free // _PARTS, _LEAST), _MOST)
        return cls(
            sites=max(1, free // _SITE_BYTES),
            chunk_bytes=chunk,
            short_range_bytes=chunk,
            training_bytes=max(chunk, 2**26),
        )


_CPU = WorkingSet(sites=2_000, chunk_bytes=2 * 2**20, short_range_bytes=8 * 2**20, training_bytes=64 * 2**20)
