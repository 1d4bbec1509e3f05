"""The network on ideal geometry: physics is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from ase_definet.graph import batch_graphs, build_graph
from ase_definet.model import geometry as geometry_module
from ase_definet.model import predict_displacements
from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.geometry import EdgeGeometry, LatticeGeometry
from ase_definet.model.site_network import SiteNetwork
from ase_definet.neighbors import neighbor_list
from tests.conftest import pristine

EXACT = 1e-8
"""Symmetry in float64, in Å, of displacements of about 0.1 Å."""
CONFIG = SiteNetworkConfig(cutoff=5.0, features=16, layers=2, radial=8, embedding=4)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = SiteNetwork(CONFIG).double()
    torch.nn.init.normal_(network.read_out.weight, std=200.0)
    return network


def arrays(atoms: Atoms | None = None, vacant=(5, 17), substituted=(8,)):
    atoms = pristine("MoS2", 4) if atoms is None else atoms
    host = atoms.numbers.copy()
    numbers = host.copy()
    numbers[list(vacant)] = 0
    numbers[list(substituted)] = 74
    kinds = np.where(numbers == 0, 2, (numbers != host).astype(int))
    return {
        "positions": atoms.positions.copy(),
        "cell": atoms.cell.array.copy(),
        "pbc": (True, True, True),
        "numbers": numbers,
        "host_numbers": host,
        "kinds": kinds,
    }


def run(network, given):
    graph = build_graph(**given, cutoff=CONFIG.cutoff, dtype=torch.float64)
    with torch.no_grad():
        return predict_displacements(network, graph).numpy()


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q


@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize("seed", range(3))
def test_rotations_and_reflections(network, seed, mirror):
    given = arrays()
    expected = run(network, given)
    assert np.abs(expected).max() > 0.01
    turn = rotation(seed)
    turn *= mirror * np.sign(np.linalg.det(turn))
    turned = given | {"positions": given["positions"] @ turn.T, "cell": given["cell"] @ turn.T}
    assert np.abs(run(network, turned) - expected @ turn.T).max() < EXACT


def test_translations_and_images(network):
    given = arrays()
    moved = given["positions"] + [1.3, -7.0, 2.0]
    moved[::3] += given["cell"][0]
    assert np.abs(run(network, given | {"positions": moved}) - run(network, given)).max() < EXACT


def test_permutations(network):
    given = arrays()
    order = np.random.default_rng(1).permutation(len(given["numbers"]))
    shuffled = given | {k: given[k][order] for k in ("positions", "numbers", "host_numbers", "kinds")}
    assert np.abs(run(network, shuffled) - run(network, given)[order]).max() < EXACT


def test_tiles(network):
    given = arrays()
    tiled = {
        "positions": np.concatenate([given["positions"], given["positions"] + given["cell"][1]]),
        "cell": given["cell"] * [[1], [2], [1]],
        "pbc": given["pbc"],
    } | {k: np.tile(given[k], 2) for k in ("numbers", "host_numbers", "kinds")}
    assert np.abs(run(network, tiled).reshape(2, -1, 3) - run(network, given)).max() < EXACT


def test_batches_equal_singles(network):
    several = [
        arrays(),
        arrays(pristine("GaSe", 3), (1,), ()),
        arrays(bulk("NaCl", "rocksalt", 5.6, cubic=True), (0,), ()),
    ]
    graphs = [build_graph(**given, cutoff=CONFIG.cutoff, dtype=torch.float64) for given in several]
    with torch.no_grad():
        together = predict_displacements(network, batch_graphs(graphs)).numpy()
    assert np.abs(together - np.concatenate([run(network, given) for given in several])).max() < EXACT


def test_mean_over_atoms_is_zero_and_vacancies_stay(network):
    given = arrays()
    out = run(network, given)
    assert np.abs(out[given["numbers"] > 0].mean(axis=0)).max() < EXACT
    assert np.abs(out[given["numbers"] == 0]).max() == 0


def test_planar_layer_stays_planar(network):
    """No deterministic equivariant network can choose up or down; ours must not pretend to."""
    assert np.abs(run(network, arrays(pristine("BN", 4), (3,), ()))[:, 2]).max() < EXACT


def test_chunks_of_edges_do_not_matter(network, monkeypatch):
    given = arrays()
    expected = run(network, given)
    monkeypatch.setattr(geometry_module, "CHUNK_BYTES", 20_000)
    assert np.abs(run(network, given) - expected).max() < EXACT


def test_shared_filters_do_not_matter(network):
    graph = build_graph(**arrays(), cutoff=CONFIG.cutoff, dtype=torch.float64)
    out = []
    for tolerance in (0.0, 1e-5):
        geometry = EdgeGeometry(
            graph.edge_index, graph.edge_vectors(), graph.host_numbers, graph.structure, 1, tolerance=tolerance
        )
        out.append(network(geometry, graph.numbers[:, None], graph.host_numbers, graph.kinds[:, None]))
    assert len(geometry.class_distance) < 30 < graph.num_edges
    assert (out[0] - out[1]).abs().max() < EXACT


def lattice_of(name: str, n: int) -> tuple[LatticeGeometry, Atoms]:
    """Return the reciprocal-space geometry of a host and its sites in the same order."""
    unit = pristine(name, 1)
    target, source, shift, vector = neighbor_list(unit.positions, unit.cell.array, (True,) * 3, CONFIG.cutoff)
    geometry = LatticeGeometry.repeated(
        torch.as_tensor(source),
        torch.as_tensor(target),
        torch.as_tensor(shift),
        torch.as_tensor(vector),
        torch.as_tensor(unit.numbers),
        (n, n, 1),
    )
    cells = np.array([[i, j, 0] for i in range(n) for j in range(n)]) @ unit.cell.array
    sites = (cells[:, None] + unit.positions).reshape(-1, 3)
    return geometry, Atoms(np.tile(unit.numbers, n * n), sites, cell=unit.cell.array * [[n], [n], [1]], pbc=True)


@pytest.mark.parametrize(("name", "n"), [("MoS2", 4), ("BN", 5), ("GaSe", 3), ("P", 3)])
def test_reciprocal_space_gives_the_same_answer_and_gradients(network, name, n):
    geometry, atoms = lattice_of(name, n)
    occupations = [arrays(atoms, (1,), (4,)), arrays(atoms, (), (2, 3)), arrays(atoms, (0, 7), ())]
    numbers = torch.as_tensor(np.stack([o["numbers"] for o in occupations], axis=1))
    kinds = torch.as_tensor(np.stack([o["kinds"] for o in occupations], axis=1))
    fast = network(geometry, numbers, torch.as_tensor(atoms.numbers), kinds)
    graph = build_graph(**occupations[0], cutoff=CONFIG.cutoff, dtype=torch.float64)
    edges = EdgeGeometry(graph.edge_index, graph.edge_vectors(), graph.host_numbers, graph.structure, 1)
    slow = network(edges, numbers, graph.host_numbers, kinds)
    assert (fast - slow).abs().max() < EXACT
    weights = list(network.parameters())
    probe = torch.linspace(-1, 1, fast.numel()).view_as(fast).double()
    gradients = [torch.autograd.grad((out * probe).sum(), weights) for out in (fast, slow)]
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() < EXACT * max(1.0, float(b.abs().max()))


def test_far_defects_do_not_matter_much_to_an_untrained_net_beyond_its_reach(network):
    """Two layers of 5 Å see 10 Å; beyond that only the mean over sites connects."""
    atoms = pristine("MoS2", 12)
    here, there = run(network, arrays(atoms, (0,), ())), run(network, arrays(atoms, (0, 230), ()))
    distances = atoms.get_distances(230, range(len(atoms)), mic=True)
    far = distances > 2 * CONFIG.cutoff
    assert far.any()
    assert np.abs(here - there)[far].max() < 0.1 * np.abs(here - there)[~far].max()
