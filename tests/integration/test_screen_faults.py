"""Screens of hostile input: one bad structure costs itself at most, and what is written can be read."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import mx2
from ase.constraints import FixInternals
from ase.io import read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.screening import screen as screening
from ase_definet.screening import structures_file
from ase_definet.screening.screen import (
    COLUMNS,
    FAILURE_COLUMNS,
    FAILURES,
    TABLE,
    Results,
    read_rows,
    screen,
)
from ase_definet.screening.structures_file import FORMATS, STRUCTURES, read_structures
from ase_definet.structures.extxyz import printable
from tests.conftest import pristine
from tests.unit.structures.test_extxyz import TEXT, hostile

SETTINGS = {"model": "default", "device": "cpu", "host": "MoS2", "max_strain": 0.06}
ASKED = {"inputs": ["here"]}


def vacancy(site: int = 3) -> Atoms:
    atoms = pristine("MoS2", 5)
    del atoms[int(np.flatnonzero(atoms.numbers == 16)[site])]
    return atoms


def run(source, out: Path, asked=ASKED, **options) -> screening.Progress:
    results = Results(out, asked)
    try:
        return screen(source, results, SETTINGS, **options)
    finally:
        results.close()


def consistent(out: Path, relaxed: int, failed: int) -> list[Atoms]:
    """Check that everything in a folder of results can be read, and belongs together; return the structures."""
    text = out / STRUCTURES
    found = read(text, ":", format="extxyz") if relaxed and text.exists() else list(read_structures(out))
    rows, failures = read_rows(out / TABLE, COLUMNS), read_rows(out / FAILURES, FAILURE_COLUMNS)
    assert (len(found), len(rows), len(failures)) == (relaxed, relaxed, failed)
    assert [str(atoms.info["name"]) for atoms in found] == [row["name"] for row in rows]
    assert sorted(row["index"] for row in rows + failures) == list(range(relaxed + failed))
    with (out / TABLE).open(newline="", encoding="utf-8") as stream:
        assert len(list(csv.reader(stream))) == relaxed + 1
    return found


def flat() -> Atoms:
    """Return a layer as ASE makes it without vacuum: its third cell vector is zero."""
    atoms = mx2("MoS2", a=3.19, size=(5, 5, 1))
    del atoms[4]
    assert not atoms.cell[2].any()
    return atoms


def with_array(name: str, values) -> Atoms:
    atoms = vacancy()
    atoms.arrays[name] = values(len(atoms))
    return atoms


def with_info(**info) -> Atoms:
    atoms = vacancy()
    atoms.info |= info
    return atoms


def clashing() -> Atoms:
    atoms = vacancy()
    atoms.set_constraint(FixInternals(bonds=[[1.0, [0, 1]], [5.0, [0, 1]]]))
    return atoms


ODD = {
    "no third vector": flat,
    "expected error of another shape": lambda: with_array("definet_expected_error", lambda n: np.zeros((n, 3))),
    "displacement of another shape": lambda: with_array("definet_displacement", np.zeros),
    "deep array": lambda: with_array("deep", lambda n: np.zeros((n, 2, 2))),
    "complex array": lambda: with_array("phase", lambda n: np.zeros(n, complex)),
    "texts with spaces": lambda: with_array("label", lambda n: np.array(["a b"] * n)),
    "objects": lambda: with_array("what", lambda n: np.array([None] * n)),
    "array that ASE takes for positions": lambda: with_array("pos", np.zeros),
    "array with a colon": lambda: with_array("a:R:3", np.zeros),
    "lines in info": lambda: with_info(note="a\nb\r\n75\n"),
    "an energy that is none": lambda: with_info(energy="unknown"),
    "a lattice in info": lambda: with_info(Lattice="1 2 3"),
    "a stress of another shape": lambda: with_info(stress=np.zeros(6)),
    "an object in info": lambda: with_info(thing=object()),
    "a multiplicity that is none": lambda: with_info(multiplicity="many"),
    "a huge multiplicity": lambda: with_info(multiplicity=10**40),
    "a list as name": lambda: with_info(name=["a", "b"]),
}
BAD = {
    "constraints that clash": clashing,
    "no cell": lambda: Atoms("MoS2", [[0, 0, 0], [1, 1, 1], [2, 2, 2]]),
    "not finite": lambda: with_array("positions", lambda n: np.full((n, 3), np.nan)),
    "no structure": lambda: "text",
    "nothing": lambda: None,
    "an error": ZeroDivisionError,
}


@pytest.mark.parametrize("what", ODD)
def test_odd_structures_are_relaxed(tmp_path, what):
    source = [("a", vacancy()), ("odd", ODD[what]()), ("b", vacancy(5))]
    assert run(source, tmp_path / "out").failed == 0
    found = consistent(tmp_path / "out", 3, 0)
    run([("a", vacancy())], tmp_path / "alone")
    (alone,) = consistent(tmp_path / "alone", 1, 0)
    assert np.abs(found[0].positions - alone.positions).max() < 1e-5
    again = run(source, tmp_path / "out")
    assert again.resumed == again.done == 3


@pytest.mark.parametrize("what", BAD)
def test_bad_structures_cost_themselves_at_most(tmp_path, what):
    source = [("a", vacancy()), ("bad", BAD[what]()), ("b", vacancy(5))]
    done = run(source, tmp_path / "out")
    consistent(tmp_path / "out", 3 - done.failed, done.failed)
    assert done.failed == 1
    assert {row["name"] for row in read_rows(tmp_path / "out" / TABLE, COLUMNS)} >= {"a", "b"}


@pytest.mark.parametrize("stage", ["_row", "frame_text", "defect_sites", "completed_cell"])
def test_an_error_at_any_stage_costs_its_structure(tmp_path, monkeypatch, stage):
    place = structures_file if stage == "frame_text" else screening
    real, calls = getattr(place, stage), []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("on purpose")
        return real(*arguments)

    monkeypatch.setattr(place, stage, failing)
    assert run([(str(k), vacancy(k)) for k in range(3)], tmp_path / "out").failed == 1
    consistent(tmp_path / "out", 2, 1)
    (row,) = read_rows(tmp_path / "out" / FAILURES, FAILURE_COLUMNS)
    assert (row["name"], row["reason"]) == ("1", "RuntimeError: on purpose")


@pytest.mark.parametrize(
    "name",
    [
        "a\nb",
        "a\r",
        "\x00",
        "7\nMo",
        "x\udcff",
        "a,b;\"c'",
        "",
        " ",
        "=",
        "a=b",
        "007",
        "T",
        "{{data}}",
        "\u2028",
        "\\n",
    ],
)
def test_any_name_can_be_read_again(tmp_path, name):
    source = [(name, vacancy()), (name, ValueError(name)), ("b", vacancy(5))]
    run(source, tmp_path / "out", block=1)
    consistent(tmp_path / "out", 2, 1)
    again = run(source, tmp_path / "out")
    assert again.resumed == again.done == 3


@pytest.fixture(scope="module")
def result():
    return DefiNetRelaxer(host="MoS2", device="cpu").predict(vacancy())


@pytest.mark.parametrize("structures", FORMATS)
@given(many=st.lists(st.tuples(TEXT, hostile()), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_structure_carries_its_block_can_be_read(result, tmp_path_factory, structures, many):
    """Info, arrays and names of any kind on predicted structures, as a block that a folder takes."""
    rows, content, form = [], [], FORMATS[structures]()
    for index, (name, other) in enumerate(many):
        atoms = result.atoms.copy()
        atoms.info |= other.info
        for key, values in other.arrays.items():
            if key not in {"numbers", "positions", "definet_displacement"}:
                atoms.arrays[key] = np.resize(values, (len(atoms), *values.shape[1:]))
        host = replace(result.site_map.host, name=name)
        site_map = replace(result.site_map, sites=replace(result.site_map.sites, host=host))
        odd = replace(result, atoms=atoms, site_map=site_map, warnings=(name, name))
        row, written = screening._finished(index, printable(name), odd, "", form)
        rows.append(row)
        content.append(written)
    names = tuple(printable(name) for name, _ in many)
    out = tmp_path_factory.mktemp("out")
    results = Results(out / "out", ASKED | {"structures": structures})
    results.add(screening.Block(names, tuple("0" * 24 for _ in names), form.content(content), rows, []))
    assert [name for name, _ in results.inputs()] == list(names)
    results.close()
    for atoms in consistent(out / "out", len(many), 0):
        assert np.abs(atoms.positions - result.atoms.positions).max() < 1e-7
        assert np.abs(atoms.arrays["definet_displacement"] - result.displacement).max() < 1e-7
