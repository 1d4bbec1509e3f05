"""What the site adds to docs/: pages from elsewhere in the repository, the API reference, and links that work on both.

A hook of MkDocs (mkdocs.yml). The pages under docs/ link to files of the repository as GitHub wants it; on the site, pages such as the
changelog are pages there too, pictures are copied, and scripts are shown on pages of their own. Run as
``python -m research.site.hooks SITE`` it checks a site that was built: every link within it must lead to a file, and to an
anchor that is there.
"""

from __future__ import annotations

import inspect
import posixpath
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import click
from mkdocs.structure.files import File, InclusionLevel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = "ase_definet"
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "examples/README.md": "examples.md",
    "research/README.md": "research.md",
    "research/recipes/README.md": "recipes.md",
}
"""Pages of the repository that are pages of the site; the README's place is taken by the site's own."""
COMMANDS = "<!-- commands -->"
"""Where docs/cli.md has the commands."""
PICTURES = {".png", ".svg", ".jpg"}
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".json": "json", ".yml": "yaml", ".cff": "yaml"}

_FENCE = re.compile(r"^(```.*?^```[ ]*$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_REPOSITORY_PAGES = {site: path for path, site in PAGES.items() if path != "README.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of the API reference in the navigation."""
    for section in config.nav or []:
        for items in section.values():
            for item in items:
                for title, path in item.items() if isinstance(item, dict) else ():
                    if path == "api/":
                        item[title] = ["api/index.md", *sorted(set(api_pages()) - {"api/index.md"})]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere, the API reference, and the files that pages link to."""
    for site, path in _REPOSITORY_PAGES.items():
        files.append(File.generated(config, site, content=(ROOT / path).read_text(encoding="utf-8")))
    for site, text in api_pages().items():
        files.append(File.generated(config, site, content=text))
    for path in sorted({path for page in files.documentation_pages() for path in _outside(page)}):
        site = site_path(path)
        if site in {file.src_uri for file in files}:
            continue
        source = ROOT / path
        if source.suffix in PICTURES:
            files.append(File.generated(config, site, abs_src_path=str(source)))
        else:
            shown = _shown(source, path)
            files.append(File.generated(config, site, content=shown, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Let links lead to where things are on the site."""
    text = markdown.replace(COMMANDS, cli_page()) if page.file.src_uri == "cli.md" else markdown
    return linked(text, page.file.src_uri)


def repository_path(site: str) -> str:
    """Return where a page of the site is in the repository."""
    return _REPOSITORY_PAGES.get(site, f"docs/{site}")


def site_path(path: str) -> str:
    """Return where a file of the repository is on the site."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    source = ROOT / path
    if source.suffix in PICTURES:
        return f"source/{path}"
    return f"source/{path.rstrip('/')}.md"


def linked(markdown: str, site: str) -> str:
    """Return a page with the links of the repository replaced by those of the site; code stays as it is."""
    parts = _FENCE.split(markdown)
    return "".join(
        text if text.startswith("```") else _LINK.sub(lambda m: _moved(m[1], site), text) for text in parts
    )


def _moved(link: str, site: str) -> str:
    path, mark, anchor = link.partition("#")
    if not path or urlsplit(link).scheme or site.startswith(("api/", "source/")):
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(site)), path))
    if not (ROOT / target).exists():
        return link  # MkDocs says that it leads nowhere
    return posixpath.relpath(site_path(target), posixpath.dirname(site) or ".") + mark + anchor


def _outside(page: File) -> set[str]:
    """Return the files of the repository outside of docs/ that a page links to."""
    if page.src_uri.startswith(("api/", "source/")):
        return set()
    base = posixpath.dirname(repository_path(page.src_uri))
    found = set()
    for text in _FENCE.split(page.content_string):
        for link in () if text.startswith("```") else _LINK.findall(text):
            path = link.partition("#")[0]
            if not path or urlsplit(link).scheme:
                continue
            target = posixpath.normpath(posixpath.join(base, path))
            if (ROOT / target).exists() and not target.startswith("docs/") and target not in PAGES:
                found.add(target)
    return found


def _shown(source: Path, path: str) -> str:
    """Return a page that shows a file, or lists a folder."""
    if source.is_dir():
        names = sorted(f"{one.name}/" if one.is_dir() else one.name for one in source.iterdir())
        listed = "\n".join(f"- `{name}`" for name in names if not name.startswith(("__", ".")))
        return f"# {path}\n\nA folder of the repository:\n\n{listed}\n"
    return f"# {path}\n\n````{LANGUAGES.get(source.suffix, 'text')}\n{source.read_text(encoding='utf-8')}\n````\n"


def api_pages() -> dict[str, str]:
    """Return a page for every sub-package, with all its modules, and one that lists what the package itself exports."""
    package = ROOT / PACKAGE
    rooms = sorted(path.parent.name for path in package.glob("*/__init__.py"))
    rooms.remove("cli")  # it has a reference of its own
    pages = {}
    rows = []
    for room in rooms:
        init = (package / room / "__init__.py").read_text(encoding="utf-8")
        summary = init.removeprefix('"""').partition('"""')[0].partition("\n")[0]
        rows.append(f"| [`{room}`]({room}.md) | {summary} |")
        modules = sorted(path.stem for path in (package / room).glob("*.py") if not path.stem.startswith("_"))
        shown = "\n\n".join(f"::: {PACKAGE}.{room}.{module}" for module in modules)
        pages[f"api/{room}.md"] = f"# {PACKAGE}.{room}\n\n{summary}\n\n{shown}\n"
    exported = "\n".join(f"- {_exported(name, home)}" for name, home in sorted(_homes().items()))
    table = "\n".join(["| sub-package | |", "| --- | --- |", *rows, "| [`errors`](errors.md) | Exceptions. |"])
    pages["api/errors.md"] = f"# {PACKAGE}.errors\n\n::: {PACKAGE}.errors\n"
    pages["api/index.md"] = (
        f"# Python API\n\n`from {PACKAGE} import ...` has what most scripts need:\n\n{exported}\n\nEverything else is in "
        f"the sub-packages, from low to high in [the architecture](../architecture.md):\n\n{table}\n"
    )
    return pages


def _homes() -> dict[str, str]:
    """Return the module of each name that the package exports, as its ``__init__`` imports them for type checkers."""
    text = (ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    found = re.findall(rf"^    from {PACKAGE}\.([\w.]+) import (.+)$", text, re.MULTILINE)
    return {name.strip(): module for module, names in found for name in names.split(",")}


def _exported(name: str, home: str) -> str:
    room = home.partition(".")[0]
    return f"[`{name}`]({room}.md#{PACKAGE}.{home}.{name})"


def cli_page() -> str:
    """Return all commands with their usage, help and options, as ``--help`` has them."""
    from ase_definet.cli import cli  # noqa: PLC0415 - only for this page

    return "\n\n".join(_commands(cli, "ase-definet", None))


def _commands(command: click.Command, name: str, above: click.Context | None) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=above)
    if above is not None:
        yield f"## {context.command_path}" if above.parent is None else f"### {context.command_path}"
        yield f"```console\n$ {context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```"
        for text in inspect.cleandoc(command.help or "").split("\n\n"):
            kept = text.startswith("\b")  # click leaves these lines as they are
            yield f"```text\n{text.removeprefix(chr(8)).strip()}\n```" if kept else text
        records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        if rows := [record for record in records if record is not None]:
            lines = [f"| `{names}` | {' '.join(text.split()).replace('|', chr(92) + '|')} |" for names, text in rows]
            yield "\n".join(["| argument or option | what it does |", "| --- | --- |", *lines])
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            yield from _commands(command.commands[below], below, context)


class _Links(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note them down."""
        for key, value in attrs:
            if not value:
                continue
            if key in {"id", "name"}:
                self.anchors.add(value)
            elif key in {"href", "src"}:
                self.links.add(value)
        del tag


def broken(site: Path) -> list[str]:
    """Return the links of a site that lead to no file or anchor in it, with the pages they are on."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = _Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    out = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute, for any depth
            continue
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            target = target.resolve() / "index.html" if target.is_dir() else target.resolve()
            if not target.exists():
                out.append(f"{path.relative_to(site)}: {link} leads to no file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                out.append(f"{path.relative_to(site)}: {link} leads to no anchor")
    return out


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    found = broken(folder)
    print(f"{folder}: {len(list(folder.rglob('*.html')))} pages, {len(found)} broken links")
    if found:
        raise SystemExit("\n".join(found))
