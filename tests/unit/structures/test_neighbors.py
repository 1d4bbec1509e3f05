import numpy as np
import pytest
from ase.build import bulk, mx2
from ase.neighborlist import neighbor_list as ase_neighbor_list
from ase.neighborlist import primitive_neighbor_list

from ase_definet.matching.library import library
from ase_definet.structures.neighbors import SHELL_TOLERANCE, neighbor_list, pairs_within

VECTOR_TOLERANCE = 1e-9  # Å


def structures():
    layer = mx2("MoS2", size=(3, 3, 1), vacuum=8)
    layer.pbc = True
    layer.rattle(0.1, seed=1)
    tilted = bulk("Si", "diamond", 5.43).repeat((2, 1, 1))
    outside = bulk("MgO", "rocksalt", 4.21, cubic=True)
    outside.positions += np.random.default_rng(2).integers(-2, 3, (len(outside), 3)) @ outside.cell.array
    open_layer = layer.copy()
    open_layer.pbc = (True, True, False)
    return {"layer": layer, "tilted": tilted, "outside": outside, "open": open_layer}


STRUCTURES = structures()


def edges_of(target, source, shift):
    return sorted(zip(target.tolist(), source.tolist(), map(tuple, shift.tolist()), strict=True))


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("cutoff", [1.0, 3.0, 6.0, 9.5])
def test_equals_that_of_ase(name, cutoff):
    atoms = STRUCTURES[name]
    target, source, shift, vector = neighbor_list(atoms.positions, atoms.cell.array, tuple(atoms.pbc), cutoff)
    i, j, s, d = ase_neighbor_list("ijSD", atoms, cutoff)
    assert edges_of(target, source, shift) == edges_of(i, j, s)
    rows = dict(zip(zip(i, j, map(tuple, s), strict=True), d, strict=True))
    for edge, found in zip(zip(target, source, map(tuple, shift), strict=True), vector, strict=True):
        np.testing.assert_allclose(found, rows[edge], rtol=0, atol=VECTOR_TOLERANCE)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("cap", [None, 13])
def test_vector_is_source_image_minus_target(name, cap):
    atoms = STRUCTURES[name]
    target, source, shift, vector = neighbor_list(atoms.positions, atoms.cell.array, tuple(atoms.pbc), 6.0, cap)
    expected = atoms.positions[source] + shift @ atoms.cell.array - atoms.positions[target]
    np.testing.assert_allclose(vector, expected, rtol=0, atol=VECTOR_TOLERANCE)
    assert target.dtype == source.dtype == shift.dtype == np.int64


@pytest.mark.parametrize("name", STRUCTURES)
def test_sorted_by_target_then_distance(name):
    atoms = STRUCTURES[name]
    target, _, _, vector = neighbor_list(atoms.positions, atoms.cell.array, tuple(atoms.pbc), 6.0)
    distance = np.linalg.norm(vector, axis=1)
    assert (np.diff(target) >= 0).all()
    assert (np.diff(distance)[np.diff(target) == 0] >= -VECTOR_TOLERANCE).all()


def test_small_cell_has_images_of_itself_and_more_than_one_of_a_neighbour():
    atoms = bulk("Cu", "fcc", 3.6)
    target, source, shift, _ = neighbor_list(atoms.positions, atoms.cell.array, (True, True, True), 2.6)
    assert len(target) == 12
    assert not target.any()
    assert not source.any()
    assert shift.any(axis=1).all()


@pytest.mark.parametrize("name", ["MoS2", "P", "GaSe"])
@pytest.mark.parametrize("cap", [5, 6, 7, 12, 13, 20, 30])
def test_cap_keeps_whole_shells_at_every_origin(name, cap):
    host = library()[name]
    cells = np.array([[i, j, 0] for i in range(3) for j in range(3)]) @ host.cell
    positions = (cells[:, None] + host.positions[None]).reshape(-1, 3)
    cell = np.diag([3, 3, 1]) @ host.cell
    full_target, _, _, full_vector = neighbor_list(positions, cell, host.periodic, 8.0)
    kept = []
    for origin in np.random.default_rng(3).uniform(-20, 20, (6, 3)):
        moved = positions + origin
        moved[:, :2] -= np.floor(np.linalg.solve(cell.T, moved.T).T)[:, :2] @ cell[:2, :2]
        target, source, _, vector = neighbor_list(moved, cell, host.periodic, 8.0, cap)
        order = np.lexsort((*np.round(vector, 6).T, source, target))
        kept.append((target[order], source[order], vector[order]))
    for target, source, vector in kept[1:]:
        np.testing.assert_array_equal(target, kept[0][0])
        np.testing.assert_array_equal(np.bincount(source), np.bincount(kept[0][1]))
        np.testing.assert_allclose(
            np.sort(np.linalg.norm(vector, axis=1)),
            np.sort(np.linalg.norm(kept[0][2], axis=1)),
            atol=VECTOR_TOLERANCE,
        )
    target, _, vector = kept[0]
    for site in range(len(positions)):
        inside = np.linalg.norm(vector[target == site], axis=1)
        distance = np.sort(np.linalg.norm(full_vector[full_target == site], axis=1))
        assert len(inside) <= cap
        # no shell is split, and all that is left out below the cap is in the shell of the first beyond it
        assert distance[len(inside)] > inside.max(initial=0) + SHELL_TOLERANCE
        assert distance[cap] - distance[len(inside)] < SHELL_TOLERANCE


def test_cap_that_is_not_reached_changes_nothing():
    atoms = STRUCTURES["layer"]
    plain = neighbor_list(atoms.positions, atoms.cell.array, (True, True, True), 4.0)
    capped = neighbor_list(atoms.positions, atoms.cell.array, (True, True, True), 4.0, 1000)
    for a, b in zip(plain, capped, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_neighbours_are_empty_arrays():
    atoms = STRUCTURES["tilted"]
    target, source, shift, vector = neighbor_list(atoms.positions, atoms.cell.array, (True, True, True), 1.0, 5)
    assert target.shape == source.shape == (0,)
    assert shift.shape == vector.shape == (0, 3)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, True, False)])
@pytest.mark.parametrize("radius", [1.4, 2.1, 4.5, 9.0])
@pytest.mark.parametrize("skew", [0.0, 1.3])
def test_short_pairs_are_those_of_ase(pbc, radius, skew):
    """Small and skewed cells, points outside the cell, radii beyond half the cell, images of a point itself."""
    rng = np.random.default_rng(3)
    cell = np.array([[5.0, 0, 0], [skew, 4.0, 0], [0, -skew, 6.0]])
    positions = rng.uniform(-1, 2, (25, 3)) @ cell
    target, source, vector = pairs_within(positions, cell, pbc, radius)
    i, j, expected = primitive_neighbor_list("ijD", pbc, cell, positions, radius)

    def rows(a, b, v):
        return sorted(zip(a.tolist(), b.tolist(), map(tuple, (v.round(6) + 0.0).tolist()), strict=True))

    assert len(i) > 0
    assert rows(target, source, vector) == rows(i, j, expected)
