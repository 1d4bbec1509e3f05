"""What differs from device to device, without a device: limits, chunks, where tensors live, memory that runs out."""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import make_supercell
from click.testing import CliRunner

import ase_definet
from ase_definet.checkpoints.format import save_checkpoint
from ase_definet.cli import cli
from ase_definet.errors import DefiNetWarning, DeviceError
from ase_definet.matching.site_map import match_sites
from ase_definet.model.architectures import build_network
from ase_definet.model.config import DefiNetConfig
from ase_definet.model.definet import DefiNet
from ase_definet.model.graph import batch_graphs
from ase_definet.model.protocol import sent
from ase_definet.model.working_set import WorkingSet
from ase_definet.relaxation.freed_memory import KEEP_MEMORY, keep_freed_memory
from ase_definet.relaxation.inputs import lattice_of, sites_of
from ase_definet.relaxation.lattices import build_lattice
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.result import RelaxFailure, RelaxResult
from ase_definet.training.batches import SiteBatches
from ase_definet.training.config import TrainConfig
from ase_definet.training.loss import loss_of
from ase_definet.training.run import make_fabric
from tests.conftest import mos2_with_defects, pristine
from tests.elsewhere import DEVICE, Elsewhere, Remote
from tests.pairs import pack_of, radial_pairs
from tests.unit.training.test_batches import DEFINET, SITE

SAME = 1e-6
"""Agreement between ways to divide the work, in Å."""
CPU = WorkingSet.of(torch.device("cpu"))
CUDA = WorkingSet.of(torch.device("cuda"), free=80 * 2**30)
UNBOUNDED = WorkingSet(
    sites=2**62, chunk_bytes=2**62, kernel_bytes=2**62, short_range_bytes=2**62, training_bytes=2**62
)
TINY = WorkingSet(sites=1, chunk_bytes=1, kernel_bytes=1, short_range_bytes=4096, training_bytes=1)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> str:
    """Return untrained weights of the published network, narrower than published, of moves as large as real ones."""
    torch.manual_seed(0)
    network = DefiNet(DefiNetConfig(features=16, n_radial=64)).requires_grad_(requires_grad=False)
    for move in network.coord_update_layers:
        move.lin_vec2coord.weight *= 0.2
        move.coord_mlp[2].weight *= 0.2
        move.coord_mlp[2].bias *= 0.2
    return str(save_checkpoint(tmp_path_factory.mktemp("weights") / "published.safetensors", network, {}))


@pytest.fixture(scope="module", params=["default", "published"])
def model(request, published) -> str:
    return "default" if request.param == "default" else published


def oblique(cells: tuple[tuple[int, int, int], ...] = ((5, 1, 0), (-1, 4, 0), (0, 0, 1))) -> Atoms:
    atoms = make_supercell(pristine("MoS2", 1), np.array(cells))
    del atoms[7]
    return atoms


def vacancy(host: str, n: int, site: int = 5) -> Atoms:
    atoms = pristine(host, n)
    del atoms[site]
    return atoms


def batch_of(n: int) -> list[Atoms]:
    """Return structures on the same lattice, no two alike."""
    out = []
    for k in range(n):
        atoms = pristine("MoS2", 5)
        del atoms[sorted({k, (7 * k + 31) % len(atoms)})]
        out.append(atoms)
    return out


MIXED = {
    "one": lambda: batch_of(1),
    "eight": lambda: batch_of(8),
    "sixty-four": lambda: batch_of(64),
    "mixed": lambda: [
        mos2_with_defects(4),
        vacancy("GaSe", 3),
        oblique(),
        mos2_with_defects(5),
        vacancy("BN", 4),
        mos2_with_defects(4)[np.random.default_rng(0).permutation(46)],
        vacancy("P", 3),
        mos2_with_defects(18),  # beyond the plain transform
    ],
}


def moves(results) -> list[np.ndarray]:
    out = []
    for result in results:
        assert isinstance(result, RelaxResult), result.error
        out.append(result.site_displacement)
    return out


def passes_of(relaxer: DefiNetRelaxer, monkeypatch) -> list[int]:
    """Return a list that fills with the number of structures in each pass."""
    sizes: list[int] = []
    real = relaxer._predict

    def counted(items):
        sizes.append(len(items))
        return real(items)

    monkeypatch.setattr(relaxer, "_predict", counted)
    return sizes


# how much at a time


def test_limits_of_a_device_are_finite_and_follow_its_memory():
    assert CPU.sites == 2000
    small, large = (WorkingSet.of(torch.device("cuda", 1), free=n * 2**30) for n in (4, 80))
    assert CPU.sites < small.sites < large.sites
    assert small.chunk_bytes <= large.chunk_bytes <= 2**29
    for free in (0, 1, 2**20, 2**40):
        limits = WorkingSet.of(torch.device("cuda"), free=free)
        for value in asdict(limits).values():
            assert isinstance(value, int)
            assert value >= 1


def test_a_gpu_transforms_whole_cells_and_trains_in_few_blocks():
    large = WorkingSet.of(torch.device("cuda"), free=80 * 2**30)
    waves, sublattices, width = 4096 // 2, 3, 64
    assert large.kernel_bytes >= waves * 2 * (4 * sublattices) ** 2 * width * 4
    assert large.training_bytes == 2 * 2**30
    assert WorkingSet.of(torch.device("cuda"), free=2 * 2**30).training_bytes == 2**27


def test_memory_that_torch_keeps_for_later_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**30)
    assert WorkingSet.of(torch.device("cuda")) == WorkingSet.of(torch.device("cuda"), free=70 * 2**30)


@pytest.mark.parametrize("case", MIXED)
@pytest.mark.parametrize("limits", [CUDA, UNBOUNDED], ids=["cuda", "unbounded"])
def test_what_cuda_runs_gives_what_the_cpu_gives(model, case, limits):
    structures = MIXED[case]()
    expected = moves(DefiNetRelaxer(model, "auto", "cpu", working_set=CPU).relax_many(structures))
    found = moves(DefiNetRelaxer(model, "auto", "cpu", working_set=limits).relax_many(structures))
    assert max(np.abs(own).max() for own in expected) > 0.01
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - b).max() < SAME


@pytest.mark.parametrize("initial_positions", ["ideal", "given"])
def test_the_smallest_chunks_give_it_too(model, initial_positions):
    structures = [oblique(), vacancy("GaSe", 3), mos2_with_defects(18)]
    expected = moves(DefiNetRelaxer(model, "auto", "cpu", initial_positions=initial_positions).relax_many(structures))
    few = replace(TINY, chunk_bytes=400_000, short_range_bytes=100_000)
    for a, b in zip(
        moves(
            DefiNetRelaxer(model, "auto", "cpu", initial_positions=initial_positions, working_set=few).relax_many(
                structures
            )
        ),
        expected,
        strict=True,
    ):
        assert np.abs(a - b).max() < SAME


def test_as_many_in_a_pass_as_the_device_takes(monkeypatch):
    structures = [*batch_of(8), mos2_with_defects(4)]
    few = replace(CPU, sites=160)
    for limits, expected in ((UNBOUNDED, [8, 1]), (CUDA, [8, 1]), (few, [2, 2, 2, 2, 1]), (TINY, [1] * 9)):
        relaxer = DefiNetRelaxer(host="MoS2", device="cpu", working_set=limits)
        sizes = passes_of(relaxer, monkeypatch)
        assert len(moves(relaxer.relax_many(structures))) == 9
        assert sizes == expected


def test_predict_alone_needs_no_limit(model):
    """One structure larger than the limit is one pass."""
    expected = DefiNetRelaxer(model, "MoS2", "cpu").predict(mos2_with_defects(5)).site_displacement
    found = DefiNetRelaxer(model, "MoS2", "cpu", working_set=replace(CUDA, sites=1)).predict(mos2_with_defects(5))
    assert np.abs(found.site_displacement - expected).max() < SAME


# where tensors live


def test_the_device_that_is_not_there_is_strict():
    """Else it would show nothing: as CUDA, it takes numbers from anywhere and tensors from itself."""
    with Elsewhere() as elsewhere:
        there = torch.ones(3).to(DEVICE)
        assert isinstance(there, Remote)
        assert there.device == DEVICE
        assert float((2 * there + torch.tensor(1.0)).sum()) == 9
        assert (there + torch.tensor([1.0, 2.0, 3.0], device=DEVICE)).tolist() == [2, 3, 4]
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            there + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            np.asarray(there)
        elsewhere.watching = True
        torch.zeros(3, device=DEVICE)
        torch.zeros_like(there)
        assert not elsewhere.on_cpu
        torch.zeros(3)
        assert elsewhere.on_cpu


@pytest.mark.parametrize("initial_positions", ["ideal", "given"])
def test_a_relaxer_elsewhere(model, initial_positions, monkeypatch):
    """Every tensor of a prediction is where the network is, and the answers come back."""
    alone = initial_positions == "ideal" and model == "default"
    structures = MIXED["mixed"]()[: 8 if alone else 5]
    relaxer = DefiNetRelaxer(model, "auto", "cpu", initial_positions=initial_positions, working_set=CUDA)
    expected = moves(relaxer.relax_many(structures))
    sizes = passes_of(relaxer, monkeypatch)
    with Elsewhere():
        relaxer.network.to(DEVICE)
        assert relaxer.device == DEVICE
        for _ in range(2):  # with what the first has kept, too
            for a, b in zip(moves(relaxer.relax_many(structures)), expected, strict=True):
                assert np.abs(a - b).max() < SAME
    # nothing had to be tried again; structures on explicit edges share a pass if they share a network
    by_network = [3, 1, 1] if model == "default" else [5]
    assert sizes == ([2, 1, 1, 1, 1, 1, 1] if alone else by_network) * 2


@pytest.mark.parametrize("n", [4, 18])
def test_nothing_of_a_forward_pass_is_made_on_the_cpu(model, n):
    relaxer = DefiNetRelaxer(model, "MoS2", "cpu")
    site_map = match_sites(mos2_with_defects(n), "MoS2")
    graphs = [
        sites_of(site_map).graph(relaxer.network.config.cutoff, relaxer.network.config.geometry.max_neighbors)
    ] * 2
    relaxer.network.requires_grad_(requires_grad=False)
    with Elsewhere() as elsewhere:
        network = relaxer.network.to(DEVICE)
        graph = batch_graphs(graphs).to(DEVICE)
        elsewhere.watching = True
        moved = network.predict(graph, CUDA).displacement
        assert not elsewhere.on_cpu
        assert moved.device == DEVICE
        assert moved.dtype == torch.float32
        elsewhere.watching = False
        if model != "default":
            return
        lattice = build_lattice(lattice_of(site_map.sites), network.config.cutoff, keep_kernels=True).to(DEVICE, CUDA)
        lattice.near(4.5)  # a table of integers, made once
        arrays = (site_map.numbers, site_map.host_numbers, site_map.kinds)
        given = [torch.as_tensor(part).to(DEVICE) for part in arrays]
        for _ in range(2):
            elsewhere.watching = True
            moved, errors = network.estimate(lattice, given[0][:, None], given[1], given[2][:, None])
            assert not elsewhere.on_cpu
            elsewhere.watching = False
            assert (moved.device, errors.device) == (DEVICE, DEVICE)
            assert (moved.dtype, errors.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("sizes", [SITE, DEFINET], ids=["site", "definet"])
def test_training_elsewhere(tmp_path, sizes):
    """Batches, loss and gradients are where they are wanted, and what they are on the CPU."""
    (group,) = pack_of(tmp_path / "pack", radial_pairs(4, 2)).groups
    torch.manual_seed(0)
    network = build_network(sizes)
    chosen = np.array([0, 3, 1])

    def gradients(device):
        batches = SiteBatches(group, sizes, device)
        numbers, kinds, target, real = batches.batch(chosen)
        network.zero_grad()
        loss = loss_of(batches.predict(network, numbers, kinds)[-1], target, real)
        near = batches.near(kinds, 3.0)
        parts = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        return float(loss.detach()), [None if p is None else p.cpu() for p in parts], near.cpu()

    expected = gradients(torch.device("cpu"))
    limits = WorkingSet.of
    with Elsewhere(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkingSet, "of", lambda device, free=None: limits(device, free or 2**33))
        network.to(DEVICE)
        found = gradients(DEVICE)
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    assert torch.equal(found[2], expected[2])
    for a, b in zip(found[1], expected[1], strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert (a - b).abs().max() < 1e-5 * max(1.0, float(b.abs().max()))


def test_a_network_of_another_precision(model):
    """The weights are the user's to cast: double is double all the way."""
    relaxer = DefiNetRelaxer(model, "MoS2", "cpu")
    structures = [mos2_with_defects(4), mos2_with_defects(18)]
    single = moves(relaxer.relax_many(structures))
    relaxer.network.double()
    double = moves(relaxer.relax_many(structures))
    for a, b in zip(double, single, strict=True):
        assert 0 < np.abs(a - b).max() < SAME


# memory


FULL = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "driver": RuntimeError("CUDA error: out of memory"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cufft": RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    "numpy": MemoryError("Unable to allocate 9 GiB"),
}


def scarce(relaxer, monkeypatch, most: int, error: Exception) -> list[int]:
    """Let memory run out above so many sites in a pass; return a list of the sites of passes that were tried."""
    real, tried = relaxer._predict, []

    def limited(items):
        tried.append(sum(len(item.site_map.kinds) for item in items))
        if tried[-1] > most:
            raise error
        return real(items)

    monkeypatch.setattr(relaxer, "_predict", limited)
    return tried


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_batch_that_does_not_fit_is_halved_in_order(error, monkeypatch):
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu", working_set=UNBOUNDED)
    structures = batch_of(7)
    expected = moves(relaxer.relax_many(structures))
    tried = scarce(relaxer, monkeypatch, 2 * 75, error)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = moves(relaxer.relax_many(structures))
    assert [str(one.message) for one in said] == [
        f"out of memory on cpu: halving the batch to {n} structures" for n in (3, 1, 2)
    ]
    assert all(one.category is DefiNetWarning for one in said)
    assert tried == [75 * n for n in (7, 3, 1, 2, 4, 2, 2)]
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - b).max() < SAME


def test_one_that_does_not_fit_alone_is_its_own_failure(monkeypatch):
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu", working_set=UNBOUNDED)
    structures = [*batch_of(3), mos2_with_defects(9), *batch_of(2)]
    expected = moves(relaxer.relax_many([s for s in structures if len(s) < 100]))
    scarce(relaxer, monkeypatch, 240, FULL["torch"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DefiNetWarning)
        found = list(relaxer.relax_many(structures))
    assert [isinstance(one, RelaxFailure) for one in found] == [False, False, False, True, False, False]
    assert found[3].index == 3
    assert isinstance(found[3].error, DeviceError)
    assert "too little memory for one structure of 243 sites" in str(found[3].error)
    for a, b in zip(moves([one for one in found if isinstance(one, RelaxResult)]), expected, strict=True):
        assert np.abs(a - b).max() < SAME


# devices by name


@pytest.mark.parametrize("name", ["mps", "mps:0"])
def test_mps_is_refused_with_the_reason(name):
    with pytest.raises(DeviceError, match="need double precision, which MPS does not have; use cpu"):
        DefiNetRelaxer(device=name)


def test_auto_never_takes_mps(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert DefiNetRelaxer(device="auto").device == torch.device("cpu")
    config = TrainConfig(data="none", out=str(tmp_path))
    assert make_fabric(config).device == torch.device("cpu")
    for kind in ("mps", "gpu"):
        with pytest.raises(DeviceError, match="which MPS does not have"):
            make_fabric(replace(config, accelerator=kind))


# a source tree that is not installed


def test_the_version_needs_no_installation(monkeypatch, relaxer, mos2):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert relaxer.relax(mos2).info["definet_version"] == ase_definet.__version__
    shown = CliRunner().invoke(cli, ["--version"])
    assert shown.exit_code == 0
    assert ase_definet.__version__ in shown.output


def test_the_installed_version_is_that_of_the_source():
    try:
        installed = importlib.metadata.version("ase-definet")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert installed == ase_definet.__version__


class Sent:
    """A tensor on the CPU that notes what is done to it."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.done: list[object] = []

    def pin_memory(self):
        self.done.append("pinned")
        return self

    def to(self, device, *, non_blocking=False):
        self.done.append((device, non_blocking))
        return self


def test_a_gpu_copies_from_pinned_memory_and_a_cpu_does_not():
    assert sent(Sent(), "cuda:1").done == ["pinned", ("cuda:1", True)]
    assert sent(Sent(), "cpu").done == [("cpu", False)]


@pytest.mark.skipif(sys.platform == "win32", reason="no C library to ask")
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(monkeypatch):
    for name in KEEP_MEMORY:
        monkeypatch.delenv(name, raising=False)
    keep_freed_memory.cache_clear()
    assert keep_freed_memory() == hasattr(ctypes.CDLL(None), "mallopt")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    keep_freed_memory.cache_clear()
    assert not keep_freed_memory()
    keep_freed_memory.cache_clear()
