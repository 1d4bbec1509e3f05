"""Recipes and experiments name settings that a training run has."""

from __future__ import annotations

import re

import pytest

from ase_definet.training.config import make_config, read_config
from research.experiments import comparisons, error_vs_pairs
from research.paths import RECIPES

SCRIPT = (RECIPES / "make.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_are_runs(path):
    config = read_config(path)
    assert config.out == f"runs/{path.stem}"
    assert config.data.startswith(".data/")
    assert config.attribution


def test_what_the_script_runs_is_there_and_what_is_there_is_run_or_said_not_to_be_used():
    run = set(re.findall(r"^run ([\w-]+)", SCRIPT, re.MULTILINE)) | set(re.findall(r"recipes/([\w-]+)\.toml", SCRIPT))
    recipes = {path.stem: path.read_text(encoding="utf-8") for path in RECIPES.glob("*.toml")}
    assert run <= set(recipes)
    assert all("not used" in recipes[name] for name in set(recipes) - run)


@pytest.mark.parametrize(("name", "options"), comparisons.experiments().items(), ids=str)
def test_comparisons_are_runs(name, options):
    wanted = {key: value for key, value in options.items() if key != "score"}
    assert make_config(comparisons.BUDGET | {"data": "2dmd.pack", "out": "run"} | wanted).steps > 0
    assert (comparisons.OUT / f"{comparisons.stem(name)}.json").exists()


def test_error_vs_pairs_are_runs():
    config = make_config(error_vs_pairs.options("2dmd.pack", "high/P", "half", 0.5, 1))
    assert config.training_fraction == 0.5
    assert config.sampling_weights == {"high/P": 1.0}
