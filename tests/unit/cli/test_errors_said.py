"""What the command line says where something goes wrong: whose fault it is, of which file, and where to report it."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write
from ase.io.trajectory import Trajectory
from click.testing import CliRunner, Result

from ase_definet.cli import cli
from ase_definet.cli.common import REPORT, error_text
from ase_definet.data import PackedDataset
from ase_definet.errors import StructureError
from ase_definet.structures.files import new_database, replacing
from tests.conftest import mos2_with_defects


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("in.vasp", mos2_with_defects(4), sort=True)
    return tmp_path


def run(*args: object, **environment: str) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], env=environment)


def relax(*args: object, **environment: str) -> Result:
    return run("relax", "in.vasp", "--host", "MoS2", "--device", "cpu", *args, **environment)


def fail(*_: object, **__: object) -> None:
    raise LookupError("not\nforeseen")


FULL = "(No space left on device|database or disk is full)"

DEBUG = [(("--debug",), {}), ((), {"ASE_DEFINET_DEBUG": "1"})]


@pytest.mark.parametrize("command", [("match", "in.vasp", "--host", "MoS2"), ("data", "info", "in.vasp")])
def test_a_bug_says_where_to_report_it(monkeypatch, command):
    monkeypatch.setattr("ase_definet.cli.match.checked_host", fail)
    monkeypatch.setattr(PackedDataset, "open", fail)
    result = run(*command)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "unexpected LookupError in " in line
    assert "not foreseen; this is a bug: please report it to the issue tracker of ase-definet" in line
    assert "--debug" in line
    assert line.endswith(REPORT)


@pytest.mark.parametrize(("args", "environment"), DEBUG)
def test_debug_shows_the_traceback_and_the_line(monkeypatch, args, environment):
    monkeypatch.setattr(PackedDataset, "open", fail)
    for command in (("data", "info", "in.vasp", *args), (*args, "data", "info", "in.vasp")):
        result = run(*command, **environment)
        assert result.exit_code == 1
        assert "Traceback (most recent call last)" in result.stderr
        assert "in fail" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("Error: unexpected LookupError")
    assert "Traceback" not in run("data", "info", "in.vasp", ASE_DEFINET_DEBUG="0").stderr


@pytest.mark.parametrize(("args", "environment"), DEBUG)
@pytest.mark.parametrize("code", [1, 2])
def test_debug_shows_the_traceback_of_what_is_foreseen_too(args, environment, code):
    command = ("data", "info", "in.vasp") if code == 1 else ("match", "in.vasp", "--host", "MoS3")
    result = run(*command, *args, **environment)
    assert result.exit_code == code
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in run(*command).stderr


@pytest.mark.parametrize(("args", "environment"), DEBUG)
def test_debug_of_one_structure_of_several(args, environment):
    Path("bad.vasp").write_text("no structure")
    result = run("relax", "bad.vasp", "in.vasp", "--host", "MoS2", "--device", "cpu", *args, **environment)
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert Path("in_relaxed.vasp").exists()


def test_every_command_takes_debug():
    commands = dict(cli.commands)
    for group in [command for command in commands.values() if hasattr(command, "commands")]:
        commands |= group.commands
    for command in commands.values():
        assert sum("--debug" in parameter.opts for parameter in command.params) == 1


NUMPY = (np._core if hasattr(np, "_core") else np.core)._exceptions._ArrayMemoryError  # core: before NumPy 2


@pytest.mark.parametrize("error", [MemoryError(), NUMPY((3,), np.dtype(float)), torch.OutOfMemoryError("CUDA")])
def test_too_little_memory_is_no_bug(error):
    assert error_text(error, Path("a.vasp")).startswith("a.vasp: out of memory: ")
    assert "bug" not in error_text(error)


def test_torch_says_too_little_memory_in_its_own_way():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert error_text(caught.value).startswith("out of memory: ")


def test_a_file_system_is_about_its_own_file():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.vasp")
    assert error_text(error, Path("in.vasp")) == "out.vasp: No space left on device"
    assert error_text(OSError(errno.EIO, "gone"), Path("in.vasp")) == "in.vasp: gone"
    assert error_text(StructureError("no cell"), Path("in.vasp")) == "in.vasp: no cell"


def fill(folder: Path) -> None:
    """Leave no room at all on a disk; a feigned one has none anyway."""
    if not os.path.ismount(folder):
        return
    with suppress(OSError), (folder / "more").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1024))


@pytest.mark.parametrize("suffix", ["vasp", "extxyz", "cif", "db"])
def test_a_full_disk_in_relax_is_said_of_the_output(full_disk, suffix):
    fill(full_disk)
    output = full_disk / f"out.{suffix}"
    result = relax("-o", output)
    assert result.exit_code == 1
    assert re.fullmatch(rf"Error: {re.escape(str(output))}: {FULL}", result.stderr.splitlines()[-1])
    assert not output.exists()


def test_a_full_disk_in_enumerate_is_said_of_the_output(full_disk):
    output = full_disk / "out.db"
    command = ("--host", "MoS2", "--supercell", "6x6", "--defects", "v_S*3", "--limit", 200)
    result = run("enumerate", *command, "-o", output)
    assert result.exit_code == 1
    assert re.fullmatch(rf"Error: {re.escape(str(output))}: {FULL}", result.stderr.splitlines()[-1])
    assert not output.exists()


def test_a_full_disk_in_training_and_packing_is_said_of_the_output(full_disk):
    frames = []
    for k in range(40):
        atoms = mos2_with_defects(4)
        atoms.set_array("relaxed_positions", atoms.positions + 0.01)
        atoms.info |= {"id": f"k{k}", "split": "val" if k % 4 == 0 else "train"}
        frames.append(atoms)
    write("set.xyz", frames)
    pack = ("data", "pack", "set.xyz")
    result = run(*pack, full_disk / "set.pack", "--host", "MoS2", "--workers", 1)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"Error: {full_disk / 'set.pack'}: No space left on device"
    if os.path.ismount(full_disk):  # a feigned one is full for everybody
        assert run(*pack, "set.pack", "--host", "MoS2", "--workers", 1).exit_code == 0
        train = ("train", "--data", "set.pack", "--preset", "small", "--steps", 2, "--accelerator", "cpu")
        result = run(*train, "-o", full_disk / "run")
        assert result.exit_code == 1
        last = result.stderr.splitlines()[-1]
        assert last.startswith(f"Error: {full_disk / 'run'}{os.sep}")
        assert last.endswith(": No space left on device")
        assert "Traceback" not in result.stderr


def test_a_database_without_room_is_an_error_of_the_file_system(tmp_path):
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    with pytest.raises(OSError, match=FULL) as caught, replacing(tmp_path / "a.db") as fresh, new_database(fresh):
        raise error
    assert caught.value.errno == errno.ENOSPC
    assert error_text(caught.value, Path("in.vasp")) == f"{tmp_path / 'a.db'}: database or disk is full"


@pytest.mark.parametrize(("number", "said"), [(119, "119, expected 1 to 118"), (-1, "-1, expected 1 to 118")])
def test_atomic_numbers_that_are_none_are_refused(number, said):
    atoms = mos2_with_defects(4)
    atoms.numbers[3] = number
    with Trajectory("in.traj", "w") as trajectory:
        trajectory.write(atoms)
    for command in ("relax in.traj --host MoS2", "match in.traj --host MoS2", "match in.traj --host auto"):
        result = run(*command.split())
        assert result.exit_code == 1
        assert f"atom 3 has the atomic number {said}" in result.stderr
        assert "bug" not in result.stderr
