"""Structures that no method can use are refused at every door, in the same words; what is left out is said once."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from ase.cli.main import main
from ase.io import read, write
from click.testing import CliRunner, Result
from pymatgen.io.vasp.inputs import Incar

from ase_definet.cli import cli
from tests.conftest import mos2_with_defects, pristine

PARTIAL = "partial occupancies: site 11 'S8' (S with occupancy {}); delete the sites that are vacant"
RELAX = ("--host", "MoS2", "--device", "cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    atoms = mos2_with_defects(4)
    write("whole.vasp", atoms, format="vasp")
    atoms.set_array("relaxed_positions", atoms.positions)
    write("pair.extxyz", atoms)
    return tmp_path


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def partial(name: str, occupancy: str, n: int = 4) -> Path:
    """Write a CIF, as ASE does, with one S of the given occupancy; of mixed ones, Se takes the rest."""
    write(name, pristine("MoS2", n), format="cif")
    share = occupancy.removesuffix(" mixed")
    lines = Path(name).read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if line.split()[:2] == ["S", "S8"])
    lines[at] = lines[at].replace("1.0000", share)
    if share != occupancy:
        lines.insert(at + 1, lines[at].replace("S   S8 ", "Se  Se1").replace(share, f"{1 - float(share):g}"))
    Path(name).write_text("\n".join([*lines, ""]))
    return Path(name)


@pytest.mark.parametrize("occupancy", ["0", "0.5", "0.5 mixed"])
@pytest.mark.parametrize(
    "command",
    [
        ("relax", "x.cif", *RELAX),
        ("relax", "x.cif", "--host", "auto", "--device", "cpu"),
        ("relax", "whole.vasp", "--host", "x.cif", "--device", "cpu"),
        ("match", "x.cif", "--host", "MoS2"),
        ("match", "whole.vasp", "--host", "x.cif"),
        ("vasp", "x.cif", "-o", "run"),
        ("plot", "x.cif", "whole.vasp", "-o", "x.png"),
        ("plot", "whole.vasp", "whole.vasp", "-o", "x.png", "--host", "x.cif"),
        ("enumerate", "--host", "x.cif", "--supercell", "2x2", "--defects", "v_S", "-o", "out"),
        ("screen", "whole.vasp", "--host", "x.cif", "-o", "out"),
        ("data", "pack", "pair.extxyz", "out.pack", "--host", "x.cif"),
    ],
    ids=" ".join,
)
def test_partial_occupancies_are_refused_at_every_door(command, occupancy):
    partial("x.cif", occupancy)
    before = set(Path().iterdir())
    result = run(*command)
    assert result.exit_code in {1, 2}
    expected = PARTIAL.format(occupancy.removesuffix(" mixed"))
    if "mixed" in occupancy:
        expected = expected.replace(");", "), 12 'Se1' (Se with occupancy 0.5);")
    assert expected in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1
    assert {path for path in set(Path().iterdir()) - before if path.name != "out" or any(path.iterdir())} == set()


@pytest.mark.parametrize("many", [False, True])
def test_a_screen_goes_on_past_partial_occupancies(many):
    Path("in").mkdir()
    partial("in/a.cif", "0.5")
    write("in/b.vasp", mos2_with_defects(4), format="vasp")
    if many:
        Path("in/a.cif").write_text(
            Path("in/a.cif").read_text() + Path("in/a.cif").read_text().replace("0.5\n", "1\n")
        )
    result = run("screen", "in", *RELAX, "-o", "out")
    assert result.exit_code == 0, result.output
    with Path("out/failures.csv").open(newline="") as stream:
        failed = list(csv.DictReader(stream))
    assert len(failed) == 1
    assert PARTIAL.format("0.5") in failed[0]["reason"]
    assert len(list(csv.DictReader(Path("out/table.csv").read_text().splitlines()))) == (2 if many else 1)


def test_a_pack_leaves_out_partial_occupancies():
    Path("pairs").mkdir()
    atoms = mos2_with_defects(4)
    for key in ("a", "b", "c"):
        for stage in ("unrelaxed", "relaxed"):
            write(f"pairs/{key}_{stage}.cif", atoms, format="cif")
    text = Path("pairs/b_unrelaxed.cif").read_text()
    Path("pairs/b_unrelaxed.cif").write_text(text.replace("1.0000", "0.5000", 1))
    result = run("data", "pack", "pairs", "packed", "--host", "MoS2", "--workers", 1)
    assert "partial occupancies: site 0 'Mo1' (Mo with occupancy 0.5)" in result.output + "".join(
        path.read_text(errors="replace") for path in Path().glob("packed*") if path.is_file()
    )


@pytest.mark.parametrize(
    "command", [("relax", "CONTCAR", *RELAX), ("match", "CONTCAR", "--host", "MoS2")], ids=" ".join
)
def test_velocities_are_said_once(command):
    atoms = mos2_with_defects(4)
    write("CONTCAR", atoms, format="vasp")
    with Path("CONTCAR").open("a") as stream:
        stream.write("\n" + "  0.1E-02  0.0E+00  0.0E+00\n" * len(atoms))
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert result.output.count("left out, as a relaxation starts at rest: velocities") == 1


@pytest.mark.parametrize("name", ["poscar", "v_S", "POSCAR_v_S", "CONTCAR.relax", "x.poscar", "CONFIG_1.vasp"])
def test_results_are_written_beside_inputs_of_any_name(name):
    Path(name).write_bytes(Path("whole.vasp").read_bytes())
    result = run("relax", name, *RELAX, "-o", "out.vasp", "--vasp", "run")
    assert result.exit_code == 0, result.output
    result = run("relax", name, *RELAX)
    assert result.exit_code == 0, result.output
    written = Path(f"{Path(name).stem}_relaxed{Path(name).suffix}")
    np.testing.assert_allclose(
        read(written, format="vasp").positions, read("out.vasp", format="vasp").positions, atol=1e-6
    )


def test_moments_of_a_file_reach_the_input_set():
    atoms = mos2_with_defects(4)
    moments = np.where(atoms.numbers == 42, 0.25, 0.0)
    atoms.set_initial_magnetic_moments(moments)
    write("x.extxyz", atoms)
    Path("x.extxyz").write_text(Path("x.extxyz").read_text().replace("initial_magmoms", "magmoms"))
    result = run("relax", "x.extxyz", *RELAX, "--vasp", "run")
    assert result.exit_code == 0, result.output
    assert "0.25" in next(line for line in Path("run/INCAR").read_text().splitlines() if "MAGMOM" in line)
    np.testing.assert_allclose(read("x_relaxed.extxyz").get_initial_magnetic_moments(), moments)


@pytest.fixture
def open_layer() -> str:
    """A layer without a vector across its vacuum, as ase.build makes them."""
    atoms = mos2_with_defects(4)
    atoms.set_cell([*atoms.cell[:2], [0, 0, 0]])
    atoms.pbc = (True, True, False)
    write("open.extxyz", atoms)
    return "open.extxyz"


@pytest.mark.parametrize(
    "output", [("-o", "out.vasp"), ("-o", "out.cif"), ("-o", "out.extxyz", "--vasp", "run")], ids=" ".join
)
def test_what_needs_a_vector_across_the_vacuum_says_how_to_add_it(open_layer, output):
    result = run("relax", open_layer, *RELAX, *output)
    assert result.exit_code == 1
    assert "three independent cell vectors, the structure has none for c" in result.output
    assert "non-parallel" not in result.output
    advice = re.search(r'ase convert -e "(.*)" FILE NEW.extxyz', result.output)
    assert advice is not None
    assert not Path(output[1]).exists()
    assert not Path("run").exists()
    main(args=["convert", "-e", advice[1], open_layer, "new.extxyz"])
    result = run("relax", "new.extxyz", *RELAX, *output)
    assert result.exit_code == 0, result.output
    assert "vacuum along" not in result.output


@pytest.mark.parametrize("charge", [-1, 0, 2])
def test_a_charge_given_to_relax_reaches_every_structure_and_input_set(charge):
    atoms = mos2_with_defects(4)
    write("bare.extxyz", atoms)
    atoms.info["charge"] = 1
    write("stated.extxyz", atoms)
    atoms.info.clear()
    atoms.set_initial_charges(np.where(atoms.numbers == 16, -2.0, 4.0))
    write("formal.extxyz", atoms)
    names = ["bare", "stated", "formal"]
    files = [f"{name}.extxyz" for name in names]
    result = run(
        *("relax", *files, *RELAX, "--charge", charge, "--output-dir", "out", "--vasp", "run", "--from-unrelaxed"),
        *("--report", "report.json"),
    )
    assert result.exit_code == 0, result.output
    assert "taken from the sum" not in result.output
    for record in json.loads(Path("report.json").read_text()):
        assert ("charge" in record["outside"]) == (charge != 0)
        assert charge == 0 or any(f"net charge {charge:+d}" in text for text in record["warnings"])
    incars = sorted(Path().glob("run*/**/INCAR"))
    assert len(incars) == 2 * len(names)
    neutral = run("vasp", "bare.extxyz", "-o", "one", "--charge", 1)
    assert neutral.exit_code == 0
    electrons = Incar.from_file("one/INCAR")["NELECT"] + 1
    for incar in incars:
        assert Incar.from_file(incar).get("NELECT", electrons) == electrons - charge
    assert read(next(Path("out").glob("bare*"))).info["charge"] == charge


@pytest.mark.parametrize("charge", ["1.5", "+", "neutral", "1e0"])
def test_a_charge_that_is_no_whole_number_is_bad_usage(charge):
    result = run("relax", "whole.vasp", *RELAX, "--charge", charge)
    assert result.exit_code == 2
    assert "is no charge: expected a whole number in e" in result.output
