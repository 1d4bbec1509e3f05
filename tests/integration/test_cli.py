"""The command line as a user meets it: good input, bad input, bad usage."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.io import read, write
from ase.io.formats import filetype
from click.testing import CliRunner, Result
from pymatgen.io.vasp.inputs import Kpoints
from safetensors.torch import save_file

from ase_definet.cli import cli
from ase_definet.cli.common import error_text
from ase_definet.model.config import DefiNetConfig
from ase_definet.model.definet import DefiNet
from tests.conftest import mos2_with_defects, pristine

MOVED = 0.01
"""Something moves at least this far next to a vacancy, in Å."""
ROUNDED = 1e-4
"""Positions survive any of the formats to this precision, in Å."""
INPUT_SET = {"POSCAR", "INCAR", "KPOINTS", "POTCAR.spec", "README.txt"}
RELAX = ("--host", "MoS2", "--device", "cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Work in an empty folder with a POSCAR in it."""
    monkeypatch.chdir(tmp_path)
    write("POSCAR", mos2_with_defects(), format="vasp")
    return tmp_path


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def ok(*args: object) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.output


def refused(code: int, *args: object) -> str:
    """Return the error of a command that fails in one line and leaves the folder as it was."""
    before = contents()
    result = run(*args)
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    lines = result.output.splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("Error: ")
    assert contents() == before
    return lines[0]


def contents() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}


def strict_json(text: str) -> object:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# relax: good input


@pytest.mark.parametrize(
    ("name", "fmt", "expected"),
    [
        ("CONTCAR", "vasp", "CONTCAR_relaxed"),
        ("a b.vasp", "vasp", "a b_relaxed.vasp"),
        ("a.cif", "cif", "a_relaxed.cif"),
        ("a.xyz", "extxyz", "a_relaxed.xyz"),
        ("a.json", "json", "a_relaxed.json"),
        ("a.traj", "traj", "a_relaxed.traj"),
        ("POSCAR.gz", "vasp", "POSCAR_relaxed"),
        ("sub/a.cif.gz", "cif", "sub/a_relaxed.cif"),
    ],
)
def test_default_output_is_beside_the_input_in_its_format(name, fmt, expected):
    atoms = mos2_with_defects()
    Path(name).parent.mkdir(exist_ok=True)
    write(name, atoms, format=fmt)
    output = ok("relax", name, *RELAX)
    assert f"wrote     {expected}" in output
    assert filetype(expected) == fmt
    relaxed = read(expected)
    assert np.array_equal(relaxed.numbers, atoms.numbers)
    assert np.abs(relaxed.cell.array - atoms.cell.array).max() < ROUNDED
    assert np.linalg.norm(relaxed.positions - atoms.positions, axis=1).max() > MOVED
    assert not list(Path().rglob(".*"))


def test_relax_says_what_it_found():
    output = ok("relax", "POSCAR", *RELAX)
    assert "MoS2, supercell 8x8x1 (192 sites), strain +0.00 %" in output
    assert "v_S x2, W_Mo x1" in output
    assert "moved     at most 0." in output
    assert "warning" not in output
    assert "model" not in output
    assert "model     default" in ok("relax", "POSCAR", *RELAX, "-v", "--overwrite")
    assert ok("relax", "POSCAR", *RELAX, "-q", "--overwrite") == ""


@pytest.mark.parametrize("host", ["auto", "host.cif", "mos2"])
def test_hosts_by_any_name(host):
    write("host.cif", pristine("MoS2", 1))
    ok("relax", "POSCAR", *RELAX, "-o", "expected.vasp")
    assert "v_S x2, W_Mo x1" in ok("relax", "POSCAR", "--host", host, "--device", "cpu")
    delta = read("POSCAR_relaxed").positions - read("expected.vasp").positions
    assert np.abs(delta).max() < 10 * ROUNDED


def test_output_in_another_format_keeps_provenance():
    atoms = mos2_with_defects()
    atoms.info["name"] = "probe"
    write("a.extxyz", atoms)
    ok("relax", "a.extxyz", *RELAX, "-o", "new/folder/b.xyz")
    info = read("new/folder/b.xyz").info
    assert info["name"] == "probe"
    assert info["definet_host"] == "MoS2"
    assert info["definet_defects"] == "v_S x2, W_Mo x1"
    assert info["definet_model"].startswith("default")
    ok("relax", "a.extxyz", *RELAX, "-o", "c.cif.gz")
    assert gzip.decompress(Path("c.cif.gz").read_bytes()).startswith(b"data_")
    assert np.abs(read("c.cif.gz").positions - read("new/folder/b.xyz").positions).max() < ROUNDED


def test_selective_dynamics_survive():
    atoms = mos2_with_defects()
    atoms.set_constraint(FixAtoms(indices=[0, 1, 2]))
    write("sd.vasp", atoms, direct=True)
    ok("relax", "sd.vasp", *RELAX)
    relaxed = read("sd_relaxed.vasp")
    assert relaxed.constraints[0].index.tolist() == [0, 1, 2]
    moved = np.linalg.norm(relaxed.positions - atoms.positions, axis=1)
    assert moved[:3].max() < ROUNDED
    assert moved.max() > MOVED


def test_initial_positions_given_predicts_from_what_is_given():
    atoms = mos2_with_defects()
    atoms.rattle(0.05, seed=1)
    write("a.vasp", atoms)
    ok("relax", "a.vasp", *RELAX, "-o", "ideal.vasp")
    ok("relax", "a.vasp", *RELAX, "-o", "given.vasp", "--initial-positions", "given")
    assert np.abs(read("ideal.vasp").positions - read("given.vasp").positions).max() > MOVED


def test_of_several_structures_the_last_is_taken_and_it_says_so():
    write("many.extxyz", [pristine("MoS2", 5), mos2_with_defects(6)])
    notice = "warning   the file holds several structures: only the last one was used"
    assert notice in ok("relax", "many.extxyz", *RELAX)
    assert len(read("many_relaxed.extxyz", index=":")) == 1
    assert len(read("many_relaxed.extxyz")) == len(mos2_with_defects(6))
    assert notice in ok("match", "many.extxyz", "--host", "MoS2")
    assert notice in ok("vasp", "many.extxyz", "-o", "run")
    assert "several" not in ok("match", "many_relaxed.extxyz", "--host", "MoS2")


def test_doubts_are_warnings_and_errors_if_strict():
    atoms = mos2_with_defects()
    atoms.info["charge"] = -1
    write("a.extxyz", atoms)
    assert "net charge -1" in refused(1, "relax", "a.extxyz", *RELAX, "--strict")
    assert "warning   net charge -1" in ok("relax", "a.extxyz", *RELAX)


# relax: several files, report, input sets


def test_one_bad_file_does_not_cost_the_others():
    for name, n in (("one/x.vasp", 5), ("two/x.vasp", 6)):
        Path(name).parent.mkdir()
        write(name, mos2_with_defects(n))
    Path("bad.vasp").touch()
    result = run("relax", "one/x.vasp", "bad.vasp", "missing.vasp", "two/x.vasp", *RELAX, "--report", "out/r.json")
    assert result.exit_code == 1
    assert "Error: bad.vasp: the file is empty" in result.output
    assert "Error: missing.vasp: no such file" in result.output
    assert "2 of 4 structures relaxed, 2 failed" in result.output
    assert len(read("one/x_relaxed.vasp")) == len(mos2_with_defects(5))
    assert len(read("two/x_relaxed.vasp")) == len(mos2_with_defects(6))
    report = strict_json(Path("out/r.json").read_text())
    assert [record["file"] for record in report] == ["one/x.vasp", "bad.vasp", "missing.vasp", "two/x.vasp"]
    assert ["error" in record for record in report] == [False, True, True, False]
    first = report[0]
    assert first["output"] == "one/x_relaxed.vasp"
    assert {d["name"] for d in first["defects"]} == {"v_S", "W_Mo"}
    moved = np.linalg.norm(read("one/x_relaxed.vasp").positions - read("one/x.vasp").positions, axis=1)
    assert abs(moved.max() - first["largest_displacement"]) < ROUNDED
    assert moved.argmax() == first["largest_displacement_atom"]


def test_output_dir_and_input_sets_of_several_files():
    write("a.cif", mos2_with_defects(5))
    output = ok("relax", "POSCAR", "a.cif", *RELAX, "--output-dir", "new/out", "--vasp", "runs", "-q")
    assert output == ""
    assert {p.name for p in Path("new/out").iterdir()} == {"POSCAR_relaxed", "a_relaxed.cif"}
    for name in ("POSCAR", "a"):
        assert {p.name for p in Path("runs", name).iterdir()} >= INPUT_SET


def test_input_set_holds_the_relaxed_structure_and_its_provenance():
    atoms = mos2_with_defects()
    atoms = atoms[np.argsort(atoms.numbers, kind="stable")]
    write("a.vasp", atoms)
    assert "wrote     run: POSCAR, INCAR" in ok("relax", "a.vasp", *RELAX, "--vasp", "run", "--profile", "paper")
    assert np.abs(read("run/POSCAR").positions - read("a_relaxed.vasp").positions).max() < ROUNDED
    readme = Path("run/README.txt").read_text()
    assert "paper" in readme
    assert "v_S x2, W_Mo x1" in readme


def test_the_control_run_starts_from_the_sites_and_has_the_same_settings():
    atoms = mos2_with_defects()
    atoms = atoms[np.argsort(atoms.numbers, kind="stable")]
    guessed = atoms.copy()
    guessed.rattle(0.05, seed=3)
    write("a.vasp", guessed)
    options = ("--incar", "NSW=40", "--magnetic-start", "none", "--kpoints", "2x2x1")
    output = ok("relax", "a.vasp", *RELAX, "--vasp", "run", "--from-unrelaxed", *options)
    assert "override  NSW = 40 (profile: 30)" in output
    assert "run_unrelaxed" in output
    for name in ("INCAR", "KPOINTS", "POTCAR.spec"):
        assert Path("run", name).read_text() == Path("run_unrelaxed", name).read_text()
    assert "NSW = 40" in Path("run/INCAR").read_text()
    assert "ISPIN = 1" in Path("run/INCAR").read_text()
    assert Kpoints.from_file("run/KPOINTS").kpts == [(2, 2, 1)]
    moved = read("run_unrelaxed/POSCAR").positions - atoms.positions
    assert np.abs(moved - moved.mean(axis=0)).max() < ROUNDED
    assert np.abs(read("run/POSCAR").positions - atoms.positions).max() > MOVED
    assert "Control run" in Path("run_unrelaxed/README.txt").read_text()
    assert "Control run" not in Path("run/README.txt").read_text()
    Path("run3_unrelaxed").mkdir()
    Path("run3_unrelaxed/INCAR").touch()
    assert "run3_unrelaxed/INCAR exists" in refused(
        2, "relax", "a.vasp", *RELAX, "-o", "c.vasp", "--vasp", "run3", "--from-unrelaxed"
    )


def test_structure_and_input_set_both_or_neither():
    atoms = mos2_with_defects()
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    write("left.vasp", atoms)
    assert "right-handed" in refused(1, "relax", "left.vasp", *RELAX, "--vasp", "run")
    ok("relax", "left.vasp", *RELAX)


def test_format_that_cannot_hold_the_structure():
    atoms = mos2_with_defects()
    atoms.cell[2] = 0
    atoms.pbc = (True, True, False)
    write("open.extxyz", atoms)
    said = refused(1, "relax", "open.extxyz", *RELAX, "-o", "out.cif")
    assert "cif needs three independent cell vectors, the structure has none for c" in said
    ok("relax", "open.extxyz", *RELAX)


# relax: bad input


def write_nan(path):
    atoms = mos2_with_defects()
    atoms.positions[3] = np.nan
    write(path, atoms, format="extxyz")


def write_overlap(path):
    atoms = mos2_with_defects()
    atoms.positions[3] = atoms.positions[4] + 0.1
    write(path, atoms, format="extxyz")


def write_truncated(path):
    path.write_text("".join(Path("POSCAR").read_text().splitlines(keepends=True)[:50]))


def write_adatom(path):
    atoms = mos2_with_defects()
    above = atoms.positions.mean(axis=0) + np.array([0, 0, 5])
    write(path, atoms + Atoms("S", positions=[above]), format="extxyz")


def write_on_top(path):
    atoms = pristine("MoS2", 6)
    write(path, atoms + Atoms("Li", [atoms.positions[7] + np.array([0, 0, 0.3])]), format="extxyz")


BAD = {
    "empty.vasp": (Path.touch, "empty"),
    "cut.vasp": (write_truncated, "cannot be read"),
    "wrong.cif": (lambda path: path.write_text("hello\n"), "cannot be read"),
    "binary.dat": (lambda path: path.write_bytes(bytes(range(256))), "cannot be read"),
    "code.py": (lambda path: path.write_text("print()\n"), "cannot be read"),
    "nan.extxyz": (write_nan, "atom 3 (S) has a position that is not a number"),
    "overlap.extxyz": (write_overlap, "atoms 3 (S) and 4 (S) overlap"),
    "nocell.xyz": (lambda path: write(path, mos2_with_defects(), format="xyz"), "expected a periodic cell"),
    "bn.vasp": (lambda path: write(path, pristine("BN", 5)), "MoS2"),
    "molecule.extxyz": (lambda path: write(path, molecule("H2O", vacuum=8)), "found a wire or a molecule"),
    "on_top.extxyz": (write_on_top, "atoms 7 (S) and 108 (Li) overlap (0.300 Å apart)"),
    "adatom.extxyz": (write_adatom, "sits on no free site"),
    "missing.vasp": (lambda path: None, "no such file"),  # noqa: ARG005
}


@pytest.mark.parametrize(
    ("name", "command"), [(n, c) for n in BAD for c in ("relax", "match") if (n, c) != ("adatom.extxyz", "match")]
)
def test_bad_input_is_one_line_that_names_the_file(name, command):
    make, reason = BAD[name]
    make(Path(name))
    error = refused(1, command, name, "--host", "MoS2")
    assert error.startswith(f"Error: {name}: ")
    assert reason in error


@pytest.mark.parametrize("name", ["empty.vasp", "cut.vasp", "nan.extxyz", "nocell.xyz", "missing.vasp"])
def test_bad_input_to_vasp(name):
    BAD[name][0](Path(name))
    assert refused(1, "vasp", name, "-o", "run").startswith(f"Error: {name}: ")


def test_host_that_is_not_commensurate():
    assert "not commensurate" in refused(1, "relax", "POSCAR", "--host", "P", "--device", "cpu")


# bad usage


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--verison"], "--verison"),
        (["rlax"], "see ase-definet --help"),
        (["relax"], "FILE"),
        (["relax", "POSCAR"], "--host"),
        (["relax", "POSCAR", "--host", "MoS3"], "did you mean 'MoS2'?"),
        (["match", "POSCAR", "--host", "MoS3"], "did you mean 'MoS2'?"),
        (["match", "POSCAR", "--host", "POSCAR2"], "must be a structure file"),
        (["relax", "POSCAR", *RELAX, "--model", "defalt"], "did you mean 'default'?"),
        (["relax", "POSCAR", *RELAX, "--model", "POSCAR"], "not a safetensors file"),
        (["relax", "POSCAR", "--host", "MoS2", "--device", "quantum"], "unknown device"),
        (["relax", "POSCAR", *RELAX, "--profile", "fast"], "few-steps"),
        (["relax", "POSCAR", "b", *RELAX, "-o", "c.vasp"], "--output-dir"),
        (["relax", "POSCAR", *RELAX, "-o", "c.vasp", "--output-dir", "d"], "found both"),
        (["relax", "POSCAR", *RELAX, "--from-unrelaxed"], "--vasp FOLDER"),
        (["relax", "POSCAR", *RELAX, "--kpoints", "2x2x1"], "--vasp FOLDER"),
        (["relax", "POSCAR", *RELAX, "--vasp", "r", "--kpoints", "2x2"], "2x2x1"),
        (["relax", "POSCAR", *RELAX, "--vasp", "r", "--incar", "NSW"], "NSW=60"),
        (["vasp", "POSCAR", "-o", "r", "--kpoints", "dense"], "spacing such as 0.25"),
        (["relax", "POSCAR", *RELAX, "-o", "c.nonsense"], "c.nonsense: ASE knows no format"),
        (["relax", "POSCAR", *RELAX, "-o", "c.gz"], "c.gz: ASE knows no format"),
        (["relax", "POSCAR", *RELAX, "-o", "POSCAR/c.vasp"], "is a file, expected a folder"),
        (["relax", "POSCAR", *RELAX, "--output-dir", "POSCAR/d"], "is a file, expected a folder"),
        (["relax", "POSCAR", *RELAX, "--vasp", "POSCAR/d"], "is a file, expected a folder"),
        (["relax", "POSCAR", *RELAX, "--report", "POSCAR/r.json"], "is a file, expected a folder"),
        (["relax", "POSCAR", *RELAX, "-o", "POSCAR", "--overwrite"], "would replace the input"),
        (["relax", "POSCAR", *RELAX, "--vasp", ".", "--overwrite"], "would replace the input"),
        (["relax", "POSCAR", *RELAX, "--report", "POSCAR", "--overwrite"], "would replace the input"),
        (["relax", "POSCAR", *RELAX, "-o", "run/POSCAR", "--vasp", "run"], "would both be run/POSCAR"),
        (["relax", "POSCAR", "d/POSCAR", *RELAX, "--output-dir", "e"], "would both be e/POSCAR_relaxed"),
        (["relax", "POSCAR", "d/POSCAR", *RELAX, "--vasp", "e"], "would both be e/POSCAR/POSCAR"),
        (["relax", "POSCAR", "POSCAR_relaxed", *RELAX], "would replace the input POSCAR_relaxed"),
        (["vasp", "POSCAR"], "--output"),
        (["vasp", "POSCAR", "-o", "POSCAR"], "is a file"),
        (["vasp", "POSCAR", "-o", "POSCAR/run"], "is a file, expected a folder"),
        (["vasp", "POSCAR", "-o", "run", "--incar", "NSW"], "TAG=value"),
        (["weights", "import", "POSCAR", "POSCAR/w.safetensors"], "is a file, expected a folder"),
    ],
)
def test_bad_usage_is_one_line(args, reason):
    assert reason in refused(2, *args)


def test_nothing_is_replaced_unasked():
    ok("relax", "POSCAR", *RELAX, "--vasp", "run", "--report", "r.json", "-q")
    assert "POSCAR_relaxed and 6 more exist: pass --overwrite" in refused(
        2, "relax", "POSCAR", *RELAX, "--vasp", "run", "--report", "r.json"
    )
    assert "run/POSCAR and 4 more exist" in refused(2, "relax", "POSCAR", *RELAX, "-o", "new.vasp", "--vasp", "run")
    assert "r.json exists" in refused(2, "relax", "POSCAR", *RELAX, "-o", "new.vasp", "--report", "r.json")
    assert "overwrite" in refused(2, "vasp", "POSCAR", "-o", "run")
    Path("POSCAR_relaxed").write_text("old")
    ok("relax", "POSCAR", *RELAX, "--vasp", "run", "--report", "r.json", "--overwrite")
    assert len(read("POSCAR_relaxed")) == len(read("POSCAR"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission():
    Path("closed").mkdir(mode=0o500)
    assert "no permission" in refused(2, "relax", "POSCAR", *RELAX, "-o", "closed/a.vasp")


# match


def test_match_lists_the_defects():
    output = ok("match", "POSCAR", "--host", "MoS2")
    assert "v_S x2, W_Mo x1" in output
    assert "margin" in output
    assert sum(line.startswith("  v_S ") for line in output.splitlines()) == 2
    assert "-0.000" not in output


def test_match_json():
    atoms = pristine("MoS2", 6)
    vacancy, antisite, tungsten = 1, 30, 60
    assert atoms.symbols[[vacancy, antisite, tungsten]].get_chemical_formula() == "Mo2S"
    at = atoms.positions[[vacancy, antisite, tungsten]].copy()
    atoms.symbols[antisite] = "S"
    atoms.symbols[tungsten] = "W"
    del atoms[vacancy]
    write("a.vasp", atoms)
    found = strict_json(ok("match", "a.vasp", "--host", "MoS2", "--json"))
    assert {"host", "supercell", "strain", "shift", "margin", "warnings", "defects"} <= set(found)
    assert found["host"] == "MoS2"
    assert abs(np.linalg.det(found["supercell"])) == pytest.approx(36)
    defects = {defect["name"]: defect for defect in found["defects"]}
    assert set(defects) == {"v_S", "S_Mo", "W_Mo"}
    expected = [
        ("v_S", "vacancy", "S", None),
        ("S_Mo", "substitution", "Mo", "S"),
        ("W_Mo", "substitution", "Mo", "W"),
    ]
    for (name, kind, host_element, element), position in zip(expected, at, strict=True):
        defect = defects[name]
        assert (defect["kind"], defect["host_element"], defect["element"]) == (kind, host_element, element)
        index = defect["atom_index"]
        assert (index is None) == (element is None)
        delta = np.linalg.solve(atoms.cell.array.T, np.array(defect["position"]) - position)
        assert np.linalg.norm(atoms.cell.array.T @ (delta - np.round(delta))) < 0.05
        assert index is None or np.abs(atoms.positions[index] - position).max() < ROUNDED


def with_extra_atoms():
    """MoS2 with Li above an S and As in the middle of a hexagon; return it and their indices."""
    atoms = pristine("MoS2", 6)
    metal = atoms.positions[atoms.symbols == "Mo"]
    top = atoms.positions[np.argmax(atoms.positions[:, 2])]
    arm = atoms.get_distance(0, 1, mic=True, vector=True)
    hexagon = metal[14] + np.array([-2 * arm[0], -2 * arm[1], 0.0])
    return atoms + Atoms("LiAs", [top + np.array([0, 0, 2.0]), hexagon])


def test_match_names_atoms_on_no_site():
    atoms = with_extra_atoms()
    write("a.extxyz", atoms)
    output = ok("match", "a.extxyz", "--host", "MoS2")
    assert "defects   Li_ads x1, As_i x1" in output
    lines = {line.split()[0]: line for line in output.splitlines() if line.startswith("  ")}
    assert "atom   108" in lines["Li_ads"]
    assert "adatom, 2.00 Å above the layer, 2.00 Å from site" in lines["Li_ads"]
    assert "interstitial, " in lines["As_i"]
    found = strict_json(ok("match", "a.extxyz", "--host", "MoS2", "--json"))
    assert found["defects"] == []
    lithium, arsenic = found["extra"]
    assert {k: lithium[k] for k in ("name", "kind", "element", "atom_index", "side")} == {
        "name": "Li_ads",
        "kind": "adatom",
        "element": "Li",
        "atom_index": 108,
        "side": "above",
    }
    assert lithium["height"] == pytest.approx(2.0, abs=1e-3)
    assert np.abs(atoms.positions[108] - lithium["position"]).max() < ROUNDED
    assert (arsenic["name"], arsenic["kind"], arsenic["height"]) == ("As_i", "interstitial", None)
    error = refused(1, "relax", "a.extxyz", "--host", "MoS2")
    for part in ("atom 108 (Li) at (", "and 1 more sits on no free site of host MoS2", "Li_ads (adatom)"):
        assert part in error


@pytest.mark.parametrize("n", [1, 2])
def test_match_json_of_a_pristine_cell(n):
    write("a.vasp", pristine("MoS2", n))
    assert strict_json(ok("match", "a.vasp", "--host", "MoS2", "--json"))["defects"] == []


# vasp, hosts, weights


def test_vasp_writes_an_input_set():
    output = ok("vasp", "POSCAR", "-o", "new/run", "--profile", "robust", "--incar", "NSW=7", "--incar", "lreal=Auto")
    assert "wrote     new/run: POSCAR, INCAR" in output
    assert "override  NSW = 7" in output
    incar = Path("new/run/INCAR").read_text()
    assert "NSW = 7" in incar
    assert "LREAL = Auto" in incar
    assert sorted(read("new/run/POSCAR").numbers) == sorted(read("POSCAR").numbers)
    assert "warning   INCAR: Cannot find NSV" in ok("vasp", "POSCAR", "-o", "typo", "--incar", "NSV=7")


def test_vasp_takes_the_charge_from_the_file_or_the_option():
    atoms = mos2_with_defects()
    atoms.info["charge"] = -1
    write("a.extxyz", atoms)
    electrons = {}
    for name, options in {"file": [], "option": ["--charge", "2"], "neutral": ["--charge", "0"]}.items():
        ok("vasp", "a.extxyz", "-o", name, *options)
        tags = dict(line.split(" = ", 1) for line in Path(name, "INCAR").read_text().splitlines() if " = " in line)
        electrons[name] = tags.get("NELECT")
    assert electrons["neutral"] is None
    assert float(electrons["file"]) - float(electrons["option"]) == 3


def test_lists_and_help():
    assert "phosphorene" in ok("hosts")
    models = ok("weights", "list")
    assert "networks  one each for BN (what it was trained on); BN, BN-bulk; GaSe, InSe" in models
    assert models.startswith("default ")
    assert "sha256" in models
    assert ok("--version").startswith("ase-definet, version ")
    for command in ("relax", "match", "vasp", "hosts", "weights", "compare-steps", "count-steps"):
        assert command in ok()
        assert ok(command, "-h").startswith(f"Usage: ase-definet {command}")


def test_weights_of_the_authors_code_can_be_used():
    config = DefiNetConfig(features=16, layers=2, n_radial=8, n_elements=100)
    torch.save(DefiNet(config).state_dict(), "best.pt")
    assert "wrote new/w.safetensors: definet" in ok("weights", "import", "best.pt", "new/w.safetensors")
    assert "exists" in refused(2, "weights", "import", "best.pt", "new/w.safetensors")
    ok("weights", "import", "best.pt", "new/w.safetensors", "--overwrite")
    output = ok("relax", "POSCAR", *RELAX, "--model", "new/w.safetensors")
    assert "warning   model w" in output
    assert len(read("POSCAR_relaxed")) == len(read("POSCAR"))


@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(1000), b"PK\x03\x04 half a zip"])
def test_files_that_are_no_weights(content):
    Path("w.pt").write_bytes(content)
    assert "w.pt" in refused(1, "weights", "import", "w.pt", "out.safetensors")
    assert "w.pt" in refused(2, "relax", "POSCAR", *RELAX, "--model", "w.pt")


def test_weights_of_another_program():
    save_file({"weight": torch.zeros(3)}, "other.safetensors")
    assert "another program" in refused(2, "relax", "POSCAR", *RELAX, "--model", "other.safetensors")


def test_truncated_weights():
    torch.save(DefiNet(DefiNetConfig(features=16, layers=2, n_radial=8)).state_dict(), "best.pt")
    ok("weights", "import", "best.pt", "w.safetensors")
    whole = Path("w.safetensors").read_bytes()
    Path("w.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused(2, "relax", "POSCAR", *RELAX, "--model", "w.safetensors")


# the process


def process(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from ase_definet.cli import main; sys.argv[0] = 'ase-definet'; main()"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, "-c", code, *args], text=True, check=False, **options)


def test_library_warnings_do_not_litter_the_terminal():
    write("a.cif", mos2_with_defects())
    done = process("relax", "a.cif", *RELAX, "--vasp", "run", env=os.environ | {"PYTHONWARNINGS": "always"})
    assert done.returncode == 0
    assert done.stderr == ""
    assert "wrote     a_relaxed.cif" in done.stdout


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["match", "missing", "--host", "MoS2", "--json"], 1),
        (["relax", "missing", *RELAX], 1),
        (["match", "POSCAR", "--host", "MoS3"], 2),
        (["match", "POSCAR"], 2),
    ],
)
def test_errors_go_to_standard_error(args, code):
    done = process(*args)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_progress_bar_leaves_redirected_output_alone():
    pty = pytest.importorskip("pty")
    write("a.vasp", mos2_with_defects(5))
    leader, follower = pty.openpty()
    try:
        done = process("relax", "POSCAR", "a.vasp", *RELAX, stderr=follower)
        shown = os.read(leader, 100_000).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert done.returncode == 0
    assert "relaxing" in shown
    assert "wrote     a_relaxed.vasp" in done.stdout
    assert "wrote" not in shown


def test_a_bug_is_one_line_too():
    try:
        np.linalg.inv(np.zeros((3, 3)))
    except np.linalg.LinAlgError as error:
        text = error_text(error, Path("a.cif"))
    assert text.startswith("a.cif: unexpected LinAlgError in ")
    assert "please report it" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_leave_busy_cores_to_others_unless_told_otherwise(given, wanted):
    shown = "import os, sys; sys.argv[1:] = ['--version']\nfrom ase_definet.cli import main\n"
    shown += "try: main()\nfinally: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if k not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}} | given
    done = subprocess.run([sys.executable, "-c", shown], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{wanted} False", done.stdout  # and before torch is there to read it
