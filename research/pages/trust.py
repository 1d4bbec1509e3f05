"""Write docs/trust.md: what the bundled weights know, and what was measured outside of that.

Run as ``python -m research.pages.trust`` after the files that it reads under research/results or the weights changed; it
also draws the pictures. A test compares the page with the files.
"""

from collections.abc import Mapping
from typing import Any

from ase_definet.checkpoints.bundled import bundled_cards
from ase_definet.relaxation.domain import NEAR_DENSITY, NEAR_OFFSET, NEAR_STRAIN
from research.pages.markdown import host_name, length, percent, reflowed, table
from research.pages.stored import result, results
from research.paths import DOCS

PAGE = DOCS / "trust.md"
PICTURES = DOCS / "images" / "trust"
GROUPS = ("bulk-charged", "bulk-neutral", "monolayer-charged", "monolayer-neutral")
SHOWN = 10
"""Structures of a group that is shown, at least."""
GOAL = 3 / 2
"""Factor within which mean expected errors are wanted."""
WORDS = {
    "charge": "charge, {} from one that was seen",
    "density": "density, {}",
    "host": "host {}",
    "spin": "spin multiplicity",
    "species": "element",
    "defects": "defect",
    "excited": "excited state",
    "complex": "kinds of neighbouring defects",
}


def page() -> str:
    """Return the whole page."""
    card = bundled_cards()["default"].card.plain()
    parts = [head(), known(card), left_out(), near(card), expected(card), strain(), states(), examples(), how_to()]
    return reflowed([line for part in parts for line in part])


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
            "- `near`: the structure differs from the training data in a respect that was left out of the training of small "
            "networks, which still beat the ideal sites there. The expected error is learned from their errors; where none were "
            "measured, it is unknown."
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
    """Return the table of what the weights were trained on, and how good they are there."""
    rows = []
    for name, host in sorted(card["training"]["hosts"].items()):
        charges = ", ".join(f"{q:+d}" if q else "neutral" for q in host.get("charges", [0]))
        functionals = ", ".join(host.get("functionals", ["PBE"]))
        low, high = host["density"]
        shares = f"{low:.2%} to {high:.2%}".replace("%", " %")
        found = "; ".join(
            f"{subset.rpartition('/')[0] or subset}{ending}: {length(row['mae'])} ({percent(row['mae'] / row['ideal_sites'])})"
            for subset, ending, row in validated(card, name)
        )
        pairs = str(host["training_pairs"])
        rows.append((host_name(name), ", ".join(host["defects"]), charges, functionals, shares, pairs, found))
    titles = (
        "host",
        "defects",
        "charge",
        "functional",
        "defect sites",
        "training pairs",
        "error, Å (of ideal sites')",
    )
    return [
        "## What it knows",
        "",
        (
            "Errors are coordinate MAEs on validation pairs; in brackets, what they leave of the error of the ideal sites. The "
            "validation pairs of the h-BN database have compositions that no training pair has."
        ),
        "",
        *table(titles, rows),
    ]


def validated(card: Mapping[str, Any], host: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return the validation rows of a host: subset, what distinguishes it, row."""
    places = {"BN": "monolayer", "BN-bulk": "bulk"}
    out = []
    for subset, row in card["validation"].items():
        folder, _, name = subset.rpartition("/")
        place, _, state = name.partition("-")
        if name == host:
            out.append((subset, "", row))
        elif folder == "hbn" and place == places.get(host):
            out.append((f"{folder}/{name}", f" {state.replace('-', ', ')}", row))
    return out


def in_words(key: str) -> str:
    """Return a respect as the tables show it."""
    word, _, detail = key.partition(":")
    return WORDS.get(word, word).format(detail)


def groups(kinds: tuple[str, ...] = ()) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """Return what was measured on what was left out: experiment, host, respects and figures of each group."""
    out = []
    for name, found in results("left_out").items():
        if kinds and found["kind"] not in kinds:
            continue
        for key, row in found["table"].items():
            host, _, words = key.partition(": ")
            if row["structures"] >= SHOWN:
                out.append((name, host, words, row))
    return out


def left_out() -> list[str]:
    """Return what was left out, and what became of it."""
    found = results("left_out")
    rows = []
    for name, host, words, row in groups():
        said = "nothing" if words == "inside" else ", ".join(in_words(word) for word in words.split())
        better = f"{percent(row['better_in'])}"
        cells = (length(row["ideal_sites"]), length(row["network"]), percent(row["share"]), better)
        rows.append((found[name]["left_out"], host_name(host), said, str(row["structures"]), *cells))
    titles = ("left out", "host", "outside in", "structures", "ideal sites, Å", "network, Å", "share", "better in")
    return [
        "## What was left out",
        "",
        (
            "`python -m research.experiments.left_out .data` takes pairs out of the training and validation data, trains a small "
            "network on the rest for some minutes of one core, fits its error estimate to the remaining validation pairs, and "
            "measures it on what was left out. A structure may be inside by its record although its composition was left out. "
            "Coordinate MAE, means over structures; *share* is what the network leaves of the error of the ideal sites, *better "
            "in* the share of the structures in which it beats them. The h-BN database as a whole was no left-out part of small "
            "networks: the bundled network of neutral h-BN in PBE has seen nothing of it."
        ),
        "",
        (
            "These networks are trained for minutes, the bundled ones for hours. What more training does to errors outside was not "
            "measured."
        ),
        "",
        "![Error left of what was left out](images/trust/left-out.png)",
        "",
        *table(titles, rows),
    ]


def near(card: Mapping[str, Any]) -> list[str]:
    """Return the table of what is near."""
    rows = []
    for key, row in card["near"].items():
        only = f" ({', '.join(row['defects'])} only)" if row.get("defects") else ""
        hosts = ", ".join(host_name(host) for host in row.get("hosts", [])) or "all"
        count = row.get("structures")
        counted = "" if count is None else str(count)
        rows.append((in_words(key) + only, hosts, percent(row["share"]), counted, row.get("source") or ""))
    return [
        "## What is near",
        "",
        (
            f"A respect is near where at most {percent(result('calibration')['better'])} of the ideal sites' error was left. A "
            "structure may lie outside in several of these and is still `near`; one of any other respect is `outside`. A host is "
            "*alike* if the training data have one of the same structure and every element of it on such a site, MoSe2 beside MoS2 "
            "and WSe2."
        ),
        "",
        *table(("respect", "hosts", "error left, of the ideal sites'", "structures", "source"), rows),
    ]


def expected(card: Mapping[str, Any]) -> list[str]:
    """Return how good expected errors are outside, and how they are made."""
    found = result("calibration")
    lines = [
        "## Expected errors outside",
        "",
        (
            "The logarithm of an atom's expected error is a sum: of the network's own estimate, the predicted displacement, the "
            "distance from the closest defect, means of these over the structure, its numbers of atoms, vacancies and "
            "substitutions, the excess radius of the largest substitution and the charge (logarithms where it is a length or a "
            "number), and one term for each respect in which the structure lies outside "
            "(`ase_definet.relaxation.expected_error`). The weights are fitted to what was left out (`python -m "
            "research.experiments.calibrate learn`); the card of the weights has them. Below, every group is judged by a fit "
            "without it: without its compositions in the h-BN database, without its experiment elsewhere (without its "
            "compositions, where only one experiment has tried a respect). *Ratio* is the mean expected over the mean true error, "
            "*rank* the rank correlation over atoms; in brackets, what the network's own estimate was worth. No number is *given* where "
            "the structure is outside, or where the ratio of a group shows that the respect's errors cannot be foreseen: there the "
            "expected error is unknown."
        ),
        "",
        "![Expected and true errors of what was left out](images/trust/expected.png)",
        "",
    ]
    rows = []
    for judged in found["shown"]:
        for key, row in found["judged"][judged].items():
            name, host, words = key.split(" | ")
            if row["structures"] < SHOWN:
                continue
            said = "nothing" if words == "inside" else ", ".join(in_words(word) for word in words.split())
            cells = (
                length(row["error"]),
                length(row["expected"]),
                f"{row['ratio']:.2f} ({row['own_ratio']:.2f})",
                f"{row['rank_correlation']:.2f} ({row['own_rank_correlation']:.2f})",
            )
            rows.append((name, host_name(host), said, str(row["structures"]), *cells))
    titles = ("experiment", "host", "outside in", "structures", "error, Å", "expected, Å", "ratio", "rank")
    lines += table(titles, rows)
    ratios = [
        row
        for judged in found["shown"]
        for row in found["judged"][judged].values()
        if row["structures"] >= SHOWN and row["given"]
    ]
    good = sum(1 / GOAL <= row["ratio"] <= GOAL for row in ratios)
    ranked = sum(row["rank_correlation"] >= found["rank_goal"] for row in ratios)
    lines += [
        (
            f"Of the {len(ratios)} groups for which such a number is given, the mean is within a factor of {GOAL:g} of the true one "
            f"in {good}, and the rank correlation at least {found['rank_goal']:g} in {ranked}."
        ),
        "",
    ]
    if "error_model" not in card:
        return lines
    features = card["error_model"]["features"]
    routed = next((one["error_model"]["features"] for one in card["routed"] if "error_model" in one), {})
    rows = [(name, f"{features.get(name, 0.0):+.2f}", f"{routed.get(name, 0.0):+.2f}") for name in features]
    return [*lines, *table(("feature", "weight, all networks", "weight, the network that knows states"), rows)]


def strain() -> list[str]:
    """Return what strain and other host geometry do."""
    found = result("strained")
    return [
        "## Strain and the geometry of the host",
        "",
        (
            "There are no DFT data of strained defects. `python -m research.experiments.strained 2dmd.pack` put validation pairs on "
            "hosts whose cell is strained in its plane, or whose layer is stretched along its normal, and compared the predicted "
            "displacements with those of DFT in the unstrained host. Up to the bounds within which such structures are `near` "
            f"({percent(NEAR_STRAIN)} of strain, sites {NEAR_OFFSET:g} Å off), the error left hardly changes where there are many "
            "defects; that of isolated ones, which is small, grows as soon as the host is not the one trained on, and stays far "
            "below that of the ideal sites. How much the true displacements change is not known, so the expected error is unknown "
            f"too. The same goes for densities of defects up to {NEAR_DENSITY:g} times the largest that was trained on, unless "
            "they were measured (above)."
        ),
        "",
        "![Share of the error left on strained hosts](images/trust/strain.png)",
        "",
        *table(
            ("subset", *(f"{row['strain']:+.0%}".replace("%", " %") for row in plane(found, first_of(found)))),
            [(name, *(percent(row["share"]) for row in plane(found, name))) for name in found["subsets"]],
        ),
    ]


def first_of(found: Mapping[str, Any]) -> str:
    """Return the name of the first subset."""
    return next(iter(found["subsets"]))


def plane(found: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return the rows of a subset in which the layer is not stretched."""
    return [row for row in found["subsets"][name] if not row["stretch"]]


def states() -> list[str]:
    """Return the scores on the validation split of the h-BN database."""
    found, broken = result("hbn-val"), result("broken_symmetry")["subsets"]
    aware, blind = found["subsets"], found["without_state"]["subsets"]
    rows = []
    for group in GROUPS:
        own, other = aware[f"hbn/{group}"], blind[f"hbn/{group}"]
        still, guess = own["ideal_sites"]["coordinate_mae"], own["expected_error"]
        cells = [own["coordinate_mae"], other["coordinate_mae"]]
        shares = [percent(value / still) for value in cells]
        ratio = f"{guess['mean_estimate'] / guess['mean_error']:.2f}"
        rank = f"{guess['rank_correlation']:.2f}"
        beyond = percent(broken[f"hbn/{group}"]["share"])
        rows.append((group, str(own["n"]), length(still), *(length(v) for v in cells), *shares, beyond, ratio, rank))
    titles = (
        "ground states",
        "structures",
        "ideal sites, Å",
        "network, Å",
        "without state, Å",
        "share",
        "without state",
        "lost symmetry",
        "expected / true",
        "rank, atoms",
    )
    return [
        "## Charged and spin states of h-BN",
        "",
        (
            "Validation split of the h-BN database (compositions that training has not seen; tuned on), bundled weights: "
            "`ase-definet evaluate --data hbn.pack --split val` prints this, apart from a rigid shift of all atoms. *Share* is "
            "of the ideal sites' error; *without state* withholds charge, multiplicity and excitation. *Lost symmetry* is the "
            "share that no prediction from the ideal sites can give, because DFT ended in a minimum of lower symmetry than the "
            "start: one of several equivalent ones, of which one pass can only return the mean "
            "(`python -m research.experiments.broken_symmetry hbn.pack`). The last columns compare the expected errors of the "
            "atoms with the true ones."
        ),
        "",
        *table(titles, rows),
    ]


def examples() -> list[str]:
    """Return what the commands of examples/trust.sh say."""
    lines = ["## Examples", "", "`examples/trust.sh` runs these (the structures are in `examples/trust/`)."]
    for one in result("trust_examples"):
        lines += ["", "```console", f"$ {one['command']}", *one["says"], "```"]
    return [*lines, ""]


def how_to() -> list[str]:
    """Return what users can do about it."""
    return [
        "## Your own data",
        "",
        (
            "Weights that you train carry a record of their own data, and what lies outside of it is `outside` for them. `python "
            "-m research.experiments.near_domain WEIGHTS PACK --card WEIGHTS` measures them on pairs that they have not seen "
            "and puts what was found on their card, with one factor for each respect. Charged data are fine-tuned like any other: "
            "[states](states.md) has a recipe that was run."
        ),
    ]


# Pictures


def draw() -> None:
    """Draw the pictures of the page."""
    import matplotlib as mpl  # noqa: PLC0415 - not needed for the text

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    PICTURES.mkdir(parents=True, exist_ok=True)
    rows = groups()
    figure, axes = plt.subplots(figsize=(7, 1 + len(rows) / 6), layout="constrained")
    labels = [f"{name}: {host}, {words}" for name, host, words, _ in rows]
    shares = [row["share"] for *_, row in rows]
    limit = result("calibration")["better"]
    colors = ["tab:blue" if share < limit else "tab:red" for share in shares]
    axes.barh(range(len(rows)), shares, color=colors)
    axes.axvline(limit, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), labels, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("error left, of the ideal sites'")
    _save(figure, "left-out")

    found = result("calibration")
    figure, axes = plt.subplots(figsize=(4, 4), layout="constrained")
    marks = {"states": "o", "others": "s"}
    for judged in found["shown"]:
        chosen = [row for row in found["judged"][judged].values() if row["structures"] >= SHOWN]
        true, guess, own = ([row[key] for row in chosen] for key in ("error", "expected", "error"))
        own = [row["error"] * row["own_ratio"] for row in chosen]
        family = judged.partition(",")[0]
        name = {"states": "h-BN database", "others": "other networks"}[family]
        axes.scatter(
            true, own, marker=marks[family], facecolors="none", edgecolors="0.7", label=f"own estimate, {name}"
        )
        axes.scatter(true, guess, marker=marks[family], label=f"expected, {name}")
    low, high = axes.get_xlim()
    span = [max(low, min(row["error"] for j in found["shown"] for row in found["judged"][j].values())), high]
    for factor in (1 / GOAL, 1, GOAL):
        axes.plot(span, [factor * x for x in span], color="black", linewidth=1 if factor == 1 else 1 / 2)
    axes.set(xscale="log", yscale="log", xlabel="true mean error, Å", ylabel="mean expected error, Å")
    axes.legend(fontsize=6)
    _save(figure, "expected")

    found = result("strained")
    figure, both = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout="constrained")
    for name, some in found["subsets"].items():
        flat = [row for row in some if not row["stretch"]]
        both[0].plot([100 * row["strain"] for row in flat], [row["share"] for row in flat], label=name)
        thick = sorted((row for row in some if not row["strain"]), key=lambda row: row["stretch"])
        signed = [row["offset"] * (1 if row["stretch"] > 0 else -1) for row in thick]
        both[1].plot(signed, [row["share"] for row in thick])
    both[0].set(xlabel="strain in the plane, %", ylabel="error left, of the ideal sites'", ylim=(0, 1))
    both[1].set(xlabel="offset of the host's sites, Å (negative: thinner)")
    for axes, bound in zip(both, (100 * NEAR_STRAIN, NEAR_OFFSET), strict=True):
        axes.axvspan(-bound, bound, color="0.9")
    both[0].legend(fontsize=6, ncols=2)
    _save(figure, "strain")
    plt.close("all")


def _save(figure: Any, name: str) -> None:
    figure.savefig(PICTURES / f"{name}.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    draw()
    PAGE.write_text(page(), encoding="utf-8")
