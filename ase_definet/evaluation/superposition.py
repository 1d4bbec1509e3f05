"""What a prediction must beat: nothing moves, and the sum of the fields of single defects."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.data import PairGroup
from ase_definet.errors import StructureError

Array: TypeAlias = NDArray[Any]

RIDGES = (0.003, 0.03, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Penalties to choose from, relative to the mean number of defects of a kind."""
_NO_WAVE = 1e-6
_HELD_OUT = 5
"""One in so many training pairs chooses the penalty."""
_ROUNDS = 3
_MOST_TO_CHOOSE = 1000
"""Training pairs that choose the penalty, at most."""


class LinearSuperposition:
    """Displacements as the sum of one field per defect, fitted to training pairs by ridge regression.

    A defect is a sublattice and what is on it; its field is a free vector on every site of the supercell, relative to
    its own. On a lattice the fit separates into one small problem per wave vector. The unknown displacements of empty
    sites are filled in with those of the fit, and the fit is repeated (expectation maximisation).

    Args:
        group: Pairs on one set of sites.
        chosen: The training pairs among them.
        ridge: Penalty; by default the one of :data:`RIDGES` that predicts a fifth of the pairs best from the rest.

    Raises:
        StructureError: There are no training pairs, or one has no relaxed structure.
    """

    def __init__(self, group: PairGroup, chosen: Array, ridge: float | None = None) -> None:
        chosen = np.asarray(chosen)
        if not len(chosen) or not group.has_relaxed[chosen].all():
            raise StructureError(f"{group.subset}: no pairs with a relaxed structure to fit a superposition to")
        self.basis = len(group.unit_numbers)
        self.host_numbers = group.host_numbers
        numbers = group.numbers[chosen]
        defective = numbers != self.host_numbers
        sublattice = np.broadcast_to(np.arange(len(self.host_numbers)) % self.basis, numbers.shape)
        found = np.unique(np.stack([sublattice[defective], numbers[defective]], axis=1), axis=0)
        self.kinds = [(int(b), int(z)) for b, z in found]
        self._still = np.abs(group.waves).max(axis=1) < _NO_WAVE
        self._transform = np.exp(-2j * np.pi * (group.waves @ group.cells.T)).astype(np.complex64)
        self.ridge = self._best_ridge(group, chosen) if ridge is None else ridge
        self._solve(group, chosen, self.ridge, _ROUNDS)

    def predict(self, numbers: Array) -> Array:
        """Return displacements from the sites.

        Args:
            numbers: Atomic numbers on the sites, 0 where empty, shape ``(n, n_sites)``.

        Returns:
            Shape ``(n, n_sites, 3)``, in Å.
        """
        return self._synthesise(self._spectrum(numbers))

    def _spectrum(self, numbers: Array) -> Array:
        """Return structure factors by kind of defect, last the constant, shape ``(n_waves, n, n_kinds + 1)``."""
        by_cell = numbers.reshape(len(numbers), -1, self.basis)
        there = np.ones((*by_cell.shape[:2], len(self.kinds) + 1), dtype=np.complex64)
        for k, (b, z) in enumerate(self.kinds):
            there[:, :, k] = by_cell[:, :, b] == z
        factors = self._to_waves(there)
        factors[:, :, -1] = self._still[:, None]  # exactly, or its free penalty would fit the rounding
        return factors

    def _synthesise(self, spectrum: Array) -> Array:
        field = spectrum @ self._fields
        back = np.tensordot(self._transform.conj().T, field, 1).real / len(self._transform)
        return np.asarray(back.swapaxes(0, 1).reshape(field.shape[1], -1, 3))

    def _to_waves(self, by_cell: Array) -> Array:
        """Transform ``(n, n_cells, k)`` to ``(n_waves, n, k)``."""
        return np.asarray(np.tensordot(self._transform, by_cell.swapaxes(0, 1), 1))

    def _solve(self, group: PairGroup, chosen: Array, ridge: float, rounds: int) -> None:
        numbers = group.numbers[chosen]
        target = (group.offsets(chosen) + group.moves(chosen)).astype(np.float32)
        empty = numbers == 0
        target[empty] = 0
        spectrum = self._spectrum(numbers)
        adjoint = spectrum.conj().swapaxes(1, 2)
        gram = (adjoint @ spectrum).astype(complex)
        defects = np.abs(gram).diagonal(axis1=1, axis2=2)[:, :-1]
        penalty = np.eye(gram.shape[1]) * ridge * (max(float(defects.mean()), 1.0) if self.kinds else 1.0)
        penalty[-1, -1] = 1e-9  # the constant costs nothing
        left = np.linalg.inv(gram + penalty)
        for _ in range(rounds):
            by_cell = target.reshape(len(chosen), -1, self.basis * 3)
            self._fields = (left @ (adjoint @ self._to_waves(by_cell.astype(np.complex64)))).astype(np.complex64)
            target[empty] = self._synthesise(spectrum)[empty]

    def _best_ridge(self, group: PairGroup, chosen: Array) -> float:
        chosen = chosen[:: max(1, len(chosen) // _MOST_TO_CHOOSE)]
        held_out = chosen[::_HELD_OUT]
        rest = np.setdiff1d(chosen, held_out)
        if len(rest) == 0:
            return RIDGES[-1]
        truth = group.offsets(held_out) + group.moves(held_out)
        real = group.numbers[held_out] > 0
        errors = []
        for ridge in RIDGES:
            self._solve(group, rest, ridge, 1)
            errors.append(np.abs(self.predict(group.numbers[held_out]) - truth)[real].mean())
        return RIDGES[int(np.argmin(errors))]
