"""Write docs/properties.md: formation energies, gaps and moments, how good they are and what they mean.

Run as ``python -m research.pages.properties`` after research/results/properties-val.json, property_ablation.json,
property_folds.json or the weights for properties changed; a test compares the page with them.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ase_definet.checkpoints.bundled import PROPERTIES
from ase_definet.checkpoints.card import ModelCard
from ase_definet.matching.library import library
from ase_definet.properties.chemical_potentials import HOST_ENERGIES, REFERENCES, SOURCE, limit
from ase_definet.properties.support import LEAST, no_support
from research.pages.markdown import host_name, reflowed, table
from research.pages.stored import result
from research.paths import DOCS

PAGE = DOCS / "properties.md"
ORDER = ("high/P", "high/GaSe", "high/InSe", "high/MoS2", "high/WSe2", "high/BN", "low/MoS2", "low/WSe2")
TITLES = {
    "formation_energy": "Formation energy per defect site",
    "gap_min": "Smallest gap",
    "total_mag": "Magnetic moment",
}
MILLI = 1000
ROWS = {
    "single": "single-defect terms",
    "pair-additive": "pair-additive",
    "sparse-without-pairs": "sparse, without pairs",
    "sparse": "sparse",
    "full-ideal": "full graph, ideal geometry",
    "full-relaxed": "full graph, predicted geometry",
}


def page() -> str:
    """Return the whole page."""
    return reflowed(
        [*head(), *meaning(), *potentials(), *accuracy(), *evidence(), *speed(), *trust(), *how_to(), *cite()]
    )


def head() -> list[str]:
    """Return the introduction."""
    return [
        "# Energies and gaps",
        "",
        (
            "What an arrangement of defects costs, how large the gap is that it leaves, and its magnetic moment follow from "
            "the defects alone, without relaxing anything: the weights for properties read the graph of the defect sites "
            "(what is on each site, what the host has there, all pairs of defects with their periodic images)."
        ),
        "",
        "```python",
        "from ase_definet.matching.site_map import match_sites",
        "from ase_definet.properties.predictor import PropertyPredictor",
        "",
        "predictor = PropertyPredictor()",
        '(found,) = predictor.predict([match_sites(atoms, "MoS2")])',
        'found["formation_energy"]  # value, unit, expected_error, trust, reasons',
        "```",
        "",
        (
            "`predict_occupations(host, supercell, occupations)` does the same for arrays of atomic numbers on the sites of a "
            "supercell, without matching: the way to rank an enumeration."
        ),
        "",
    ]


def meaning() -> list[str]:
    """Return what the numbers are."""
    return [
        "## What the numbers mean",
        "",
        (
            "- `formation_energy` is E(defect) - E(host) - Σ Δn μ in eV, of the whole cell, relaxed, at fixed cell: E(host) "
            "the same cell without defects, Δn the atoms of an element more than in it, μ their chemical potentials. "
            "`formation_energy_per_defect` is the same divided by the number of defect sites."
        ),
        "",
        (
            "- `gap_min` is the smaller of the gaps of the two spin channels between the highest occupied and the lowest "
            "empty Kohn-Sham level, in eV: with PBE, and with all levels of the defects. It is no optical gap."
        ),
        "",
        (
            "- `total_mag` is the magnetic moment of the cell in µB. MoS2 and WSe2 were computed without spin: there is none "
            "for them, and their energies and gaps are those of closed shells."
        ),
        "",
        (
            "- Cells are periodic, neutral and in their ground state. Defects see their images; the energies contain that "
            "interaction, in cells of the size that the data have. There is no correction for images and none for charge: a "
            "charged structure gets no number. Neither does a structure of another functional, nor the pristine host, in which "
            "there is nothing to predict."
        ),
        "",
    ]


def potentials() -> list[str]:
    """Return the tables of chemical potentials."""
    rows = [(element, f"{value:.4f}") for element, value in REFERENCES.items()]
    limits = []
    for name in HOST_ENERGIES:
        host = library()[name]
        for element in elements_of(name):
            found = limit(host, name, element)
            text = ", ".join(f"{symbol} {value:.3f}" for symbol, value in found.items())
            limits.append((host_name(name), f"rich in {element}", text))
    return [
        "## Chemical potentials",
        "",
        (
            f'Energies are relative to the bulk phases of the elements unless others are given (`parse_potentials(["S=-4.5"], '
            f"...)`, `rich:S`, `poor:S`). Source of the values: {SOURCE}; PBE, VASP."
        ),
        "",
        *table(("element", "μ of the bulk phase, eV"), rows),
        (
            "Rich in an element means in equilibrium with its bulk phase; the chemical potential of the host's other element "
            "follows from the energy of the host. Hosts without a tabulated energy have no such limits. The bulk phases of "
            "all elements of a compound at once, which are the default as in the literature, are no equilibrium: atoms in "
            "them cost more than in the host, and energies of different compositions must not be compared with them. "
            "`relax` and `properties` say by how much, and doubt potentials above those of the bulk phases; give `--mu rich:ELEMENT` for a limit of stability."
        ),
        "",
        *table(("host", "limit", "μ, eV"), limits),
    ]


def elements_of(name: str) -> list[str]:
    """Return the symbols of the elements of a library host."""
    from ase.data import chemical_symbols  # noqa: PLC0415

    return list(dict.fromkeys(chemical_symbols[z] for z in library()[name].numbers))


def accuracy() -> list[str]:
    """Return the tables of validation errors beside the published ones."""
    found, published = result("properties-val"), result("properties_published")
    scores = card().property_scores
    lines = [
        "## How good they are",
        "",
        (
            "Validation split (tuned on), mean absolute errors in meV; the published figures are of another group's test split "
            f"({published['source'].partition(',')[0]}), so that differences of a few per cent mean nothing. *Mean's MAE* is the error "
            "of always saying the mean of the training labels, R² the share of the variance around it that is predicted. Where R² "
            f"or the rank correlation is below {LEAST:g} on a host, the value would mean next to nothing: it is unknown there, in "
            "every command and in Python, with the reason. The numbers are on the card of the weights (`property_scores`), and "
            "your own weights get theirs with `weights ensemble`."
        ),
        "",
    ]
    for name, title in TITLES.items():
        own = found["properties"][name]
        scale, unit = (1, "µB") if own["unit"] == "µB" else (MILLI, "meV")
        others: Mapping[str, Any] = published.get(name, {})
        subsets = [subset for subset in ORDER if subset in own["subsets"]]
        rows = []
        for subset in [*subsets, "mean"]:
            row = own["overall"] if subset == "mean" else own["subsets"][subset]
            cells = [f"{scale * row[key]:.3g}" for key in ("mae", "median_error")]
            score = scores[name].get(subset)
            cells += ["", ""] if score is None else [f"{scale * score.mean_mae:.3g}", f"{score.r2:.2f}"]
            if name == "formation_energy":
                cells.append("" if row.get("baseline_mae") is None else f"{scale * row['baseline_mae']:.3g}")
            cells += [
                f"{np.mean(list(values.values())) if subset == 'mean' else values[subset]:.3g}"
                for values in others.values()
            ]
            cells.append(f"{row['rank_correlation']:.3f}")
            expected = row.get("expected_error", {}).get("mean_estimate")
            cells.append("" if expected is None else f"{scale * expected:.3g}")
            rows.append((subset if subset == "mean" else subset_name(subset), *cells))
        heads = ["subset", f"MAE, {unit}", "median", "mean's MAE", "R²"]
        heads += ["pair-additive"] if name == "formation_energy" else []
        heads += [*others, "rank correlation", "expected error"]
        lines += [f"### {title}", "", *table(heads, rows)]
        lines += unknown_on(name)
    return lines


def card() -> ModelCard:
    """Return the card of the bundled weights."""
    return ModelCard.read(json.loads((PROPERTIES / "default.json").read_text(encoding="utf-8"))["card"])


def unknown_on(target: str) -> list[str]:
    """Return on which hosts a property is unknown, because its validation does not support it."""
    hosts = dict.fromkeys(score.host for score in card().property_scores.get(target, {}).values())
    unknown = [host_name(host) for host in hosts if no_support(card(), host, {target: ""})]
    return [f"Unknown for want of quality: {', '.join(unknown)}.", ""] if unknown else []


def subset_name(subset: str) -> str:
    """Return what the page calls a subset: ``MoS2, high density``."""
    return f"{host_name(subset)}, {subset.partition('/')[0]} density"


def evidence() -> list[str]:
    """Return the ablation, and how hard the validation structures are."""
    found, folds = result("property_ablation"), result("property_folds")
    subsets = found["subsets"]
    rows = [
        (words, *(f"{found['rows'][row][name]:.3g}" for name in subsets))
        for row, words in ROWS.items()
        if row in found["rows"]
    ]
    hard = [
        (host_name(name), f"{row['all']:.3g}", f"{row['validation']:.3g} ± {row['standard_error']:.2g}")
        for name, row in folds["rows"].items()
    ]
    return [
        "## What it takes",
        "",
        (
            f"Formation energies per defect site, meV, validation; every row is trained on the same high-density structures, "
            f"networks for {found['steps']} steps, one seed (`python -m research.experiments.property_ablation`):"
        ),
        "",
        *table(("representation", *(host_name(name) for name in subsets)), rows),
        (
            "A read-out on the full graph does better where relaxations are large, and needs a pass of the network for "
            "displacements. The bundled weights are sparse networks; for black P and h-BN they have also learnt from random "
            "structures that such read-outs labelled (`research/distill_energies.py`). Mean errors are far above medians: networks that differ in "
            "their seeds agree on a few arrangements and are wrong together, which suggests that DFT ended in another minimum "
            "there than in similar ones."
        ),
        "",
        (
            "The validation splits have some fifty structures each. How far chance makes them harder or easier than the rest "
            "shows where the pair-additive fit predicts all labelled structures in ten-fold cross-validation "
            "(`python -m research.experiments.property_folds`), meV per defect site:"
        ),
        "",
        *table(("host", "all structures", "those of the validation split"), hard),
    ]


def speed() -> list[str]:
    """Return how many configurations are ranked per second."""
    rows = [
        (count, *(f"{row[name]['per_cpu_second']:,}" for name in ("ensemble", "smallest")))
        for count, row in result("properties_speed")["rows"].items()
    ]
    return [
        "## Speed",
        "",
        (
            "Occupations in, formation energies out, in configurations per second of one core (`python -m "
            "research.benchmarks.properties`), by the number of defects; with `fast=True` only the smallest network runs, "
            "without an expected error."
        ),
        "",
        *table(("defects", "all networks", "the smallest"), rows),
    ]


def trust() -> list[str]:
    """Return where the weights end."""
    return [
        "## Trust",
        "",
        (
            "Every value is `inside`, `near` or `outside` of the training data, by the same rules as displacements "
            "([trust](trust.md)), and has an expected absolute error from the spread of the networks, fitted to the validation "
            "split. An unknown host, element or defect, a charge, another functional, an excited state or an atom on no site gets "
            "no value at all. A spin that is given gets a value and no expected error: the labels are those of ground states, whose "
            "spins they do not name. "
            "Another size of the supercell, a strain of up to two per cent or an untried density gets a value and no expected "
            "error. Means are honest, single errors are only weakly ranked by the estimate."
        ),
        "",
    ]


def how_to() -> list[str]:
    """Return how to train one's own."""
    return [
        "## Your own labels",
        "",
        "```bash",
        "ase-definet data pack 2dmd energies.pack --labels labels.csv    # columns: id, formation_energy_eV, gap_min_eV, ...",
        "ase-definet train --data energies.pack --preset properties --out runs/energies",
        "ase-definet weights export runs/energies energies.safetensors",
        "ase-definet weights ensemble own.safetensors energies.safetensors --data energies.pack",
        "ase-definet evaluate --data energies.pack --properties own.safetensors --plot plots",
        "```",
        "",
        (
            "Labels come from a table, or with `--label NAME` from info keys and calculator results of the structures. Any scalar "
            "can be trained by its name (`targets`); labels whose names begin with `formation_energy` or `energy` are sums over "
            "defects, others are pooled. The bundled weights are made by "
            "[research/recipes/properties.sh](../research/recipes/properties.sh)."
        ),
        "",
    ]


def cite() -> list[str]:
    """Return whom to cite."""
    card = json.loads((PROPERTIES / "default.json").read_text(encoding="utf-8"))["card"]
    return [
        "## Citations",
        "",
        f"{card['attribution']} The sparse representation is that of Kazeev *et al.*; the network here is another one.",
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
