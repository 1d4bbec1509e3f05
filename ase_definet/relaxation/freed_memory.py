"""Memory that glibc keeps for the next pass."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": 32 * 2**20,
    "MALLOC_TRIM_THRESHOLD_": 2**30,
    "MALLOC_TOP_PAD_": 16 * 2**20,
}
"""What glibc is told, in bytes, by the names of its environment variables: to keep up to 1 GB of freed memory."""
_PARAMETERS = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -2}
"""The same as parameters of ``mallopt``."""


@lru_cache(maxsize=2)
def keep_freed_memory(*, whatever_is_set: bool = False) -> bool:
    """Ask glibc to keep freed memory for later, unless the environment says what it should do.

    Otherwise the tensors of a pass are returned to the system and mapped anew, page by page, which takes a quarter of
    the time of a batch. The whole process is concerned, which is why only the command line and the workers of a
    screen do this by themselves.

    Args:
        whatever_is_set: Whether to ask for it although the environment says otherwise.

    Returns:
        Whether it was asked: there is no glibc on Windows and macOS.
    """
    if not whatever_is_set and any(name in os.environ for name in KEEP_MEMORY):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(_PARAMETERS[name], value) for name, value in KEEP_MEMORY.items())
