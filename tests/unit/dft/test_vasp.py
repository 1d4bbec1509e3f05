"""VASP input sets, read back through pymatgen and ASE."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, mx2
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian, FixScaled
from ase.io import read
from pymatgen.core import SETTINGS
from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar

from ase_definet.dft.vasp import ORDER_FILE, PROFILES, parse_incar_overrides, restore_order, write_vasp_inputs
from ase_definet.errors import InputSetError, OutputExistsError, StructureError

POSITION_TOLERANCE = 1e-10
"""Å; POSCAR holds 16 digits."""
DIPOL_TOLERANCE = 1e-6
"""Fractions of the cell; DIPOL holds six digits."""
VALENCE_BN = 3 + 5

FAKE_POTCAR = """  PAW_PBE {symbol} 01Jan2000
   {valence}.0000000000000000
 parameters from PSCTR are:
   VRHFIN ={symbol}: test
   LEXCH  = PE
   TITEL  = PAW_PBE {symbol} 01Jan2000
   ZVAL   =    {valence}.000
 END of PSCTR-controll parameters
 local part
  0.1 0.2 0.3
End of Dataset
"""


@pytest.fixture(autouse=True)
def no_library(monkeypatch):
    """Whatever library the machine has, tests start without one."""
    monkeypatch.delitem(SETTINGS, "PMG_VASP_PSP_DIR", raising=False)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A POTCAR library with boron and nitrogen of unusual valence, to tell it from pymatgen's table."""
    folder = tmp_path / "potcars" / "POT_GGA_PAW_PBE_54"
    folder.mkdir(parents=True)
    for symbol, valence in (("B", 1), ("N", 2)):
        (folder / f"POTCAR.{symbol}").write_text(FAKE_POTCAR.format(symbol=symbol, valence=valence))
    monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", str(folder.parent))
    return folder


def slab(symbols="BBNN", axis=2, vacuum=20.0):
    """Four atoms in one layer, vacuum along any axis."""
    flat = np.array([[0.0, 0.1, 10.2], [2.5, 0.0, 10.0], [0.0, 2.5, 10.0], [2.5, 2.4, 10.1]])
    # a cyclic permutation keeps the cell right-handed
    return Atoms(symbols, np.roll(flat, axis - 2, axis=1), cell=np.roll([5.0, 5.2, vacuum], axis - 2), pbc=True)


def sandwich():
    """MoS2 as ASE orders it, Mo S S Mo S S ..., with one atom that tells itself apart."""
    atoms = mx2("MoS2", size=(2, 2, 1), vacuum=10)
    atoms.pbc = True
    atoms.positions += np.linspace(0, 0.1, 3 * len(atoms)).reshape(-1, 3)
    return atoms


def test_every_file_reads_back(tmp_path):
    atoms = slab()
    report = write_vasp_inputs(atoms, tmp_path / "deep" / "run")
    assert set(report.files) == {"POSCAR", "INCAR", "KPOINTS", "POTCAR.spec", "README.txt"}
    assert {path.name for path in report.directory.iterdir()} == set(report.files)
    structure = Poscar.from_file(report.directory / "POSCAR").structure
    assert [site.specie.symbol for site in structure] == ["B", "B", "N", "N"]
    np.testing.assert_allclose(structure.lattice.matrix, atoms.cell, atol=POSITION_TOLERANCE)
    np.testing.assert_allclose(structure.cart_coords, atoms.positions, atol=POSITION_TOLERANCE)
    assert dict(Incar.from_file(report.directory / "INCAR")) == report.incar
    kpoints = Kpoints.from_file(report.directory / "KPOINTS")
    assert kpoints.style.name == "Gamma"
    assert tuple(kpoints.kpts[0]) == (1, 1, 1)
    assert (report.directory / "POTCAR.spec").read_text().split() == ["B", "N"]


def test_coordinates_are_not_wrapped(tmp_path):
    atoms = slab()
    atoms.positions[0] -= [7.0, 0, 0]
    write_vasp_inputs(atoms, tmp_path)
    np.testing.assert_allclose(read(tmp_path / "POSCAR").positions, atoms.positions, atol=POSITION_TOLERANCE)


def test_order_is_kept_where_species_are_contiguous(tmp_path):
    atoms = slab("NNBC")
    report = write_vasp_inputs(atoms, tmp_path)
    back = read(tmp_path / "POSCAR")
    assert back.get_chemical_symbols() == ["N", "N", "B", "C"]
    assert ORDER_FILE not in report.files
    assert (tmp_path / "POTCAR.spec").read_text().split() == ["N", "B", "C"]
    restored = restore_order(back, tmp_path)
    np.testing.assert_allclose(restored.positions, atoms.positions, atol=POSITION_TOLERANCE)


def test_mixed_species_are_sorted_and_restored(tmp_path):
    atoms = sandwich()
    moments = np.arange(1.0, 1.0 + len(atoms))
    atoms.set_initial_magnetic_moments(moments)
    atoms.set_constraint(FixAtoms([1]))
    report = write_vasp_inputs(atoms, tmp_path)
    poscar = Poscar.from_file(tmp_path / "POSCAR")
    assert poscar.site_symbols == ["Mo", "S"]
    assert (tmp_path / "POTCAR.spec").read_text().split() == ["Mo_pv", "S"]
    order = json.loads((tmp_path / ORDER_FILE).read_text())["poscar_to_input"]
    assert order == [0, 3, 6, 9, 1, 2, 4, 5, 7, 8, 10, 11]
    assert report.incar["MAGMOM"] == moments[order].tolist()
    assert np.flatnonzero(~np.array(poscar.selective_dynamics).any(axis=1)).tolist() == [order.index(1)]
    back = read(tmp_path / "POSCAR")
    assert not np.allclose(back.positions, atoms.positions)
    restored = restore_order(back, tmp_path)
    assert restored.get_chemical_symbols() == atoms.get_chemical_symbols()
    np.testing.assert_allclose(restored.positions, atoms.positions, atol=POSITION_TOLERANCE)
    assert "restore_order" in (tmp_path / "README.txt").read_text()


@pytest.mark.parametrize("content", ['{"poscar_to_input": [0, 1]}', "[]", "not json", '{"poscar_to_input": "x"}'])
def test_foreign_site_order_is_refused(tmp_path, content):
    (tmp_path / ORDER_FILE).write_text(content)
    with pytest.raises(InputSetError, match=ORDER_FILE):
        restore_order(slab(), tmp_path)


def test_constraints_become_selective_dynamics(tmp_path):
    atoms = slab()
    atoms.set_constraint(
        [FixAtoms([0]), FixScaled([1], (True, False, False)), FixCartesian([2], (False, False, True))]
    )
    report = write_vasp_inputs(atoms, tmp_path, kpoints=(2, 2, 1))
    free = np.array(Poscar.from_file(tmp_path / "POSCAR").selective_dynamics)
    assert free.tolist() == [[False] * 3, [False, True, True], [True, True, False], [True] * 3]
    assert report.warnings == ()


def test_cartesian_constraint_follows_the_cell_or_is_named(tmp_path):
    atoms = sandwich()  # hexagonal: a is along x, b is not along y
    atoms.set_constraint(FixCartesian([0], (False, True, False)))  # y: only b leaves it, so b is fixed
    write_vasp_inputs(atoms, tmp_path / "y")
    assert list(Poscar.from_file(tmp_path / "y" / "POSCAR").selective_dynamics[0]) == [True, False, True]
    atoms.set_constraint([FixCartesian([0], (True, False, False)), FixBondLengths([[0, 1]])])
    report = write_vasp_inputs(atoms, tmp_path / "x", kpoints=(2, 2, 1))
    assert Poscar.from_file(tmp_path / "x" / "POSCAR").selective_dynamics is None
    assert ["FixCartesian" in text or "FixBondLengths" in text for text in report.warnings] == [True, True]


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_tags(tmp_path, profile):
    incar = write_vasp_inputs(slab(), tmp_path, profile).incar
    published = {"ENCUT": 500, "EDIFF": 1e-6, "EDIFFG": -0.01, "ISPIN": 2, "ISIF": 2, "ISMEAR": 0, "SIGMA": 0.05}
    careful = {"PREC": "Accurate", "ISYM": 0, "LREAL": False}
    assert {tag: incar[tag] for tag in published} == published
    assert incar["NSW"] == 30
    assert "NUPDOWN" not in incar
    assert ({tag: incar.get(tag) for tag in careful} == careful) is (profile != "paper")
    assert incar["IBRION"] == (1 if profile == "few-steps" else 2)
    assert incar.get("NELMIN") == (5 if profile == "few-steps" else None)


def test_few_steps_is_the_default_and_large_cells_project_in_real_space(tmp_path):
    report = write_vasp_inputs(slab(), tmp_path, large_cell=True)
    assert (report.incar["IBRION"], report.incar["LREAL"]) == (1, "Auto")


def test_overrides_are_written_and_shown(tmp_path):
    report = write_vasp_inputs(slab(), tmp_path, incar={"nsw": 60, "ALGO": "All", "MAGMOM": [1, 2, 3, 4]})
    incar = Incar.from_file(tmp_path / "INCAR")
    assert (incar["NSW"], incar["ALGO"], incar["MAGMOM"]) == (60, "All", [1, 2, 3, 4])
    assert report.overridden["NSW"] == (30, 60)
    assert report.overridden["ALGO"] == (None, "All")
    assert "NSW = 60 (was 30)" in (tmp_path / "README.txt").read_text()


def test_parsed_overrides_are_typed():
    parsed = parse_incar_overrides(["NSW=60", " ediff = 1E-7 ", "LREAL=Auto", "LDIPOL=.FALSE.", "MAGMOM=2*5 2*0.6"])
    assert parsed == {"NSW": 60, "EDIFF": 1e-7, "LREAL": "Auto", "LDIPOL": False, "MAGMOM": [5, 5, 0.6, 0.6]}
    assert isinstance(parsed["NSW"], int)


@pytest.mark.parametrize(
    "bad",
    [
        "NSW",
        "NSW=",
        "=60",
        "N SW=60",
        "NSW=sixty",
        "NSW=60.5",
        "NSW=60 steps",
        "EDIFF=1d-6",
        "LDIPOL=maybe",
        "",
        "SYSTEM=a\udcff",
        "SYSTEM=a\0b",
    ],
)
def test_malformed_overrides_are_refused(bad):
    with pytest.raises(InputSetError):
        parse_incar_overrides([bad])


def test_repeated_override_is_refused():
    with pytest.raises(InputSetError, match="twice"):
        parse_incar_overrides(["NSW=60", "nsw=30"])


@pytest.mark.parametrize("bad", [{"NSW": "sixty"}, {"NSW": None}, {"N SW": 1}, {"MAGMOM": [1.0]}])
def test_bad_override_mapping_writes_nothing(tmp_path, bad):
    with pytest.raises(InputSetError):
        write_vasp_inputs(slab(), tmp_path / "run", incar=bad)
    assert list(tmp_path.iterdir()) == []


def test_unknown_tag_is_written_and_doubted(tmp_path):
    report = write_vasp_inputs(slab(), tmp_path, incar={"NWS": 60})
    assert Incar.from_file(tmp_path / "INCAR")["NWS"] == 60
    assert any("NWS" in text for text in report.warnings)
    assert report.warnings[-1] in (tmp_path / "README.txt").read_text()


def test_high_spin_start(tmp_path):
    incar = write_vasp_inputs(slab("FeWBN"), tmp_path).incar
    assert incar["MAGMOM"] == [5.0, 5.0, 0.6, 0.6]
    assert (tmp_path / "POTCAR.spec").read_text().split() == ["Fe_pv", "W_sv", "B", "N"]


@pytest.mark.parametrize(
    ("symbols", "charge", "nupdown"), [("BBNN", 0, 0), ("BNNC", 0, 1), ("BNNC", 1, 0), ("BBNN", -1, 1)]
)
def test_parity_of_the_electrons(tmp_path, symbols, charge, nupdown):
    incar = write_vasp_inputs(slab(symbols), tmp_path, magnetic="parity", charge=charge).incar
    assert (incar["ISPIN"], incar["NUPDOWN"]) == (2, nupdown)
    assert incar["MAGMOM"] == [1.0] * 4


def test_own_moments_come_first(tmp_path):
    atoms = slab("FeBBN")
    atoms.set_initial_magnetic_moments([-3.0, 0, 0, 0.5])
    assert write_vasp_inputs(atoms, tmp_path).incar["MAGMOM"] == [-3.0, 0, 0, 0.5]
    report = write_vasp_inputs(atoms, tmp_path, magnetic="none", overwrite=True)
    assert report.incar["ISPIN"] == 1
    assert "MAGMOM" not in report.incar
    assert any("ignored" in text for text in report.warnings)


def test_vector_moments_and_unknown_starts_are_refused(tmp_path):
    atoms = slab()
    with pytest.raises(InputSetError, match="high-spin, parity or none"):
        write_vasp_inputs(atoms, tmp_path, magnetic="low-spin")
    atoms.set_initial_magnetic_moments(np.ones((4, 3)))
    with pytest.raises(InputSetError, match="collinear"):
        write_vasp_inputs(atoms, tmp_path)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_kpoint_along_the_vacuum_whichever_axis(tmp_path, axis):
    report = write_vasp_inputs(slab(axis=axis), tmp_path / "grid", kpoints=(3, 3, 3))
    expected = [3, 3, 3]
    expected[axis] = 1
    assert list(Kpoints.from_file(tmp_path / "grid" / "KPOINTS").kpts[0]) == expected
    assert any("K-points" in text for text in report.warnings)
    write_vasp_inputs(slab(axis=axis), tmp_path / "spacing", kpoints=0.3)
    # 2π / 5.0 / 0.3 = 4.2 and 2π / 5.2 / 0.3 = 4.03
    assert list(Kpoints.from_file(tmp_path / "spacing" / "KPOINTS").kpts[0]) == [5 if n == 3 else 1 for n in expected]


def test_bulk_keeps_its_grid_and_has_no_vacuum(tmp_path):
    report = write_vasp_inputs(bulk("Si", cubic=True), tmp_path, kpoints=(3, 2, 1))
    assert tuple(Kpoints.from_file(tmp_path / "KPOINTS").kpts[0]) == (3, 2, 1)
    assert report.warnings == ()


def test_gap_is_perpendicular_in_a_skewed_cell(tmp_path):
    atoms = slab(vacuum=7.0)
    atoms.set_cell([[5, 0, 0], [0, 5.2, 0], [10, 0, 7.0]])  # c is 12.2 Å long, its layers 7 Å apart
    write_vasp_inputs(atoms, tmp_path, kpoints=(1, 1, 2))
    assert tuple(Kpoints.from_file(tmp_path / "KPOINTS").kpts[0]) == (1, 1, 2)


def test_gamma_alone_is_warned_about_in_small_cells_only(tmp_path):
    small = write_vasp_inputs(slab(), tmp_path / "small")
    assert any("Γ alone" in text and "a 5.0 Å, b 5.2 Å" in text for text in small.warnings)
    chosen = write_vasp_inputs(slab(), tmp_path / "chosen", kpoints=(2, 2, 1))
    large = write_vasp_inputs(slab().repeat((4, 4, 1)), tmp_path / "large")
    assert not any("Γ alone" in text for text in chosen.warnings + large.warnings)


@pytest.mark.parametrize("bad", [0, -0.2, float("nan"), (1, 1), (1, 1, 0), (1.5, 1, 1), "Gamma"])
def test_bad_kpoints_are_refused(tmp_path, bad):
    with pytest.raises(InputSetError, match="kpoints"):
        write_vasp_inputs(slab(), tmp_path, kpoints=bad)


def test_thin_vacuum_and_open_axes_are_named(tmp_path):
    thin = write_vasp_inputs(slab(vacuum=12.0), tmp_path / "thin")
    assert any("vacuum along c" in text for text in thin.warnings)
    atoms = bulk("Si", cubic=True)
    atoms.pbc = (True, True, False)
    assert any("not periodic" in text for text in write_vasp_inputs(atoms, tmp_path / "open").warnings)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_dipole_is_centred_on_the_layer(tmp_path, axis, shift):
    atoms = slab(axis=axis)
    atoms.positions[:, axis] += shift  # 10 Å puts the layer across the cell boundary
    atoms.wrap()
    incar = write_vasp_inputs(atoms, tmp_path, dipole=True).incar
    flat = slab(axis=axis)
    centre = (flat.get_center_of_mass()[axis] + shift) / 20.0 % 1.0
    assert (incar["LDIPOL"], incar["IDIPOL"]) == (True, axis + 1)
    assert incar["DIPOL"][axis] == pytest.approx(centre, abs=DIPOL_TOLERANCE)


def test_dipole_needs_one_vacuum_axis_and_no_charge(tmp_path):
    with pytest.raises(InputSetError, match="vacuum axis"):
        write_vasp_inputs(bulk("Si", cubic=True), tmp_path, dipole=True)
    molecule = Atoms("CO", [[5, 5, 5], [5, 5, 6.1]], cell=[15, 15, 16], pbc=True)
    with pytest.raises(InputSetError, match="exactly one"):
        write_vasp_inputs(molecule, tmp_path, dipole=True)
    with pytest.raises(InputSetError, match="charged"):
        write_vasp_inputs(slab(), tmp_path, dipole=True, charge=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("charge", [1, -2])
def test_charge_sets_the_electrons(tmp_path, charge):
    report = write_vasp_inputs(slab(), tmp_path, charge=charge)
    assert report.incar["NELECT"] == 2 * VALENCE_BN - charge
    assert any("image-charge" in text for text in report.warnings)
    assert "image-charge" in (tmp_path / "README.txt").read_text()


def test_neutral_cells_and_own_nelect(tmp_path):
    assert "NELECT" not in write_vasp_inputs(slab(), tmp_path / "neutral").incar
    for given in ({"charge": 1, "incar": {"NELECT": 15}}, {"incar": {"NELECT": 14.5}}):
        own = write_vasp_inputs(slab(), tmp_path / "own", overwrite=True, **given)
        assert own.incar["NELECT"] == given["incar"]["NELECT"]


@pytest.mark.parametrize("electrons", [14, 14.5, 16, 17])
@pytest.mark.parametrize("door", ["option", "info"])
def test_an_nelect_that_contradicts_the_charge_is_refused(tmp_path, electrons, door):
    atoms = slab()
    atoms.info |= {"charge": 1} if door == "info" else {}
    options = {"charge": 1} if door == "option" else {}
    with pytest.raises(InputSetError, match=r"NELECT = .* makes a net charge of .* that is stated .* is \+1"):
        write_vasp_inputs(atoms, tmp_path / "run", incar={"NELECT": electrons}, **options)
    assert list(tmp_path.iterdir()) == []


def test_library_gives_potcar_and_valence(tmp_path, library):
    report = write_vasp_inputs(slab("NNBB"), tmp_path / "run", charge=1)
    text = (tmp_path / "run" / "POTCAR").read_text()
    assert text == (library / "POTCAR.N").read_text() + (library / "POTCAR.B").read_text()
    assert report.incar["NELECT"] == 2 * 1 + 2 * 2 - 1
    assert any("not known to pymatgen" in warning for warning in report.warnings)
    assert "Not included" not in (tmp_path / "run" / "README.txt").read_text()


def test_incomplete_library_is_named(tmp_path, library):
    (library / "POTCAR.N").unlink()
    report = write_vasp_inputs(slab(), tmp_path / "run", charge=1)
    assert "POTCAR" not in report.files
    assert any("No POTCAR was written" in text for text in report.warnings)
    assert report.incar["NELECT"] == 2 * VALENCE_BN - 1


@pytest.mark.parametrize("name", ["POSCAR", "INCAR", "KPOINTS", "POTCAR.spec", "README.txt", ORDER_FILE])
def test_existing_output_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError, match=rf"{name}.*overwrite=True"):
        write_vasp_inputs(slab(), tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_overwrite_replaces_the_set_and_nothing_else(tmp_path):
    write_vasp_inputs(sandwich(), tmp_path)
    (tmp_path / "POTCAR").write_text("mine")
    report = write_vasp_inputs(slab(), tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {*report.files, "POTCAR"}
    assert (tmp_path / "POTCAR").read_text() == "mine"
    assert any("POTCAR already here" in text for text in report.warnings)
    assert read(tmp_path / "POSCAR").get_chemical_symbols() == ["B", "B", "N", "N"]


def test_existing_potcar_of_the_library_is_left_alone(tmp_path, library):
    assert library.is_dir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "POTCAR").write_text("mine")
    with pytest.raises(OutputExistsError, match="POTCAR"):
        write_vasp_inputs(slab(), run)
    write_vasp_inputs(slab(), run, overwrite=True)
    assert Path(run / "POTCAR").read_text() != "mine"


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OutputExistsError, match="give a directory"):
        write_vasp_inputs(slab(), tmp_path / "run", overwrite=True)


def broken(**changes):
    atoms = slab()
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(cell=[5, 5, 5], pbc=True), "found none"),
        (Atoms("B", cell=[5, 5, 0], pbc=True), r"three independent.*ase convert -e .atoms.center.vacuum=8, axis=2."),
        (broken(cell=[[5, 0, 0], [5, 0, 0], [0, 0, 20]]), "three independent"),
        (broken(cell=[[0, 5, 0], [5, 0, 0], [0, 0, 20]]), "right-handed"),
        (broken(positions=np.full((4, 3), np.nan)), "not finite"),
        (slab("BBNX"), "Dummy"),
    ],
)
def test_bad_structures_are_refused(tmp_path, atoms, message):
    with pytest.raises(StructureError, match=message):
        write_vasp_inputs(atoms, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_unknown_profile_and_element_are_refused(tmp_path):
    with pytest.raises(InputSetError, match="paper, few-steps, robust"):
        write_vasp_inputs(slab(), tmp_path, "fast")
    with pytest.raises(InputSetError, match="Og"):
        write_vasp_inputs(slab("OgBBN"), tmp_path)


def test_readme_tells_where_it_came_from(tmp_path):
    provenance = {
        "model": "bundled",
        "model_hash": "abc123",
        "host": "BN",
        "defects": "1 vacancy",
        "version": "0.1.0",
    }
    write_vasp_inputs(slab(), tmp_path, provenance=provenance | {"seed": "7"}, notes=["distances were checked"])
    text = (tmp_path / "README.txt").read_text()
    for piece in (
        *provenance.values(),
        "seed: 7",
        "few-steps",
        "0.5 eV",
        "robust",
        "CONTCAR",
        "distances were checked",
    ):
        assert piece in text


@pytest.mark.parametrize("profile", PROFILES)
def test_a_structure_as_given_is_not_called_a_prediction(tmp_path, profile):
    write_vasp_inputs(slab(), tmp_path / "given", profile)
    text = (tmp_path / "given" / "README.txt").read_text()
    assert text.startswith("Input set for the structure as given; nothing says that it was predicted.")
    assert "DefiNet" not in text
    assert "step 1" not in text
    assert "PREDICTION" not in text
    relaxed = slab()
    relaxed.info["definet_model"] = "default"
    write_vasp_inputs(relaxed, tmp_path / "predicted", profile)
    text = (tmp_path / "predicted" / "README.txt").read_text()
    assert text.startswith("Geometry predicted by DefiNet")
    assert "step 1" in text
    write_vasp_inputs(relaxed, tmp_path / "control", profile, predicted=False)
    assert (tmp_path / "control" / "README.txt").read_text().startswith("Control run")


@pytest.mark.parametrize("large_cell", [False, True])
@pytest.mark.parametrize(
    ("incar", "options"),
    [
        ({"NELECT": 14.5}, {}),
        ({"NELECT": 15}, {"charge": 1}),
        ({"NUPDOWN": 1, "MAGMOM": [1, 0, 0, 0]}, {"charge": 1, "spin_multiplicity": 2}),
        ({"ALGO": "Normal"}, {"functional": "HSE06"}),
        ({"NELECT": 15}, {"charge": 1, "magnetic": "parity"}),
        ({"NUPDOWN": 2, "NELECT": 15.0}, {"charge": 1, "magnetic": "parity"}),
        ({"ISPIN": 1}, {}),
        ({"ISPIN": 1}, {"magnetic": "none"}),
        ({"LSORBIT": True, "MAGMOM": [0, 0, 1] * 4}, {}),
        ({"LREAL": "On", "NSW": 7}, {}),
        ({"DIPOL": [0.5, 0.5, 0.5]}, {"dipole": True}),
    ],
    ids=str,
)
def test_what_an_override_replaced_is_what_the_profile_has_without_it(tmp_path, incar, options, large_cell):
    options = options | {"large_cell": large_cell}
    own = write_vasp_inputs(slab(), tmp_path / "own", **options).incar
    report = write_vasp_inputs(slab(), tmp_path / "changed", incar=incar, **options)
    assert {tag: before for tag, (before, _) in report.overridden.items()} == {tag: own.get(tag) for tag in incar}


def test_import_is_light():
    code = "import sys, ase_definet.dft.vasp; print('pymatgen' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"
