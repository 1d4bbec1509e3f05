"""The versions that are said to work are those that are tested."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from ase_definet import __version__
from tests.conftest import REPO

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_LOWEST = {"torch"}
"""Its other versions are downloads of gigabytes."""
UNTESTED = {"doped", "dev", "docs", "chgnet", "sevennet", "mattersim", "mace", "orb", "uma", "variants"}
"""Extras that the tests with the lowest versions do without."""


def pins(name: str) -> dict[str, Version]:
    lines = (REPO / name).read_text(encoding="utf-8").splitlines()
    return {key: Version(version) for key, _, version in (line.partition("==") for line in lines if line[0] != "#")}


def requirements(*, tested: bool) -> list[Requirement]:
    found = list(PROJECT["dependencies"])
    for extra, lines in PROJECT["optional-dependencies"].items():
        if not tested or extra not in UNTESTED:
            found += lines
    return [one for one in map(Requirement, found) if one.name != PROJECT["name"]]


@pytest.mark.parametrize("one", requirements(tested=True), ids=lambda one: one.name)
def test_the_lowest_version_allowed_is_the_lowest_tested(one):
    (bound,) = (part for part in one.specifier if part.operator == ">=")
    lowest = pins("constraints-lowest.txt")[one.name]
    assert lowest in one.specifier
    if one.name not in NOT_LOWEST:
        assert lowest == Version(bound.version)


@pytest.mark.parametrize("one", requirements(tested=False), ids=lambda one: one.name)
def test_what_ci_installs_is_allowed(one):
    pinned = pins("constraints.txt")
    if one.name in pinned:
        assert pinned[one.name] in one.specifier
    else:
        assert one.name in {"doped", "sevenn", "mattersim", "mace-torch", "orb-models", "fairchem-core"}


def test_the_changelog_has_a_section_for_this_version():
    headings = re.findall(r"^## (.*)$", (REPO / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1].startswith(f"{__version__} - ")
