"""How the error falls with the number of pairs, and how alike networks are that share none of them."""

import math
from typing import Any, NamedTuple

from research.pages.markdown import host_name, length, percent, span, table
from research.pages.stored import result, results

TARGET = 0.03
"""Of the average over the high-density subsets, in Å: what this project set out to reach."""


class Scaling(NamedTuple):
    """What follows from the runs on one host.

    Attributes:
        whole: Error with all pairs, mean of two seeds, in Å.
        power: Of the number of pairs with which the error falls.
        shared: Error that networks without a common pair have in common, in Å.
        seeds: Share by which two seeds differ.
        chance: Share of the squared error that another seed changes.
    """

    whole: float
    power: float
    shared: float
    seeds: float
    chance: float


def scaling(content: dict[str, Any]) -> Scaling:
    """Return what follows from the runs on one host."""
    runs = content["runs"]
    one, two = runs["all"]["mae"], runs["all, other seed"]["mae"]
    whole = (one + two) / 2
    power = math.log(runs["quarter"]["mae"] / whole) / math.log(runs["all"]["pairs"] / runs["quarter"]["pairs"])
    halves = (runs["half"]["mae"] + runs["other half"]["mae"]) / 2
    shared = halves * math.sqrt(content["correlation, no pair shared"])
    return Scaling(whole, power, shared, abs(one - two) / min(one, two), 1 - content["correlation, all pairs shared"])


def section() -> list[str]:
    """Return the section."""
    several = results("error_vs_pairs")
    subsets = result("default-val")["subsets"]
    high = [row["coordinate_mae"] for name, row in subsets.items() if name.startswith("high/")]
    average = sum(high) / len(high)
    wanted = TARGET / average
    found = {name: scaling(content) for name, content in several.items()}
    some = next(iter(several.values()))
    worst = max(found, key=lambda name: found[name].seeds)
    head = ["", *some["runs"], "correlation: no pair shared", "all shared", "power", "times as many", "shared error"]
    return [
        "### What further pairs would have bought",
        "",
        f"`python -m research.experiments.error_vs_pairs 2dmd.pack SUBSET`: networks for one host, from scratch, {some['steps']:,} steps each.",
        "Validation MAE (Å) by number of training pairs (in brackets): two halves that share no pair, and all pairs with two seeds.",
        "*Correlation*: of the errors of the two halves' networks, and of the two seeds'. *Power*: of the number of pairs with which the",
        f"error fell from a quarter of them to all. *Times as many*: pairs that an error smaller by {percent(1 - wanted)} would take at that power, which",
        f"separates the average over the hosts ({length(average)} Å) from the target of {TARGET:.3f} Å. *Shared error*: that of the halves times the root",
        "of their correlation.",
        "",
        *table(head, [cells(content, found[name], wanted) for name, content in several.items()]),
        "Errors that networks have in common without a common training pair cannot come from those pairs, and more pairs of the same kind",
        f"would have left them. That shared error was {span(1 - row.shared / row.whole for row in found.values())} below the error with all pairs. Another seed changed",
        f"{span(row.chance for row in found.values())} of the",
        f"squared error, and the MAE of two seeds differed by up to {percent(found[worst].seeds)} ({host_name(worst)}). The rest was decided in DFT by chance or by",
        "the starting geometry, or needs another kind of network.",
        "",
    ]


def cells(content: dict[str, Any], found: Scaling, wanted: float) -> list[str]:
    """Return a row of the table."""
    return [
        content["subset"],
        *(f"{length(row['mae'])} ({row['pairs']})" for row in content["runs"].values()),
        *(f"{content[f'correlation, {which} shared']:.2f}" for which in ("no pair", "all pairs")),
        f"{found.power:.2f}",
        f"{wanted ** (-1 / found.power):.1f}",
        length(found.shared),
    ]
