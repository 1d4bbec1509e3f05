"""Charge, spin and functional from the command line to every result: files, records, tables, pages."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from click.testing import CliRunner, Result
from pymatgen.io.vasp.inputs import Incar

from ase_definet.cli import cli
from ase_definet.structures.state import Said, said_of
from tests.conftest import pristine

RELAX = ("--host", "BN", "--device", "cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Write a carbon dimer in h-BN, which has an even number of electrons, as files that say different things."""
    monkeypatch.chdir(tmp_path)
    atoms = pristine("BN", 6)
    atoms.numbers[[24, 25]] = 6
    assert atoms.numbers.sum() % 2 == 0
    write("bare.vasp", atoms, format="vasp")
    atoms.info = {"charge": -1, "spin_multiplicity": 2, "functional": "HSE06"}
    write("said.extxyz", atoms)
    return tmp_path


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def ok(*args: object) -> Result:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*") if path.is_file()}


def table(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text(encoding="utf-8").splitlines()))


def one_line(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ")
    return line


def test_a_state_reaches_structure_record_and_input_set():
    asked = ("--charge", "-1", "--spin", "2", "--functional", "hse06")
    done = ok("relax", "bare.vasp", *RELAX, *asked, "-o", "out.extxyz", "--vasp", "run", "--report", "r.json")
    assert "state     charge -1, doublet, HSE06" in done.output
    assert "replaces" not in done.output
    atoms = read("out.extxyz")
    assert said_of(atoms) == Said(-1, 2, "HSE06")
    assert atoms.info["definet_state"] == "charge -1, doublet, HSE06"
    (record,) = json.loads(Path("r.json").read_text())
    assert (record["charge"], record["spin_multiplicity"], record["functional"]) == (-1, 2, "HSE06")
    incar = Incar.from_file("run/INCAR")
    assert (incar["NUPDOWN"], incar["ISPIN"], incar["LHFCALC"]) == (1, 2, True)
    assert "Charge -1, spin multiplicity 2 (doublet" in Path("run/README.txt").read_text()


def test_what_a_file_says_counts_and_is_no_news_where_it_is_ordinary():
    done = ok("relax", "said.extxyz", "bare.vasp", *RELAX, "--output-dir", "out", "--report", "r.json")
    said, bare = json.loads(Path("r.json").read_text())
    assert (said["charge"], said["spin_multiplicity"], said["functional"]) == (-1, 2, "HSE06")
    assert (bare["charge"], bare["spin_multiplicity"], bare["functional"]) == (0, None, "PBE")
    assert done.output.count("state     ") == 1
    match = json.loads(ok("match", "said.extxyz", "--host", "BN", "--json").output)
    assert (match["charge"], match["spin_multiplicity"], match["functional"]) == (-1, 2, "HSE06")
    assert "state     charge -1, doublet, HSE06" in ok("match", "said.extxyz", "--host", "BN").output
    assert "state" not in ok("match", "bare.vasp", "--host", "BN").output


@pytest.mark.parametrize(
    ("option", "value", "note"),
    [
        ("--charge", "1", "charge +1 was asked for and replaces the charge -1"),
        ("--spin", "4", "spin multiplicity 4 was asked for and replaces the spin multiplicity 2"),
        ("--functional", "PBE", "functional PBE was asked for and replaces the functional HSE06"),
    ],
)
def test_what_is_asked_for_replaces_what_a_file_says_with_a_note(option, value, note):
    done = ok("relax", "said.extxyz", *RELAX, option, value, "-o", "out.extxyz", "--report", "r.json")
    assert note in done.output
    assert any(note in text for text in json.loads(Path("r.json").read_text())[0]["warnings"])
    assert note in ok("vasp", "said.extxyz", "-o", "run", option, value).output
    ok("screen", "said.extxyz", *RELAX, option, value, "-o", "results")
    (row,) = table("results/table.csv")
    assert note in row["warnings"]
    assert "definet_state_replaced" not in read("results/structures.extxyz").info
    same = {"--charge": "-1", "--spin": "2", "--functional": "HSE06"}[option]
    assert "replaces" not in ok("relax", "said.extxyz", *RELAX, option, same, "-o", "same.extxyz").output


@pytest.mark.parametrize(
    ("text", "charges"),
    [("-2:2", [-2, -1, 0, 1, 2]), ("-1,0,1", [-1, 0, 1]), ("1:1", [1]), ("+2", [2]), ("2,-1", [2, -1])],
)
def test_each_charge_has_its_results(text, charges):
    ok("relax", "bare.vasp", *RELAX, "--charge", text, "--vasp", "run", "--from-unrelaxed", "--report", "r.json")
    marks = [f"_q{q:+d}" if q else "_q0" for q in charges] if len(charges) > 1 else [""]
    expected = {f"bare_relaxed{mark}.vasp" for mark in marks} | {"bare.vasp", "said.extxyz", "r.json"}
    assert {path for path in files() if "/" not in path} == expected
    electrons = {mark: Incar.from_file(f"run{mark}/INCAR").get("NELECT") for mark in marks}
    controls = {mark: Incar.from_file(f"run{mark}_unrelaxed/INCAR").get("NELECT") for mark in marks}
    assert electrons == controls
    neutral = {(n or 288) + q for n, q in zip(electrons.values(), charges, strict=True)}
    assert neutral == {288}
    assert [record["charge"] for record in json.loads(Path("r.json").read_text())] == charges
    ok("vasp", "bare.vasp", "-o", "alone", "--charge", text)
    assert [Incar.from_file(f"alone{mark}/INCAR").get("NELECT") for mark in marks] == list(electrons.values())
    ok("screen", "bare.vasp", *RELAX, "-o", "results", "--charge", text)
    rows = table("results/table.csv")
    assert [int(row["charge"]) for row in rows] == charges
    assert [row["name"] for row in rows] == [f"bare.vasp{mark}" for mark in marks]
    again = run("screen", "bare.vasp", *RELAX, "-o", "results", "--charge", "3")
    assert "another request (other charge)" in one_line(again, 2)


def test_several_charges_of_one_named_output_and_of_several_files():
    ok("relax", "bare.vasp", *RELAX, "--charge", "-1,1", "-o", "out.extxyz")
    assert {"out_q-1.extxyz", "out_q+1.extxyz"} <= files()
    assert "out_q-1.extxyz and 1 more exist" in one_line(
        run("relax", "bare.vasp", *RELAX, "--charge", "-1,1", "-o", "out.extxyz"), 2
    )
    ok("relax", "bare.vasp", "said.extxyz", *RELAX, "--charge", "-1,1", "--output-dir", "d", "--vasp", "run")
    assert {f"run/{name}_q{q}/INCAR" for name in ("bare", "said") for q in ("-1", "+1")} <= files()
    before = files()
    Path("alone_q+1").mkdir()
    Path("alone_q+1/INCAR").write_text("mine")
    assert "alone_q+1/INCAR exists" in one_line(run("vasp", "bare.vasp", "-o", "alone", "--charge", "-1,1"), 2)
    assert files() - before == {"alone_q+1/INCAR"}
    assert Path("alone_q+1/INCAR").read_text() == "mine"


def test_a_multiplicity_that_fits_some_charges_costs_the_others_alone():
    done = run("relax", "bare.vasp", *RELAX, "--charge", "-1:1", "--spin", "2", "--report", "r.json")
    assert done.exit_code == 1
    left, failed, right = json.loads(Path("r.json").read_text())
    assert [record["charge"] for record in (left, failed, right)] == [-1, 0, 1]
    assert "an even number" in failed["error"]
    assert {"bare_relaxed_q-1.vasp", "bare_relaxed_q+1.vasp"} == {f for f in files() if "relaxed" in f}
    done = run("vasp", "bare.vasp", "-o", "run", "--charge", "-1:1", "--spin", "2")
    assert done.exit_code == 1
    assert done.output.count("Error: ") == 1
    assert {path.name for path in Path().glob("run*")} == {"run_q-1", "run_q+1"}
    ok("screen", "bare.vasp", *RELAX, "-o", "results", "--charge", "-1:1", "--spin", "2")
    (failure,) = table("results/failures.csv")
    assert failure["name"] == "bare.vasp_q0"
    assert "an even number" in failure["reason"]


@pytest.mark.parametrize("command", ["relax", "vasp", "screen"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--charge", "2:-2"), "runs backwards"),
        (("--charge", "-1,-1"), "has the charge -1 twice"),
        (("--charge", "0:99"), "100 charges, more than 21"),
        (("--charge", "1:"), "is no charge"),
        (("--charge", "one"), "is no charge"),
        (("--charge", "0.5"), "is no charge"),
        (("--charge", ""), "is no charge"),
        (("--spin", "0"), "0 is not in the range"),
        (("--spin", "triplet"), "'triplet' is not a valid integer"),
        (("--functional", "HSE"), "did you mean HSE06"),
        (("--functional", ""), "expected one of PBE"),
    ],
    ids=str,
)
def test_what_is_no_state_is_bad_usage(command, options, message):
    before = files()
    rest = {"relax": RELAX, "vasp": ("-o", "run"), "screen": (*RELAX, "-o", "results")}[command]
    assert message in one_line(run(command, "bare.vasp", *rest, *options), 2)
    assert files() == before


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"charge": 0.5}, "must be a whole number in e"),
        ({"spin_multiplicity": 2}, r"2 \(1 unpaired electron\) does not go with \d+ .*an even number"),
        ({"spin_multiplicity": 1, "charge": 1}, r"1 \(0 unpaired electrons\) does not go with \d+ .*an odd number"),
        ({"spin_multiplicity": "high"}, "must be a whole number"),
        ({"functional": "PW91"}, "functional 'PW91' is not known"),
    ],
    ids=str,
)
def test_a_file_whose_state_cannot_be_is_refused_at_every_door(info, message):
    atoms = read("bare.vasp")
    atoms.info = info
    write("wrong.extxyz", atoms)
    assert re.search(message, one_line(run("relax", "wrong.extxyz", *RELAX), 1))
    code = 2 if "go with" in message else 1  # for VASP it is an option that contradicts the electrons
    assert re.search(message, one_line(run("vasp", "wrong.extxyz", "-o", "run"), code))
    assert run("screen", "wrong.extxyz", *RELAX, "-o", "results").exit_code == 1
    (failure,) = table("results/failures.csv")
    assert re.search(message, failure["reason"])
    assert run("match", "wrong.extxyz", "--host", "BN").exit_code == 0


@pytest.mark.parametrize("electrons", [287, 289.5])
def test_an_nelect_that_contradicts_the_charge(electrons):
    line = one_line(run("vasp", "bare.vasp", "-o", "run", "--charge", "-1", "--incar", f"NELECT={electrons}"), 2)
    assert "and the charge that is stated" in line
    asked = ("--charge", "-1", "--incar", f"NELECT={electrons}", "--vasp", "run")
    assert "the charge that is stated" in one_line(run("relax", "bare.vasp", *RELAX, *asked), 1)
    assert "bare_relaxed.vasp" not in files()


def test_a_screen_takes_states_from_the_structures_and_the_page_shows_them():
    atoms = read("bare.vasp")
    states = [{}, {"charge": 1}, {"charge": -1, "spin_multiplicity": 2, "functional": "HSE06 a=0.32"}]
    frames = []
    for info in states:
        frames.append(atoms.copy())
        frames[-1].info = info
    write("many.extxyz", frames)
    ok("screen", "many.extxyz", *RELAX, "-o", "results", "--parquet")
    rows = table("results/table.csv")
    found = [(row["charge"], row["spin_multiplicity"], row["functional"]) for row in rows]
    assert found == [("0", "", "PBE"), ("1", "", "PBE"), ("-1", "2", "HSE06")]
    assert [said_of(one) for one in read("results/structures.extxyz", ":")] == [said_of(one) for one in frames]
    assert columns("results") >= {"charge", "spin_multiplicity", "functional"}
    ok("screen", "bare.vasp", *RELAX, "-o", "plain")
    assert columns("plain").isdisjoint({"charge", "spin_multiplicity", "functional"})
    assert "name" in columns("plain")


def columns(results: str) -> set[str]:
    """Return the columns that a page shows."""
    ok("report", results, "-o", "page.html", "--overwrite")
    text = Path("page.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return set(json.loads(found[1])["columns"])


@pytest.mark.parametrize("suffix", ["extxyz", "db", "json", "traj", "vasp", "cif"])
def test_a_result_keeps_its_state_or_says_that_it_cannot(suffix):
    done = ok("relax", "said.extxyz", *RELAX, "-o", f"out.{suffix}")
    lost = "holds no state: give --charge -1 --spin 2 --functional HSE06 again" in done.output
    match = json.loads(ok("match", f"out.{suffix}", "--host", "BN", "--json").output)
    assert (match["charge"], match["functional"]) == ((0, "PBE") if lost else (-1, "HSE06"))
    assert lost == (suffix in {"vasp", "cif"})
    assert "holds no state" not in ok("relax", "bare.vasp", *RELAX, "-o", f"plain.{suffix}").output


def test_the_control_run_has_the_same_state():
    ok("relax", "said.extxyz", *RELAX, "-o", "o.extxyz", "--vasp", "run", "--from-unrelaxed")
    predicted, control = (Incar.from_file(f"{name}/INCAR") for name in ("run", "run_unrelaxed"))
    assert predicted == control
    assert np.isclose(sum(predicted["MAGMOM"]), 1, atol=1e-3)
