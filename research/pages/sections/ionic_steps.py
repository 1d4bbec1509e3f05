"""Ionic steps saved with any ASE calculator: GPAW and CHGNet."""

from typing import Any

from research.pages.markdown import length, percent, span, table
from research.pages.stored import result, results

HEAD = (
    "calculator",
    "weights",
    "structure",
    "cell scaled by",
    "steps: sites",
    "steps: predicted",
    "saved",
    "energy above the end: sites",
    "predicted, eV",
    "MAE to the end: sites",
    "predicted, Å",
)


def section() -> list[str]:
    """Return the section."""
    unlogged = result("unlogged")
    counted = [
        (content, row)
        for content in results("ionic_steps").values()
        for row in content["structures"]
        if "error" not in row
    ]
    some = counted[0][0]
    saved: dict[tuple[str, str], list[float]] = {}
    for content, row in counted:
        if row["steps_saved"] is not None:
            key = content["calculator"], row["file"].split("/")[1]
            saved.setdefault(key, []).append(row["steps_saved"])
    said = ", ".join(f"{code} on {host} {span(shares)}" for (code, host), shares in sorted(saved.items()))
    least = sorted(row["predicted"]["steps"] for _, row in counted)
    return [
        "## Ionic steps with ASE's optimizer",
        "",
        "`ase-definet compare-steps FILE --host HOST --calculator CALCULATOR [--fit-lattice]` relaxed at fixed cell to",
        f"{some['fmax']} eV/Å with",
        f"ASE's {some['optimizer']}, from the host's sites and from the prediction, with the same settings.",
        f"{unlogged['ionic_steps_settings']['text']}",
        '"Scaled" where the calculator\'s own lattice constant was fitted first.',
        "",
        *table(HEAD, [cells(content, row) for content, row in counted]),
        f"Steps saved: {said}.",
        f"{some['optimizer']} starts without the force constants and took at least {least[0]} steps even from a prediction, so the less there was",
        f"to relax, the less could be saved. None of this is the {percent(unlogged['literature']['steps_saved'])} of the paper, which counted VASP steps on structures",
        "of 2DMD.",
        "",
    ]


def cells(content: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    runs = [row["unrelaxed"], row["predicted"]]
    scale = row.get("scale", 1)
    return [
        content["calculator"],
        content["model"].split(" (")[0],
        row["file"].removeprefix("examples/"),
        f"{scale - 1:+.2%}".replace("%", " %") if scale != 1 else "-",
        *(f"{run['steps']}" + ("" if run["converged"] else " (not converged)") for run in runs),
        (percent(row["steps_saved"]) or "-") + ("" if row["same_minimum"] else " (another minimum)"),
        *(f"{run['first_energy_above_last']:.3f}" for run in runs),
        length(row["ideal_sites_error"]),
        length(row["prediction_error"]),
    ]
