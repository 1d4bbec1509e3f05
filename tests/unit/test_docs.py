"""What the README claims of the weights is what their card says."""

from __future__ import annotations

import json
import re
import runpy

from ase_definet import __version__
from ase_definet.checkpoints.bundled import bundled_cards
from ase_definet.checkpoints.format import load_checkpoint, resolve_model
from tests.conftest import REPO


def test_readme_table_is_the_cards():
    table = runpy.run_path(str(REPO / "docs" / "make_tables.py"))["table"]()
    assert table in (REPO / "README.md").read_text(encoding="utf-8")


def test_cards_are_those_in_the_weights():
    for name, card in bundled_cards().items():
        loaded = load_checkpoint(resolve_model(name))
        assert card == json.loads(json.dumps(loaded.card)) | {"sha256": loaded.sha256}


def test_files_named_in_the_architecture_exist():
    text = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)`", text)
    assert "cli/relax.py" in named
    package = REPO / "ase_definet"
    assert not [name for name in named if not (package / name).exists() and not (REPO / name).exists()]


def test_weights_fit_in_a_wheel_and_name_their_data():
    for name, card in bundled_cards().items():
        assert resolve_model(name).stat().st_size < 50e6
        assert "Zenodo 14027373" in card["attribution"]
        assert "CC BY 4.0" in card["attribution"]
        assert set(card["training"]["hosts"]) <= {"MoS2", "WSe2", "BN", "GaSe", "InSe", "P"}


def test_changelog_and_citation_name_this_version():
    assert f"version: {__version__}" in (REPO / "CITATION.cff").read_text(encoding="utf-8")
    assert 'path = "ase_definet/__init__.py"' in (REPO / "pyproject.toml").read_text(encoding="utf-8")
