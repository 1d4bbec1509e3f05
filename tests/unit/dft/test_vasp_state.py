"""Charge, spin multiplicity and functional in a VASP input set: what is written, what contradicts it."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.io import read
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import SETTINGS

from ase_definet.dft.incar import FUNCTIONAL_TAGS
from ase_definet.dft.input_plan import Options, plan_inputs
from ase_definet.dft.vasp import DefiNetRelaxSet, write_vasp_inputs
from ase_definet.errors import InputSetError
from ase_definet.structures.conversion import as_structure
from ase_definet.structures.state import FUNCTIONALS, said_of
from tests.unit.dft.test_vasp import FAKE_POTCAR, VALENCE_BN, sandwich, slab


@pytest.fixture(autouse=True)
def no_library(monkeypatch):
    monkeypatch.delitem(SETTINGS, "PMG_VASP_PSP_DIR", raising=False)


@settings(deadline=None)  # the first of them imports pymatgen
@given(charge=st.integers(-4, 4), multiplicity=st.integers(1, 6), metal=st.booleans())
def test_a_multiplicity_is_nupdown_and_the_moments_add_up_to_it_where_the_parity_allows(charge, multiplicity, metal):
    atoms = sandwich() if metal else slab()
    electrons = (4 * (12 + 6 + 6) if metal else 2 * VALENCE_BN) - charge
    options = Options(charge=charge, spin_multiplicity=multiplicity, kpoints=(2, 2, 1))
    if (electrons - multiplicity) % 2 == 0:
        parity = "an odd" if electrons % 2 else "an even"
        with pytest.raises(
            InputSetError, match=rf"spin multiplicity of {multiplicity} .* {electrons} .* {parity} num"
        ):
            plan_inputs(atoms, options)
        return
    plan = plan_inputs(atoms, options)
    assert (plan.incar["ISPIN"], plan.incar["NUPDOWN"]) == (2, multiplicity - 1)
    assert plan.incar.get("NELECT", electrons) == electrons
    assert sum(plan.incar["MAGMOM"]) == pytest.approx(multiplicity - 1, abs=1e-4)
    assert not any("MAGMOM" in text or "NUPDOWN" in text for text in plan.warnings)


@pytest.mark.parametrize("door", ["option", "info", "set", "structure"])
def test_every_door_leads_to_the_same_input_set(tmp_path, door):
    state = {"charge": -1, "spin_multiplicity": 2, "functional": "HSE06"}
    atoms = slab()
    atoms.info |= {} if door in {"option", "set"} else state
    given_ = as_structure(atoms) if door in {"set", "structure"} else atoms
    if door == "set":
        report = DefiNetRelaxSet(given_, **state).incar
    else:
        report = write_vasp_inputs(given_, tmp_path, **(state if door == "option" else {})).incar
    expected = {"NELECT": 2 * VALENCE_BN + 1, "NUPDOWN": 1, "ISPIN": 2, **FUNCTIONAL_TAGS["HSE06"]}
    assert {tag: report[tag] for tag in expected} == expected


def test_the_readme_and_the_poscar_say_the_state(tmp_path):
    write_vasp_inputs(slab(), tmp_path, charge=-1, spin_multiplicity=2, functional="HSE06")
    text = (tmp_path / "README.txt").read_text()
    assert "Charge -1, spin multiplicity 2 (doublet, NUPDOWN = 1), functional HSE06 (LHFCALC = True" in text
    assert "POTCARs are those of PBE" in text
    assert "not the PBE" not in text
    assert (tmp_path / "POSCAR").read_text().splitlines()[0] == "B2 N2; charge -1, doublet, HSE06"
    assert read(tmp_path / "POSCAR").get_chemical_symbols() == list("BBNN")
    write_vasp_inputs(slab(), tmp_path / "plain")
    assert (
        "Charge 0, spin multiplicity not fixed, functional PBE.\n" in (tmp_path / "plain" / "README.txt").read_text()
    )
    assert ";" not in (tmp_path / "plain" / "POSCAR").read_text()


@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_a_functional_is_written_whole_or_said_not_to_be(tmp_path, functional):
    report = write_vasp_inputs(slab(), tmp_path, functional=functional.lower())
    text = (tmp_path / "README.txt").read_text()
    if functional in FUNCTIONAL_TAGS:
        assert FUNCTIONAL_TAGS[functional].items() <= report.incar.items()
        assert f"functional {functional}" in text
        assert not any("functional" in warning or "not the PBE" in warning for warning in report.warnings)
    else:
        assert not {"GGA", "METAGGA", "LHFCALC"} & set(report.incar)
        assert f"Warning: The input set is for PBE, not for {functional}" in text
        assert "functional PBE." in text


def test_what_a_functional_has_beside_its_name_is_said(tmp_path):
    atoms = slab()
    atoms.info["functional"] = "HSE06 a=0.32"
    report = write_vasp_inputs(atoms, tmp_path)
    assert report.incar["AEXX"] == 0.25
    assert any("'HSE06 a=0.32' was taken for HSE06" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spin_multiplicity": 2}, r"1 unpaired electron\) does not go with 16 valence electrons .*an even number"),
        ({"spin_multiplicity": 3, "charge": 1}, r"charge \+1\), an odd number"),
        ({"spin_multiplicity": 3, "incar": {"NELECT": 15}}, r"15 valence electrons \(charge \+1\)"),
        ({"spin_multiplicity": 3, "incar": {"NUPDOWN": 0}}, r"NUPDOWN = 0.* contradicts the spin multiplicity of 3"),
        ({"spin_multiplicity": 3, "incar": {"ISPIN": 1}}, "ISPIN = 1 knows no unpaired electrons"),
        ({"spin_multiplicity": 3, "magnetic": "none"}, "'none' .* the spin multiplicity is 3"),
        ({"spin_multiplicity": 3, "magnetic": "parity"}, "NUPDOWN = 0, and the spin multiplicity is 3"),
        ({"spin_multiplicity": 0}, "must be a whole number"),
        ({"spin_multiplicity": 1.5}, "must be a whole number"),
        ({"functional": "HSE"}, "did you mean HSE06"),
        ({"functional": "HSE06", "incar": {"ALGO": "Fast"}}, "does not work with ALGO = Fast"),
        ({"functional": "HSE06", "incar": {"LHFCALC": False}}, "another functional of the HSE06"),
        ({"functional": "r2SCAN", "incar": {"METAGGA": "SCAN"}}, "another functional of the r2SCAN"),
    ],
    ids=str,
)
def test_contradictions_are_refused_in_one_line(tmp_path, options, message):
    with pytest.raises(InputSetError, match=message) as caught:
        write_vasp_inputs(slab(), tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_singlets_may_go_without_spin_and_vectors_have_no_nupdown(tmp_path):
    closed = write_vasp_inputs(slab(), tmp_path / "closed", spin_multiplicity=1, magnetic="none").incar
    assert (closed["ISPIN"], "NUPDOWN" in closed) == (1, False)
    vectors = write_vasp_inputs(slab(), tmp_path / "soc", spin_multiplicity=3, incar={"LSORBIT": True})
    assert "NUPDOWN" not in vectors.incar
    assert any("nothing fixes the spin multiplicity of 3" in text for text in vectors.warnings)


def test_moments_of_the_atoms_win_and_another_sum_is_said(tmp_path):
    atoms = slab()
    atoms.set_initial_magnetic_moments([2, -2, 0, 0])
    report = write_vasp_inputs(atoms, tmp_path / "open", spin_multiplicity=1)  # an open-shell singlet
    assert report.incar["MAGMOM"] == [2, -2, 0, 0]
    assert not any("adds up" in text for text in report.warnings)
    report = write_vasp_inputs(atoms, tmp_path / "other", spin_multiplicity=3)
    assert any("MAGMOM adds up to 0 μB" in text for text in report.warnings)


def test_valence_electrons_that_nobody_knows_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("ase_definet.dft.incar._known_valences", dict)
    report = write_vasp_inputs(slab(), tmp_path, spin_multiplicity=2)
    assert report.incar["NUPDOWN"] == 1
    assert any("whether a spin multiplicity of 2 goes with them was not checked" in text for text in report.warnings)


def test_the_valence_of_the_users_potcars_decides(tmp_path, monkeypatch):
    folder = tmp_path / "potcars" / "POT_GGA_PAW_PBE_54"
    folder.mkdir(parents=True)
    for symbol, valence in (("B", 2), ("N", 5)):
        (folder / f"POTCAR.{symbol}").write_text(FAKE_POTCAR.format(symbol=symbol, valence=valence))
    monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", str(folder.parent))
    atoms = slab()
    atoms.symbols[0] = "N"  # B N N N: 17 valence electrons of these POTCARs
    with pytest.raises(InputSetError, match="17 valence electrons"):
        write_vasp_inputs(atoms, tmp_path / "run", spin_multiplicity=1)
    assert write_vasp_inputs(atoms, tmp_path / "run", spin_multiplicity=2).incar["NUPDOWN"] == 1


def test_a_geometry_predicted_for_another_state_is_said(tmp_path):
    atoms = slab()
    atoms.info |= {"definet_state": "charge -1, PBE", "charge": -1}
    assert not any("another state" in text for text in write_vasp_inputs(atoms, tmp_path / "same").warnings)
    report = write_vasp_inputs(atoms, tmp_path / "other", charge=1)
    assert any("(charge -1, PBE) than this input set is for (charge +1, PBE)" in text for text in report.warnings)


def test_a_charge_of_the_structure_that_is_not_to_count_contradicts_nothing():
    atoms = slab()
    atoms.info["charge"] = 1
    tags = {"NELECT": 14}
    assert (
        DefiNetRelaxSet(as_structure(atoms), use_structure_charge=False, user_incar_settings=tags).incar["NELECT"]
        == 14
    )
    with pytest.raises(InputSetError, match="that is stated"):
        DefiNetRelaxSet(as_structure(atoms), user_incar_settings=tags).plan()


def test_unknown_is_neutral_pbe_of_any_spin(tmp_path):
    atoms = slab()
    plain = write_vasp_inputs(atoms, tmp_path / "plain").incar
    atoms.info |= {"charge": "unknown", "spin_multiplicity": "unknown", "functional": "unknown"}
    atoms.info["definet_state"] = str(said_of(atoms))
    report = write_vasp_inputs(atoms, tmp_path / "unknown")
    assert report.incar == plain
    assert not any("another state" in text for text in report.warnings)


def test_the_moments_follow_the_order_of_poscar():
    plan = plan_inputs(sandwich(), Options(spin_multiplicity=3, kpoints=(2, 2, 1)))
    moments = np.array(plan.incar["MAGMOM"])
    metal = np.array(plan.sites.symbols) == "Mo"
    assert moments[metal].min() > moments[~metal].max()
    assert isinstance(plan.sites.atoms, Atoms)
