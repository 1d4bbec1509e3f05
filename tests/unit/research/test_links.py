"""Links between the pages of the repository lead somewhere, as on GitHub; MkDocs checks those of the site."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from research.paths import ROOT

FOLDERS = ("docs", "examples", "research", "tests/data", "tests/outputs")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page."""
    words = (re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading)) for heading in HEADING.findall(text))
    return {word.strip().lower().replace(" ", "-") for word in words}


def broken(page: Path) -> list[str]:
    out = []
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.exists():
            out.append(f"{link}: no such file")
        elif not target.is_relative_to(ROOT):
            out.append(f"{link}: outside of the repository")
        elif parts.fragment and parts.fragment not in anchors(target.read_text(encoding="utf-8")):
            out.append(f"{link}: no such heading")
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert broken(page) == []


@pytest.mark.parametrize("link", ["nowhere.md", "README.md#no-such-heading", "../README.md"])
def test_a_broken_link_is_found(tmp_path, monkeypatch, link):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "README.md").write_text(f"# A heading\n\n[here]({link}) and [there](README.md#a-heading)\n")
    (tmp_path.parent / "README.md").touch()
    (found,) = broken(tmp_path / "README.md")
    assert link in found


def test_every_page_is_on_the_site():
    """With its place in the navigation; MkDocs checks that too where it is installed."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[:-] ([\w/-]+\.md)$", text, re.MULTILINE))
    found = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert found <= named
