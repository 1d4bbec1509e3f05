"""Every command, and every option of one, that a page or a message names is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ase_definet.cli import cli
from tests.conftest import PACKAGE, REPO

_SAID = re.compile(r"(?:: |'|[$] )ase-definet (?P<name>[a-z][a-z-]*)")
"""How a message or a script names a command, where no backticks are."""
_RETIRED = re.compile(
    r"ase-definet (?:validate|models|import-checkpoint|upgrade-weights|export|combine|count)\b(?!-)"
)
_CODE = re.compile(r"```(?:bash|console)\n(?P<block>.*?)```|(?<!`)``?(?P<span>ase-definet [^`]+?)``?(?!`)", re.DOTALL)
_COMMANDS = {
    "relax",
    "match",
    "inputs",
    "vasp",
    "hosts",
    "calculators",
    "properties",
    "variants",
    "weights",
    "enumerate",
    "screen",
    "report",
    "plot",
    "evaluate",
    "compare-steps",
    "count-steps",
    "collect",
    "data",
    "train",
}


def _name(page: Path) -> str:
    return page.relative_to(PACKAGE.parent if page.is_relative_to(PACKAGE) else REPO).as_posix()


def _pages() -> list[Path]:
    pages = [REPO / "README.md", REPO / ".ci" / "run"]
    for folder, patterns in {
        "docs": ("*.md", "*.py", "*.sh"),
        "research": ("*.md", "*.py", "*.sh"),
        "examples": ("*.md", "*.sh", "*.py"),
        "": ("CONTRIBUTING.md",),
    }.items():
        found = (REPO / folder).rglob if folder else (REPO / folder).glob
        pages += [page for pattern in patterns for page in sorted(found(pattern))]
    pages += [page for pattern in ("*.py", "*.html") for page in sorted(PACKAGE.rglob(pattern))]
    return [page for page in pages if page.exists()]


def _lines(page: Path) -> Iterator[str]:
    """Yield the command lines that a page shows, each from ``ase-definet`` on."""
    text = page.read_text(encoding="utf-8")
    if page.suffix in {".sh", ""}:
        blocks = [text]
    else:
        blocks = [found["block"] or found["span"] for found in _CODE.finditer(text)]
    for block in blocks:
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for part in re.split(r"[|;&]|#", line):
                if "ase-definet " in part:
                    yield part[part.index("ase-definet ") :]


def _resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that some words call, and what follows its name."""
    found: click.Command = cli
    while isinstance(found, click.Group):
        if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
            return found, words
        name, *words = words
        assert name in found.commands, f"no command {name!r} in {sorted(found.commands)}"
        found = found.commands[name]
    return found, words


@pytest.mark.parametrize("page", _pages(), ids=_name)
def test_commands_that_are_named_exist(page):
    for line in _lines(page):
        command, rest = _resolve(re.sub(r"\$\{[^}]*\}|[\[\]()'\"`:,]", " ", line).split()[1:])
        known = {option for param in command.params for option in param.opts} | {"--help", "-h", "--version"}
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", " ".join(rest)):
            assert option in known, f"{line}: {command.name} has no {option}"


def test_pages_name_commands():
    """The search above finds what it is meant to find."""
    named = {words[1] for page in _pages() for line in _lines(page) if len(words := line.split()) > 1}
    assert named >= _COMMANDS


@pytest.mark.parametrize("page", _pages(), ids=_name)
def test_messages_name_commands_that_exist(page):
    text = page.read_text(encoding="utf-8")
    assert {found["name"] for found in _SAID.finditer(text)} <= set(cli.commands)
    assert not _RETIRED.findall(text)


def test_one_file_per_command():
    assert set(cli.commands) == _COMMANDS
    for name, command in cli.commands.items():
        callback = command.callback
        assert callback is not None
        module = (callback.__wrapped__ if hasattr(callback, "__wrapped__") else callback).__module__
        assert module == f"ase_definet.cli.{name.replace('-', '_')}"
