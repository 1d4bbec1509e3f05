"""Properties in words: no number without its doubt, and no line twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ase_definet.cli.property_text import property_lines, property_record, property_rows
from ase_definet.matching.library import library
from ase_definet.properties.predictor import PropertyValue

GOOD = {
    "formation_energy": PropertyValue(5.4321, "eV", 0.0123, "inside"),
    "formation_energy_per_defect": PropertyValue(2.71605, "eV", 0.00615, "inside"),
    "gap_min": PropertyValue(1.1, "eV", None, "near", ("a larger supercell",)),
    "total_mag": PropertyValue(None, "µB", None, "outside", ("the training data have no total_mag of this host",)),
}
NOTHING = {
    name: PropertyValue(None, one.unit, None, "outside", ("charged", "new element")) for name, one in GOOD.items()
}


def test_each_property_has_a_row():
    rows = dict(property_rows(GOOD, {"W": -13.0106, "Se": -3.489}))
    assert list(rows) == ["energy", "gap", "moment"]
    assert rows["energy"] == (
        "5.432 ± 0.012 eV to form, 2.716 eV per defect site (chemical potentials W -13.011, Se -3.489 eV)"
    )
    assert rows["gap"] == "1.100 eV, expected error unknown (near: a larger supercell)"
    assert rows["moment"] == "unknown (outside: the training data have no total_mag of this host)"


def test_what_is_unknown_for_one_reason_is_one_row():
    assert property_rows(NOTHING, {}) == [("unknown", "energy, gap, moment (outside: charged; new element)")]
    one = {"formation_energy": NOTHING["formation_energy"]}
    assert property_rows(one, {}) == [("energy", "unknown (outside: charged; new element)")]
    assert property_rows({}, {}) == []


def test_a_reason_of_all_is_said_once():
    near = {
        name: replace(one, trust="near" if one.value is not None else "outside", reasons=(*one.reasons, "too dense"))
        for name, one in GOOD.items()
    }
    rows = property_rows(near, {})
    assert sum(text.count("too dense") for _, text in rows) == 1
    assert rows[-1] == ("", "these are near the training data: too dense")
    assert rows[1] == ("gap", "1.100 eV, expected error unknown (near: a larger supercell)")


def test_what_a_warning_says_is_not_said_again():
    assert property_rows(NOTHING, {}, None, ["new element", "charged"]) == [
        ("unknown", "energy, gap, moment (outside: see the warnings)")
    ]
    assert property_rows(NOTHING, {}, None, ["charged"]) == [
        ("unknown", "energy, gap, moment (outside: new element; see the warnings)")
    ]


def test_the_pristine_host_has_nothing_to_predict():
    nothing = {name: PropertyValue(None, one.unit, None, "inside", ("no defects",)) for name, one in GOOD.items()}
    assert property_rows(nothing, {}) == [("unknown", "energy, gap, moment (no defects)")]


def test_names_of_other_weights_stay():
    rows = property_rows({"band_width": PropertyValue(0.5, "", 0.1, "inside")}, {})
    assert rows == [("band_width", "0.500 ± 0.100")]


def test_a_table_has_a_line_for_each_structure():
    head, first, second = property_lines([("one", GOOD), ("a" * 60, NOTHING)])
    assert head.split("  ")[-1] == "trust of these"
    assert [part.strip() for part in first.split("  ") if part][1:3] == ["5.432 ± 0.012", "2.716 ± 0.006"]
    assert "1.100 ± ?" in first
    assert second.startswith("...aaa")
    assert second.endswith("outside")
    assert len({len(line.removesuffix("outside").removesuffix("inside").rstrip()) for line in (first, second)}) == 1
    assert property_lines([]) == []


@pytest.mark.parametrize("name", list(GOOD))
def test_records_hold_everything(name):
    found = property_record(GOOD)[name]
    assert found["value"] == GOOD[name].value
    assert found["expected_error"] == GOOD[name].expected_error
    assert (found["unit"], found["trust"]) == (GOOD[name].unit, GOOD[name].trust)
    assert found["reasons"] == list(GOOD[name].reasons)


@pytest.mark.parametrize(
    ("potentials", "said"),
    [
        ({}, True),
        ({"S": -4.127, "Mo": -10.9332}, True),
        ({"S": -4.127, "Mo": -13.5911}, False),
        ({"S": -5.4557, "Mo": -10.9332}, False),
    ],
)
def test_potentials_that_are_no_equilibrium_with_the_host_are_said(potentials, said):
    rows = property_rows(GOOD, potentials, library()["MoS2"])
    text = [text for name, text in rows if "equilibrium" in text]
    assert len(text) == said
    if said:
        assert text[0].startswith("these potentials exceed the energy of MoS2 by +2.66 eV")
        assert "--mu rich:Mo or --mu rich:S" in text[0]


@pytest.mark.parametrize("host", ["P", "MgO"])
def test_an_element_is_in_equilibrium_with_itself_and_unknown_hosts_say_nothing(host):
    assert not any("equilibrium" in text for _, text in property_rows(GOOD, {}, library()[host]))
