"""Devices by name, and what running out of their memory looks like."""

from __future__ import annotations

import torch

from ase_definet.errors import DeviceError


def checked_device(name: str) -> torch.device:
    """Return the device of a name, checked to be there.

    Args:
        name: ``"auto"`` (CUDA where there is one, else the CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        DeviceError: It is not, or the networks do not run on it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA device(s); use cpu"
        )
    if device.type == "mps":
        raise DeviceError(
            f"device {name!r} is not supported: the phases of a lattice need double precision, which MPS does not "
            "have; use cpu"
        )
    if device.type not in {"cpu", "cuda"}:
        raise DeviceError(f"device {name!r} is not supported: expected auto, cpu, cuda or cuda:N")
    return device


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: in torch's words for it, in those of CUDA's libraries, or in NumPy."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def free_memory(device: torch.device) -> None:
    """Hand memory that torch keeps for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
