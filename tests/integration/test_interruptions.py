"""A short run of the sweep of interruptions: ``python -m tests.reliability.interruptions`` has the long one."""

import multiprocessing

import pytest

from tests.reliability.interruptions import FAULTS, sweep

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="interrupts forked processes, for speed"
)


@pytest.mark.parametrize("command", ["screen", "data pack", "train", "relax"])
def test_commands_that_were_interrupted_end_with_the_same_content(command):
    found = sweep(seed=1, count=1, chosen=lambda label: label == command)
    assert sum(found.values()) == len(FAULTS)
    assert not [f"{fault}: {why}" for (_, fault, why) in found if why]
