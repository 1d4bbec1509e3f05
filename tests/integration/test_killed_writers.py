"""Killed, crowded or without room, ``enumerate`` and ``relax`` leave whole files, and the next run goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ase.build import bulk
from ase.db import connect
from ase.io import iread, read
from click.testing import CliRunner

from ase_definet.cli import cli, relax
from ase_definet.cli.relax_results import _staged, write_report
from ase_definet.errors import ScreeningError
from ase_definet.matching.library import get_host
from ase_definet.screening.enumeration import DefectSpace, parse_defects
from ase_definet.screening.screen import structures_of
from ase_definet.structures import files

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="kills forked processes, for speed"
)
KINDS = ("all.extxyz", "all.db", "new", "old")
OLD, NEW = "v_Se + W_Se", "v_Se*2"
MOMENTS = 4


def enumerate_into(output, defects, *more):
    return ["enumerate", "--host", "WSe2", "--supercell", "5x5", "--defects", defects, "-o", str(output), *more]


def in_child(arguments):
    """Start a command in a process of its own that has everything imported."""
    child = multiprocessing.get_context("fork").Process(
        target=lambda: sys.exit(CliRunner().invoke(cli, arguments).exit_code)
    )
    child.start()
    return child


def content(output):
    """Return the names of the structures of an output, None where there is none yet."""
    if not output.exists():
        return None
    if output.is_dir():
        return sorted(path.stem for path in output.glob("*.vasp") if read(path))
    if output.suffix == ".db":
        return sorted(row.name for row in connect(output).select())
    return sorted(atoms.info["name"] for atoms in iread(output, ":"))


def names(defects):
    space = DefectSpace(get_host("WSe2"), [[5, 0, 0], [0, 5, 0], [0, 0, 1]])
    return sorted(one.name for one in space.enumerate(parse_defects(defects)))


@pytest.fixture(scope="module")
def expected():
    return {defects: names(defects) for defects in (OLD, NEW)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_at_random_moments(tmp_path, kind, moment, expected):
    output = tmp_path / kind
    if kind != "new":
        first = in_child(enumerate_into(output, OLD))
        first.join()
        assert first.exitcode == 0
        assert content(output) == expected[OLD]
    began = time.monotonic()
    timed = in_child(enumerate_into(tmp_path / f"timed{output.suffix}", NEW))
    timed.join()
    whole = time.monotonic() - began
    child = in_child(enumerate_into(output, NEW, "--overwrite"))
    share = random.Random(f"{kind}{moment}").random()  # noqa: S311 - a seed repeats it
    time.sleep(whole * (moment + share) / MOMENTS)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    if output.is_dir() and (output / files.INCOMPLETE).exists():
        with pytest.raises(ScreeningError, match="incomplete"):
            next(structures_of([output]))
    else:
        assert content(output) in (None if kind == "new" else expected[OLD], expected[NEW])
    again = in_child(enumerate_into(output, NEW, "--overwrite"))
    again.join(timeout=60)
    assert again.exitcode == 0
    assert content(output) == expected[NEW]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({kind, f"timed{output.suffix}"})
    if output.is_dir():
        assert {path.name for path in output.iterdir() if not path.name.endswith(".vasp")} == {files.MANIFEST}


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from ase.db.sqlite import SQLite3Database
from ase_definet.cli import main
from ase_definet.screening.enumeration import DefectSpace

def kill_in(owner, name, calls):
    method = getattr(owner, name)
    def killing(*arguments, **options):
        nonlocal calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments, **options)
    setattr(owner, name, killing)

where, calls = sys.argv[1].split(":")
owner = {"atoms": DefectSpace, "fsync": os, "replace": Path, "rename": Path, "__exit__": SQLite3Database}[where]
kill_in(owner, where, int(calls))
sys.argv[1:2] = []
main()
"""


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("all.extxyz", "atoms:3"),
        ("all.extxyz", "fsync:0"),
        ("all.extxyz", "replace:0"),
        ("all.db", "atoms:3"),
        ("all.db", "__exit__:0"),
        ("all.db", "fsync:0"),
        ("all.db", "replace:0"),
        ("new", "atoms:3"),
        ("new", "rename:0"),
        ("old", "atoms:3"),
        ("old", "replace:0"),
        ("old", "replace:1"),
        ("old", "replace:5"),
    ],
)
def test_killed_at_every_stage(tmp_path, kind, where, expected):
    output = tmp_path / kind
    if kind == "old":
        CliRunner().invoke(cli, enumerate_into(output, OLD))
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT, where, *enumerate_into(output, NEW, "--overwrite")], check=False
    )
    assert done.returncode == -signal.SIGKILL
    if kind != "old":
        assert not output.exists()
    files._swept.clear()
    rerun = CliRunner().invoke(cli, enumerate_into(output, NEW, *(["--overwrite"] if kind == "old" else [])))
    assert rerun.exit_code == 0, rerun.output
    assert content(output) == expected[NEW]
    assert [path.name for path in tmp_path.iterdir()] == [kind]
    if output.is_dir():
        assert {path.name for path in output.iterdir() if not path.name.endswith(".vasp")} == {files.MANIFEST}


@pytest.mark.parametrize("name", ["all.extxyz", "all.db"])
def test_a_lock_file_of_others_is_not_waited_for(tmp_path, name, expected):
    (tmp_path / f"{name}.lock").write_text("left by a killed run of ASE")
    child = in_child(enumerate_into(tmp_path / name, NEW))
    child.join(timeout=60)
    assert child.exitcode == 0
    assert content(tmp_path / name) == expected[NEW]


@pytest.mark.parametrize("name", ["all.extxyz", "all.db", "set"])
def test_simultaneous_enumerations_end_with_one_whole_result(tmp_path, name, expected):
    output = tmp_path / name
    CliRunner().invoke(cli, enumerate_into(output, OLD))
    children = [in_child(enumerate_into(output, defects, "--overwrite")) for defects in (OLD, NEW, OLD, NEW)]
    for child in children:
        child.join(timeout=120)
    codes = [child.exitcode for child in children]
    assert 0 in codes
    assert name == "set" or codes == [0] * 4
    assert content(output) in list(expected.values())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", KINDS)
def test_no_room(tmp_path, kind, expected):
    resource = pytest.importorskip("resource")
    output = tmp_path / kind
    if kind != "new":
        CliRunner().invoke(cli, enumerate_into(output, OLD))
    room = 1_000 if kind in {"new", "old"} else 20_000

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [sys.executable, "-c", "from ase_definet.cli import main; main()"]
    done = subprocess.run(
        [*command, *enumerate_into(output, NEW, "--overwrite")],
        check=False,
        preexec_fn=limited,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert str(output) in done.stderr
    assert "bug" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert content(output) == (None if kind == "new" else expected[OLD])
    assert [path.name for path in tmp_path.iterdir()] == ([] if kind == "new" else [kind])


@pytest.fixture
def structure(tmp_path):
    space = DefectSpace(get_host("MoS2"), [[4, 0, 0], [0, 4, 0], [0, 0, 1]])
    path = tmp_path / "in.vasp"
    space.atoms(next(space.enumerate(parse_defects("v_S*2")))).write(path)
    return path


RELAXED = ("x.db", "x.json", "x.traj", "x.extxyz", "x.vasp", "x.cif")


@pytest.mark.parametrize("name", RELAXED)
def test_relaxed_structures_are_whole_and_alone(tmp_path, structure, name):
    folder = tmp_path / "new" / "folder"
    (tmp_path / "new").mkdir()
    arguments = ["relax", str(structure), "--host", "MoS2", "-o", str(folder / name)]
    for more in ([], ["--overwrite"], ["--overwrite"]):
        done = CliRunner().invoke(cli, [*arguments, *more])
        assert done.exit_code == 0, done.output
    assert [path.name for path in folder.iterdir()] == [name]
    assert [len(atoms) for atoms in iread(folder / name, ":")] == [46]


def stage_many(path, fmt, size, times):
    atoms = bulk("Cu") * (size, 1, 1)
    for _ in range(times):
        with _staged(path, atoms, fmt):
            pass


@pytest.mark.parametrize("fmt", ["db", "json", "traj", "extxyz", "vasp"])
def test_simultaneous_relaxations_end_with_one_whole_file(tmp_path, fmt):
    path = tmp_path / f"x.{fmt}"
    (tmp_path / f"x.{fmt}.lock").write_text("left by a killed run of ASE")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=stage_many, args=(path, fmt, size, 20)) for size in (3, 40)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert [len(atoms) for atoms in iread(path, ":", format=fmt)] in ([3], [40])
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert [len(atoms) for atoms in iread(path, ":", format=fmt)] in ([3], [40])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"x.{fmt}", f"x.{fmt}.lock"]


@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict"])
def test_no_name_ends_a_batch(tmp_path, structure, encoding):
    odd = [os.fsencode(tmp_path) + b"/" + name for name in (b"a\xff\xfe.vasp", "Å→.vasp".encode(), b"z.vasp")]
    for path in odd:
        Path(os.fsdecode(path)).write_bytes(structure.read_bytes())
    Path(os.fsdecode(odd[1])).write_text("damaged")
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", "from ase_definet.cli import main; main()", "relax", *odd, "--host", "MoS2"]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "out"), "--report", str(tmp_path / "report.json")],
        check=False,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C"},
    )
    assert done.returncode == 1
    assert b"2 of 3 structures relaxed, 1 failed" in done.stdout
    assert b"Traceback" not in done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 2
    records = json.loads((tmp_path / "report.json").read_text())
    assert ["error" in record for record in records] == [False, True, False]


def test_relax_makes_no_folder_anew(tmp_path, structure, monkeypatch):
    """A folder that is removed while a batch runs is said for every structure after that, and stays away."""
    second = tmp_path / "second.vasp"
    second.write_bytes(structure.read_bytes())
    out, sets = tmp_path / "out", tmp_path / "sets"

    def removing(job, *arguments, **options):
        record = deliver(job, *arguments, **options)
        shutil.rmtree(out)
        shutil.rmtree(sets)
        return record

    deliver = relax.deliver
    monkeypatch.setattr(relax, "deliver", removing)
    given = ["relax", str(structure), str(second), "--host", "MoS2"]
    done = CliRunner().invoke(cli, [*given, "--output-dir", str(out), "--vasp", str(sets)])
    assert done.exit_code == 1
    assert "no such folder; was it removed" in done.stderr
    assert "1 of 2 structures relaxed, 1 failed" in done.stdout
    assert not out.exists()
    assert not sets.exists()


def test_a_report_goes_into_a_folder_that_exists(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "gone" / "report.json", [])
    assert not (tmp_path / "gone").exists()
