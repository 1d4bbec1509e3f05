"""The pages of the tutorials are those of their scripts; CI runs the scripts and compares what they print."""

from __future__ import annotations

import re

import pytest

from research.site import tutorials

BLOCK = re.compile(r"```text\n.*?```\n\n?", re.DOTALL)


def without_outputs(text: str) -> list[str]:
    return [line for line in BLOCK.sub("", text).splitlines() if line.strip()]


@pytest.mark.parametrize("script", tutorials.scripts(), ids=lambda script: script.stem)
def test_the_page_is_the_script(script):
    parts = tutorials.cells(script)
    shown = sum(part.kind == "code" for part in parts)
    page = (tutorials.PAGES / f"{script.stem}.md").read_text(encoding="utf-8")
    assert without_outputs(page) == without_outputs(tutorials.page(script, parts, iter([""] * shown)))
    assert len(BLOCK.findall(page)) > 2


SCRIPT = """{}
# %% [markdown]
# # Title
#
# Prose.

# %%
{}

# %% hide
x=3

# %%
{}

# %%
{}
"""
SCRIPTS = {
    ".py": SCRIPT.format('"""Not shown."""', 'print("one", 2.5)', "x", "print(x)"),
    ".sh": SCRIPT.format("#!/bin/bash -u # Not shown", "echo one 2.5", "true", "echo $x >&2"),
}


@pytest.mark.parametrize("suffix", SCRIPTS)
def test_cells_are_shown_with_what_they_print(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(tutorials, "ROOT", tmp_path)
    script = tmp_path / f"script{suffix}"
    script.write_text(SCRIPTS[suffix])
    parts = tutorials.cells(script)
    text = tutorials.page(script, parts, tutorials.outputs(script, parts))
    assert text.startswith("# Title\n\n*Run it yourself: [script")
    assert "\nProse.\n" in text
    assert BLOCK.findall(text)[0] == "```text\none 2.5\n```\n\n"
    assert text.endswith("```text\n3\n```\n")
    assert len(BLOCK.findall(text)) == 2
    assert "Not shown" not in text
    assert "hide" not in text


def test_a_script_that_fails_has_no_page(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("# %%\nprint('so far')\n1 / 0\n")
    with pytest.raises(SystemExit, match=r"so far(?s:.*)ZeroDivisionError"):
        tutorials.outputs(script, tutorials.cells(script))


@pytest.mark.parametrize(
    ("now", "page", "same"),
    [
        ("error 0.012 Å", "error 0.014 Å", True),
        ("error 0.5 Å", "error 0.1 Å", False),
        ("192 sites", "190 sites", False),
        ("trust inside", "trust near", False),
        ("done in 12 s", "done in 70 s", True),
        ("weights 8981a433b8b2", "weights 192dbc88340d", True),
        ("at most 0.1 Å (atom 12, S)", "at most 0.1 Å (atom 7, S)", True),
        ("a  b 1.00", "a b 1.01", True),
    ],
)
def test_numbers_may_differ_as_machines_do_and_words_may_not(now, page, same):
    assert (tutorials.differences(now, page) == []) == same


def test_another_number_of_lines_differs():
    assert tutorials.differences("a\nb", "a") == ["2 lines, the page has 1"]


@pytest.mark.parametrize(
    ("row", "same"), [("a  3  0.10  44", True), ("a  3  0.90   5", False), ("a  4  0.10   5", False)]
)
def test_times_in_a_table_may_differ_and_its_other_numbers_not(row, same):
    page = "text 5\nsubset  n   all  ms\na  3  0.10   5\n\nafter 7\n"
    assert (tutorials.differences(page.replace("a  3  0.10   5", row), page) == []) == same
    assert tutorials.differences(page.replace("after 7", "after 8"), page) != []
