"""What limited the accuracy: memorisation, what helped against it and what did not."""

from typing import Any

from research.pages.markdown import host_name, length, listed, percent, span, table
from research.pages.stored import card, last_errors, result


def section() -> list[str]:
    """Return the section."""
    gap = result("generalization_gap")
    unlogged = result("unlogged")
    return [
        "## What limited the accuracy",
        "",
        *memorisation(gap),
        "### What helped",
        "",
        "Coordinate MAE (Å) of networks that differ in the change named, as far as they were comparable. Figures marked *recorded* come",
        "from runs whose logs were not kept (`research/results/unlogged.json`).",
        "",
        *changes(unlogged["helped"]),
        "Large vectors had to be normalised before they acted on their site; without that, eight layers diverged early in both runs",
        "that were tried.",
        "",
        "### What did not help",
        "",
        *changes(unlogged["no_gain"]),
        "Nor did fine-tuning on InSe alone, three shared refinement passes, or a shorter range of the messages.",
        "",
        *potentials(unlogged),
        *alike(),
    ]


def memorisation(gap: dict[str, Any]) -> list[str]:
    """Return errors on training and validation pairs."""
    excess = {name: row["val"] / row["train"] - 1 for name, row in sorted(gap["subsets"].items())}
    high = {name: share for name, share in excess.items() if name.startswith("high/")}
    low = [share for name, share in excess.items() if name not in high]
    least = min(high, key=lambda name: high[name])
    network = next(part for part in card()["routed"] if "P" in part["hosts"])
    shares = network["training"]["config"]["sampling_weights"]
    own = shares["high/P"] / sum(shares.values())
    rows = [
        [name, length(row["train"]), length(row["val"]), percent(excess[name], signed=True)]
        for name, row in sorted(gap["subsets"].items())
    ]
    return [
        f"`python -m research.experiments.generalization_gap 2dmd.pack`: {gap['pairs']} training and {gap['pairs']} validation pairs of each",
        "subset, coordinate MAE (Å).",
        "",
        *table(["subset", "training", "validation", "excess"], rows),
        f"At high density the networks had memorised part of their training pairs: validation errors were {span(high.values())} larger than",
        f"training errors, against {span(low)} at low density. The gap was smallest for {host_name(least)}, whose last run took",
        f"{percent(own)} of its steps on DFT pairs",
        "and the others on structures labelled by earlier networks. Noisy starts, dropout (both compared above) and such labels",
        "(`research/distill.py`) worked against memorisation.",
        "",
    ]


def changes(entries: list[dict[str, Any]]) -> list[str]:
    """Return the table of some changes, with and without."""
    rows = []
    for entry in entries:
        pairs = [errors(entry[which]) for which in ("with", "without")]
        cells = [", ".join(f"{host_name(name)} {length(value)}" for name, value in pair.items()) for pair in pairs]
        rows.append([entry["change"], entry["setting"], *cells, entry["source"]])
    return table(["change", "setting", "with", "without", "source"], rows)


def errors(given: dict[str, Any]) -> dict[str, float]:
    """Return errors by host; those given as ``log NAME`` are the last ones of a training log."""
    found = {}
    for name, value in given.items():
        logged = isinstance(value, str)
        found[name] = last_errors(value.removeprefix("log "))[name.removeprefix("black ")] if logged else value
    return found


def potentials(unlogged: dict[str, Any]) -> list[str]:
    """Return how far universal potentials ended from DFT."""
    table_of, forces = unlogged["potentials"], unlogged["forces"]
    cosines = []
    for name, row in forces.items():
        if name != "source":
            where = [f"{value}" + ("" if host == "all" else f" ({host_name(host)})") for host, value in row.items()]
            cosines.append(f"{listed(where)} for {name}")
    return [
        "Universal potentials were no source of further training pairs. Relaxed at fixed cell from the host's sites, with the lattice",
        "constants fitted to the potential first, validation structures ended this far from DFT (MAE, Å):",
        "",
        *table(
            ["", *(host_name(host) for host in table_of["hosts"])],
            [[row["potential"], *(f"{value:.3f}" for value in row["mae"])] for row in table_of["rows"]],
        ),
        f"Their forces were no guide either: the mean cosine with the displacement left to DFT was {listed(cosines)}.",
        "",
    ]


def alike() -> list[str]:
    """Return how alike the errors of separately trained networks were."""
    subsets = result("data_limits")["subsets"]
    high = [row["density"]["correlation"] for name, row in subsets.items() if name.startswith("high/")]
    return [
        "Separately trained networks were wrong alike. At high density the errors of each host's network and of the general network",
        f"correlated by {min(high):.2f} to {max(high):.2f} (below), so little of the squared error was a matter of seeds, and the mean of several networks",
        "gained little.",
        "",
    ]
