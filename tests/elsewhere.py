"""A device that is not there: tensors that live elsewhere, with the CPU's numbers.

:class:`Elsewhere` takes the part of a GPU. Its tensors say that their device is :data:`DEVICE`, every operation on
them is done by the CPU on the numbers behind them, and an operation on tensors of two devices is refused as CUDA
refuses it. What is created on the CPU while it is watching is noted down.
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
"""The only device without numbers of its own, which any build of torch has."""
_MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_HOST = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)


class Remote(torch.Tensor):
    """A tensor elsewhere, and the numbers behind it."""

    @staticmethod
    def __new__(cls, behind: torch.Tensor) -> Self:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            behind.size(),
            strides=behind.stride(),
            storage_offset=behind.storage_offset(),
            dtype=behind.dtype,
            device=DEVICE,
            requires_grad=behind.requires_grad,
        )

    def __init__(self, behind: torch.Tensor) -> None:
        self.behind = behind

    def __repr__(self) -> str:
        return f"Remote({self.behind!r})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.tolist:
            with _disable_current_modes():
                return args[0].behind.tolist()
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        del types
        return _run(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """While it is entered, tensors can be created on and moved to :data:`DEVICE`.

    Attributes:
        on_cpu: How often what was created on the CPU, by operation and line, while ``watching``.
        watching: Whether that is noted down.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu: Counter[str] = Counter()
        self.watching = False
        self._literals = _Literals()

    def __enter__(self):
        self._literals.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._literals.__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        kwargs = kwargs or {}
        made = _run(func, args, kwargs)
        given = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, torch.Tensor)]
        fresh = any(type(part) is torch.Tensor for part in tree_flatten(made)[0])
        if self.watching and fresh and not any(isinstance(part, Remote) for part in given):
            frames = [frame for frame in traceback.extract_stack() if "ase_definet" in frame.filename]
            place = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else "?"
            self.on_cpu[f"{func} {place}"] += 1
        return made


class _Literals(TorchFunctionMode):
    """Keep the numbers of ``torch.tensor(..., device=DEVICE)``, which would lose them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        del types
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in {torch.tensor, torch.as_tensor} and device is not None and torch.device(device) == DEVICE:
            with _disable_current_modes():
                made = torch.as_tensor(*args, **kwargs | {"device": "cpu"})
            return Remote(made)
        return func(*args, **kwargs)


def _run(func, args, kwargs):
    """Do an operation with the numbers behind its tensors; what it makes is where they are, or where it is told."""
    given = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, torch.Tensor)]
    remote = [part for part in given if isinstance(part, Remote)]
    local = [part for part in given if not isinstance(part, Remote) and part.dim()]  # a number may be anywhere
    if remote and local and func not in _MOVES:
        raise RuntimeError(f"{func}: expected all tensors on one device, found some on {DEVICE} and some on the CPU")
    device = kwargs.get("device")
    there = bool(remote) if device is None else torch.device(device).type == DEVICE.type
    if device is not None and there:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(_behind, (args, kwargs))
    made = func(*args, **kwargs)
    if not there or func in _HOST:
        return made
    if func._schema.is_mutable and isinstance(given[0], Remote):
        return given[0]
    with torch.inference_mode(mode=False):  # a view of a weight must be able to count its versions
        return tree_map(lambda part: Remote(part) if isinstance(part, torch.Tensor) else part, made)


def _behind(part):
    return part.behind if isinstance(part, Remote) else part
