"""Extended XYZ: whatever users put into info, arrays and names, what is written reads back, and what follows too."""

from __future__ import annotations

import io

import numpy as np
import pytest
from ase import Atoms
from ase.io import read
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_definet.errors import StructureError
from ase_definet.structures import extxyz
from ase_definet.structures.extxyz import LONGEST_TEXT, frame_text, printable, read_frames

CELL = np.diag([5.0, 6.0, 7.0])
SPECIAL = st.sampled_from(
    [
        *(
            "Lattice",
            "Properties",
            "pbc",
            "energy",
            "stress",
            "virial",
            "forces",
            "uid",
            "name",
            "",
            " ",
            "a b",
            "a=b",
        ),
        *(
            '"',
            "'",
            "{",
            "}",
            "[",
            "\\",
            "\n",
            "\r",
            "\r\n5\n",
            "\x85",
            "\u2028",
            "\x0b",
            "\x00",
            "\udcff",
            "_JSON {",
        ),
        *("VEC1 1 0 0", "T", "007", "1 2", "1e5", "nan", "species", "pos", "Z", "symbols", "move_mask", "a:R:3"),
        *("charges", "initial_charges", "magmoms", "dipole", "free_energy", "comment", "spacegroup", "=", ",", "🜚"),
    ]
)
TEXT = SPECIAL | st.text(max_size=20) | st.text(st.characters(), max_size=5)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUE = st.recursive(
    PLAIN, lambda one: st.lists(one, max_size=3) | st.dictionaries(TEXT, one, max_size=3), max_leaves=5
)
DTYPES = st.sampled_from(["f8", "f4", "i8", "u1", "u8", "?", "c16", "U3", "S2", "O", "M8[s]"])
SHAPES = st.sampled_from([(2,), (2, 1), (2, 3), (2, 2, 2), (2, 0)])


@st.composite
def array(draw):
    kind, shape = draw(DTYPES), draw(SHAPES)
    if kind in {"U3", "O"}:
        size = int(np.prod(shape))
        return np.array([draw(TEXT) for _ in range(size)], dtype=kind).reshape(shape)
    return np.arange(np.prod(shape)).astype("i8").astype(kind).reshape(shape)


@st.composite
def hostile(draw):
    atoms = Atoms("MoS", [[0.1, 0.2, 0.3], [1.5, 2.5, 3.123456]], cell=CELL, pbc=draw(st.sampled_from([True, False])))
    if draw(st.booleans()):
        atoms.cell[2] = 0
    numpy_values = st.builds(np.array, VALUE.filter(lambda v: not isinstance(v, list | dict))) | array()
    atoms.info = draw(st.dictionaries(TEXT | st.integers(), VALUE | numpy_values | st.builds(object), max_size=4))
    for name, values in draw(st.dictionaries(TEXT, array(), max_size=3)).items():
        if name not in {"numbers", "positions"}:
            atoms.arrays[name] = values
    return atoms


@given(st.lists(hostile(), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_everything_written_reads_back(many):
    text = "".join(frame_text(atoms)[0] for atoms in many)
    text.encode()
    for found in (read(io.StringIO(text, newline=None), ":", format="extxyz"), [*read_frames(io.StringIO(text))]):
        assert len(found) == len(many)
        for atoms, back in zip(many, found, strict=True):
            assert np.array_equal(back.numbers, atoms.numbers)
            assert np.abs(back.positions - atoms.positions).max() < 2e-8
            assert np.array_equal(back.cell.array, atoms.cell.array)
            assert np.array_equal(back.pbc, atoms.pbc)


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_texts_come_back_as_they_are_but_for_what_no_line_can_hold(text):
    atoms = Atoms("Mo", cell=CELL, info={"name": text})
    written, left_out = frame_text(atoms)
    assert not left_out
    assert str(read(io.StringIO(written), format="extxyz").info["name"]) == printable(text)


def test_what_the_format_holds_is_kept():
    atoms = Atoms("MoS", [[0, 0, 0], [1, 1, 1]], cell=CELL, pbc=True)
    atoms.info = {"n": 3, "x": 0.25, "yes": True, "list": ["a b", "c\n"], "map": {"a": [1, "b\\"]}, "odd": object()}
    atoms.set_array("tag", np.array([1, 2], dtype=np.uint8))
    atoms.set_array("vector", np.arange(6.0).reshape(2, 3))
    atoms.set_array("deep", np.zeros((2, 2, 2)))
    text, left_out = frame_text(atoms)
    (back,) = read_frames(io.StringIO(text))
    assert left_out == ["odd", "deep"]
    assert back.info == {"n": 3, "x": 0.25, "yes": True, "list": ["a b", "c\n"], "map": {"a": [1, "b\\"]}}
    assert back.arrays["tag"].tolist() == [1, 2]
    assert np.array_equal(back.arrays["vector"], atoms.arrays["vector"])


def test_one_broken_frame_costs_no_other():
    good, _ = frame_text(Atoms("Mo", cell=CELL, info={"name": "good"}))
    broken = good.replace("Mo", "Qq")
    found = list(read_frames(io.StringIO(good + broken + "\n" + good)))
    assert [type(one) for one in found] == [Atoms, StructureError, Atoms]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("2\n\nMo 0 0 0\n", "cut off: expected a structure of 2 atoms, found 1"),
        ("two\n", "number of"),
        ("-3\n\n", "number of"),
    ],
)
def test_what_follows_a_break_is_not_guessed(text, match):
    good, _ = frame_text(Atoms("Mo", cell=CELL))
    first, error = read_frames(io.StringIO(good + text))
    assert isinstance(first, Atoms)
    with pytest.raises(StructureError, match=match):
        raise error


def test_long_texts_are_cut_off():
    assert len(printable("x" * 10**6)) < LONGEST_TEXT + 40


@pytest.mark.parametrize("start", ["", "5\n", "5\ncomment\n", "10\n\n" + "Mo 0 0 0\n" * 3])
def test_a_stream_without_lines_is_not_kept(monkeypatch, start):
    class Endless(io.StringIO):
        asked = 0

        def readline(self, size=-1):
            if line := super().readline():
                return line
            assert size >= 0
            self.asked += size
            assert self.asked < 10 * LONGEST_TEXT
            return "x" * size

    monkeypatch.setattr(extxyz, "LARGEST_FRAME", LONGEST_TEXT)
    (error,) = read_frames(Endless(start))
    assert isinstance(error, StructureError)
