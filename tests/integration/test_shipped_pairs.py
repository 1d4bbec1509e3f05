"""Accuracy in a plain checkout: validation pairs of 2DMD that ship with the tests, scored as `evaluate` does."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from ase.io import read

from ase_definet.matching.library import get_host
from research.experiments.shipped_pairs import METHODS, OUT, PER_SUBSET, REGIONS, scores_of
from research.paths import RESULTS

PAIRS = OUT / "pairs.extxyz"
SUBSETS = json.loads((RESULTS / "default-val.json").read_text(encoding="utf-8"))["subsets"]
SAMPLE = 0.15
"""Two pairs are not their subset: they were chosen to have its mean errors within a few percent."""
ROUNDING, ABSOLUTE = 0.01, 1e-4
"""Of the same prediction on another machine, relative and in Å."""


@pytest.fixture(scope="module")
def scores():
    return scores_of(PAIRS)


def mean(scores, subset, method, region):
    return np.mean([score.maes[method][region] for score in scores if score.subset == subset])


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_error_of_every_host_is_the_one_in_the_results(scores, subset):
    committed = SUBSETS[subset]
    for region in REGIONS:
        found = mean(scores, subset, "model", region)
        assert found == pytest.approx(committed[region], rel=SAMPLE)
        ideal = mean(scores, subset, "ideal_sites", region)
        assert ideal == pytest.approx(committed["ideal_sites"][region], rel=SAMPLE)
        assert found < 0.8 * ideal


def test_every_pair_has_the_error_it_had(scores):
    """After new weights: ``python -m research.experiments.shipped_pairs`` writes the new ones."""
    committed = json.loads((OUT / "scores.json").read_text(encoding="utf-8"))["pairs"]
    assert {score.id for score in scores} == set(committed)
    for score in scores:
        row = committed[score.id]
        assert score.subset == row["subset"]
        for method in METHODS:
            for region in REGIONS:
                expected = pytest.approx(row[method][region], rel=ROUNDING, abs=ABSOLUTE)
                assert score.maes[method][region] == expected, f"{score.id}, {method}, {region}"


def test_the_pairs_are_what_their_readme_says():
    frames = read(PAIRS, ":")
    assert Counter(frame.info["subset"] for frame in frames) == dict.fromkeys(SUBSETS, PER_SUBSET)
    assert {frame.info["split"] for frame in frames} == {"val"}
    assert {get_host(frame.info["host"]).name for frame in frames} == {"BN", "GaSe", "InSe", "MoS2", "P", "WSe2"}
    assert PAIRS.stat().st_size < 300e3
    text = (OUT / "README.md").read_text(encoding="utf-8")
    for source in ("14027373", "CC BY 4.0", "doi:10.5281/zenodo.14027373", "npj 2D Mater. Appl. 7, 6 (2023)"):
        assert source in text
    assert f"{len(frames)} pairs" in text
    assert "CC BY 4.0" in (OUT / "LICENSE").read_text(encoding="utf-8")
