"""The net charge: who states it, what is taken for one, and where that is said."""

import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import SETTINGS, Structure

from ase_definet.cli import cli
from ase_definet.dft.vasp import write_vasp_inputs
from ase_definet.errors import DefiNetWarning, InputSetError, StructureError
from ase_definet.interop.doped import from_doped
from ase_definet.structures.charges import charge_of
from ase_definet.structures.conversion import as_atoms, as_structure
from ase_definet.structures.reading import read_structure
from tests.conftest import mos2_with_defects, pristine

FORMAL = {12: 2, 8: -2}
SAID = r"net charge \+2 taken from the sum of the atoms' initial charges; set info\['charge'\] = 0"


@pytest.fixture(autouse=True)
def no_library(monkeypatch):
    monkeypatch.delitem(SETTINGS, "PMG_VASP_PSP_DIR", raising=False)


def magnesia() -> Atoms:
    """MgO without one O, with the formal charges of its ions: +2 in sum."""
    atoms = bulk("MgO", "rocksalt", a=4.25, cubic=True)
    del atoms[int(np.flatnonzero(atoms.numbers == 8)[0])]
    atoms.set_initial_charges([FORMAL[z] for z in atoms.numbers])
    return atoms


def layer(total: float = 0.0) -> Atoms:
    """h-BN with partial charges of a given sum."""
    atoms = pristine("BN", 2)
    charges = np.where(atoms.numbers == 5, 0.6, -0.6)
    charges[0] += total
    atoms.set_initial_charges(charges)
    return atoms


@given(
    charges=st.lists(st.floats(-3, 3), min_size=1, max_size=30),
    whole=st.integers(-4, 4),
    noise=st.floats(-0.01, 0.01),
)
def test_a_sum_is_a_charge_only_near_a_whole_number_and_then_it_is_said(charges, whole, noise):
    atoms = Atoms("H" * (len(charges) + 1), charges=[*charges, whole + noise - sum(charges)])
    found = charge_of(atoms)
    assert found.value == whole
    assert bool(found.note) == (whole != 0)
    assert found.source == ("initial charges" if whole else "none")
    atoms.info["charge"] = 0
    assert (charge_of(atoms).value, charge_of(atoms).note) == (0, "")


@pytest.mark.parametrize("total", [0.3, -0.5, 1.4, 0.05])
def test_a_sum_that_is_no_whole_number_is_no_charge_and_that_is_said(tmp_path, total):
    with pytest.warns(DefiNetWarning, match="taken as neutral") as caught:
        report = write_vasp_inputs(layer(total), tmp_path, dipole=True)
    assert len(caught) == 1
    assert "NELECT" not in report.incar
    assert "taken as neutral" in (tmp_path / "README.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("total", [0.0, 1e-16, -1e-6, 1e-3])
def test_partial_charges_of_a_neutral_cell_change_nothing(tmp_path, total):
    bare = layer()
    bare.set_initial_charges(None)
    expected = write_vasp_inputs(bare, tmp_path / "bare", dipole=True)
    report = write_vasp_inputs(layer(total), tmp_path / "charges", dipole=True)
    assert report.incar == expected.incar
    assert report.warnings == expected.warnings


def test_formal_charges_set_nelect_and_it_is_said(tmp_path):
    with pytest.warns(DefiNetWarning, match=SAID):
        report = write_vasp_inputs(magnesia(), tmp_path / "formal")
    said = [text for text in report.warnings if "taken from the sum" in text]
    assert len(said) == 1
    assert said[0] in (tmp_path / "formal" / "README.txt").read_text(encoding="utf-8")
    atoms = magnesia()
    atoms.info["charge"] = 0
    assert "NELECT" not in write_vasp_inputs(atoms, tmp_path / "neutral").incar
    atoms.info["charge"] = 2
    stated = write_vasp_inputs(atoms, tmp_path / "stated")
    assert stated.incar["NELECT"] == report.incar["NELECT"]
    assert not any("taken from" in text for text in stated.warnings)


@pytest.mark.parametrize(
    ("given", "value"), [("+1", 1), ("-2", -2), (" 1.0 ", 1), (1.0004, 1), (np.int64(-1), -1), (np.array([2]), 2)]
)
def test_what_states_a_charge(given, value):
    assert charge_of(Atoms("H", info={"charge": given})).value == value


@pytest.mark.parametrize("wrong", ["neutral", "", True, [1, 2], 0.3, "1.5", np.nan, np.inf, {}])
def test_what_does_not(tmp_path, wrong):
    with pytest.raises(StructureError, match=r"info\['charge'\] must be a"):
        charge_of(Atoms("H", info={"charge": wrong}))
    with pytest.raises(InputSetError, match="charge must be a"):
        write_vasp_inputs(layer(), tmp_path / "run", charge=wrong)
    assert list(tmp_path.iterdir()) == []


def test_charges_that_are_no_numbers_are_said():
    found = charge_of(Atoms("HH", charges=[1, np.nan]))
    assert found.value == 0
    assert "not all numbers" in found.note


def test_the_source_stays_through_pymatgen_and_its_files():
    with pytest.warns(DefiNetWarning, match=SAID):
        structure = as_structure(magnesia())
    assert structure._charge == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pymatgen's own view of charges
        copied = Structure.from_dict(structure.as_dict())
    for back in (structure, structure.copy(), copied):
        found = charge_of(as_atoms(back))
        assert (found.value, found.source) == (2, "initial charges")
    structure.set_charge(0)
    assert charge_of(as_atoms(structure)).source == "stated"


@pytest.mark.parametrize("charge", [0, -1])
def test_a_stated_charge_goes_to_pymatgen_and_back(charge):
    atoms = magnesia()
    atoms.info["charge"] = charge
    structure = as_structure(atoms)
    assert structure._charge == charge
    assert charge_of(as_atoms(structure)) == charge_of(atoms)


def test_oxidation_states_are_no_charge_but_are_said(tmp_path):
    bare = magnesia()
    bare.set_initial_charges(None)
    structure = as_structure(bare)
    structure.add_oxidation_state_by_element({"Mg": 2, "O": -2})
    assert structure.charge == 2
    with pytest.warns(DefiNetWarning, match="oxidation states sum to \\+2, which makes no net charge"):
        assert "NELECT" not in write_vasp_inputs(structure, tmp_path / "a").incar
    structure.set_charge(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DefiNetWarning)
        write_vasp_inputs(structure, tmp_path / "b")


def with_states(atoms: Atoms) -> Structure:
    """MoS2 with the usual oxidation states: a charge to pymatgen, once a file has kept their sum."""
    structure = as_structure(atoms)
    structure.add_oxidation_state_by_element({"Mo": 4, "W": 4, "S": -2})
    return structure


NO_CHARGE = r"oxidation states sum to \+\d, which makes no net charge.*info\['charge'\] or --charge"


@pytest.mark.parametrize("form", ["json", "yaml", "dict", "set"])
def test_a_sum_of_oxidation_states_that_pymatgen_kept_is_no_charge(tmp_path, form):
    structure = with_states(mos2_with_defects())
    total = structure.charge
    if form == "set":
        structure.set_charge(total)
    elif form == "dict":
        structure = Structure.from_dict(structure.as_dict())
    else:
        structure.to(str(tmp_path / f"x.{form}"))
        structure = Structure.from_file(tmp_path / f"x.{form}")
    assert structure._charge == total != 0
    with pytest.warns(DefiNetWarning, match=NO_CHARGE):
        report = write_vasp_inputs(structure, tmp_path / "run")
    assert "NELECT" not in report.incar
    assert "makes no net charge" in (tmp_path / "run" / "README.txt").read_text(encoding="utf-8")
    stated = as_atoms(structure)
    stated.info["charge"] = int(total)
    assert charge_of(stated).source == "stated"
    again = as_structure(stated)  # and it stays stated, through pymatgen's files too
    for back in (again, again.copy(), Structure.from_dict(again.as_dict())):
        assert charge_of(as_atoms(back)) == charge_of(stated)


@pytest.mark.parametrize("charge", [0, 1, -1])
def test_a_charge_unlike_the_oxidation_states_is_stated(charge):
    structure = with_states(mos2_with_defects())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pymatgen's own view of charges
        structure.set_charge(charge)
        structure = Structure.from_dict(structure.as_dict())
    assert (charge_of(as_atoms(structure)).value, charge_of(as_atoms(structure)).source) == (charge, "stated")


def test_a_defect_entry_s_charge_state_stays_beside_equal_oxidation_states(tmp_path):
    class Entry:
        defect_supercell = with_states(mos2_with_defects())
        bulk_supercell = as_structure(pristine("MoS2", 4))
        charge_state = int(defect_supercell.charge)

    defect = from_doped(Entry())
    assert charge_of(as_atoms(defect.structure)).value == Entry.charge_state != 0
    assert "NELECT" in write_vasp_inputs(defect.structure, tmp_path).incar
    Entry.charge_state = None
    Entry.defect_supercell = Structure.from_dict(Entry.defect_supercell.as_dict())
    assert from_doped(Entry()).charge == 0


def test_oxidation_states_are_said_by_the_relaxer_and_the_command_line(relaxer, tmp_path):
    with_states(mos2_with_defects()).to(str(tmp_path / "x.json"))
    result = relaxer.predict(read_structure(tmp_path / "x.json"))
    assert result.outside == ()
    assert any("makes no net charge" in text for text in result.warnings)
    done = CliRunner().invoke(cli, ["vasp", str(tmp_path / "x.json"), "-o", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert done.output.count("makes no net charge") == 1
    assert "NELECT" not in (tmp_path / "run" / "INCAR").read_text()


def test_the_relaxer_says_where_a_charge_is_from(relaxer):
    atoms = mos2_with_defects()
    charges = np.where(atoms.numbers == 16, -2.0, 4.0)
    atoms.set_initial_charges(charges)
    result = relaxer.predict(atoms)
    assert result.outside == ("charge",)
    assert any("net charge +4" in text and "taken from the sum" in text for text in result.warnings)
    charges[0] += 0.4
    atoms.set_initial_charges(charges)
    result = relaxer.predict(atoms)
    assert result.outside == ()
    assert any("taken as neutral" in text for text in result.warnings)


def test_the_command_line_says_it_once(tmp_path):
    write(tmp_path / "a.extxyz", magnesia())
    done = CliRunner().invoke(cli, ["vasp", str(tmp_path / "a.extxyz"), "-o", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert done.output.count("taken from the sum of the atoms' initial charges") == 1


@pytest.mark.parametrize(
    "values", [["a", "b"], [b"1", b"2"], [1j, 0], [None, 1]], ids=["text", "bytes", "complex", "none"]
)
def test_charges_of_atoms_that_are_no_numbers_are_no_charge(values):
    atoms = Atoms("BN", positions=[[0, 0, 0], [0, 0, 1.4]], cell=[9, 9, 9], pbc=True)
    atoms.arrays["initial_charges"] = np.array(values)
    found = charge_of(atoms)
    assert found.value == 0
    assert "not all numbers" in found.note


@pytest.mark.parametrize("values", [["a", "b"], [1j, 0]], ids=["text", "complex"])
def test_oxidation_states_that_are_no_numbers_are_ignored(values):
    atoms = Atoms("BN", positions=[[0, 0, 0], [0, 0, 1.4]], cell=[9, 9, 9], pbc=True)
    atoms.arrays["oxi_states"] = np.array(values)
    assert charge_of(atoms).value == 0
