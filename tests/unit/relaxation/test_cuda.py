"""On a CUDA device, where there is one (``pytest -k cuda``): the answers are the CPU's.

What of this needs no device is in test_devices.py. ``python -m research.benchmarks.cuda`` prints the times.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ase_definet.checkpoints.format import save_checkpoint
from ase_definet.errors import DeviceError
from ase_definet.model.config import DefiNetConfig
from ase_definet.model.definet import DefiNet
from ase_definet.model.working_set import WorkingSet
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.result import RelaxFailure, RelaxResult
from ase_definet.training.config import TrainConfig
from ase_definet.training.run import Run, train
from research.benchmarks.cells import mos2
from tests.conftest import mos2_with_defects
from tests.pairs import pack_of, radial_pairs
from tests.unit.relaxation.test_devices import MIXED, passes_of
from tests.unit.training.test_batches import DEFINET, SITE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")

CUDA = "cuda"
SAME = 1e-5
"""Agreement with the CPU, in Å."""
COMPARED = 4
"""Structures of a large batch that the CPU relaxes too."""
WHOLE = 10**6
"""Sites in a batch that hold all of it."""


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Return untrained weights of the published network at its published size, of moves as large as real ones."""
    torch.manual_seed(0)
    network = DefiNet(DefiNetConfig()).requires_grad_(requires_grad=False)
    for move in network.coord_update_layers:
        move.lin_vec2coord.weight *= 0.2
        move.coord_mlp[2].weight *= 0.2
        move.coord_mlp[2].bias *= 0.2
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "published.safetensors", network, {})


@pytest.fixture(scope="module", params=["default", "published"])
def pair(request, published) -> tuple[DefiNetRelaxer, DefiNetRelaxer]:
    """Return the same weights on CUDA and on the CPU."""
    model = "default" if request.param == "default" else str(published)
    return DefiNetRelaxer(model, "auto", CUDA), DefiNetRelaxer(model, "auto", "cpu")


def agree(found, expected) -> None:
    assert isinstance(found, RelaxResult), found.error
    assert np.isfinite(found.site_displacement).all()
    assert np.abs(found.site_displacement - expected.site_displacement).max() < SAME
    assert np.abs(found.atoms.positions - expected.atoms.positions).max() < SAME
    assert (found.expected_error is None) == (expected.expected_error is None)
    if expected.expected_error is not None:
        assert np.abs(found.expected_error - expected.expected_error).max() < SAME


def test_cuda_is_where_the_network_is(pair):
    there, here = pair
    assert there.device.type == CUDA
    assert here.device.type == "cpu"
    assert all(weight.device.type == CUDA for weight in there.network.parameters())
    assert there.working_set.sites > here.working_set.sites
    assert DefiNetRelaxer(host="MoS2", device="auto").device.type == CUDA


def test_cuda_device_that_is_not_there():
    with pytest.raises(DeviceError, match=r"torch sees \d+ CUDA device"):
        DefiNetRelaxer(device=f"cuda:{torch.cuda.device_count()}")


def test_cuda_relaxes_one_structure(pair):
    there, here = pair
    atoms = mos2_with_defects(8)
    agree(there.predict(atoms), here.predict(atoms))
    agree(there.predict(atoms), here.predict(atoms))  # with kept kernels


@pytest.mark.parametrize("batch", [1, 8, 64, 512])
def test_cuda_relaxes_batches(pair, batch, monkeypatch):
    there, here = pair
    structures = [mos2(8, seed) for seed in range(batch)]
    sizes = passes_of(there, monkeypatch)
    found = list(there.relax_many(structures, batch_sites=WHOLE))
    assert len(found) == batch
    assert all(isinstance(one, RelaxResult) for one in found)
    assert sum(sizes) == batch
    for k in np.unique(np.linspace(0, batch - 1, COMPARED).astype(int)):
        agree(found[k], here.predict(structures[k]))


@pytest.mark.parametrize("initial_positions", ["ideal", "given"])
def test_cuda_relaxes_mixed_lattices(published, initial_positions):
    structures = MIXED["mixed"]()
    for model in ("default", str(published)):
        there, here = (
            DefiNetRelaxer(model, "auto", device, initial_positions=initial_positions) for device in (CUDA, "cpu")
        )
        for found, atoms in zip(there.relax_many(structures), structures, strict=True):
            agree(found, here.predict(atoms))


def test_cuda_relaxes_12288_sites(pair):
    there, here = pair
    atoms = mos2(64)
    assert len(there.predict(atoms).kinds) == 12_288
    agree(there.predict(atoms), here.predict(atoms))


def test_cuda_sees_weights_that_change():
    there = DefiNetRelaxer(host="MoS2", device=CUDA)
    atoms = mos2_with_defects(5)
    before = there.predict(atoms).site_displacement
    for weight in there.network.parameters():
        weight.data.mul_(1.02)
    here = DefiNetRelaxer(host="MoS2", device="cpu")
    here.network.load_state_dict(there.network.state_dict())
    after = there.predict(atoms)
    assert np.abs(after.site_displacement - before).max() > 10 * SAME
    agree(after, here.predict(atoms))


def test_cuda_relaxer_whose_network_is_moved():
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
    atoms = mos2_with_defects(5)
    here = relaxer.predict(atoms)
    relaxer.network.to(CUDA)
    agree(relaxer.predict(atoms), here)
    relaxer.network.to("cpu")
    agree(relaxer.predict(atoms), here)


def test_cuda_out_of_memory_halves_and_goes_on():
    """A limit on this process makes the device small."""
    whole = replace(WorkingSet.of(torch.device(CUDA)), sites=WHOLE)
    relaxer = DefiNetRelaxer(host="MoS2", device=CUDA, working_set=whole)
    structures = [mos2(8, seed) for seed in range(64)]
    expected = list(relaxer.relax_many(structures))
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_allocated() + 2**27) / total))
    try:
        with pytest.warns(match="halving the batch"):
            found = list(relaxer.relax_many(structures))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for a, b in zip(found, expected, strict=True):
        if not isinstance(a, RelaxFailure):
            agree(a, b)
    assert any(isinstance(a, RelaxResult) for a in found)


@pytest.mark.parametrize("sizes", [SITE, DEFINET], ids=["site", "definet"])
def test_cuda_takes_training_steps(tmp_path, sizes):
    data = str(pack_of(tmp_path / "pack", radial_pairs(18, 6)).path)
    config = TrainConfig(
        data=data,
        out=str(tmp_path / "cuda"),
        model=sizes,
        steps=8,
        batch_size=4,
        validate_every=4,
        checkpoint_every=4,
    )
    there = Run(replace(config, accelerator=CUDA))
    here = Run(replace(config, accelerator="cpu", out=str(tmp_path / "cpu")))
    assert there.fabric.device.type == CUDA
    assert all(weight.device.type == CUDA for weight in there.network.parameters())
    for _ in range(4):
        assert there.advance() == pytest.approx(here.advance(), rel=1e-3)
    for name, row in there.validate().items():
        assert row["mae"] == pytest.approx(here.validate()[name]["mae"], rel=1e-2)
    finished = train(replace(config, accelerator=CUDA))
    resumed = train(replace(config, accelerator=CUDA, steps=10))
    assert (finished.step, resumed.step) == (8, 10)
