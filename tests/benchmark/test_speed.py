"""Seconds of each stage by size. Off by default: ``pytest tests/benchmark --benchmark-enable``.

``docs/performance.md`` holds the numbers. Nothing here asserts a time.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ase.io import write

from ase_definet.matching.site_map import match_sites
from ase_definet.relaxation.inputs import sites_of
from tests.conftest import mos2_with_defects

SIZES = {192: 8, 768: 16, 3072: 32, 12288: 64}
LAUNCH = "import sys; from ase_definet.cli import main; sys.argv[0] = 'ase-definet'; main()"

pytestmark = pytest.mark.skipif("not config.getoption('benchmark_enable')", reason="benchmarks are off")


@pytest.fixture(params=SIZES, ids=str, scope="module")
def atoms(request):
    return mos2_with_defects(SIZES[request.param])


def test_matching(benchmark, atoms):
    site_map = benchmark(match_sites, atoms, "MoS2")
    assert site_map.defect_counts == {"v_S": 2, "W_Mo": 1}


def test_graph(benchmark, atoms, relaxer):
    site_map = match_sites(atoms, "MoS2")
    graph = benchmark(sites_of(site_map).graph, relaxer.network.config.cutoff)
    assert graph.num_nodes == len(site_map.kinds)


def test_forward(benchmark, atoms, relaxer):
    graph = sites_of(match_sites(atoms, "MoS2")).graph(relaxer.network.config.cutoff)
    with torch.inference_mode():
        out = benchmark(relaxer.network.predict, graph).displacement
    assert bool(out.isfinite().all())


def test_whole_command(benchmark, atoms, tmp_path):
    write(tmp_path / "POSCAR", atoms, format="vasp")
    arguments = ["relax", str(tmp_path / "POSCAR"), "--host", "MoS2", "--device", "cpu", "-q", "--overwrite"]
    benchmark(subprocess.run, [sys.executable, "-c", LAUNCH, *arguments], check=True)
    assert (tmp_path / "POSCAR_relaxed").is_file()


def test_importing_torch_and_ase_alone(benchmark):
    """What the whole command is measured against: at most twice this, for 192 sites."""
    benchmark(subprocess.run, [sys.executable, "-c", "import torch, ase.io"], check=True, cwd=Path.home())
