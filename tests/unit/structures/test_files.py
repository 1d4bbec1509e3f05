"""A file is the old one or the new one, and so is a folder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest

from ase_definet.errors import OutputExistsError, ScreeningError
from ase_definet.structures import files
from ase_definet.structures.files import (
    INCOMPLETE,
    MANIFEST,
    others_in,
    refuse_incomplete,
    replacing,
    replacing_folder,
)

POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions, links and signals")


def visible(folder):
    return {p.name: p.read_text() for p in folder.iterdir() if not p.name.startswith(".")}


def hidden(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(".") and p.name != MANIFEST)


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_new_file_takes_the_place_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as fresh:
        fresh.write_text("one")
        assert not path.exists()
        assert fresh.suffix == path.suffix
    assert path.read_text() == "one"
    with replacing(path) as fresh:
        fresh.write_text("two")
        assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "two"


@pytest.mark.parametrize("where", ["writing", "syncing"])
def test_what_fails_leaves_the_old_one(tmp_path, monkeypatch, where):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, KeyboardInterrupt)):
        half_way(path, where)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def half_way(path, where):
    with replacing(path) as fresh:
        fresh.write_text("half")
        if where == "writing":
            raise KeyboardInterrupt


def test_a_full_disk_names_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OSError, match="No space") as caught, replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught, replacing(path) as fresh:
        fresh.unlink()
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("name", ["a.db", "POSCAR", "x" * 245 + ".extxyz", "ö" * 120, b"\xff\xfe.cif"])
def test_any_name_keeps_its_ending(tmp_path, name):
    path = tmp_path / (os.fsdecode(name) if isinstance(name, bytes) else name)
    if isinstance(name, bytes) and sys.platform == "darwin":
        pytest.skip("names are UTF-8 there")
    with replacing(path) as fresh:
        assert fresh.suffix == path.suffix
        fresh.write_text("whole")
    assert path.read_text() == "whole"
    with pytest.raises(OSError, match=r"too long|cannot find"), replacing(tmp_path / ("x" * 300)) as fresh:
        fresh.write_text("whole")
    assert len(list(tmp_path.iterdir())) == 1


def test_two_writers_never_meet(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert hidden(tmp_path) == []


def write_many(path, text, times):
    for _ in range(times):
        with replacing(path) as fresh, fresh.open("w") as stream:
            for part in text:
                stream.write(part * 1000)


def test_simultaneous_processes_end_with_one_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, letter * 200, 30)) for letter in "abc"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            text = path.read_text()
            assert len(text) == 200_000
            assert len(set(text)) == 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(path.read_text()) == 200_000
    assert hidden(tmp_path) == []


@POSIX
def test_no_link_in_the_way_is_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    with replacing(tmp_path / "a.txt") as fresh:
        planted = fresh
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError), replacing(tmp_path / "a.txt") as fresh:
        fresh.write_text("overwritten")
    assert victim.read_text() == "precious"
    assert planted.is_symlink()


@POSIX
@pytest.mark.parametrize("exists", [True, False])
def test_of_a_link_the_file_it_points_to_is_replaced(tmp_path, exists):
    (tmp_path / "far").mkdir()
    far, link = tmp_path / "far" / "real.txt", tmp_path / "latest.txt"
    if exists:
        far.write_text("old")
    link.symlink_to(far)
    with replacing(link) as fresh:
        assert fresh.parent == far.parent
        fresh.write_text("new")
    assert link.is_symlink()
    assert far.read_text() == "new"


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o664])
def test_permissions_stay(tmp_path, mode):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(mode)
    with replacing(path) as fresh:
        fresh.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_text() == "new"


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_what_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.txt") as fresh:
            fresh.write_text("new")
        with replacing_folder(tmp_path / "folder") as fresh:
            (fresh / "b.txt").write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_what_is_synced_is_open_for_writing(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="asks for the mode of a descriptor")
    modes = []
    monkeypatch.setattr(os, "fsync", lambda fd: modes.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE))
    with replacing(tmp_path / "a.txt") as fresh:
        fresh.write_text("new")
    assert modes == [os.O_RDWR]


@pytest.mark.parametrize("when", ["before", "while writing", "moved"])
def test_no_folder_is_made_anew(tmp_path, when):
    folder = tmp_path / "results"
    folder.mkdir()
    if when == "before":
        folder.rmdir()
    with pytest.raises(FileNotFoundError) as caught, replacing(folder / "a.txt"):
        shutil.move(folder, tmp_path / "elsewhere") if when == "moved" else shutil.rmtree(folder)
    assert caught.value.filename in {str(folder), str(folder / "a.txt")}
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_ordinary_file_stays(tmp_path, kind):
    path = tmp_path / "a.txt"
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("there are no pipes with names here")
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OutputExistsError, match="no ordinary file"), replacing(path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@POSIX
@pytest.mark.parametrize("make", ["file", "folder"])
@pytest.mark.parametrize(
    ("machine", "process", "hours", "stays"),
    [
        ("here", "dead", 0, False),
        ("here", "alive", 0, True),
        ("here", "alive", 48, True),
        ("elsewhere", "dead", 1, True),
        ("elsewhere", "dead", 48, False),
    ],
)
def test_left_overs_go_when_their_writer_is_gone(tmp_path, make, machine, process, hours, stays):
    machine = files._machine() if machine == "here" else "0123abcd"
    process = os.getppid() if process == "alive" else dead_process()
    left = tmp_path / f".ase-definet-{machine}-{process}-{'0' * 16}-b.db"
    journal = left.with_name(f"{left.name}-journal")
    for path in (left, journal):
        if make == "folder":
            path.mkdir()
            (path / "part").write_text("part")
        else:
            path.write_text("part")
        when = time.time() - 3600 * hours
        os.utime(path, (when, when))
    (tmp_path / ".ase-definet-files").write_text("")
    (tmp_path / ".new.b.db").write_text("the user's")
    with replacing(tmp_path / "a.txt") as fresh:
        fresh.write_text("new")
    assert left.exists() == journal.exists() == stays
    assert (tmp_path / ".new.b.db").exists()
    assert (tmp_path / ".ase-definet-files").exists()


def test_a_folder_appears_complete(tmp_path):
    target = tmp_path / "set"
    with replacing_folder(target) as fresh:
        (fresh / "one").write_text("1")
        assert not target.exists()
    assert visible(target) == {"one": "1"}
    assert others_in(target) == 0
    assert hidden(tmp_path) == hidden(target) == []


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_fails_leaves_nothing(tmp_path, there):
    target = tmp_path / "set"
    if there:
        target.mkdir()
        (target / "mine").write_text("mine")

    def fail():
        with replacing_folder(target) as fresh:
            (fresh / "one").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert hidden(tmp_path) == []
    assert not there or (visible(target) == {"mine": "mine"} and hidden(target) == [])
    assert target.exists() == there


def test_exactly_the_files_of_the_earlier_call_go(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    (target / "mine").write_text("mine")
    for names in ("ab", "bc", "d"):
        with replacing_folder(target) as fresh:
            for name in names:
                (fresh / name).write_text(names)
        assert visible(target) == {"mine": "mine"} | dict.fromkeys(names, names)
        assert others_in(target) == 1
        assert hidden(target) == []


def test_a_stale_file_that_was_changed_is_the_users(tmp_path):
    target = tmp_path / "set"
    with replacing_folder(target) as fresh:
        (fresh / "a").write_text("a")
        (fresh / "b").write_text("b")
    (target / "a").write_text("edited")
    with pytest.raises(OutputExistsError, match="changed since"), replacing_folder(target) as fresh:
        (fresh / "c").write_text("c")
    assert visible(target) == {"a": "edited", "b": "b"}
    refuse_incomplete(target)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"name": "../precious", "digest": ""}', '{"name": "/etc/x", "digest": ""}', "\xff"]
)
def test_a_damaged_list_removes_nothing(tmp_path, line):
    (tmp_path / "precious").write_text("precious")
    target = tmp_path / "set"
    with replacing_folder(target) as fresh:
        (fresh / "a").write_text("a")
    (target / MANIFEST).write_text(line, encoding="latin-1")
    with pytest.raises(OutputExistsError, match="damaged"), replacing_folder(target) as fresh:
        (fresh / "c").write_text("c")
    assert visible(target) == {"a": "a"}
    assert (tmp_path / "precious").exists()


def test_a_folder_made_in_the_meantime_stays(tmp_path):
    target, theirs = tmp_path / "set", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "theirs").write_text("theirs")
    with pytest.raises(OutputExistsError, match="in the meantime"), replacing_folder(target):
        shutil.copytree(theirs, target)
    assert visible(target) == {"theirs": "theirs"}
    assert hidden(tmp_path) == []


KILLED_WHILE_MERGING = """
import os, sys
from pathlib import Path
from ase_definet.structures.files import replacing_folder
target, moves = Path(sys.argv[1]), int(sys.argv[2])
replace = Path.replace
def stop(self, other):
    global moves
    if other.parent == target:
        moves -= 1
        if moves < 0:
            os._exit(9)
    return replace(self, other)
with replacing_folder(target) as fresh:
    for name in "bcd":
        (fresh / name).write_text("new")
    Path.replace = stop
"""


@pytest.mark.parametrize("moves", range(6))
def test_a_folder_that_was_cut_off_is_known_and_mended(tmp_path, moves):
    target = tmp_path / "set"
    with replacing_folder(target) as fresh:
        for name in "ab":
            (fresh / name).write_text("old")
    (target / "mine").write_text("mine")
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_MERGING, str(target), str(moves)], check=False)
    found = visible(target)
    assert found.pop("mine") == "mine"
    if done.returncode == 0:
        assert found == dict.fromkeys("bcd", "new")
        refuse_incomplete(target)
        return
    assert INCOMPLETE in found
    with pytest.raises(ScreeningError, match="is incomplete"):
        refuse_incomplete(target)
    files._swept.clear()
    with replacing_folder(target) as fresh:
        (fresh / "e").write_text("last")
    assert visible(target) == {"mine": "mine", "e": "last"}
    assert hidden(target) == []
    refuse_incomplete(target)


def test_a_writer_that_is_still_at_it_is_waited_for(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    mark = target / INCOMPLETE
    mark.write_text(f"written by ase-definet, process {os.getppid()} on {files._machine()}\n")
    with pytest.raises(OutputExistsError, match="another process"), replacing_folder(target):
        pass
    mark.write_text("my notes on what is incomplete")
    refuse_incomplete(target)
    with pytest.raises(OutputExistsError, match="rename it"), replacing_folder(target):
        pass
    assert visible(target) == {INCOMPLETE: "my notes on what is incomplete"}
