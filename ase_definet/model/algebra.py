"""Symmetric traceless tensors: their components, their products, and the kernels of edges that carry them.

Five components on an orthonormal basis: ``(xx - yy) / sqrt(2)``, ``(2 zz - xx - yy) / sqrt(6)``, ``sqrt(2) xy``,
``sqrt(2) xz`` and ``sqrt(2) yz``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

N_TENSOR_PATHS = 14
"""Independent filters of one message between fields of scalar, vector and tensor."""
COMPONENTS = 9
"""Of a scalar, a vector and a tensor."""
_HALF, _SIXTH = math.sqrt(1 / 2), math.sqrt(1 / 6)


def basis(like: Tensor) -> Tensor:
    """Return the five basis tensors, shape ``(5, 3, 3)``."""
    out = like.new_zeros(5, 3, 3)
    out[0, 0, 0], out[0, 1, 1] = _HALF, -_HALF
    out[1, 0, 0], out[1, 1, 1], out[1, 2, 2] = -_SIXTH, -_SIXTH, 2 * _SIXTH
    for k, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)], start=2):
        out[k, i, j] = out[k, j, i] = _HALF
    return out


def edge_shapes(direction: Tensor) -> Tensor:
    """Return what the filters of an edge multiply: kernels of a scalar, a vector and a tensor.

    Args:
        direction: Unit vectors from the target to the source's image, shape ``(n_edges, 3)``.

    Returns:
        Kernels, target before source component, shape ``(n_edges, 9, 9, 14)``.
    """
    n, e, b = len(direction), direction, basis(direction)
    once = torch.einsum("aij,ej->eai", b, e)
    twice = torch.einsum("eai,ei->ea", once, e)
    scalar, vector, tensor = slice(0, 1), slice(1, 4), slice(4, COMPONENTS)
    blocks = [
        (scalar, scalar, e.new_ones(n, 1, 1)),
        (scalar, vector, e[:, None]),
        (vector, scalar, e[:, :, None]),
        (vector, vector, torch.eye(3).to(e).expand(n, 3, 3)),
        (vector, vector, e[:, :, None] * e[:, None]),
        (scalar, tensor, twice[:, None]),
        (tensor, scalar, twice[:, :, None]),
        (vector, tensor, once.transpose(1, 2)),
        (tensor, vector, once),
        (vector, tensor, e[:, :, None] * twice[:, None]),
        (tensor, vector, twice[:, :, None] * e[:, None]),
        (tensor, tensor, torch.eye(5).to(e).expand(n, 5, 5)),
        (tensor, tensor, once @ once.transpose(1, 2)),
        (tensor, tensor, twice[:, :, None] * twice[:, None]),
    ]
    out = e.new_zeros(n, COMPONENTS, COMPONENTS, N_TENSOR_PATHS)
    for k, (target, source, block) in enumerate(blocks):
        out[:, target, source, k] = block
    return out


def components_of(xx: Tensor, yy: Tensor, zz: Tensor, xy: Tensor, xz: Tensor, yz: Tensor) -> Tensor:
    """Return the five components of symmetric tensors, their trace left out, stacked along axis 2."""
    twice = 2 * _HALF
    return torch.stack([_HALF * (xx - yy), _SIXTH * (2 * zz - xx - yy), twice * xy, twice * xz, twice * yz], dim=2)


def applied(tensors: Tensor, vectors: Tensor) -> Tensor:
    """Return tensors ``(n, batch, 5, F)`` times vectors ``(n, batch, 3, F)``."""
    a, b, c, d, e = tensors.unbind(2)
    x, y, z = vectors.unbind(2)
    diagonal = _SIXTH * b
    xx, yy, zz = _HALF * a - diagonal, -_HALF * a - diagonal, 2 * diagonal
    xy, xz, yz = _HALF * c, _HALF * d, _HALF * e
    return torch.stack([xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z], dim=2)


def products(left: Tensor, right: Tensor) -> Tensor:
    """Return the symmetric traceless products of vectors ``(n, batch, 3, F)``, shape ``(n, batch, 5, F)``."""
    x, y, z = left.unbind(2)
    u, v, w = right.unbind(2)
    return components_of(x * u, y * v, z * w, (x * v + y * u) / 2, (x * w + z * u) / 2, (y * w + z * v) / 2)
