"""The predictor: one answer for matched structures and for occupations, and no confident number outside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ase_definet.checkpoints.bundled import bundled_models
from ase_definet.checkpoints.format import load_properties, save_checkpoint
from ase_definet.errors import CheckpointError, DefiNetError, MatchError
from ase_definet.matching.library import library
from ase_definet.matching.site_map import match_sites
from ase_definet.properties.chemical_potentials import ChemicalPotentials
from ase_definet.properties.predictor import FORMATION_ENERGY, GAP, PER_DEFECT, PRISTINE, PropertyPredictor
from ase_definet.relaxation.domain import TRIED_DENSITY, TRUST
from ase_definet.relaxation.inputs import lattice_of
from ase_definet.training.card import export_weights
from ase_definet.training.config import make_config
from ase_definet.training.property_ensemble import write_ensemble
from ase_definet.training.run import train
from tests.conftest import pristine
from tests.labelled import defective, labelled_pack

SAME = 1e-5
INSIDE, NEAR, OUTSIDE = range(3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    pack = labelled_pack(folder / "pack", n_train=24, n_val=12)
    members = []
    for seed in (0, 1):
        values = {"data": str(pack.path), "out": str(folder / f"run-{seed}"), "seed": seed, "steps": 60}
        values |= {"targets": [FORMATION_ENERGY, GAP], "optimizer": "adamw", "warmup_steps": 1, "learning_rate": 0.01}
        model = {"architecture": "sparse", "features": 16, "pair_features": 8, "layers": 2, "n_radial": 12}
        run = train(make_config(values | {"model": model | {"heads": 2}}, "properties"))
        members.append(export_weights(run, folder / f"{seed}.safetensors", str(seed), "1"))
    out, _ = write_ensemble(folder / "both.safetensors", members, pack.path, name="own", version="1")
    return out


@pytest.fixture(scope="module")
def predictor(weights) -> PropertyPredictor:
    return PropertyPredictor(weights)


def structure(seed: int = 0, n_defects: int = 3, cells: int = 4):
    return defective(np.random.default_rng(seed), pristine("MoS2", cells), n_defects)[0]


def test_both_ways_give_the_same(predictor):
    maps = [match_sites(structure(seed, 1 + seed % 4), "MoS2") for seed in range(6)]
    found = predictor.predict(maps)
    for site_map, values in zip(maps, found, strict=True):
        arrays = predictor.predict_occupations(library()["MoS2"], site_map.supercell, site_map.numbers[None])
        for name in predictor.properties:
            assert values[name].value == pytest.approx(arrays[name][0], abs=1e-3)  # cells in files are rounded
            assert values[name].expected_error == pytest.approx(arrays[f"{name}_error"][0], rel=0.05)
            assert values[name].trust == TRUST[arrays["trust"][0]] == "inside"
        n = len(site_map.defects)
        assert values[PER_DEFECT].value == pytest.approx(values[FORMATION_ENERGY].value / n)
        assert values[PER_DEFECT].expected_error == pytest.approx(values[FORMATION_ENERGY].expected_error / n)


def test_order_and_number_of_occupations_change_nothing(predictor):
    maps = [match_sites(structure(seed, 1 + seed % 4), "MoS2") for seed in range(8)]
    supercell = maps[0].supercell
    numbers = np.stack([one.numbers for one in maps])
    whole = predictor.predict_occupations("MoS2", supercell, numbers)
    back = predictor.predict_occupations("MoS2", supercell, numbers[::-1])
    for name, values in whole.items():
        assert np.allclose(values, back[name][::-1], atol=SAME, equal_nan=True)


def test_some_properties_alone(predictor):
    one = match_sites(structure(), "MoS2")
    found = predictor.predict_occupations("MoS2", 4, one.numbers[None], targets=[PER_DEFECT])
    assert set(found) == {PER_DEFECT, f"{PER_DEFECT}_error", "trust"}
    with pytest.raises(DefiNetError, match="not colour"):
        predictor.predict_occupations("MoS2", 4, one.numbers[None], targets=["colour"])


def test_the_smallest_network_alone(predictor):
    numbers = match_sites(structure(), "MoS2").numbers[None]
    fast = predictor.predict_occupations("MoS2", 4, numbers, fast=True)
    whole = predictor.predict_occupations("MoS2", 4, numbers)
    (smallest,) = predictor.network.smallest({FORMATION_ENERGY}, 0)
    batch = next(iter(predictor._sites.values())).batch(numbers)
    alone = predictor.network.members[smallest](batch)[0, 0]
    assert fast[FORMATION_ENERGY][0] == pytest.approx(float(alone.detach()), abs=SAME)
    assert fast[FORMATION_ENERGY][0] != whole[FORMATION_ENERGY][0]
    assert np.isnan(fast[f"{FORMATION_ENERGY}_error"]).all()


@pytest.mark.parametrize("fast", [False, True])
def test_a_network_that_does_not_serve_a_host_is_not_asked(weights, tmp_path, fast):
    loaded = load_properties(weights)
    first, second = loaded.model.members
    first.trained[:] = 0
    path = save_checkpoint(tmp_path / "one.safetensors", loaded.model, loaded.card)
    numbers = match_sites(structure(), "MoS2").numbers[None]
    only = PropertyPredictor(path)
    found = only.predict_occupations("MoS2", 4, numbers, fast=fast)
    batch = next(iter(only._sites.values())).batch(numbers)
    assert found[FORMATION_ENERGY][0] == pytest.approx(float(second(batch)[0, 0].detach()), abs=SAME)
    assert np.isfinite(found[f"{FORMATION_ENERGY}_error"][0]) != fast


def test_the_pristine_host_has_no_properties(predictor):
    site_map = match_sites(pristine("MoS2", 4), "MoS2")
    (found,) = predictor.predict([site_map])
    for one in found.values():
        assert (one.value, one.expected_error) == (None, None)
        assert one.reasons[0] == PRISTINE
    arrays = predictor.predict_occupations("MoS2", 4, np.stack([site_map.numbers, vacancy(site_map.numbers)]))
    for name in predictor.properties:
        assert np.isfinite(arrays[name]).tolist() == [False, True]
    assert predictor.why_no_value("MoS2", site_map.numbers, GAP) == PRISTINE


def vacancy(numbers):
    out = numbers.copy()
    out[1] = 0
    return out


SCORES = {"host": "MoS2", "n": 50, "mae": 0.2, "mean_mae": 0.25}


@pytest.mark.parametrize("target", [FORMATION_ENERGY, GAP])
@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ({}, True),
        ({"own/MoS2": {"r2": 0.9, "rank_correlation": 0.9}}, True),
        ({"own/MoS2": {"r2": 0.17, "rank_correlation": 0.6}}, False),
        ({"own/MoS2": {"r2": -0.3, "rank_correlation": 0.9}}, False),
        ({"own/MoS2": {"r2": 0.9, "rank_correlation": 0.22}}, False),
        ({"own/MoS2": {"r2": 0.9}}, False),
        (
            {"low/MoS2": {"r2": 0.99, "rank_correlation": 0.9}, "high/MoS2": {"r2": 0.1, "rank_correlation": 0.9}},
            False,
        ),
        ({"own/BN": {"host": "BN", "r2": 0.1, "rank_correlation": 0.1}}, True),
    ],
)
def test_a_property_is_shown_where_its_validation_supports_it(weights, tmp_path, target, scores, shown):
    loaded = load_properties(weights)
    card = loaded.card.changed(property_scores={target: {name: SCORES | row for name, row in scores.items()}})
    judged = PropertyPredictor(save_checkpoint(tmp_path / "judged.safetensors", loaded.model, card))
    site_map = match_sites(structure(), "MoS2")
    (found,) = judged.predict([site_map])
    arrays = judged.predict_occupations("MoS2", site_map.supercell, site_map.numbers[None])
    own = {FORMATION_ENERGY: {FORMATION_ENERGY, PER_DEFECT}, GAP: {GAP}}[target]
    for name in judged.properties:
        assert (found[name].value is not None) == np.isfinite(arrays[name][0]) == (shown or name not in own)
    if not shown:
        reason = found[target].reasons[-1]
        assert "mean error 0.2 eV instead of 0.25 eV" in reason
        assert found[target].trust == "outside"
        assert judged.why_no_value("MoS2", site_map.numbers, target) == reason


def test_weights_record_how_much_better_than_the_mean_they_are(weights):
    scores = load_properties(weights).card.property_scores
    for target in (FORMATION_ENERGY, GAP):
        row = scores[target]["own/MoS2"]
        assert (row.host, row.n) == ("MoS2", 12)
        assert row.mae < row.mean_mae
        assert 0.5 < row.r2 <= 1


def test_bundled_weights_are_judged_on_every_host_and_property():
    predictor = PropertyPredictor()
    scores = predictor.card.property_scores
    for subset, row in predictor.card.validation.items():
        for target, mae in row.plain().items():
            assert scores[target][subset].mae == pytest.approx(mae, abs=1e-4)
            assert subset.endswith(f"/{scores[target][subset].host}")


@pytest.mark.parametrize("functional", ["HSE06", "SCAN"])
def test_another_functional_gets_no_number(predictor, functional):
    atoms = structure()
    atoms.info["functional"] = functional
    (found,) = predictor.predict([match_sites(atoms, "MoS2")], [atoms])
    for one in found.values():
        assert (one.value, one.trust) == (None, "outside")
        assert f"not on {functional}" in " ".join(one.reasons)


@pytest.mark.parametrize("multiplicity", [1, 3])
def test_a_spin_that_no_label_names_costs_the_expected_error_alone(predictor, multiplicity):
    atoms = structure()
    (plain,) = predictor.predict([match_sites(atoms, "MoS2")], [atoms])
    atoms.info["spin_multiplicity"] = multiplicity
    (found,) = predictor.predict([match_sites(atoms, "MoS2")], [atoms])
    for name, one in found.items():
        assert (one.value, one.expected_error, one.trust) == (plain[name].value, None, "near")
        assert "ground states" in " ".join(one.reasons)


def test_a_spin_beside_those_of_the_labels_gets_no_number(weights, tmp_path):
    loaded = load_properties(weights)
    training = loaded.card.training.plain()
    training["hosts"]["MoS2"]["spin_multiplicities"] = [1]
    path = save_checkpoint(tmp_path / "spins.safetensors", loaded.model, loaded.card.changed(training=training))
    atoms = structure()
    atoms.info["spin_multiplicity"] = 3
    (found,) = PropertyPredictor(path).predict([match_sites(atoms, "MoS2")], [atoms])
    assert all((one.value, one.trust) == (None, "outside") for one in found.values())


def test_a_single_match_needs_no_list(predictor):
    atoms = structure()
    site_map = match_sites(atoms, "MoS2")
    assert predictor.predict(site_map, atoms) == predictor.predict([site_map], [atoms])


@pytest.mark.parametrize("given", [structure(), [structure()], [1], ["POSCAR"]])
def test_what_is_no_match_is_refused(predictor, given):
    with pytest.raises(DefiNetError, match=r"found a (Atoms|int|str): give match_sites\(atoms, host\)"):
        predictor.predict(given)


def test_every_match_has_its_structure(predictor):
    site_map = match_sites(structure(), "MoS2")
    with pytest.raises(DefiNetError, match="a structure for each of 2 matches, found 1"):
        predictor.predict([site_map, site_map], [structure()])
    with pytest.raises(DefiNetError, match="expected ASE Atoms"):
        predictor.predict([site_map], [site_map])


def test_chemical_potentials_shift_energies_alone(predictor):
    atoms = pristine("MoS2", 4)
    del atoms[[1, 2]]
    site_map = match_sites(atoms, "MoS2")
    (before,) = predictor.predict([site_map])
    (after,) = predictor.predict([site_map], potentials=ChemicalPotentials({"S": -5.127}))
    assert after[FORMATION_ENERGY].value == pytest.approx(before[FORMATION_ENERGY].value - 2.0)
    assert after[PER_DEFECT].value == pytest.approx(before[PER_DEFECT].value - 1.0)
    assert after[GAP] == before[GAP]


def outside(what: str):
    """Return a structure that is not like the training data, and its host."""
    atoms, host = structure(), "MoS2"
    if what == "host":
        atoms, host = pristine("WS2", 4), "WS2"
        del atoms[1]
    elif what == "element":
        atoms.symbols[int(np.flatnonzero(atoms.numbers == 42)[0])] = "Re"
    elif what == "defect":
        atoms.symbols[int(np.flatnonzero(atoms.numbers == 42)[0])] = "S"
    elif what == "charge":
        atoms.info["charge"] = 1
    elif what == "adatom":
        atoms.append("S")
        atoms.positions[-1] = atoms.positions[atoms.numbers == 42][0] + [0, 0, 3.6]
    elif what == "density":
        atoms = defective(np.random.default_rng(1), pristine("MoS2", 4), 9)[0]
    elif what == "cell":
        atoms = structure(cells=5)
    return atoms, host


@pytest.mark.parametrize("what", ["host", "element", "defect", "charge", "adatom"])
def test_nothing_supports_a_number(predictor, what):
    atoms, host = outside(what)
    (found,) = predictor.predict([match_sites(atoms, host)], [atoms])
    for value in found.values():
        assert (value.value, value.expected_error, value.trust) == (None, None, "outside")
        assert value.reasons


@pytest.mark.parametrize(("what", "trust"), [("density", "outside"), ("cell", "near")])
def test_a_number_without_an_expected_error(predictor, what, trust):
    atoms, host = outside(what)
    site_map = match_sites(atoms, host)
    (found,) = predictor.predict([site_map])
    arrays = predictor.predict_occupations(host, site_map.supercell, site_map.numbers[None])
    for name in (FORMATION_ENERGY, GAP):
        assert (found[name].expected_error, found[name].trust) == (None, trust)
        assert found[name].value == pytest.approx(arrays[name][0], abs=1e-3)
        assert np.isnan(arrays[f"{name}_error"][0])
    assert TRUST[arrays["trust"][0]] == trust


def test_occupations_outside_get_no_number(predictor):
    ws2 = library()["WS2"]
    numbers = np.tile(ws2.numbers, 16)[None].copy()
    numbers[0, 1] = 0
    found = predictor.predict_occupations(ws2, 4, numbers)
    assert np.isnan(found[FORMATION_ENERGY]).all()
    assert found["trust"].tolist() == [OUTSIDE]
    assert "host WS2 was not in the training data" in predictor.why_no_value(ws2, numbers[0], GAP)
    both = np.tile(library()["MoS2"].numbers, 16)[None].repeat(2, axis=0)
    both[0, 0], both[1, 1] = 75, 0  # rhenium, which it has never seen, and a vacancy
    found = predictor.predict_occupations("MoS2", 4, both)
    assert np.isnan(found[FORMATION_ENERGY]).tolist() == [True, False]
    assert predictor.why_no_value("MoS2", both[0], GAP) == "defects never seen in MoS2: Re_Mo"
    assert found["trust"].tolist() == [OUTSIDE, INSIDE]


def test_hosts_without_labels_have_no_value(weights, tmp_path):
    loaded = load_properties(weights)
    for member in loaded.model.members:
        member.trained[:, 1] = 0
    path = save_checkpoint(tmp_path / "less.safetensors", loaded.model, loaded.card)
    (found,) = PropertyPredictor(path).predict([match_sites(structure(), "MoS2")])
    assert found[GAP].value is None
    assert "have no gap_min of this host" in found[GAP].reasons[-1]
    assert found[FORMATION_ENERGY].value is not None


def test_occupations_of_another_shape_are_refused(predictor):
    with pytest.raises(MatchError, match=r"shape \(n, 48\) for a 4x4x1 supercell"):
        predictor.predict_occupations("MoS2", 4, np.zeros((2, 47), dtype=int))


def test_weights_for_displacements_are_refused():
    with pytest.raises(CheckpointError, match="predicts displacements"):
        PropertyPredictor(bundled_models()["default"])


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(CheckpointError, match="neither a bundled model nor a file"):
        PropertyPredictor("nothing")


@pytest.mark.parametrize("key", ["density:high", "density:beyond"])
@pytest.mark.parametrize("count", [5, 9])
def test_a_card_can_say_what_is_near_to_both_ways_of_asking(weights, tmp_path, key, count):
    loaded = load_properties(weights)
    near = {key: {"share": 0.5, "error_factor": 3.0}}
    path = save_checkpoint(tmp_path / "near.safetensors", loaded.model, loaded.card.changed(near=near))
    high = loaded.card.training.hosts["MoS2"].density[1]
    site_map = match_sites(defective(np.random.default_rng(1), pristine("MoS2", 4), count)[0], "MoS2")
    assert site_map.density > high * 1.001
    own = "density:high" if site_map.density <= high * TRIED_DENSITY * 1.001 else "density:beyond"
    tried = PropertyPredictor(path)
    (found,) = tried.predict([site_map])
    arrays = tried.predict_occupations("MoS2", site_map.supercell, site_map.numbers[None])
    assert found[GAP].trust == TRUST[arrays["trust"][0]]
    if own != key:
        assert found[GAP].expected_error is None
        assert np.isnan(arrays[f"{GAP}_error"][0])
        return
    assert found[GAP].trust == "near"
    assert found[GAP].expected_error == pytest.approx(arrays[f"{GAP}_error"][0], rel=0.05)
    plain = PropertyPredictor(weights)._run(plain_sites(tried, site_map), site_map.numbers[None], None)[1]
    assert found[GAP].expected_error == pytest.approx(3 * plain[GAP][0], rel=0.05)


def plain_sites(predictor: PropertyPredictor, site_map):
    return predictor._sites_of(lattice_of(replace(site_map.sites)))
