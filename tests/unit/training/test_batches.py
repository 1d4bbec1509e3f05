"""Batches for training: the same sites, displacements and predictions as everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk, make_supercell

from ase_definet.data import PairGroup
from ase_definet.model.architectures import build_network
from ase_definet.model.config import DefiNetConfig, SiteNetworkConfig
from ase_definet.model.graph import build_graph
from ase_definet.structures.metrics import near_sites
from ase_definet.training.batches import SiteBatches
from tests.conftest import pristine
from tests.pairs import pack_of, radial_pairs

SITE = SiteNetworkConfig(
    cutoff=4.5,
    features=8,
    layers=3,
    n_radial=6,
    embedding=4,
    short_range_cutoff=3.5,
    short_range_features=4,
    short_range_n_radial=6,
)
DEFINET = DefiNetConfig(cutoff=4.5, features=8, layers=1, n_radial=8)
SINGLE = 2e-5
"""Agreement in single precision, relative to the largest displacement."""
PACKED = 1e-4
"""Positions survive packing to this, in Å."""
MGO = bulk("MgO", "rocksalt", 4.21)
CPU = torch.device("cpu")


def oblique():
    return make_supercell(pristine("MoS2", 1), np.array([[4, 1, 0], [-1, 3, 0], [0, 0, 1]]))


def left_handed():
    atoms = pristine("GaSe", 3)
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    return atoms


CASES = {
    "MoS2": lambda: radial_pairs(4, 2),
    "oblique": lambda: radial_pairs(4, 2, host=oblique()),
    "left-handed": lambda: radial_pairs(4, 2, host=left_handed(), name="GaSe"),
    "crystal": lambda: radial_pairs(4, 2, host=MGO.repeat(3), name=MGO),
}


@pytest.fixture(scope="module", params=CASES)
def group(request, tmp_path_factory) -> PairGroup:
    (group,) = pack_of(tmp_path_factory.mktemp("pack") / "pack", CASES[request.param]()).groups
    return group


def test_targets_are_displacements_from_the_sites_with_the_mean_taken_off(group):
    chosen = np.array([4, 1])
    numbers, kinds, target, real = SiteBatches(group, SITE, CPU).batch(chosen)
    for k, index in enumerate(chosen):
        unrelaxed, relaxed = group.atoms(int(index))
        empty = group.numbers[index] == 0
        assert empty.sum() == 1
        assert np.array_equal(numbers[:, k].numpy(), group.numbers[index])
        assert np.array_equal(kinds[:, k].numpy(), np.where(empty, 2, 0))
        assert np.array_equal(real[:, k].numpy(), ~empty)
        delta = relaxed.positions - group.sites[~empty]
        assert np.abs(target[:, k].numpy()[~empty] - (delta - delta.mean(axis=0))).max() < PACKED
        assert np.abs(target[:, k].numpy()[empty]).max() == 0
        assert np.abs(unrelaxed.positions - group.sites[~empty]).max() < PACKED


@pytest.mark.parametrize("model", [SITE, DEFINET], ids=["site", "definet"])
def test_training_and_prediction_run_the_same_network(group, model):
    """In a batch on the lattice, or one by one on a graph."""
    torch.manual_seed(0)
    net = build_network(model).eval()
    batches = SiteBatches(group, model, CPU)
    chosen = np.array([0, 5, 2])
    numbers, kinds, _, _ = batches.batch(chosen)
    with torch.no_grad():
        found = batches.predict(net, numbers, kinds)[-1].transpose(0, 1).numpy()
    for k, index in enumerate(chosen):
        graph = build_graph(
            group.sites,
            group.cell,
            group.pbc,
            numbers=group.numbers[index],
            host_numbers=group.host_numbers,
            kinds=kinds[:, k].numpy(),
            cutoff=model.cutoff,
            max_neighbors=getattr(model, "max_neighbors", None),
        )
        with torch.no_grad():
            expected = net.predict(graph).displacement.numpy()
        largest = np.abs(expected).max()
        assert largest > 0
        assert np.abs(found[k] - expected).max() < SINGLE * max(1, largest)
        assert np.abs(found[k] - expected).max() < 0.01 * largest


@pytest.mark.parametrize("radius", [2.5, 3.0])
def test_sites_near_defects(group, radius):
    batches = SiteBatches(group, SITE, CPU)
    numbers, kinds, _, _ = batches.batch(np.arange(len(group)))
    found = batches.near(kinds, radius).numpy().astype(bool)
    for k in range(len(group)):
        defects = group.sites[numbers[:, k].numpy() == 0]
        assert np.array_equal(found[:, k], near_sites(group.sites, defects, group.cell, radius))
    assert 0 < found.mean() < 0.5


def test_a_network_of_another_kind_is_refused(group):
    batches = SiteBatches(group, SITE, CPU)
    numbers, kinds, _, _ = batches.batch(np.array([0]))
    with pytest.raises(TypeError, match="DefiNet runs on explicit edges: expected a DefectGraph, found LatticeBatch"):
        batches.predict(build_network(DEFINET), numbers, kinds)
