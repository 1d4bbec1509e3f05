"""Every network goes the same way: sites, prepared input, batch, prediction; and a new one is a line in a table."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import make_supercell

from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint
from ase_definet.errors import CheckpointError
from ase_definet.matching.site_map import match_sites
from ase_definet.model import architectures
from ase_definet.model.architectures import ARCHITECTURES, Architecture, architecture_of, build_network
from ase_definet.model.config import (
    DefiNetConfig,
    GeometryNeeds,
    HostRoutedConfig,
    RoutedConfig,
    SiteNetworkConfig,
)
from ase_definet.model.graph import DefectGraph
from ase_definet.model.lattice_convolution import LatticeGeometry
from ase_definet.model.protocol import DisplacementModel, LatticeBatch, OnLattice, Routed
from ase_definet.relaxation.inputs import sites_of
from ase_definet.relaxation.lattices import LatticeCache, build_lattice
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.structures.state import State, state_of
from tests.conftest import REPO, mos2_with_defects, pristine

SITE = SiteNetworkConfig(
    cutoff=5.0, features=8, layers=2, n_radial=6, embedding=4, states=True, error_head_features=4
)
CONFIGS = {
    "site": SITE,
    "definet": DefiNetConfig(features=8, layers=1, n_radial=8, cutoff=5.0),
    "host_routed": HostRoutedConfig(
        general=SITE, routed=(RoutedConfig(hosts=((16, 42),), model=replace(SITE, features=4)),)
    ),
}
SAME = 1e-10
"""Agreement in double precision, in Å."""


@pytest.fixture(params=CONFIGS)
def network(request) -> DisplacementModel:
    torch.manual_seed(0)
    made = build_network(CONFIGS[request.param]).double().eval()
    return made.requires_grad_(requires_grad=False)


def lattices_of(network):
    return lambda lattice: build_lattice(lattice, network.config.cutoff, dtype=network.precision)


def predicted(network, sites):
    return network.predict(network.collate([network.prepare(one) for one in sites], lattices_of(network)))


def occupied(charge: int | None, seed: int = 0, start: str = "ideal"):
    """Return the sites of a structure in a charge state, turned by an angle of its own."""
    atoms = mos2_with_defects(4)
    atoms.numbers[np.flatnonzero(atoms.numbers == 42)[seed]] = 74
    atoms.rotate(17 * seed, "z", rotate_cell=True)
    return sites_of(match_sites(atoms, "MoS2"), start, State(charge=charge).codes)


def test_the_table_knows_every_config():
    assert {name for name, entry in ARCHITECTURES.items() if not entry.properties} == set(CONFIGS)
    for name, config in CONFIGS.items():
        assert architecture_of(config) == name
        assert type(build_network(config)) is ARCHITECTURES[name].model
    with pytest.raises(ValueError, match="no architecture has a GeometryNeeds; known: site, definet, host_routed"):
        architecture_of(GeometryNeeds(5.0))


def test_a_batch_gives_what_its_structures_give_alone(network):
    """Each in its own frame and its own state, one of them unknown."""
    sites = [occupied(-1, 0), occupied(1, 1), replace(occupied(0, 2), state=None), occupied(2, 3)]
    if not network.config.geometry.lattice:
        sites = [replace(one, state=None) for one in sites]
    together = predicted(network, sites)
    alone = [predicted(network, [one]) for one in sites]
    assert together.displacement.abs().max() > 0
    assert (together.displacement - torch.cat([one.displacement for one in alone])).abs().max() < SAME
    assert (together.expected_error is None) == (not network.config.error_head_features)
    if together.expected_error is not None:
        assert (together.expected_error - torch.cat([one.expected_error for one in alone])).abs().max() < SAME


def test_lattices_and_edges_agree_in_every_state(network, monkeypatch):
    sites = [occupied(-1, 1), occupied(2, 2)]
    quick = predicted(network, sites).displacement
    monkeypatch.setattr(LatticeGeometry, "suits", staticmethod(lambda supercell: supercell is None))
    assert (predicted(network, sites).displacement - quick).abs().max() < SAME


def test_only_networks_with_states_hear_them(network):
    found = [predicted(network, [occupied(charge)]).displacement for charge in (-1, 2)]
    assert ((found[0] - found[1]).abs().max() > SAME) == network.config.states


def test_lattice_or_edges_is_decided_by_what_network_and_sites_want(network, monkeypatch):
    wants = network.config.geometry.lattice
    assert wants == (not isinstance(network.config, DefiNetConfig))
    kinds = {True: (OnLattice, LatticeBatch), False: (DefectGraph, DefectGraph)}
    oblique = make_supercell(pristine("MoS2", 1), np.array([[4, 1, 0], [-1, 3, 0], [0, 0, 1]]))
    del oblique[3]
    for sites, lattice in (
        (occupied(0), wants),
        (sites_of(match_sites(oblique, "MoS2")), wants),
        (occupied(0, start="given"), False),
    ):
        prepared = network.prepare(sites)
        batch = network.collate([prepared], lattices_of(network))
        if isinstance(prepared, Routed):
            assert prepared.place == batch.place
            prepared, batch = prepared.inner, batch.inner
        assert isinstance(prepared, kinds[lattice][0])
        assert isinstance(batch, kinds[lattice][1])
    monkeypatch.setattr(LatticeGeometry, "suits", staticmethod(lambda supercell: supercell is None))
    prepared = network.prepare(occupied(0))
    assert isinstance(prepared.inner if isinstance(prepared, Routed) else prepared, DefectGraph)


def test_what_a_network_cannot_do_it_says(network):
    batch = network.collate([network.prepare(occupied(0))], lattices_of(network))
    start = torch.zeros_like(network.run(batch)[0])
    with pytest.raises((TypeError, RuntimeError), match=r"start on the host's sites|without `noisy_starts`"):
        network.guesses(batch, start)
    if not network.can_fit_error_head:
        with pytest.raises(TypeError, match="has no estimate of its error"):
            network.with_features(batch)
    assert torch.equal(network.guesses(batch)[-1], network.run(batch)[0])


def test_the_relaxer_tells_a_network_the_state(tmp_path):
    """And asks for none where the network knows none: a charge that no data set has is then no error."""
    torch.manual_seed(0)
    aware, blind = build_network(SITE), build_network(replace(SITE, states=False))
    torch.nn.init.normal_(aware.read_out.weight)
    paths = [save_checkpoint(tmp_path / f"{k}.safetensors", net, {}) for k, net in enumerate((aware, blind))]
    neutral, charged = mos2_with_defects(4), mos2_with_defects(4)
    charged.info |= {"charge": -1, "spin_multiplicity": 2, "functional": "HSE06"}
    for start in ("ideal", "given"):
        relaxer = DefiNetRelaxer(str(paths[0]), "MoS2", "cpu", initial_positions=start)
        found = [one.site_displacement for one in relaxer.relax_many([neutral, charged])]
        assert np.abs(found[0] - found[1]).max() > 1e-5
        for atoms, own in zip((neutral, charged), found, strict=True):
            sites = sites_of(match_sites(atoms, "MoS2"), start, state_of(atoms).codes)
            expected = predicted(relaxer.network, [sites]).displacement.detach().numpy()
            np.testing.assert_allclose(own, expected, atol=1e-5)
        relaxer = DefiNetRelaxer(str(paths[1]), "MoS2", "cpu", initial_positions=start)
        found = [relaxer.predict(one).site_displacement for one in (neutral, charged)]
        np.testing.assert_array_equal(found[0], found[1])
    charged.info["charge"] = 7
    assert "net charge +7" in "; ".join(relaxer.predict(charged).warnings)


@dataclass(frozen=True, slots=True, kw_only=True)
class StillConfig:
    """Sizes of a network that moves every atom by as much."""

    cutoff: float = 4.0
    layers: int = 1
    noisy_starts: bool = False
    states: bool = False
    error_head_features: int = 0
    dropout: float = 0.0

    @property
    def geometry(self) -> GeometryNeeds:
        return GeometryNeeds(self.cutoff)

    @property
    def parts(self) -> Mapping[str, Any]:
        return {"": self}

    def check(self) -> None:
        pass

    @classmethod
    def parse(cls, values):
        return cls(**values)


class Still(DisplacementModel):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.by = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))

    def run(self, batch, working_set=None):
        del working_set
        return self.by.expand(batch.num_nodes, 1, 3), None


def test_a_new_network_is_one_line_in_the_table(tmp_path, monkeypatch):
    """Saved, loaded and run by name, without any other part of the package knowing of it."""
    path = tmp_path / "still.safetensors"
    with pytest.raises(CheckpointError, match="cannot save a Still: no architecture has a StillConfig"):
        save_checkpoint(path, Still(StillConfig()), {})
    table = {**ARCHITECTURES, "still": Architecture(StillConfig, Still, "a network that does not care")}
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("ase_definet") and hasattr(module, "ARCHITECTURES"):
            monkeypatch.setattr(module, "ARCHITECTURES", table)
    assert architectures.architecture_of(StillConfig()) == "still"
    loaded = load_checkpoint(save_checkpoint(path, Still(StillConfig()), {"name": "still"}))
    assert (loaded.architecture, loaded.config) == ("still", StillConfig())
    moved = DefiNetRelaxer(str(path), "MoS2", "cpu").predict(mos2_with_defects(4))
    np.testing.assert_allclose(moved.site_displacement, np.tile([0.1, 0.2, 0.3], (48, 1)), atol=1e-7)


def test_nothing_but_the_table_tells_networks_apart():
    kinds = {"SiteNetwork", "HostRoutedModel", "DefiNet", "SiteNetworkConfig", "DefiNetConfig", "HostRoutedConfig"}
    for path in (REPO / "ase_definet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                named = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                assert not named & kinds, f"{path}:{node.lineno}"


def test_kept_lattices_are_told_apart_by_all_that_they_depend_on():
    cache = LatticeCache(DefiNetRelaxer(device="cpu").working_set, most=3)
    lattice, cpu = occupied(0).lattice, torch.device("cpu")
    first = cache.get(lattice, 5.0, torch.float32, cpu)
    assert cache.get(occupied(0, 2).lattice, 5.0, torch.float32, cpu) is first  # equal, and another object
    wider = replace(lattice, cell=lattice.cell * 1.001, positions=lattice.positions * 1.001)
    others = [
        cache.get(lattice, 6.0, torch.float32, cpu),
        cache.get(lattice, 5.0, torch.float64, cpu),
        cache.get(wider, 5.0, torch.float32, cpu),
    ]
    assert len({id(one) for one in (first, *others)}) == 4
    assert cache.geometries == others
    assert cache.get(lattice, 5.0, torch.float32, cpu) is not first


def test_a_network_that_is_none_is_not_saved(tmp_path):
    with pytest.raises(
        CheckpointError, match="cannot save a Linear: no architecture has a Linear; known: site, definet"
    ):
        save_checkpoint(tmp_path / "a.safetensors", torch.nn.Linear(1, 1), {})
