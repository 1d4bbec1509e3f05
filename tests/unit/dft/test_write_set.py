"""Sets of files that belong together: whole ones, whoever else writes there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from ase_definet.errors import OutputExistsError, ScreeningError
from ase_definet.structures import files as files_module
from ase_definet.structures.files import INCOMPLETE, refuse_incomplete, write_set

NAMES = ("POSCAR", "INCAR", "KPOINTS", "README.txt")


def letters(letter: str, more: tuple[str, ...] = ()) -> dict[str, str]:
    return dict.fromkeys((*NAMES, *more), letter)


def write_often(folder: str, letter: str, overwrite: bool, rounds: int) -> list[str]:  # noqa: FBT001
    """Return the errors of many writers of one set."""
    errors = []
    for k in range(rounds):
        try:
            write_set(
                Path(folder), letters(letter, ("order",) if k % 2 else ()), overwrite=overwrite, stale=["order"]
            )
        except OutputExistsError as error:
            errors.append(str(error))
    return errors


def assert_one_set(folder: Path) -> None:
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(found) - {"order"} == set(NAMES)
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_two_writers_leave_one_whole_set(tmp_path, pool, there, overwrite):
    spawn = {"mp_context": get_context("spawn")} if pool == "processes" else {}
    kind = ProcessPoolExecutor if pool == "processes" else ThreadPoolExecutor
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    with kind(2, **spawn) as executor:
        rounds = 60
        done = [executor.submit(write_often, str(folder), letter, overwrite, rounds) for letter in "ab"]
        errors = [error for one in done for error in one.result()]
    assert_one_set(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert all("writing there" in error or "exists" in error for error in errors)
    if not overwrite:
        assert len(errors) == 2 * rounds - 1


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_writer_that_comes_in_the_middle_is_refused(tmp_path, monkeypatch, elsewhere):
    write_set(tmp_path / "run", letters("a"), overwrite=False)
    real, refused = Path.replace, []

    def replace(self, target):
        if Path(target).name == NAMES[1] and not refused:
            if elsewhere:
                text = (
                    "import sys; from pathlib import Path; from ase_definet.structures.files import write_set\n"
                    f"write_set(Path(sys.argv[1]), dict.fromkeys({NAMES}, 'c'), overwrite=True)"
                )
                done = subprocess.run(
                    [sys.executable, "-c", text, str(tmp_path / "run")], check=False, capture_output=True, text=True
                )
                refused.append(done.stderr)
            else:
                refused.extend(write_often(str(tmp_path / "run"), "c", overwrite=True, rounds=1))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_set(tmp_path / "run", letters("b"), overwrite=True)
    assert "is writing there; wait for it" in refused[0]
    assert_one_set(tmp_path / "run")
    assert (tmp_path / "run" / "INCAR").read_text() == "b"


def test_a_folder_made_in_the_meantime(tmp_path, monkeypatch):
    real = Path.rename

    def rename(self, target):
        monkeypatch.setattr(Path, "rename", real)
        write_set(Path(target), letters("b"), overwrite=False)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputExistsError, match="exists"):
        write_set(tmp_path / "run", letters("a"), overwrite=False)
    assert_one_set(tmp_path / "run")
    assert (tmp_path / "run" / "INCAR").read_text() == "b"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_goes_wrong_before_the_end_changes_nothing(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    write_set(tmp_path / "run", letters("a", ("order",)), overwrite=False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        for folder in ("run", "new"):
            with pytest.raises(OSError, match="No space left"):
                write_set(tmp_path / folder, letters("b"), overwrite=True, stale=["order"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert_one_set(tmp_path / "run")
    assert (tmp_path / "run" / "order").read_text() == "a"
    (tmp_path / "run" / "INCAR").unlink()
    (tmp_path / "run" / "INCAR").mkdir()
    with pytest.raises(OutputExistsError, match="is a folder"):
        write_set(tmp_path / "run", letters("b"), overwrite=True)
    assert (tmp_path / "run" / "POSCAR").read_text() == "a"
    assert not (tmp_path / "run" / INCOMPLETE).exists()


def test_a_stopped_writer_leaves_a_mark_and_the_next_one_mends_it(tmp_path, monkeypatch):
    write_set(tmp_path / "run", letters("a"), overwrite=False)
    (tmp_path / "run" / "OUTCAR").write_text("mine")
    real = Path.replace

    def stopped(self, target):
        if Path(target).name == NAMES[2]:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_set(tmp_path / "run", letters("b"), overwrite=True)
    assert (tmp_path / "run" / INCOMPLETE).exists()
    write_set(tmp_path / "run", letters("c"), overwrite=True)
    (tmp_path / "run" / "OUTCAR").unlink()
    assert_one_set(tmp_path / "run")


@pytest.mark.parametrize("age", [0.0, 60.0], ids=["being named", "left"])
def test_a_mark_without_a_name_is_of_a_writer(tmp_path, age):
    run = tmp_path / "run"
    write_set(run, letters("a"), overwrite=False)
    (run / INCOMPLETE).touch()
    os.utime(run / INCOMPLETE, (then := time.time() - age, then))
    with pytest.raises(ScreeningError, match="is incomplete"):
        refuse_incomplete(run)
    if age:
        write_set(run, letters("b"), overwrite=True)
        assert_one_set(run)
        return
    with pytest.raises(OutputExistsError, match="another process is writing there"):
        write_set(run, letters("b"), overwrite=True)
    assert (run / "POSCAR").read_text() == "a"


def test_folders_that_vanish_are_not_made_anew(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        write_set(tmp_path / "gone" / "run", letters("a"), overwrite=False)
    assert not list(tmp_path.iterdir())
    run = tmp_path / "run"
    run.mkdir()
    real = files_module._take_mark

    def moved_away(folder):
        folder.rename(tmp_path / "elsewhere")
        real(folder)

    monkeypatch.setattr(files_module, "_take_mark", moved_away)
    with pytest.raises(FileNotFoundError):
        write_set(run, letters("a"), overwrite=False)
    assert not run.exists()


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_a_new_folder_has_the_bits_that_the_umask_leaves(tmp_path):
    write_set(tmp_path / "run", letters("a"), overwrite=False)
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "run").stat().st_mode == (tmp_path / "plain").stat().st_mode
