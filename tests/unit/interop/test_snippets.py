"""The page on other packages, run as it stands, each block where its package is installed."""

from __future__ import annotations

import importlib
import re

import pytest

from ase_definet import DefiNetRelaxer
from research.paths import DOCS

PAGE = (DOCS / "integrations.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"<!-- snippet ([\w.]+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
NEEDS = {
    "shakenbreak": ["doped"],
    "atomate2": ["jobflow", "pymatgen.analysis.defects"],
    "ase": ["pymatgen.analysis.defects"],
}
"""Packages of the earlier blocks that a block takes something from."""


def missing(name: str) -> str:
    for package in [*NEEDS.get(name, []), name]:
        try:
            importlib.import_module(package)
        except ImportError:
            return package
    return ""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return what the blocks define, and where they write."""
    return {"__name__": "page"}, tmp_path_factory.mktemp("page")


@pytest.mark.filterwarnings("ignore")  # of the other packages
@pytest.mark.parametrize("name", SNIPPETS)
def test_the_block_runs(name, page, monkeypatch, capsys):
    defined, folder = page
    if package := missing(name):
        pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(folder)
    exec(SNIPPETS[name], defined)  # noqa: S102
    printed = capsys.readouterr().out
    if name == "doped":
        assert "v_S_0 {'v_S': 1}" in printed
        assert "W_Mo_0 {'W_Mo': 1}" in printed
        assert (folder / "doped" / "v_S_0" / "INCAR").is_file()
    elif name == "shakenbreak":
        assert "'DefiNet'" in printed
        assert "'Unperturbed'" in printed
        assert len(defined["relaxed"]["v_S_0"]) == 74
    elif name == "pymatgen.analysis.defects":
        assert "Se_S {'Se_S': 1} inside" in printed
    elif name == "atomate2":
        assert printed.startswith("['DefiNet relax', ")
    elif name == "ase":
        assert defined["start"].get_potential_energy() < 0
    else:
        assert isinstance(defined["relaxer"], DefiNetRelaxer)


def test_every_block_of_python_is_run():
    assert PAGE.count("```python") == len(SNIPPETS)
    assert list(SNIPPETS) == ["pymatgen", "doped", "shakenbreak", "pymatgen.analysis.defects", "atomate2", "ase"]
