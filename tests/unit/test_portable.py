"""Nothing that one operating system alone has is imported when a module is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import PACKAGE, REPO

UNIX = {
    "crypt",
    "curses",
    "fcntl",
    "grp",
    "posix",
    "pty",
    "pwd",
    "readline",
    "resource",
    "spwd",
    "syslog",
    "termios",
    "tty",
}
WINDOWS = {"msvcrt", "nt", "winreg", "winsound"}


def imported_at_once(source: str) -> set[str]:
    """Return the modules that a module imports when it is imported itself, at any depth but that of functions."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found


def files() -> list[Path]:
    return sorted(
        [
            *PACKAGE.rglob("*.py"),
            *(p for name in ("tests", "research", "examples") for p in (REPO / name).rglob("*.py")),
        ]
    )


def test_no_module_imports_what_only_one_system_has():
    found = {path.name: imported_at_once(path.read_text(encoding="utf-8")) & (UNIX | WINDOWS) for path in files()}
    assert len(found) > 100
    assert {name: modules for name, modules in found.items() if modules} == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import fcntl", {"fcntl"}),
        (
            "class A:\n    try:\n        from resource import setrlimit\n    except ImportError:\n        pass",
            {"resource"},
        ),
        ("def f():\n    import pwd", set()),
    ],
)
def test_what_is_imported_at_once_is_found(source, expected):
    assert imported_at_once(source) == expected


def test_files_are_read_and_written_in_utf_8():
    """The default is another one on Windows."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in {"read_text", "write_text"}:
                given = len(node.args) > (node.func.attr == "write_text")
                assert given or any(word.arg == "encoding" for word in node.keywords), f"{path}:{node.lineno}"
