"""The network on ideal geometry: physics is the oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.build.supercells import lattice_points_in_supercell

from ase_definet.matching.supercell import waves_of
from ase_definet.model import lattice_convolution as lattice_module
from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.edge_convolution import EdgeGeometry, classify
from ase_definet.model.graph import batch_graphs, build_graph
from ase_definet.model.lattice_convolution import LatticeGeometry
from ase_definet.model.short_range import TYPICAL, PaddedNeighbors
from ase_definet.model.site_network import SiteNetwork
from ase_definet.model.working_set import WorkingSet
from ase_definet.structures.neighbors import neighbor_list
from tests.conftest import pristine

EXACT = 1e-8
"""Symmetry in float64, in Å, of displacements of about 0.1 Å."""
CONFIG = SiteNetworkConfig(cutoff=5.0, features=16, layers=2, n_radial=8, embedding=4)
NEAR = replace(CONFIG, short_range_cutoff=3.5, short_range_features=4, short_range_n_radial=6, dropout=0.2)

SMALL_CHUNKS = WorkingSet(
    sites=1, chunk_bytes=20_000, kernel_bytes=20_000, short_range_bytes=10_000, training_bytes=10_000
)
SCALED = replace(NEAR, vector_norm=True)


@pytest.fixture(scope="module", params=[CONFIG, NEAR, SCALED], ids=["ideal", "near", "scaled"])
def network(request):
    """Return a network whose predictions and guesses are about as large as real displacements."""
    torch.manual_seed(0)
    network = SiteNetwork(request.param).double().eval()
    torch.nn.init.normal_(network.read_out.weight, std=200.0)
    for near in network.short_range:
        torch.nn.init.normal_(near.guess_out.weight, std=200.0)
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


def run(network, given, working_set=None):
    graph = build_graph(**given, cutoff=CONFIG.cutoff, dtype=torch.float64)
    with torch.no_grad():
        return network.predict(graph, working_set).displacement.numpy()


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
        together = network.predict(batch_graphs(graphs)).displacement.numpy()
    assert np.abs(together - np.concatenate([run(network, given) for given in several])).max() < EXACT


def test_mean_over_atoms_is_zero_and_vacancies_stay(network):
    given = arrays()
    out = run(network, given)
    assert np.abs(out[given["numbers"] > 0].mean(axis=0)).max() < EXACT
    assert np.abs(out[given["numbers"] == 0]).max() == 0


def test_planar_layer_stays_planar(network):
    """No deterministic equivariant network can choose up or down; ours must not pretend to."""
    assert np.abs(run(network, arrays(pristine("BN", 4), (3,), ()))[:, 2]).max() < EXACT


def test_chunks_do_not_matter(network):
    given = arrays()
    assert np.abs(run(network, given, SMALL_CHUNKS) - run(network, given)).max() < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_class_of_edges_is_wider_than_its_tolerance(dtype):
    """Many edges follow each other more closely than that, as those of a large structure off its sites do."""
    torch.manual_seed(0)
    distance = (2.4 + 0.2 * torch.rand(100_000, dtype=torch.float64)).to(dtype)
    pair = torch.randint(0, 2, (100_000,)) + 42
    edge_class, mean, class_pair = classify(pair, distance, 1e-5)
    assert (mean[edge_class] - distance).abs().max() < 1.2e-5
    assert torch.equal(class_pair[edge_class], pair)
    exact = torch.tensor([2.4, 3.1, 2.4, 3.1, 2.4 + 1e-7], dtype=torch.float64)
    assert classify(torch.full((5,), 42), exact, 1e-5)[0].tolist() == [0, 1, 0, 1, 0]


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


OBLIQUE = ((4, 1, 0), (-1, 3, 0), (0, 0, 1))
TURNED_OVER = ((0, 4, 0), (3, 1, 0), (0, 0, -1))
CRYSTAL = ((2, 1, 0), (0, 2, -1), (1, 0, 2))
SUPERCELLS = {
    "MoS2": ("MoS2", np.diag([4, 4, 1])),
    "BN": ("BN", np.diag([5, 4, 1])),
    "GaSe": ("GaSe", np.diag([3, 3, 1])),
    "P": ("P", np.diag([3, 2, 1])),
    "oblique": ("MoS2", np.array(OBLIQUE)),
    "turned over": ("GaSe", np.array(TURNED_OVER)),
    "crystal": ("MgO", np.array(CRYSTAL)),
    "small": ("MoS2", np.array(((2, 1, 0), (0, 1, 0), (0, 0, 1)))),
}


def lattice_of(case: str) -> tuple[LatticeGeometry, Atoms]:
    """Return the reciprocal-space geometry of a host and its sites in the same order."""
    name, supercell = SUPERCELLS[case]
    unit = bulk("MgO", "rocksalt", 4.21) if name == "MgO" else pristine(name, 1)
    target, source, shift, vector = neighbor_list(unit.positions, unit.cell.array, (True,) * 3, CONFIG.cutoff)
    edges = [torch.as_tensor(part) for part in (source, target, shift, vector, unit.numbers)]
    cells = np.round(lattice_points_in_supercell(supercell) @ supercell).astype(int)
    waves = lattice_points_in_supercell(supercell.T)
    geometry = LatticeGeometry(*edges, *(torch.as_tensor(part) for part in (supercell, cells, waves)))
    sites = ((cells @ unit.cell.array)[:, None] + unit.positions).reshape(-1, 3)
    return geometry, Atoms(np.tile(unit.numbers, len(cells)), sites, cell=supercell @ unit.cell.array, pbc=True)


@pytest.mark.parametrize("transform", ["dense", "fast"])
@pytest.mark.parametrize("case", SUPERCELLS)
def test_reciprocal_space_gives_the_same_answer_and_gradients(network, case, transform, monkeypatch):
    """Where a supercell is no grid, there is no fast transform, and the dense one is taken."""
    monkeypatch.setattr(lattice_module, "MOST_DENSE", 10**6 if transform == "dense" else 0)
    geometry, atoms = lattice_of(case)
    geometry.to("cpu", replace(SMALL_CHUNKS, kernel_bytes=100_000))
    occupations = [arrays(atoms, (1,), (4,)), arrays(atoms, (), (2, 3)), arrays(atoms, (0, 5), ())]
    numbers = torch.as_tensor(np.stack([o["numbers"] for o in occupations], axis=1))
    kinds = torch.as_tensor(np.stack([o["kinds"] for o in occupations], axis=1))
    fast = network(geometry, numbers, torch.as_tensor(atoms.numbers), kinds)
    graph = build_graph(**occupations[0], cutoff=CONFIG.cutoff, dtype=torch.float64)
    edges = EdgeGeometry(graph.edge_index, graph.edge_vectors(), graph.host_numbers, graph.structure, 1)
    slow = network(edges, numbers, graph.host_numbers, kinds)
    assert (fast - slow).abs().max() < EXACT
    weights = list(network.parameters())
    assert fast.abs().max() > 0.01
    probe = torch.linspace(-1, 1, fast.numel()).view_as(fast).double()
    gradients = [torch.autograd.grad((out * probe).sum(), weights) for out in (fast, slow)]
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() < EXACT * max(1.0, float(b.abs().max()))


def test_cells_of_a_grid_may_come_in_any_order(network, monkeypatch):
    monkeypatch.setattr(lattice_module, "MOST_DENSE", 0)
    geometry, atoms = lattice_of("BN")
    order = torch.randperm(len(geometry._cells), generator=torch.Generator().manual_seed(0))
    edges, cells, waves = geometry._edges, geometry._cells, torch.as_tensor(waves_of(geometry._supercell.numpy()))
    numbers = torch.as_tensor(atoms.numbers[: geometry.n_sub])
    shuffled = LatticeGeometry(*edges, numbers, geometry._supercell, cells[order], waves)
    sites = (order[:, None] * geometry.n_sub + torch.arange(geometry.n_sub)).reshape(-1)
    field = torch.randn(len(atoms), 2, 4, CONFIG.features, dtype=torch.float64)
    filters = network.layers[0].filters
    expected = geometry.propagate(filters, field)
    assert (shuffled.propagate(filters, field[sites]) - expected[sites]).abs().max() < EXACT


def neighbors_of(table: PaddedNeighbors) -> list[set[tuple]]:
    """Return what each site hears, whatever its order: source, vector and weight."""
    assert (table.weight >= 0).all()
    return [
        {
            (int(source), *(vector + 0.0).round(decimals=6).tolist(), round(float(weight), 6))
            for source, vector, weight in zip(*site, strict=True)
            if weight > 0
        }
        for site in zip(table.source, table.vector, table.weight, strict=True)
    ]


@pytest.mark.parametrize("case", SUPERCELLS)
def test_close_neighbours_are_the_same_everywhere(case):
    """On the lattice, on edges, and as a plain neighbour list has them."""
    geometry, atoms = lattice_of(case)
    given = arrays(atoms, (), ())
    graph = build_graph(**given, cutoff=CONFIG.cutoff, dtype=torch.float64)
    edges = EdgeGeometry(graph.edge_index, graph.edge_vectors(), graph.host_numbers, graph.structure, 1)
    fast, slow = (neighbors_of(one.near(NEAR.short_range_cutoff)) for one in (geometry, edges))
    assert fast == slow
    target, _, _, vector = neighbor_list(atoms.positions, atoms.cell.array, (True,) * 3, NEAR.short_range_cutoff)
    assert [len(one) for one in fast] == np.bincount(target, minlength=len(atoms)).tolist()
    assert geometry.near(2.6) is not geometry.near(NEAR.short_range_cutoff)
    assert geometry.near(2.6) is geometry.near(2.6)
    for site, own in enumerate(fast):
        for _, x, y, z, weight in own:
            length = np.sqrt(x * x + y * y + z * z)
            expected = 0.5 * (1 + np.cos(np.pi * length / NEAR.short_range_cutoff)) / np.sqrt(TYPICAL)
            assert weight == pytest.approx(expected, abs=1e-5)
            assert np.abs(np.linalg.norm(vector[target == site], axis=1) - length).min() < 1e-5


def test_guessed_distances_matter():
    """Else the symmetries of the near messages say little."""
    torch.manual_seed(0)
    seeing, blind = (
        SiteNetwork(replace(NEAR, short_range_displaced=moves)).double().eval() for moves in (True, False)
    )
    torch.nn.init.normal_(seeing.read_out.weight, std=200.0)
    torch.nn.init.normal_(seeing.short_range[0].guess_out.weight, std=200.0)
    blind.load_state_dict(seeing.state_dict())
    given = arrays()
    assert np.abs(run(seeing, given) - run(blind, given)).max() > 1e-3


def test_there_is_a_guess_between_any_two_layers(network):
    geometry, atoms = lattice_of("MoS2")
    given = arrays(atoms)
    numbers, kinds = (torch.as_tensor(given[k])[:, None] for k in ("numbers", "kinds"))
    with torch.no_grad():
        *guesses, last = network.stages(geometry, numbers, torch.as_tensor(atoms.numbers), kinds)
    assert len(guesses) == (network.config.layers - 1 if network.config.short_range_cutoff else 0)
    for guess in guesses:
        assert guess.shape == last.shape
        assert 0.001 < guess.abs().max() < 10
        assert (guess[given["numbers"] == 0] == 0).all()


def stages_of(network, positions, start=None):
    """Run four by four cells of MoS2 with defects, its edges from these positions."""
    given = arrays()
    graph = build_graph(**given | positions, cutoff=CONFIG.cutoff, dtype=torch.float64)
    zeros = torch.zeros(len(graph.pos), dtype=torch.long)
    geometry = EdgeGeometry(graph.edge_index, graph.edge_vectors(), graph.host_numbers, zeros, 1)
    with torch.no_grad():
        return network.stages(geometry, graph.numbers[:, None], graph.host_numbers, graph.kinds[:, None], start)[-1]


def test_atoms_may_start_off_the_sites():
    """The start turns with the structure, no start is a start on the sites, and a network must be made for it."""
    torch.manual_seed(0)
    network = SiteNetwork(replace(NEAR, noisy_starts=True)).double().eval()
    given, real = arrays(), torch.tensor(arrays()["numbers"] > 0).double()[:, None, None]
    start = 0.2 * torch.randn(len(real), 1, 3, dtype=torch.float64) * real
    before = stages_of(network, {}, start)
    turn = rotation(3)
    turned = {"positions": given["positions"] @ turn.T, "cell": given["cell"] @ turn.T}
    matrix = torch.tensor(turn)
    assert (stages_of(network, turned, start @ matrix.T) - before @ matrix.T).abs().max() < EXACT
    assert torch.equal(stages_of(network, {}), stages_of(network, {}, torch.zeros_like(start)))
    assert (before - stages_of(network, {}) - start).abs().max() > 0.01  # more than the start added on
    assert before.sum(0).abs().max() < EXACT
    with pytest.raises(RuntimeError, match="built without `noisy_starts`"):
        stages_of(SiteNetwork(NEAR).double(), {}, start)


@pytest.mark.parametrize("config", [CONFIG, NEAR], ids=["ideal", "near"])
def test_dropout_is_for_training_only(config):
    """And leaves directions alone: in training too the answer turns with the structure."""
    torch.manual_seed(0)
    with_, without = (SiteNetwork(replace(config, dropout=share)).double() for share in (0.5, 0.0))
    with_.load_state_dict(without.state_dict())
    given = arrays()
    expected = run(without, given)
    assert not np.array_equal(run(with_, given), expected)
    torch.manual_seed(1)
    dropped = run(with_, given)
    turn = rotation(0)
    torch.manual_seed(1)
    turned = run(with_, given | {"positions": given["positions"] @ turn.T, "cell": given["cell"] @ turn.T})
    assert np.abs(turned - dropped @ turn.T).max() < EXACT
    assert np.array_equal(run(with_.eval(), given), run(without.eval(), given))
    assert np.array_equal(run(without, given), expected)


def test_far_defects_do_not_matter_much_to_an_untrained_net_beyond_its_reach(network):
    """Two layers of 5 Å see 10 Å, close pairs a little more; beyond that only the mean over sites connects."""
    atoms = pristine("MoS2", 12)
    here, there = run(network, arrays(atoms, (0,), ())), run(network, arrays(atoms, (0, 230), ()))
    distances = atoms.get_distances(230, range(len(atoms)), mic=True)
    far = distances > 2 * CONFIG.cutoff + network.config.short_range_cutoff
    assert far.any()
    assert np.abs(here - there)[far].max() < 0.1 * np.abs(here - there)[~far].max()


def test_long_vectors_do_not_blow_up():
    """A layer adds to a vector at most what is in proportion to it; without scaling it adds the square."""
    geometry, atoms = lattice_of(next(iter(SUPERCELLS)))
    grown = {}
    for scaled in (False, True):
        torch.manual_seed(1)
        layer = SiteNetwork(replace(CONFIG, vector_norm=scaled)).double().layers[0]
        scalars = torch.randn(len(atoms), 1, CONFIG.features, dtype=torch.float64)
        vectors = torch.randn(len(atoms), 1, 3, CONFIG.features, dtype=torch.float64)
        with torch.no_grad():
            sizes = [layer(geometry, scalars, scalars, factor * vectors)[1].norm() for factor in (1e3, 1e4)]
        grown[scaled] = float(sizes[1] / sizes[0])
    assert grown[False] > 50
    assert 9 < grown[True] < 11
