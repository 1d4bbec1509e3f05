"""The sum of single-defect fields, on displacements that are exactly that, and against a fit in real space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ase_definet.data import PairGroup
from ase_definet.errors import StructureError
from ase_definet.evaluation.superposition import RIDGES, LinearSuperposition
from ase_definet.matching.library import library
from ase_definet.structures.state import NEUTRAL

ROUNDING = 2e-5
"""The fit is made in single precision, on displacements of some 0.1 Å; in Å."""
FILLED_IN = 2e-3
"""What three rounds of filling in empty sites leave, in Å."""
NO_RIDGE = 1e-9
VACANCY, TUNGSTEN, SELENIUM = 0, 74, 34
DIAGONAL = np.diag([3, 3, 1])
SKEW = np.array([[3, 1, 0], [-1, 2, 0], [0, 0, 1]])
MIRRORED = np.array([[0, 3, 0], [2, 1, 0], [0, 0, 1]])
SUPERCELLS = pytest.mark.parametrize("supercell", [DIAGONAL, SKEW, MIRRORED], ids=["diagonal", "skew", "mirrored"])


def group_of(numbers, supercell, moves) -> PairGroup:
    """Return pairs on MoS2 sites, a third of their displacement already in the unrelaxed structure."""
    host = library()["MoS2"]
    whole = np.where(numbers[..., None] > 0, moves, 0.0)
    ones = np.ones(len(numbers))
    return PairGroup(
        subset="test/MoS2",
        host="MoS2",
        unit_numbers=host.numbers,
        unit_positions=host.positions,
        unit_cell=host.cell,
        pbc=(True, True, False),
        supercell=supercell,
        ids=tuple(f"pair{k}" for k in range(len(numbers))),
        split=np.zeros(len(numbers), dtype=np.uint8),
        numbers=numbers,
        offset=whole / 3,
        offset_scale=ones,
        move=whole * 2 / 3,
        move_scale=ones,
        state=np.tile(np.array(NEUTRAL.codes, dtype=np.uint8), (len(numbers), 1)),
    )


def cell_index(supercell, cells, wanted):
    """Return which cell of a supercell any integer cells are images of, by trying all of them."""
    steps = (wanted[..., None, :] - cells) @ np.linalg.inv(supercell)
    same = np.abs(steps - np.round(steps)).max(axis=-1) < 1e-6
    assert (same.sum(axis=-1) == 1).all()
    return same.argmax(axis=-1)


def occupations(supercell, kinds, pairs, *, most=3, seed=0):
    """Return random numbers on the sites, one to ``most`` defects of any of some kinds each."""
    rng = np.random.default_rng(seed)
    unit = library()["MoS2"].numbers
    n_cells = round(abs(np.linalg.det(supercell)))
    numbers = np.tile(unit, (pairs, n_cells)).reshape(pairs, n_cells, len(unit))
    for row in numbers:
        for _ in range(rng.integers(1, most + 1)):
            b, z = kinds[rng.integers(len(kinds))]
            row[rng.integers(n_cells), b] = z
    return numbers.reshape(pairs, -1)


class Planted:
    """Random fields of single defects and a constant per sublattice, summed in real space."""

    def __init__(self, supercell, kinds, seed=1):
        rng = np.random.default_rng(seed)
        self.basis = len(library()["MoS2"].numbers)
        self.cells = group_of(occupations(supercell, kinds, 1), supercell, 0.0).cells
        self.apart = cell_index(supercell, self.cells, self.cells[:, None] - self.cells)  # [to, from]
        self.fields = {kind: rng.normal(0, 0.1, (len(self.cells), self.basis, 3)) for kind in kinds}
        self.constant = rng.normal(0, 0.1, (self.basis, 3))

    def moves(self, numbers):
        by_cell = numbers.reshape(len(numbers), -1, self.basis)
        out = np.tile(self.constant, (*by_cell.shape[:2], 1, 1))
        for (b, z), field in self.fields.items():
            for pair, cell in zip(*np.nonzero(by_cell[:, :, b] == z), strict=True):
                out[pair] += field[self.apart[:, cell]]
        return out.reshape(*numbers.shape, 3)


def largest_error(predicted, true, numbers) -> float:
    return float(np.abs(predicted - true)[numbers > 0].max())


@SUPERCELLS
def test_fields_of_substitutions_are_recovered(supercell):
    kinds = [(0, TUNGSTEN), (1, SELENIUM), (2, SELENIUM)]
    planted = Planted(supercell, kinds)
    seen, unseen = occupations(supercell, kinds, 120), occupations(supercell, kinds, 20, most=5, seed=2)
    fit = LinearSuperposition(group_of(seen, supercell, planted.moves(seen)), np.arange(120), NO_RIDGE)
    assert fit.kinds == kinds
    assert largest_error(fit.predict(unseen), planted.moves(unseen), unseen) < ROUNDING


@SUPERCELLS
def test_fields_of_vacancies_are_recovered(supercell):
    kinds = [(0, VACANCY), (0, TUNGSTEN), (1, VACANCY)]
    planted = Planted(supercell, kinds)
    seen, unseen = occupations(supercell, kinds, 160), occupations(supercell, kinds, 20, seed=2)
    group = group_of(seen, supercell, planted.moves(seen))
    fit = LinearSuperposition(group, np.arange(160), NO_RIDGE)
    assert fit.kinds == kinds
    assert largest_error(fit.predict(unseen), planted.moves(unseen), unseen) < FILLED_IN
    fit._solve(group, np.arange(160), NO_RIDGE, 40)
    assert largest_error(fit.predict(unseen), planted.moves(unseen), unseen) < 5 * ROUNDING


def test_pristine_pairs_give_the_constant_of_each_sublattice():
    pairs, n_cells = 3000, 7  # so many that what rounding leaves of the other waves would be fitted, if it were there
    numbers = np.tile(library()["MoS2"].numbers, (pairs, n_cells))
    moves = np.random.default_rng(0).normal(0, 0.1, (n_cells, 3, 3))
    fit = LinearSuperposition(
        group_of(numbers, SKEW, np.broadcast_to(moves.reshape(-1, 3), (pairs, 21, 3))), np.arange(pairs)
    )
    assert fit.kinds == []
    np.testing.assert_allclose(fit.predict(numbers[:1])[0], np.tile(moves.mean(axis=0), (n_cells, 1)), atol=ROUNDING)


@SUPERCELLS
def test_translating_the_defects_translates_the_prediction(supercell):
    kinds = [(0, VACANCY), (0, TUNGSTEN), (1, VACANCY), (2, SELENIUM)]
    numbers = occupations(supercell, kinds, 400)
    noise = np.random.default_rng(3).normal(0, 0.1, (*numbers.shape, 3))
    fit = LinearSuperposition(group := group_of(numbers, supercell, noise), np.arange(400), 0.01)
    there = fit.predict(numbers[:10])
    assert np.ptp(there) > 1000 * ROUNDING
    for step in ([1, 0, 0], [0, 1, 0], [2, -1, 0]):
        origin = cell_index(supercell, group.cells, group.cells - step)
        sites = (origin[:, None] * fit.basis + np.arange(fit.basis)).ravel()
        np.testing.assert_allclose(fit.predict(numbers[:10, sites]), there[:, sites], atol=ROUNDING)


@pytest.mark.parametrize("ridge", [0.01, 0.5])
@SUPERCELLS
def test_it_agrees_with_ridge_regression_in_real_space(supercell, ridge):
    kinds = [(0, TUNGSTEN), (1, VACANCY)]
    numbers = occupations(supercell, kinds, 30)
    moves = np.random.default_rng(4).normal(0, 0.1, (*numbers.shape, 3))
    group = group_of(numbers, supercell, moves)
    fit = LinearSuperposition(group, np.arange(30), ridge)
    fit._solve(group, np.arange(30), ridge, 60)
    unseen = occupations(supercell, kinds, 10, seed=5)
    expected = _in_real_space(supercell, kinds, numbers, moves, ridge, unseen)
    assert largest_error(fit.predict(unseen), expected, unseen) < 5 * ROUNDING


def _in_real_space(supercell, kinds, numbers, moves, ridge, unseen):
    """Return predictions of a fit with one unknown per kind, relative cell, site of the basis and direction."""
    planted = Planted(supercell, kinds)
    n_cells, basis = len(planted.cells), planted.basis

    def design(occupied):
        """Return what stands before each unknown, shape ``(n, n_cells, n_kinds * n_cells + 1)``."""
        by_cell = occupied.reshape(len(occupied), n_cells, basis)
        out = np.zeros((len(occupied), n_cells, len(kinds) * n_cells + 1))
        out[:, :, -1] = 1
        for k, (b, z) in enumerate(kinds):
            for pair, cell in zip(*np.nonzero(by_cell[:, :, b] == z), strict=True):
                out[pair, np.arange(n_cells), k * n_cells + planted.apart[:, cell]] += 1
        return out

    penalty = ridge * np.mean([(numbers.reshape(-1, n_cells, basis)[:, :, b] == z).sum() for b, z in kinds])
    root = np.sqrt(penalty) * np.eye(len(kinds) * n_cells + 1)[:-1]  # nothing on the constant
    known, target = design(numbers), moves.reshape(len(numbers), n_cells, basis, 3)
    out = np.zeros((len(unseen), n_cells, basis, 3))
    for b in range(basis):
        there = numbers.reshape(-1, n_cells, basis)[:, :, b] > 0
        left = np.vstack([known[there], root])
        right = np.vstack([target[:, :, b][there], np.zeros((len(root), 3))])
        out[:, :, b] = design(unseen) @ np.linalg.lstsq(left, right)[0]
    return out.reshape(*unseen.shape, 3)


def test_the_penalty_is_chosen_by_pairs_left_out():
    kinds = [(0, TUNGSTEN), (1, SELENIUM)]
    numbers = occupations(SKEW, kinds, 100)
    exact = Planted(SKEW, kinds).moves(numbers)
    noise = np.random.default_rng(6).normal(0, 0.1, exact.shape)
    assert LinearSuperposition(group_of(numbers, SKEW, exact), np.arange(100)).ridge == RIDGES[0]
    assert LinearSuperposition(group_of(numbers, SKEW, noise), np.arange(100)).ridge == RIDGES[-1]
    assert LinearSuperposition(group_of(numbers, SKEW, exact), np.array([7])).ridge == RIDGES[-1]


def test_only_the_chosen_pairs_count():
    kinds = [(0, TUNGSTEN), (1, SELENIUM)]
    numbers = occupations(SKEW, kinds, 120)
    planted = Planted(SKEW, kinds)
    moves = planted.moves(numbers)
    moves[100:] = 9.0
    fit = LinearSuperposition(group_of(numbers, SKEW, moves), np.arange(100), NO_RIDGE)
    assert largest_error(fit.predict(numbers), planted.moves(numbers), numbers) < ROUNDING


def test_a_defect_never_seen_moves_nothing():
    numbers = occupations(SKEW, [(0, TUNGSTEN)], 40)
    fit = LinearSuperposition(group_of(numbers, SKEW, Planted(SKEW, [(0, TUNGSTEN)]).moves(numbers)), np.arange(40))
    strange = numbers[:1].copy()
    strange[0, 1] = 8
    np.testing.assert_array_equal(fit.predict(strange), fit.predict(numbers[:1]))


def test_without_relaxed_structures_there_is_nothing_to_fit():
    numbers = occupations(SKEW, [(0, TUNGSTEN)], 4)
    group = group_of(numbers, SKEW, np.zeros((*numbers.shape, 3)))
    with pytest.raises(StructureError, match="test/MoS2: no pairs with a relaxed structure"):
        LinearSuperposition(group, np.array([], dtype=int))
    scale = np.array([1.0, 1.0, np.nan, 1.0])
    with pytest.raises(StructureError, match="test/MoS2: no pairs with a relaxed structure"):
        LinearSuperposition(replace(group, move_scale=scale), np.arange(4))
    LinearSuperposition(replace(group, move_scale=scale), np.array([0, 1, 3]))
