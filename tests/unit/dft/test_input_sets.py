"""The same structure, charge, spin and k-points told to every DFT code."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled
from ase.io import read
from ase.units import Bohr, Hartree, Ry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ase_definet.cli.common import CODES as CLI_CODES
from ase_definet.cli.common import PROFILES as CLI_PROFILES
from ase_definet.dft import cp2k
from ase_definet.dft.codes import CODES, write_inputs
from ase_definet.dft.incar import PROFILES as VASP_PROFILES
from ase_definet.dft.input_set import PROFILES
from ase_definet.dft.ionic_steps import read_steps
from ase_definet.errors import DefiNetWarning, InputSetError, OutputExistsError, StructureError
from ase_definet.structures.state import PREDICTED_STATE, Said
from tests.conftest import mos2_with_defects
from tests.input_sets import NEW_CODES, held, pseudopotentials, species_defaults, told

ELEMENTS = ("Mo", "S", "W", "B", "N", "O", "Cu", "C")


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Say where each code finds what it needs; CP2K's data are not looked for."""
    monkeypatch.setattr(cp2k, "PLACES", ())
    monkeypatch.delenv("CP2K_DATA_DIR", raising=False)
    monkeypatch.setenv("ESPRESSO_PSEUDO", str(pseudopotentials(tmp_path / "pseudo", *ELEMENTS)))
    monkeypatch.setenv("AIMS_SPECIES_DIR", str(species_defaults(tmp_path / "light", *ELEMENTS)))
    return tmp_path


def cp2k_data(folder: Path, *elements: str) -> Path:
    """Make a folder of CP2K's data, as far as they are looked at."""
    folder.mkdir(exist_ok=True)
    (folder / "BASIS_MOLOPT").write_text("".join(f" {one} DZVP-MOLOPT-SR-GTH-q3\n" for one in elements))
    (folder / "GTH_POTENTIALS").write_text("".join(f"{one} GTH-PBE-q3 GTH-PBE\n" for one in elements))
    return folder


def layer(**info) -> Atoms:
    """Return a BN layer, in which the elements do not come in blocks, with 16 Å of vacuum."""
    atoms = Atoms(
        "BNBN",
        [[0, 0, 8], [1.255, 0.72, 8.1], [2.51, 0, 8], [3.76, 0.75, 7.9]],
        cell=[5.02, 2.51, 16, 90, 90, 120],
        pbc=True,
    )
    atoms.info |= info
    return atoms


def same_structure(found: Atoms, atoms: Atoms) -> None:
    assert found.get_chemical_symbols() == atoms.get_chemical_symbols()
    np.testing.assert_allclose(found.positions, atoms.positions, atol=1e-7)
    np.testing.assert_allclose(np.asarray(found.cell), np.asarray(atoms.cell), atol=1e-7)


def test_tables_agree():
    assert tuple(CODES) == CLI_CODES
    assert tuple(VASP_PROFILES) == PROFILES == CLI_PROFILES
    assert all(name == code.name for name, code in CODES.items())


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_code_and_profile(code, profile, library):
    report = write_inputs(mos2_with_defects(), library / "run", code, profile, kpoints=(2, 2, 1))
    assert {*CODES[code].writes, "README.txt"} <= set(report.files)
    assert {path.name for path in (library / "run").iterdir()} == set(report.files)
    text = (library / "run" / "README.txt").read_text()
    assert CODES[code].title in text or code == "vasp"
    assert f"Profile {profile}" in text
    assert "count-steps" in text
    for warning in report.warnings:
        assert warning in text


@pytest.mark.parametrize("code", NEW_CODES)
@pytest.mark.parametrize(
    ("info", "options", "charge", "unpaired"),
    [
        ({}, {}, 0, None),
        ({"charge": -1}, {}, -1, None),
        ({"charge": 2, "spin_multiplicity": 3}, {}, 2, 2),
        ({"charge": -1, "spin_multiplicity": 2}, {}, -1, 1),
        ({"charge": -1}, {"charge": 1, "spin_multiplicity": 4}, 1, 3),
        ({}, {"magnetic": "parity", "charge": 1}, 1, 1),
    ],
)
def test_charge_and_spin_are_told(code, info, options, charge, unpaired, library):
    write_inputs(layer(**info), library / "run", code, kpoints=(2, 3, 1), **options)
    found = told(code, library / "run")
    same_structure(found.atoms, layer())
    assert found.charge == charge
    assert found.grid == (2, 3, 1)
    if unpaired is not None:
        assert found.spin
        assert found.unpaired == pytest.approx(unpaired)
    elif code == "cp2k":  # holds the lowest: see README
        assert found.unpaired == abs(charge) % 2
    else:
        assert found.spin
        assert found.unpaired is None


@pytest.mark.parametrize("code", NEW_CODES)
@pytest.mark.parametrize("options", [{"magnetic": "none"}, {"spin_multiplicity": 1}])
def test_paired_spins(code, options, library):
    write_inputs(layer(), library / "run", code, **options)
    found = told(code, library / "run")
    assert not found.spin
    assert found.unpaired in (None, 0)


@pytest.mark.parametrize("code", NEW_CODES)
def test_moments_of_the_atoms_are_where_the_run_starts(code, library):
    atoms = layer()
    atoms.set_initial_magnetic_moments([1.5, 0.5, -1.0, 1.0])
    write_inputs(atoms, library / "run", code)
    found = told(code, library / "run")
    same_structure(found.atoms, atoms)
    assert found.spin
    text = "".join((library / "run" / name).read_text() for name in CODES[code].writes)
    if code == "espresso":  # as parts of the valence electrons of the headers made above
        fractions = [float(value) for value in re.findall(r"starting_magnetization\(\d+\)\s*=\s*(\S+)", text)]
        assert fractions == pytest.approx([1.5 / 6, 0.5 / 8, -1.0 / 6, 1.0 / 8], abs=1e-6)
    elif code == "cp2k":
        assert found.unpaired == 2
        assert re.findall(r"MAGNETIZATION (\S+)", text) == ["1.5", "0.5", "-1", "1"]
    else:
        np.testing.assert_allclose(found.atoms.get_initial_magnetic_moments(), [1.5, 0.5, -1.0, 1.0])


@pytest.mark.parametrize("code", NEW_CODES)
@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        ([FixAtoms([0, 2])], {0: "xyz", 2: "xyz"}),
        ([FixCartesian([1], [True, False, True])], {1: "xz"}),
        ([FixedPlane([3], [0, 0, 1])], {3: "z"}),
        ([FixedLine([3], [0, 0, 2])], {3: "xy"}),
        ([FixScaled([0], [False, False, True])], {0: "z"}),
        ([FixAtoms([0]), FixCartesian([1, 2, 3], [False, False, True])], {0: "xyz", 1: "z", 2: "z", 3: "z"}),
    ],
)
def test_what_is_held_stays_held(code, constraints, expected, library):
    atoms = layer()
    atoms.set_constraint(constraints)
    write_inputs(atoms, library / "run", code)
    found = held(told(code, library / "run").atoms)
    assert {k: "".join(np.array(list("xyz"))[mask]) for k, mask in enumerate(found) if mask.any()} == expected


@pytest.mark.parametrize("code", NEW_CODES)
def test_what_cannot_be_held_is_said(code, library):
    atoms = layer()
    atoms.set_constraint([FixedPlane([3], [1, 1, 0])])
    report = write_inputs(atoms, library / "run", code)
    assert any("FixedPlane constraint was dropped for 1 atom" in text for text in report.warnings)
    assert not held(told(code, library / "run").atoms).any()


@st.composite
def structures(draw):
    """Draw any small crystal, its elements in any order, some of its atoms held along some axes."""
    symbols = draw(st.lists(st.sampled_from(ELEMENTS), min_size=1, max_size=6))
    number = st.floats(-2.0, 2.0, width=32)
    cell = np.diag(draw(st.tuples(*[st.floats(4.0, 12.0, width=32)] * 3)))
    cell[1, 0], cell[2, 0], cell[2, 1] = draw(st.tuples(number, number, number))
    scaled = draw(st.lists(st.tuples(*[st.floats(-1.0, 2.0, width=32)] * 3), min_size=len(symbols), max_size=6))
    atoms = Atoms(symbols, scaled_positions=scaled[: len(symbols)], cell=cell, pbc=True)
    masks = draw(st.lists(st.tuples(*[st.booleans()] * 3), min_size=len(symbols), max_size=len(symbols)))
    atoms.set_constraint([FixCartesian([k], mask) for k, mask in enumerate(masks) if any(mask)])
    charge = draw(st.integers(-2, 2))
    electrons = int(atoms.numbers.sum()) - charge
    multiplicity = 1 + electrons % 2 + 2 * draw(st.integers(0, 1))
    atoms.info |= {"charge": charge} | ({"spin_multiplicity": multiplicity} if draw(st.booleans()) else {})
    return atoms, draw(st.tuples(*[st.integers(1, 3)] * 3))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=structures(), code=st.sampled_from(NEW_CODES), profile=st.sampled_from(PROFILES))
def test_any_structure_comes_back(case, code, profile, library):
    atoms, grid = case
    write_inputs(atoms, library / "run", code, profile, kpoints=grid, overwrite=True)
    found = told(code, library / "run")
    same_structure(found.atoms, atoms)
    assert found.charge == atoms.info["charge"]
    gaps = [axis for axis in range(3) if found.grid[axis] != grid[axis]]
    assert all(found.grid[axis] == 1 for axis in gaps)  # along vacuum
    np.testing.assert_array_equal(held(found.atoms), held(atoms))
    if "spin_multiplicity" in atoms.info and atoms.info["spin_multiplicity"] > 1:
        assert found.unpaired == pytest.approx(atoms.info["spin_multiplicity"] - 1, abs=1e-6)


@pytest.mark.parametrize("code", NEW_CODES)
def test_vacuum_gets_one_k_point_whatever_its_axis(code, library):
    atoms = Atoms("BN", [[8, 0, 0], [8, 0, 1.45]], cell=[16, 2.5, 2.5], pbc=True)
    write_inputs(atoms, library / "run", code, kpoints=0.5)
    assert told(code, library / "run").grid == (1, 6, 6)


def test_limits_are_the_same_in_every_code(library):
    for code in NEW_CODES:
        write_inputs(layer(), library / code, code)
    espresso = read_steps_settings(library / "espresso" / "espresso.pwi")
    assert float(espresso["forc_conv_thr"]) * Ry / Bohr == pytest.approx(0.01, rel=1e-3)
    assert float(espresso["degauss"]) * Ry == pytest.approx(0.05, rel=1e-4)
    settings_, _ = cp2k.read_input(library / "cp2k" / "cp2k.inp")
    assert float(settings_["MOTION/GEO_OPT/MAX_FORCE"]) * Hartree / Bohr == pytest.approx(0.01, rel=1e-4)
    assert "relax_geometry                     trm 0.01" in (library / "aims" / "control.in").read_text()
    script = (library / "gpaw" / "relax.py").read_text()
    assert "FMAX = 0.01" in script
    assert "STEPS = 30" in script
    assert espresso["nstep"] == "30"


def read_steps_settings(path):
    found = re.findall(r"^\s*([\w()]+)\s*=\s*(\S+)\s*$", path.read_text(), re.MULTILINE)
    return dict(found)


def test_two_dimensional_truncation_is_for_charged_layers_along_z(library):
    def written(atoms, **options):
        report = write_inputs(atoms, library / "run", "espresso", overwrite=True, **options)
        return (library / "run" / "espresso.pwi").read_text(), " ".join(report.warnings)

    text, _ = written(layer())
    assert "assume_isolated" not in text
    text, said = written(layer(), charge=-1)
    assert "assume_isolated  = '2D'" in text
    assert "Charged layer" in said
    across_a = Atoms("BN", [[8, 0, 0], [8, 0, 1.45]], cell=[16, 8, 8], pbc=True)
    text, said = written(across_a, charge=1)
    assert "assume_isolated" not in text
    assert "needs the one vacuum axis to be c" in said
    thin = layer()
    thin.cell[2, 2] = 8.0
    text, said = written(thin, charge=1)
    assert "assume_isolated" not in text
    assert "needs a cell of" in said
    text, _ = written(bulk("Cu", cubic=True), charge=1)
    assert "assume_isolated" not in text


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("espresso", "dipfield         = .true."),
        ("cp2k", "SURF_DIP_DIR Z"),
        ("aims", "use_dipole_correction"),
        ("gpaw", "'dipolelayer': 'xy'"),
    ],
)
def test_dipole_correction(code, expected, library):
    write_inputs(layer(), library / "run", code, dipole=True)
    assert any(expected in (library / "run" / name).read_text() for name in CODES[code].writes)
    if code == "gpaw":
        assert told(code, library / "run").atoms.pbc.tolist() == [True, True, False]
    with pytest.raises(InputSetError, match="for neutral layers only"):
        write_inputs(layer(), library / "other", code, dipole=True, charge=1)
    with pytest.raises(InputSetError, match="exactly one vacuum axis"):
        write_inputs(bulk("Cu", cubic=True), library / "other", code, dipole=True)


@pytest.mark.parametrize("code", NEW_CODES)
@pytest.mark.parametrize(
    ("info", "options", "error"),
    [
        ({}, {"spin_multiplicity": 2}, "multiplicity of 2 .* does not go with 24 electrons"),
        ({"charge": 1}, {"spin_multiplicity": 1}, "does not go with 23 electrons"),
        ({}, {"spin_multiplicity": 3, "magnetic": "none"}, "needs polarised spins"),
        ({}, {"spin_multiplicity": 0}, "multiplicity of 1 or more"),
        ({}, {"charge": 30}, "leaves no electrons"),
        ({"functional": "HSE06"}, {}, "HSE06 was asked for, but .* for PBE"),
        ({"excited": True}, {}, "excited state"),
        ({}, {"profile": "quick"}, "Unknown profile 'quick'"),
        ({}, {"magnetic": "up"}, "Unknown magnetic start"),
        ({}, {"kpoints": (0, 1, 1)}, "three positive integers"),
    ],
)
def test_what_no_code_can_do_is_one_line(code, info, options, error, library):
    with pytest.raises(InputSetError, match=error) as caught:
        write_inputs(layer(**info), library / "run", code, **options)
    assert "\n" not in str(caught.value)
    assert not (library / "run").exists()


def test_unknown_code(tmp_path):
    with pytest.raises(InputSetError, match="Unknown code 'siesta'; choose from vasp, espresso"):
        write_inputs(layer(), tmp_path / "run", "siesta")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda a: a.set_cell([5, 5, 0]), "three independent cell vectors"),
        (lambda a: a.set_cell(a.cell[[1, 0, 2]]), "right-handed"),
        (lambda a: a.symbols.__setitem__(0, "X"), "Dummy atoms"),
        (lambda a: a.positions.__setitem__((0, 0), np.nan), "not finite"),
        (lambda a: a.__delitem__(slice(None)), "with atoms; found none"),
    ],
)
def test_structures_that_no_code_takes(code, change, error, library):
    atoms = layer()
    change(atoms)
    with pytest.raises(StructureError, match=error):
        write_inputs(atoms, library / "run", code)


@pytest.mark.parametrize("code", NEW_CODES)
def test_charged_layers_are_doubted(code, library):
    charged = write_inputs(layer(charge=-1), library / "run", code)
    assert any("image-charge correction" in warning for warning in charged.warnings)
    neutral = write_inputs(layer(), library / "other", code)
    assert not any("image-charge correction" in warning for warning in neutral.warnings)


@pytest.mark.parametrize("code", CODES)
def test_a_geometry_of_another_state_is_said(code, library):
    atoms = layer(charge=0)
    atoms.info[PREDICTED_STATE] = str(Said(0, None, "PBE"))
    same = write_inputs(atoms, library / "run", code)
    assert not any("predicted for another state" in warning for warning in same.warnings)
    other = write_inputs(atoms, library / "other", code, charge=-1)
    assert any("predicted for another state (neutral, PBE)" in warning for warning in other.warnings)


def test_cp2k_cannot_pair_odd_electrons(library):
    with pytest.raises(InputSetError, match="CP2K cannot pair 23 electrons"):
        write_inputs(layer(charge=1), library / "run", "cp2k", magnetic="none")


def test_gpaw_cannot_hold_a_spin_beside_a_dipole_layer(library):
    with pytest.raises(InputSetError, match=r"GPAW cannot hold the spin multiplicity \(3\) with a dipole"):
        write_inputs(layer(), library / "run", "gpaw", dipole=True, spin_multiplicity=3)


def test_missing_pseudopotentials_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("ESPRESSO_PSEUDO", raising=False)
    with pytest.raises(InputSetError, match="needs pseudopotentials for B, N: get the SSSP library"):
        write_inputs(layer(), tmp_path / "run", "espresso")
    only_b = pseudopotentials(tmp_path / "b", "B")
    with pytest.raises(InputSetError, match=r"No PBE pseudopotential for N in .*; get one from https://www.mat"):
        write_inputs(layer(), tmp_path / "run", "espresso", library=only_b)
    lda = pseudopotentials(tmp_path / "lda", "B", "N", functional="SLA PZ NOGX NOGC", listed=False)
    with pytest.raises(InputSetError, match=r"B.pbe.UPF, N.pbe.UPF: not PBE"):
        write_inputs(layer(), tmp_path / "run", "espresso", library=lda)
    several = pseudopotentials(tmp_path / "two", "B", "N", listed=False)
    (several / "b_new.upf").write_text((several / "B.pbe.UPF").read_text())
    with pytest.raises(InputSetError, match="Several PBE pseudopotentials for B"):
        write_inputs(layer(), tmp_path / "run", "espresso", library=several)
    with pytest.raises(InputSetError, match="Expected a folder of pseudopotentials"):
        write_inputs(layer(), tmp_path / "run", "espresso", library=tmp_path / "none")
    (only_b / "SSSP.json").write_text('{"N": {"filename": "N.UPF", "cutoff_wfc": 1, "cutoff_rho": 4}}')
    with pytest.raises(InputSetError, match=r"No pseudopotential for N: N.UPF, which the list"):
        write_inputs(layer(), tmp_path / "run", "espresso", library=only_b)
    (only_b / "B.pbe.UPF").write_text("<html>not found</html>")
    with pytest.raises(InputSetError, match="no pseudopotential in the UPF format"):
        write_inputs(layer(), tmp_path / "run", "espresso", library=only_b)


@pytest.mark.parametrize(
    ("code", "make"), [("espresso", pseudopotentials), ("cp2k", cp2k_data), ("aims", species_defaults)]
)
def test_all_elements_that_lack_something_are_named_at_once(code, make, tmp_path):
    atoms = layer()
    atoms.symbols[:] = "BNCN"
    with pytest.raises(InputSetError, match=r"^No .* for N, C in .*\.$"):
        write_inputs(atoms, tmp_path / "run", code, library=make(tmp_path / "library", "B"))
    assert not (tmp_path / "run").exists()


def test_cutoffs_are_those_of_the_list_or_doubted(tmp_path):
    listed = pseudopotentials(tmp_path / "listed", "B", "N")
    report = write_inputs(layer(), tmp_path / "run", "espresso", library=listed)
    text = (tmp_path / "run" / "espresso.pwi").read_text()
    assert re.search(r"ecutwfc\s+= 55\n\s+ecutrho\s+= 440\n", text)
    assert not any("rule of thumb" in warning for warning in report.warnings)
    unlisted = pseudopotentials(tmp_path / "unlisted", "B", "N", listed=False)
    report = write_inputs(layer(), tmp_path / "other", "espresso", library=unlisted)
    assert any("50 and 400 Ry are by rule of thumb" in warning for warning in report.warnings)
    report = write_inputs(layer(), tmp_path / "third", "espresso", library=unlisted, settings={"ecutwfc": 70})
    assert not any("rule of thumb" in warning for warning in report.warnings)


def test_basis_sets_and_species_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cp2k, "PLACES", ())
    monkeypatch.delenv("CP2K_DATA_DIR", raising=False)
    monkeypatch.delenv("AIMS_SPECIES_DIR", raising=False)
    rare = Atoms("Ce", cell=[5, 5, 5], pbc=True)
    with pytest.raises(InputSetError, match="No basis set DZVP-MOLOPT-SR-GTH for Ce in CP2K's data"):
        write_inputs(rare, tmp_path / "run", "cp2k")
    data = tmp_path / "data"
    data.mkdir()
    with pytest.raises(InputSetError, match="found no BASIS_MOLOPT"):
        write_inputs(layer(), tmp_path / "run", "cp2k", library=data)
    (data / "BASIS_MOLOPT").write_text(" B DZVP-MOLOPT-SR-GTH DZVP-MOLOPT-SR-GTH-q3\n N DZVP-MOLOPT-SR-GTH-q5\n")
    (data / "GTH_POTENTIALS").write_text("B GTH-PBE-q3 GTH-PBE\n# N GTH-PBE-q5\n")
    with pytest.raises(InputSetError, match="No pseudopotential GTH-PBE for N"):
        write_inputs(layer(), tmp_path / "run", "cp2k", library=data)
    (data / "GTH_POTENTIALS").write_text("B GTH-PBE-q3 GTH-PBE\nN GTH-PBE-q4\n")
    with pytest.raises(InputSetError, match="other valence electrons"):
        write_inputs(layer(), tmp_path / "run", "cp2k", library=data)
    (data / "GTH_POTENTIALS").write_text("B GTH-PBE-q3 GTH-PBE\nN GTH-PBE-q4\nN GTH-PBE-q5\n")
    write_inputs(layer(), tmp_path / "run", "cp2k", library=data)
    assert "POTENTIAL GTH-PBE-q5" in (tmp_path / "run" / "cp2k.inp").read_text()
    only_b = species_defaults(tmp_path / "light", "B")
    with pytest.raises(InputSetError, match=r"No species defaults for N in .*expected 07_N_default"):
        write_inputs(layer(), tmp_path / "run2", "aims", library=only_b)
    report = write_inputs(layer(), tmp_path / "run2", "aims")
    assert any("has no species defaults for B, N yet" in warning for warning in report.warnings)
    assert "cat FOLDER/{05_B_default,07_N_default} >> control.in" in (tmp_path / "run2" / "README.txt").read_text()
    with pytest.raises(InputSetError, match="POTCARs come from pymatgen's library"):
        write_inputs(layer(), tmp_path / "run3", "vasp", library=data)


@pytest.mark.parametrize(
    ("code", "given", "shown"),
    [
        ("espresso", {"ecutwfc": "70"}, "ecutwfc          = 70"),
        ("espresso", {"mixing_mode": "local-TF"}, "mixing_mode      = 'local-TF'"),
        ("cp2k", {"force_eval/dft/mgrid/cutoff": 600}, "CUTOFF 600"),
        ("cp2k", {"FORCE_EVAL/DFT/XC/VDW_POTENTIAL/POTENTIAL_TYPE": "PAIR_POTENTIAL"}, "POTENTIAL_TYPE PAIR"),
        ("aims", {"xc": "pbe0"}, "xc                                 pbe0"),
        ("aims", {"override_illconditioning": True}, ".true."),
        ("gpaw", {"mode": "{'name': 'pw', 'ecut': 700}"}, "'ecut': 700"),
        ("gpaw", {"basis": "dzp"}, "'basis': 'dzp'"),
    ],
)
def test_settings_replace_and_are_shown(code, given, shown, library):
    report = write_inputs(layer(), library / "run", code, settings=given)
    assert any(shown in (library / "run" / name).read_text() for name in CODES[code].writes)
    (key,) = report.overridden
    assert f"  {key} = " in (library / "run" / "README.txt").read_text()


@pytest.mark.parametrize(
    ("code", "given", "error"),
    [
        ("espresso", {"ENCUT": 500}, "ENCUT is no key of pw.x"),
        ("cp2k", {"CUTOFF": 500}, "expected a CP2K setting by its whole path"),
        ("gpaw", {"mode": "PW(500)"}, "expected a Python literal"),
        ("vasp", {"ENCUT": "high"}, "not a value of the INCAR tag ENCUT"),
    ],
)
def test_settings_that_a_code_does_not_know(code, given, error, library):
    with pytest.raises(InputSetError, match=re.escape(error)):
        write_inputs(layer(), library / "run", code, settings=given)


@pytest.mark.parametrize("code", NEW_CODES)
def test_nothing_is_overwritten_unasked(code, library):
    write_inputs(layer(), library / "run", code)
    before = {path.name: path.read_bytes() for path in (library / "run").iterdir()}
    with pytest.raises(OutputExistsError, match="exists"):
        write_inputs(layer(charge=2), library / "run", code)
    assert before == {path.name: path.read_bytes() for path in (library / "run").iterdir()}
    write_inputs(layer(charge=2), library / "run", code, overwrite=True)
    assert told(code, library / "run").charge == 2


def test_a_charge_that_nobody_stated_is_said(library):
    atoms = layer()
    atoms.set_initial_charges([1, 0, 0, 0])
    with pytest.warns(DefiNetWarning, match="taken from the sum"):
        report = write_inputs(atoms, library / "run", "aims")
    assert told("aims", library / "run").charge == 1
    assert any("taken from the sum" in warning for warning in report.warnings)
    assert "initial_charge" not in (library / "run" / "geometry.in").read_text()


def test_the_script_of_gpaw_runs(tmp_path, monkeypatch):
    """Run it with a calculator that is always there in place of GPAW."""
    asked = {}

    def calculator(**parameters):
        asked.update(parameters)
        return EMT()

    fake = types.ModuleType("gpaw")
    fake.GPAW = calculator
    monkeypatch.setitem(sys.modules, "gpaw", fake)
    atoms = bulk("Cu", cubic=True)
    atoms.positions[0] += 0.2
    atoms.set_constraint(FixAtoms([1]))
    write_inputs(atoms, tmp_path, "gpaw", charge=1)
    monkeypatch.chdir(tmp_path)
    exec(compile((tmp_path / "relax.py").read_text(), "relax.py", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert asked["charge"] == 1
    assert asked["mode"] == {"name": "pw", "ecut": 500.0}
    run = read_steps(tmp_path)
    assert (run.code, run.converged) == ("gpaw", True)
    assert run.steps == len(read(tmp_path / "relax.traj", ":"))
    assert run.fmax[-1] < 0.01 < run.fmax[0]
    np.testing.assert_allclose(run.atoms.positions[1], atoms.positions[1])
