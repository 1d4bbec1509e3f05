"""``relax --dft`` and ``inputs``: input sets of any code from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from click.testing import CliRunner

from ase_definet.cli import cli
from tests.conftest import mos2_with_defects
from tests.input_sets import NEW_CODES, pseudopotentials, species_defaults, told

RELAX = ("relax", "POSCAR", "--host", "MoS2")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with a structure and all that the codes need."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPRESSO_PSEUDO", str(pseudopotentials(tmp_path / "pseudo", "Mo", "S", "W", "Se", "O")))
    monkeypatch.setenv("AIMS_SPECIES_DIR", str(species_defaults(tmp_path / "light", "Mo", "S", "W", "Se", "O")))
    write("POSCAR", mos2_with_defects(), format="vasp")
    return tmp_path


def run(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


@pytest.mark.parametrize("code", NEW_CODES)
def test_prediction_and_control(code):
    result = run(*RELAX, "--dft", code, "run", "--from-unrelaxed", "--charge", "1", "--report", "r.json")
    assert result.exit_code == 0, result.output
    relaxed, given = read("POSCAR_relaxed"), read("POSCAR")
    predicted, control = told(code, Path("run")), told(code, Path("run_unrelaxed"))
    assert predicted.charge == control.charge == 1
    np.testing.assert_allclose(predicted.atoms.positions, relaxed.positions, atol=1e-6)
    assert np.abs(control.atoms.positions - relaxed.positions).max() > 0.01
    assert predicted.atoms.get_chemical_symbols() == given.get_chemical_symbols()
    assert "Geometry predicted by DefiNet" in Path("run/README.txt").read_text()
    assert "Control run" in Path("run_unrelaxed/README.txt").read_text()
    (record,) = json.loads(Path("r.json").read_text())
    assert {"README.txt"} < set(record[code]["files"])
    again = run(*RELAX, "-o", "other.vasp", "--dft", code, "run")
    assert again.exit_code == 2
    assert "exist" in again.output


def test_vasp_is_short_for_dft_vasp():
    assert run(*RELAX, "--vasp", "short").exit_code == 0
    assert run(*RELAX, "--overwrite", "--dft", "vasp", "long").exit_code == 0
    for name in ("POSCAR", "INCAR", "KPOINTS", "README.txt"):
        assert (Path("short") / name).read_text() == (Path("long") / name).read_text()


def test_several_files_get_a_subfolder_each():
    write("other.cif", mos2_with_defects())
    result = run("relax", "POSCAR", "other.cif", "--host", "MoS2", "--dft", "gpaw", "runs")
    assert result.exit_code == 0, result.output
    assert {path.parent.name for path in Path("runs").rglob("relax.py")} == {"POSCAR", "other"}


@pytest.mark.parametrize("code", ["vasp", *NEW_CODES])
def test_inputs_for_any_structure(code):
    result = run("inputs", "POSCAR", "--code", code, "-o", "set", "--charge", "-1", "--kpoints", "2x2x1")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("wrote     set: ")
    if code != "vasp":
        found = told(code, Path("set"))
        assert found.charge == -1
        assert found.grid == (2, 2, 1)
    again = run("inputs", "POSCAR", "--code", code, "-o", "set")
    assert again.exit_code == 2
    assert "exists" in again.output


def test_settings_and_library_reach_the_set(folder):
    library = pseudopotentials(folder / "mine", "Mo", "S", "W", "Se", "O")
    result = run(*RELAX, "--dft", "espresso", "run", "--library", library, "--set", "ecutwfc=33")
    assert result.exit_code == 0, result.output
    text = Path("run/espresso.pwi").read_text()
    assert "ecutwfc          = 33" in text
    assert library.as_posix() in text
    assert "override  ecutwfc = 33 (profile: 55)" in result.output


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((*RELAX, "--dft", "siesta", "run"), "'siesta' is not one of"),
        ((*RELAX, "--dft", "cp2k"), "requires 2 arguments"),
        ((*RELAX, "--dft", "cp2k", "run", "--vasp", "run"), "expected --vasp or --dft, found both"),
        ((*RELAX, "--set", "ecutwfc=60"), "--set is for an input set"),
        ((*RELAX, "--library", "pseudo"), "--library is for an input set"),
        ((*RELAX, "--dft", "cp2k", "run", "--incar", "NSW=3"), "--incar is for VASP"),
        ((*RELAX, "--vasp", "run", "--set", "NSW=3"), "--set is not for VASP: give --incar"),
        ((*RELAX, "--dft", "gpaw", "run", "--set", "mode"), "Expected a setting as KEY=VALUE"),
        ((*RELAX, "--dft", "gpaw", "run", "--set", "xc=PBE", "--set", "xc=LDA"), "xc is given twice"),
        ((*RELAX, "--from-unrelaxed"), "--vasp FOLDER or --dft CODE FOLDER"),
        (("inputs", "POSCAR", "-o", "set"), "Missing option '--code'"),
        (("inputs", "POSCAR", "--code", "gpaw", "-o", "set", "--spin", "0"), "0 is not in the range"),
        (("inputs", "POSCAR", "--code", "espresso", "-o", "set", "--library", "nowhere"), "Expected a folder"),
        (("inputs", "POSCAR", "--code", "cp2k", "-o", "set", "--set", "CUTOFF=3"), "by its whole path"),
    ],
)
def test_bad_usage_is_one_line_and_writes_nothing(args, error):
    before = sorted(Path().rglob("*"))
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert error in result.output
    assert len(result.output.splitlines()) == 1
    assert sorted(Path().rglob("*")) == before


def test_a_missing_pseudopotential_costs_no_other_file(monkeypatch):
    monkeypatch.setenv("ESPRESSO_PSEUDO", str(pseudopotentials(Path("only"), "Mo")))
    result = run(*RELAX, "--dft", "espresso", "run")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert "No PBE pseudopotential for" in line
    assert "materialscloud" in line
    assert not Path("POSCAR_relaxed").exists()
    assert not Path("run").exists()
