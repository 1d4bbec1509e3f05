"""What the site adds to docs/, where MkDocs is installed (`pip install '.[docs]'`)."""

from __future__ import annotations

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("griffe")

import griffe

from ase_definet.cli import cli
from research.site import hooks as site
from research.site.docstrings import Roles


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("training.md", "../research/recipes/README.md", "recipes.md"),
        ("tutorials/train.md", "../training.md#data", "../training.md#data"),
        ("tutorials/train.md", "../../examples/tutorials/train.sh", "../source/examples/tutorials/train.sh.md"),
        ("results.md", "../research/results/plots/parity.png", "source/research/results/plots/parity.png"),
        ("results.md", "../research/results", "source/research/results.md"),
        ("contributing.md", "docs/guides/add-a-host.md", "guides/add-a-host.md"),
        ("changelog.md", "https://keepachangelog.com", "https://keepachangelog.com"),
        ("index.md", "nowhere.md", "nowhere.md"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(page, link, expected):
    assert site.linked(f"[text]({link})", page) == f"[text]({expected})"
    fenced = f"```bash\n[text]({link})\n```"
    assert site.linked(fenced, page) == fenced


def test_the_reference_names_every_command_and_option():
    text = site.cli_page()
    for name, command in cli.commands.items():
        assert f"## ase-definet {name}\n" in text
        for parameter in command.params:
            assert all(option in text for option in parameter.opts if option.startswith("--"))
    assert "\b" not in text


def test_every_module_is_in_the_api_reference():
    pages = site.api_pages()
    text = "\n".join(pages.values())
    package = site.ROOT / site.PACKAGE
    for path in package.rglob("*.py"):
        if path.parent not in {package, package / "cli"} and path.name != "__init__.py":
            assert f"::: {site.PACKAGE}.{path.parent.name}.{path.stem}\n" in text
    assert "[`DefiNetRelaxer`](relaxation.md#ase_definet.relaxation.relaxer.DefiNetRelaxer)" in pages["api/index.md"]


def test_roles_become_links_where_they_lead_somewhere():
    source = '''"""See :func:`f`, :class:`~pkg.C`, :data:`MISSING` and ``code``::

    block

>>> f()
1
"""

def f():
    """Do; :meth:`C.g`."""

class C:
    """It."""

    def g(self):
        """Do."""
'''
    with griffe.temporary_visited_module(source, module_name="pkg") as module:
        Roles().on_package(pkg=module)
    assert module.docstring.value.startswith("See [`f`][pkg.f], [`C`][pkg.C], `MISSING` and `code`:\n")
    assert module.docstring.value.endswith("```pycon\n>>> f()\n1\n```")
    assert module["f"].docstring.value == "Do; [`C.g`][pkg.C.g]."


def test_broken_links_of_a_site_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">1</a> <a href="#here">2</a> <h1 id="here">x</h1>')
    (tmp_path / "b.html").write_text('<h1 id="there">x</h1> <img src="no.png"> <a href="a.html#there">3</a>')
    assert site.broken(tmp_path) == ["b.html: a.html#there leads to no anchor", "b.html: no.png leads to no file"]
