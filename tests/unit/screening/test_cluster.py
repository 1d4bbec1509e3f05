"""The processes of a screen on this machine: which device each has, and what they give."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from distributed import get_worker

from ase_definet.errors import ScreeningError
from ase_definet.matching.library import get_host
from ase_definet.matching.shared_sites import Placed
from ase_definet.screening import screen as screening
from ase_definet.screening.cluster import MOST_WORKERS, Crew, local_client, on_cluster, visible_gpus
from ase_definet.screening.enumeration import DefectSpace, parse_defects
from ase_definet.screening.screen import FEW, match_block, relax_block
from tests.conftest import pristine

SETTINGS = {"model": "default", "device": "cpu", "host": "MoS2", "max_strain": 0.06, "properties": None}
GPUS = ("4", "GPU-c0ffee", "7")


def cells(count: int):
    atoms = [pristine("MoS2", 4) for _ in range(count)]
    for k, one in enumerate(atoms):
        del one[k]
    return atoms


def tasks(count: int, block: int):
    structures = cells(count)
    for first in range(0, count, block):
        part = structures[first : first + block]
        yield tuple(f"cell {first + k}" for k in range(len(part))), part, first, SETTINGS


def whereabouts(dask_worker) -> tuple[str, str, str]:
    return str(dask_worker.name), os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "expected"),
    [
        ("cpu", 3, GPUS, Crew(("", "", ""))),
        ("auto", 2, (), Crew(("", ""))),
        ("auto", 5, GPUS, Crew(GPUS, 5)),
        ("cuda", 4, GPUS, Crew(GPUS, 4)),
        ("cuda:1", 4, GPUS, Crew(("GPU-c0ffee",), 4)),
    ],
)
def test_every_gpu_has_one_process_and_a_cpu_one_for_each_core(device, workers, gpus, expected):
    crew = Crew.of(device, workers, gpus)
    assert crew == expected
    assert crew.device == ("cuda" if expected.matching else "cpu")


def test_by_default_there_is_a_process_for_each_core(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert Crew.of("cpu") == Crew(("", "", ""))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 300)
    assert len(Crew.of("cpu").devices) == MOST_WORKERS


def test_gpus_are_those_that_this_process_sees(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert visible_gpus() == ("3", "5")


def test_each_process_of_a_crew_sees_its_own_device_and_all_give_the_same():
    crew = Crew(("4", "7"), matching=1)
    with local_client(crew) as client:
        found = set(client.run(whereabouts).values())
        assert found == {("device-0", "4", "1"), ("device-1", "7", "1"), ("matching-0", "", "1")}
        stages = (
            client.submit(lambda: get_worker().name, resources={"MATCHING": 1}, pure=False).result(),
            client.submit(lambda: get_worker().name, resources={"DEVICE": 1}, pure=False).result(),
        )
        assert stages[0] == "matching-0"
        assert stages[1].startswith("device-")
        # there is no GPU: the network runs on the CPU of the processes that would have one
        on_cpu = Crew(("", ""), matching=1)
        blocks = list(on_cluster(client, tasks(10, 3), on_cpu))
    alone = [relax_block(*task) for task in tasks(10, 3)]
    assert [block.names for block in blocks] == [block.names for block in alone]
    assert [block.digests for block in blocks] == [block.digests for block in alone]
    for one, other in zip(blocks, alone, strict=True):
        assert [row["index"] for row in one.rows] == [row["index"] for row in other.rows]
        for a, b in zip(one.rows, other.rows, strict=True):
            assert a["largest_displacement"] == pytest.approx(b["largest_displacement"], abs=2e-5)


def test_what_is_matched_ahead_is_what_is_matched_alone():
    structures = [*cells(3), pristine("BN", 4), ValueError("cannot be read")]
    structures[1].info["charge"] = "no number"
    found = match_block(structures, SETTINGS)
    assert [type(one) for one in found[:1]] == [Placed]
    assert found[3] is structures[3]
    assert found[4] is structures[4]
    names = tuple("abcde")
    ahead, alone = (relax_block(names, given, 0, SETTINGS) for given in (found, structures))
    assert ahead.digests == alone.digests
    assert ahead.failures == alone.failures
    assert [row["name"] for row in ahead.rows] == [row["name"] for row in alone.rows] == ["a", "c"]


def test_configurations_go_to_other_processes_with_their_space_once():
    space = DefectSpace(get_host("MoS2"), np.diag([4, 4, 1]))
    found = list(space.enumerate(parse_defects("v_S*2")))
    text = pickle.dumps(found)
    assert len(text) < 200 * len(found) + 2000
    first, *rest = pickle.loads(text)  # noqa: S301 - our own
    assert all(one.space is first.space for one in rest)
    assert [one.name for one in (first, *rest)] == [one.name for one in found]
    assert pickle.loads(pickle.dumps(found[-1])).space is first.space  # noqa: S301


@pytest.mark.parametrize(("count", "expected"), [(10, 1), (FEW, 1), (FEW + 1, 3), (3 * FEW, 3)])
def test_only_many_structures_are_worth_several_processes(monkeypatch, count, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    given = [(("a",) * 8, [None] * 8, first, SETTINGS) for first in range(0, count - 7, 8)]
    given.append((("a",) * (count - 8 * len(given)), [], 8 * len(given), SETTINGS))
    workers, found = screening._workers_for(iter(given), SETTINGS)
    assert workers == expected
    assert list(found) == given
    assert screening._workers_for(iter(given), SETTINGS | {"calculation": {"calculator": "emt"}})[0] == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert screening._workers_for(iter(given), SETTINGS)[0] == 1


def test_what_came_before_a_broken_pipe_is_not_lost(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def broken():
        yield from tasks(2, 1)
        raise ScreeningError("cut off")

    workers, found = screening._workers_for(broken(), SETTINGS)
    assert workers == 1
    assert next(found)[0] == ("cell 0",)
    assert next(found)[0] == ("cell 1",)
    with pytest.raises(ScreeningError, match="cut off"):
        next(found)
