"""Short runs at equal budget that differ in one thing."""

from typing import Any

from research.pages.markdown import NAMES, host_name, length, percent, span, table
from research.pages.stored import card, result, results

HIGH = ("MoS2", "WSe2", "BN", "GaSe", "InSe", "P")
Runs = dict[str, dict[str, Any]]


def section() -> list[str]:
    """Return the section."""
    done = {content["name"]: content for content in results("comparisons").values()}
    some = next(iter(done.values()))
    return [
        "## Comparisons at equal budget",
        "",
        f"`python -m research.experiments.comparisons 2dmd.pack`, batches of {some['config']['batch_size']}; coordinate MAE of all atoms on",
        "the validation pairs. These were short runs of a small network, one seed each. They ranked ideas and say nothing about the",
        f"bundled weights. Two seeds of one run differed by {span(seeds())} (below), so differences of that size are not significant.",
        "",
        *ablations(done),
        *one_or_many(done),
        *black_phosphorus(done),
        *fine_tuning(done),
        *transfer(done),
    ]


def seeds() -> list[float]:
    """Return by how much two seeds of the same run differed, as shares."""
    pairs = [
        (row["runs"]["all"]["mae"], row["runs"]["all, other seed"]["mae"])
        for row in results("error_vs_pairs").values()
    ]
    return [abs(one - two) / min(one, two) for one, two in pairs]


def of_kind(done: Runs, kind: str) -> Runs:
    """Return the runs of one kind by what comes after it."""
    return {name.removeprefix(f"{kind}: "): run for name, run in done.items() if name.startswith(f"{kind}: ")}


def high_row(scores: dict[str, dict[str, float]]) -> list[str]:
    """Return the errors on the high-density subsets and their average as cells."""
    values = [scores[f"high/{host}"]["mae"] for host in HIGH]
    return [length(value) for value in [*values, sum(values) / len(values)]]


def high_table(rows: list[tuple[str, dict[str, dict[str, float]]]]) -> list[str]:
    """Return a table of errors on the high-density subsets."""
    head = ["", *(host_name(host) for host in HIGH), "average"]
    return table(head, [[name, *high_row(scores)] for name, scores in rows])


def steps_of(run: dict[str, Any]) -> str:
    """Return the number of steps of a run."""
    return f"{run['config']['steps']:,}"


def ablations(done: Runs) -> list[str]:
    """Return what leaving out a part cost, and what fewer pairs cost."""
    lines = []
    for title, kind in (("Ablations", "ablation"), ("Data efficiency", "data")):
        runs = sorted(of_kind(done, kind).items(), key=lambda pair: order(pair[0]))
        lines += [f"### {title} ({steps_of(runs[0][1])} steps)", ""]
        lines += high_table([(name.replace("%", " %"), run["validation"]) for name, run in runs])
    return lines


def order(name: str) -> tuple[float, str]:
    """Return where a run stands in its table: ``all`` first, shares by size, the rest by name."""
    return (float(name.rstrip("%")) if name.endswith("%") else float(name != "all"), name)


def one_or_many(done: Runs) -> list[str]:
    """Return whether one network should serve all hosts."""
    alone = of_kind(done, "alone")
    together = of_kind(done, "ablation")["all"]
    steps, whole = next(iter(alone.values()))["config"]["steps"], together["config"]["steps"]
    return [
        "### One network for all hosts, or one for each",
        "",
        f"{steps} steps for each host alone; {whole} for all {len(HIGH)} together, which is {whole // len(HIGH)} on each.",
        "",
        *high_table(
            [
                ("together", together["validation"]),
                ("one for each", {name: run["validation"][name] for name, run in alone.items()}),
            ]
        ),
    ]


def black_phosphorus(done: Runs) -> list[str]:
    """Return the tables of runs on black phosphorus alone."""
    optimizer, memorisation = of_kind(done, "optimizer"), of_kind(done, "memorisation")
    some = next(iter(optimizer.values()))["config"]
    lines = [
        f"### Optimiser, loss and depth ({some['steps']} steps)",
        "",
        f"Black phosphorus alone, {percent(some['noisy_start_fraction'])} of the structures with noisy starts. Muon orthogonalises the steps of the matrices",
        "between channels. The component loss is what the coordinate MAE scores; the others used the length of each atom's error.",
        "",
        *black_phosphorus_table(optimizer),
    ]
    some = next(iter(memorisation.values()))["config"]
    pairs = card_pairs()
    return [
        *lines,
        f"### Memorisation ({some['steps']:,} steps)",
        "",
        f"Black phosphorus alone; each of its {pairs} pairs was seen {some['steps'] * some['batch_size'] / pairs:.0f} times. With a noisy start, the atoms begin between",
        "the host's sites and their relaxed positions, with noise added.",
        "",
        *black_phosphorus_table(memorisation),
    ]


def black_phosphorus_table(runs: Runs) -> list[str]:
    """Return errors on black phosphorus by run."""
    rows = [(name, run["validation"]["high/P"]) for name, run in sorted(runs.items())]
    return table(["", NAMES["P"], "A3"], [[name, length(row["mae"]), length(row["a3"])] for name, row in rows])


def card_pairs() -> int:
    """Return the number of training pairs of black phosphorus."""
    network = next(part for part in card()["routed"] if "P" in part["hosts"])
    return int(network["training"]["hosts"]["P"]["training_pairs"])


def fine_tuning(done: Runs) -> list[str]:
    """Return fine-tuning and training from scratch by number of pairs."""
    scratch, tuned = of_kind(done, "scratch"), of_kind(done, "fine-tuned")
    names = sorted(scratch, key=lambda name: int(name.split()[0]))
    some = scratch[names[0]]
    better = [name.split()[0] for name in names if mae(tuned[name]) < mae(scratch[name])]
    return [
        "### Fine-tuning on a new host",
        "",
        "InSe by number of its pairs: from scratch, and from a network trained on the five other hosts,",
        f"{some['config']['steps']} steps each; ideal sites have {length(some['validation']['high/InSe']['ideal_sites'])}. Fine-tuning won with",
        f"{', '.join(better)} pairs only: the network",
        f"it started from was far from converged, and its learning rate was {percent(tuned[names[0]]['config']['learning_rate'] / some['config']['learning_rate'])} of that from scratch.",
        "",
        *table(
            ["pairs", "from scratch", "fine-tuned"],
            [[name.split()[0], length(mae(scratch[name])), length(mae(tuned[name]))] for name in names],
        ),
    ]


def mae(run: dict[str, Any]) -> float:
    """Return the error of a run on InSe."""
    return float(run["validation"]["high/InSe"]["mae"])


def transfer(done: Runs) -> list[str]:
    """Return how a network does at a density it was not trained on."""
    runs = of_kind(done, "transfer")
    names = [f"{density}/{host}" for density in ("high", "low") for host in ("MoS2", "WSe2")]
    scores = result("default-val")["subsets"]
    rows = [["nothing (ideal sites)", *(length(scores[name]["ideal_sites"]["coordinate_mae"]) for name in names)]]
    rows += [
        [f"{name.split()[0]} density", *(length(run["validation"][key]["mae"]) for key in names)]
        for name, run in runs.items()
    ]
    return ["### Transfer between densities", "", *table(["trained on", *names], rows)]
