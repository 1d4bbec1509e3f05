"""What the README claims of the weights is what their card says."""

from __future__ import annotations

import json
import re

import pytest

from ase_definet import __version__
from ase_definet.checkpoints.bundled import bundled_cards, bundled_properties, resolve_model
from ase_definet.checkpoints.format import load_checkpoint, load_properties
from research.pages import readme
from research.paths import RESULTS
from tests.conftest import PACKAGE, REPO


def test_readme_tables_are_those_of_card_and_results():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert readme.table() in text
    assert readme.compared() in text
    hosts = bundled_cards()["default"].card.training.hosts.values()
    assert f"Weights trained on {sum(host.training_pairs for host in hosts):,} real" in " ".join(text.split())


def test_readme_claims_the_ionic_steps_that_were_measured():
    assert readme.ionic_steps() in (REPO / "README.md").read_text(encoding="utf-8")


def test_cards_and_results_mean_the_same_by_ideal_sites():
    """The card takes the mean displacement off the DFT positions, the evaluation off the prediction only."""
    results = json.loads((RESULTS / "default-val.json").read_text(encoding="utf-8"))["subsets"]
    card = bundled_cards()["default"].card.plain()["validation"]
    assert set(results) <= set(card)
    for name, row in ((name, card[name]) for name in results):
        found = {"mae": results[name], "ideal_sites": results[name]["ideal_sites"]}
        for key, own in found.items():
            assert row[key] == pytest.approx(own["coordinate_mae"], abs=2e-5)
            assert row["a3" if key == "mae" else "ideal_sites_a3"] == pytest.approx(own["a3"], abs=2e-5)


def test_every_run_is_counted_once():
    """However often it is named: as its own beginning, or as that of several networks."""
    first = {"steps": 10, "config": {"seed": 1}}
    second = {"steps": 200, "config": {"seed": 2}, "initial_weights": first}
    again = second | {"initial_weights": second}
    other = {"steps": 3000, "config": {"seed": 3}, "initial_weights": first}
    assert readme.steps([{"training": run} for run in (second, again, other)]) == 3210


def test_cards_are_those_in_the_weights():
    for name, bundled in bundled_cards().items():
        loaded = load_checkpoint(resolve_model(name))
        assert bundled.card == loaded.card
        assert bundled.card.plain() == json.loads(json.dumps(loaded.card.plain()))
        assert bundled.sha256 == loaded.sha256


def test_weights_for_properties_are_small_and_name_their_data():
    for path in bundled_properties().values():
        loaded = load_properties(path)
        assert path.stat().st_size < 4e6
        assert "Huang et al., npj 2D Mater. Appl. 7, 6 (2023)" in loaded.card.attribution
        assert "Kazeev et al., npj Comput. Mater. 9, 113 (2023)" in loaded.card.attribution
        assert "names no licence" in loaded.card.attribution
        beside = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert beside["card"] == json.loads(json.dumps(loaded.card.plain()))
        assert beside["sha256"] == loaded.sha256


def test_files_named_in_the_architecture_exist():
    text = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)`", text)
    assert "cli/relax.py" in named
    assert not [name for name in named if not (PACKAGE / name).exists() and not (REPO / name).exists()]


def test_weights_fit_in_a_wheel_and_name_their_data():
    for name, bundled in bundled_cards().items():
        assert resolve_model(name).stat().st_size < 50e6
        assert "Zenodo 14027373" in bundled.card.attribution
        assert "CC BY 4.0" in bundled.card.attribution
        assert "hBN-database, MIT" in bundled.card.attribution
        assert set(bundled.card.training.hosts) <= {"MoS2", "WSe2", "BN", "BN-bulk", "GaSe", "InSe", "P"}


def test_changelog_and_citation_name_this_version():
    assert f"version: {__version__}" in (REPO / "CITATION.cff").read_text(encoding="utf-8")
    assert 'path = "ase_definet/__init__.py"' in (REPO / "pyproject.toml").read_text(encoding="utf-8")


def test_fine_tuning_on_charged_data_is_told_as_it_went():
    text = (REPO / "docs" / "states.md").read_text(encoding="utf-8")
    found = json.loads((RESULTS / "own_charged.json").read_text(encoding="utf-8"))
    for name, row in found.items():
        if isinstance(row, dict):
            pairs = name.removeprefix("after ").removesuffix(" pairs")
            line = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
            for key in ("coordinate_mae", "a3"):
                assert any(abs(float(cell) - row[key]) < 6e-5 for cell in re.findall(r"0\.\d{4}", line))
            assert f"{row['coordinate_mae'] / row['ideal_sites']:.0%}".replace("%", " %") in line
            assert name == "before" or f"{pairs} charged monolayers" in " ".join(text.split())
            assert f"{row['n']} charged monolayers" in " ".join(text.split())
