import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell, mx2
from ase.io import write
from pymatgen.io.ase import AseAtomsAdaptor

from ase_definet.errors import HostError, StructureError
from ase_definet.matching.library import ALIASES, get_host, library
from ase_definet.structures.cell import VACUUM_LENGTH, check_structure, completed_cell, layer_frame, vacuum_axis
from ase_definet.structures.reading import read_structure

LENGTH_TOLERANCE = 1e-6  # Å
FILE_TOLERANCE = 1e-4  # Å, files are written with few decimals

CRYSTALS = {"MgO": 2, "CdTe": 2, "GaN": 4}
SITES = {"BN": 2, "BN-bulk": 4, "GaSe": 4, "InSe": 4, "MoS2": 3, "MoSe2": 3, "P": 4, "WS2": 3, "WSe2": 3} | CRYSTALS
BONDS = {
    "BN": 1.45,
    "BN-bulk": 1.44,
    "CdTe": 2.87,
    "GaN": 1.97,
    "GaSe": 2.47,
    "InSe": 2.69,
    "MgO": 2.13,
    "MoS2": 2.41,
    "MoSe2": 2.54,
    "P": 2.22,
    "WS2": 2.42,
    "WSe2": 2.55,
}  # Å


def layer(name="MoS2", c=20.0):
    host = library()[name]
    atoms = Atoms(numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=True)
    atoms.set_cell([*atoms.cell[:2], [0, 0, c]])
    return atoms


def assert_same_crystal(host, like, tolerance=LENGTH_TOLERANCE):
    assert host.formula == like.formula
    assert sorted(host.numbers) == sorted(like.numbers)
    assert host.layered == like.layered
    n = 2 if host.layered else 3
    lengths, expected = (np.sort(np.linalg.norm(h.cell[:n], axis=1)) for h in (host, like))
    np.testing.assert_allclose(lengths, expected, atol=tolerance)
    volume, expected = (abs(np.linalg.det(h.cell)) for h in (host, like))
    assert volume == pytest.approx(expected, rel=tolerance)
    assert host.nearest_neighbor == pytest.approx(like.nearest_neighbor, abs=tolerance)


# Library


def test_library_hosts_are_the_crystals_of_the_data():
    hosts = library()
    assert {name: len(host.numbers) for name, host in hosts.items()} == SITES
    for name, host in hosts.items():
        assert host.name == name
        assert host.formula == name.removesuffix("-bulk")
        assert host.layered == (name not in {"BN-bulk", *CRYSTALS})
        assert host.periodic == (True, True, not host.layered)
        assert host.nearest_neighbor == pytest.approx(BONDS[name], abs=0.02)
        assert np.linalg.det(host.cell) > 0
        if name not in CRYSTALS:
            np.testing.assert_allclose(host.cell[2], [0, 0, VACUUM_LENGTH if host.layered else 6.67063814])


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("MgO", bulk("MgO", "rocksalt", a=4.25)),
        ("CdTe", bulk("CdTe", "zincblende", a=6.62)),
        ("GaN", bulk("GaN", "wurtzite", a=3.22, c=5.24, u=0.376)),
    ],
)
def test_crystals_of_the_library_are_primitive(name, like):
    assert_same_crystal(library()[name], get_host(like), 0.01)


@pytest.mark.parametrize(("alias", "name"), [*ALIASES.items(), ("mos2", "MoS2"), ("HBN", "BN"), ("wse2", "WSe2")])
def test_names_and_aliases_in_any_case(alias, name):
    assert get_host(alias).name == name
    assert get_host(alias.upper()).name == name


def test_a_host_is_returned_as_it_is():
    host = library()["P"]
    assert get_host(host) is host


@pytest.mark.parametrize(("wrong", "meant"), [("MoS", "MoS2"), ("WSe", "WSe2"), ("phosphoren", "P"), ("h_BN", "BN")])
def test_misspelt_name_gets_a_suggestion(wrong, meant):
    with pytest.raises(HostError, match=f"did you mean '{meant}'"):
        get_host(wrong)


def test_unknown_name_lists_what_there_is():
    with pytest.raises(HostError, match=rf"unknown host 'xyzzy.cif'.*{', '.join(sorted(SITES))}.*structure file"):
        get_host("xyzzy.cif")


# Atoms and Structures


@pytest.mark.parametrize("name", sorted(name for name, host in library().items() if host.layered))
@pytest.mark.parametrize("form", ["primitive", "supercell", "sqrt3", "wrapped", "structure", "c along a", "no c"])
def test_layered_host_in_any_form_is_the_library_host(name, form):
    atoms = layer(name)
    if form == "supercell":
        atoms = atoms.repeat((3, 2, 1))
    elif form == "sqrt3":
        atoms = make_supercell(atoms, [[1, 2, 0], [-2, -1, 0], [0, 0, 1]])
    elif form == "wrapped":
        atoms.positions[:, 2] -= atoms.positions[:, 2].mean()
        atoms.wrap()
    elif form == "structure":
        atoms = AseAtomsAdaptor.get_structure(atoms)
    elif form == "c along a":
        atoms.set_cell(atoms.cell.array[[2, 0, 1]])
    elif form == "no c":
        atoms.set_cell([*atoms.cell[:2], [0, 0, 0]])
        atoms.pbc = (True, True, False)
    host = get_host(atoms)
    assert_same_crystal(host, library()[name])
    # across the layer: the heights, from either side
    heights = np.sort(host.positions @ host.cell[2] / VACUUM_LENGTH)
    expected = np.sort(library()[name].positions[:, 2])
    np.testing.assert_allclose(np.diff(heights), np.diff(expected), atol=LENGTH_TOLERANCE)


@pytest.mark.parametrize(
    ("primitive", "conventional"),
    [
        (bulk("MgO", "rocksalt", a=4.21), bulk("MgO", "rocksalt", a=4.21, cubic=True)),
        (bulk("Si", "diamond", a=5.43), bulk("Si", "diamond", a=5.43, cubic=True)),
        (bulk("ZnO", "wurtzite", a=3.25, c=5.2), bulk("ZnO", "wurtzite", a=3.25, c=5.2).repeat((2, 1, 2))),
    ],
    ids=["MgO", "Si", "ZnO"],
)
def test_crystal_host_in_any_form(primitive, conventional):
    host = get_host(primitive)
    assert len(host.numbers) == len(primitive)
    assert not host.layered
    assert host.periodic == (True, True, True)
    for form in (conventional, conventional.repeat(2), AseAtomsAdaptor.get_structure(conventional)):
        assert_same_crystal(get_host(form), host)


def test_name_of_a_given_host():
    atoms = bulk("GaAs", "zincblende", a=5.65)
    assert get_host(atoms).name == get_host(atoms).formula == "GaAs"
    assert get_host(atoms, name="gallium arsenide").name == "gallium arsenide"


def test_the_atoms_given_are_not_changed():
    atoms = layer().repeat((2, 2, 1))
    before = atoms.copy()
    get_host(atoms)
    assert atoms == before


def test_something_that_is_no_structure():
    with pytest.raises(HostError, match=r"expected an ase.Atoms or a pymatgen Structure, found int"):
        get_host(42)


# Files


@pytest.mark.parametrize("filename", ["POSCAR", "host.cif", "host.xyz", "host.json"])
def test_host_from_a_file(tmp_path, filename):
    path = tmp_path / filename
    write(path, layer().repeat((2, 2, 1)))
    for given in (path, str(path)):
        host = get_host(given)
        assert host.name == path.stem
        assert host.source == str(path)
        assert_same_crystal(host, library()["MoS2"], FILE_TOLERANCE)


def spoilt(path, what):
    atoms = layer().repeat((2, 2, 1))
    if what == "no cell":
        atoms.cell[:] = 0
        atoms.pbc = False
        write(path, atoms, format="xyz")
        return
    if what == "nan":
        atoms.positions[3, 0] = np.nan
    elif what == "overlapping":
        atoms.positions[5] = atoms.positions[4] + 0.01
    write(path, atoms, format="extxyz" if path.suffix == ".xyz" else None)
    text = path.read_text()
    if what == "truncated":
        path.write_text(text[: int(0.6 * len(text))])
    elif what == "empty":
        path.write_text("")
    elif what == "binary":
        path.write_bytes(bytes(range(256)))


@pytest.mark.parametrize(
    ("filename", "what", "reason"),
    [
        ("host.xyz", "empty", "empty"),
        ("POSCAR", "empty", "empty"),
        ("POSCAR", "truncated", "cannot be read"),
        ("host.xyz", "truncated", "cannot be read"),
        ("host.cif", "binary", "cannot be read"),
        ("host.qqq", "truncated", "cannot be read"),
        ("host.xyz", "nan", r"atom 3 \(Mo\) has a position that is not a number"),
        ("host.xyz", "overlapping", r"atoms 4 \(S\) and 5 \(S\) overlap"),
        ("host.xyz", "no cell", "expected a periodic cell"),
    ],
)
def test_bad_file_is_refused_with_the_reason(tmp_path, filename, what, reason):
    path = tmp_path / filename
    if path.suffix == ".qqq":
        path.write_text("not a structure at all\n")
    else:
        spoilt(path, what)
    with pytest.raises(HostError, match=reason) as caught:
        get_host(path)
    assert path.stem in str(caught.value)


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(StructureError, match="no such file"):
        read_structure(tmp_path / "POSCAR")
    with pytest.raises(StructureError, match="no such file"):
        read_structure(tmp_path)


# Structures no method could use


def test_usable_structures_pass():
    for atoms in (layer(), layer().repeat((4, 4, 1)), bulk("Si"), mx2("MoS2", vacuum=0), mx2("MoS2")):
        check_structure(atoms)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a.set_cell([[3, 0, 0], [6, 0, 0], [0, 0, 9]]), "rank 2"),
        (lambda a: a.set_cell([[3, 0, 0], [0, 0, 0], [0, 0, 0]]), "rank 1"),
        (lambda a: a.set_cell(np.full((3, 3), np.inf)), "periodic cell"),
        (lambda a: a.symbols.__setitem__(1, "X"), "atom 1 .* is no element"),
        (lambda a: a.__delitem__(range(len(a))), "no atoms"),
        (lambda a: a.positions.__setitem__(2, a.positions[0] + a.cell[0]), r"atoms 0 \(Mo\) and 2 \(S\) overlap"),
        (lambda a: a.set_cell([[30, 0, 0], [0, 30, 0], [0, 0, 30]]), "wire or a molecule"),
    ],
    ids=["dependent", "one vector", "infinite", "placeholder", "empty", "image", "molecule"],
)
def test_unusable_structures_are_refused(change, reason):
    atoms = layer()
    change(atoms)
    with pytest.raises(StructureError, match=reason):
        check_structure(atoms)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda a: a.set_atomic_numbers([*a.numbers[:2], 119]),
            "atom 2 has the atomic number 119, expected 1 to 118",
        ),
        (lambda a: a.set_atomic_numbers([-5, *a.numbers[1:]]), "atom 0 has the atomic number -5"),
        (lambda a: a.set_atomic_numbers([10**6, *a.numbers[1:]]), "atom 0 has the atomic number 1000000"),
        (lambda a: a.set_cell(a.cell * 1e-320), "the cell repeats after"),
        (lambda a: a.set_cell([*a.cell[:2], [0, 0, 1e-320]]), "the cell repeats after"),
        (lambda a: a.set_cell(a.cell * 1e-3), "the cell repeats after"),
        (lambda a: a.set_cell([a.cell[0], a.cell[0] * 3 + [0, 1e-7, 0], a.cell[2]]), "the cell repeats after 1e-07"),
        (lambda a: a.set_cell(a.cell * 1e300), "at most 1e[+]06 Å is expected"),
        (lambda a: a.set_cell([*a.cell[:2], [0, 0, np.inf]]), "a component that is not a number"),
        (lambda a: a.set_cell([[np.nan, 0, 0], *a.cell[1:]]), "a component that is not a number"),
        (lambda a: a.positions.__setitem__((1, 2), 1e300), r"atom 1 .* lies 1e[+]300 Å from the origin"),
    ],
)
def test_numbers_that_no_structure_has_are_refused_as_such(change, reason):
    atoms = layer()
    change(atoms)
    with pytest.raises(StructureError, match=reason):
        check_structure(atoms)


# The frame used for matching


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("start", [-3.0, 0.0, 9.0, 18.0])
def test_layer_is_made_whole_across_the_vacuum(axis, start):
    atoms = layer("GaSe").repeat((3, 3, 1))
    order = [k for k in (0, 1) if k != axis]
    order.insert(axis, 2)
    atoms.set_cell(
        atoms.cell.array[[0, 1, 2] if axis == 2 else np.argsort([axis, *(k for k in range(3) if k != axis)])]
    )
    vacuum = int(np.argmax(atoms.cell.lengths()))
    thickness = np.ptp(atoms.positions[:, 2])
    atoms.positions[:, 2] += start - atoms.positions[:, 2].min()
    atoms.wrap()
    frame, positions, found = layer_frame(atoms.cell.array, atoms.positions)
    assert found == vacuum == vacuum_axis(atoms.cell.array, atoms.positions)
    np.testing.assert_allclose(np.abs(frame[2]), [0, 0, VACUUM_LENGTH], atol=LENGTH_TOLERANCE)
    assert np.ptp(positions[:, 2]) == pytest.approx(thickness)


def test_crystal_has_no_vacuum():
    atoms = bulk("Si", cubic=True).repeat(2)
    frame, positions, axis = layer_frame(atoms.cell.array, atoms.positions)
    assert axis is None
    np.testing.assert_array_equal(frame, atoms.cell.array)
    np.testing.assert_array_equal(positions, atoms.positions)


def test_open_axis_gets_a_normal_longer_than_the_layer():
    atoms = layer("InSe")
    cell = completed_cell(np.array([*atoms.cell[:2], [0, 0, 0]]), atoms.positions)
    np.testing.assert_allclose(cell[2], [0, 0, VACUUM_LENGTH + np.ptp(atoms.positions[:, 2])])
    np.testing.assert_array_equal(cell[:2], atoms.cell[:2])


def test_modules_of_matching_import_neither_torch_nor_pymatgen():
    code = (
        "import sys, ase_definet.matching.site_map, ase_definet.structures.neighbors; "
        "print([m for m in ('torch', 'torch_geometric', 'pymatgen') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
