"""Files as people have them: occupancies, symbols, encodings, compression, names, and what is no structure."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from ase_definet.errors import DefiNetWarning, StructureError
from ase_definet.structures import reading
from ase_definet.structures.conversion import as_structure
from ase_definet.structures.reading import read_structure, read_structures, structure_format
from tests.conftest import mos2_with_defects, pristine

TOLERANCE = 1e-6  # Å
PACKED = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
FORMATS = {".cif": "cif", ".extxyz": "extxyz", ".xyz": "extxyz", ".vasp": "vasp", ".json": "json"}


@pytest.fixture
def atoms() -> Atoms:
    out = pristine("MoS2", 2)
    return out[np.argsort(-out.numbers, kind="stable")]


def content(atoms, suffix):
    stream = io.BytesIO() if suffix == ".cif" else io.StringIO()
    write(stream, atoms, format=FORMATS[suffix])
    value = stream.getvalue()
    return value if isinstance(value, bytes) else value.encode()


def assert_same(found, atoms):
    np.testing.assert_array_equal(found.numbers, atoms.numbers)
    np.testing.assert_allclose(found.positions, atoms.positions, atol=TOLERANCE)
    np.testing.assert_allclose(found.cell, atoms.cell, atol=TOLERANCE)


# Occupancies of CIF


def cif(tmp_path, occupancies, atoms=None):
    """Write a CIF with the occupancy of the sixth site, or with one for every site."""
    atoms = pristine("MoS2", 2) if atoms is None else atoms
    rows = iter(
        occupancies if isinstance(occupancies, list) else ["1"] * 5 + [occupancies] + ["1"] * (len(atoms) - 6)
    )
    lines = [
        f"{line.rpartition('  ')[0]}  {next(rows)}" if line.endswith("1.0000") else line
        for line in content(atoms, ".cif").decode().splitlines()
    ]
    (tmp_path / "x.cif").write_text("\n".join([*lines, ""]))
    return tmp_path / "x.cif"


@pytest.mark.parametrize("value", ["0", "0.0", "0.5", "0.50(2)", "0.98", "1.02", "-1", ".5", "half", "0.5(1"])
@pytest.mark.filterwarnings("ignore:Badly formed number")
def test_partial_occupancies_are_refused_with_site_element_and_occupancy(value, tmp_path):
    expected = r"x.cif: .*partial occupancies: site 5 'S4' \(S with occupancy .*\); delete the sites that are vacant"
    with pytest.raises(StructureError, match=expected):
        read_structure(cif(tmp_path, value))


@pytest.mark.parametrize("value", ["1", "1.0", "1.0(0)", "1.00(3)", "0.9999", "1.0004", "."])
def test_whole_occupancies_are_read_and_leave_nothing_behind(value, tmp_path):
    found = read_structure(cif(tmp_path, value))
    assert_same(found, pristine("MoS2", 2))
    assert not found.info
    assert found.pbc.all()


def test_unknown_occupancies_are_whole_and_said(tmp_path):
    with pytest.warns(DefiNetWarning, match=r"occupancies given as unknown were taken as 1: site S4$"):
        assert_same(read_structure(cif(tmp_path, "?")), pristine("MoS2", 2))
    with pytest.warns(DefiNetWarning, match=r"site Mo1 and 11 more$"):
        read_structure(cif(tmp_path, ["?"] * 12))


@pytest.mark.parametrize("symprec", [None, 1e-3])
def test_mixed_sites_with_and_without_symmetry(symprec, tmp_path):
    crystal = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(4.2), [{"Ni": 0.5, "Fe": 0.5}, "O"], [[0, 0, 0], [0.5] * 3]
    )
    crystal.to(str(tmp_path / "x.cif"), symprec=symprec)
    with pytest.raises(StructureError, match=r"site \d+ '(Ni|Fe)\d' \((Ni|Fe) with occupancy 0.5\), .*occupancy 0.5"):
        read_structure(tmp_path / "x.cif")
    crystal.to(str(tmp_path / "x.json"))
    with pytest.raises(StructureError, match=r"x.json: .*Ni with occupancy 0.5 [+] Fe with occupancy 0.5"):
        read_structure(tmp_path / "x.json")


def test_whole_crystals_with_symmetry_are_complete(tmp_path):
    crystal = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.2), ["Ni", "O"], [[0, 0, 0], [0.5] * 3])
    crystal.to(str(tmp_path / "x.cif"), symprec=1e-3)
    found = read_structure(tmp_path / "x.cif")
    assert found.get_chemical_formula() == "Ni4O4"
    assert "occupancy" not in found.info


@pytest.mark.parametrize(("twin", "fine"), [("Ni", True), ("Fe", False)])
def test_sites_given_twice(twin, fine, tmp_path):
    crystal = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.2), ["Ni", "O"], [[0, 0, 0], [0.5] * 3])
    text = crystal.to(fmt="cif", symprec=1e-3)
    (tmp_path / "x.cif").write_text(text.rstrip() + f"\n  {twin}  {twin}9  4  0.5  0.5  0.0  1\n")
    if fine:
        assert read_structure(tmp_path / "x.cif").get_chemical_formula() == "Ni4O4"
        return
    with pytest.raises(StructureError, match=r"sites Ni0 \(Ni\) and Fe9 \(Fe\) share one place: remove one"):
        read_structure(tmp_path / "x.cif")


@pytest.mark.parametrize("suffix", [".pdb", ".extxyz"])
def test_occupancies_of_other_formats(suffix, tmp_path):
    atoms = bulk("NiO", "rocksalt", a=4.2, cubic=True)
    atoms.set_array("occupancy", np.array([1.0] * 7 + [0.25]))
    write(tmp_path / f"x{suffix}", atoms)
    with pytest.raises(StructureError, match=r"site 7 \(O with occupancy 0.25\)"):
        read_structure(tmp_path / f"x{suffix}")
    atoms.arrays["occupancy"][:] = 1
    write(tmp_path / f"x{suffix}", atoms)
    assert len(read_structure(tmp_path / f"x{suffix}")) == 8


def test_one_partial_structure_of_several_costs_no_other(tmp_path):
    whole, partial = cif(tmp_path, "1").read_text(), cif(tmp_path, "0.5").read_text().replace("image0", "image1")
    (tmp_path / "x.cif").write_text(whole + partial + whole.replace("image0", "image2"))
    found = list(read_structures(tmp_path / "x.cif"))
    assert len(found) == 3
    with pytest.raises(StructureError, match=r"site 5 'S4' .S with occupancy 0.5"):
        reading.refuse_partial(found[1])
    assert_same(read_structure(tmp_path / "x.cif"), found[0])


# Symbols and moments of CIF and JSON


@pytest.mark.parametrize("kind", ["WSe2", "wse2", "WSE2", "charges"])
def test_type_symbols_in_any_case_and_with_charges(kind, tmp_path):
    atoms = pristine("WSe2", 2)
    text = content(atoms, ".cif").decode()
    w, se = {"WSe2": ("W", "Se"), "wse2": ("w", "se"), "WSE2": ("W", "SE"), "charges": ("W4+", "Se2-")}[kind]
    (tmp_path / "x.cif").write_text(text.replace("  W   W", f"  {w}  W").replace("  Se  Se", f"  {se}  Se"))
    assert_same(read_structure(tmp_path / "x.cif"), atoms)


@pytest.mark.parametrize("magmoms", [True, False])
@pytest.mark.parametrize("name", ["x.cif", "x.mcif"])
def test_moments_of_cif(magmoms, name, tmp_path):
    crystal = as_structure(bulk("NiO", "rocksalt", a=4.2, cubic=True))
    spins = [2, 0, -2, 0, 1, 0, -1, 0]
    crystal.add_spin_by_site(spins)
    CifWriter(crystal, write_magmoms=magmoms).write_file(tmp_path / name)
    found = read_structure(tmp_path / name)
    moments = {tuple(np.round(p, 3) % 4.2): m for p, m in zip(found.positions, found.get_initial_magnetic_moments())}  # noqa: B905
    assert moments == {tuple(np.round(site.coords, 3) % 4.2): spin for site, spin in zip(crystal, spins)}  # noqa: B905


@pytest.mark.filterwarnings("ignore:Structure charge:UserWarning")
def test_structures_of_pymatgen_as_json(tmp_path):
    atoms = mos2_with_defects()
    structure = as_structure(atoms)
    structure.add_site_property("magmom", [0.5] * len(atoms))
    structure.set_charge(-1)
    structure.to(str(tmp_path / "x.json"))
    found = read_structure(tmp_path / "x.json")
    assert_same(found, atoms)
    assert (found.get_initial_magnetic_moments() == 0.5).all()
    assert found.info["charge"] == -1


@pytest.mark.filterwarnings("ignore:the site property 'b' was left out")
def test_json_imports_nothing_of_its_own_choice(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    content_ = as_structure(pristine("MoS2", 1)).as_dict()
    evil = {"@module": "evil_module", "@class": "Evil"}
    content_["properties"] = {"a": evil}
    content_["sites"][0]["properties"] = {"b": evil}
    (tmp_path / "x.json").write_text(json.dumps(content_))
    assert len(read_structure(tmp_path / "x.json")) == 3


# Encodings, compression


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", ["BOM", "CRLF", "CR", "UTF-16", "UTF-16BE", "Latin-1"])
def test_encodings(suffix, kind, atoms, tmp_path):
    text = content(atoms, suffix).decode()
    if kind == "Latin-1" and suffix != ".json":  # where a comment goes
        text = {".cif": f"# Größe\n{text}", ".vasp": f"Größe\n{text.partition(chr(10))[2]}"}.get(
            suffix, text.replace("pbc=", "who=Größe pbc=")
        )
    encoded = {
        "BOM": lambda: b"\xef\xbb\xbf" + text.encode(),
        "CRLF": lambda: text.replace("\n", "\r\n").encode(),
        "CR": lambda: text.replace("\n", "\r").encode(),
        "UTF-16": lambda: b"\xff\xfe" + text.encode("utf-16-le"),
        "UTF-16BE": lambda: b"\xfe\xff" + text.encode("utf-16-be"),
        "Latin-1": lambda: text.encode("latin-1"),
    }[kind]()
    (tmp_path / f"x{suffix}").write_bytes(encoded)
    found = read_structure(tmp_path / f"x{suffix}")
    assert_same(found, atoms)
    if kind == "Latin-1" and "xyz" in suffix:
        assert found.info["who"] == "Größe"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("packed", PACKED)
def test_compressed_files(suffix, packed, atoms, tmp_path):
    plain = content(atoms, suffix)
    small = PACKED[packed](plain)
    for name in (f"x{suffix}{packed}", f"x{suffix}{packed.upper()}", f"without{suffix}"):
        (tmp_path / name).write_bytes(small)
        assert_same(read_structure(tmp_path / name), atoms)
        assert structure_format(tmp_path / name) == FORMATS[suffix]
    (tmp_path / f"plain{suffix}{packed}").write_bytes(plain)
    assert_same(read_structure(tmp_path / f"plain{suffix}{packed}"), atoms)
    (tmp_path / f"cut{suffix}{packed}").write_bytes(small[: len(small) // 2])
    with pytest.raises(StructureError, match="the compressed file is cut off"):
        read_structure(tmp_path / f"cut{suffix}{packed}")


def test_many_structures_of_a_compressed_file_come_one_after_the_other(atoms, tmp_path):
    frames = [atoms.copy() for _ in range(5)]
    for k, frame in enumerate(frames):
        frame.info["k"] = k
    write(tmp_path / "x.extxyz", frames)
    (tmp_path / "x.extxyz.gz").write_bytes(gzip.compress((tmp_path / "x.extxyz").read_bytes()))
    for name in ("x.extxyz", "x.extxyz.gz"):
        assert [frame.info["k"] for frame in read_structures(tmp_path / name)] == [0, 1, 2, 3, 4]
        assert read_structure(tmp_path / name).info["k"] == 4
        assert read_structure(tmp_path / name, 0).info["k"] == 0
    write(tmp_path / "x.traj", frames)
    (tmp_path / "x.traj.xz").write_bytes(lzma.compress((tmp_path / "x.traj").read_bytes()))
    assert len(list(read_structures(tmp_path / "x.traj.xz"))) == 5


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("packed", PACKED)
def test_a_compressed_file_is_not_expanded_without_bound(suffix, packed, atoms, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST_EXPANDED", 2**20)
    text = content(atoms, suffix)
    (tmp_path / f"x{suffix}{packed}").write_bytes(PACKED[packed](text + b"\n" * (2**20 - len(text))))
    assert_same(read_structure(tmp_path / f"x{suffix}{packed}"), atoms)
    (tmp_path / f"x{suffix}{packed}").write_bytes(PACKED[packed](text + b"\n" * 2**20))
    for take in (read_structure, lambda path: list(read_structures(path))):
        with pytest.raises(
            StructureError, match="expands to more than 1 MiB: if it really is a structure, unpack it"
        ):
            take(tmp_path / f"x{suffix}{packed}")


def test_a_huge_poscar_is_none(atoms, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST_POSCAR", 2**20)
    (tmp_path / "POSCAR").write_bytes(content(atoms, ".vasp") + b"\n" * 2**20)
    with pytest.raises(StructureError, match="is larger than 1 MiB: expected one structure"):
        read_structure(tmp_path / "POSCAR")


# Names


@pytest.mark.parametrize(
    "name",
    [
        "POSCAR",
        "CONTCAR",
        "CONTCAR.relax",
        "CONTCAR.gz",
        "POSCAR_v_S",
        "POSCAR.v_S_-1",
        "poscar",
        "contcar.orig",
        "v_S.POSCAR",
        "structure.poscar",
        "MoS2.VASP",
        "CONFIG_7.vasp",
        "OUTCAR_start.vasp",
        "mysql.vasp",
        "postgres@2.vasp",
        "v_S@1.vasp",
        "structure.txt",
        "structure",
    ],
)
def test_names_of_poscars(name, atoms, tmp_path):
    text = content(atoms, ".vasp")
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert structure_format(tmp_path / name) == "vasp"
    assert_same(read_structure(tmp_path / name), atoms)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("MOS2.CIF", ".cif"),
        ("POSCAR_MoS2.cif", ".cif"),
        ("structure.txt", ".cif"),
        ("MoS2.XYZ", ".xyz"),
        ("CONTCAR.extxyz", ".extxyz"),
        ("frames", ".extxyz"),
        ("frames.txt", ".extxyz"),
    ],
)
def test_names_of_other_files(name, suffix, atoms, tmp_path):
    (tmp_path / name).write_bytes(content(atoms, suffix))
    assert_same(read_structure(tmp_path / name), atoms)


# What is none


def tarred(data):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("POSCAR")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


BINARY = bytes(range(256)) * 20


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("INCAR", b"ENCUT = 400\n", "holds settings of VASP, no structure: give the POSCAR or CONTCAR"),
        ("INCAR.relax", b"ENCUT = 400\n", "holds settings of VASP"),
        ("POTCAR", b"PAW_PBE Mo_pv\n", "holds pseudopotentials of VASP"),
        ("KPOINTS", b"k\n0\nG\n1 1 1\n", "holds k-points of VASP"),
        ("potcar.gz", gzip.compress(b"PAW\n"), "holds pseudopotentials of VASP"),
        ("make.py", b"from ase import Atoms\n", "it is a Python script"),
        ("job.sh", b"#!/bin/sh\nvasp_std\n", "of no format that ASE knows .*'#!/bin/sh'"),
        ("README.txt", b"These are\nmy structures.\n", "of no format that ASE knows"),
        ("table.csv", b"a,b\n1,2\n", "of no format that ASE knows"),
        ("x.yaml", b"a: 1\n", "of no format that ASE knows"),
        ("blank", b" \n\n", "it is blank"),
        ("empty.cif", b"", "the file is empty"),
        ("x.json", b'{"a": 1, "b": 2}', "found an object with the keys a, b"),
        ("x.json", b"[1, 2]", "found a list"),
        ("x.json", b'{"@class": "DefectEntry", "@module": "doped.core"}', "found DefectEntry"),
        ("x.json", b'{"lattice": ', "is no complete JSON file"),
        ("x.json", b'{"lattice": 3, "sites": []}', "cannot be read as a structure"),
        ("x.png", b"\x89PNG\r\n\x1a\n" + BINARY, "binary file"),
        ("x", BINARY, "binary file"),
        ("x.cif", BINARY, "expected text of the format CIF, found a binary file"),
        ("x.vasp", BINARY, "expected text of the format vasp, found a binary file"),
        ("x.xyz", BINARY, "expected text of the format extxyz, found a binary file"),
        ("POSCAR", BINARY, "expected text of the format vasp, found a binary file"),
        ("x.json", BINARY, "expected text of the format json, found a binary file"),
        ("x.traj", BINARY, "cannot be read as a structure"),
        ("x.db", BINARY, "cannot be read as a structure"),
        ("x.cif", b"nothing of the kind\n", "expected a CIF, found 'nothing of the kind'"),
        ("x.cif", b"data_x\n_cell_length_a 3\n", "no atom sites"),
        ("x.xyz", b"3\n\nMo 0 0 0\n", "cannot be read as a structure .*expected 3"),
        ("x.xyz", b"0\n\n", "holds no atoms"),
        ("x.zip", b"PK\x03\x04" + BINARY, "is a zip archive: unpack it"),
        ("x.vasp.zst", b"\x28\xb5\x2f\xfd" + BINARY, "is compressed with zstd: unpack it"),
        ("x.tar", tarred(b"POSCAR"), "is a tar archive: unpack it"),
        ("x.tar.gz", gzip.compress(tarred(b"POSCAR")), "is a tar archive: unpack it"),
        ("x.db.gz", gzip.compress(b"SQLite format 3"), "can be read unpacked only"),
        ("x.pdf", b"%PDF-1.4\n", "of no format that ASE knows"),
        ("x.html", b"<html></html>\n", "of no format that ASE knows"),
    ],
)
def test_what_is_no_structure_is_said_in_one_line(name, data, reason, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    for take in (read_structure, lambda p: list(read_structures(p))):
        if name == "x.xyz" and reason == "holds no atoms" and take is not read_structure:
            continue  # a frame without atoms is one to the reader of many
        with pytest.raises(StructureError, match=reason) as caught:
            take(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_an_unknown_element_is_named(atoms, tmp_path):
    text = content(atoms, ".cif").decode().replace("  Mo  Mo1", "  Xx  Mo1")
    (tmp_path / "x.cif").write_text(text)
    with pytest.raises(StructureError, match="'Xx' is no element"):
        read_structure(tmp_path / "x.cif")


def test_folders(atoms, tmp_path):
    with pytest.raises(StructureError, match=r"no such file, only a folder of that name: give a file in it$"):
        read_structure(tmp_path)
    (tmp_path / "POSCAR").write_bytes(content(atoms, ".vasp"))
    with pytest.raises(StructureError, match=r"give a file in it, such as .*POSCAR$"):
        read_structure(tmp_path)
    with pytest.raises(StructureError, match=r"no such file$"):
        read_structure(tmp_path / "CONTCAR")


def test_other_formats_are_left_to_ase(atoms, tmp_path):
    for name in ("x.xsf", "x.gen", "x.traj", "x.db", "x.cube"):
        write(tmp_path / name, atoms)
        found, plain = read_structure(tmp_path / name), read(tmp_path / name)
        assert_same(found, plain)
