"""The table of rules: each row with an INCAR that breaks it and one that does not; no false alarm in the profiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from pymatgen.core import SETTINGS
from pymatgen.io.vasp.inputs import Incar

from ase_definet.dft.incar import FUNCTIONAL_TAGS, PROFILES, final_incar, named, parse_incar_overrides
from ase_definet.dft.incar_rules import PER_SPECIES, RULES, VECTORS, Planned, Rule, broken_rules
from ase_definet.dft.vasp import write_vasp_inputs
from ase_definet.errors import InputSetError
from tests.unit.dft.test_vasp import FAKE_POTCAR, sandwich, slab

U = {"LDAU": True, "LDAUL": [2, -1], "LDAUU": [4, 0]}
HYBRID = {"LHFCALC": True, "ALGO": "All"}
Row = tuple[str, str, dict[str, Any], dict[str, Any]]


def screened(name: str) -> dict[str, Any]:
    """Return how the rules are told of a functional that is written."""
    return {"_functional": name, "_functional_tags": FUNCTIONAL_TAGS[name]}


# tag and a piece of the message, what breaks the rule, what is near and does not; underscores set the rest of Planned
ROWS: list[Row] = [
    ("KSPACING", "", {"KSPACING": 0.3}, {}),
    ("KGAMMA", "leave it out", {"KGAMMA": False}, {"KGAMMA": True}),
    ("KGAMMA", "anyway", {"KGAMMA": True}, {"KGAMMA": False}),
    ("ISMEAR", "tetrahedron", {"ISMEAR": -5, "_grid": (5, 1, 1)}, {"ISMEAR": -5, "_grid": (3, 2, 1)}),
    ("KPAR", "", {"KPAR": 3, "_grid": (2, 1, 1)}, {"KPAR": 2, "_grid": (2, 1, 1)}),
    *((tag, "each species", {tag: [1, 2, 3]}, {tag: [1, 2]}) for tag in PER_SPECIES),
    *((tag, "order of POSCAR", {tag: [1, 2]}, {tag: [1, 2], "_by_element": frozenset([tag])}) for tag in PER_SPECIES),
    *((tag, "3 values", {tag: [0.5, 0.5]}, {tag: [0.5, 0.5, 0.5]}) for tag in VECTORS),
    ("MAGMOM", "{wanted}", {"MAGMOM": [1] * 12}, {"MAGMOM": [1] * 12, "LSORBIT": True}),
    ("MAGMOM", "{wanted}", {"MAGMOM": [1] * 4, "LNONCOLLINEAR": True}, {"MAGMOM": [1] * 4}),
    ("M_CONSTR", "", {"M_CONSTR": [1] * 5}, {"M_CONSTR": [1] * 12}),
    ("MAGMOM", "site_order", {"MAGMOM": [1] * 4, "_reordered": True}, {"MAGMOM": [1] * 4}),
    ("MAGMOM", "ISPIN = 1", {"ISPIN": 1, "MAGMOM": [1] * 4}, {"ISPIN": 2, "MAGMOM": [1] * 4}),
    ("NUPDOWN", "ISPIN = 1", {"ISPIN": 1, "NUPDOWN": 0}, {"ISPIN": 1, "NUPDOWN": -1}),
    ("NUPDOWN", "vectors", {"LSORBIT": True, "NUPDOWN": 0}, {"LSORBIT": False, "NUPDOWN": 0}),
    ("NUPDOWN", "both are even", {"NUPDOWN": 1}, {"NUPDOWN": 1, "_charge": 1}),
    ("NUPDOWN", "cannot be", {"NUPDOWN": 1, "_multiplicity": 2}, {"NUPDOWN": 1, "_multiplicity": 2, "NELECT": 15}),
    ("NUPDOWN", "cannot be", {"NUPDOWN": 1, "_multiplicity": 2}, {"NUPDOWN": 2, "_multiplicity": 3}),
    ("NUPDOWN", "cannot be", {"NUPDOWN": 2, "_multiplicity": 3, "_charge": -1}, {"NUPDOWN": 1, "_charge": -1}),
    (
        "NUPDOWN",
        "not checked",
        {"NUPDOWN": 1, "_multiplicity": 2, "_neutral": None},
        {"NUPDOWN": 1, "_neutral": None},
    ),
    ("NUPDOWN", "contradicts", {"NUPDOWN": 0, "_multiplicity": 3}, {"NUPDOWN": 2, "_multiplicity": 3}),
    ("NUPDOWN", "fixes no spin", {"NUPDOWN": -1, "_multiplicity": 3}, {"NUPDOWN": -1}),
    ("ISPIN", "no unpaired", {"ISPIN": 1, "_multiplicity": 3}, {"ISPIN": 1, "_multiplicity": 1}),
    ("LSORBIT", "have no NUPDOWN", {"LSORBIT": True, "_multiplicity": 3}, {"LSORBIT": True}),
    ("MAGMOM", "adds up", {"MAGMOM": [1] * 4, "_multiplicity": 3}, {"MAGMOM": [1, 1, -1, 1], "_multiplicity": 3}),
    ("ISPIN", "ISPIN = 2", {"ISPIN": 2, "LSORBIT": True}, {"ISPIN": 2}),
    ("LSORBIT", "vasp_ncl", {"LSORBIT": True}, {"LSORBIT": False}),
    ("NELECT", "no number", {"NELECT": -1}, {"NELECT": 15}),
    ("NELECT", "NELECT decides", {"NELECT": 15}, {"NELECT": 15, "_charge": 1}),
    (
        "NELECT",
        "stated",
        {"NELECT": 15, "_charge_stated": True},
        {"NELECT": 15, "_charge": 1, "_charge_stated": True},
    ),
    ("NELECT", "stated", {"NELECT": 14.5, "_charge": 1, "_charge_stated": True}, {"NELECT": 14.5, "_charge": 1}),
    ("NBANDS", "", {"NBANDS": 7}, {"NBANDS": 12}),
    ("LDIPOL", "contradicts", {"LDIPOL": False, "_dipole": True}, {"LDIPOL": False}),
    ("LDIPOL", "needs IDIPOL", {"LDIPOL": True}, {"LDIPOL": True, "IDIPOL": 3}),
    ("LDIPOL", "VASP stops", {"LDIPOL": True, "IDIPOL": 3, "NELECT": 15}, {"LDIPOL": True, "NELECT": 16}),
    ("IDIPOL", "no vacuum", {"IDIPOL": 1}, {"IDIPOL": 3}),
    ("IDIPOL", "molecules", {"IDIPOL": 4}, {"IDIPOL": 4, "_vacuum": (0, 1, 2)}),
    ("IDIPOL", "not the forces", {"IDIPOL": 3}, {"IDIPOL": 3, "LDIPOL": True}),
    ("DIPOL", "no effect", {"DIPOL": [0.5] * 3}, {"DIPOL": [0.5] * 3, "IDIPOL": 3}),
    ("ISIF", "", {"ISIF": 3}, {"ISIF": 2}),
    ("NSW", "single point", {"NSW": 0}, {"NSW": 60}),
    ("NSW", "single point", {"IBRION": -1}, {"IBRION": 2}),
    ("IBRION", "no quick way", {"IBRION": 3}, {"IBRION": 2}),
    ("EDIFFG", "", {"EDIFFG": 1e-3}, {"EDIFFG": -0.02}),
    ("EDIFF", "positive", {"EDIFF": 0.0}, {"EDIFF": 1e-7}),
    ("EDIFF", "loose", {"EDIFF": 1e-4}, {"EDIFF": 1e-4, "IBRION": 2}),
    ("NELM", "", {"NELM": 3}, {"NELM": 100}),
    ("IMAGES", "", {"IMAGES": 5}, {}),
    ("ENCUT", "", {"ENCUT": 400, "_enmax": 450.0}, {"ENCUT": 500, "_enmax": 450.0}),
    ("METAGGA", "replaces", {"METAGGA": "SCAN", "GGA": "PE"}, {"METAGGA": "NONE", "GGA": "PE"}),
    ("METAGGA", "potential", {"METAGGA": "MBJ"}, {"METAGGA": "MBJ", "NSW": 0}),
    ("METAGGA", "LIBXC1", {"METAGGA": "LIBXC"}, {"METAGGA": "LIBXC", "LIBXC1": "MGGA_X_SCAN"}),
    ("METAGGA", "LASPH", {"METAGGA": "R2SCAN"}, {"METAGGA": "R2SCAN", "LASPH": True}),
    *(
        (
            next(iter(given)),
            "another functional",
            given | screened(name),
            {"LASPH": True, "AEXX": 0.32} | screened(name),
        )
        for name, given in {
            "HSE06": {"LHFCALC": False},
            "PBE0": {"HFSCREEN": 0.2},
            "PBEsol": {"GGA": "RP"},
            "SCAN": {"METAGGA": "R2SCAN"},
            "r2SCAN": {"LHFCALC": True},
        }.items()
    ),
    (
        "HFSCREEN",
        "another functional",
        {"HFSCREEN": 0.3} | screened("HSE06"),
        {"HFSCREEN": 0.207} | screened("HSE06"),
    ),
    ("AEXX", "", {"AEXX": 0.32} | screened("HSE06"), {"AEXX": 0.25} | screened("HSE06")),
    ("METAGGA", "not the PBE", {"METAGGA": "R2SCAN"}, {"METAGGA": "--"}),
    ("GGA", "not the PBE", {"GGA": "PS"}, {"GGA": "pe"}),
    ("IVDW", "", {"IVDW": 12}, {"IVDW": 0}),
    ("LHFCALC", "does not work", HYBRID | {"ALGO": "Fast"}, HYBRID),
    ("LHFCALC", "hybrid", HYBRID, {"LHFCALC": False}),
    ("SIGMA", "", {"SIGMA": 0.0}, {"SIGMA": 0.02}),
    ("ISMEAR", "FERWE", {"ISMEAR": -2}, {"ISMEAR": -2, "FERWE": [1, 0]}),
    ("LDAUU", "without LDAU", {"LDAUU": [4, 0]}, U),
    ("LDAU", "needs LDAUL", {"LDAU": True, "LDAUU": [4, 0]}, U),
    ("ICHARG", "density fixed", {"ICHARG": 11}, {"ICHARG": 11, "NSW": 0}),
    ("ICHARG", "CHGCAR", {"ICHARG": 1}, {"ICHARG": 1, "_present": frozenset(["CHGCAR"])}),
    ("ISTART", "WAVECAR", {"ISTART": 1}, {"ISTART": 1, "_present": frozenset(["WAVECAR"])}),
    ("NPAR", "", {"NPAR": 4, "NCORE": 4}, {"NPAR": 4}),
    ("IALGO", "", {"IALGO": 38, "ALGO": "Fast"}, {"IALGO": 38}),
    ("LREAL", "", {"LREAL": False, "_large_cell": True}, {"LREAL": "Auto", "_large_cell": True}),
]


@pytest.fixture(autouse=True)
def no_library(monkeypatch):
    monkeypatch.delitem(SETTINGS, "PMG_VASP_PSP_DIR", raising=False)


def planned(given: dict[str, Any]) -> Planned:
    """BN with 16 electrons and vacuum along c."""
    incar = {tag: value for tag, value in given.items() if not tag.startswith("_")}
    rest = {"grid": (3, 3, 1), "vacuum": (2,), "charge": 0, "reordered": False, "by_element": frozenset()}
    rest |= {tag[1:]: value for tag, value in given.items() if tag.startswith("_")}
    neutral = rest.pop("neutral", 16.0)
    return Planned(
        dict(PROFILES["few-steps"]) | dict(rest.get("functional_tags", {})) | incar,
        overridden=frozenset(incar),
        symbols=("B", "B", "N", "N"),
        neutral=lambda: neutral,
        **rest,
    )


def the_rule(tag: str, piece: str) -> Rule:
    (rule,) = [rule for rule in RULES if tag in rule.tags and piece in rule.message]
    return rule


@pytest.mark.parametrize(("tag", "piece", "broken", "kept"), ROWS, ids=lambda value: str(value)[:30])
def test_each_rule(tag, piece, broken, kept):
    rule = the_rule(tag, piece)
    if rule.refuse:
        with pytest.raises(InputSetError, match=tag):
            broken_rules(planned(broken), (rule,))
    else:
        (text,) = broken_rules(planned(broken), (rule,))
        assert tag in text
        assert "unset" not in text.replace("LUSE_VDW = unset", "")
        assert "{" not in text
    assert broken_rules(planned(kept), (rule,)) == []


def test_every_rule_has_its_row():
    assert {the_rule(tag, piece) for tag, piece, _, _ in ROWS} == set(RULES)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("magnetic", ["high-spin", "parity", "none"])
@pytest.mark.parametrize("charge", [0, 1])
@pytest.mark.parametrize("large_cell", [False, True])
def test_no_profile_breaks_a_rule(tmp_path, profile, magnetic, charge, large_cell):
    options = {"magnetic": magnetic, "charge": charge, "large_cell": large_cell, "dipole": not charge}
    report = write_vasp_inputs(slab(), tmp_path, profile, kpoints=(2, 2, 1), **options)
    assert [text for text in report.warnings if "INCAR" in text] == []


def test_all_refusals_are_named_and_nothing_is_written(tmp_path):
    with pytest.raises(InputSetError, match=r"KSPACING.*LDAUU"):
        write_vasp_inputs(slab(), tmp_path / "run", incar={"KSPACING": 0.2, "LDAUU": [4]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["R2SCAN", "r2scan", "SCAN", "RSCAN", "SCANL", "LIBXC", "TASK", "R2SCAN_X"])
def test_metagga_is_written_as_given_and_not_doubted(tmp_path, name):
    report = write_vasp_inputs(slab(), tmp_path, incar={"METAGGA": name, "LASPH": True, "LIBXC1": "MGGA_X_R2SCAN"})
    lines = (tmp_path / "INCAR").read_text().splitlines()
    assert f"METAGGA = {name}" in lines
    assert "LIBXC1 = MGGA_X_R2SCAN" in lines
    assert not any("known" in text or "Cannot find" in text for text in report.warnings)


@pytest.mark.parametrize(
    "text",
    ["ALGO=scGW0", "ALGO=VeryFast", "PREC=accurate", "GGA=PE", "LREAL=On", "SYSTEM=my MoS2", "LOCPROJ=1 : s : Pr"],
)
def test_text_is_kept(text):
    tag, value = text.split("=")
    written, overridden, doubts = final_incar({}, named(parse_incar_overrides([text])))
    assert str(written) == f"{tag} = {value}\n"
    assert overridden == {tag: (None, value)}
    assert doubts == []


@pytest.mark.parametrize("text", ["METAGGA=R2SCN", "ALGO=Quick", "IBRION=9", "LREAL=maybe", "ISYM=7"])
def test_values_that_nobody_knows_are_doubted(text):
    _, _, (doubt,) = final_incar({}, parse_incar_overrides([text]))
    assert text.split("=")[0] in doubt


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("MAGMOM=2*5 -0.6", [5, 5, -0.6]),
        ("LDAUU=4, 0", [4, 0]),
        ("MAGMOM=2*2*1", [1] * 4),
        ("DIPOL=.5 1 2e-1", [0.5, 1, 0.2]),
    ],
)
def test_lists_are_read_whole(text, value):
    tag = text.split("=")[0]
    assert parse_incar_overrides([text])[tag] == value


@pytest.mark.parametrize(
    "bad",
    [
        {"MAGMOM": "5 oops 3"},
        {"MAGMOM": "5 nan"},
        {"MAGMOM": [1.0, np.nan]},
        {"MAGMOM": ["a", "b"]},
        {"NSW": [60]},
        {"NSW": True},
        {"EDIFF": "inf"},
        {"ENCUT": {"Mo": 500}},
        {"LDAUU": {"mo": 4}},
        {"LDAUU": {"O": {"Mo": 4}}},
        {"LDAUU": {"Mo": True}},
        {"nsw": 30, "NSW": 60},
    ],
)
def test_values_that_are_none_are_refused(tmp_path, bad):
    with pytest.raises(InputSetError):
        write_vasp_inputs(slab(), tmp_path / "run", incar=bad)
    assert list(tmp_path.iterdir()) == []


def test_values_by_element_follow_poscar(tmp_path):
    given = {"LDAU": True, "LDAUL": {"Mo": 2, "Fe": 2}, "LDAUU": {"Mo": 3.5}, "MAGMOM": {"Mo": 4}}
    report = write_vasp_inputs(sandwich(), tmp_path, incar=given)
    assert report.incar["LDAUL"] == [2, -1]
    assert report.incar["LDAUU"] == [3.5, 0]
    assert report.incar["MAGMOM"] == [4] * 4 + [0.6] * 8
    assert Incar.from_file(tmp_path / "INCAR")["LDAUU"] == [3.5, 0]
    assert not any("order of POSCAR" in text for text in report.warnings)
    report = write_vasp_inputs(sandwich(), tmp_path / "list", incar=given | {"LDAUU": [3.5, 0]})
    assert "INCAR: LDAUU goes to the species in the order of POSCAR: Mo 3.5, S 0." in report.warnings


def test_spin_off_drops_the_profile_s_moments(tmp_path):
    report = write_vasp_inputs(slab(), tmp_path, incar={"ISPIN": 1}, kpoints=(2, 2, 1))
    assert "MAGMOM" not in report.incar
    assert report.warnings == ()
    atoms = slab()
    atoms.set_initial_magnetic_moments([1, 0, 0, 0])
    report = write_vasp_inputs(atoms, tmp_path / "own", incar={"ISPIN": 1})
    assert any("ignored: ISPIN is 1" in text for text in report.warnings)


def test_moments_of_a_calculator_are_a_start_and_that_is_said(tmp_path):
    atoms = slab("FeBBN")
    atoms.calc = SinglePointCalculator(atoms, magmoms=[-2.5, 0.1, 0, 0])
    report = write_vasp_inputs(atoms, tmp_path / "found")
    assert report.incar["MAGMOM"] == [-2.5, 0.1, 0, 0]
    assert any("calculator found" in text for text in report.warnings)
    atoms.set_initial_magnetic_moments([3, 0, 0, 0])  # what the user says comes first
    report = write_vasp_inputs(atoms, tmp_path / "initial")
    assert report.incar["MAGMOM"] == [3, 0, 0, 0]
    assert not any("calculator found" in text for text in report.warnings)
    atoms = slab("FeBBN")
    atoms.calc = SinglePointCalculator(atoms, magmoms=np.zeros(4))
    assert write_vasp_inputs(atoms, tmp_path / "none").incar["MAGMOM"][0] == 5.0


def test_moments_of_zero_are_moments_too(tmp_path):
    atoms = slab("FeBBN")
    atoms.set_initial_magnetic_moments(np.zeros(4))
    report = write_vasp_inputs(atoms, tmp_path)
    assert report.incar["MAGMOM"] == [0.0] * 4
    assert any("All initial magnetic moments" in text for text in report.warnings)


def test_vector_moments_are_written_where_they_mean_something(tmp_path):
    atoms = sandwich()
    vectors = np.random.default_rng(0).normal(size=(len(atoms), 3)).round(3)
    atoms.set_initial_magnetic_moments(vectors)
    with pytest.raises(InputSetError, match="collinear"):
        write_vasp_inputs(atoms, tmp_path / "no")
    report = write_vasp_inputs(atoms, tmp_path / "run", incar={"LNONCOLLINEAR": True})
    order = [0, 3, 6, 9, 1, 2, 4, 5, 7, 8, 10, 11]
    assert report.incar["MAGMOM"] == vectors[order].tolist()
    assert "ISPIN" not in report.incar
    assert Incar.from_file(tmp_path / "run" / "INCAR")["MAGMOM"] == vectors[order].tolist()


def test_collinear_moments_become_vectors_with_spin_orbit_coupling(tmp_path):
    report = write_vasp_inputs(slab("FeBBN"), tmp_path, incar={"LSORBIT": True})
    assert report.incar["MAGMOM"] == [[0, 0, 5.0]] + [[0, 0, 0.6]] * 3
    assert any("along SAXIS" in text for text in report.warnings)


@pytest.mark.parametrize("moments", [np.array([np.nan, 0, 0, 0])])
def test_moments_that_are_no_numbers_are_refused(tmp_path, moments):
    atoms = slab()
    atoms.set_initial_magnetic_moments(moments)
    with pytest.raises(InputSetError, match="finite"):
        write_vasp_inputs(atoms, tmp_path)


def test_cutoff_is_held_against_the_potcars(tmp_path, monkeypatch):
    folder = tmp_path / "potcars" / "POT_GGA_PAW_PBE_54"
    folder.mkdir(parents=True)
    for symbol, valence in (("B", 3), ("N", 5)):
        text = FAKE_POTCAR.format(symbol=symbol, valence=valence)
        enmax = f"   ENMAX  =  {400 + valence}.896; ENMIN  =  300.0 eV\n END of PSCTR"
        (folder / f"POTCAR.{symbol}").write_text(text.replace(" END of PSCTR", enmax))
    monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", str(folder.parent))
    low = write_vasp_inputs(slab(), tmp_path / "low", incar={"ENCUT": 400})
    assert any("405.896 eV (ENMAX)" in text for text in low.warnings)
    assert not any("ENMAX" in text for text in write_vasp_inputs(slab(), tmp_path / "high").warnings)


def test_an_nelect_of_one_s_own_counts_as_the_charge_it_makes(tmp_path):
    report = write_vasp_inputs(slab(), tmp_path / "run", incar={"NELECT": 15})
    assert any("image-charge" in text for text in report.warnings)
    with pytest.raises(InputSetError, match="VASP stops on charged cells"):
        write_vasp_inputs(slab(), tmp_path / "dipole", dipole=True, incar={"NELECT": 15})
