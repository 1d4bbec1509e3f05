"""How much a network processes at a time: the only settings that depend on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_SITE_BYTES = 256 * 2**10
"""Memory of one site in one pass, rounded up, for the published network with 512 channels, the largest."""
_PARTS = 32
"""The free memory divided by this is a chunk: about ten tensors of its size exist at the same time."""
_LEAST, _MOST = 16 * 2**20, 512 * 2**20
"""Bounds of a chunk on an accelerator: smaller chunks are limited by launch overhead, larger ones gain nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSet:
    """How much a network processes at a time; affects time and memory, but not the results beyond rounding.

    Attributes:
        sites: Sites in one pass, at most, unless a single structure has more.
        chunk_bytes: Size of the messages of a chunk of edges, kernels of a chunk of waves, or messages of a block of
            sites.
        short_range_bytes: Size of the short-range messages of a chunk of sites, when no gradient is required.
        training_bytes: Size of the messages of a block of sites when gradients are required; each block costs a pass
            over all sites.

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
        """Return the settings for a device, from the cache of a core on a CPU, else from the free memory.

        Args:
            device: Device of the network.
            free: Free memory of the device, in bytes; by default as reported by CUDA.
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
