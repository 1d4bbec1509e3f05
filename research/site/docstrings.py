"""Docstrings as mkdocstrings wants them: roles of Sphinx become links, literal blocks become code.

An extension of Griffe (mkdocs.yml). The docstrings use the roles that editors and Sphinx know, such as
``:class:`~ase_definet.matching.host.Host```; in Markdown they would stand as they are.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from griffe import Alias, Extension, Module, NameResolutionError, Object

_ROLE = re.compile(r":(?:class|func|data|meth|attr|mod|exc):`(~?)([\w.]+)`")
_LITERAL = re.compile(r"``([^`]+)``")
_BLOCK = re.compile(r"::$", re.MULTILINE)
_EXAMPLE = re.compile(r"^(>>> .*?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
"""Not under the heading Examples, where Griffe finds it itself: that one is indented."""


class Roles(Extension):
    """Rewrites the docstrings of a package once it is loaded."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Rewrite all docstrings."""
        del kwargs
        _rewrite(pkg, pkg)


def _rewrite(obj: Object | Alias, package: Module) -> None:
    if obj.docstring is not None:
        text = _ROLE.sub(lambda match: _reference(match, obj, package), obj.docstring.value)
        text = _BLOCK.sub(":", _LITERAL.sub(r"`\1`", text))
        obj.docstring.value = _EXAMPLE.sub(r"```pycon\n\1\n```", text)
    for member in obj.members.values():
        if not member.is_alias:
            _rewrite(member, package)


def _reference(match: re.Match[str], obj: Object | Alias, package: Module) -> str:
    short, name = match[1], match[2]
    shown = name.rpartition(".")[2] if short else name
    for path in _candidates(name, obj, package):
        parts = path.removeprefix(f"{package.path}.").split(".")
        try:
            found = package[parts]
        except (KeyError, ValueError):
            continue
        if found.has_docstring and not any(part.startswith("_") for part in parts):  # the others are not shown
            return f"[`{shown}`][{found.canonical_path}]"
    return f"`{shown}`"


def _candidates(name: str, obj: Object | Alias, package: Module) -> list[str]:
    """Return what a name can mean: a whole path, or one in the object, its class or its module, or imported there."""
    if name.startswith(f"{package.path}."):
        return [name]
    out = [f"{obj.path}.{name}"]
    if obj.parent is not None:
        out.append(f"{obj.parent.path}.{name}")
    out.append(f"{obj.module.path}.{name}")
    first, dot, rest = name.partition(".")
    with suppress(NameResolutionError):
        out.append(obj.resolve(first) + dot + rest)
    return out
