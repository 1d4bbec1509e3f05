"""Run the tutorials and write their pages, with what they print.

Run as ``python -m research.site.tutorials [--check] [NAME...]``. A tutorial is a script under examples/tutorials in the percent
format of Jupytext and many editors: cells of prose (``# %% [markdown]``) and of code (``# %%``); ``# %% hide`` is run and not shown.
``--check`` runs them too and compares: the text must be that of the page, and numbers may differ as they do between machines.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from research.paths import DOCS, ROOT

SCRIPTS = ROOT / "examples" / "tutorials"
PAGES = DOCS / "tutorials"
MARK = "\x1e"
"""Printed between cells."""
RELATIVE, ABSOLUTE = 0.3, 0.02
"""How far a number with a decimal point may be from that of the page: networks trained elsewhere differ."""
ORDER = ("one_defect", "screen", "train", "charged", "distrust")

_MARKER = re.compile(r"^# %%(.*)$", re.MULTILINE)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w.]*\w)")
_VARIES = re.compile(
    r"[0-9a-f]{12,}|(?<=atom )\d+|\d+(?:\.\d+)? (?:s|structures/s)\b|(?:/\w[\w.-]*)*/tmp[\w./-]*|\d{4}-\d\d-\d\d"
)
"""Digests, which of several equal atoms is the first, times, temporary folders and dates."""
_LANGUAGES = {".sh": "bash", ".py": "python"}


@dataclass(frozen=True)
class Cell:
    """A part of a script: ``markdown``, ``code`` or ``hide``."""

    kind: str
    text: str


def scripts() -> list[Path]:
    """Return the tutorials in the order of the site."""
    found = {path.stem: path for path in SCRIPTS.glob("*.*") if path.suffix in _LANGUAGES}
    assert set(found) == set(ORDER), f"{SCRIPTS} holds {sorted(found)}"
    return [found[name] for name in ORDER]


def cells(script: Path) -> list[Cell]:
    """Return the cells of a script; what stands before the first one is not part of the tutorial."""
    _, *parts = _MARKER.split(script.read_text(encoding="utf-8"))
    out = []
    for marker, text in zip(parts[::2], parts[1::2], strict=True):
        kind = {"": "code", "[markdown]": "markdown", "hide": "hide"}[marker.strip()]
        if kind == "markdown":
            lines = (line.removeprefix("#").removeprefix(" ") for line in text.strip().splitlines())
            out.append(Cell(kind, "\n".join(lines)))
        else:
            out.append(Cell(kind, text.strip("\n")))
    return out


def outputs(script: Path, parts: list[Cell]) -> Iterator[str]:
    """Run a script and return what each of its cells of code prints, errors included."""
    program = [one.text for one in parts if one.kind != "markdown"]
    shown = [one.kind == "code" for one in parts if one.kind != "markdown"]
    if script.suffix == ".sh":
        line = ["bash", "-c", f"printf '{MARK}'\n".join(f"{text}\n" for text in program), str(script)]
    else:
        joined = f"\nprint({MARK!r}, end='', flush=True)\n".join(program)
        names = f"{{'__file__': {str(script)!r}, '__name__': '__main__'}}"
        line = [sys.executable, "-c", f"exec(compile({joined!r}, {str(script)!r}, 'exec'), {names})"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "COLUMNS": "100", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False
    )
    if done.returncode:
        raise SystemExit(f"{script}: exit code {done.returncode}\n{done.stdout}")
    printed = done.stdout.split(MARK)
    return (text.strip("\n") for text, show in zip(printed, shown, strict=True) if show)


def page(script: Path, parts: list[Cell], printed: Iterator[str]) -> str:
    """Return the page of a tutorial."""
    path = script.relative_to(ROOT).as_posix()
    language = _LANGUAGES[script.suffix]
    title, _, first = next(one.text for one in parts if one.kind == "markdown").partition("\n")
    out = [
        f"{title}\n",
        f"*Run it yourself: [{path}](../../{path}). The outputs are those of its last run.*\n",
        f"{first.strip()}\n",
    ]
    for one in parts[next(k for k, part in enumerate(parts) if part.kind == "markdown") + 1 :]:
        if one.kind == "markdown":
            out.append(f"{one.text}\n")
        elif one.kind == "code":
            out.append(f"```{language}\n{one.text}\n```\n")
            if text := next(printed):
                out.append(f"```text\n{text}\n```\n")
    return "\n".join(out)


def differences(found: str, expected: str) -> list[str]:
    """Return the lines of a page that differ by more than machines do."""
    ours, theirs = ([_VARIES.sub("", line) for line in _without_times(text)] for text in (found, expected))
    if len(ours) != len(theirs):
        return [f"{len(ours)} lines, the page has {len(theirs)}"]
    return [f"{b!r}, the page has {a!r}" for b, a in zip(ours, theirs, strict=True) if not _same(b, a)]


def _without_times(text: str) -> list[str]:
    """Return the lines of a page, without the last column of tables whose title says that it holds milliseconds."""
    lines, times = [], False
    for line in text.splitlines():
        times = line.endswith(" ms") or (times and bool(line.strip()))
        lines.append(line.rpartition(" ")[0] if times else line)
    return lines


def _same(found: str, expected: str) -> bool:
    if [" ".join(text.split()) for text in _NUMBER.split(found)] != [
        " ".join(text.split()) for text in _NUMBER.split(expected)
    ]:
        return False
    for ours, theirs in zip(_NUMBER.findall(found), _NUMBER.findall(expected), strict=True):
        allowed = ABSOLUTE + RELATIVE * abs(float(theirs)) if "." in theirs else 0
        if abs(float(ours) - float(theirs)) > allowed:
            return False
    return True


def main() -> None:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ORDER)}; all by default")
    parser.add_argument("--check", action="store_true", help="compare with the pages instead of writing them")
    arguments = parser.parse_args()
    wrong = []
    for script in scripts():
        if arguments.names and script.stem not in arguments.names:
            continue
        parts = cells(script)
        text = page(script, parts, outputs(script, parts))
        target = PAGES / f"{script.stem}.md"
        if not arguments.check:
            target.write_text(text, encoding="utf-8")
            print(f"wrote {target.relative_to(ROOT)}")
            continue
        found = differences(text, target.read_text(encoding="utf-8"))
        wrong += [f"{target.relative_to(ROOT)}: {line}" for line in found]
        print(f"{target.relative_to(ROOT)}: {'differs' if found else 'as printed now'}")
    if wrong:
        shown = "\n".join(wrong)
        raise SystemExit(f"{shown}\n`python -m research.site.tutorials` writes the pages anew; look at what changed.")


if __name__ == "__main__":
    main()
