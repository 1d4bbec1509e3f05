"""The sparse network: what symmetry, padding and order must not change, and what direction must."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ase_definet.matching.host import Host
from ase_definet.matching.library import library
from ase_definet.matching.supercell import cells_of
from ase_definet.model.architectures import build_model, build_network
from ase_definet.model.config import PropertyEnsembleConfig, SparseNetworkConfig
from ase_definet.model.protocol import Lattice
from ase_definet.model.sparse_network import PropertyEnsemble, SparseNetwork
from ase_definet.properties.defects import DefectSites, joined
from ase_definet.screening.enumeration import DefectSpace
from tests.conftest import DEVICES

SAME = 1e-5
HOSTS = ("MoS2", "BN", "GaSe", "P", "BN-bulk")
FOREIGN = 6


def lattice(host: Host, n: int) -> Lattice:
    matrix = np.diag([n, n, 1 if host.layered else 2])
    return Lattice(
        numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=host.periodic, supercell=matrix
    )


def config(host: Host, **changes) -> SparseNetworkConfig:
    kinds = tuple((z, int(h), 0) for h in np.unique(host.numbers) for z in (0, FOREIGN))
    sizes = {"targets": ("formation_energy", "gap"), "additive": ("formation_energy",), "features": 16}
    sizes |= {"pair_features": 8, "layers": 2, "heads": 2, "n_radial": 12, "cutoff": 9.0}
    return SparseNetworkConfig(hosts=(tuple(sorted(host.numbers.tolist())),), kinds=kinds, **sizes | changes)


def network(sizes: SparseNetworkConfig, seed: int = 0) -> SparseNetwork:
    torch.manual_seed(seed)
    return SparseNetwork(sizes).eval()


def occupations(numbers: np.ndarray, n: int, most: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = np.tile(numbers, (n, 1))
    for row in out:
        sites = rng.choice(len(numbers), int(rng.integers(1, most + 1)), replace=False)
        row[sites] = rng.choice([0, FOREIGN], len(sites))
    return out


@pytest.mark.parametrize("name", HOSTS)
def test_symmetry_of_the_host_changes_nothing(name):
    host = library()[name]
    sites = DefectSites(lattice(host, 4), config(host))
    space = DefectSpace(host, sites.table.supercell)
    found = occupations(sites.host_numbers, 3)
    net = network(config(host))
    expected = net(sites.batch(found))
    for image in space.operations:
        turned = np.empty_like(found)
        turned[:, image] = found
        assert torch.allclose(net(sites.batch(turned)), expected, atol=SAME)


@pytest.mark.parametrize("name", HOSTS)
def test_translations_change_nothing(name):
    host = library()[name]
    sites = DefectSites(lattice(host, 4), config(host))
    cells = cells_of(sites.table.supercell)
    shifted = sites.table._index(cells + np.array([1, 2, 0]))
    n_basis = len(host.numbers)
    image = (shifted[:, None] * n_basis + np.arange(n_basis)).ravel()
    found = occupations(sites.host_numbers, 4)
    turned = np.empty_like(found)
    turned[:, image] = found
    net = network(config(host))
    assert torch.allclose(net(sites.batch(turned)), net(sites.batch(found)), atol=SAME)


def test_directions_of_an_anisotropic_host_differ():
    host = library()["P"]
    sites = DefectSites(lattice(host, 6), config(host, cutoff=13.0, n_radial=20))
    cells = cells_of(sites.table.supercell).tolist()
    zigzag, armchair = (
        [cells.index(cell) * 4 for cell in pair] for pair in (([0, 0, 0], [1, 0, 0]), ([0, 0, 0], [0, 1, 0]))
    )
    features = sites.table.features
    rows = [int(sites.table.of_sites(np.array([a]), np.array([b]))[0]) for a, b in (zigzag, armchair)]
    angular = features.reshape(len(features), -1, 7)
    assert angular[rows[0], :, 2].sum() > 0.1  # along x
    assert angular[rows[1], :, 2].sum() < -0.1  # along y


def test_three_bonds_and_their_opposites_differ():
    host = library()["MoS2"]
    sites = DefectSites(lattice(host, 8), config(host))
    cells = cells_of(sites.table.supercell).tolist()
    along, against = cells.index([1, 2, 0]) * 3, cells.index([7, 6, 0]) * 3
    rows = sites.table.of_sites(np.array([0, 0]), np.array([along, against]))
    assert rows[0] != rows[1]


@pytest.mark.parametrize("name", ["MoS2", "GaSe", "P"])
def test_setting_of_the_host_changes_nothing(name):
    """Another choice of primitive vectors describes the same sites."""
    host = library()[name]
    change = np.array([[1, 1, 0], [-1, 0, 0], [0, 0, 1]]) if name != "P" else np.diag([-1, -1, 1])
    cell = change @ host.cell
    other = Host(host.name, host.numbers, host.positions, cell, host.layered, host.source)
    first, second = (DefectSites(lattice(one, 4), config(one)) for one in (host, other))
    place_1, place_2 = (
        (sites.cells @ one.cell)[:, None] + one.positions for sites, one in ((first, host), (second, other))
    )
    inverse = np.linalg.inv(first.table.supercell @ host.cell)
    delta = (place_1.reshape(-1, 1, 3) - place_2.reshape(1, -1, 3)) @ inverse
    away = np.abs(delta - np.round(delta))[:, :, :2].max(axis=2) + np.abs(delta[:, :, 2])
    image = away.argmin(axis=1)
    assert sorted(image) == list(range(len(image)))
    found = occupations(first.host_numbers, 5)
    turned = np.empty_like(found)
    turned[:, image] = found
    net = network(config(host))
    assert torch.allclose(net(second.batch(turned)), net(first.batch(found)), atol=SAME)


def test_a_batch_is_its_structures_one_by_one():
    host = library()["MoS2"]
    sites = DefectSites(lattice(host, 4), config(host))
    found = occupations(sites.host_numbers, 6)
    net = network(config(host))
    together = net(sites.batch(found))
    alone = torch.cat([net(sites.batch(found[[k]])) for k in range(len(found))])
    assert torch.allclose(together, alone, atol=SAME)


def test_batches_of_several_supercells_join():
    host = library()["MoS2"]
    parts = [DefectSites(lattice(host, n), config(host)) for n in (4, 5)]
    batches = [sites.batch(occupations(sites.host_numbers, 3, seed=k)) for k, sites in enumerate(parts)]
    net = network(config(host))
    assert torch.allclose(net(joined(batches)), torch.cat([net(batch) for batch in batches]), atol=SAME)


def test_energies_of_distant_defects_add_up():
    host = library()["MoS2"]
    sizes = config(host, cutoff=5.0)
    sites = DefectSites(lattice(host, 8), sizes)
    one, other = sites.host_numbers.copy(), sites.host_numbers.copy()
    far = int(np.flatnonzero((sites.cells == [4, 4, 0]).all(axis=1))[0]) * 3
    one[0], other[far + 1] = 0, FOREIGN
    both = np.where(one != sites.host_numbers, one, other)
    net = network(sizes)
    energy = net(sites.batch(np.array([one, other, both]))).detach()[:, 0]
    assert float(energy[0] + energy[1]) == pytest.approx(float(energy[2]), abs=SAME)


def test_without_pairs_only_the_counts_matter():
    host = library()["MoS2"]
    sizes = config(host, pairs=False)
    sites = DefectSites(lattice(host, 4), sizes)
    found = np.tile(sites.host_numbers, (2, 1))
    found[0, [1, 2]] = 0
    found[1, [1, 25]] = 0
    values = network(sizes)(sites.batch(found))
    assert torch.allclose(values[0], values[1], atol=SAME)
    paired = network(config(host))(sites.batch(found))
    assert not torch.allclose(paired[0], paired[1], atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_ensemble_is_the_mean_and_knows_its_spread(device):
    host = library()["MoS2"]
    sizes = config(host)
    members = [network(sizes, seed) for seed in (0, 1)]
    ensemble = PropertyEnsemble(PropertyEnsembleConfig(members=(sizes, sizes))).eval()
    for own, given in zip(ensemble.members, members, strict=True):
        own.load_state_dict(given.state_dict())
    sites = DefectSites(lattice(host, 4), sizes)
    batch = sites.batch(occupations(sites.host_numbers, 4))
    first, second = (member(batch) for member in members)
    mean, spread = ensemble.to(device).spread(batch.to(device))
    assert torch.allclose(mean.cpu(), (first + second) / 2, atol=SAME)
    assert torch.allclose(spread.cpu(), (first - second).abs() / 2, atol=SAME)
    some, _ = ensemble.spread_of(batch.to(device), {"gap"})
    assert torch.allclose(some[:, 1], mean[:, 1], atol=SAME)


def test_networks_for_properties_are_no_networks_for_displacements():
    sizes = config(library()["MoS2"])
    assert isinstance(build_model(sizes), SparseNetwork)
    with pytest.raises(ValueError, match="properties"):
        build_network(sizes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": "gap"},
        {"targets": [1]},
        {"hosts": [1]},
        {"kinds": [[0, 16]]},
        {"additive": ["other"]},
        {"dropout": 1.0},
    ],
)
def test_config_refuses_what_is_wrong(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))[:4]):
        SparseNetworkConfig.parse({"targets": ["gap"], "hosts": [[16, 16, 42]]} | wrong)
