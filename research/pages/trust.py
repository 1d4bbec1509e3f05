"""Write docs/trust.md: what the bundled weights know, and what was measured outside of that.

Run as ``python -m research.pages.trust`` after research/results/near_domain.json, hbn-val.json or the weights changed; a
test compares the page with them.
"""

from collections.abc import Mapping
from typing import Any

from ase_definet.checkpoints.bundled import bundled_cards
from research.pages.markdown import host_name, length, percent, reflowed, table
from research.pages.stored import result
from research.paths import DOCS

PAGE = DOCS / "trust.md"
GROUPS = ("bulk-charged", "bulk-neutral", "monolayer-charged", "monolayer-neutral")


def page() -> str:
    """Return the whole page."""
    card = bundled_cards()["default"].card.plain()
    return reflowed([*head(), *known(card), *near(card), *outside(), *states(), *how_to()])


def head() -> list[str]:
    """Return the introduction."""
    return [
        "# Trust: inside, near, outside",
        "",
        (
            "Every result says how far it can be trusted (`RelaxResult.trust`, the row `trust` of `relax`, the column of a "
            "screen), for the structure and for each atom (`atom_trust`):"
        ),
        "",
        "- `inside`: host, elements, defects, density and state are like the training data.",
        "",
        (
            "- `near`: the structure differs from the training data in a respect in which the network was tried on DFT data "
            "that it had not seen, and was better than the ideal sites. Expected errors are multiplied by the factor that was "
            "measured; where none was, the expected error is unknown."
        ),
        "",
        (
            "- `outside`: nothing supports the network's answer. The atoms are left on the host's ideal sites (`method` is "
            "`none`), so that a pipeline does not get worse structures than it sent, or a calculator relaxes them (`--calculator`, "
            "[calculators](calculators.md)). `--extrapolate` takes the network's answer "
            "all the same, still without an expected error; `--strict` makes it an error."
        ),
        "",
    ]


def known(card: Mapping[str, Any]) -> list[str]:
    """Return the table of what the weights were trained on."""
    rows = []
    for name, host in sorted(card["training"]["hosts"].items()):
        charges = ", ".join(f"{q:+d}" if q else "neutral" for q in host.get("charges", [0]))
        functionals = ", ".join(host.get("functionals", ["PBE"]))
        low, high = host["density"]
        shares = f"{low:.2%} to {high:.2%}".replace("%", " %")
        rows.append(
            (host_name(name), ", ".join(host["defects"]), charges, functionals, shares, str(host["training_pairs"]))
        )
    titles = ("host", "defects", "charge", "functional", "defect sites", "training pairs")
    return ["## What the weights know", "", *table(titles, rows)]


def near(card: Mapping[str, Any]) -> list[str]:
    """Return the table of what is near."""
    rows = []
    for key, row in card["near"].items():
        word, _, detail = key.partition(":")
        what = {"charge": f"charge of magnitude {detail}", "density": f"{detail}er density", "host": f"host {detail}"}
        only = f" ({', '.join(row['defects'])} only)" if row.get("defects") else ""
        count, factor = row.get("structures"), row.get("error_factor")
        found = (
            percent(row["share"]),
            "unknown" if factor is None else f"{factor:.2f}",
            "" if count is None else str(count),
        )
        rows.append((what.get(word, word) + only, *found, row.get("source") or ""))
    titles = ("respect", "error left, of the ideal sites'", "error factor", "structures", "source")
    return [
        "## What is near",
        "",
        (
            "A structure may lie outside in several of these respects and is still `near`. Strain, the offset of the host's sites "
            "and a higher density are near up to small bounds without a measurement, and then without an expected error."
        ),
        "",
        *table(titles, rows),
    ]


def outside() -> list[str]:
    """Return the measurement that the other tables are drawn from."""
    found = result("near_domain")
    rows = [
        (
            words,
            str(row["structures"]),
            length(row["ideal_sites"]),
            length(row["network"]),
            percent(row["share"]),
            "" if row["error_factor"] is None else f"{row['error_factor']:.2f}",
        )
        for words, row in found["table"].items()
        if row["structures"] >= result("near_domain")["least"]
    ]
    titles = ("outside in", "structures", "ideal sites, Å", "network, Å", "share", "error factor")
    return [
        "## What was measured",
        "",
        (
            f"`{found['command']}` put the weights {found['weights']}, which had seen neutral h-BN in PBE only, before the h-BN "
            "database: charges, spin states, HSE06, elements that they had never seen, and a three-dimensional host. Coordinate "
            "MAE, means over structures; the error factor is the true error over the expected one. Unknown elements and the "
            "unknown host made the network worse than the ideal sites, and the expected error several times too small: these are "
            "`outside`. Sets with fewer structures are left out here."
        ),
        "",
        *table(titles, rows),
    ]


def states() -> list[str]:
    """Return the scores on the validation split of the h-BN database."""
    aware, blind = result("hbn-val")["subsets"], result("hbn-val-without-state")["subsets"]
    rows = []
    for group in GROUPS:
        own, other = aware[f"hbn/{group}"], blind[f"hbn/{group}"]
        still = own["ideal_sites"]["coordinate_mae"]
        cells = [own["coordinate_mae"], other["coordinate_mae"]]
        shares = [percent(value / still) for value in cells]
        rows.append((group, str(own["n"]), length(still), *(length(v) for v in cells), *shares))
    titles = (
        "ground states",
        "structures",
        "ideal sites, Å",
        "network, Å",
        "without state, Å",
        "share",
        "without state",
    )
    return [
        "## Charged and spin states of h-BN",
        "",
        (
            'Validation split of the h-BN database (compositions that training has not seen; tuned on), bundled weights. "Without '
            'state" withholds charge, multiplicity and excitation (`evaluate --without-state`).'
        ),
        "",
        *table(titles, rows),
    ]


def how_to() -> list[str]:
    """Return what users can do about it."""
    return [
        "## Your own data",
        "",
        (
            "Weights that you train carry a record of their own data, and what lies outside of it is `outside` for them. `python "
            "-m research.experiments.near_domain WEIGHTS PACK --card WEIGHTS` measures them on pairs that they have not seen "
            "and puts what was found on their card. Charged data are fine-tuned like any other: [training](training.md), with "
            "`states = true` under `[model]`; the recipe of the h-BN network is research/recipes/states.sh."
        ),
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
