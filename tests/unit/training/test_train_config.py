"""Configs of training: what may stand in them, and what is said of anything else."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest

from ase_definet.cli.train import PRESET_NAMES
from ase_definet.errors import TrainingError
from ase_definet.model.config import DefiNetConfig, SiteNetworkConfig, SparseNetworkConfig
from ase_definet.training.config import PRESETS, TrainConfig, config_of_run, make_config, read_config
from tests.conftest import REPO

FILES = {"data": "a.pack", "out": "run"}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_sound_and_survive_json(preset):
    config = make_config(FILES, preset)
    assert make_config(json.loads(json.dumps(config.plain()))) == config
    kinds = {"paper": DefiNetConfig, "properties": SparseNetworkConfig}
    assert isinstance(config.model, kinds.get(preset, SiteNetworkConfig))


def test_the_command_line_knows_all_presets():
    """It has their names by itself, because theirs come with torch."""
    assert tuple(PRESETS) == PRESET_NAMES


def test_a_file_names_its_preset_and_the_command_line_wins(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'preset = "base"\ndata = "a.pack"\nout = "run"\nsteps = 70\nlearning_rate = 1\n'
        '[sampling_weights]\n"high/MoS2" = 3\n[model]\nfeatures = 8\n'
    )
    config = read_config(path, steps=90, out="other")
    assert (config.steps, config.out, config.data, config.learning_rate) == (90, "other", "a.pack", 1)
    assert config.sampling_weights == {"high/MoS2": 3}
    assert config.model == SiteNetworkConfig(features=8, short_range_cutoff=4.5, dropout=0.1)


def test_docs_list_every_value_and_its_default():
    text = (REPO / "docs" / "training.md").read_text(encoding="utf-8")
    heading = "| value | default | what it is |"
    _, run, model = text.partition("## Values")[2].partition("\n## ")[0].split(heading)
    _, sparse = text.partition("## Networks for properties")[2].partition("\n## ")[0].split(heading)
    for table, kind in ((run, TrainConfig), (model, SiteNetworkConfig), (sparse, SparseNetworkConfig)):
        told = dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\|", table, re.MULTILINE))
        values = {field.name: field.default for field in dataclasses.fields(kind)}
        assert told == {
            name: "" if value is dataclasses.MISSING else json.dumps(value)
            for name, value in values.items()
            if name not in {"sampling_weights", "model"}  # tables
            and not (kind is SparseNetworkConfig and name in {"targets", "hosts", "kinds"})  # set by the run
        }


def test_an_architecture_is_named_in_the_model():
    config = make_config(FILES | {"model": {"architecture": "definet", "features": 16}})
    assert config.model == DefiNetConfig(features=16)
    assert config.plain()["model"]["architecture"] == "definet"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": ""}, "lacks data"),
        ({"stpes": 5}, "does not know stpes; it knows .*steps"),
        ({"model": {"width": 5}}, r"\[model\] does not know width; it knows .*features"),
        ({"model": {"architecture": "gnn"}}, "unknown architecture 'gnn': expected one of site, definet"),
        ({"model": {"architecture": "definet", "dropout": 0.1}}, "does not know dropout"),
        ({"model": 5}, "model must be a table, found 5"),
        ({"sampling_weights": "high"}, "sampling_weights must be a table"),
        ({"steps": "100"}, "steps must be a whole number, found '100'"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"learning_rate": "fast"}, "learning_rate must be a number"),
        ({"tf32": 1}, "tf32 must be true or false"),
        ({"initial_weights": 3}, "initial_weights must be text"),
        ({"model": {"features": "8"}}, "features must be a whole number"),
        ({"steps": 0}, "steps must be between 1 and"),
        ({"batch_size": 2, "devices": 3}, "a batch of 2 cannot be shared by 3 devices"),
        ({"training_fraction": 0.0}, "training_fraction must be between"),
        ({"training_fraction": 1.1}, "training_fraction must be between"),
        ({"schedule": "linear"}, "schedule must be cosine or plateau, found 'linear'"),
        ({"optimizer": "sgd"}, "optimizer must be adamw or muon, found 'sgd'"),
        ({"loss": "energy"}, "loss must be length or components, found 'energy'"),
        ({"muon_lr_ratio": -1.0}, "muon_lr_ratio must be between 0 and inf"),
        ({"precision": "16-mixed"}, "precision must be 32-true or bf16-mixed"),
        ({"sampling_weights": {"a": -1.0, "b": 1.0}}, "sampling_weights must not be negative"),
        ({"sampling_weights": {"a": 0.0}}, "nor all zero"),
        ({"sampling_weights": {"a": "much"}}, "sampling_weights must be numbers"),
        ({"steps": 10**30}, "steps must be between 1 and"),
        ({"validation_size": 0}, "validation_size must be between 1 and"),
        ({"seed": -1}, "seed must be between 0 and"),
        ({"seed": 10**30}, "seed must be between 0 and"),
        ({"learning_rate": math.nan}, "learning_rate must be between 0 and inf, found nan"),
        ({"sampling_weights": {"a": math.nan}}, "sampling_weights must not be negative, and finite"),
        ({"sampling_weights": {"a": math.inf}}, "sampling_weights must not be negative, and finite"),
        ({"sampling_weights": {"a": True}}, "sampling_weights must be numbers"),
        ({"data": "a\0b"}, "data must be text without zero bytes"),
        ({"model": {"features": 0}}, r"\[model\]: features must be between 1 and 100000, found 0"),
        ({"model": {"features": 10**30}}, "features must be between"),
        ({"model": {"layers": 10**6}}, "layers must be between 1 and 1000"),
        ({"model": {"cutoff": 1e300}}, "cutoff must be between 1 and 50"),
        ({"model": {"cutoff": math.nan}}, "cutoff must be between 1 and 50"),
        ({"model": {"avg_num_neighbors": 0.0}}, "neighbors must be between"),
        ({"model": {"architecture": ["site"]}}, "unknown architecture"),
        ({"model": {"short_range_cutoff": 8.0}}, "short_range_cutoff must be between 0 and the cutoff"),
        ({"model": {"dropout": 1.0}}, "dropout must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_meant_is_said(options, message):
    with pytest.raises(TrainingError, match=message):
        make_config(FILES | options)


def test_unknown_presets_and_unreadable_files(tmp_path):
    with pytest.raises(TrainingError, match="unknown preset 'large': expected one of small, base, deep, paper"):
        make_config(FILES, "large")
    (tmp_path / "a.toml").write_text("steps = = 5")
    with pytest.raises(TrainingError, match=r"a\.toml: cannot be read as TOML"):
        read_config(tmp_path / "a.toml")
    with pytest.raises(TrainingError, match=r"b\.toml: cannot be read as TOML"):
        read_config(tmp_path / "b.toml")


@pytest.mark.parametrize("content", [b"\xff\xfe", b'data = "\xe9"', b"a = " + b"[" * 100_000])
def test_what_is_no_toml(tmp_path, content):
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(TrainingError, match=r"a\.toml: cannot be read as TOML"):
        read_config(tmp_path / "a.toml")


@pytest.mark.parametrize("preset", ["3", '["small"]', "{}", '"large"'])
def test_a_preset_is_a_name(tmp_path, preset):
    (tmp_path / "a.toml").write_text(f"preset = {preset}\n")
    with pytest.raises(TrainingError, match="unknown preset"):
        read_config(tmp_path / "a.toml")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff", b'{"steps": 3}', b'{"data": 3}', b"[" * 100_000]
)
def test_a_damaged_config_of_a_run_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(TrainingError, match=r"config\.json: "):
        config_of_run(tmp_path)


def test_defaults_are_sound():
    assert make_config(FILES) == TrainConfig(**FILES)
