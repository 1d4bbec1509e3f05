"""Where the input of a screen ends: cut pipes, complete results, and files that are no structures."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from ase.io import read, write
from click.testing import CliRunner

from ase_definet.cli import cli
from tests.conftest import REPO, mos2_with_defects

FRAMES = 5


@pytest.fixture
def whole():
    """Return the text of a pipe."""
    frames = []
    for k in range(FRAMES):
        atoms = mos2_with_defects(4)
        atoms.positions += 0.01 * k
        atoms.info["name"] = f"cell {k}"
        frames.append(atoms)
    out = io.StringIO()
    write(out, frames, format="extxyz")
    return out.getvalue()


def screened(source, output, text=None):
    return CliRunner().invoke(cli, ["screen", str(source), "--host", "MoS2", "-o", str(output)], input=text)


@pytest.mark.parametrize("share", [0.05, 0.35, 0.62, 0.97])
def test_a_cut_pipe_ends_the_screen_and_the_whole_one_goes_on(tmp_path, whole, share):
    cut = whole[: int(share * len(whole))]
    cut = cut[: cut.rindex("\n") + 1]  # at a line, where no parser would stumble
    first = screened("-", tmp_path / "results", cut)
    assert first.exit_code == 1
    assert "run both again" in first.output
    frames = cut.count("Lattice") - 1
    assert json.loads((tmp_path / "results" / "journal.json").read_text())["done"] == frames
    again = screened("-", tmp_path / "results", whole)
    assert again.exit_code == 0, again.output
    assert screened("-", tmp_path / "other", whole).exit_code == 0
    found, expected = (read(tmp_path / name / "structures.extxyz", ":") for name in ("results", "other"))
    assert (
        [a.info["name"] for a in found] == [a.info["name"] for a in expected] == [f"cell {k}" for k in range(FRAMES)]
    )
    assert (tmp_path / "results" / "failures.csv").read_text().count("\n") == 1


@pytest.mark.parametrize("text", ["garbage\n", "3\nLattice", "\x00\x01\n" * 20, "1e9\nfoo\n"])
def test_a_pipe_of_anything_else_is_refused(tmp_path, text):
    done = screened("-", tmp_path / "results", text)
    assert done.exit_code == 1
    assert "pipe: structure 0: " in done.output
    assert "bug" not in done.output


@pytest.mark.parametrize("name", ["structures.extxyz", "table.csv", "failures.csv"])
def test_nothing_is_cut_off_complete_results(tmp_path, whole, name):
    (tmp_path / "all.extxyz").write_text(whole)
    assert screened(tmp_path / "all.extxyz", tmp_path / "results").exit_code == 0
    target = tmp_path / "results" / name
    target.write_bytes(target.read_bytes() + b"a note of mine\n")
    before = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir() if path.is_file()}
    again = screened(tmp_path / "all.extxyz", tmp_path / "results")
    assert again.exit_code == 1
    assert "is longer than this complete screen wrote it" in again.output
    after = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir() if path.is_file()}
    assert {k: v for k, v in after.items() if not k.startswith(".")} == {
        k: v for k, v in before.items() if not k.startswith(".")
    }


STRAYS = {
    "README.md": "# Cells\n\nsome text\n",
    "README.txt": "hello\n",
    "README": "hello\n",
    "job.sh": "#!/bin/bash\nsbatch\n",
    "x.yaml": "a: 1\n",
    "table.csv": "a,b\n1,2\n",
    "run.json": json.dumps({"inputs": []}),
    "list.json": "[1, 2]",
    "settings.toml": "[a]\nb = 1\n",
    "INCAR": "ENCUT = 500\n",
    "slurm-1.out": "done\n",
    "picture.png": "\x89PNG\r\n",
    "empty": "",
}


@pytest.mark.parametrize("name", STRAYS)
def test_what_is_no_structure_is_named_and_skipped(tmp_path, name):
    folder = tmp_path / "cells"
    folder.mkdir()
    mos2_with_defects(4).write(folder / "good.vasp")
    (folder / name).write_text(STRAYS[name], encoding="latin-1")
    done = screened(folder, tmp_path / "results")
    assert done.exit_code == 0, done.output
    assert "1 structures in" in done.output
    assert "1 relaxed, 0 failed, 1 skipped" in done.output
    assert f"skipped   {folder / name}" in done.output or f"skipped   {name}" in done.output
    assert screened(folder, tmp_path / "results").exit_code == 0


@pytest.mark.parametrize("name", ["broken.vasp", "POSCAR_b", "broken.cif", "broken.extxyz", "broken.xyz"])
def test_what_should_be_a_structure_and_is_broken_is_a_failure(tmp_path, name):
    folder = tmp_path / "cells"
    folder.mkdir()
    mos2_with_defects(4).write(folder / "good.vasp")
    (folder / name).write_text("nothing of use\n")
    done = screened(folder, tmp_path / "results")
    assert done.exit_code == 0, done.output
    assert "1 relaxed, 1 failed" in done.output


def without(monkeypatch, package):
    """Make a package one that is not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize(
    ("options", "package", "code", "said"),
    [
        (["--parquet"], "pyarrow", 1, "Parquet needs pyarrow"),
        (["--workers", "2"], "distributed", 1, "several workers need Dask"),
        (["--scheduler", "tcp://127.0.0.1:9"], "distributed", 1, "several workers need Dask"),
        (["--device", "cuda:77"], None, 2, "is not there"),
        (["--device", "cuda:77", "--workers", "2"], None, 2, "is not there"),
        (["--device", "nonsense"], None, 2, "unknown device"),
        (["--model", "nonsense"], None, 2, "nonsense"),
        (["--max-strain", "nan"], None, 2, "is not a number"),
    ],
)
def test_what_cannot_start_leaves_no_folder(tmp_path, monkeypatch, options, package, code, said):
    mos2_with_defects(4).write(tmp_path / "a.vasp")
    if package is not None:
        without(monkeypatch, package)
    asked = ["screen", str(tmp_path / "a.vasp"), "--host", "MoS2", "-o", str(tmp_path / "new" / "results")]
    done = CliRunner().invoke(cli, [*asked, *options])
    assert done.exit_code == code, done.output
    assert said in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["a.vasp"]


INTERRUPTIBLE = """
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
from ase_definet.cli import main

main()
"""
"""The command line as a terminal starts it."""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to a single process")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_says_how_far_it_is_and_the_same_command_goes_on(tmp_path, workers):
    frames = [mos2_with_defects(4) for _ in range(600)]
    write(tmp_path / "a.extxyz", frames)
    asked = ["screen", str(tmp_path / "a.extxyz"), "--host", "MoS2", "-o", str(tmp_path / "out"), "--device", "cpu"]
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *asked, "--block", "2", "--workers", workers],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )
    journal = tmp_path / "out" / "journal.json"
    while child.poll() is None and not (journal.exists() and json.loads(journal.read_text())["done"]):
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the workers too
    said = child.communicate(timeout=120)[1]
    assert child.returncode == 130, said
    done = int(re.search(r"^stopped after (\d+) structures; the same command goes on$", said, re.MULTILINE)[1])
    assert 0 < done < len(frames)
    assert json.loads(journal.read_text())["done"] == done
    assert "Traceback" not in said
    again = CliRunner().invoke(cli, asked)
    assert again.exit_code == 0, again.output
    assert f"{len(frames)} relaxed, 0 failed" in again.output


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to a single process")
def test_ctrl_c_elsewhere_ends_with_its_code_too(tmp_path):
    asked = [
        "enumerate",
        "--host",
        "MoS2",
        "--supercell",
        "12x12",
        "--defects",
        "v_S*4",
        "-o",
        str(tmp_path / "a.extxyz"),
    ]
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )
    while child.poll() is None and not any(tmp_path.iterdir()):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=120)[1]
    assert child.returncode == 130, said
    assert said.strip() == "Aborted!"
    assert not (tmp_path / "a.extxyz").exists()
