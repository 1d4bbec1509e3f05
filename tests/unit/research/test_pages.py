"""The generated pages are what their scripts make of the committed results; no script has a figure typed into it."""

from __future__ import annotations

import ast
import re

import pytest

from research.pages import comparison, engines, performance, properties, results, trust
from research.paths import ROOT

SOURCES = sorted((ROOT / "research" / "pages").rglob("*.py"))
NUMBER = re.compile(r"(?<![\w.=/-])[-+]?\d[\d.,]*(?!\w)")
"""A number that stands by itself: not in MoS2, 2DMD, OMP_NUM_THREADS=1 or a name of a file."""
MEASURED = re.compile(r"\d[.,]\d{3}|\d ?%")
"""What no string has, with or without words."""
KEY = re.compile(r"\d+%")
"""Of a quantile in a JSON file."""


PAGES = [results, comparison, performance, trust, engines, properties]


@pytest.mark.parametrize("module", PAGES, ids=lambda module: module.PAGE.name)
def test_the_page_is_what_its_script_makes_of_the_results(module):
    assert module.PAGE.read_text(encoding="utf-8") == module.page()


def typed_figures(source: str) -> list[str]:
    """Return the figures in the strings of a module, docstrings apart, and floats of several digits in its code."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
    }
    docstrings |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    formats = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None
        for part in ast.walk(node.format_spec)
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in docstrings | formats:
            continue
        if isinstance(node.value, str):
            if KEY.fullmatch(node.value):
                continue
            words = re.search(r"[^\W\d]{2}", node.value)
            found += [match[0] for match in (NUMBER if words else MEASURED).finditer(node.value)]
        elif isinstance(node.value, float) and len(f"{node.value:g}".replace(".", "").strip("0")) > 1:
            found.append(str(node.value))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_figure_is_typed_into_a_script(path):
    assert typed_figures(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "the error was 0.0413 Å",
        "GaSe 0.0418",
        "15 % less",
        "after 2,500 steps",
        "about 7 steps",
        "with -9 to",
        "by +2 %",
    ],
)
def test_a_typed_figure_would_be_found(text):
    assert typed_figures(f'"""Doc 0.5 of a module."""\nLINES = [{text!r}]\n')
    assert typed_figures(f"def f(x):\n    return f'{{x:.4f}} {text}'\n")


def test_numbers_without_words_and_in_code_are_found_too():
    assert typed_figures("A = '0.0413'\n") == ["0.041"]
    assert typed_figures("A = 0.0413\n") == ["0.0413"]


@pytest.mark.parametrize(
    "text", ["MoS2 and 2DMD", "A3 to A6", "`OMP_NUM_THREADS=1`", "research/results/run-2.json", "no number"]
)
def test_names_are_no_figures(text):
    assert typed_figures(f"LINES = [{text!r}]\n") == []


def test_keys_and_formats_are_no_figures():
    assert typed_figures("def f(row, x):\n    return row['10%'], f'{x:.4f}', f'{x:,} steps', 1e3\n") == []
