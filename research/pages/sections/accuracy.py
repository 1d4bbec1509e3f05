"""Scores of the bundled weights on the validation pairs."""

from typing import Any

from ase_definet.evaluation.scores import RADII
from research.pages.markdown import length, percent, table
from research.pages.stored import card, result
from research.paths import RESULTS

REGIONS = ("coordinate_mae", *(f"a{radius}" for radius in RADII))
BASELINES = ("ideal_sites", "superposition")
MILLI = 1e3


def section() -> list[str]:
    """Return the section."""
    scores = result("default-val")
    lines = [
        f"## {scores['model']}",
        "",
        "`ase-definet evaluate --data 2dmd.pack --split val --json research/results/default-val.json` gave the coordinate MAE,",
        f"matching included. A{RADII[0]} to A{RADII[-1]} count the atoms within {RADII[0]} to {RADII[-1]} Å of a defect site.",
        "*Ideal sites* is the prediction that moves nothing: every atom on its host site, placed and scored as any prediction is.",
        f"It was not the same as the unrelaxed file: {unrelaxed_differs(scores)}. *Superposition* is the sum of single-defect",
        "fields, fitted to the training pairs. `--split test` scores the test pairs for those who hold their relaxed structures.",
        "",
        *main_table(scores),
        "Errors of single atoms (length, Å), the expected error beside the error found, and the time per structure in batches,",
        "matching included, on two CPU cores:",
        "",
        *atoms_table(scores),
        "The expected error had been fitted to these validation structures, which flatters the columns above. Cross-fitted, so that",
        "every structure is judged by an estimate that has not seen it:",
        "",
        *reliability_table(card()),
    ]
    plots = sorted((RESULTS / "plots").glob("*.png"))
    return lines + [line for path in plots for line in (f"![{path.stem}](../research/results/plots/{path.name})", "")]


def unrelaxed_differs(scores: dict[str, Any]) -> str:
    """Return where the structures as given were not on the host's sites."""
    found = []
    for name, row in scores["subsets"].items():
        ideal, given = (row[method]["coordinate_mae"] for method in ("ideal_sites", "unrelaxed"))
        if length(ideal) != length(given):
            found.append(f"{name} had {length(given)} Å as given, with the layer thickness of another host")
    return "; ".join(found)


def main_table(scores: dict[str, Any]) -> list[str]:
    """Return the errors by subset and region, beside those of the baselines."""
    regions = ["all atoms", *(f"A{radius}" for radius in RADII)]
    near = f"A{RADII[0]}"
    head = ["subset", "n", *regions, "ideal sites, all", near, "superposition, all", near]
    rows = []
    for name, row in [*scores["subsets"].items(), ("**average**", scores["overall"])]:
        own = [length(row[key]) for key in REGIONS]
        others = [length(row[method][key]) for method in BASELINES for key in REGIONS[:2]]
        rows.append([name, str(row["n"]), *own, *others])
    return table(head, rows)


def atoms_table(scores: dict[str, Any]) -> list[str]:
    """Return quantiles of the atoms' errors, the expected error and the time."""
    quantiles = list(next(iter(scores["subsets"].values()))["error_quantiles"])
    head = ["subset", *(key if key == "max" else percent(float(key)) for key in quantiles)]
    head += ["rank correlation, atoms", "structures", "mean expected", "mean found", "ms"]
    rows = []
    for name, row in scores["subsets"].items():
        estimate = row["expected_error"]
        rows.append(
            [
                name,
                *(length(row["error_quantiles"][key]) for key in quantiles),
                *(f"{estimate[key]:.2f}" for key in ("rank_correlation", "rank_correlation_of_structures")),
                *(length(estimate[key]) for key in ("mean_estimate", "mean_error")),
                f"{MILLI * row['seconds_per_structure']:.0f}",
            ]
        )
    return table(head, rows)


def reliability_table(card: dict[str, Any]) -> list[str]:
    """Return the cross-fitted reliability on the card."""
    rows = []
    for name, row in card["expected_error"].items():
        bins = ", ".join(f"{expected:.3f} {found:.3f}" for expected, found in row["reliability"])
        correlations = (row[key] for key in ("rank_correlation", "rank_correlation_of_structures"))
        rows.append([name, *(f"{value:.2f}" if value is not None else "" for value in correlations), bins])
    return table(
        ["subset", "rank correlation, atoms", "structures", "expected and found (Å) in ten bins of atoms"], rows
    )
