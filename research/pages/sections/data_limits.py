"""What the data themselves allow: symmetry, defects of one kind that relax differently, long waves, density."""

import itertools
from typing import Any

from research.pages.markdown import length, percent, table
from research.pages.stored import result


def section() -> list[str]:
    """Return the section."""
    limits = result("data_limits")
    subsets = dict(sorted(limits["subsets"].items()))
    return [
        "### What the data allow",
        "",
        *symmetry(subsets),
        *lone_defects(limits, subsets),
        *waves(subsets),
        *density(limits, subsets),
    ]


def symmetry(subsets: dict[str, Any]) -> list[str]:
    """Return whether DFT broke symmetries."""
    rows = [row["symmetry"] for row in subsets.values()]
    symmetric, pairs = (sum(row[key] for row in rows) for key in ("symmetric", "pairs"))
    return [
        f"`python -m research.experiments.data_limits 2dmd.pack`: {symmetric:,} of the {pairs:,} structures are mapped onto themselves by a symmetry of",
        f"the host, and DFT kept it in every one of them (to {max(row['largest'] for row in rows):.0e} Å). The",
        "equivariant networks, which cannot choose one of several broken symmetries, therefore lost nothing by keeping them.",
        "",
    ]


def lone_defects(limits: dict[str, Any], subsets: dict[str, Any]) -> list[str]:
    """Return how differently defects of one kind relaxed."""
    rows = []
    for name, subset in subsets.items():
        for defect, row in subset["lone"].items():
            way = f"{row['right_way']} of {row['lopsided']}" if row["lopsided"] else ""
            moves = [f"{row[key]:+.3f}" for key in ("10%", "50%", "90%")]
            rows.append([name, defect, str(row["n"]), *moves, str(row["val"]), percent(row["explained"]), way])
    counts = result("unlogged")["variance_explained_by_counts"]
    gase, inse, carbon = (
        subsets[f"high/{host}"]["lone"][defect]
        for host, defect in (("GaSe", "v_Se"), ("InSe", "v_Se"), ("BN", "C_N"))
    )
    head = ["", "defect", "n", *(f"{percent(q / 10)}" for q in (1, 5, 9)), "validation", "explained", "right way"]
    return [
        f"Defects of one kind relaxed differently. For those with no other defect within {limits['alone']} Å, the table lists how far their nearest",
        "atoms moved out (mean, Å; quantiles over structures), and the share of its variance that the weights explained on validation",
        f"pairs. *Right way*: where the nearest atoms left the symmetry of the site by {limits['lopsided']} Å or more, how often the prediction did so in",
        "the same direction.",
        "",
        *table(head, rows),
        f"Between these quantiles, the neighbours of a lone Se vacancy in GaSe moved anywhere from {-gase['10%']:.2f} Å inwards to",
        f"{gase['90%']:.2f} Å outwards ({-inse['10%']:.2f} and {inse['90%']:.2f} Å in InSe), and those of a carbon on N in h-BN {carbon['10%']:.2f} to {carbon['90%']:.2f} Å outwards. That looks like charge: the vacancies and impurities of a cell are",
        "donors and acceptors, and which of them holds the electrons depends on all the others. In h-BN, a random forest that knew",
        f"only how many defects of each kind the cell had explained {percent(counts['share'])} of the variance of a lone N vacancy. The network knows the mean",
        "over the sites of a cell and could learn this, but the few hundred cells of a host show little of it.",
        "",
    ]


def waves(subsets: dict[str, Any]) -> list[str]:
    """Return how much of the error lay in the longest waves of a cell."""
    rows = []
    for name, subset in subsets.items():
        row = subset["waves"]
        cells = [f"{row['waves']} of {row['of']}", *(percent(row[key]) for key in ("displacement", "error"))]
        cells += [length(row[key]) for key in ("mae", "mae_without")]
        factors = [""] * 3 if row["explained"] is None else [f"{factor:.2f}" for factor in row["factors"]]
        rows.append([name, *cells, *factors, percent(row["explained"])])
    low = subsets["low/MoS2"]["waves"]
    trees = result("unlogged")["variance_explained_by_arrangement"]
    quantiles = [f"{percent(q / 10)}" for q in (1, 5, 9)]
    head = [
        "",
        "waves, of sites",
        "displacement",
        "error",
        "MAE",
        "without",
        f"factor {quantiles[0]}",
        *quantiles[1:],
        "explained",
    ]
    return [
        "Much of the error was as long as the cell. The table lists the share of the longest waves, in which primitive cells move as a whole,",
        "in all squared displacements and in all squared errors on validation pairs, and the coordinate MAE without the error in them.",
        "For displacements along z in these waves: the factor between the true and the predicted amplitude, one for each structure",
        "(quantiles), and the share of the error that these factors explained.",
        "",
        *table(head, rows),
        "At low density the shape of the bending was right and its amplitude was not: for MoS2, one number for each structure explained",
        f"{percent(low['explained'])}",
        f"of that error, with factors from {low['factors'][0]:.2f} to {low['factors'][-1]:.2f}. That looks like relaxations which stopped before the softest motion of the",
        "layer had come to its end, some earlier than others. It was not all chance: a random forest that knew the defects, their distances",
        f"and sides explained {percent(trees['share'])} of the variance of the logarithm of these factors.",
        "",
    ]


def density(limits: dict[str, Any], subsets: dict[str, Any]) -> list[str]:
    """Return the error by density of defects, and what two networks got wrong alike."""
    edges = [percent(edge) for edge in limits["densities"][:-1]]
    heads = [f"to {edges[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(edges)), f"above {edges[-1]}"]
    rows = []
    for name, subset in subsets.items():
        parts = subset["density"]["by"]
        cells = [f"{length(part['mae'])} ({part['n']})" if part["n"] else "" for part in parts]
        rows.append([name, *cells, f"{subset['density']['correlation']:.2f}"])
    return [
        "The error was that of dense cells, whose vacancies share neighbours and rebuild their surroundings. Coordinate MAE (Å) on",
        "validation pairs by the share of defective sites, number of structures in brackets, and the correlation of the errors with those",
        "of the general network in the same file:",
        "",
        *table(["", *heads, "correlation"], rows),
    ]
