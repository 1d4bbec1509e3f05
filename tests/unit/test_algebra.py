"""Tensors by their five components against three by three matrices."""

from __future__ import annotations

import numpy as np
import torch

from ase_definet.model.algebra import applied, basis, components_of, edge_shapes, products

EXACT = 1e-12
LIKE = torch.zeros((), dtype=torch.float64)


def matrices(tensors):
    """Return tensors ``(n, batch, 5, F)`` as matrices ``(n, batch, 3, 3, F)``."""
    return torch.einsum("aij,nbaf->nbijf", basis(LIKE), tensors)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_basis_is_orthonormal_symmetric_and_traceless():
    b = basis(LIKE)
    assert (torch.einsum("aij,bij->ab", b, b) - torch.eye(5)).abs().max() < EXACT
    assert (b - b.transpose(1, 2)).abs().max() == 0
    assert b.diagonal(dim1=1, dim2=2).sum(1).abs().max() < EXACT


def test_tensors_act_on_vectors_as_their_matrices_do():
    tensors, vectors = random(4, 2, 5, 3), random(4, 2, 3, 3)
    expected = torch.einsum("nbijf,nbjf->nbif", matrices(tensors), vectors)
    assert (applied(tensors, vectors) - expected).abs().max() < EXACT


def test_products_are_symmetric_and_traceless():
    left, right = random(4, 2, 3, 3), random(5, 2, 3, 3)[:4]
    outer = torch.einsum("nbif,nbjf->nbijf", left, right)
    outer = (outer + outer.transpose(2, 3)) / 2
    trace = outer.diagonal(dim1=2, dim2=3).sum(-1) / 3
    expected = outer - torch.einsum("ij,nbf->nbijf", torch.eye(3, dtype=torch.float64), trace)
    assert (matrices(products(left, right)) - expected).abs().max() < EXACT


def test_components_leave_the_trace_out():
    xx, yy, zz, xy, xz, yz = random(6, 2, 2, 3)
    shifted = components_of(xx + 1, yy + 1, zz + 1, xy, xz, yz)
    assert (shifted - components_of(xx, yy, zz, xy, xz, yz)).abs().max() < EXACT


def test_kernels_turn_with_their_edge():
    """Whatever an edge does to a scalar, a vector and a tensor, the turned edge does to the turned ones."""
    turn = torch.tensor(np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0])
    b = basis(LIKE)
    whole = torch.block_diag(torch.eye(1), turn, torch.einsum("aij,ik,jl,bkl->ab", b, turn, turn, b))
    edges = torch.nn.functional.normalize(random(6, 3), dim=1)
    expected = torch.einsum("ij,ejkp,lk->eilp", whole, edge_shapes(edges), whole)
    assert (edge_shapes(edges @ turn.T) - expected).abs().max() < EXACT


def test_every_path_is_its_own():
    shapes = edge_shapes(torch.nn.functional.normalize(random(3, 3), dim=1))
    assert int(torch.linalg.matrix_rank(shapes[0].flatten(0, 1))) == shapes.shape[-1]
