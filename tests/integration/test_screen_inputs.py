"""What a screen takes in: folders with other things in them, odd names, broken files, and pipes of any length."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.db import connect
from ase.io import write
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.errors import StructureError
from ase_definet.screening.screen import COLUMNS, FAILURE_COLUMNS, FAILURES, INPUTS, TABLE, read_rows, structures_of
from ase_definet.structures.extxyz import frame_text
from ase_definet.structures.reading import read_each, read_structure
from tests.conftest import REPO, pristine
from tests.integration.test_screen_faults import consistent, vacancy


def command(*inputs, out: Path, more=()):
    return ["screen", *map(str, inputs), "--host", "MoS2", "-o", str(out), "--device", "cpu", *more]


STRAY = {
    "README.txt": b"Cells of Tuesday.\n",
    "job.sh": b"#!/bin/bash\n#SBATCH -N 1\nase-definet screen .\n",
    "x.yaml": b"a: 1\nb: [2, 3]\n",
    "table.csv": b"index,name\n0,a\n",
    "INCAR": b"ENCUT = 400\n",
    "KPOINTS": b"k\n0\nGamma\n1 1 1\n0 0 0\n",
    "photo.png": b"\x89PNG\r\n\x1a\n" + bytes(99),
    "notes.pdf": b"%PDF-1.7\n\x00",
    "DONE": b"",
    "slurm-1.out": b"starting\nended\n",
    "run.log": b"2026-01-01 begun\n",
    "energies.dat": b"0 1\n1 2\n",
    "plot.gnuplot": b"plot 'x'\n",
    "archive.zip": b"PK\x03\x04" + bytes(40),
    "script.py": b"import ase\n",
    "a@1": b"what",
}
BROKEN = {
    "cut.vasp": b"MoS2\n1.0\n3 0 0\n",
    "b.cif": b"no structure",
    "empty.extxyz": b"",
    "POSCAR": b"",
    "CONTCAR_2": b"x",
    "c.xyz": b"3\n\nMo 0 0 0\n",
    "d.json": b"{",
    "e.traj": b"\x00" * 40,
    "f.extxyz.gz": b"\x1f\x8b\x08\x00",
}


@pytest.mark.parametrize("found", [*STRAY, "all"])
def test_what_is_no_structure_is_skipped_and_named(tmp_path, found):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "good.vasp", vacancy())
    stray = STRAY if found == "all" else {found: STRAY[found]}
    for name, content in stray.items():
        (folder / name).write_bytes(content)
    (folder / "below").mkdir()
    for _ in range(2):
        done = CliRunner().invoke(cli, command(folder, out=tmp_path / "out"))
        assert done.exit_code == 0, done.output
        assert f"1 relaxed, 0 failed, {len(stray) + 1} skipped" in done.stdout
        for name in (*stray, "below"):
            assert f"skipped   {folder / name}: " in done.stderr
        assert "bug" not in done.output
    consistent(tmp_path / "out", 1, 0)


@pytest.mark.parametrize("name", BROKEN)
def test_what_looks_like_a_structure_and_is_broken_is_a_failure(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(BROKEN[name])
    write(folder / "Good.vasp", vacancy())
    write(folder / "z.vasp", vacancy(5))
    for _ in range(2):
        done = CliRunner().invoke(cli, command(folder, out=tmp_path / "out"))
        assert done.exit_code == 0, done.output
        assert "2 relaxed, 1 failed" in done.output
        assert "skipped" not in done.output
    consistent(tmp_path / "out", 2, 1)
    (row,) = read_rows(tmp_path / "out" / FAILURES, FAILURE_COLUMNS)
    assert row["name"].startswith(name)
    assert "Error" not in row["reason"].split(":")[0]


def test_a_file_given_by_name_that_is_no_structure_is_a_failure(tmp_path):
    (tmp_path / "README.txt").write_bytes(STRAY["README.txt"])
    write(tmp_path / "a.vasp", vacancy())
    done = CliRunner().invoke(cli, command(tmp_path / "README.txt", tmp_path / "a.vasp", out=tmp_path / "out"))
    assert done.exit_code == 0
    assert "1 relaxed, 1 failed" in done.output


def test_links_to_what_is_gone_are_skipped(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.vasp", vacancy())
    (folder / "gone").symlink_to(tmp_path / "nothing")
    done = CliRunner().invoke(cli, command(folder, out=tmp_path / "out"))
    assert f"skipped   {folder / 'gone'}: not a file" in done.stderr


@pytest.mark.parametrize(
    "name", ["a@1", "a@:", "@0", "x@2@3", "100%", "a#b", "{0}", "a b", "~", "-n", "*", "ä", "a\nb"]
)
@pytest.mark.parametrize("suffix", ["vasp", "extxyz", "cif", "db", "json", "traj", "xsf"])
def test_names_are_names(tmp_path, name, suffix):
    folder = tmp_path / "in"
    folder.mkdir()
    write(tmp_path / f"plain.{suffix}", vacancy())
    shutil.copy(tmp_path / f"plain.{suffix}", folder / f"{name}.{suffix}")
    found = list(structures_of([folder]))
    assert len(found) == 1
    assert not isinstance(found[0][1], Exception), found


@pytest.mark.skipif(sys.platform in {"darwin", "win32"}, reason="its names are Unicode")
@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict", "latin-1:strict"])
def test_names_that_are_not_unicode(tmp_path, encoding):
    folder = os.fsencode(tmp_path) + b"/in\xff"
    os.mkdir(folder)  # noqa: PTH102 - a name in bytes
    write(tmp_path / "a.vasp", vacancy())
    for name in (b"/\xe9.vasp", b"/\xff\xfe.extxyz", b"/ok.vasp", b"/\xe9.txt", b"/bad\xe9.cif"):
        with open(folder + name, "wb") as stream:  # noqa: PTH123
            content = (tmp_path / "a.vasp").read_bytes() if name.endswith(b"vasp") else b"text"
            stream.write(frame_text(vacancy(5))[0].encode() if name.endswith(b"xyz") else content)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPO), "COLUMNS": "80"}
    program = [sys.executable, "-c", "from ase_definet.cli import main; main()"]
    for _ in range(2):
        done = subprocess.run(
            [*program, *command(os.fsdecode(folder), out=tmp_path / "out", more=("--block", "1"))],
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert b"3 relaxed, 1 failed, 1 skipped" in done.stdout
        assert b"Traceback" not in done.stderr
    consistent(tmp_path / "out", 3, 1)
    names = {row["name"] for row in read_rows(tmp_path / "out" / TABLE, COLUMNS)}
    assert names == {"\\udce9.vasp", "\\udcff\\udcfe.extxyz#0", "ok.vasp"}


@pytest.mark.parametrize("suffix", ["extxyz", "extxyz.gz", "xyz.xz"])
def test_one_broken_frame_costs_no_other(tmp_path, suffix):
    import gzip  # noqa: PLC0415
    import lzma  # noqa: PLC0415

    texts = [frame_text(vacancy(k))[0] for k in range(3)]
    texts[1] = texts[1].replace("Mo ", "Qq ")
    opener = {"extxyz": open, "extxyz.gz": gzip.open, "xyz.xz": lzma.open}[suffix]
    with opener(tmp_path / f"a.{suffix}", "wt") as stream:
        stream.write("".join(texts))
    found = list(read_each(tmp_path / f"a.{suffix}"))
    assert [isinstance(one, StructureError) for one in found] == [False, True, False]
    assert np.abs(found[2].positions - vacancy(2).positions).max() < 1e-7


# pipes


def test_the_pipe_gives_what_the_file_gives(tmp_path):
    many = [vacancy(k) for k in range(5)]
    for k, atoms in enumerate(many):
        atoms.info["name"] = f"cell {k}"
    write(tmp_path / "in.extxyz", many)
    text = (tmp_path / "in.extxyz").read_bytes()
    done = CliRunner().invoke(cli, command("-", out=tmp_path / "pipe"), input=text)
    assert done.exit_code == 0, done.output
    CliRunner().invoke(cli, command(tmp_path / "in.extxyz", out=tmp_path / "file"))
    assert (tmp_path / "pipe" / INPUTS).read_text() == (tmp_path / "file" / INPUTS).read_text()
    again = CliRunner().invoke(cli, command("-", out=tmp_path / "pipe"), input=text)
    assert "going on after 5 structures" in again.output
    other = CliRunner().invoke(cli, command("-", out=tmp_path / "pipe"), input=text.replace(b"0.000", b"0.001", 1))
    assert other.exit_code == 1
    assert "holds another structure now" in other.output


def test_a_broken_pipe_keeps_what_came_before(tmp_path):
    text = frame_text(vacancy())[0].encode() + frame_text(vacancy(2))[0].encode()[:-300]
    done = CliRunner().invoke(cli, command("-", out=tmp_path / "out"), input=text + b"")
    assert done.exit_code == 1
    assert "pipe: structure 1: cut off" in done.output
    consistent(tmp_path / "out", 1, 0)


@pytest.mark.parametrize("text", ["", "\n\n", "no structures"])
def test_a_pipe_without_structures(tmp_path, text):
    done = CliRunner().invoke(cli, command("-", out=tmp_path / "out"), input=text)
    assert done.exit_code == 1
    assert "bug" not in done.output


def test_a_pipe_is_given_alone(tmp_path):
    write(tmp_path / "a.vasp", vacancy())
    done = CliRunner().invoke(cli, command("-", tmp_path / "a.vasp", out=tmp_path / "out"))
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()


MEASURE = """
import io, resource, sys
from ase_definet.screening.screen import structures_from
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(1 for _ in structures_from(io.TextIOWrapper(sys.stdin.buffer, "utf-8"), "pipe"))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource is of Unix")
def test_a_long_pipe_takes_little_memory():
    """Of 60 MB nothing is kept: ASE's reader took four bytes for each that came."""
    text = frame_text(pristine("MoS2", 40))[0].encode()
    count = 60_000_000 // len(text) + 1
    with subprocess.Popen(
        [sys.executable, "-c", MEASURE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPO)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(count):
            process.stdin.write(text)
        process.stdin.close()
        found, grown = map(int, process.stdout.read().split())
    assert found == count
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < 20_000_000


def test_structures_come_as_they_are_written():
    """Not when the pipe ends: a screen works while the enumeration before it goes on."""
    from ase_definet.screening.screen import structures_from  # noqa: PLC0415

    asked = []

    def lines():
        for k in range(3):
            asked.append(k)
            yield from io.StringIO(frame_text(vacancy(k))[0])

    source = structures_from(lines(), "pipe")
    next(source)
    assert asked[-1] <= 1
    assert len(list(source)) == 2


@pytest.mark.parametrize("target", ["p.db", "p.extxyz"])
def test_an_enumeration_keeps_its_names_and_multiplicities(tmp_path, target):
    asked = ["enumerate", "--host", "MoS2", "--supercell", "4x4", "--defects", "v_S*2", "--limit", "3"]
    assert CliRunner().invoke(cli, [*asked, "-o", str(tmp_path / target)]).exit_code == 0
    found = list(read_each(tmp_path / target))
    assert all(atoms.info["multiplicity"] > 1 and atoms.info["shortest_defect_distance"] > 2 for atoms in found)
    for _ in range(2):
        done = CliRunner().invoke(cli, command(tmp_path / target, out=tmp_path / "out"))
        assert done.exit_code == 0, done.output
    rows = read_rows(tmp_path / "out" / TABLE, COLUMNS)
    assert [(row["name"], row["multiplicity"]) for row in rows] == [
        (atoms.info["name"], atoms.info["multiplicity"]) for atoms in found
    ]
    assert all(row["name"].startswith("v_Sx2-") for row in rows)


@pytest.mark.parametrize("target", ["p.db", "p.json", "q.json.gz"])
def test_key_value_pairs_of_a_database_are_info(tmp_path, target):
    plain = tmp_path / Path(target).name.removesuffix(".gz")
    with connect(plain) as database:
        database.write(vacancy(), name="first", multiplicity=3, data={"host": "123", "more": [1, 2]})
        database.write(vacancy(5), multiplicity=4)
    if target.endswith(".gz"):
        (tmp_path / target).write_bytes(gzip.compress(plain.read_bytes()))
    one, two = read_each(tmp_path / target)
    assert one.info == {"name": "first", "multiplicity": 3, "host": "123"}
    assert two.info == {"multiplicity": 4}
    assert read_structure(tmp_path / target).info == {"multiplicity": 4}
    assert [name for name, _ in structures_of([tmp_path / target])] == ["first", f"{target}#1"]


OTHERS = {
    "README.md": "# my cells\n",
    "README": "Geometry optimised by hand\n  see below\n",
    "in.in": "&control\n calculation='scf'\n/\n",
    "in": "units metal\natom_style atomic\n",
    "nothing": '0\nLattice="1 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3 pbc="T T T"\n',
    "ids.json": '{"ids": 3}',
    "one.json": '{"1": "first"}',
    "geometry.txt": "Geometry = {\n}\n",
}


@pytest.mark.parametrize("option", ["--from-unrelaxed", None])
def test_the_files_of_this_package_and_of_other_codes_are_no_failures(tmp_path, option):
    atoms = vacancy()
    mixed = atoms[[*range(1, len(atoms), 2), *range(0, len(atoms), 2)]]  # so that there is a site_order.json
    write(tmp_path / "mixed.vasp", mixed)
    asked = [
        "relax",
        str(tmp_path / "mixed.vasp"),
        "--host",
        "MoS2",
        "--vasp",
        str(tmp_path / "in"),
        "--device",
        "cpu",
    ]
    reported = ["--report", str(tmp_path / "report.json"), "-o", str(tmp_path / "relaxed.vasp")]
    done = CliRunner().invoke(cli, [*asked, *reported, *([option] if option else [])])
    assert done.exit_code == 0, done.output
    folder = next(
        path for path in tmp_path.iterdir() if path.is_dir() and (path.name != "in") == (option is not None)
    )
    shutil.copy(tmp_path / "report.json", folder)
    assert {"README.txt", "site_order.json"} <= {path.name for path in folder.iterdir()}
    for name, content in OTHERS.items():
        (folder / name).write_text(content)
    strays = sorted({path.name for path in folder.iterdir() if not path.name.startswith(".")} - {"POSCAR"})
    done = CliRunner().invoke(cli, command(folder, out=tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert f"1 relaxed, 0 failed, {len(strays)} skipped" in done.stdout
    assert all(f"skipped   {folder / name}: " in done.stderr for name in strays)


@pytest.mark.parametrize("inputs", [["a", "b"], ["a/POSCAR", "b/POSCAR"], ["a", "b/POSCAR"], ["b", "a/POSCAR"]])
def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path, monkeypatch, inputs):
    for name, site in (("a", 4), ("b", 5)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "POSCAR", vacancy(site), format="vasp")
        write(tmp_path / name / f"only_{name}.vasp", vacancy(site))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, command(*inputs, out=tmp_path / "out"))
    assert done.exit_code == 0, done.output
    found = [row["name"] for row in read_rows(tmp_path / "out" / TABLE, COLUMNS)]
    assert [name for name in found if "POSCAR" in name] == [f"{given[0]}/POSCAR" for given in inputs]
    assert [name for name in found if "POSCAR" not in name] == [
        f"only_{given}.vasp" for given in inputs if len(given) == 1
    ]
    monkeypatch.chdir(tmp_path / "a")  # the same inputs, called otherwise
    again = CliRunner().invoke(cli, command(*(Path("..") / given for given in inputs), out=tmp_path / "out"))
    assert again.exit_code == 0, again.output


def test_several_structures_in_files_of_one_name(tmp_path):
    for name in ("a", "a/b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "x.extxyz", [vacancy(), vacancy(5)])
    found = [name for name, _ in structures_of([tmp_path / "a", tmp_path / "a" / "b"])]
    assert found == ["x.extxyz#0", "x.extxyz#1", "b/x.extxyz#0", "b/x.extxyz#1"]
    found = [name for name, _ in structures_of([tmp_path / "a"])]
    assert found == ["x.extxyz#0", "x.extxyz#1"]
