"""Numbers and tables as the generated pages show them."""

import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby

NAMES = {"BN": "h-BN", "P": "black P"}
"""Of hosts, where it is not that of the library."""

WIDTH = 118
"""Of lines of prose, in characters."""

ITEM = "- "
"""How an item of a list begins."""


def host_name(name: str) -> str:
    """Return what the pages call a host, or a subset by its host: ``high/BN`` is ``h-BN``."""
    host = name.rpartition("/")[2]
    return NAMES.get(host, host)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, and an empty one."""
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def length(value: float | None) -> str:
    """Return a length in Å to four decimals; nothing for None."""
    return "" if value is None else f"{value:.4f}"


def percent(value: float | None, *, signed: bool = False) -> str:
    """Return a share in whole percent; nothing for None."""
    if value is None:
        return ""
    return f"{value:{'+' if signed else ''}.0%}".replace("%", " %")


def span(values: Iterable[float], *, signed: bool = False) -> str:
    """Return the least and the largest of some shares in percent, or one of them where they look the same."""
    shares = list(values)
    low, high = (percent(share, signed=signed) for share in (min(shares), max(shares)))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def listed(words: Sequence[str]) -> str:
    """Return words as an enumeration: ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def without_name(reason: str) -> str:
    """Return why a calculator cannot be made, without the words that name it first."""
    return reason.partition(" cannot be made: ")[2] or reason


def reflowed(lines: Iterable[str]) -> str:
    """Return a page: prose and items of lists in lines of one width; headings, tables, pictures and blocks of code as they are."""
    out: list[str] = []
    fences = items = 0

    def kind(line: str) -> tuple[bool, int]:
        """Return whether a line is prose, and which item of a list it belongs to."""
        nonlocal fences, items
        fence = line.startswith("```")
        fences += fence
        items += line.startswith(ITEM)
        return bool(line) and line[0] not in "#|!" and not fence and fences % 2 == 0, items

    for (prose, _), group in groupby(lines, key=kind):
        text = list(group)
        whole = " ".join(text)
        indent = " " * len(ITEM) if whole.startswith(ITEM) else ""
        wrapped = textwrap.wrap(
            whole, WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent
        )
        out += wrapped if prose else text
    return "\n".join(out).rstrip() + "\n"
