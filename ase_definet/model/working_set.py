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
_KERNEL_PARTS = 8
"""The free memory divided by this are the kernels of a chunk of waves, of which there are two copies: all waves,
except in the largest cells."""
_TRAINING_PARTS, _MOST_TRAINING = 16, 2 * 2**30
"""The free memory divided by this is a block in training, up to a size: each block costs a pass over all sites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSet:
    """How much a network processes at a time; affects time and memory, but not the results beyond rounding.

    Attributes:
        sites: Sites in one pass, at most, unless a single structure has more.
        chunk_bytes: Size of the messages of a chunk of edges or of a block of sites.
        kernel_bytes: Size of the kernels of a chunk of waves.
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
    kernel_bytes: int
    short_range_bytes: int
    training_bytes: int

    @classmethod
    def of(cls, device: torch.device, free: int | None = None) -> WorkingSet:
        """Return the settings for a device, from the cache of a core on a CPU, else from the free memory.

        Args:
            device: Device of the network.
            free: Free memory of the device, in bytes; by default as reported by CUDA, and what torch keeps for later.
        """
        if device.type == "cpu":
            return _CPU
        if free is None:
            kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = torch.cuda.mem_get_info(device)[0] + kept
        chunk = min(max(free // _PARTS, _LEAST), _MOST)
        return cls(
            sites=max(1, free // _SITE_BYTES),
            chunk_bytes=chunk,
            kernel_bytes=max(free // _KERNEL_PARTS, _LEAST),
            short_range_bytes=chunk,
            training_bytes=min(max(free // _TRAINING_PARTS, 2**26), _MOST_TRAINING),
        )


_CPU = WorkingSet(
    sites=2_000,
    chunk_bytes=2 * 2**20,
    kernel_bytes=2 * 2**20,
    short_range_bytes=8 * 2**20,
    training_bytes=64 * 2**20,
)
