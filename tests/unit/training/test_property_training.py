"""Networks for properties through the training machinery: they learn, resume exactly, and become an ensemble."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ase_definet.checkpoints.format import holds_properties, load_checkpoint, load_properties
from ase_definet.data import PackedDataset, save_groups
from ase_definet.errors import CheckpointError, TrainingError
from ase_definet.evaluation.pair_additive import fit_pair_additive
from ase_definet.evaluation.property_scores import score_properties, summarise_properties
from ase_definet.model.config import SparseNetworkConfig
from ase_definet.training.card import export_weights
from ase_definet.training.config import TrainConfig, config_of_run, make_config
from ase_definet.training.property_ensemble import estimated, write_ensemble
from ase_definet.training.property_run import PropertyRun
from ase_definet.training.run import LAST, train
from tests.labelled import labelled_pack

MODEL = SparseNetworkConfig(features=16, pair_features=8, layers=2, heads=2, n_radial=12, cutoff=9.0, dropout=0.0)
TARGETS = ("formation_energy", "gap_min")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> str:
    return str(labelled_pack(tmp_path_factory.mktemp("labelled") / "pack", n_train=160, n_val=30).path)


@pytest.fixture
def config(labelled, tmp_path) -> TrainConfig:
    return TrainConfig(
        data=labelled,
        out=str(tmp_path / "run"),
        model=MODEL,
        targets=TARGETS,
        steps=40,
        batch_size=16,
        learning_rate=3e-3,
        warmup_steps=5,
        ema_decay=0.9,
        validate_every=20,
        checkpoint_every=20,
    )


@pytest.fixture(scope="session")
def trained(labelled, tmp_path_factory) -> list[Path]:
    """Train two networks that differ in their seeds, and export them."""
    out = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("trained") / f"run-{seed}"
        values = {"data": labelled, "out": str(folder), "targets": list(TARGETS), "steps": 250, "seed": seed}
        model = {
            "architecture": "sparse",
            "features": 16,
            "pair_features": 8,
            "layers": 2,
            "heads": 2,
            "n_radial": 12,
        }
        values |= {"model": model | {"cutoff": 9.0, "dropout": 0.0}, "batch_size": 32, "optimizer": "adamw"}
        run = train(make_config(values | {"learning_rate": 3e-3}, "properties"))
        out.append(export_weights(run, folder.with_suffix(".safetensors"), f"own-{seed}", "1"))
    return out


def weights_of(run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.network.state_dict().items()}


def test_a_killed_run_goes_on_exactly(config, tmp_path):
    whole = train(config)
    half = replace(config, out=str(tmp_path / "half"))
    first = PropertyRun(half)
    Path(half.out).mkdir()
    for _ in range(20):
        first.advance()
    first.save()
    again = train(half)
    assert again.step == whole.step == 40
    expected = weights_of(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(again).items())
    assert (Path(half.out) / LAST).exists()


def test_it_learns_planted_pairs(trained, labelled):
    loaded = load_properties(trained[0])
    scores, left_out = score_properties(loaded.model, PackedDataset.open(labelled), baseline=True)
    assert not left_out
    table = summarise_properties(scores)
    energy = table["formation_energy"]["subsets"]["own/MoS2"]
    assert energy["mae"] < 0.02  # single-defect terms alone leave more, next to 0.7 eV between structures
    assert energy["r2"] > 0.98
    assert energy["baseline_mae"] < 0.02
    assert table["gap_min"]["subsets"]["own/MoS2"]["mae"] < 0.1
    assert "baseline_mae" not in table["gap_min"]["subsets"]["own/MoS2"]


def test_single_defect_terms_are_the_planted_ones(labelled):
    pack = PackedDataset.open(labelled)
    ((_, fit),) = fit_pair_additive(pack, "formation_energy").items()
    terms = dict(zip(fit.config.kinds, fit.terms, strict=False))
    assert terms[0, 16, 0] == pytest.approx(2.0, abs=0.05)
    assert terms[34, 16, 0] == pytest.approx(0.3, abs=0.05)
    assert terms[74, 42, 0] == pytest.approx(-0.4, abs=0.05)


def test_every_structure_is_drawn_in_its_share(config):
    run = PropertyRun(config)
    seen: list[int] = []
    for step in range(10):
        run.step = step
        seen += run._next_structures().tolist()
    assert len(seen) == 160
    assert sorted(seen) == sorted(run._training_indices().tolist())


def test_missing_labels_do_not_count(config, labelled, tmp_path):
    pack = PackedDataset.open(labelled)
    (group,) = (one.in_memory() for one in pack.groups)
    group.labels[::2, 1] = np.nan
    path = save_groups([group], tmp_path / "holes", pack.labels).path
    run = PropertyRun(replace(config, data=str(path)))
    losses = [run.advance() for _ in range(3)]
    assert np.isfinite(losses).all()
    assert all(bool(p.isfinite().all()) for p in run.network.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": ("colour",)}, "has no labels colour; it has formation_energy, gap_min"),
        ({"targets": ()}, "needs targets"),
    ],
)
def test_wrong_targets_are_refused(config, changes, words):
    with pytest.raises(TrainingError, match=words):
        PropertyRun(replace(config, **changes))


def test_networks_for_displacements_have_no_targets():
    with pytest.raises(TrainingError, match="has no targets"):
        make_config({"data": "a", "out": "b", "targets": ["gap"], "model": {"architecture": "site"}})


def test_config_of_a_run_is_read_back(config):
    train(replace(config, steps=2))
    found = config_of_run(Path(config.out))
    assert found.targets == TARGETS
    assert found.model.kinds == ((0, 16, 0), (34, 16, 0), (74, 42, 0))


def test_exported_weights_say_what_they_are(trained):
    path = trained[0]
    assert holds_properties(path)
    card = load_properties(path).card
    assert card.training.hosts["MoS2"].defects == ["Se_S", "W_Mo", "v_S"]
    assert set(card.validation["own/MoS2"].plain()) == set(TARGETS)
    for target in TARGETS:
        score = card.property_scores[target]["own/MoS2"]
        assert (score.host, score.n) == ("MoS2", 30)
        assert score.mae == pytest.approx(card.validation["own/MoS2"].plain()[target], abs=2e-5)
    with pytest.raises(CheckpointError, match="predicts properties: it cannot relax"):
        load_checkpoint(path)


def test_ensemble_expects_its_errors(trained, labelled, tmp_path):
    out, reliability = write_ensemble(
        tmp_path / "both.safetensors", trained, Path(labelled), name="both", version="1"
    )
    loaded = load_properties(out)
    assert loaded.card.training.plain()["members"][1]["seed"] == 1
    for subsets in reliability.values():
        row = subsets["own/MoS2"]
        assert 0.5 < row["mean_estimate"] / row["mean_error"] < 2
    scores, _ = score_properties(loaded.model, PackedDataset.open(labelled))
    for score in scores:
        ratio = score.expected.mean() / np.abs(score.values - score.labels).mean()
        assert 0.8 < ratio < 1.25


def test_fitted_error_is_that_of_its_row():
    weights = np.array([[np.log(0.5), 0.0, 0.1, 1.0], [np.log(2.0), 1.0, 0.0, 0.0]])
    table = np.array([[0, 3.0, 0.0, 4.0], [1, 0.25, 0.0, 4.0]])
    assert estimated(weights, table) == pytest.approx([2.0, 0.5], rel=1e-4)


def test_ensembles_need_networks_of_the_same_hosts(trained, labelled, tmp_path):
    model = load_properties(trained[0]).model
    other = labelled_pack(tmp_path / "other", n_train=8, n_val=4, seed=7)
    values = {"data": str(other.path), "out": str(tmp_path / "odd"), "targets": "gap_min", "steps": 2}
    run = train(
        make_config(values | {"model": {"architecture": "sparse", "features": 16, "n_radial": 6}}, "properties")
    )
    odd = export_weights(run, tmp_path / "odd.safetensors", "odd", "1")
    assert model.config.n_radial != 6
    with pytest.raises(CheckpointError, match="cannot put"):
        write_ensemble(tmp_path / "x.safetensors", [trained[0], odd], Path(labelled), name="x", version="1")
