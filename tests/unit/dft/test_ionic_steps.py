"""Ionic steps read back from files: ASE's own example of an OUTCAR, trajectories, and files that are cut off."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import ase
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedLine, FixedPlane
from ase.io import read, write
from ase.optimize import BFGS
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.dft.ionic_steps import compare_settings, read_steps
from ase_definet.errors import StructureError
from ase_definet.structures.constraints import hold

EXAMPLE = Path(ase.__file__).parent / "test" / "testdata" / "vasp" / "OUTCAR_example_1"
OSZICAR = """\
       N       E                     dE             d eps       ncg     rms          rms(c)
DAV:   1     0.142013158467E+03    0.14201E+03   -0.10000E+03   100   0.1E+02
   1 F= -.10844083E+02 E0= -.10843983E+02  d E =-.20E-03  mag=     2.0000
DAV:   1    -0.108460713169E+02   -0.19883E-02   -0.1E-02   100   0.2E-01
   2 F= -.10846071E+02 E0= -.10845971E+02  d E =-.19E-02  mag=     2.0000
"""

needs_example = pytest.mark.skipif(not EXAMPLE.exists(), reason="this ASE came without its test data")


@pytest.fixture
def trajectories(tmp_path):
    """Relax gold in copper from a far and from a near start."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.numbers[0] = 79
    for name, shift in (("control.traj", 0.3), ("prediction.traj", 0.02)):
        start = atoms.copy()
        start.positions[5] += shift
        start.calc = EMT()
        BFGS(start, trajectory=str(tmp_path / name), logfile=None).run(fmax=0.05)
    return tmp_path / "control.traj", tmp_path / "prediction.traj"


def test_trajectories(trajectories):
    control, prediction = map(read_steps, trajectories)
    images = read(trajectories[0], ":")
    assert control.steps == len(images) > prediction.steps
    assert control.fmax == pytest.approx([np.linalg.norm(i.get_forces(), axis=1).max() for i in images])
    assert control.formula == "AuCu31"
    assert control.converged is None
    assert compare_settings(control, prediction) == []


@needs_example
def test_outcar(tmp_path):
    run = read_steps(EXAMPLE)
    images = read(EXAMPLE, ":", format="vasp-out")
    assert run.steps == len(images)
    assert run.energies == pytest.approx([i.get_potential_energy() for i in images])
    assert {"ENCUT", "EDIFFG", "IBRION", "ISPIN", "NKPTS"} <= set(run.settings)
    changed = tmp_path / "OUTCAR"
    text = EXAMPLE.read_text()
    encut = run.settings["ENCUT"]
    changed.write_text(text.replace(f"ENCUT  =  {encut}", "ENCUT  =  999.0"))
    other = read_steps(tmp_path)
    assert other.settings["ENCUT"] == "999.0"
    assert compare_settings(run, other) == [f"ENCUT differs: {encut} in {EXAMPLE}, 999.0 in {changed}"]


@needs_example
def test_a_file_cut_off_says_so_or_is_refused(tmp_path):
    text = EXAMPLE.read_text()
    (tmp_path / "OUTCAR").write_text(text[: text.index("General timing")])
    assert any("cut off" in note for note in read_steps(tmp_path).notes)
    (tmp_path / "OUTCAR").write_text(text[: text.index("POSITION")])
    with pytest.raises(StructureError, match=r"no complete ionic step|no ionic step"):
        read_steps(tmp_path)


def test_oszicar(tmp_path):
    (tmp_path / "OSZICAR").write_text(OSZICAR)
    run = read_steps(tmp_path)
    assert run.energies.tolist() == [-10.843983, -10.845971]  # E0, as the other readers have it
    assert run.notes == ("OSZICAR tells no forces",)
    (tmp_path / "OSZICAR").write_text("")
    with pytest.raises(StructureError, match="no complete ionic step"):
        read_steps(tmp_path)


def test_oszicar_of_other_shapes(tmp_path):
    lines = "   1 T=   300. E= -.1E+02 F= -.3E+02 E0= -.2E+02  EK= 0.1E+01 SP= 0.0E+00 SK= 0.0E+00\n"
    lines += "   2 F= -.30000000E+02 E0=-.25000000E+02  d E =-.20E-03\n   3 F= ************** E0= **************\n"
    (tmp_path / "OSZICAR").write_text(lines)
    assert read_steps(tmp_path).energies[:2].tolist() == [-20.0, -25.0]
    with gzip.open(tmp_path / "OSZICAR.gz", "wt") as stream:
        stream.write(lines)
    assert read_steps(tmp_path / "OSZICAR.gz").steps == 3


# forces on atoms that are held


def write_vasprun(path: Path, atoms: Atoms, forces: np.ndarray, held: np.ndarray | None) -> None:
    """Write as much of a vasprun.xml as readers need, one ionic step, its e_0_energy wrong as in some VASP."""

    def rows(values, name, kind=""):
        items = "".join(f"<v{kind}>{' '.join(map(str, row))}</v>" for row in values)
        return f'<varray name="{name}"{kind}>{items}</varray>'

    def structure(name=""):
        cell = rows(atoms.cell.array, "basis") + rows(atoms.cell.reciprocal(), "rec_basis")
        flags = ""
        if held is not None and name == "initialpos":
            flags = rows(np.where(held, "F", "T"), "selective", ' type="logical"')
        at = rows(atoms.get_scaled_positions(), "positions") + flags
        label = f' name="{name}"' if name else ""
        return f'<structure{label}><crystal>{cell}<i name="volume">{atoms.get_volume()}</i></crystal>{at}</structure>'

    def energy(free, zero):
        return f'<energy><i name="e_fr_energy">{free}</i><i name="e_0_energy">{zero}</i></energy>'

    symbols, types = list(atoms.symbols), list(dict.fromkeys(atoms.symbols))
    ions = "".join(f"<rc><c>{s}</c><c>{types.index(s) + 1}</c></rc>" for s in symbols)
    kinds = "".join(
        f"<rc><c>{symbols.count(s)}</c><c>{s}</c><c>1.0</c><c>4.0</c><c>PAW_PBE {s} 01Jan2000</c></rc>" for s in types
    )
    path.write_text(
        '<?xml version="1.0" encoding="ISO-8859-1"?><modeling>'
        '<generator><i name="program" type="string">vasp</i><i name="version" type="string">6.4.2</i></generator>'
        '<incar><i type="int" name="NSW">5</i></incar>'
        '<kpoints><generation param="Gamma"><v type="int" name="divisions">1 1 1</v></generation>'
        f"{rows(np.zeros((1, 3)), 'kpointlist')}<varray name='weights'><v>1.0</v></varray></kpoints>"
        '<parameters><separator name="general"><i type="int" name="NSW">5</i><i type="int" name="NELM">60</i>'
        '<i type="int" name="IBRION">2</i><i name="EDIFFG">-0.01</i></separator></parameters>'
        f"<atominfo><atoms>{len(symbols)}</atoms><types>{len(types)}</types>"
        f'<array name="atoms"><set>{ions}</set></array><array name="atomtypes"><set>{kinds}</set></array></atominfo>'
        f"{structure('initialpos')}<calculation><scstep>{energy(-9.5, -9.25)}</scstep>{structure()}"
        f"{rows(forces, 'forces')}{energy(-10.0, -10.0)}</calculation>{structure('finalpos')}</modeling>"
    )


HEXAGONAL = [[5.0, 0, 0], [-2.5, 2.5 * 3**0.5, 0], [0, 0, 12.0]]
FORCES = np.array([[9.0, 0, 0], [0, 3.0, 4.0], [0.5, 0, 0]])
HELD = {
    "nothing": (np.zeros((3, 3), dtype=bool), 9.0),
    "one atom": (np.array([[True] * 3, [False] * 3, [False] * 3]), 5.0),
    "one direction": (np.array([[True] * 3, [False, False, True], [False] * 3]), 3.0),
    "a line": (np.array([[True] * 3, [True, True, False], [False] * 3]), 4.0),
    "all": (np.ones((3, 3), dtype=bool), 0.0),
}


def three(cell) -> Atoms:
    return Atoms("BN2", scaled_positions=[[0, 0, 0.2], [0.3, 0.6, 0.2], [0.6, 0.3, 0.2]], cell=cell, pbc=True)


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize("cell", [np.diag([5.0, 6.0, 12.0]), HEXAGONAL])
def test_atoms_that_are_held_do_not_count(tmp_path, kind, cell):
    held, fmax = HELD[kind]
    atoms = three(cell)
    write_vasprun(tmp_path / "vasprun.xml", atoms, FORCES, held if kind != "nothing" else None)
    run = read_steps(tmp_path)
    assert run.fmax == pytest.approx([fmax], abs=1e-6)
    assert run.energies == pytest.approx([-9.75])  # e_fr_energy, and what the last electronic step adds
    with gzip.open(tmp_path / "vasprun.xml.gz", "wb") as stream:
        stream.write((tmp_path / "vasprun.xml").read_bytes())
    assert read_steps(tmp_path / "vasprun.xml.gz").fmax == pytest.approx([fmax], abs=1e-6)
    hold(atoms, held)
    atoms.calc = SinglePointCalculator(atoms, energy=-9.75, forces=FORCES)
    for name in ("run@1.traj", "run.extxyz"):
        if name.endswith("traj") or kind in {"nothing", "one atom", "all"}:  # all that extended XYZ can hold
            write(tmp_path / name, [atoms, atoms])
            assert read_steps(tmp_path / name).fmax == pytest.approx([fmax] * 2, abs=1e-6)


def test_a_plane_across_the_cell_counts_in_trajectories_too(tmp_path):
    atoms = three(HEXAGONAL)
    atoms.set_constraint([FixedPlane([0], [1, 0, 0]), FixedLine([1], [0, 1, 0])])
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=FORCES)
    write(tmp_path / "a.traj", atoms)
    assert read_steps(tmp_path / "a.traj").fmax == pytest.approx([3.0])


@needs_example
def test_an_outcar_takes_what_is_held_from_beside_it(tmp_path):
    images = read(EXAMPLE, ":", format="vasp-out")
    forces = [image.get_forces(apply_constraint=False) for image in images]
    outcar = tmp_path / "OUTCAR"
    outcar.write_text(EXAMPLE.read_text())
    alone = read_steps(outcar)
    assert alone.fmax == pytest.approx([np.linalg.norm(f, axis=1).max() for f in forces])
    assert any("held fixed, if any, count" in note for note in alone.notes)
    worst = int(np.linalg.norm(forces[0], axis=1).argmax())
    fixed = images[0].copy()
    fixed.set_constraint(FixAtoms([worst]))
    write(tmp_path / "POSCAR", fixed, format="vasp")
    (tmp_path / "CONTCAR").touch()  # as VASP leaves it before the first step
    run = read_steps(tmp_path)
    assert run.fmax == pytest.approx([np.linalg.norm(np.delete(f, worst, 0), axis=1).max() for f in forces])
    assert not any("held fixed" in note for note in run.notes)
    (tmp_path / "CONTCAR").write_text("half a fi")  # and while it writes one
    assert read_steps(tmp_path).fmax == pytest.approx(run.fmax)
    write(tmp_path / "CONTCAR", fixed[1:], format="vasp")
    other = read_steps(tmp_path)
    assert any("CONTCAR holds other atoms" in note for note in other.notes)
    assert other.fmax == pytest.approx(alone.fmax)


def test_compositions_are_compared(tmp_path, trajectories):
    other = bulk("Cu", cubic=True)
    other.positions[0] += 0.1
    other.calc = EMT()
    BFGS(other, trajectory=str(tmp_path / "other.traj"), logfile=None).run(fmax=0.05)
    (problem,) = compare_settings(read_steps(trajectories[0]), read_steps(tmp_path / "other.traj"))
    assert "AuCu31" in problem
    assert "Cu4" in problem


def test_nothing_there(tmp_path):
    with pytest.raises(StructureError, match="found none of them"):
        read_steps(tmp_path)
    with pytest.raises(StructureError, match="no such file"):
        read_steps(tmp_path / "OUTCAR")
    (tmp_path / "vasprun.xml").write_text("<modeling>")
    with pytest.raises(StructureError, match=r"vasprun\.xml"):
        read_steps(tmp_path)


def count(*args):
    done = CliRunner().invoke(cli, ["count-steps", *map(str, args)])
    return done.exit_code, done.output


def test_a_control_is_named_and_compared_with(trajectories):
    control, prediction = trajectories
    code, output = count("--control", control, prediction)
    assert code == 0
    assert f"{control} (control)" in output
    assert output.count("saved") == 1
    assert "AuCu31" in output
    assert count(prediction, "--control", control)[1] == output
    assert count("--control", control, control, prediction)[1] == output  # a wildcard takes it along
    code, output = count("--control", prediction, control)
    assert "more ionic steps than the control" in output


def test_without_a_control_runs_are_listed(trajectories):
    code, output = count(*trajectories)
    assert code == 0
    assert "control)" not in output
    assert "saved" not in output
    code, output = count(trajectories[0], "--json")
    (run,) = json.loads(output)["runs"]
    assert (run["role"], run["saved"], run["steps"]) == ("run", None, read_steps(trajectories[0]).steps)
    assert count()[0] == 2


@pytest.mark.parametrize("kind", ["missing", "unreadable", "an empty folder"])
def test_a_missing_control_is_an_error_and_nothing_takes_its_place(trajectories, tmp_path, kind):
    control = tmp_path / "control"
    if kind == "unreadable":
        control.write_text("nothing that ASE reads")
    elif kind == "an empty folder":
        control.mkdir()
    code, output = count("--control", control, *trajectories)
    assert code == 1
    assert f"Error: control {control}" in output
    assert "nothing was compared" in output
    assert "(control)" not in output
    assert "saved" not in output
    assert all(f"{path}\n  steps" in output for path in trajectories)
    report = json.loads(CliRunner().invoke(cli, ["count-steps", "--control", str(control), "--json"]).stdout)
    assert report["runs"] == []
    assert str(control) in report["errors"][0]


def test_a_run_that_cannot_be_read_does_not_cost_the_others(trajectories, tmp_path):
    control, prediction = map(str, trajectories)
    args = ["count-steps", "--control", control, str(tmp_path / "none"), prediction, "--json"]
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert [run["role"] for run in report["runs"]] == ["control", "run"]
    assert report["runs"][0]["steps"] == read_steps(trajectories[0]).steps
    assert report["runs"][1]["saved"] > 0
    assert "no such file" in report["errors"][0]
