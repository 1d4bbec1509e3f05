"""Kernels that are kept never meet other weights, whatever is done to those."""

from __future__ import annotations

import copy
import gc
import pickle

import numpy as np
import pytest
import torch

from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.site_network import SiteNetwork
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from tests.conftest import mos2_with_defects
from tests.unit.model.test_site_network import lattice_of

CHANGED = 1e-4
"""What 5 % of the weights change at least, in Å."""
SAME = 1e-6


def layers_of(network):
    """Return the layers of the network that is for MoS2."""
    return network.network_for(torch.tensor([16, 42])).layers


def filters_of(relaxer):
    return [layer.filters for layer in layers_of(relaxer.network)]


def weights_of(relaxer):
    return [weight for filters in filters_of(relaxer) for weight in filters.mlp.parameters()]


def in_place(relaxer):
    with torch.no_grad():
        for weight in weights_of(relaxer):
            weight.mul_(1.05)


def in_inference_mode(relaxer):
    with torch.inference_mode():
        for weight in weights_of(relaxer):
            weight.mul_(1.05)


def through_data(relaxer):
    """What counts as no version of the weight."""
    for weight in weights_of(relaxer):
        weight.data.mul_(1.05)


def through_numpy(relaxer):
    for weight in weights_of(relaxer):
        weight.detach().numpy()[...] *= 1.05


def by_a_state(relaxer):
    state = {name: 1.05 * value for name, value in relaxer.network.state_dict().items() if ".filters." in name}
    relaxer.network.load_state_dict(state, strict=False)


def by_assignment(relaxer):
    state = {name: 1.05 * value for name, value in relaxer.network.state_dict().items() if ".filters." in name}
    relaxer.network.load_state_dict(state, strict=False, assign=True)


def by_new_parameters(relaxer):
    for filters in filters_of(relaxer):
        for layer in (filters.mlp[0], filters.mlp[2]):
            layer.weight = torch.nn.Parameter(1.05 * layer.weight.detach())


def by_new_modules(relaxer):
    """The old ones are gone, and the new ones may have their identities."""
    for layer in layers_of(relaxer.network):
        fresh = copy.deepcopy(layer.filters)
        layer.filters = None
        gc.collect()
        fresh.mlp[2].weight.data.mul_(1.05)
        layer.filters = fresh


def by_another_network(relaxer):
    fresh = copy.deepcopy(relaxer.network)
    layers_of(fresh)[0].filters.mlp[2].weight.data.mul_(1.3)
    relaxer.network = fresh


def trained(relaxer):
    relaxer.network.train()
    optimizer = torch.optim.SGD([weight.requires_grad_() for weight in weights_of(relaxer)], lr=1.0)
    for weight in weights_of(relaxer):
        weight.grad = -0.05 * weight.detach()
    optimizer.step()


def by_a_buffer(relaxer):
    for filters in filters_of(relaxer):
        filters.centres += 0.1


def by_an_attribute(relaxer):
    for filters in filters_of(relaxer):
        filters.scale *= 1.05


CHANGES = [
    *(in_place, in_inference_mode, through_data, through_numpy, by_a_state, by_assignment, by_new_parameters),
    *(by_new_modules, by_another_network, trained, by_a_buffer, by_an_attribute),
]


def fresh_like(relaxer):
    """Return a relaxer with the same network that has kept nothing."""
    other = DefiNetRelaxer(host="MoS2", device="cpu")
    other.network = relaxer.network
    return other


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_have_kernels_of_their_own(change):
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
    atoms = mos2_with_defects(5)
    before = relaxer.predict(atoms).site_displacement
    change(relaxer)
    after = relaxer.predict(atoms).site_displacement
    assert np.abs(after - before).max() > CHANGED
    np.testing.assert_array_equal(after, fresh_like(relaxer).predict(atoms).site_displacement)
    np.testing.assert_array_equal(after, relaxer.predict(atoms).site_displacement)


def test_changed_back_they_have_those_they_had():
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
    atoms = mos2_with_defects(5)
    before, state = relaxer.predict(atoms).site_displacement, copy.deepcopy(relaxer.network.state_dict())
    in_place(relaxer)
    relaxer.predict(atoms)
    relaxer.network.load_state_dict(state)
    np.testing.assert_array_equal(relaxer.predict(atoms).site_displacement, before)


def test_unchanged_weights_have_their_kernels_made_once(monkeypatch):
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
    atoms = mos2_with_defects(5)
    first = relaxer.predict(atoms).site_displacement
    (lattice,) = relaxer.lattices.geometries
    made = []
    real = lattice._kernel_by_pairs
    monkeypatch.setattr(lattice, "_kernel_by_pairs", lambda *args: made.append(1) or real(*args))
    np.testing.assert_array_equal(relaxer.predict(atoms).site_displacement, first)
    assert not made
    in_place(relaxer)
    relaxer.predict(atoms)
    assert len(made) == len(filters_of(relaxer))


def test_cast_weights_have_kernels_of_their_type():
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
    atoms = mos2_with_defects(5)
    single = relaxer.predict(atoms).site_displacement
    relaxer.network.double()
    double = relaxer.predict(atoms).site_displacement
    assert 0 < np.abs(double - single).max() < SAME
    relaxer.network.float()
    np.testing.assert_array_equal(relaxer.predict(atoms).site_displacement, single)


def test_what_is_kept_for_a_network_goes_with_it():
    geometry, atoms = lattice_of("MoS2")
    geometry._keep_kernels = True
    config = SiteNetworkConfig(cutoff=5.0, features=8, layers=1, n_radial=6, embedding=4)
    numbers = torch.as_tensor(atoms.numbers)
    occupied = numbers[:, None].clone()
    occupied[3] = 0
    kinds = torch.where(occupied == 0, 2, 0)
    with torch.inference_mode():
        for seed in range(3):
            torch.manual_seed(seed)
            network = SiteNetwork(config).double().eval()
            kept = network(geometry, occupied, numbers, kinds)
            plain, _ = lattice_of("MoS2")
            assert torch.equal(kept, network(plain, occupied, numbers, kinds))
            assert len(geometry._kept) == 1
            del network
            gc.collect()
            assert len(geometry._kept) == 0


class Twin:
    """Filters that cannot be told from others by who they are, as where an identity is used again."""

    def __init__(self, values):
        self.values = values

    def __call__(self, _geometry):
        return self.values

    def __eq__(self, other):
        return isinstance(other, Twin)

    def __hash__(self):
        return 1


def test_an_identity_that_is_used_again_does_not_matter():
    torch.manual_seed(0)
    geometry, atoms = lattice_of("MoS2")
    plain, _ = lattice_of("MoS2")
    geometry._keep_kernels = True
    classes = len(geometry.class_distance)
    field = torch.randn(len(atoms), 1, 4, 3, dtype=torch.float64)
    one, other = (Twin(torch.randn(classes, 5, 3, dtype=torch.float64)) for _ in range(2))
    with torch.inference_mode():
        for twin in (one, other, one):
            assert torch.equal(geometry.propagate(twin, field), plain.propagate(twin, field))
        one.values *= 1.05  # the tensor itself, which is handed out again
        assert torch.equal(geometry.propagate(one, field), plain.propagate(one, field))
        wider = torch.cat([field, field], dim=-1)
        one.values = torch.cat([one.values, one.values], dim=-1)
        assert torch.equal(geometry.propagate(one, wider), plain.propagate(one, wider))


def test_gradients_reach_filters_whose_kernels_were_kept():
    geometry, atoms = lattice_of("MoS2")
    geometry._keep_kernels = True
    torch.manual_seed(0)
    network = SiteNetwork(SiteNetworkConfig(cutoff=5.0, features=8, layers=2, n_radial=6, embedding=4)).double()
    numbers = torch.as_tensor(atoms.numbers)
    given = numbers[:, None].clone()
    given[3] = 0
    arguments = (given, numbers, torch.where(given == 0, 2, 0))
    with torch.inference_mode():
        network(geometry, *arguments)
    for _ in range(2):
        network.zero_grad()
        network(geometry, *arguments).square().sum().backward()
        weight = network.layers[0].filters.mlp[2].weight
        assert weight.grad is not None
        assert float(weight.grad.abs().max()) > 0


def test_a_relaxer_with_kernels_can_be_sent_and_copied():
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
    atoms = mos2_with_defects(5)
    expected = relaxer.predict(atoms).site_displacement
    for other in (pickle.loads(pickle.dumps(relaxer)), copy.deepcopy(relaxer)):  # noqa: S301 - our own
        np.testing.assert_array_equal(other.predict(atoms).site_displacement, expected)
        in_place(other)
        assert np.abs(other.predict(atoms).site_displacement - expected).max() > CHANGED
    np.testing.assert_array_equal(relaxer.predict(atoms).site_displacement, expected)
