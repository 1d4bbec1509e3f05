"""What the guides quote is in the code, and what they and the tutorials name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from research.paths import DOCS, ROOT
from tests.conftest import PACKAGE

GUIDES = sorted((DOCS / "guides").glob("*.md"))
QUOTED = re.compile(r"<!-- from (\S+) -->\n```\w*\n(.*?)```", re.DOTALL)
NAMED = re.compile(r"`((?:ase_definet|tests|research|docs|examples)/[\w./-]+)`")


def where(name: str) -> Path:
    """Return a file of the repository, those of the package where it is installed."""
    return (PACKAGE.parent if name.startswith("ase_definet/") else ROOT) / name


def bare(text: str) -> str:
    """Return the lines without indentation and blank ones."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_quoted_code_is_the_code(path):
    text = path.read_text(encoding="utf-8")
    quoted = QUOTED.findall(text)
    assert len(quoted) == text.count("<!-- from") > 0
    for name, block in quoted:
        assert bare(block) in bare(where(name).read_text(encoding="utf-8")), f"{path.name} quotes {name}"


@pytest.mark.parametrize("path", [*GUIDES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.stem)
def test_named_files_exist(path):
    named = NAMED.findall(path.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not where(name).exists()] == []
