"""Constraints as selective dynamics: what is written is what holds, in any cell, and the rest is named."""

import tempfile
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import mx2
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixScaled,
    Hookean,
)
from ase.io import read, write
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.io.vasp.inputs import Incar, Poscar

from ase_definet.cli import cli
from ase_definet.dft.vasp import restore_order, write_vasp_inputs
from ase_definet.errors import DefiNetWarning, StructureError
from ase_definet.structures.constraints import free_forces, held_directions, hold
from ase_definet.structures.conversion import as_atoms, as_structure
from tests.conftest import mos2_with_defects

ROUNDED = 1e-9
CELLS = {
    "cubic": np.diag([9.0, 9.5, 20.0]),
    "hexagonal": np.array([[9.0, 0, 0], [-4.5, 4.5 * 3**0.5, 0], [0, 0, 20.0]]),
    "tilted": np.array([[9.0, 0, 0], [-4.5, 4.5 * 3**0.5, 0], [3.0, 1.0, 20.0]]),
    "triclinic": np.array([[9.0, 0.3, 0.2], [-3.0, 8.0, 0.5], [1.0, 2.0, 20.0]]),
}
SPECIES = ["B", "N", "C", "O"]


def crystal(cell: str, n: int = 6) -> Atoms:
    rng = np.random.default_rng(n)
    return Atoms(
        [SPECIES[k % 3] for k in range(n)], scaled_positions=rng.random((n, 3)) * 0.5, cell=CELLS[cell], pbc=True
    )


def moves(atoms: Atoms, held: np.ndarray, k: int) -> np.ndarray:
    """Return a basis of what selective dynamics leaves free for an atom."""
    return atoms.cell.array[~held[k]]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_line_along_a_cell_vector_is_held(cell, axis):
    atoms = crystal(cell)
    atoms.set_constraint(FixedLine([1, -1], atoms.cell.array[axis]))
    held, lost = held_directions(atoms)
    expected = np.zeros((6, 3), dtype=bool)
    expected[[1, 5]] = True
    expected[[1, 5], axis] = False
    assert held.tolist() == expected.tolist()
    assert lost == []


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_plane_that_two_cell_vectors_span_is_held(cell, axis):
    atoms = crystal(cell)
    normal = np.cross(*np.delete(atoms.cell.array, axis, axis=0))
    atoms.set_constraint(FixedPlane(0, normal))
    held, lost = held_directions(atoms)
    assert held[0].tolist() == [k == axis for k in range(3)]
    assert lost == []


@pytest.mark.parametrize(
    ("cell", "constraint"),
    [
        ("hexagonal", FixedPlane(0, CELLS["hexagonal"][0])),  # normal to a, but b is not in the plane
        ("hexagonal", FixedLine([0, 1], [0, 1, 0])),
        ("tilted", FixedLine(0, [0, 0, 1])),
        ("triclinic", FixedPlane(0, [1, 0, 0])),
        ("triclinic", FixCartesian(0, (True, True, False))),
        ("tilted", FixCartesian([0, 1, 2], (True, True, False))),
        ("cubic", FixedPlane(0, [1, 1, 0])),
        ("cubic", FixBondLengths([[0, 1]])),
        ("cubic", FixCom()),
        ("cubic", Hookean(0, 1, rt=1.0, k=5.0)),
    ],
)
def test_what_cannot_be_held_is_named(tmp_path, cell, constraint):
    atoms = crystal(cell)
    atoms.set_constraint(constraint)
    report = write_vasp_inputs(atoms, tmp_path, kpoints=(2, 2, 1))
    assert Poscar.from_file(tmp_path / "POSCAR").selective_dynamics is None
    named = [text for text in report.warnings if type(constraint).__name__ in text]
    assert len(named) == 1
    assert named[0] in (tmp_path / "README.txt").read_text(encoding="utf-8")
    with pytest.warns(DefiNetWarning, match=type(constraint).__name__):
        as_structure(atoms)


def test_constraints_of_one_atom_act_together():
    atoms = crystal("hexagonal")
    # neither plane alone is spanned by cell vectors where the second is not: together they leave c
    atoms.set_constraint([FixedPlane(0, [1, 0, 0]), FixedPlane(0, [0, 1, 0])])
    assert held_directions(atoms)[0][0].tolist() == [True, True, False]
    atoms.set_constraint([FixScaled(0, (True, False, False)), FixCartesian(0, (False, False, True)), FixAtoms([1])])
    held, lost = held_directions(atoms)
    assert held[:3].tolist() == [[True, False, True], [True] * 3, [False] * 3]
    assert lost == []
    # what can be said alone is kept
    atoms.set_constraint([FixedPlane(0, [0, 0, 1]), FixedPlane(0, [1, 0.3, 0])])
    held, lost = held_directions(atoms)
    assert held[0].tolist() == [False, False, True]
    assert lost == ["A FixedPlane constraint was dropped for 1 atom: it follows no vectors of this cell."]


@pytest.mark.parametrize("fix", [FixAtoms(mask=[True, False, False, False, True, False]), FixAtoms([0, -2])])
def test_masks_and_negative_indices(fix):
    atoms = crystal("cubic")
    atoms.set_constraint(fix)
    assert np.flatnonzero(held_directions(atoms)[0].all(axis=1)).tolist() == [0, 4]


def test_an_atom_that_is_not_there_is_refused():
    atoms = crystal("cubic")
    atoms.set_constraint(FixAtoms([17]))
    with pytest.raises(StructureError, match="not among these 6"):
        held_directions(atoms)


@st.composite
def constrained(draw):
    """A structure in any cell and order of species, with constraints of all kinds and moments or none."""
    n = draw(st.integers(2, 8))
    atoms = crystal(draw(st.sampled_from(sorted(CELLS))), n)
    atoms.symbols = draw(st.lists(st.sampled_from(SPECIES), min_size=n, max_size=n))
    cell, some = atoms.cell.array, st.lists(st.integers(-n, n - 1), min_size=1, max_size=3)
    masks = st.tuples(st.booleans(), st.booleans(), st.booleans())
    constraints = []
    for _ in range(draw(st.integers(0, 4))):
        kind, axis = draw(st.sampled_from("ascpl")), draw(st.integers(0, 2))
        which = sorted({k % n for k in draw(some)})
        constraints.append(
            {
                "a": lambda which=which: FixAtoms(which),
                "s": lambda which=which: FixScaled(which, draw(masks)),
                "c": lambda which=which: FixCartesian(which, draw(masks)),
                "p": lambda which=which, axis=axis: FixedPlane(which, np.cross(*np.delete(cell, axis, axis=0))),
                "l": lambda which=which, axis=axis: FixedLine(which, cell[axis]),
            }[kind]()
        )
    atoms.set_constraint(constraints)
    if draw(st.booleans()):
        atoms.set_initial_magnetic_moments(draw(st.lists(st.sampled_from([0.0, -2.5, 1.0]), min_size=n, max_size=n)))
    return atoms


@settings(max_examples=60, deadline=None)
@given(atoms=constrained())
def test_what_is_written_reads_back(atoms):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        report = write_vasp_inputs(atoms, folder, kpoints=(2, 2, 1))
        held, lost = held_directions(atoms)
        assert [text for text in report.warnings if "constraint" in text] == lost
        back = restore_order(read(f"{folder}/POSCAR"), folder)
        assert back.get_chemical_symbols() == atoms.get_chemical_symbols()
        assert np.abs(back.positions - atoms.positions).max() < ROUNDED
        assert np.abs(back.cell.array - atoms.cell.array).max() < ROUNDED
        assert held_directions(back)[0].tolist() == held.tolist()
        poscar = Poscar.from_file(f"{folder}/POSCAR")
        order = [int(np.abs(atoms.positions - xyz).sum(axis=1).argmin()) for xyz in poscar.structure.cart_coords]
        flags = poscar.selective_dynamics
        assert (np.ones_like(held) if flags is None else np.array(flags)).tolist() == (~held[order]).tolist()
        if atoms.has("initial_magmoms"):
            own = atoms.get_initial_magnetic_moments()[order]
            assert Incar.from_file(f"{folder}/INCAR")["MAGMOM"] == pytest.approx(own)
    if not lost:
        structure_and_back(atoms, held)
        forces = np.random.default_rng(0).normal(size=(len(atoms), 3))
        free = free_forces(atoms, forces)
        for k in range(len(atoms)):  # the projection on what can move, whichever way it is constrained
            basis = moves(atoms, held, k)
            expected = np.linalg.pinv(basis) @ basis @ forces[k] if len(basis) else np.zeros(3)
            assert free[k] == pytest.approx(expected, abs=1e-6)


def structure_and_back(atoms: Atoms, held: np.ndarray) -> None:
    back = as_atoms(as_structure(atoms))
    assert held_directions(back)[0].tolist() == held.tolist()
    if atoms.has("initial_magmoms"):
        assert back.get_initial_magnetic_moments() == pytest.approx(atoms.get_initial_magnetic_moments())


@pytest.mark.parametrize("kind", [FixBondLengths([[0, 1]]), FixAtoms([0])])
def test_free_forces_act_as_in_ase_where_no_direction_is_held(kind):
    atoms = crystal("triclinic")
    atoms.set_constraint(kind)
    forces = np.random.default_rng(1).normal(size=(6, 3))
    expected = forces.copy()
    kind.adjust_forces(atoms, expected)
    assert free_forces(atoms, forces) == pytest.approx(expected)


def test_hold_replaces_all_constraints():
    atoms = crystal("cubic")
    atoms.set_constraint(FixBondLengths([[0, 1]]))
    held = np.zeros((6, 3), dtype=bool)
    held[2], held[3, 1] = True, True
    hold(atoms, held)
    assert held_directions(atoms)[0].tolist() == held.tolist()


def test_velocities_are_named(tmp_path):
    atoms = crystal("cubic")
    atoms.set_momenta(np.ones((6, 3)))
    assert any("Velocities" in text for text in write_vasp_inputs(atoms, tmp_path).warnings)


def test_the_relaxed_poscar_holds_what_the_input_holds(tmp_path):
    atoms = mos2_with_defects(5)
    atoms = atoms[np.argsort(atoms.numbers, kind="stable")]
    atoms.set_constraint(
        [FixCartesian([0], (False, True, False)), FixedPlane([1], [0, 0, 1]), FixScaled([1], (True, False, False))]
    )
    write(tmp_path / "a.traj", atoms)
    args = ["relax", str(tmp_path / "a.traj"), "--host", "MoS2", "--device", "cpu", "-o", str(tmp_path / "b.vasp")]
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 0, done.output
    held = held_directions(read(tmp_path / "b.vasp"))[0]
    assert held[:3].tolist() == [[False, True, False], [True, False, True], [False] * 3]
    atoms.set_constraint(FixedPlane([1], [1, 0, 0]))
    write(tmp_path / "a.traj", atoms)
    done = CliRunner().invoke(cli, [*args, "--overwrite"])
    assert "FixedPlane constraint was dropped" in done.output


def test_selective_dynamics_of_pymatgen_are_along_cell_vectors():
    atoms = mx2("MoS2", size=(2, 2, 1), vacuum=8)
    atoms.pbc = True
    structure = as_structure(atoms)
    flags = [[True, False, True]] + [[True, True, True]] * (len(atoms) - 1)
    structure.add_site_property("selective_dynamics", flags)
    assert held_directions(as_atoms(structure))[0].tolist() == (~np.array(flags)).tolist()
