"""The symmetry of crystals and layers."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, graphene, mx2

from ase_definet.matching.symmetry import primitive_cell, space_group_operations

CRYSTALS = {
    "Si": (bulk("Si", cubic=True), 192),
    "NaCl": (bulk("NaCl", "rocksalt", a=5.64), 48),
    "MoS2": (mx2("MoS2", vacuum=10), 12),
    "graphene": (graphene(vacuum=10), 24),
}


@pytest.mark.parametrize("name", CRYSTALS)
def test_every_operation_maps_the_crystal_onto_itself(name):
    atoms, count = CRYSTALS[name]
    cell = np.asarray(atoms.cell)
    rotations, translations = space_group_operations(cell, atoms.positions, atoms.numbers)
    assert len(rotations) == len(translations) == count
    fractions = np.linalg.solve(cell.T, atoms.positions.T).T
    for rotation, translation in zip(rotations, translations, strict=True):
        away = (fractions @ rotation.T + translation)[:, None] - fractions
        distance = np.linalg.norm((away - np.round(away)) @ cell, axis=-1)
        distance[atoms.numbers[:, None] != atoms.numbers] = np.inf
        assert distance.min(axis=1).max() < 1e-3


@pytest.mark.parametrize("name", CRYSTALS)
def test_no_operation_of_a_layer_mixes_its_vacuum_with_the_plane(name):
    atoms, _ = CRYSTALS[name]
    cell = np.asarray(atoms.cell)
    every, _ = space_group_operations(cell, atoms.positions, atoms.numbers)
    kept, _ = space_group_operations(cell, atoms.positions, atoms.numbers, layered=True)
    mixing = [r for r in every if r[2, :2].any() or r[:2, 2].any()]
    assert len(kept) == len(every) - len(mixing)
    assert not kept[:, 2, :2].any()
    assert not kept[:, :2, 2].any()


@pytest.mark.parametrize("name", CRYSTALS)
def test_a_supercell_has_the_primitive_cell_of_its_crystal(name):
    atoms, _ = CRYSTALS[name]
    tiled = atoms.repeat((3, 2, 1))
    small, big = (primitive_cell(np.asarray(a.cell), a.positions, a.numbers) for a in (atoms, tiled))
    assert small is not None
    assert big is not None
    assert abs(np.linalg.det(small[0])) == pytest.approx(abs(np.linalg.det(big[0])), abs=1e-6)
    assert sorted(small[2].tolist()) == sorted(big[2].tolist())


@pytest.mark.parametrize("old", [True, False])
def test_atoms_in_one_place_have_no_primitive_cell_and_the_identity_alone(old, monkeypatch):
    """Whichever way spglib says that it finds nothing: packages imported beside this one turn that switch."""
    monkeypatch.setattr("spglib.error.OLD_ERROR_HANDLING", old, raising=False)
    positions, numbers = np.zeros((2, 3)), np.array([14, 14])
    assert primitive_cell(4 * np.eye(3), positions, numbers) is None
    rotations, translations = space_group_operations(4 * np.eye(3), positions, numbers)
    np.testing.assert_array_equal(rotations, np.eye(3)[None])
    np.testing.assert_array_equal(translations, np.zeros((1, 3)))
