"""Write docs/comparison.md: what else could relax these defects, on the same structures, and what others have published.

Run as ``python -m research.pages.comparison`` after ``research.experiments.comparison`` or after new weights; a test compares
the page with the files that it is made from.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from research.pages.markdown import host_name, length, listed, percent, reflowed, span, table, without_name
from research.pages.stored import result, results
from research.paths import DOCS

PAGE = DOCS / "comparison.md"
HIGH = ("MoS2", "WSe2", "BN", "GaSe", "InSe", "P")
NAMES = {
    "ideal_sites": "not moving (ideal sites)",
    "superposition": "sum of single-defect fields",
    "chgnet": "CHGNet",
    "sevennet": "SevenNet-0",
    "network": "**ase-definet**",
}
POTENTIALS = ("chgnet", "sevennet")
SECONDS = "seconds"
MILLI = 1e3

Rows = dict[str, dict[str, Any]]


def page() -> str:
    """Return the whole page."""
    found = results("comparison")
    return reflowed(
        [
            *head(found),
            *same_structures(found),
            *care(found),
            *published_network(),
            *published_potentials(found),
            *sample(found),
        ]
    )


def common(found: Mapping[str, Any]) -> list[str]:
    """Return the structures that every method was run on, as many of each subset, in the order in which they were measured."""
    tables = [set(found[name]["rows"]) for name in NAMES]
    by_subset: dict[str, list[str]] = {}
    for name, row in found["network"]["rows"].items():
        by_subset.setdefault(row["subset"], [])
        if all(name in rows for rows in tables):
            by_subset[row["subset"]].append(name)
    least = min(len(names) for names in by_subset.values())
    return [name for names in by_subset.values() for name in names[:least]]


def rows_of(found: Mapping[str, Any], method: str) -> Rows:
    """Return the rows of a method for the structures in common."""
    return {name: found[method]["rows"][name] for name in common(found)}


def subsets(found: Mapping[str, Any]) -> list[str]:
    """Return the subsets of the structures in common: high density first."""
    return sorted({row["subset"] for row in rows_of(found, "network").values()})


def title(subset: str) -> str:
    """Return what a table calls a subset."""
    density = subset.partition("/")[0]
    return f"{host_name(subset)}, {density} density"


def head(found: Mapping[str, Any]) -> list[str]:
    """Return the introduction."""
    packages = listed([f"{NAMES[name]} ({found[name]['package']})" for name in (*POTENTIALS, "network")])
    some = found[POTENTIALS[0]]
    lines = [
        "# Comparison",
        "",
        "What else could relax these defects, and how close does it come to DFT? The first part was measured here, on the same",
        "structures and the same machine; the second quotes what others have published, with what can and what cannot be compared.",
        "",
        f"`{found['network']['command']} 2dmd.pack` measured {packages}. The structures are a fixed sample of the validation split of",
        "2DMD, listed at the end. The error is the coordinate MAE: the mean absolute error of the Cartesian components of all",
        "atoms against DFT (PBE), in Å; *near* counts the atoms close to a defect only, as the published metric A3 does.",
        f"Potentials relax from the host's sites at fixed cell with {some['optimizer']} until the largest force is below {some['fmax']:g} eV/Å,",
        f"in at most {some['max_steps']} force evaluations.",
        "",
    ]
    for entry in (entry for name, entry in found.items() if name not in NAMES):
        lines += [f"Not measured: `{entry['method']}` ({entry['package']}), {without_name(entry['reason'])}.", ""]
    return lines


def errors(found: Mapping[str, Any], key: str) -> list[str]:
    """Return the table of errors by subset and method."""
    values = {
        method: [
            mean(row[key] for row in rows_of(found, method).values() if row["subset"] == name)
            for name in subsets(found)
        ]
        for method in NAMES
    }
    for errors_of in values.values():
        errors_of.append(mean(errors_of))
    lines = []
    for title_of_row, *row in zip([*map(title, subsets(found)), "average"], *values.values(), strict=True):
        least = min(row)
        lines.append([title_of_row, *(f"**{length(v)}**" if v == least else length(v) for v in row)])
    return table(["", *(label.strip("*") for label in NAMES.values())], lines)


def cost(found: Mapping[str, Any]) -> list[str]:
    """Return the table of seconds, steps and how often a method beats not moving."""
    out = []
    still = rows_of(found, "ideal_sites")
    for method, label in NAMES.items():
        rows = rows_of(found, method)
        if method == "ideal_sites":
            continue
        seconds = [row[SECONDS] for row in rows.values()]
        better = mean(row["coordinate_mae"] < still[name]["coordinate_mae"] for name, row in rows.items())
        steps = [row["steps"] for row in rows.values() if "steps" in row]
        ended = [row["converged"] for row in rows.values() if "converged" in row]
        out.append(
            [
                label,
                duration(median(seconds)),
                duration(max(seconds)),
                f"{median(steps):.0f}" if steps else "none",
                percent(mean(ended)) if ended else "",
                percent(better),
            ]
        )
    heads = ["", "time, median", "longest", "force evaluations, median", "converged", "closer to DFT than not moving"]
    return table(heads, out)


def duration(seconds: float) -> str:
    """Return a time in seconds or, where that is short, in milliseconds."""
    if seconds >= 1:
        return f"{seconds:.0f} s"
    return f"{seconds * MILLI:.0f} ms" if seconds * MILLI >= 1 else f"{seconds * MILLI:.1f} ms"


def same_structures(found: Mapping[str, Any]) -> list[str]:
    """Return what was measured on the structures in common."""
    ids = common(found)
    per = len(ids) / len(subsets(found))
    loads = [row["load"] for method in NAMES for row in rows_of(found, method).values()]
    fit = [row["fit_seconds"] for row in rows_of(found, "superposition").values()]
    return [
        "## On the same structures",
        "",
        f"{len(ids)} structures, {per:.0f} of each subset. Coordinate MAE of all atoms in Å, the least in bold:",
        "",
        *errors(found, "coordinate_mae"),
        "Near the defects:",
        "",
        *errors(found, "a3"),
        "What it costs: processor time of one thread for one structure, matching included for the network. The machine was busy",
        f"(load {min(loads):.0f} to {max(loads):.0f} on two cores), which slows everything alike; [performance.md](performance.md) has times on idle cores.",
        f"The sum of single-defect fields has to be fitted to the training pairs first, which took up to {duration(max(fit))}.",
        "",
        *cost(found),
    ]


def care(found: Mapping[str, Any]) -> list[str]:
    """Return what the first part does not say."""
    return [
        "What these tables do not say:",
        "",
        "- The network was trained on the training split of the same data, and its settings were tuned on this validation split. The",
        "potentials have not seen these structures. On hosts and defects that the network does not know, a potential is the better",
        "choice, and often the only one ([engines.md](engines.md)).",
        "- The cell is that of DFT. A potential with another lattice constant relaxes a strained layer, which costs it some accuracy;",
        "a network that was trained at this cell does not have that problem.",
        "- A relaxation that was cut off has not said its last word, and one that converged may have found another minimum than DFT:",
        "dense vacancies have several.",
        "- A potential gives forces and energies, can be continued, and finds minima that break symmetries. The network gives the geometry",
        "and its expected error, and no forces.",
        f"- {len(common(found))} structures rank methods that differ by a factor, not those that differ by a little. [results.md](results.md) has the",
        "whole split.",
        "",
    ]


def validation(host: str) -> dict[str, Any]:
    """Return the scores of the bundled weights on the whole validation split of a host at high density."""
    return dict(result("default-val")["subsets"][f"high/{host}"])


def published_network() -> list[str]:
    """Return the published network, as retrained here."""
    run = result("unlogged")["published_network"]
    falling = run["still_falling"]
    hosts = list(HIGH)
    methods: list[tuple[str, Sequence[float]]] = [
        ("not moving (ideal sites)", [validation(host)["ideal_sites"]["coordinate_mae"] for host in hosts]),
        ("published network, retrained here", [run["mae"][host] for host in hosts]),
        ("**ase-definet**", [validation(host)["coordinate_mae"] for host in hosts]),
    ]
    return [
        "## The published network",
        "",
        f"The network of Yang *et al.* at its published size (preset `{run['preset']}`) was trained here on {run['device']} for",
        f"{run['steps']:,} steps of {run['batch_size']} structures (learning rate {run['learning_rate']:g}, {run['schedule']}). It was not trained to the end: its validation error",
        f"was still falling by {falling['by']:g} Å per {falling['per_steps']} steps, while its training loss fell by {falling['training_loss_fell_by']}. Neither weights nor log were kept",
        "(`research/results/unlogged.json`), so this table cannot be checked, and it is not a judgement of the authors' own weights.",
        "Coordinate MAE on the whole validation split at high density:",
        "",
        *table(
            ["", *(host_name(host) for host in hosts), "average"],
            [[name, *(length(value) for value in [*values, mean(values)])] for name, values in methods],
        ),
    ]


def published_potentials(found: Mapping[str, Any]) -> list[str]:
    """Return what others have published for the same data."""
    known = result("published_potentials")
    return [
        "## MACE-OMAT-0 and DPA-3, as published",
        "",
        f"Per-structure errors from [{known['repository']}](https://github.com/{known['repository']}) at commit `{known['commit'][:10]}`, averaged here (the",
        f"values that were used are in `research/results/published_potentials.json`). The authors relaxed with {known['relaxation']}.",
        "",
        *other_hosts(known),
        *black_phosphorus(known),
        *looked_up(known, found),
    ]


def other_hosts(known: Mapping[str, Any]) -> list[str]:
    """Return the averages of MACE-OMAT-0 over the test split of five hosts."""
    theirs = known["other_hosts"]
    rows, chance = [], []
    for host in (host for host in HIGH if host in theirs["hosts"]):
        values = [mean(components) for components in theirs["hosts"][host].values()]
        chance.append(stdev(values) / len(values) ** 0.5 / mean(values))
        scores = validation(host)
        rows.append(
            [
                host_name(host),
                f"{length(mean(values))} ({len(values)})",
                f"{length(scores['coordinate_mae'])} ({scores['n']})",
                length(scores["ideal_sites"]["coordinate_mae"]),
            ]
        )
    return [
        f"{theirs['model']} as released, on the *{theirs['split']}* split; ase-definet and the ideal sites on the *validation* split (number of",
        "structures in brackets). These are different structures, drawn at random from the same sets: we do not have the relaxed test",
        f"structures, which are meant to stay unseen. The standard error of their averages is {span(chance)}, so compare no finer than that.",
        "",
        *table(
            ["high density", f"{theirs['model']}, test", "**ase-definet**, validation", "ideal sites, validation"],
            rows,
        ),
    ]


def black_phosphorus(known: Mapping[str, Any]) -> list[str]:
    """Return the averages for black phosphorus, as released and fine-tuned."""
    theirs = known["black_phosphorus"]
    unsure = set(theirs["unconverged"])
    rows = []
    for model, tuned in theirs["models"].items():
        for state, values in sorted(tuned.items(), key=lambda pair: pair[0] != "as released"):
            sure = [value for name, value in zip(theirs["ids"], values, strict=True) if name not in unsure]
            rows.append([f"{model}, {state}", length(mean(values)), length(mean(sure))])
    scores = validation("P")
    return [
        f"Black phosphorus, the {len(theirs['ids'])} structures of the test split, before and after the authors fine-tuned the models on this host. Their",
        f"notes call {len(unsure)} of the reference relaxations `last-unconverged`; the last column leaves these out.",
        "",
        *table(["", "all", "converged references"], rows),
        f"For orientation only: on the {scores['n']} *validation* structures of 2DMD, the error of ase-definet is {length(scores['coordinate_mae'])}, and that of the ideal sites",
        f"{length(scores['ideal_sites']['coordinate_mae'])}. By the notes, the reference for black phosphorus seems to be relaxations of the authors' own, which may",
        "end in other minima than those of 2DMD: this table and ours must not be read as one.",
        "",
    ]


def looked_up(known: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the structures of the sample above whose published error was looked up."""
    rows = []
    for name, components in known["of_our_sample"].items():
        own, still = (found[method]["rows"][name]["coordinate_mae"] for method in ("network", "ideal_sites"))
        rows.append([f"`{name}`", length(mean(components)), f"**{length(own)}**", length(still)])
    model = known["other_hosts"]["model"]
    return [
        f"Structures of our sample that also stand in their tables of {model} as released, as far as they were looked up: the same",
        "structures, the same reference.",
        "",
        *table(["structure", model, "**ase-definet**", "ideal sites"], rows),
    ]


def sample(found: Mapping[str, Any]) -> list[str]:
    """Return the list of structures with the error of every method."""
    rows = []
    for name in sorted(common(found), key=lambda name: (found["network"]["rows"][name]["subset"], name)):
        entries = [found[method]["rows"][name] for method in NAMES]
        rows.append([entries[0]["subset"], f"`{name}`", *(length(entry["coordinate_mae"]) for entry in entries)])
    return [
        "## The structures",
        "",
        "Validation pairs of 2DMD, evenly spread over the names of each subset; coordinate MAE in Å.",
        "",
        *table(["subset", "structure", *(NAMES[method].strip("*") for method in NAMES)], rows),
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
