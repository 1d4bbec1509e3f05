"""What is left out is left out, and what is learned from it is what was there to be learned."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ase_definet.checkpoints.card import ModelCard
from ase_definet.data import PackedDataset, PairSource, pack_pairs
from ase_definet.relaxation.expected_error import FEATURES
from ase_definet.structures.state import State
from ase_definet.training.config import make_config, read_config
from research.experiments import calibrate, left_out
from research.experiments.left_out import Experiment, Measured
from research.paths import ROOT
from tests.conftest import pristine

TINY = {"features": 8, "layers": 1, "short_range_cutoff": 0.0, "dropout": 0.0, "vector_norm": True, "cutoff": 5.0}


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> PackedDataset:
    """Return pairs of MoS2, half of them with W, some of them charged."""
    references = []
    for k in range(24):
        unrelaxed = pristine("MoS2", 4)
        numbers = unrelaxed.numbers
        if k % 2:
            numbers[3 * (k % 16)] = 74
        if k % 3 == 0:
            unrelaxed.info |= {"charge": 1}
        del unrelaxed[[(3 * k + 7) % 48, *([20] if k % 5 == 0 else [])]]
        relaxed = unrelaxed.copy()
        relaxed.rattle(0.03, seed=k)
        references.append(
            PairSource(f"p{k}", "high/MoS2", "val" if k % 4 > 1 else "train", "MoS2", unrelaxed, relaxed)
        )
    path = tmp_path_factory.mktemp("data") / "2dmd.pack"
    made, problems = pack_pairs(references, path, workers=1)
    assert problems == []
    return made


CHOICES = {
    "elements": (left_out.elements("W"), lambda numbers, *_: (numbers == 74).any()),
    "defects": (left_out.defects(MoS2=("W_Mo",)), lambda numbers, *_: (numbers == 74).any()),
    "another host's defects": (left_out.defects(WSe2=("W_Mo",)), lambda *_: False),
    "denser": (left_out.denser(0.03), lambda numbers, host, _: (numbers != host).mean() > 0.03),
    "host": (left_out.host("MoS2"), lambda *_: True),
    "charges": (left_out.states(lambda state: bool(state.charge)), lambda _, __, state: state.charge == 1),
    "vacancies beside": (
        left_out.vacancy_beside,
        lambda numbers, host, _: (numbers == 0).any() and ((numbers != host) & (numbers > 0)).any(),
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_chosen_is_left_out_and_nothing_else(pack, name):
    choose, wanted = CHOICES[name]
    (group,) = pack.groups
    chosen = choose(group)
    states = [State.from_codes(codes) for codes in group.state]
    assert chosen.tolist() == [
        bool(wanted(n, group.host_numbers, s)) for n, s in zip(group.numbers, states, strict=True)
    ]
    thin = left_out.thinned(group, chosen, {"high/MoS2": 1.0})
    out = {thin.ids[k] for k in thin.indices("test")}
    assert out == {group.ids[k] for k in np.flatnonzero(chosen)}
    for split in ("train", "val"):
        assert {thin.ids[k] for k in thin.indices(split)} == {group.ids[k] for k in group.indices(split)} - out
    none = left_out.thinned(group, chosen, {"high/MoS2": 0.0})  # measured, but not trained on
    assert none is None or len(none) == len(out)


def test_every_composition_is_in_one_fold(pack):
    (group,) = pack.groups
    folds = np.array([left_out.compositions(fold)(group) for fold in range(4)])
    assert (folds.sum(axis=0) == 1).all()
    names = [" ".join(sorted(own)) for own in left_out.defects_of(group, count=True)]
    for name in set(names):
        assert len({int(folds[:, k].argmax()) for k in range(len(names)) if names[k] == name}) == 1


@pytest.fixture
def finished(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(left_out, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(left_out, "OUT", tmp_path / "out")
    monkeypatch.setattr(left_out, "MODEL", TINY)
    monkeypatch.setattr(left_out, "ESTIMATE", 5)
    own = Experiment("element", "W", left_out.elements("W"), {"high/MoS2": 1.0}, steps=2)
    monkeypatch.setattr(left_out, "experiments", lambda: {"tiny": own})
    monkeypatch.setattr("sys.argv", ["left_out", str(pack.path.parent), "tiny"])
    left_out.main()
    return tmp_path


def test_an_experiment_is_measured_on_what_was_left_out(finished, pack, monkeypatch):
    found = json.loads((finished / "out" / "tiny.json").read_text(encoding="utf-8"))
    assert all({"defects", "species"} <= set(key.removeprefix("MoS2: ").split()) for key in found["table"])
    (group,) = pack.groups
    number = sum(row["structures"] for row in found["table"].values())
    assert number == left_out.elements("W")(group).sum() == len(found["structures"])
    rows = left_out.load_measured(finished / "runs" / "tiny" / "atoms.npz")
    for key, row in found["table"].items():
        own = [one.mae for one in rows if f"MoS2: {' '.join(one.words)}" == key]
        np.testing.assert_allclose(np.mean(own, axis=0), [row["network"], row["ideal_sites"]], atol=1e-5)
    for one in rows:
        assert "W_Mo x1" in one.defects
        error, ideal, expected, moved, away, doubtful = one.atoms.T
        assert (expected > 0).all()
        assert (doubtful >= away - 1e-5).all()  # the closest defect that is new is a defect
        assert (np.abs(error - ideal) <= moved + 1e-4).all()
    before = (finished / "out" / "tiny.json").read_bytes()
    monkeypatch.setattr(left_out, "train", lambda _: pytest.fail("it was trained already"))
    left_out.main()
    assert (finished / "out" / "tiny.json").read_bytes() == before


def synthetic(seed: int, words: tuple[str, ...], host: str = "BN", share: float = 0.5, n: int = 30) -> list[Measured]:
    """Return structures whose errors are a known factor of the network's own estimate, larger in each respect."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(n):
        own = rng.exponential(0.02, 60) + 1e-3
        true = own * 2.0 * 3.0 ** len(words) * rng.exponential(1.0, 60)
        away = rng.uniform(0, 9, 60)
        atoms = np.stack([true, true / share, own, rng.exponential(0.05, 60), away, away], axis=1)
        out.append(
            Measured("s", host, words, (share * 0.01, 0.01), atoms.astype(np.float32), f"C_B x{k % 7 + 1}, +0")
        )
    return out


def rows_of(*parts: tuple[str, list[Measured]]) -> list[calibrate.Sample]:
    return [calibrate.sample_of(name, one) for name, some in parts for one in some]


def test_a_known_law_is_learned():
    rows = rows_of(("a", synthetic(1, ())), ("b", synthetic(2, ("spin",))), ("c", synthetic(3, ("excited", "spin"))))
    model = calibrate.fit(rows)
    own = model.weights[FEATURES.index("own")] + model.weights[FEATURES.index("layer_own")]
    assert own == pytest.approx(1.0, abs=0.15)
    assert model.respects["spin"] == pytest.approx(np.log(3), abs=0.35)
    table = calibrate.judged(rows, calibrate.crossed(rows, "fold"))
    assert list(table) == ["a | BN | inside", "b | BN | spin", "c | BN | excited spin"]
    for row in table.values():
        assert row["ratio"] == pytest.approx(1.0, abs=0.3)
    assert table["c | BN | excited spin"]["own_ratio"] == pytest.approx(1 / 18, rel=0.3)


def test_no_structure_judges_itself():
    """Errors of one fold are made a hundred times larger: its own expected errors must not know."""
    rows = rows_of(("a", synthetic(1, ())), ("a", synthetic(2, ("spin",))))
    plain = calibrate.crossed(rows, "fold")
    for row in rows:
        if row.fold == rows[0].fold:
            row.one.atoms[:, 0] *= 100
    again = calibrate.crossed(rows, "fold")
    np.testing.assert_allclose(again[0], plain[0], rtol=1e-6)
    other = next(k for k, row in enumerate(rows) if row.fold != rows[0].fold)
    assert again[other].mean() > 2 * plain[other].mean()


def test_known_defects_elsewhere_are_no_merit():
    """Structures of known vacancies, well predicted, around an unknown element, badly predicted."""
    some = synthetic(1, ("species",), "MoS2", share=0.2)
    for one in some:
        one.atoms[::3, 4] = one.atoms[::3, 5] = 1.0  # close to the unknown
        one.atoms[::3, 0] = 1.5 * one.atoms[::3, 1]
        other = np.arange(60) % 3 != 0
        one.atoms[other, 4], one.atoms[other, 5] = 1.0, 9.0  # close to a vacancy
    assert calibrate.near_records(rows_of(("a", some)), "here") == {}
    for one in some:
        one.atoms[::3, 0] = 0.4 * one.atoms[::3, 1]
    found = calibrate.near_records(rows_of(("a", some)), "here")
    assert found["species"]["hosts"] == ["MoS2"]
    assert found["species"]["share"] == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(
    ("parts", "near"),
    [
        ([(("spin",), "BN", 0.5)], {"spin": None}),
        ([(("spin",), "BN", 0.95)], {}),
        ([(("defects",), "BN", 0.5)], {"defects": ["BN"]}),
        ([(("charge:1",), "BN", 0.5), (("charge:1",), "MoS2", 1.1)], {"charge:1": ["BN"]}),
        ([(("spin",), "BN", 0.5), (("spin", "species"), "BN", 0.6)], {"spin": None, "species": ["BN"]}),
        ([(("species", "host:other"), "P", 0.5)], {}),  # one of them alone was not tried
        ([(("functional", "spin"), "BN", 0.5)], {"functional": None, "spin": None}),  # always together
    ],
)
def test_what_is_near_follows_from_the_share(parts, near):
    rows = rows_of(*((f"e{k}", synthetic(k, *part[:2], share=part[2])) for k, part in enumerate(parts)))
    found = calibrate.near_records(rows, "here")
    assert {key: record.get("hosts") for key, record in found.items()} == near
    assert ModelCard.read({"near": found}).near.keys() == near.keys()


def test_experiments_and_the_example_are_runs():
    for name, experiment in left_out.experiments().items():
        options = {
            "data": "x",
            "out": "y",
            "steps": experiment.steps,
            "model": left_out.MODEL | dict(experiment.model),
        }
        assert make_config(left_out.BUDGET | options).steps == experiment.steps, name
        assert not experiment.initial or experiment.initial in left_out.experiments()
    config = read_config(ROOT / "examples" / "charged.toml")
    assert config.model.states
    assert config.data == "mine.pack"
