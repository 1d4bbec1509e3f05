"""An expected error is given where something supports it, and nowhere else."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from click.testing import CliRunner

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.card import ModelCard
from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint
from ase_definet.cli import cli
from ase_definet.matching.host import Host
from ase_definet.matching.library import get_host
from ase_definet.relaxation.domain import Domain
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.screening.html_report import write_report
from tests.conftest import mos2_with_defects, pristine
from tests.integration.test_report import BROWSER, QUIET, embedded

MOST = 0.2
"""No estimate for what the weights know is larger, in Å."""


def substituted(element: int, site: int, host: str = "MoS2", n: int = 6) -> Atoms:
    """Return a host with one atom of its first element of this number replaced."""
    atoms = pristine(host, n)
    atoms.numbers[np.flatnonzero(atoms.numbers == site)[7]] = element
    return atoms


def vacancy(site: int, host: str = "MoS2", n: int = 6) -> Atoms:
    atoms = pristine(host, n)
    del atoms[np.flatnonzero(atoms.numbers == site)[7]]
    return atoms


def charged() -> Atoms:
    atoms = vacancy(16)
    atoms.info["charge"] = -1
    return atoms


def strained() -> Atoms:
    atoms = vacancy(16)
    atoms.set_cell(atoms.cell.array * [[1.02], [1.02], [1]], scale_atoms=True)
    return atoms


def dense() -> Atoms:
    atoms = pristine("MoS2", 6)
    del atoms[np.flatnonzero(atoms.numbers == 16)[::3].tolist()]
    return atoms


def magnesia() -> Atoms:
    atoms = bulk("MgO", "rocksalt", a=4.25, cubic=True).repeat(2)
    del atoms[1]
    return atoms


def pressed() -> Atoms:
    unit = flat()
    return Atoms(unit.numbers, unit.positions, cell=unit.cell, pbc=(True, True, False)).repeat((6, 6, 1))[1:]


def flat() -> Host:
    """Return MoS2 with its sulfur 0.2 Å nearer to the metal than in the training data."""
    unit = pristine("MoS2", 1)
    middle = unit.positions[unit.numbers == 42, 2].mean()
    unit.positions[:, 2] = middle + (unit.positions[:, 2] - middle) * 0.87
    return get_host(unit, "MoS2 pressed flat")


OUTSIDE = {
    "Re_Mo": (lambda: substituted(75, 42), "MoS2", {"species", "defects"}),
    "O_S": (lambda: substituted(8, 16), "MoS2", {"species", "defects"}),
    "antisite S_Mo": (lambda: substituted(16, 42), "MoS2", {"defects"}),
    "antisite Mo_S": (lambda: substituted(42, 16), "MoS2", {"defects"}),
    "vanadium": (lambda: substituted(23, 42), "MoS2", {"species", "defects"}),
    "MgO v_O": (magnesia, bulk("MgO", "rocksalt", a=4.25), {"species", "host"}),
    "strained": (strained, "MoS2", {"strain"}),
    "dense": (dense, "MoS2", {"density"}),
    "sites": (pressed, flat(), {"sites"}),
}
NEAR = {
    "antisite N_B": (lambda: substituted(7, 5, "BN"), "BN", {"density", "defects"}),
    "charged": (charged, "MoS2", {"charge"}),
}
INSIDE = {
    "v_S": (lambda: vacancy(16), "MoS2"),
    "v_Mo": (lambda: vacancy(42), "MoS2"),
    "W_Mo": (lambda: substituted(74, 42), "MoS2"),
    "several": (lambda: mos2_with_defects(6), "MoS2"),
    "isolated": (lambda: vacancy(16, n=14), "MoS2"),
    "v_Se": (lambda: vacancy(34, "WSe2"), "WSe2"),
    "v_N": (lambda: vacancy(7, "BN", 4), "BN"),
    "pristine": (lambda: pristine("MoS2", 5), "MoS2"),
    "host as atoms": (lambda: vacancy(16), pristine("MoS2", 1)),
}


@pytest.mark.parametrize("initial_positions", ["ideal", "given"])
@pytest.mark.parametrize("case", OUTSIDE)
def test_nothing_is_expected_where_nothing_is_known(case, initial_positions):
    make, host, words = OUTSIDE[case]
    result = DefiNetRelaxer(host=host, device="cpu", initial_positions=initial_positions).predict(make())
    assert set(result.outside) == words
    assert result.unsupported == result.outside
    assert result.expected_error is None
    assert "definet_expected_error" not in result.atoms.arrays
    assert result.warnings


@pytest.mark.parametrize("case", NEAR)
def test_more_is_expected_where_the_network_was_tried(case):
    make, host, words = NEAR[case]
    relaxer = DefiNetRelaxer(host=host, device="cpu")
    result = relaxer.predict(make())
    assert set(result.outside) == words
    assert result.unsupported == ()
    relaxer.domain = Domain(ModelCard(), "bare")
    bare = relaxer.predict(make())
    assert bare.expected_error is None
    assert result.expected_error.mean() > 0
    assert result.warnings


@pytest.mark.parametrize("case", INSIDE)
def test_what_is_known_keeps_its_number(case):
    make, host = INSIDE[case]
    result = DefiNetRelaxer(host=host, device="cpu").predict(make())
    assert set(result.outside) <= {"pristine"}
    assert result.unsupported == ()
    assert result.expected_error.shape == (len(result.atoms),)
    assert (result.expected_error > 0).all()
    assert result.expected_error.max() < MOST
    np.testing.assert_array_equal(result.atoms.arrays["definet_expected_error"], result.expected_error)


def test_an_estimate_that_was_there_before_is_not_handed_on(relaxer):
    """The relaxed atoms of one prediction may be the input of the next."""
    first = relaxer.relax(vacancy(16))
    first.numbers[np.flatnonzero(first.numbers == 42)[3]] = 75
    assert "definet_expected_error" in first.arrays
    again = relaxer.predict(first)
    assert again.expected_error is None
    assert "definet_expected_error" not in again.atoms.arrays
    assert "definet_expected_error" in first.arrays  # the input is the caller's


@pytest.fixture
def no_record(tmp_path) -> Path:
    loaded = load_checkpoint(resolve_model("default"))
    return save_checkpoint(tmp_path / "bare.safetensors", loaded.model, {"name": "bare"})


def relaxed_by_command(tmp_path, atoms: Atoms, host: str, *options: str) -> tuple[str, dict]:
    write(tmp_path / "in.vasp", atoms)
    asked = ["relax", str(tmp_path / "in.vasp"), "--host", host, "--device", "cpu"]
    asked += ["--report", str(tmp_path / "report.json"), "--vasp", str(tmp_path / "run"), *options]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    (record,) = json.loads((tmp_path / "report.json").read_text())
    return done.output, record


def test_the_command_says_that_it_is_unknown(tmp_path):
    write(tmp_path / "host.cif", bulk("MgO", "rocksalt", a=4.25))
    output, record = relaxed_by_command(tmp_path, magnesia(), str(tmp_path / "host.cif"))
    assert "expected error unknown (outside the training data: species, host)" in output
    assert not re.search(r"Å expected", output)
    assert record["outside"] == ["species", "host"]
    for key in ("mean_expected_error", "largest_expected_error", "largest_expected_error_atom"):
        assert record[key] is None
    assert "expected_error" not in (tmp_path / "run" / "README.txt").read_text()
    assert "Å expected" not in (tmp_path / "run" / "README.txt").read_text()


def test_the_command_says_what_is_expected(tmp_path):
    output, record = relaxed_by_command(tmp_path, vacancy(16), "MoS2")
    assert "unknown" not in output
    assert (
        f"error {record['mean_expected_error']:.3f} Å on average, at most {record['largest_expected_error']:.3f} Å"
        in output
    )
    assert record["outside"] == []
    assert 0 < record["mean_expected_error"] <= record["largest_expected_error"] < MOST


def test_weights_without_a_record(tmp_path, no_record):
    output, record = relaxed_by_command(tmp_path, vacancy(16), "MoS2", "--model", str(no_record))
    assert "expected error unknown (these weights have no record of their training data)" in output
    assert record["mean_expected_error"] is None


@pytest.fixture(scope="module")
def screened(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("screen")
    structures = {
        "known": vacancy(16, n=5),
        "Re_Mo": substituted(75, 42, n=5),
        "several": mos2_with_defects(5),
        "antisite": substituted(16, 42, n=5),
        "pristine": pristine("MoS2", 5),
    }
    for name, atoms in structures.items():
        atoms.info["name"] = name
    write(folder / "in.extxyz", list(structures.values()))
    asked = ["screen", str(folder / "in.extxyz"), "--host", "MoS2", "-o", str(folder / "out"), "--device", "cpu"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    return folder / "out"


def test_a_screen_leaves_the_unknown_empty(screened):
    with (screened / "table.csv").open(newline="") as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    for name, known in (
        ("known", True),
        ("Re_Mo", False),
        ("several", True),
        ("antisite", False),
        ("pristine", True),
    ):
        for column in ("mean_expected_error", "largest_expected_error"):
            assert bool(rows[name][column]) == known
        assert bool(rows[name]["mean_expected_error_near"]) == (known and name != "pristine")
    frames = {atoms.info["name"]: atoms for atoms in read(screened / "structures.extxyz", ":")}
    assert {name for name, atoms in frames.items() if "definet_expected_error" in atoms.arrays} == {
        *("known", "several", "pristine")
    }


def test_the_unknown_comes_first_in_the_report(screened, tmp_path):
    data = embedded(write_report(screened, tmp_path / "r.html", rows=4).read_text(encoding="utf-8"))
    names = [row["name"] for row in data["rows"]]
    assert names[:2] == ["Re_Mo", "antisite"]
    assert "pristine" not in names  # the one that is least doubtful
    near = [row["mean_expected_error_near"] for row in data["rows"]]
    assert near[:2] == ["", ""]
    assert near[2] >= near[3] > 0
    pictures = {int(index): picture["doubt"] for index, picture in data["pictures"].items()}
    assert [pictures[int(row["index"])] is None for row in data["rows"]] == [True, True, False, False]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_the_unknown_as_unknown(screened, tmp_path):
    page = write_report(screened, tmp_path / "r.html")
    arguments = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    body = done.stdout.split('id="body"')[1].split("</tbody>")[0]
    lines = body.split("<tr")[1:]
    assert ["Re_Mo" in lines[0], "antisite" in lines[1], "pristine" in lines[4]] == [True] * 3
    assert [line.count(">unknown<") for line in lines] == [3, 3, 0, 0, 0]
    assert "expected error unknown (outside the training data: species, defects)" in done.stdout


NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="no node here")
@pytest.mark.parametrize("up", [False, True])
def test_rows_are_sorted_with_the_unknown_at_the_doubtful_end(screened, tmp_path, up):
    """The page's own functions, without a browser."""
    page = write_report(screened, tmp_path / "r.html").read_text(encoding="utf-8")
    script = page.split('"use strict";')[1].split("function fill()")[0]
    script = script.replace('JSON.parse(document.getElementById("data").textContent)', json.dumps(embedded(page)))
    script = script.replace("id => document.getElementById(id)", '() => ({ value: "", checked: false })')
    script += f"\norder.up = {json.dumps(up)};\n"
    script += "console.log(JSON.stringify(visible().map(row => [row.name, shown(row, order.column)])));"
    done = subprocess.run([NODE, "-e", script], capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout)
    names = [name for name, _ in shown]
    assert set(names[:2] if not up else names[-2:]) == {"Re_Mo", "antisite"}
    assert names[-1 if not up else 0] == "pristine"
    assert {text for name, text in shown if name in {"Re_Mo", "antisite"}} == {"unknown"}
