"""Screens killed hard at random moments: the same result as undisturbed, nothing twice, nothing hanging."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from ase.io import write
from click.testing import CliRunner
from distributed import KilledWorker

from ase_definet.cli import cli
from ase_definet.errors import ScreeningError
from ase_definet.screening import screen as screening
from ase_definet.screening.cluster import Crew, on_cluster
from ase_definet.screening.screen import (
    COLUMNS,
    FAILURE_COLUMNS,
    FAILURES,
    INPUTS,
    JOURNAL,
    RUN,
    TABLE,
    read_rows,
)
from ase_definet.screening.structures_file import STRUCTURES
from tests.integration.test_screen_faults import consistent, run, vacancy

FORKS = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="kills forked processes, for speed"
)
MOMENTS = 5
KNOWN = {STRUCTURES, TABLE, FAILURES, INPUTS, RUN, JOURNAL, ".lock", ".holder"}


def start(arguments: list[str]):
    child = multiprocessing.get_context("fork").Process(
        target=lambda: sys.exit(CliRunner().invoke(cli, arguments).exit_code)
    )
    child.start()
    return child


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "in").mkdir()
    for k in range(12):
        write(folder / "in" / f"{k:02d}.vasp", vacancy(k))
    (folder / "in" / "07b.cif").write_text("broken")
    (folder / "in" / "README.txt").write_text("read me")
    arguments = ["screen", str(folder / "in"), "--host", "MoS2", "--device", "cpu", "--block", "2"]
    began = time.monotonic()
    child = start([*arguments, "-o", str(folder / "out")])
    child.join()
    assert child.exitcode == 0
    return arguments, folder / "out", time.monotonic() - began


@FORKS
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_at_random_moments(undisturbed, tmp_path, moment):
    arguments, whole, seconds = undisturbed
    out = tmp_path / "out"
    rng = random.Random(moment)  # noqa: S311 - a seed repeats it
    for _ in range(2):
        child = start([*arguments, "-o", str(out)])
        time.sleep(seconds * (moment + rng.random()) / MOMENTS)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    child = start([*arguments, "-o", str(out)])
    child.join(timeout=120)
    assert child.exitcode == 0
    consistent(out, 12, 1)
    for name in (STRUCTURES, FAILURES, INPUTS):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    left = {path.name for path in out.iterdir()} - KNOWN
    assert not {name for name in left if not name.startswith(".ase-definet-")}
    names = [row["name"] for row in read_rows(out / TABLE, COLUMNS)]
    assert names == [f"{k:02d}.vasp" for k in range(12)]
    assert json.loads((out / JOURNAL).read_text())["done"] == 13


class Bomb:
    """Kills every worker that gets it."""


class FakeClient:
    """A cluster whose workers die of bombs, or that has lost them all."""

    def __init__(self, *, lost: bool = False) -> None:
        self.lost = lost

    def scheduler_info(self):
        return {"workers": {} if self.lost else {"one": {}}}

    def submit(self, function, names, structures, *rest, **_options):
        def result(timeout=None):
            if self.lost:
                raise TimeoutError(timeout)
            if any(isinstance(one, Bomb) for one in structures):
                raise KilledWorker("task", "worker", 3)
            return function(names, structures, *rest)

        return SimpleNamespace(result=result, done=lambda: False)


def on(client, monkeypatch, crew):
    @contextmanager
    def mapper(*_):
        yield lambda tasks: on_cluster(client, tasks, crew)

    monkeypatch.setattr(screening, "_mapper", mapper)


def test_a_structure_that_kills_its_workers_costs_itself(tmp_path, monkeypatch):
    on(FakeClient(), monkeypatch, Crew(("",)))
    source = [("a", vacancy()), ("bomb", Bomb()), ("b", vacancy(3)), ("c", vacancy(5))]
    done = run(source, tmp_path / "out", block=3)
    assert (done.done, done.failed) == (4, 1)
    consistent(tmp_path / "out", 3, 1)
    (row,) = read_rows(tmp_path / "out" / FAILURES, FAILURE_COLUMNS)
    assert (row["name"], row["index"]) == ("bomb", 1)
    assert "every worker that was given this structure died" in row["reason"]
    assert run(source, tmp_path / "out", block=3).resumed == 4


def test_a_machine_without_workers_is_not_waited_for(tmp_path, monkeypatch):
    on(FakeClient(lost=True), monkeypatch, Crew(("", "")))
    with pytest.raises(ScreeningError, match="all workers died and none could be restarted"):
        run([("a", vacancy())], tmp_path / "out")
    monkeypatch.undo()
    assert run([("a", vacancy())], tmp_path / "out").done == 1
