"""Expected errors outside the training data, as the card's error model has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.geometry import get_distances
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_definet.checkpoints.card import ErrorModelRecord, ModelCard
from ase_definet.errors import CheckpointError
from ase_definet.matching.site_map import match_sites
from ase_definet.relaxation.domain import Domain, Judgement, Reservation
from ase_definet.relaxation.expected_error import (
    FAR,
    FEATURES,
    Defective,
    distances_from_defects,
    expected_lengths,
    features,
    weights_for,
)
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from tests.conftest import pristine

OWN_ONLY = {"own": 1.0}


def defective(n: int = 6, **info):
    atoms = pristine("MoS2", n)
    atoms.symbols[int(np.flatnonzero(atoms.symbols == "Mo")[3])] = "W"
    del atoms[int(np.flatnonzero(atoms.symbols == "S")[11])]
    atoms.info |= info
    return atoms


@pytest.mark.parametrize("n", [4, 6, 9])
def test_distances_are_those_of_the_closest_image(n):
    site_map = match_sites(defective(n), "MoS2")
    sites = site_map.positions[[defect.site for defect in site_map.defects]]
    _, expected = get_distances(site_map.positions, sites, cell=site_map.cell, pbc=site_map.host.periodic)
    np.testing.assert_allclose(distances_from_defects(site_map), np.minimum(expected.min(axis=1), FAR), atol=1e-9)


def test_a_pristine_structure_is_far_from_defects():
    assert (distances_from_defects(match_sites(pristine("BN", 3), "BN")) == FAR).all()


def test_the_misfit_is_that_of_the_largest_substitution():
    aluminium = Defective({"Al_B": 1, "C_N": 2, "v_N": 1}, 0, layered=True)
    assert aluminium.misfit == pytest.approx(1.21 - 0.84)  # covalent radii of Cordero et al.
    assert Defective({"C_B": 1}, 0, layered=True).misfit == 0  # smaller than what it replaces
    assert aluminium.counts == (1, 3)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), charge=st.integers(-2, 2), layered=st.booleans())
def test_features_do_not_depend_on_the_order_of_atoms(seed, charge, layered):
    rng = np.random.default_rng(seed)
    own, moved, away = rng.exponential(0.02, 20), rng.exponential(0.05, 20), rng.uniform(0, 12, 20)
    structure = Defective({"v_B": 1, "Ge_N": 1}, charge, layered)
    found = features(own, moved, away, structure)
    assert found.shape == (20, len(FEATURES))
    order = rng.permutation(20)
    np.testing.assert_allclose(features(own[order], moved[order], away[order], structure), found[order])
    by_name = dict(zip(FEATURES, found.T, strict=True))
    assert (by_name["charge"] == abs(charge)).all()
    assert (by_name["layer_from_defect"] == layered * by_name["from_defect"]).all()
    assert expected_lengths(rng.normal(size=len(FEATURES)), found).min() > 0


def test_a_model_is_for_what_was_measured_only():
    record = ErrorModelRecord(
        features={"own": 1.0, "one": 0.5}, respects={"charge:1": 0.7, "spin": 0.2}, inside=["BN"]
    )
    one = FEATURES.index("one")
    assert weights_for(record, ["charge:1", "spin"], "MoS2")[one] == pytest.approx(1.4)
    assert weights_for(record, ["charge:2"], "BN") is None
    assert weights_for(record, ["charge:1", "strain"], "BN") is None
    assert weights_for(record, [], "BN")[one] == 0.5
    assert weights_for(record, [], "MoS2") is None  # inside, its own estimate is right there
    with pytest.raises(CheckpointError, match="has the features magic; upgrade"):
        weights_for(record.model_copy(update={"features": {"magic": 1.0}}), [], "BN")


def carded(relaxer: DefiNetRelaxer, **entries) -> DefiNetRelaxer:
    """Return a relaxer whose card says something else, of all its networks."""
    values = relaxer.card.plain()
    routed = [{k: v for k, v in one.items() if k != "error_model"} for one in values["routed"]]
    out = DefiNetRelaxer(device="cpu")
    out.card = ModelCard.read(values | {"routed": routed} | entries)
    out.domain = Domain(out.card, out.model)
    return out


@pytest.fixture(scope="module")
def relaxer() -> DefiNetRelaxer:
    return DefiNetRelaxer(device="cpu")


def test_the_relaxer_takes_the_model_of_the_card(relaxer):
    near = {"charge:1": {"share": 0.5}}
    plain = carded(relaxer, near=near | {"charge:1": {"share": 0.5, "error_factor": 1.0}}, error_model=None)
    own = plain.predict(defective(charge=1), "MoS2").expected_error
    model = {"features": OWN_ONLY, "respects": {"charge:1": float(np.log(3.0))}}
    found = carded(relaxer, near=near, error_model=model).predict(defective(charge=1), "MoS2")
    assert found.trust == "near"
    assert found.unsupported == ()
    np.testing.assert_allclose(found.expected_error, 3 * (own + 1e-4), rtol=1e-4)
    inside = carded(relaxer, near=near, error_model=model).predict(defective(), "MoS2")
    np.testing.assert_allclose(inside.expected_error, relaxer.predict(defective(), "MoS2").expected_error)
    hosts = model | {"inside": ["MoS2"]}
    again = carded(relaxer, near=near, error_model=hosts).predict(defective(), "MoS2").expected_error
    np.testing.assert_allclose(again, inside.expected_error + 1e-4, rtol=1e-4)


def test_without_a_measurement_nothing_is_expected(relaxer):
    model = {"features": OWN_ONLY, "respects": {"spin": 0.0}}
    found = carded(relaxer, near={"charge:1": {"share": 0.5}}, error_model=model).predict(defective(charge=1), "MoS2")
    assert (found.trust, found.expected_error, found.unsupported) == ("near", None, ("charge",))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_outside_structure_has_no_expected_error_whatever_the_model_says(relaxer, order):
    info = [{"charge": 1}, {"spin_multiplicity": 4}]
    atoms = defective(**{k: v for i in order for k, v in info[i].items()})
    model = {"features": OWN_ONLY, "respects": {"charge:1": 0.0, "spin": 0.0}}
    found = carded(relaxer, near={"charge:1": {"share": 0.5}}, error_model=model).predict(atoms, "MoS2")
    assert (found.trust, found.method, found.expected_error) == ("outside", "none", None)


def test_the_kind_of_a_respect_stands_for_it():
    one = Reservation("host", "", "near", detail="NbSe2", kind="alike")
    record = ErrorModelRecord(features=OWN_ONLY, respects={"host:alike": 0.4})
    assert Judgement((one,), record).error_weights is not None
    assert Judgement((replace(one, kind="other"),), record).error_weights is None
    outside = Judgement((replace(one, trust="outside"),), record)  # as where it is near for other hosts only
    assert outside.error_weights is None
    assert outside.unsupported == ("host",)
