"""What DFT codes leave behind, read back: steps, largest forces on free atoms, convergence, the last structure."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path

import ase
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read, write
from ase.optimize import BFGS
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.dft import cp2k, espresso
from ase_definet.dft.codes import write_inputs
from ase_definet.dft.collect import collect
from ase_definet.dft.ionic_steps import compare_settings, read_steps
from ase_definet.dft.run_output import IonicSteps
from ase_definet.errors import DefiNetError, StructureError

OUTPUTS = Path(__file__).parents[2] / "outputs"
MAIN = {"espresso": "espresso.pwo", "cp2k": "cp2k.out"}
AIMS = Path(ase.__file__).parent / "test" / "testdata" / "aims" / "relax.out"
VASP = AIMS.parents[1] / "vasp" / "OUTCAR_example_1"


@pytest.fixture
def runs(tmp_path):
    """Copy the outputs to where they may be spoilt."""
    for code in MAIN:
        shutil.copytree(OUTPUTS / code, tmp_path / code)
    return tmp_path


def run(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def test_espresso(runs):
    found = read_steps(runs / "espresso")
    assert (found.code, found.steps, found.converged, found.formula) == ("espresso", 4, True, "BN")
    # forces in Ry/bohr as printed; atom 2 (B) moves along z only
    text = (runs / "espresso" / "espresso.pwo").read_text()
    printed = re.findall(r"atom\s+(\d) type\s+\d\s+force =\s+(\S+)\s+(\S+)\s+(\S+)", text)
    forces = np.array([row[1:] for row in printed], dtype=float).reshape(-1, 2, 3)
    forces[:, 1, :2] = 0.0
    expected = np.linalg.norm(forces, axis=2).max(axis=1) * 25.71104
    np.testing.assert_allclose(found.fmax, expected, rtol=1e-4, atol=1e-4)
    assert found.fmax[-1] < 0.01
    assert found.notes == ()
    assert found.settings["ecutwfc"] == "25"


def test_cp2k(runs):
    found = read_steps(runs / "cp2k")
    assert (found.code, found.steps, found.converged, found.formula) == ("cp2k", 7, True, "BN2")
    text = (runs / "cp2k" / "cp2k.out").read_text()
    # CP2K's own count, from step 0 on; it evaluates the energy once more at the end
    assert found.steps == len(re.findall(r"Informations at step =", text))
    assert len(re.findall(r"ENERGY\|", text)) == found.steps + 1
    largest = [float(value) for value in re.findall(r"Max\. gradient\s+=\s+(\S+)", text)]
    unit = 51.42206
    # a component at most, so no more than the length and no less than it over the root of 3
    assert (found.fmax[1:] >= np.array(largest) * unit - 1e-3).all()
    assert (found.fmax[1:] <= np.array(largest) * unit * 3**0.5 + 1e-3).all()
    np.testing.assert_allclose(found.atoms.positions[2], [-1.3, -0.2, 5.0], atol=1e-8)
    assert found.notes == ()


def test_energy_of_cp2k_minimum_evaluated_once_more(runs):
    """With several k-points the two energies of the minimum differ by more than rounding."""
    before = read_steps(runs / "cp2k").atoms
    path = runs / "cp2k" / "relax-pos-1.xyz"
    head, comment, rest = path.read_text().rpartition("E = ")
    path.write_text(f"{head}{comment}{float(rest.split()[0]) + 1e-5:.10f}{rest[rest.index(chr(10)) :]}")
    after = read_steps(runs / "cp2k")
    assert after.notes == ()
    np.testing.assert_allclose(after.atoms.positions, before.positions)


def test_the_newer_way_in_which_cp2k_prints_forces(runs):
    path = runs / "cp2k" / "cp2k.out"
    before = read_steps(path)
    text = path.read_text().replace("ATOMIC FORCES in [a.u.]", "FORCES| Atomic forces [hartree/bohr]")
    text = re.sub(r"^ # Atom   Kind   Element .*$", " FORCES|   Atom Kind  x y z |f|", text, flags=re.MULTILINE)
    row = re.compile(r"^ +(\d+) +(\d+) +([A-Z][a-z]?) +(-?\d+\.\d{8}) +(-?\d+\.\d{8}) +(-?\d+\.\d{8})$", re.MULTILINE)
    text = row.sub(r" FORCES|      \1 \3    \4E+00  \5E+00  \6E+00  1.0E+00", text)
    text = text.replace("SUM OF ATOMIC FORCES", "FORCES| Sum         ").replace("energy [a.u.]", "energy [hartree]")
    path.write_text(text)
    after = read_steps(path)
    np.testing.assert_allclose(after.fmax, before.fmax)
    np.testing.assert_allclose(after.energies, before.energies)


@pytest.mark.skipif(not AIMS.exists(), reason="this ASE came without its test data")
def test_aims(tmp_path):
    """ASE's own example; its atoms are all held, as its output says, and here they are not."""
    shutil.copy(AIMS, tmp_path / "aims.out")
    found = read_steps(tmp_path)
    assert (found.code, found.steps, found.converged) == ("aims", 8, True)
    assert not found.fmax.any()
    write_inputs(_silicon(), tmp_path / "set", "aims")
    for name in ("geometry.in", "control.in"):
        shutil.copy(tmp_path / "set" / name, tmp_path / name)
    free = read_steps(tmp_path)
    images = _quiet(AIMS)
    expected = [np.linalg.norm(image.calc.results["forces"], axis=1).max() for image in images]
    np.testing.assert_allclose(free.fmax, expected)
    assert free.settings["xc"] == "pbe"
    assert free.atoms.constraints == []
    cut = AIMS.read_text()[: -len(AIMS.read_text()) // 3]
    (tmp_path / "aims.out").write_text(cut)
    short = read_steps(tmp_path)
    assert 0 < short.steps < found.steps
    assert short.converged is None
    assert any("cut off" in note for note in short.notes)


def _quiet(path: Path) -> list[Atoms]:
    """Read an output of FHI-aims without ASE's plans for its own reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return read(path, ":", format="aims-output")


def _silicon() -> Atoms:
    """Return the structure from which ASE's example starts."""
    cell = [[0, 2.903, 2.903], [2.903, 0, 2.903], [2.903, 2.903, 0]]
    return Atoms("Si2", scaled_positions=[[0, 0, 0], [0.25, 0.25, 0.25]], cell=cell, pbc=True)


def test_outputs_by_other_names(runs):
    for code, name in MAIN.items():
        renamed = (runs / code / name).rename(runs / code / "slurm-1234.log")
        assert read_steps(renamed).code == code


@pytest.mark.parametrize("code", MAIN)
def test_atoms_that_are_held_never_count(code, runs):
    """With every atom held there is no force; with none, all of them count."""
    held = read_steps(runs / code)
    start = held.atoms.copy()
    forces = held.atoms.calc.results["forces"]
    start.set_constraint()
    everything = float(np.linalg.norm(forces, axis=1).max())
    assert held.fmax[-1] <= everything
    path = runs / code / ("espresso.pwi" if code == "espresso" else "cp2k.inp")
    text = path.read_text()
    if code == "espresso":
        path.write_text(text.replace("0 0 1", "1 1 1"))
    else:
        path.write_text(re.sub(r"&FIXED_ATOMS.*?&END FIXED_ATOMS", "", text, flags=re.DOTALL))
    assert read_steps(runs / code).fmax[-1] == pytest.approx(everything)


@pytest.mark.parametrize("code", MAIN)
@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.995])
def test_cut_off_outputs(code, share, runs):
    """Whole steps count and nobody calls them converged, or it is one clear line."""
    path = runs / code / MAIN[code]
    whole = read_steps(path)
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    try:
        found = read_steps(path)
    except StructureError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert share < 0.5
        return
    assert 0 < found.steps <= whole.steps
    np.testing.assert_allclose(found.fmax, whole.fmax[: found.steps])
    np.testing.assert_allclose(found.energies, whole.energies[: found.steps])
    assert found.converged in (None, True)
    assert found.converged is None or found.steps == whole.steps
    ended = {"espresso": "JOB DONE.", "cp2k": "PROGRAM ENDED AT"}[code] in path.read_text()
    assert ended or any("cut off" in note for note in found.notes)


@pytest.mark.parametrize("code", MAIN)
def test_electronic_runs_that_failed_are_said(code, runs):
    path = runs / code / MAIN[code]
    said = {"espresso": "convergence NOT achieved after 200 iterations", "cp2k": "*** SCF run NOT converged ***"}[
        code
    ]
    path.write_text(path.read_text().replace("Program PWSCF", f"Program PWSCF\n {said}") + f"\n {said}\n")
    assert any("electronic runs did not converge" in note for note in read_steps(path).notes)


@pytest.mark.parametrize("code", MAIN)
def test_outputs_of_another_structure(code, runs):
    """Another composition, another order and another cell beside an output are each one line."""
    path = runs / code / ("espresso.pwi" if code == "espresso" else "cp2k.inp")
    text = path.read_text()
    if code == "espresso":
        changes = [
            text.replace("\nN 1.255", "\nB 1.255"),
            text.replace("\nN 1.255", "\nX 1.255").replace("\nB 0.0", "\nN 0.0").replace("\nX 1.255", "\nB 1.255"),
            text.replace("8.00000000000000", "9.00000000000000"),
        ]
        errors = ["holds BN, but espresso.pwi beside it B2", "in another order", "its cell is another"]
    else:
        changes = [re.sub(r"\n( +)N 1\.3", r"\n\1B 1.3", text), re.sub(r"\n +N 1\.3.*", "", text)]
        errors = ["holds BN2, but cp2k.inp beside it B2N", "holds BN2, but cp2k.inp beside it BN"]
    for changed, error in zip(changes, errors, strict=True):
        assert changed != text
        path.write_text(changed)
        with pytest.raises(StructureError, match=re.escape(error)) as caught:
            read_steps(runs / code)
        assert "\n" not in str(caught.value)


def test_folders_without_or_with_two_runs(runs):
    with pytest.raises(StructureError, match=r"expected one of vasprun\.xml"):
        read_steps(runs)
    shutil.copy(runs / "espresso" / "espresso.pwo", runs / "cp2k")
    with pytest.raises(StructureError, match=r"outputs of several codes \(espresso.pwo, cp2k.out\)"):
        read_steps(runs / "cp2k")


def test_forces_that_cp2k_did_not_print(runs):
    path = runs / "cp2k" / "cp2k.out"
    path.write_text(
        re.sub(r" ATOMIC FORCES in.*?SUM OF ATOMIC FORCES[^\n]*\n", "", path.read_text(), flags=re.DOTALL)
    )
    with pytest.raises(StructureError, match="switch on FORCE_EVAL/PRINT/FORCES"):
        read_steps(path)


def test_what_lacks_beside_an_output_is_said(runs):
    (runs / "espresso" / "espresso.pwi").unlink()
    found = read_steps(runs / "espresso")
    assert any("no input (*.pwi) beside it" in note for note in found.notes)
    assert found.settings == {}
    (runs / "cp2k" / "relax-pos-1.xyz").unlink()
    found = read_steps(runs / "cp2k")
    assert found.atoms is None
    with pytest.raises(StructureError, match=r"relax-pos-1.xyz lacks the structure of the last step"):
        collect(runs / "cp2k")


@pytest.mark.parametrize("code", MAIN)
def test_settings_that_differ_are_named(code, runs):
    shutil.copytree(runs / code, runs / "control")
    one, other = read_steps(runs / "control"), read_steps(runs / code)
    assert compare_settings(one, other) == []
    path = runs / "control" / ("espresso.pwi" if code == "espresso" else "cp2k.inp")
    if code == "espresso":
        path.write_text(path.read_text().replace("nosym            = .true.", "tot_charge       = 1.0"))
        expected = ["nosym differs: unset", "tot_charge differs: 1.0"]
    else:
        path.write_text(path.read_text().replace("CUTOFF 120", "CUTOFF 130").replace("CHARGE -1", ""))
        expected = ["FORCE_EVAL/DFT/MGRID/CUTOFF differs: 130", "FORCE_EVAL/DFT/CHARGE differs: unset"]
    problems = compare_settings(read_steps(runs / "control"), other)
    assert len(problems) == 2
    for text in expected:
        assert any(problem.startswith(text) for problem in problems)


def test_runs_of_two_codes_are_not_compared(runs):
    problems = compare_settings(read_steps(runs / "cp2k"), read_steps(runs / "espresso"))
    assert len(problems) == 1
    assert problems[0].startswith("other code: cp2k")


def test_collect_writes_the_last_structure(runs):
    result = run("collect", runs / "cp2k")
    assert result.exit_code == 0, result.output
    assert "steps     7, converged, BN2" in result.output
    assert "warning" not in result.output
    found = read(runs / "cp2k" / "relaxed.extxyz")
    assert found.get_chemical_symbols() == ["N", "B", "N"]
    frames = (runs / "cp2k" / "relax-pos-1.xyz").read_text().splitlines()
    last = np.array([line.split()[1:] for line in frames[-3:]], dtype=float)
    np.testing.assert_allclose(found.positions, last, atol=1e-7)
    assert found.info["dft_converged"]
    assert found.info["dft_steps"] == 7
    assert found.get_potential_energy() == pytest.approx(read_steps(runs / "cp2k").energies[-1], abs=1e-5)
    again = run("collect", runs / "cp2k")
    assert again.exit_code == 2
    assert "exists" in again.output
    assert run("collect", runs / "cp2k", "-o", runs / "a.vasp").exit_code == 0
    assert read(runs / "a.vasp").get_chemical_symbols() == ["N", "B", "N"]


def test_collect_beside_a_control(runs):
    shutil.copytree(runs / "espresso", runs / "control")
    result = run("collect", runs / "espresso", "--control", runs / "control")
    assert result.exit_code == 0, result.output
    assert "saved 0% of the ionic steps" in result.output
    result = run("collect", runs / "espresso", "--overwrite", "--control", runs / "cp2k")
    assert "warning   other code" in result.output


def test_collect_says_what_is_not_converged(runs):
    path = runs / "espresso" / "espresso.pwo"
    text = path.read_text().replace("bfgs converged in", "The maximum number of steps has been reached.\n")
    path.write_text(text)
    result = run("collect", runs / "espresso")
    assert result.exit_code == 0
    assert "not converged: the structure is that of the last step, not of a minimum" in result.output
    assert not read(runs / "espresso" / "relaxed.extxyz").info["dft_converged"]


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("nowhere",), "nowhere: no such file"),
        (("espresso", "-o", "a.pwi"), "needs pseudopotentials"),
        (("espresso", "--control", "nowhere"), "nowhere: no such file"),
    ],
)
def test_collect_fails_in_one_line(args, error, runs, monkeypatch):
    monkeypatch.chdir(runs)
    result = run("collect", *args)
    assert result.exit_code != 0
    assert error in result.output
    assert len(result.output.splitlines()) == 1
    assert not (runs / "espresso" / "relaxed.extxyz").exists()


@pytest.mark.skipif(not VASP.exists(), reason="this ASE came without its test data")
def test_collect_restores_the_order_of_vasp(tmp_path):
    """Sites that were sorted for POSCAR come back as they were, forces too."""
    source = read(VASP, -1, format="vasp-out")
    order = np.random.default_rng(1).permutation(len(source))
    atoms = source[np.argsort(order)]  # such that POSCAR lists atom order[k] as site k
    shutil.copy(VASP, tmp_path / "OUTCAR")
    write(tmp_path / "POSCAR", source, format="vasp")
    (tmp_path / "site_order.json").write_text(json.dumps({"poscar_to_input": order.tolist()}))
    steps, found = collect(tmp_path)
    assert steps.code == "vasp"
    assert found.get_chemical_symbols() == atoms.get_chemical_symbols()
    np.testing.assert_allclose(found.positions, atoms.positions, atol=1e-9)
    np.testing.assert_allclose(
        found.calc.results["forces"][order], source.get_forces(apply_constraint=False), atol=1e-9
    )
    write(tmp_path / "POSCAR", source[:-1], format="vasp")
    with pytest.raises(DefiNetError, match="not of one run"):
        collect(tmp_path)


def test_collect_a_trajectory(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.positions[0] += 0.2
    atoms.set_constraint(FixAtoms([1]))
    atoms.calc = EMT()
    with BFGS(atoms, trajectory=str(tmp_path / "a.traj"), logfile=None) as optimizer:
        optimizer.run(fmax=0.01)
    steps, found = collect(tmp_path / "a.traj")
    assert steps.converged is None
    np.testing.assert_allclose(found.positions, atoms.positions)


def test_count_steps_tells_all_codes(runs):
    result = run("count-steps", "--json", runs / "cp2k", runs / "espresso")
    records = json.loads(result.output)["runs"]
    assert [record["code"] for record in records] == ["cp2k", "espresso"]
    assert [record["steps"] for record in records] == [7, 4]
    assert all(record["saved"] is None for record in records)  # the first is no control
    result = run("count-steps", runs / "espresso", "--control", runs / "espresso")
    assert "(control)" in result.output


def test_readers_say_the_same_of_the_inputs_beside_them():
    """What held_axes says of the inputs is what was asked for when these runs were made."""
    (_, atoms) = cp2k.read_input(OUTPUTS / "cp2k" / "cp2k.inp")[1]
    assert [type(constraint).__name__ for constraint in atoms.constraints] == ["FixCartesian", "FixAtoms"]
    steps = espresso.read_steps(OUTPUTS / "espresso" / "espresso.pwo")
    assert isinstance(steps, IonicSteps)
    np.testing.assert_array_equal(steps.atoms.constraints[0].index, [1])
