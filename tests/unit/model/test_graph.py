import numpy as np
import pytest
import torch
from ase.build import mx2
from torch_geometric.loader import DataLoader

from ase_definet.errors import DefiNetError, StructureError
from ase_definet.model.graph import PRISTINE, SUBSTITUTION, VACANCY, DefectGraph, batch_graphs, build_graph
from ase_definet.structures.neighbors import SHELL_TOLERANCE, neighbor_list

EDGE_TOLERANCE = 1e-10  # Å, double precision
SINGLE_EDGE_TOLERANCE = 1e-5  # Å, single precision
CUTOFF = 6.0
CAP = 20


def arrays(size=4, host="MoS2"):
    atoms = mx2(host, size=(size, size, 1), vacuum=8)
    atoms.pbc = True
    host_numbers = atoms.numbers.copy()
    numbers, kinds = host_numbers.copy(), np.zeros(len(atoms), dtype=int)
    numbers[1], kinds[1] = 0, VACANCY
    numbers[5], kinds[5] = 8, SUBSTITUTION
    return {
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
        "numbers": numbers,
        "host_numbers": host_numbers,
        "kinds": kinds,
    }


def graph_of(cutoff=CUTOFF, max_neighbors=None, dtype=torch.float64, **changes):
    return build_graph(**(arrays() | changes), cutoff=cutoff, max_neighbors=max_neighbors, dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, EDGE_TOLERANCE), (torch.float32, SINGLE_EDGE_TOLERANCE)]
)
def test_edge_vectors_are_those_of_the_neighbour_list(dtype, tolerance):
    given = arrays()
    graph = graph_of(dtype=dtype)
    target, source, shift, vector = neighbor_list(given["positions"], given["cell"], (True, True, True), CUTOFF)
    assert graph.edge_index.tolist() == [source.tolist(), target.tolist()]
    assert graph.cell_shift.tolist() == shift.tolist()
    assert graph.edge_vectors().dtype == dtype
    np.testing.assert_allclose(graph.edge_vectors().numpy(), vector, rtol=0, atol=tolerance)


def test_shapes_and_types():
    graph = graph_of(dtype=torch.float32)
    n_sites, n_edges = graph.num_nodes, graph.num_edges
    assert n_sites == 48
    assert graph.n_structures == 1
    assert graph.structure.tolist() == [0] * n_sites
    shapes = {name: tuple(value.shape) for name, value in graph.tensors().items()}
    assert shapes == {
        "numbers": (n_sites,),
        "host_numbers": (n_sites,),
        "kinds": (n_sites,),
        "pos": (n_sites, 3),
        "cell": (1, 3, 3),
        "edge_index": (2, n_edges),
        "cell_shift": (n_edges, 3),
    }
    assert graph.pos.dtype == graph.cell.dtype == torch.float32
    assert graph.cell_shift.dtype == torch.int64


def test_the_cap_keeps_whole_shells():
    every, capped = graph_of(), graph_of(max_neighbors=CAP)
    for site in range(every.num_nodes):
        lengths = every.edge_vectors()[every.edge_index[1] == site].norm(dim=1).sort().values
        kept = int((capped.edge_index[1] == site).sum())
        assert 0 < kept <= CAP
        assert lengths[kept] - lengths[kept - 1] > SHELL_TOLERANCE


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cap", [None, CAP])
def test_edges_do_not_depend_on_the_origin(seed, cap):
    given = arrays()
    moved = given["positions"] + np.random.default_rng(seed).uniform(-9, 9, 3)
    moved = (np.linalg.solve(given["cell"].T, moved.T).T % 1) @ given["cell"]

    def edges(graph):
        spans = graph.edge_vectors().numpy().round(6) + 0.0
        return sorted(zip(*graph.edge_index.tolist(), map(tuple, spans.tolist()), strict=True))

    here, there = edges(graph_of(max_neighbors=cap)), edges(graph_of(positions=moved, max_neighbors=cap))
    assert [e[:2] for e in here] == [e[:2] for e in there]
    np.testing.assert_allclose([e[2] for e in here], [e[2] for e in there], rtol=0, atol=1e-5)


def test_batching_keeps_every_structure_as_it_was():
    graphs = [graph_of(), build_graph(**arrays(3, "WSe2"), cutoff=4.0, dtype=torch.float64)]
    batch = batch_graphs(graphs)
    batch.validate()
    assert batch.n_structures == 2
    assert batch.structure.tolist() == [0] * 48 + [1] * 27
    assert batch.cell.shape == (2, 3, 3)
    vectors = batch.edge_vectors().split([graph.num_edges for graph in graphs])
    for graph, part in zip(graphs, vectors, strict=True):
        torch.testing.assert_close(part, graph.edge_vectors(), rtol=0, atol=EDGE_TOLERANCE)
    assert torch.equal(batch.numbers, torch.cat([graph.numbers for graph in graphs]))


def test_torch_geometric_takes_it():
    graphs = [graph_of(), build_graph(**arrays(3, "WSe2"), cutoff=4.0, dtype=torch.float64)]
    loader = DataLoader([graph.to_data() for graph in graphs], batch_size=2)
    batch = next(iter(loader))
    for name, value in batch_graphs(graphs).tensors().items():
        assert torch.equal(batch[name], value)


def test_nothing_to_batch():
    with pytest.raises(StructureError, match="at least one graph"):
        batch_graphs([])


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), np.diag([3.0, 4.0, 0.0])])
def test_a_molecule_needs_no_cell(cell):
    graph = build_graph(
        [[0, 0, 0], [1, 0, 0]],
        cell,
        (False, False, False),
        numbers=[1, 1],
        host_numbers=[1, 1],
        kinds=[0, 0],
        cutoff=3,
    )
    assert graph.edge_index.tolist() == [[1, 0], [0, 1]]
    assert graph.edge_vectors().tolist() == [[1, 0, 0], [-1, 0, 0]]


def test_a_lone_site_has_no_edges():
    graph = build_graph(
        [[0, 0, 0]], np.eye(3) * 9, (True,) * 3, numbers=[0], host_numbers=[1], kinds=[VACANCY], cutoff=3
    )
    assert graph.edge_vectors().shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": np.zeros((48, 2))}, r"positions must have shape \(n_sites, 3\)"),
        ({"positions": np.zeros((0, 3))}, "at least one site"),
        ({"positions": np.full((48, 3), np.nan)}, "finite"),
        ({"cell": np.zeros(3)}, r"expected a \(3, 3\) cell"),
        ({"cell": np.zeros((3, 3))}, "linearly independent"),
        ({"numbers": np.ones(3)}, r"numbers must have shape \(48,\), found \(3,\)"),
        ({"kinds": np.full(48, 0.5)}, "kinds must be whole numbers"),
        ({"kinds": np.full(48, PRISTINE)}, "site 1 of host element 16 holds 0, .* kind 0"),
        ({"kinds": np.full(48, VACANCY)}, "kind 2"),
        ({"kinds": arrays()["kinds"] * 2}, "site 1 .* kind 4"),
        ({"host_numbers": np.zeros(48)}, "start at 1"),
        ({"numbers": np.full(48, -1)}, "start at 1"),
        ({"positions": arrays()["positions"] * 0.01}, "apart, expected at least"),
    ],
)
def test_unusable_input_is_refused(changes, message):
    if "positions" in changes and len(changes["positions"]) == 0:
        changes |= dict.fromkeys(("numbers", "host_numbers", "kinds"), np.zeros(0))
    with pytest.raises(DefiNetError, match=message):
        graph_of(cutoff=3.0, **changes)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kinds", torch.zeros(48, dtype=torch.int32), "kinds must hold int64"),
        ("pos", torch.full((48, 3), torch.inf), "pos must hold finite"),
        ("cell", torch.zeros(2, 3, 3), r"expected the sites of 2 structure\(s\)"),
        ("cell_shift", torch.zeros(1, 3), "cell_shift must have shape"),
    ],
)
def test_a_damaged_graph_is_found(name, value, message):
    with pytest.raises(StructureError, match=message):
        DefectGraph(**(graph_of().tensors() | {name: value})).validate()


def test_damaged_edges_are_found():
    graph = graph_of()
    graph.edge_index[0, 0] = 48
    with pytest.raises(StructureError, match="0 to 47"):
        graph.validate()
    batch = batch_graphs([graph_of(), graph_of()])
    batch.edge_index[0, 0] = 50
    with pytest.raises(StructureError, match="joins two structures"):
        batch.validate()
