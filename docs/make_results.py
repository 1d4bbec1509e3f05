"""Write docs/results.md from the JSON files, and the curves from the logs, in docs/results. Run as ``python docs/make_results.py``."""

import itertools
import json
import math
from pathlib import Path

from ase_definet.plotting.scores import draw_learning_curve

HERE = Path(__file__).parent
RESULTS = HERE / "results"
HIGH = ("MoS2", "WSe2", "BN", "GaSe", "InSe", "P")
BOUND = 0.030
"""Of the average over the high-density subsets, in Å."""
LABELS = {"BN": "h-BN", "P": "black P"}


def main_table(result: dict) -> list[str]:
    """Return the table of one evaluation."""
    lines = [
        "| subset | n | all atoms | A3 | A4 | A5 | A6 | ideal sites, all | A3 | superposition, all | A3 | test, all | A3 |",
        "| --- " * 13 + "|",
    ]
    for name, row in [*result["subsets"].items(), ("**average**", result["overall"])]:
        own = [f"{row[k]:.4f}" for k in ("coordinate_mae", "a3", "a4", "a5", "a6")]
        others = [f"{row[m][k]:.4f}" for m in ("ideal_sites", "superposition") for k in ("coordinate_mae", "a3")]
        lines.append(f"| {name} | {row['n']} | {' | '.join([*own, *others])} | | |")
    return lines


def atoms_table(result: dict) -> list[str]:
    """Return quantiles of the atoms' errors, expected errors and time."""
    lines = [
        "| subset | median | 90 % | 99 % | largest | rank correlation, atoms | structures | mean estimate | mean error | ms |",
        "| --- " * 10 + "|",
    ]
    for name, row in result["subsets"].items():
        q = row["error_quantiles"]
        u = row.get("expected_error", {})
        cells = [f"{q[k]:.4f}" for k in ("0.5", "0.9", "0.99", "max")]
        cells += [f"{u[k]:.2f}" if k in u else "" for k in ("rank_correlation", "rank_correlation_of_structures")]
        cells += [f"{u[k]:.4f}" if k in u else "" for k in ("mean_estimate", "mean_error")]
        lines.append(f"| {name} | {' | '.join(cells)} | {1e3 * row['seconds_per_structure']:.0f} |")
    return lines


def reliability_table(card: dict) -> list[str]:
    """Return the cross-fitted reliability on the card."""
    lines = ["| subset | rank correlation, atoms | structures | estimated, found (Å) in ten bins of atoms |"]
    lines.append("| --- | --- | --- | --- |")
    for name, row in card["uncertainty"].items():
        bins = ", ".join(f"{a:.3f} {b:.3f}" for a, b in row["reliability"])
        lines.append(
            f"| {name} | {row['rank_correlation']:.2f} | {row['rank_correlation_of_structures']:.2f} | {bins} |"
        )
    return lines


def gap_section(gap: dict) -> list[str]:
    """Return errors on training and validation pairs, and what follows from them."""
    rows = [
        f"| {name} | {row['train']:.4f} | {row['val']:.4f} | {row['val'] / row['train'] - 1:+.0%} |"
        for name, row in sorted(gap["subsets"].items())
    ]
    return [
        "## What limits it now",
        "",
        f"`python docs/gap.py 2dmd.pack`: {gap['pairs']} training and {gap['pairs']} validation pairs each, coordinate MAE (Å).",
        "",
        "| subset | training | validation | gap |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        "- At high density much of the pairs is learned by heart, least in black phosphorus, whose wide student saw them in a tenth of",
        "  its steps and labelled structures in the others. What keeps from it: corrupted starts and",
        "  dropout 0.25 (black phosphorus alone, above), and labels for random structures from several networks (`docs/distill.py`).",
        "- Depth and Muon (above) pay most since corrupted starts. GaSe and InSe alone from scratch, eight layers with 64 features:",
        "  0.0418 and 0.0313 after 1,000 steps on each, 36 minutes on one core; four layers with 128 features and AdamW have 0.0450 and",
        "  0.0338 after 1,650, the student of all networks before 0.0434 and 0.0324. h-BN, 840 steps and 560 on structures labelled",
        "  by the weights 0.6.0: 0.0264 (those: 0.0274). Long vectors must be scaled before they act on their site: without it",
        "  eight layers blew up within 400 steps at this rate, in both runs that were tried.",
        "- Not so in black phosphorus: 0.0755 after 1,050 of 1,300 steps, where AdamW and a wide network have 0.0794, but 0.0762 at the",
        "  end, and after 900 steps on structures labelled by it and the weights 0.6.0 (0.0722) 0.0731. MoS2 and WSe2 at high density",
        "  alone: 0.0158 and 0.0230 after 500 steps on each, where AdamW and five layers needed 2,500 and 3,100 for 0.0156 and 0.0222 (with",
        "  low density besides); the mean with the weights 0.6.0 has 0.0148 and 0.0216, no better than those alone.",
        "- Networks are wrong alike. The errors of the weights 0.6.0 and of these networks, which share neither starts nor sizes nor",
        "  optimiser, correlate by 0.90 (GaSe, InSe) and 0.91 (black phosphorus): nine tenths of the squared error seem to be no matter of",
        "  seeds, and means buy little (GaSe 0.0413, InSe 0.0311, black phosphorus 0.0726, of 0.0434 and 0.0418, 0.0324 and 0.0313, 0.0722",
        "  and 0.0762; asked again 0.0411, 0.0306, 0.0716).",
        "- Corrupted starts pay from the first step. The general network (`recipe/`: first, noisy, end, low) had 6,000 steps without",
        "  them, then 18,000 more, 2,400 of all on GaSe and 2,300 on InSe: 0.0471 and 0.0353. A network of the same size that began",
        "  with them saw these two hosts alone: 0.0458 and 0.0348 after 1,100 steps on each, 0.0446 and 0.0341 after 2,250. With two",
        "  other hosts in the same run errors at equal steps on a host were the same: the beginning seems to matter, not the company.",
        "  The mean of both networks has 0.0440 and 0.0330, and the student of that 0.0435 and 0.0331.",
        "- The same in h-BN (one network with three other hosts 0.0277 to 0.0291, by itself 0.0292 to 0.0297, the general one",
        "  0.0297) and not in black phosphorus (0.0794 to 0.0822, general 0.0773; the mean of five 0.0752).",
        "- Low density: dropout and corruption, then steps. 6,000 more, without either and mostly there, took 0.0022 to 0.0019.",
        "- The largest errors are dense vacancies that share neighbours and rebuild; error grows with density (correlation",
        "  of density and error of a structure, validation: 0.73 to 0.83). Small differences decide there which minimum DFT falls into.",
        "- Tried without gain: predicting again from the prediction (trained with it: 0.0522 to 0.0509 after 1,000 steps, where one",
        "  pass from corrupted starts reached 0.0505), fine-tuning on InSe alone, three shared refinement passes, messages to 6 Å;",
        "  discs of one structure put into another, the loss on what lies 3 Å from the seam (black phosphorus alone 0.0822 against",
        "  0.0812; continued on three hosts 0.0533 against 0.0531); forces of CHGNet on the host's sites as a guide (their",
        "  directions have a mean cosine of 0.2 with the displacements of DFT).",
        "- MoS2 and WSe2 from scratch with corrupted starts, both densities in one run: 0.0156 and 0.0222 at high density after",
        "  2,500 and 3,100 steps on each, where the general network had 0.0166 and 0.0237; the mean of both 0.0149 and 0.0218, the student 0.0149 and 0.0216.",
        "- Width pays in students. Alone, black phosphorus has 0.0794 with 128 features and 0.0795 with 64; but the wide network makes a",
        "  mean better (of five 0.0737), and as a student of that mean, taught 1,500 labelled structures, it has 0.0729, where a student with 64 stays at 0.0749.",
        "  GaSe and InSe with 128 features: 0.0450 and 0.0338 after 3,300 steps, MoS2 and WSe2 0.0171 and 0.0250 after 2,300.",
        "- Asking again pays. A network trained from corrupted starts, its atoms begun half-way to a better answer with 0.1 Å of noise:",
        "  black phosphorus, wide, 0.0733 where it has 0.0794 from the sites; that answer, the mean of six, 0.0733. Labels from two such rounds",
        "  (`docs/distill.py --again`), on validation structures: black phosphorus 0.0713, GaSe 0.0423, InSe 0.0317, h-BN 0.0266,",
        "  MoS2 0.0148, WSe2 0.0215. Wide students of the first four have 0.0722, 0.0434, 0.0324 and 0.0274: they stay 0.006 to",
        "  0.010 Å away from their labels on structures they have not seen, 0.003 to 0.008 on those they have (1,500 to 4,200 a host).",
        "- Close messages with a nonlinear function of each pair, or with vectors sent besides scalars: GaSe and InSe alone, 500 steps of a",
        "  small network, 0.0564 and 0.0448, 0.0562 and 0.0442; without 0.0564 and 0.0446; eight layers in place of four 0.0543 and 0.0434.",
        "- Universal potentials are no source of further pairs here: relaxed at fixed cell from the sites, with the lattice constants",
        "  fitted to the potential first, validation structures end 0.034 (MoS2), 0.045 (WSe2), 0.046 (h-BN), 0.091 (GaSe), 0.216 (InSe) and",
        "  0.156 Å (black phosphorus) from DFT with NEP89 (fifty each), and with MatterSim-v1.0.0-1M (the first twelve each, at most 80 steps)",
        "  0.056, 0.025, 0.052, 0.053, 0.114 and 0.186, where the ideal sites of those have 0.076, 0.041, 0.067, 0.064, 0.125 and 0.201.",
        "- SevenNet-0 neither: its forces at predicted positions point along what is left to DFT by a mean cosine of 0.06 (GaSe) and 0.05",
        "  (black phosphorus), and three structures of black phosphorus relaxed with it from predictions end at 0.179, 0.077 and 0.116,",
        "  predicted at 0.150, 0.070 and 0.092.",
        "- Symmetric traceless tensors on the sites, beside scalars and vectors (a patch, not kept): ahead in short runs (GaSe and InSe, 300 steps on",
        "  each, 0.0477 and 0.0370, without 0.0491 and 0.0379), not at the end. Eight layers with them, from scratch, labelled structures",
        "  among the pairs: 0.0417 and 0.0316 after 1,400 steps on each, black phosphorus 0.0747 after 2,000 (curves above). The means with the bundled",
        "  weights, 0.0411, 0.0309 and 0.0723, are no better than means without tensors.",
        "- Asking again is for networks that saw corrupted starts to their end. The bundled ones did not: black phosphorus 0.0722, asked again 0.0925,",
        "  GaSe 0.0413 and 0.0619, InSe 0.0313 and 0.0553; eight layers taught such labels in half of their steps stay at 0.0796.",
        "  `docs/distill.py` refuses it now.",
        "- Nor do predictions want scaling (by 0.97: within 0.0001 Å of what they are, on every host), nor is the error in the longest waves (below) a matter",
        "  of sums over defects: regressed on the structure factors of all kinds of defects, other structures' coefficients explain none of it",
        "  (-9 to +2 %, each direction and host, validation pairs).",
        "- Next: the bound of 0.030 Å over all six hosts is not in reach with these pairs (below). Other seeds and students buy about 1 % from here;",
        "  MoS2 and WSe2 with eight layers and Muon, both densities, 2,500 steps on each, then mostly low density, perhaps 0.0003 in the average.",
        "  On 30 minutes of an H200: `deep` for every host at twice the steps, with dropout 0.25 where pairs are learned by heart: a day",
        "  of it buys seeds and students, not what the pairs do not say. What no GPU can give: DFT of more dense cells, and of some of",
        "  them twice from starts slightly apart, to see what chance decides (no two structures here are equivalent).",
        "- In the comparisons above, fine-tuning beats training from scratch with ten pairs only: the network it starts from is far",
        "  from converged, and its rate is a quarter. Read them as comparisons of short runs.",
        "",
    ]


def pairs_section(several: list[dict], result: dict) -> list[str]:
    """Return how the error falls with the number of pairs, and how alike networks are that share none of them."""
    high = [row["coordinate_mae"] for name, row in result["subsets"].items() if name.startswith("high/")]
    wanted = BOUND * len(high) / sum(high)
    lines = [
        "### What further pairs would buy",
        "",
        f"`python docs/pairs.py 2dmd.pack SUBSET`: a host alone, {several[0]['steps']:,} steps each of a network of five layers from scratch. Coordinate",
        "MAE on validation pairs (Å) by number of training pairs; two halves that share none, and all of them with two seeds.",
        "Correlation: of the errors of the two halves' networks, and of the two seeds'. Power: of the number of pairs with which",
        f"the error falls from a quarter to all. Times as many: pairs that an error smaller by {1 - wanted:.0%} would take at that power, which is what lies".replace(
            "%", " %"
        ),
        f"between the average over the hosts and {BOUND:.3f} Å. Without their pairs' doing: the error of the halves times the root of their correlation.",
        "",
        "| | quarter | half | other half | all | all, other seed | correlation: no pair shared | all shared | power | times as many | without their pairs' doing |",
        "| --- " * 11 + "|",
    ]
    for content in several:
        runs = content["runs"]
        whole = (runs["all"]["mae"] + runs["all, other seed"]["mae"]) / 2
        power = math.log(runs["quarter"]["mae"] / whole) / math.log(runs["all"]["pairs"] / runs["quarter"]["pairs"])
        cells = [f"{row['mae']:.4f} ({row['pairs']})" for row in runs.values()]
        cells += [f"{content[f'correlation, {which} shared']:.2f}" for which in ("no pair", "all pairs")]
        halves = (runs["half"]["mae"] + runs["other half"]["mae"]) / 2
        cells += [f"{power:.2f}", f"{wanted ** (-1 / power):.1f}"]
        cells.append(f"{halves * math.sqrt(content['correlation, no pair shared']):.4f}")
        lines.append(f"| {content['subset']} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "What networks without a common pair do wrong alike is not the doing of their pairs: with ever more of them that share of the",
        "squared error (correlation, no pair shared) would stay, unless what more pairs show is something no such network sees now.",
        "That is the last column, 7 to 13 % below what all pairs give this network. Another seed changes 6 to 10 % of the squared error; the MAE of black phosphorus differs by 5 %",
        "between two, so differences of single runs there are no more than that. The rest DFT decides by chance or by where it began,",
        "or it takes another kind of network to see it.",
        "",
    ]


def limits_section(limits: dict) -> list[str]:
    """Return what the data themselves say: symmetry, and how differently equal defects relax."""
    symmetry = [row["symmetry"] for row in limits["subsets"].values()]
    symmetric, most = sum(row["symmetric"] for row in symmetry), max(row["largest"] for row in symmetry)
    lines = [
        "### What the data themselves allow",
        "",
        f"`python docs/limits.py 2dmd.pack`. DFT breaks no symmetry here: {symmetric:,} of the {sum(row['pairs'] for row in symmetry):,} structures are mapped",
        f"onto themselves by some symmetry of the host, and every one of them keeps it (to {most:.0e} Å): what h-BN's mirror",
        "plane leaves open, which no equivariant network could choose, does not occur, and costs nothing.",
        "",
        f"But defects of one kind relax differently. Those with no other within {limits['alone']} Å: how far their nearest atoms move out",
        "(mean, Å; quantiles over structures), and the share of its variance that the weights explain on validation pairs.",
        f"Right way: where nearest atoms leave the symmetry of the site by {limits['lopsided']} Å or more, and the weights send them that way.",
        "",
        "| | defect | n | 10 % | median | 90 % | validation | explained | right way |",
        "| --- " * 9 + "|",
    ]
    for name, subset in sorted(limits["subsets"].items()):
        for defect, row in subset["lone"].items():
            way = f"{row['right_way']} of {row['lopsided']}" if row["lopsided"] else ""
            explained = f"{row['explained']:.0%}".replace("%", " %") if row["explained"] is not None else ""
            lines.append(
                f"| {name} | {defect} | {row['n']} | {row['10%']:+.3f} | {row['50%']:+.3f} | {row['90%']:+.3f} | {row['val']} | {explained} | {way} |"
            )
    return [
        *lines,
        "",
        "A lone Se vacancy in GaSe or InSe draws its neighbours in by a quarter Å or pushes them out by half an Å; a carbon on",
        "N in h-BN pushes its neighbours by 0.02 or by 0.06 Å. That looks like charge: the vacancies and impurities of a cell are donors",
        "and acceptors, and which of them holds the electrons hangs on all the others (in h-BN, a forest of decision trees that",
        "knows only how many defects of each kind the cell has explains half of the variance of a lone N vacancy). Sites know",
        "the mean over the cell, so the network can learn it, but 400 cells a host show little of it. A layer in which the",
        "electrons of all sites fill the levels of all sites, lowest first, brought nothing in short runs (h-BN 0.0301 against 0.0292",
        "without, GaSe 0.0527 against 0.0539), nor did a mean over the defects besides the one over the sites (h-BN alone, two seeds:",
        "0.0296 and 0.0300; three without: 0.0292 to 0.0297).",
        "",
        *waves_section(limits),
        *density_section(limits),
    ]


def density_section(limits: dict) -> list[str]:
    """Return the error by density of defects, and what two networks do wrong alike."""
    edges = [f"{edge:.0%}".replace("%", " %") for edge in limits["densities"][:-1]]
    heads = [f"to {edges[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(edges)), f"above {edges[-1]}"]
    lines = [
        "The error is that of dense cells. Coordinate MAE (Å) on validation pairs by the share of sites with a defect, number of",
        "structures in brackets, and the correlation of the errors with those of the general network in the same file.",
        "",
        f"| | {' | '.join(heads)} | correlation |",
        "| --- " * 6 + "|",
    ]
    for name, subset in sorted(limits["subsets"].items()):
        row = subset["density"]
        cells = [f"{part['mae']:.4f} ({part['n']})" if part["n"] else "" for part in row["by"]]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['correlation']:.2f} |")
    return [*lines, ""]


def waves_section(limits: dict) -> list[str]:
    """Return how much of the error lies in the longest waves of a cell, and what is particular about those."""
    lines = [
        "Much of the error is as long as the cell. Its longest waves, in which primitive cells move as a whole: their share of all",
        "squared displacements and of all squared errors on validation pairs, and what the coordinate MAE is without the error there.",
        "Of the error along z in these waves: the factors by which true amplitudes differ from predicted ones (quantiles over",
        "structures), and the share that is explained by such a factor, one for each structure.",
        "",
        "| | waves, of sites | displacement | error | MAE | without | factor 10 % | median | 90 % | explained |",
        "| --- " * 10 + "|",
    ]
    for name, subset in sorted(limits["subsets"].items()):
        row = subset["waves"]
        shares = [f"{row[key]:.0%}".replace("%", " %") for key in ("displacement", "error")]
        cells = [f"{row['waves']} of {row['of']}", *shares, f"{row['mae']:.4f}", f"{row['mae_without']:.4f}"]
        if row["explained"] is None:
            cells += [""] * 4
        else:
            cells += [f"{factor:.2f}" for factor in row["factors"]] + [f"{row['explained']:.0%}".replace("%", " %")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "At low density the shape of the bending is right and its amplitude is not: for MoS2 one number a structure is nearly all",
        "of that error, and these numbers crowd at 0.7 and at 1.0, with a tail above. That looks like relaxations which stopped",
        "before the softest motion of the layer had come to its end, some earlier than others: a matter of the optimiser, where the",
        "energy is flat. It is not all chance (a forest of trees that knows the defects, their distances and sides explains a",
        "quarter of the variance of the factors' logarithms). The network hears far enough: a layer that answers forces with the",
        "displacements of an elastic lattice, its springs learned, at once over the whole cell, was ahead in short runs on low density",
        "(0.0037 against 0.0040 after 600 steps), not at high density (MoS2 0.0205, WSe2 0.0286; without 0.0204, 0.0284), and no",
        "more when put into the trained network (0.0014 and 0.0024 with and without, 500 steps later).",
        "",
    ]


def dft_section() -> list[str]:
    """Return the ionic steps counted with other codes, a table row for each structure and run."""
    shares: dict[tuple[str, str], list[float]] = {}
    lines = [
        "| calculator | weights | structure | cell scaled by | steps: sites | steps: predicted | saved | energy above the end: sites | predicted, eV | MAE to the end: sites | predicted, Å |",
        "| --- " * 11 + "|",
    ]
    for path in sorted((RESULTS / "dft").glob("*.json")):
        content = json.loads(path.read_text())
        for row in content["structures"]:
            if "error" in row:
                continue
            runs = [row["unrelaxed"], row["predicted"]]
            steps = [f"{run['steps']}" + ("" if run["converged"] else " (not converged)") for run in runs]
            above = [f"{run['first_energy_above_last']:.3f}" for run in runs]
            saved = "-" if row["steps_saved"] is None else f"{row['steps_saved']:.0%}"
            saved += "" if row["same_minimum"] else " (another minimum)"
            scale = row.get("scale", 1.0)
            cells = [
                content["calculator"],
                content["model"].split(" (")[0],
                row["file"].removeprefix("examples/"),
                f"{scale - 1:+.2%}" if scale != 1 else "-",
            ]
            cells += [*steps, saved, *above, f"{row['ideal_sites_error']:.4f}", f"{row['prediction_error']:.4f}"]
            lines.append("| " + " | ".join(cells) + " |")
            if row["steps_saved"] is not None:
                shares.setdefault((content["calculator"], row["file"].split("/")[1]), []).append(row["steps_saved"])
    said = [f"{code} on {host} {_span(own)}" for (code, host), own in sorted(shares.items())]
    lines += [
        "",
        f"Steps saved: {', '.join(said)}.",
        "BFGS starts without the force constants and seems to need about seven steps for them from either start: the less there",
        "is to relax, the less there is to save. None of this is the paper's 87 %, counted with VASP on structures of 2DMD.",
    ]
    return lines


def _span(shares: list[float]) -> str:
    """Return the least and the largest share."""
    low, high = (f"{share:.0%}" for share in (min(shares), max(shares)))
    return low if low == high else f"{low} to {high}"


def experiments() -> dict[str, dict]:
    """Return every finished experiment by name."""
    found = [json.loads(path.read_text()) for path in sorted((RESULTS / "experiments").glob("*.json"))]
    return {content["name"]: content for content in found}


def high_row(table: dict) -> str:
    """Return the errors on the high-density subsets and their average as cells."""
    values = [table.get(f"high/{host}", {}).get("mae") for host in HIGH]
    mean = sum(values) / len(values) if all(v is not None for v in values) else None
    return " | ".join(f"{v:.4f}" if v is not None else "" for v in [*values, mean])


def black_phosphorus(done: dict[str, dict]) -> list[str]:
    """Return the tables of runs on black phosphorus alone."""
    lines: list[str] = []
    for kind, title, *text in (
        (
            "steps: ",
            "How steps are taken",
            "Black phosphorus alone, half of the structures on their way. Muon: orthogonalised steps for the matrices between",
            "channels. Components: the loss is what the coordinate MAE scores, not the length of each atom's error.",
        ),
        (
            "by heart: ",
            "Learning by heart, and what keeps from it",
            "Black phosphorus alone, 405 pairs, seen sixty times each. On their way: atoms start between the host's sites and",
            "their relaxed places, with noise (`corrupt`, `noise`).",
        ),
    ):
        hard = {name.removeprefix(kind): row for name, row in done.items() if name.startswith(kind)}
        if len(hard) > 1:
            some = next(iter(hard.values()))
            lines += [f"### {title} ({some['config']['steps']:,} steps)", "", *text, ""]
            lines += ["| | black P | A3 |", "| --- | --- | --- |"]
            for name, row in sorted(hard.items()):
                own = row["validation"]["high/P"]
                lines.append(f"| {name} | {own['mae']:.4f} | {own['a3']:.4f} |")
            lines.append("")
    return lines


def experiment_section(done: dict[str, dict]) -> list[str]:
    """Return the tables of ablations, data efficiency, transfer and single hosts."""
    head = f"| | {' | '.join(LABELS.get(h, h) for h in HIGH)} | average |"
    rule = "| --- " * 8 + "|"
    lines: list[str] = []
    for title, kind in (("Ablations", "ablation: "), ("Data efficiency", "data: ")):
        rows = [(name.removeprefix(kind), row) for name, row in done.items() if name.startswith(kind)]
        if rows:
            rows.sort(key=lambda pair: pair[0] != "all" if kind == "ablation: " else int(pair[0].rstrip("%")))
            lines += [f"### {title} ({rows[0][1]['config']['steps']:,} steps)", "", head, rule]
            lines += [f"| {name} | {high_row(row['validation'])} |" for name, row in rows] + [""]
    alone = {name.removeprefix("alone: "): row for name, row in done.items() if name.startswith("alone: ")}
    if alone and "ablation: all" in done:
        merged = {name: row["validation"][name] for name, row in alone.items()}
        steps = next(iter(alone.values()))["config"]["steps"], done["ablation: all"]["config"]["steps"]
        lines += [
            "### One network for all hosts, or one each",
            "",
            f"{steps[0]} steps for each host alone, {steps[1]} for all six together, {steps[1] // 6} of them on each host.",
            "",
            head,
            rule,
        ]
        lines += [
            f"| together | {high_row(done['ablation: all']['validation'])} |",
            f"| one each | {high_row(merged)} |",
            "",
        ]
    lines += black_phosphorus(done)
    few = {name: row for name, row in done.items() if name.startswith(("scratch: ", "fine-tuned: "))}
    if few:
        some = next(iter(few.values()))
        first = some["validation"]["high/InSe"]
        lines += [
            "### Fine-tuning on a new host",
            "",
            "InSe, validation error by number of its pairs: from scratch, and from a network trained on the five other hosts",
            f"({some['config']['steps']} steps each; ideal sites: {first['dummy']:.4f}).",
            "",
            "| pairs | from scratch | fine-tuned |",
            "| --- | --- | --- |",
        ]
        for pairs in (10, 40, 130, 400):
            cells = [few.get(f"{how}: {pairs} pairs of InSe") for how in ("scratch", "fine-tuned")]
            shown = [f"{row['validation']['high/InSe']['mae']:.4f}" if row else "" for row in cells]
            lines.append(f"| {pairs} | {' | '.join(shown)} |")
        lines.append("")
    moved = {name: row for name, row in done.items() if name.startswith("transfer: ")}
    if moved:
        names = [f"{d}/{h}" for d in ("high", "low") for h in ("MoS2", "WSe2")]
        lines += ["### Transfer between densities", "", f"| trained on | {' | '.join(names)} |", "| --- " * 5 + "|"]
        lines += [
            "| nothing (ideal sites) | "
            + " | ".join(f"{next(iter(moved.values()))['validation'][n]['dummy']:.4f}" for n in names)
            + " |"
        ]
        for name, row in moved.items():
            source = name.removeprefix("transfer: ").split(" to ")[0]
            lines.append(
                f"| {source} density | " + " | ".join(f"{row['validation'][n]['mae']:.4f}" for n in names) + " |"
            )
        lines.append("")
    return lines


def scaling_section(scaling: dict) -> list[str]:
    """Return the tables of cell sizes."""
    lines = ["| case | cell | sites | largest move | mean within 3 Å | mean beyond 8 Å | expected error within 3 Å |"]
    lines.append("| --- " * 7 + "|")
    for name, rows in scaling["cases"].items():
        for row in rows:
            far = f"{row['far_mean']:.4f}" if row["far_mean"] is not None else ""
            doubt = f"{row['expected_error_near']:.4f}" if row["expected_error_near"] is not None else ""
            lines.append(
                f"| {name} | {row['n']}x{row['n']} | {row['sites']} | {row['largest']:.4f} | {row['near_mean']:.4f} | "
                f"{far} | {doubt} |"
            )
    return lines


def page() -> str:
    """Return the whole page."""
    result = json.loads((RESULTS / "default-val.json").read_text())
    card = json.loads((HERE.parent / "ase_definet" / "weights" / "default.json").read_text())["card"]
    lines = [
        "# Results",
        "",
        "Generated by `python docs/make_results.py` from the files in `docs/results`; lengths in Å. Tuning and every",
        "number here used the validation split; the relaxed test structures are not ours to see.",
        "",
        f"## {result['model']}",
        "",
        "`ase-definet evaluate --data 2dmd.pack --split val --json docs/results/default-val.json`: coordinate MAE, through",
        "the whole path (match, graph, network). A3 to A6: atoms within 3 to 6 Å of a defect site. Unrelaxed: the file as",
        "the prediction (low-density WSe2 carries another layer thickness there). Superposition: sum of single-defect",
        "fields fitted to the training pairs. The test columns are for those who hold the test structures.",
        "",
        *main_table(result),
        "",
        "Errors of single atoms (length, Å), the estimate of them, and seconds on two CPU cores in batches, matching included:",
        "",
        *atoms_table(result),
        "",
    ]
    if "uncertainty" in card:
        lines += [
            "The estimate was fitted to these validation structures, so the columns above flatter it. Cross-fitted (every",
            "structure judged by an estimate that has not seen it):",
            "",
            *reliability_table(card),
            "",
        ]
    plots = sorted((RESULTS / "plots").glob("*.png"))
    lines += [line for path in plots for line in (f"![{path.stem}](results/plots/{path.name})", "")]
    done = experiments()
    if done:
        some = next(iter(done.values()))
        lines += [
            "## Comparisons at equal budget",
            "",
            f"`python docs/experiments.py 2dmd.pack`: batches of {some['config']['batch']}, coordinate MAE of all atoms on validation",
            "pairs. Short runs of a small network, one seed each: they rank ideas, they are not the product, and differences",
            "below some 2 % are noise.",
            "",
            *experiment_section(done),
        ]
    if list((RESULTS / "dft").glob("*.json")):
        lines += [
            "## Ionic steps, counted",
            "",
            "`ase-definet compare-steps FILE --host HOST --calculator CALCULATOR [--fit-lattice]`: relaxed at fixed cell to",
            "0.05 eV/Å with ASE's BFGS, from the host's sites and from the prediction, same settings. GPAW: PBE, LCAO dzp,",
            'h = 0.2 Å, Γ only, no spin; CHGNet 0.3.0. "Scaled" where the calculator\'s own lattice constant was fitted first.',
            "",
            *dft_section(),
            "",
        ]
    if (RESULTS / "gap.json").exists():
        lines += gap_section(json.loads((RESULTS / "gap.json").read_text()))
    several = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("pairs-*.json"))]
    if several:
        lines += pairs_section(several, result)
    if (RESULTS / "limits.json").exists():
        lines += limits_section(json.loads((RESULTS / "limits.json").read_text()))
    if (RESULTS / "scaling.json").exists():
        scaling = json.loads((RESULTS / "scaling.json").read_text())
        lines += [
            "## One vacancy in ever larger cells",
            "",
            f"`python docs/scaling.py`, {scaling['model']}: displacements in Å. There is no DFT for these sizes; what can be",
            "checked is that the field near the defect settles and that far away nothing moves.",
            "",
            *scaling_section(scaling),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    logs = {log.stem: log for log in sorted((RESULTS / "logs").glob("*.csv"))}
    draw_learning_curve(logs, RESULTS / "plots" / "learning_curve_deep.png")
    (HERE / "results.md").write_text(page(), encoding="utf-8")
