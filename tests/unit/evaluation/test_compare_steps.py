"""Counting ionic steps: real calculators of ASE, starts that converge, and ones that do not."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, make_supercell, mx2
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import write
from ase.optimize import BFGS
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.errors import CalculatorError
from ase_definet.evaluation.compare_steps import compare_steps, fit_scale, scaled
from ase_definet.relaxation.calculators import get_calculator
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.stepping import OPTIMIZERS, relax_with

FMAX = 0.02


@pytest.fixture(scope="module")
def copper():
    """Return gold in copper beside a vacancy, as EMT knows them."""
    atoms = make_supercell(bulk("Cu", "fcc", a=3.61), 3 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]))
    atoms.numbers[40] = 79
    del atoms[10]
    return atoms


@pytest.fixture(scope="module")
def result(copper):
    return DefiNetRelaxer(device="cpu", extrapolate=True).predict(copper, bulk("Cu", "fcc", a=3.61))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_are_evaluations_of_the_forces(copper, optimizer):
    calls = []

    class Counted(EMT):
        def calculate(self, *args, **kwargs):
            calls.append(1)
            super().calculate(*args, **kwargs)

    before = copper.positions.copy()
    run = relax_with(copper, Counted(), optimizer, FMAX)
    assert run.converged
    assert run.steps == len(calls) == len(run.energies)
    assert run.fmax[0] > FMAX > run.fmax[-1]
    assert run.energies[-1] < run.energies[0]
    assert np.array_equal(copper.positions, before)
    again = run.atoms.copy()
    again.calc = EMT()
    assert np.linalg.norm(again.get_forces(), axis=1).max() == pytest.approx(run.fmax[-1])
    assert relax_with(run.atoms, EMT(), optimizer, FMAX).steps == 1


def test_bfgs_takes_the_steps_it_takes_alone(copper):
    alone = copper.copy()
    alone.calc = EMT()
    optimizer = BFGS(alone, logfile=None)
    optimizer.run(fmax=FMAX)
    run = relax_with(copper, EMT(), "BFGS", FMAX)
    assert run.steps == optimizer.nsteps + 1
    assert np.abs(run.atoms.positions - alone.positions).max() < 1e-9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_too_few_steps_are_a_result(copper, optimizer):
    run = relax_with(copper, EMT(), optimizer, FMAX, max_steps=2)
    assert (run.steps, run.converged, run.error) == (2, False, "")


def test_a_failing_calculator_is_a_result(copper):
    calls = []

    class Failing(EMT):
        def calculate(self, *args, **kwargs):
            if calls:
                raise RuntimeError("SCF\n did not converge")
            calls.append(1)
            super().calculate(*args, **kwargs)

    run = relax_with(copper, Failing(), "BFGS", FMAX)
    assert not run.converged
    assert run.error == "SCF did not converge"
    assert run.steps == 1


def test_constrained_atoms_stay_and_do_not_count(copper):
    held = copper.copy()
    held.set_constraint(FixAtoms(indices=range(len(held))))
    run = relax_with(held, EMT(), "BFGS", FMAX)
    assert run.converged
    assert run.steps == 1


def test_unrelaxed_is_the_host(copper, result):
    perfect = make_supercell(bulk("Cu", "fcc", a=3.61), 3 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]))
    del perfect[10]
    difference = result.unrelaxed.positions - perfect.positions
    assert np.abs(difference - difference.mean(axis=0)).max() < 1e-6
    assert np.abs(result.displacement).max() > 1e-3
    assert result.unrelaxed.get_chemical_formula() == copper.get_chemical_formula()


def test_a_perfect_prediction_saves_all_but_one_step(result):
    sites = result.unrelaxed
    minimum = relax_with(sites, EMT(), "BFGS", FMAX).atoms
    perfect = replace(result, atoms=minimum, displacement=minimum.positions - sites.positions)
    comparison = compare_steps(perfect, EMT, "BFGS", FMAX)
    assert comparison.predicted.steps == 1
    assert comparison.unrelaxed.steps > 3
    assert comparison.saved == pytest.approx(1 - 1 / comparison.unrelaxed.steps)
    assert comparison.same_minimum
    assert comparison.distance < 1e-9
    assert comparison.prediction_error < 1e-9 < comparison.ideal_sites_error
    expected = np.abs(
        (sites.positions - minimum.positions) - (sites.positions - minimum.positions).mean(axis=0)
    ).mean()
    assert comparison.ideal_sites_error == pytest.approx(expected)


def test_a_calculator_instead_of_its_maker_is_refused(result):
    with pytest.raises(CalculatorError, match="lambda"):
        compare_steps(result, EMT())


def test_what_did_not_converge_saves_nothing(result):
    comparison = compare_steps(result, EMT, "BFGS", FMAX, max_steps=2)
    assert comparison.saved is None
    assert comparison.summary()["steps_saved"] is None


def test_another_minimum_is_noticed(result):
    sites = result.unrelaxed
    hopped = sites.copy()
    hopped.positions[0] += [1.2, 0.3, 0.0]
    moved = replace(result, atoms=hopped, displacement=hopped.positions - sites.positions)
    comparison = compare_steps(moved, Frozen, "BFGS", FMAX)
    assert not comparison.same_minimum
    assert comparison.distance > 1


class Frozen(Calculator):
    """No forces anywhere: every start is a minimum."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def test_the_lattice_constant_of_the_calculator_is_found(result):
    # EMT's copper has a = 3.590 Å (a scan with many points); the cell was built with 3.61
    a = np.linspace(3.57, 3.61, 9)
    energies = []
    for value in a:
        copper = bulk("Cu", "fcc", a=value)
        copper.calc = EMT()
        energies.append(copper.get_potential_energy())
    curvature, slope, _ = np.polyfit(a, energies, 2)
    assert fit_scale(result, EMT) == pytest.approx(-slope / (2 * curvature) / 3.61, abs=2e-4)


def test_both_starts_are_scaled(result):
    comparison = compare_steps(result, EMT, "BFGS", FMAX, scale=0.995)
    assert comparison.summary()["scale"] == 0.995
    for run in (comparison.unrelaxed, comparison.predicted):
        assert run.atoms.cell.lengths() == pytest.approx(result.atoms.cell.lengths() * 0.995)
    assert comparison.same_minimum


def test_only_the_layer_is_scaled_and_constraints_stay():
    atoms = mx2("MoS2", size=(3, 3, 1), vacuum=9)
    atoms.set_constraint(FixAtoms([0]))
    out = scaled(atoms, 1.01)
    assert out.cell.lengths() == pytest.approx(atoms.cell.lengths() * [1.01, 1.01, 1])
    assert out.positions[:, 2] == pytest.approx(atoms.positions[:, 2])
    assert out.get_scaled_positions() == pytest.approx(atoms.get_scaled_positions())
    assert out.constraints[0].index.tolist() == [0]
    assert len(atoms.constraints) == 1


@pytest.mark.parametrize(
    ("calculator", "reason"), [("broken", "could not be calculated"), ("Frozen", "not within 4%")]
)
def test_a_lattice_constant_that_cannot_be_fitted_says_so(result, calculator, reason):
    class Broken(EMT):
        def calculate(self, *args, **kwargs):
            del args, kwargs
            raise RuntimeError("no convergence")

    with pytest.raises(CalculatorError, match=reason):
        fit_scale(result, Frozen if calculator == "Frozen" else Broken)


def test_the_command_fits_and_takes_settings(tmp_path, copper):
    write(tmp_path / "c.vasp", copper)
    write(tmp_path / "host.vasp", bulk("Cu", "fcc", a=3.61))
    given = ["compare-steps", str(tmp_path / "c.vasp"), "--host", str(tmp_path / "host.vasp"), "--calculator", "emt"]
    out = CliRunner().invoke(
        cli, [*given, "--fit-lattice", "--set", "asap_cutoff=true", "--json", str(tmp_path / "o")]
    )
    assert out.exit_code == 0, out.output
    assert "lattice constant of emt is -0." in out.output
    written = json.loads((tmp_path / "o").read_text())
    assert written["settings"] == {"asap_cutoff": True}
    assert 0.98 < written["structures"][0]["scale"] < 1
    for wrong, advice in (("asap_cutoff", "--set: expected KEY=VALUE"), ("fmax=0.01", "it has asap_cutoff")):
        refused = CliRunner().invoke(cli, [*given, "--set", wrong])
        assert refused.exit_code == 2
        assert advice in refused.output


def test_refinement_steps_follow_the_prediction(copper, result):
    host = bulk("Cu", "fcc", a=3.61)
    options = {"calculator": EMT(), "refine": True, "max_steps": 4, "symmetry_breaking": 0}
    refined = DefiNetRelaxer(device="cpu", extrapolate=True, **options).predict(copper, host)
    steps = relax_with(result.atoms, EMT(), "BFGS", 0.05, 4)
    assert np.abs(refined.atoms.positions - steps.atoms.positions).max() < 1e-6
    assert np.abs(refined.displacement - (refined.atoms.positions - copper.positions)).max() < 1e-12
    assert refined.atoms.info["definet_calculation"].startswith(f"emt, {steps.steps} steps from the prediction")
    assert refined.method == refined.atoms.info["definet_method"] == "calculator"
    assert refined.atoms.calc is None
    assert np.array_equal(refined.site_displacement, result.site_displacement)


def test_a_refinement_that_fails_leaves_the_prediction(copper, result):
    class Failing(EMT):
        def calculate(self, *args, **kwargs):
            del args, kwargs
            raise RuntimeError("no convergence")

    relaxer = DefiNetRelaxer(device="cpu", extrapolate=True, calculator=Failing(), refine=True)
    refined = relaxer.predict(copper, bulk("Cu", "fcc", a=3.61))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        relaxer.relax(copper, bulk("Cu", "fcc", a=3.61))
    assert any("prediction alone: no convergence" in str(one.message) for one in said)
    assert np.abs(refined.atoms.positions - result.atoms.positions).max() < 1e-9
    assert any("prediction alone: no convergence" in text for text in refined.warnings)


def test_unknown_names():
    with pytest.raises(CalculatorError, match=r"emt, lj, chgnet, .*, gpaw, vasp"):
        get_calculator("vasp6")
    with pytest.raises(CalculatorError, match="BFGS, LBFGS, FIRE, CG"):
        relax_with(bulk("Cu"), EMT(), "SGD")


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "chgnet", None)
    monkeypatch.setitem(__import__("sys").modules, "chgnet.model.dynamics", None)
    with pytest.raises(CalculatorError, match=r"ase-definet\[chgnet\]"):
        get_calculator("chgnet")


def test_command(copper, tmp_path):
    write(tmp_path / "POSCAR", copper, format="vasp")
    write(tmp_path / "host.cif", bulk("Cu", "fcc", a=3.61))
    (tmp_path / "bad.vasp").write_text("nothing")
    command = [
        "compare-steps",
        str(tmp_path / "POSCAR"),
        str(tmp_path / "bad.vasp"),
        "--host",
        str(tmp_path / "host.cif"),
    ]
    command += ["--calculator", "emt", "--optimizer", "LBFGS", "--json", str(tmp_path / "out.json")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 1
    assert "1 of 2 structures could not be used" in done.output
    assert "v_Cu x1" in done.output
    report = json.loads((tmp_path / "out.json").read_text())
    good, bad = report["structures"]
    assert good["unrelaxed"]["steps"] > 1
    assert good["predicted"]["converged"]
    assert "bad.vasp" in bad["error"]
    again = CliRunner().invoke(cli, command)
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    command[command.index("emt")] = "castep"
    done = CliRunner().invoke(cli, [*command, "--overwrite"])
    assert done.exit_code == 2
    assert "emt, lj, chgnet" in done.output
