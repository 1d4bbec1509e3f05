import copy
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import mx2

from ase_definet.errors import StructureError
from ase_definet.model.config import DefiNetConfig
from ase_definet.model.definet import DefiNet
from ase_definet.model.graph import SUBSTITUTION, VACANCY, batch_graphs, build_graph
from ase_definet.model.working_set import WorkingSet

REFERENCE = runpy.run_path(str(Path(__file__).parents[2] / "reference_definet.py"))

DOUBLE_TOLERANCE = 1e-8  # Å, double precision
SINGLE_TOLERANCE = 1e-5  # Å, single precision
VISIBLE = 0.02  # Å, a displacement that a mistake could not hide behind
SIZES = DefiNetConfig(features=12, layers=3, n_radial=24, cutoff=4.2, max_neighbors=18)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(7)
    model = DefiNet(SIZES).double().eval().requires_grad_(requires_grad=False)
    for move in model.coord_update_layers:  # fresh weights move sites little
        move.lin_vec2coord.weight *= 3
        move.coord_mlp[2].weight *= 3
    return model


def arrays(size=3, host="MoS2", rattle=0.0, seed=0):
    atoms = mx2(host, size=(size, size, 1), vacuum=8)
    rng = np.random.default_rng(seed)
    host_numbers = atoms.numbers.copy()
    numbers, kinds = host_numbers.copy(), np.zeros(len(atoms), dtype=int)
    numbers[1], kinds[1] = 0, VACANCY
    numbers[5], kinds[5] = 8, SUBSTITUTION
    numbers[3], kinds[3] = 23, SUBSTITUTION
    return {
        "positions": atoms.positions + rattle * rng.normal(size=(len(atoms), 3)),
        "cell": atoms.cell.array,
        "pbc": (True, True, False),
        "numbers": numbers,
        "host_numbers": host_numbers,
        "kinds": kinds,
    }


def graph_of(given, cap=SIZES.max_neighbors, dtype=torch.float64):
    return build_graph(**given, cutoff=SIZES.cutoff, max_neighbors=cap, dtype=dtype)


def close(found, expected, tolerance=DOUBLE_TOLERANCE):
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > VISIBLE
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize(("rattle", "cap"), [(0.0, 18), (0.1, None), (0.1, 11)])
def test_agrees_with_the_equations(model, rattle, cap):
    given = arrays(2, rattle=rattle)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    edges = REFERENCE["brute_force_edges"](
        given["positions"], given["cell"], given["pbc"], cutoff=SIZES.cutoff, cap=cap
    )
    sites = {name: value for name, value in given.items() if name != "pbc"}
    expected = REFERENCE["displacement"](weights, SIZES, edges=edges, **sites)
    expected = torch.from_numpy(expected * (given["kinds"] != VACANCY)[:, None])
    graph = graph_of(given, cap)
    assert graph.num_edges == len(edges)
    close(model(graph), expected)
    single = DefiNet(SIZES)
    single.load_state_dict(model.state_dict())
    with torch.no_grad():
        found = single(graph_of(given, cap, torch.float32))
    assert found.dtype == torch.float32
    close(found, expected, SINGLE_TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
def test_turns_and_mirrors_with_the_structure(model, seed):
    given = arrays()
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    turn[0] *= np.linalg.det(turn) * (-1) ** seed  # odd seeds mirror
    turned = given | {"positions": given["positions"] @ turn.T, "cell": given["cell"] @ turn.T}
    close(model(graph_of(turned)), model(graph_of(given)) @ torch.from_numpy(turn.T.copy()))


@pytest.mark.parametrize("cap", [SIZES.max_neighbors, 11])
@pytest.mark.parametrize("seed", range(3))
def test_does_not_depend_on_the_origin(model, seed, cap):
    given = arrays() | {"pbc": (True, True, True)}
    moved = given["positions"] + np.random.default_rng(seed).uniform(-9, 9, 3)
    expected = model(graph_of(given, cap))
    close(model(graph_of(given | {"positions": moved}, cap)), expected)
    wrapped = (np.linalg.solve(given["cell"].T, moved.T).T % 1) @ given["cell"]
    close(model(graph_of(given | {"positions": wrapped}, cap)), expected)


def test_does_not_depend_on_the_order_of_sites(model):
    given = arrays()
    order = np.random.default_rng(1).permutation(len(given["kinds"]))
    shuffled = given | {name: given[name][order] for name in ("positions", "numbers", "host_numbers", "kinds")}
    close(model(graph_of(shuffled)), model(graph_of(given))[order])


def test_a_batch_equals_its_structures(model):
    graphs = [graph_of(arrays()), graph_of(arrays(2, "WSe2", 0.1)), graph_of(arrays(4, rattle=0.05, seed=3))]
    close(model(batch_graphs(graphs)), torch.cat([model(graph) for graph in graphs]))


def test_a_tiled_cell_gives_tiled_displacements(model):
    given = arrays()
    tiles = [a * given["cell"][0] + b * given["cell"][1] for a in range(2) for b in range(2)]
    tiled = given | {
        "positions": np.concatenate([given["positions"] + tile for tile in tiles]),
        "cell": given["cell"] * [[2], [2], [1]],
        **{name: np.tile(given[name], 4) for name in ("numbers", "host_numbers", "kinds")},
    }
    close(model(graph_of(tiled)), model(graph_of(given)).repeat(4, 1))


@pytest.mark.parametrize("learning", [True, False])
def test_blocks_of_sites_change_nothing(model, learning):
    graph = graph_of(arrays())
    expected, gradients = prediction_and_gradients(model, graph)
    small = WorkingSet(sites=1, chunk_bytes=5000, kernel_bytes=5000, short_range_bytes=5000, training_bytes=5000)
    if learning:
        found, others = prediction_and_gradients(model, graph, small)
        torch.testing.assert_close(others, gradients, rtol=1e-9, atol=1e-12)
    else:
        with torch.inference_mode():
            found = model(graph, small)
    close(found, expected)


def prediction_and_gradients(model, graph, working_set=None):
    model = copy.deepcopy(model).requires_grad_()
    out = model(graph, working_set)
    (out * torch.arange(out.numel()).view_as(out)).sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_empty_sites_stay_and_tell_what_is_missing(model):
    given = arrays()
    here = model(graph_of(given))
    assert here[1].tolist() == [0, 0, 0]
    other = given["host_numbers"].copy()
    other[1] = 52
    assert float((model(graph_of(given | {"host_numbers": other})) - here).abs().max()) > DOUBLE_TOLERANCE


def test_a_lone_site_stays_finite(model):
    graph = build_graph([[0, 0, 0]], np.eye(3) * 9, (True,) * 3, numbers=[8], host_numbers=[16], kinds=[1], cutoff=4)
    assert model(graph).shape == (1, 3)
    assert bool(model(graph).isfinite().all())


def test_elements_beyond_the_table_are_refused(model):
    given = arrays()
    given["numbers"][5] = SIZES.n_elements
    with pytest.raises(StructureError, match="below 118, found 118"):
        model(graph_of(given))


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model = DefiNet(SIZES)
    model(graph_of(arrays(), dtype=torch.float32)).norm(dim=1).sum().backward()
    last = f".{SIZES.layers - 1}.mlp_vn"  # tells a global node that nobody asks any more
    for name, parameter in model.named_parameters():
        if last in name:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            # vectors start at zero, so the first layer has none to mix
            assert (float(parameter.grad.abs().max()) > 0) == (name != "virtual_vector_layers.0.mlp_node.weight"), (
                name
            )


def test_parameter_names_are_those_of_the_authors():
    def linear(*names):
        return {f"{name}.{part}" for name in names for part in ("weight", "bias")}

    expected = {"atom_emb.embeddings.weight", "defect_emb.embeddings.weight", "vn_emb.weight"} | linear("lin_comb")
    for n in range(4):
        scalar, vector = f"virtual_scalar_layers.{n}", f"virtual_vector_layers.{n}"
        passing, updating, moving = (
            f"{kind}_layers.{n}" for kind in ("message_passing", "message_update", "coord_update")
        )
        expected |= linear(*(f"{scalar}.{mlp}.{k}" for mlp in ("mlp_node", "mlp_vn") for k in (0, 2)))
        expected |= {f"{vector}.mlp_node.weight", f"{vector}.mlp_vn.weight"}
        expected |= linear(*(f"{passing}.{part}" for part in ("defect_proj", "x_proj.0", "x_proj.2", "edge_proj")))
        expected |= linear(f"{updating}.xvec_proj.0", f"{updating}.xvec_proj.2") | {f"{updating}.vec_proj.weight"}
        expected |= {
            f"{layer}.vec_activation.{part}.weight"
            for layer in (passing, updating)
            for part in ("lin_vec", "lin_gvec")
        }
        moves = ("defect_proj", "x_proj.0", "x_proj.2", "edge_proj", "coord_mlp.0", "coord_mlp.2")
        expected |= linear(*(f"{moving}.{part}" for part in moves)) | {f"{moving}.lin_vec2coord.weight"}
    with torch.device("meta"):
        state = DefiNet(DefiNetConfig()).state_dict()
    assert set(state) == expected
    assert state["message_passing_layers.0.x_proj.0.weight"].shape == (256, 512)
    assert state["message_passing_layers.0.edge_proj.weight"].shape == (1536, 128)
    assert state["atom_emb.embeddings.weight"].shape == (118, 512)
