"""Screens: complete, resumable after any kill, on several processes, and careful with what they find."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from click.testing import CliRunner
from distributed import Client, LocalCluster

from ase_definet.cli import cli
from ase_definet.errors import ScreeningError
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.screening import screen as screening
from ase_definet.screening.screen import FAILURES, PROPERTIES, TABLE, Results, screen, structures_of
from ase_definet.screening.structures_file import STRUCTURES
from tests.conftest import pristine

SETTINGS = {"model": "default", "device": "cpu", "host": "MoS2", "max_strain": 0.06}
ASKED = {"inputs": ["here"]}
SAME = 1e-5


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Write forty cells with two vacancies each, one unreadable file and one structure of another host."""
    folder = tmp_path_factory.mktemp("input")
    rng = np.random.default_rng(0)
    frames = []
    for k in range(40):
        atoms = pristine("MoS2", 5)
        del atoms[rng.choice(np.flatnonzero(atoms.numbers == 16), 2, replace=False)]
        atoms.info["name"] = f"cell {k}"
        frames.append(atoms)
    write(folder / "a.extxyz", frames)
    (folder / "b.cif").write_text("no structure")
    write(folder / "c.vasp", pristine("BN", 5))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def run(source: Path, out: Path, **options) -> screening.Progress:
    results = Results(out, ASKED)
    try:
        return screen(structures_of([source]), results, SETTINGS, **options)
    finally:
        results.close()


@pytest.fixture(scope="module")
def whole(many, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "results"
    done = run(many, out, block=7)
    assert (done.done, done.failed) == (42, 2)
    return out


def same(one: Path, other: Path) -> None:
    for a, b in zip(read(one / STRUCTURES, ":"), read(other / STRUCTURES, ":"), strict=True):
        assert a.info["name"] == b.info["name"]
        assert np.abs(a.positions - b.positions).max() < SAME  # blocks of another size round differently
    assert (one / FAILURES).read_text() == (other / FAILURES).read_text()
    first, second = rows(one / TABLE), rows(other / TABLE)
    numbers = {"largest_displacement", "mean_displacement", "mean_displacement_near", "largest_expected_error"}
    numbers |= {"mean_expected_error", "mean_expected_error_near"}
    numbers |= {f"{name}{error}" for name in PROPERTIES for error in ("", "_error")}
    for a, b in zip(first, second, strict=True):
        for key in a.keys() - {"seconds"}:
            close = (
                float(b[key]) == pytest.approx(float(a[key]), abs=2 * SAME) if key in numbers and a[key] else False
            )
            assert close or a[key] == b[key], key


def test_results_are_those_of_the_relaxer(many, whole):
    table, relaxed = rows(whole / TABLE), read(whole / STRUCTURES, ":")
    assert [row["name"] for row in table] == [f"cell {k}" for k in range(40)] == [a.info["name"] for a in relaxed]
    given = read(many / "a.extxyz", ":")
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
    for k in (0, 17, 39):
        result = relaxer.predict(given[k])
        assert np.abs(relaxed[k].positions - result.atoms.positions).max() < SAME
        assert float(table[k]["largest_displacement"]) == pytest.approx(
            np.linalg.norm(result.displacement, axis=1).max(), abs=SAME
        )
        assert table[k]["defects"] == "v_Sx2"
    failures = rows(whole / FAILURES)
    assert [row["name"] for row in failures] == ["b.cif", "c.vasp"]
    assert [row["index"] for row in failures] == ["40", "41"]
    assert all(row["reason"] for row in failures)


@pytest.mark.parametrize("moment", ["before the journal", "half a block", "after some"])
def test_a_killed_screen_goes_on_exactly(many, whole, tmp_path, monkeypatch, moment):
    out = tmp_path / "results"
    blocks = []

    def die(*_args):
        blocks.append(1)
        if len(blocks) == (4 if early else 3):  # the first journal is of no structures
            raise KeyboardInterrupt

    early = moment == "before the journal"
    if early:
        real = screening._replace
        monkeypatch.setattr(
            screening, "_replace", lambda path, text: (die() if "journal" in path.name else None, real(path, text))
        )
    progress = (lambda _: None) if early else die
    with pytest.raises(KeyboardInterrupt):
        run(many, out, block=7, progress=progress)
    monkeypatch.undo()
    if moment == "half a block":
        with (out / TABLE).open("a") as stream:
            stream.write("21,half a row")
        with (out / STRUCTURES).open("a") as stream:
            stream.write("74\nhalf a structure")
    before = json.loads((out / "journal.json").read_text())["done"]
    assert before in {14, 21}
    done = run(many, out, block=5)
    assert done.resumed == before
    same(out, whole)
    again = run(many, out, block=5)
    assert again.resumed == again.done == 42
    same(out, whole)


def test_several_processes_give_the_same(many, whole, tmp_path):
    run(many, tmp_path / "results", block=6, workers=2)
    same(tmp_path / "results", whole)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_a_killed_worker_costs_nothing(many, whole, tmp_path):
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        killed = []

        def kill_one(_progress):
            if not killed:
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

        run(many, tmp_path / "results", block=3, scheduler=cluster.scheduler_address, progress=kill_one)
    assert killed
    same(tmp_path / "results", whole)


def test_another_request_is_refused(many, whole, tmp_path):
    with pytest.raises(ScreeningError, match="other inputs"):
        Results(whole, {"inputs": ["there"]})
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(ScreeningError, match="is not empty"):
        Results(tmp_path, ASKED)
    results = Results(tmp_path / "results", ASKED)
    with pytest.raises(ScreeningError, match="another screen is writing"):
        Results(tmp_path / "results", ASKED)
    screen(structures_of([many / "a.extxyz"]), results, SETTINGS, block=20)
    results.close()
    (many / "reversed.extxyz").unlink(missing_ok=True)
    shuffled = tmp_path / "reversed.extxyz"
    write(shuffled, read(many / "a.extxyz", "::-1"))
    results = Results(tmp_path / "results", ASKED)
    with pytest.raises(ScreeningError, match="structure 1 was cell 0 when this screen began, and is cell 39 now"):
        screen(structures_of([shuffled]), results, SETTINGS)
    results.close()


def test_a_full_disk_loses_nothing(many, whole, tmp_path, monkeypatch):
    out = tmp_path / "results"
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        run(many, out, block=7)
    monkeypatch.undo()
    done = run(many, out, block=7)
    assert 0 < done.resumed < 42
    same(out, whole)


def test_a_truncated_result_is_noticed(many, tmp_path):
    run(many / "a.extxyz", tmp_path / "results")
    (tmp_path / "results" / TABLE).write_text("gone")
    with pytest.raises(ScreeningError, match="shorter than its journal"):
        Results(tmp_path / "results", ASKED)


@pytest.mark.skipif(os.name != "posix", reason="bash, and a kill -9 of a whole process group")
def test_enumeration_piped_into_a_killed_screen(tmp_path):
    """The commands as a user joins them; the first screen is killed hard after its first block."""
    program = f"{sys.executable} -c 'from ase_definet.cli import main; main()'"
    chain = (
        f"{program} enumerate --host WSe2 --supercell 6x6 --defects 'v_Se*2' -o - | "
        f"{program} screen - --host WSe2 -o results --block 2 --device cpu"
    )
    process = subprocess.Popen(
        ["bash", "-c", chain], cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    journal = tmp_path / "results" / "journal.json"
    while not journal.exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = subprocess.run(["bash", "-c", chain], cwd=tmp_path, capture_output=True, text=True, check=True)
    table = rows(tmp_path / "results" / TABLE)
    total = int(json.loads(journal.read_text())["done"])
    assert f"{total} structures in results: {total} relaxed, 0 failed" in done.stdout
    assert len({row["name"] for row in table}) == len(table) == total
    assert sum(int(row["multiplicity"]) for row in table) == 72 * 71 // 2


def test_command(many, tmp_path):
    command = ["screen", str(many), "--host", "MoS2", "-o", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "42 structures" in done.output
    assert "2 failed" in done.output
    done = CliRunner().invoke(cli, [*command, "--max-strain", "0.01"])
    assert done.exit_code == 2
    assert "other max_strain" in done.output
    done = CliRunner().invoke(cli, ["screen", str(tmp_path / "none"), "--host", "MoS2", "-o", str(tmp_path / "x")])
    assert done.exit_code == 1
    assert not (tmp_path / "x").exists()


def test_how_far_outside_the_training_data_is_a_column(tmp_path):
    inside, unseen, dense, charged = (pristine("MoS2", 5) for _ in range(4))
    for atoms in (inside, unseen, charged):
        del atoms[[2, 40]]
    unseen.numbers[np.flatnonzero(unseen.numbers == 42)[3]] = 24
    del dense[np.flatnonzero(dense.numbers == 16)[::3].tolist()]
    charged.info["charge"] = -1
    write(tmp_path / "in.extxyz", [inside, unseen, dense, charged])
    run(tmp_path / "in.extxyz", tmp_path / "out")
    assert [row["outside"] for row in rows(tmp_path / "out" / TABLE)] == ["", "species defects", "density", "charge"]


def test_parquet_is_the_table(many, whole, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    command = ["screen", str(many), "--host", "MoS2", "-o", str(tmp_path / "out"), "--device", "cpu", "--parquet"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    table = parquet.read_table(tmp_path / "out" / "table.parquet")
    expected = rows(tmp_path / "out" / TABLE)
    assert table.column_names == list(expected[0])
    for name, column in zip(table.column_names, table.columns, strict=True):
        for found, row in zip(column.to_pylist(), expected, strict=True):
            if name in screening.NUMBERS:
                assert found == (float(row[name]) if row[name] else None)
                assert isinstance(found, int) == (name in {"index", "sites", "charge"})
            else:
                assert found == row[name]
    assert len(table) == len(rows(whole / TABLE))
    with pytest.raises(ScreeningError, match="ase-definet screen"):
        screening.write_parquet(tmp_path)


def test_nothing_relaxed_is_no_success(tmp_path):
    write(tmp_path / "a.vasp", pristine("BN", 5))
    done = CliRunner().invoke(
        cli, ["screen", str(tmp_path / "a.vasp"), "--host", "MoS2", "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 1
    assert "a.vasp: " in done.output
    assert "failures.csv" in done.output


def test_empty_pipe(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    done = CliRunner().invoke(cli, ["screen", "-", "--host", "MoS2", "-o", str(tmp_path / "out")], input="")
    assert done.exit_code == 1
    assert "no structures" in done.output
