"""The VASP input set as pymatgen, atomate2 and custodian take it."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.io import read
from monty.json import MontyDecoder
from pymatgen.core import SETTINGS, Structure
from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar
from pymatgen.io.vasp.sets import VaspInputSet

from ase_definet.dft.vasp import ORDER_FILE, DefiNetRelaxSet, restore_order, write_vasp_inputs
from ase_definet.errors import DefiNetWarning, InputSetError
from ase_definet.structures.conversion import as_structure
from tests.conftest import mos2_with_defects

pytestmark = pytest.mark.filterwarnings("ignore::ase_definet.errors.DefiNetWarning")

CASES = {
    "plain": {},
    "robust": {"profile": "robust", "kpoints": (2, 2, 1)},
    "paper": {"profile": "paper", "kpoints": 0.3},
    "parity": {"magnetic": "parity", "charge": 1},
    "unpolarised": {"magnetic": "none", "large_cell": True},
    "charged": {"charge": -2},
    "dipole": {"dipole": True},
    "overridden": {"incar": {"NSW": 60, "MAGMOM": {"B": 1.5}, "METAGGA": "R2SCAN", "LASPH": True}},
}


@pytest.fixture(autouse=True)
def no_library(monkeypatch):
    """Whatever library the machine has, tests start without one."""
    monkeypatch.delitem(SETTINGS, "PMG_VASP_PSP_DIR", raising=False)


def layer(symbols: str = "BNBN") -> Atoms:
    flat = np.array([[0.0, 0.1, 10.2], [2.5, 0.0, 10.0], [0.0, 2.5, 10.0], [2.5, 2.4, 10.1]])
    atoms = Atoms(symbols, flat, cell=[5.0, 5.2, 20.0], pbc=True, constraint=FixAtoms([1]))
    atoms.set_initial_magnetic_moments([0.5, -1.0, 2.0, 0.25])
    atoms.info["charge"] = 0
    return atoms


def input_set(structure: Structure | None, options: dict) -> DefiNetRelaxSet:
    names = {"incar": "user_incar_settings", "kpoints": "kpoint_grid"}
    return DefiNetRelaxSet(structure, **{names.get(key, key): value for key, value in options.items()})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("symbols", ["BBNN", "BNBN"])
def test_the_set_holds_what_the_files_hold(name, symbols, tmp_path):
    atoms, options = layer(symbols), CASES[name]
    report = write_vasp_inputs(atoms, tmp_path, **options)
    made = input_set(as_structure(atoms), options)
    assert isinstance(made, VaspInputSet)
    assert str(made.incar) == (tmp_path / "INCAR").read_text()
    assert dict(made.incar) == report.incar
    assert str(made.kpoints).strip() == (tmp_path / "KPOINTS").read_text().strip()
    assert made.potcar_symbols == (tmp_path / "POTCAR.spec").read_text().split()
    written = Poscar.from_file(tmp_path / "POSCAR", check_for_potcar=False)
    assert made.poscar.site_symbols == written.site_symbols
    np.testing.assert_allclose(made.poscar.structure.cart_coords, written.structure.cart_coords, atol=1e-10)
    np.testing.assert_array_equal(made.poscar.selective_dynamics, written.selective_dynamics)


@pytest.mark.parametrize("name", CASES)
def test_what_pymatgen_writes_reads_back(name, tmp_path):
    atoms = layer()
    made = input_set(as_structure(atoms), CASES[name])
    made.write_input(tmp_path / "pymatgen", potcar_spec=True)
    write_vasp_inputs(atoms, tmp_path / "ours", **CASES[name])
    ours, theirs = tmp_path / "ours", tmp_path / "pymatgen"
    assert (theirs / "INCAR").read_text() == (ours / "INCAR").read_text()
    assert Incar.from_file(theirs / "INCAR") == Incar.from_file(ours / "INCAR")
    assert Kpoints.from_file(theirs / "KPOINTS").kpts == Kpoints.from_file(ours / "KPOINTS").kpts
    assert (theirs / "POTCAR.spec").read_text().split() == (ours / "POTCAR.spec").read_text().split()
    back = restore_order(read(theirs / "POSCAR"), theirs)
    assert (theirs / ORDER_FILE).is_file()
    assert back.get_chemical_symbols() == atoms.get_chemical_symbols()
    np.testing.assert_allclose(back.positions, atoms.positions, atol=1e-8)


def test_a_set_without_a_structure_serves_any_number():
    made = DefiNetRelaxSet(profile="robust")
    with pytest.raises(InputSetError, match="no structure"):
        _ = made.incar
    for symbols, species in (("BBNN", ["B", "N"]), ("SiCSiC", ["Si", "C"])):
        found = made.get_input_set(as_structure(layer(symbols)), potcar_spec=True)
        assert found["POSCAR"].site_symbols == species
        assert found["INCAR"]["IBRION"] == 2
        assert len(found["INCAR"]["MAGMOM"]) == 4


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("symbols", ["BNBN", "WSSW"])
def test_a_set_survives_json(name, symbols):
    options = CASES[name]
    if symbols == "WSSW":
        options = {key: value for key, value in options.items() if key != "incar"}
    made = input_set(as_structure(layer(symbols)), options)
    text = json.dumps(made.as_dict(), default=lambda value: value.as_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of pymatgen: overridden POTCARs
        again = MontyDecoder().decode(text)
    assert isinstance(again, DefiNetRelaxSet)
    assert str(again.incar) == str(made.incar)
    assert again.plan().warnings == made.plan().warnings
    assert again.potcar_symbols == made.potcar_symbols


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("user_kpoints_settings", {"reciprocal_density": 100}),
        ("vdw", "dftd3"),
        ("auto_ismear", True),
        ("auto_lreal", True),
        ("auto_ispin", True),
        ("auto_kspacing", True),
        ("auto_metal_kpoints", True),
        ("inherit_incar", True),
        ("constrain_total_magmom", True),
    ],
)
def test_options_of_pymatgen_without_effect_are_refused(option, value):
    structure = as_structure(layer())
    made = DefiNetRelaxSet(structure)
    setattr(made, option, value)  # as atomate2's powerups do
    with pytest.raises(InputSetError, match=f"{option} = .* has no effect"):
        made.get_input_set(potcar_spec=True)


@pytest.mark.parametrize("options", [{"user_potcar_settings": {"W": "W_pv"}}, {"user_potcar_functional": "PBE_64"}])
def test_other_potcars_are_refused(options):
    with pytest.raises(InputSetError, match="PBE_54"):
        DefiNetRelaxSet(**options)


def test_the_charge_is_that_of_the_structure_unless_told_otherwise():
    structure = as_structure(layer())
    structure.set_charge(1)
    neutral = 2 * (3 + 5)
    assert DefiNetRelaxSet(structure).incar["NELECT"] == neutral - 1
    assert DefiNetRelaxSet(structure, charge=-1).incar["NELECT"] == neutral + 1
    assert "NELECT" not in DefiNetRelaxSet(structure, use_structure_charge=False).incar


def test_what_deserves_a_second_look_is_a_warning():
    structure = as_structure(bulk("NaCl", "rocksalt", a=5.64).repeat(2))
    made = DefiNetRelaxSet(structure)
    with pytest.warns(DefiNetWarning, match="Γ alone") as caught:
        made.get_input_set(potcar_spec=True)
    said = [str(item.message) for item in caught if item.category is DefiNetWarning]
    assert said == list(made.plan().warnings)


def test_a_changed_option_counts_at_once():
    made = DefiNetRelaxSet(as_structure(layer()))
    before = made.incar["NSW"]
    made.user_incar_settings["NSW"] = before + 7
    assert made.incar["NSW"] == before + 7


@pytest.mark.filterwarnings("ignore")  # of atomate2's own
def test_atomate2_writes_it(tmp_path, monkeypatch):
    files = pytest.importorskip("atomate2.vasp.files")
    atoms = mos2_with_defects()
    made = DefiNetRelaxSet(profile="robust", kpoint_grid=(1, 1, 1))
    monkeypatch.chdir(tmp_path)
    files.write_vasp_input_set(as_structure(atoms), made, potcar_spec=True)
    write_vasp_inputs(atoms, tmp_path / "ours", "robust")
    assert Incar.from_file(tmp_path / "INCAR") == Incar.from_file(tmp_path / "ours" / "INCAR")
    back = restore_order(read(tmp_path / "POSCAR"), tmp_path)
    assert back.get_chemical_symbols() == atoms.get_chemical_symbols()
    away = back.get_scaled_positions() - atoms.get_scaled_positions()
    assert np.abs((away - np.round(away)) @ np.asarray(atoms.cell)).max() < 1e-8
