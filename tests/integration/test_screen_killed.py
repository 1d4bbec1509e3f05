"""Screens killed hard at random moments: the same result as undisturbed, nothing twice, nothing hanging."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
from ase.io import write
from click.testing import CliRunner
from distributed import Client, LocalCluster

from ase_definet.cli import cli
from ase_definet.screening import (
    COLUMNS,
    FAILURE_COLUMNS,
    FAILURES,
    INPUTS,
    JOURNAL,
    RUN,
    STRUCTURES,
    TABLE,
    Results,
    read_rows,
    screen,
)
from tests.integration.test_screen_faults import ASKED, SETTINGS, consistent, vacancy

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
    """Kill a worker that looks at it; its scheduler and this process only pass it on."""

    def __init__(self) -> None:
        self.safe = os.getpid()

    @property
    def lattice(self) -> None:
        if os.getpid() != self.safe:
            os._exit(1)
        raise AttributeError


def test_a_structure_that_kills_its_worker_costs_itself(tmp_path):
    source = [("a", vacancy()), ("bomb", Bomb()), ("b", vacancy(3)), ("c", vacancy(5))]
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        results = Results(tmp_path / "out", ASKED)
        done = screen(source, results, SETTINGS, block=3, scheduler=cluster.scheduler_address)
        results.close()
    assert (done.done, done.failed) == (4, 1)
    consistent(tmp_path / "out", 3, 1)
    (row,) = read_rows(tmp_path / "out" / FAILURES, FAILURE_COLUMNS)
    assert (row["name"], row["index"]) == ("bomb", 1)
    assert "its worker died" in row["reason"]
    assert len((tmp_path / "out" / INPUTS).read_text().splitlines()) == 5
