"""Relaxing with a calculator: what is held stays, what is free finds its minimum, in any cell."""

from __future__ import annotations

from itertools import product
from typing import ClassVar

import numpy as np
import pytest
from ase import Atoms
from ase.build import mx2
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian, FixedLine, FixedPlane, FixScaled

from ase_definet.errors import StructureError
from ase_definet.relaxation.stepping import OPTIMIZERS, relax_with
from ase_definet.structures.constraints import free_forces, sound
from tests.unit.structures.test_open_axes import layer

CELLS = {
    "cubic": np.diag([9.0, 9.5, 20.0]),
    "hexagonal": np.array([[9.0, 0, 0], [-4.5, 4.5 * 3**0.5, 0], [0, 0, 20.0]]),
    "60 degrees": np.array([[9.0, 0, 0], [4.5, 4.5 * 3**0.5, 0], [0, 0, 20.0]]),
    "left-handed": np.array([[-4.5, 4.5 * 3**0.5, 0], [9.0, 0, 0], [0, 0, 20.0]]),
    "triclinic": np.array([[9.0, 0.3, 0.2], [-3.0, 8.0, 0.5], [1.0, 2.0, 20.0]]),
    "open": np.array([[9.0, 0, 0], [-4.5, 4.5 * 3**0.5, 0], [0, 0, 0]]),
}
MASKS = [mask for mask in product([False, True], repeat=3) if any(mask)]
PULL = np.array([[0.4, -0.3, 0.5], [-0.2, 0.6, 0.1], [0.3, 0.3, -0.4]])


class Tethered(Calculator):
    """Springs of 1 eV/Å² to points of their own."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, points):
        super().__init__()
        self.points, self.seen = points, []

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.seen.append(atoms.pbc.tolist())
        away = self.points - atoms.positions
        self.results = {"energy": float((away**2).sum() / 2), "forces": away}


def three(cell: str) -> Atoms:
    return Atoms("BNC", positions=[[0.5, 0.7, 1.0], [2.0, 1.0, 3.0], [4.0, 4.0, 5.0]], cell=CELLS[cell], pbc=True)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cell", CELLS)
def test_held_components_stay_and_free_ones_find_their_minimum(cell, mask, optimizer):
    atoms = three(cell)
    atoms.set_constraint(FixScaled([0, 2], mask))
    run = relax_with(atoms, Tethered(atoms.positions + PULL), optimizer, 1e-4)
    assert run.converged, run.error
    moved = run.atoms.positions - atoms.positions
    assert moved[1] == pytest.approx(PULL[1], abs=1e-3)
    full = np.asarray(atoms.cell.complete())
    fractions = moved @ np.linalg.inv(full)
    assert fractions[[0, 2]][:, mask] == pytest.approx(0, abs=1e-9)
    basis = full[~np.array(mask)]
    for k in (0, 2):  # the nearest point that can be reached
        nearest = np.linalg.pinv(basis) @ basis @ PULL[k] if len(basis) else np.zeros(3)
        assert moved[k] == pytest.approx(nearest, abs=1e-3)
    assert [repr(c) for c in run.atoms.constraints] == [repr(c) for c in atoms.constraints]
    assert run.atoms.pbc.all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mask", MASKS)
def test_forces_along_free_vectors_stay_and_lead_nowhere_else(cell, mask):
    atoms = three(cell)
    atoms.set_constraint(FixScaled([0, 1, 2], mask))
    full, held = np.asarray(atoms.cell.complete()), np.array(mask)
    for vector in full[~held]:
        along = np.tile(vector, (3, 1))
        assert free_forces(atoms, along) == pytest.approx(along, abs=1e-9)
    some = free_forces(atoms, PULL)
    assert (some @ np.linalg.inv(full))[:, held] == pytest.approx(0, abs=1e-12)
    copy = atoms.copy()
    copy.set_constraint(sound(atoms))
    forces = PULL.copy()
    for constraint in copy.constraints:  # ASE's own, as its optimizers apply them
        constraint.adjust_forces(copy, forces)
    assert forces == pytest.approx(some, abs=1e-12)


def test_constraints_of_one_atom_act_together():
    atoms = three("hexagonal")
    slanted = np.array([1.0, 1.0, 0.0]) / 2**0.5
    atoms.set_constraint([FixedPlane([0], [1, 0, 0]), FixedPlane([0], slanted), FixCartesian([1], [0, 1, 0])])
    run = relax_with(atoms, Tethered(atoms.positions + PULL), fmax=1e-4)
    moved = run.atoms.positions - atoms.positions
    assert run.converged
    assert moved[0] == pytest.approx([0, 0, PULL[0, 2]], abs=1e-3)
    assert moved[1] == pytest.approx(PULL[1] * [1, 0, 1], abs=1e-3)


def test_other_constraints_are_kept_as_they_are():
    atoms = three("hexagonal")
    bond = FixBondLengths([[0, 1]])
    scaled, fixed = FixScaled([2], [True, True, False]), FixAtoms([2])
    for given, expected in (
        ([bond, scaled, fixed], [FixBondLengths, FixAtoms]),
        ([scaled, bond, fixed], [FixBondLengths, FixAtoms]),
        ([scaled, fixed, bond], [FixAtoms, FixBondLengths]),
        ([bond], [FixBondLengths]),
    ):
        atoms.set_constraint(given)
        assert [type(constraint) for constraint in sound(atoms)] == expected
    atoms.set_constraint([FixedLine([0], [1, 1, 0]), FixScaled([1], [False, True, False])])
    assert {type(constraint) for constraint in sound(atoms)} == {FixedLine, FixedPlane}
    atoms.set_constraint()
    assert sound(atoms) == []


@pytest.mark.parametrize("mask", [mask for mask in MASKS if not all(mask)])
@pytest.mark.parametrize("kind", ["zero", "left-handed", "vacuum along a"])
def test_predictions_hold_what_is_held(relaxer, kind, mask):
    free = relaxer.predict(layer(kind))
    atoms = layer(kind)
    atoms.set_constraint([FixScaled([3, 5], mask), FixedPlane([7], [1, 0, 0]), FixedPlane([7], [1, 1, 0])])
    found = relaxer.predict(atoms).atoms
    assert [repr(c) for c in found.constraints] == [repr(c) for c in atoms.constraints]
    moved = found.positions - atoms.positions
    fractions = moved @ np.linalg.inv(np.asarray(atoms.cell.complete()))
    assert fractions[[3, 5]][:, mask] == pytest.approx(0, abs=1e-9)
    assert np.abs(fractions[[3, 5]][:, ~np.array(mask)]).max() > 1e-6
    assert moved[7, :2] == pytest.approx(0, abs=1e-9)
    shift = (free.atoms.positions - atoms.positions - moved)[0]  # the mean stays where nothing is held
    assert moved[7, 2] == pytest.approx((free.atoms.positions - atoms.positions)[7, 2] - shift[2], abs=1e-6)


def test_an_atom_that_is_not_there_is_named():
    atoms = three("cubic")
    atoms.constraints = [FixScaled([7], [True, False, False])]
    with pytest.raises(StructureError, match="not among these 3:"):
        relax_with(atoms, Tethered(atoms.positions))


def test_a_calculator_sees_no_images_along_a_zero_vector():
    atoms = mx2("MoS2", size=(2, 2, 1))
    atoms.pbc = True
    assert not atoms.cell.array[2].any()
    calculator = Tethered(atoms.positions + 0.1)
    run = relax_with(atoms, calculator)
    assert calculator.seen[0] == [True, True, False]
    assert run.atoms.pbc.all()
