"""Write what the README says of the weights, of other ways to relax, and of the example: from the card, files and a real run.

Run as ``python -m research.pages.readme`` after the weights or the comparison changed; a test compares the README with this.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from ase.data import chemical_symbols

from ase_definet.checkpoints.bundled import bundled_cards
from ase_definet.matching.library import library
from research.pages import comparison
from research.pages.sections import cp2k_steps
from research.pages.stored import result
from research.pages.stored import results as result_files
from research.pages.trust import validated
from research.paths import ROOT

NAMES = {"BN": "h-BN", "BN-bulk": "bulk h-BN", "P": "black phosphorus"}


def host_title(name: str) -> str:
    """Return what the README calls a host."""
    return NAMES.get(name, name)


def _served(network: dict[str, Any]) -> str:
    """Return the hosts of one of several networks, and whether another one serves the rest of their structures."""
    hosts = " and ".join(host_title(host) for host in network["hosts"])
    return f"{hosts} (neutral, in PBE)" if network.get("beside") else hosts


def described(name: str, card: dict[str, Any]) -> str:
    """Return a paragraph on weights: trained on what, for how long, and in how many networks."""
    pairs = sum(host["training_pairs"] for host in card["training"]["hosts"].values())
    routed = card.get("routed", [])
    runs = [card, *routed]
    labelled = sum(sum(run["training"].get("labelled_by_networks", {}).values()) for run in runs)
    own = f" and {labelled:,} random structures that its predecessors labelled" if labelled else ""
    served = "; ".join(_served(one) for one in routed)
    kind = f"{len(runs)} networks (for {served}; and one for all others)" if routed else "one network for all hosts"
    return (
        f"`{name}` {card['version']} has {card['parameters']:,} parameters in {kind}. It was trained on {pairs:,} pairs of 2DMD and "
        f"the h-BN database{own}, for {steps(runs):,} steps on two CPU cores."
    )


def densities() -> str:
    """Return how many sites of a cell are defective at high and at low density."""
    rows = {density: [] for density in ("high", "low")}
    for subset, row in result("data_summary")["subsets"].items():
        rows[subset.partition("/")[0]].append(row)
    low, high = (pick(share for row in rows["high"] for share in row["defect_share"]) for pick in (min, max))
    fewest, most = (pick(n for row in rows["low"] for n in row["defects"]) for pick in (min, max))
    cells = {cell for row in rows["low"] for cell in row["cells"]}
    share = f"{low:.0%} to {high:.1%}".replace("%", " %")
    return f"*High density*: {share} of the sites are defective; *low density*: {fewest} to {most} in a cell of {' or '.join(sorted(cells))}."


def foreign(host: str, defects: Sequence[str]) -> str:
    """Return which elements that the host does not have its training data put on its sites, and whether sites are empty."""
    own = {chemical_symbols[z] for z in library()[host].numbers}
    there = {defect.partition("_")[0] for defect in defects}
    named = sorted(there - own - {"v"})
    return ", ".join([*named, *["antisites"] * bool(there & own), *["vacancies"] * ("v" in there)])


def errors(card: dict[str, Any], host: str) -> str:
    """Return the validation errors of a host by group, in brackets what they leave of the error of not moving."""
    found = []
    scores = result("default-val")["subsets"]
    for subset, ending, row in validated(card, host):
        title = ending.strip() or f"{subset.partition('/')[0]} density"
        error, still = row["mae"], row["ideal_sites"]
        if subset in scores:  # counted once for all pages, and with a mean displacement that was not removed
            error, still = scores[subset]["coordinate_mae"], scores[subset]["ideal_sites"]["coordinate_mae"]
        found.append(f"{title} **{error:.4f}** ({still:.4f})")
    return "; ".join(found)


def table() -> str:
    """Return the README's part on the weights, in Markdown."""
    parts = []
    for name, bundled in bundled_cards().items():
        card = bundled.card.plain()
        parts += [
            described(name, card),
            "",
            "The error is the coordinate MAE on validation pairs, which were not trained on but used to choose settings; in brackets",
            f"that of leaving every atom on its host site. {densities()}",
            "",
            "| host | in it | charge | functional | DFT pairs | error, Å (not moving) |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for host, known in sorted(card["training"]["hosts"].items()):
            charges = ", ".join(f"{q:+d}" if q else "0" for q in known.get("charges", [0]))
            functionals = ", ".join(known.get("functionals", ["PBE"]))
            cells = [host_title(host), foreign(host, known["defects"]), charges, functionals]
            parts.append(f"| {' | '.join(cells)} | {known['training_pairs']:,} | {errors(card, host)} |")
    return "\n".join(parts)


def compared() -> str:
    """Return the README's part on other ways to relax."""
    found = result_files("comparison")
    ids = comparison.common(found)
    rows = []
    for method, label in comparison.NAMES.items():
        known = comparison.rows_of(found, method)
        values = [mean(row[key] for row in known.values()) for key in ("coordinate_mae", "a3")]
        time = (
            "" if method == "ideal_sites" else comparison.duration(median(row["seconds"] for row in known.values()))
        )
        bold = "**" * (method == "network")
        rows.append(f"| {label} | {' | '.join(f'{bold}{value:.4f}{bold}' for value in values)} | {time} |")
    speed = result("performance")
    done, machine = max(speed["screening"], key=lambda row: row["structures_per_s"]), speed["machine"]["description"]
    return "\n".join(
        [
            f"{len(ids)} validation structures of 2DMD, the same for all, on one busy core ([docs/comparison.md](docs/comparison.md): more of it,",
            "what it does not say, and what others have published). The network was trained on such structures, the potentials were not.",
            "",
            "|  | error, Å | near the defects, Å | time per structure |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"A screen of {done['structures']:,} cells took {done['seconds']:.0f} s on {machine}: {done['structures_per_s']:.0f} structures a second.",
        ]
    )


def ionic_steps() -> str:
    """Return what the README says of ionic steps: what was measured in DFT, nothing more."""
    about, cases = result("ionic_steps/cp2k/setup/about"), cp2k_steps.finished()
    where = "[docs/results.md](docs/results.md)"
    if not cases:
        return f"How many ionic steps of DFT a prediction saves is being measured in CP2K: {where}.\n"
    told = "; ".join(
        f"{runs['predicted']['steps']} instead of {runs['sites']['steps']} ({cp2k_steps.described(case)})"
        for case in cases.values()
        for runs in [case["runs"]]
    )
    return (
        f"**Ionic steps**, to {about['force']:g} eV/Å in CP2K (PBE, {about['cell']} cells at its own lattice constant) from the "
        f"prediction instead of the host's sites: {told}. {len(cases)} of {len(about['cases'])} structures are measured so "
        f"far: {where}.\n"
    )


def steps(cards: list[dict[str, Any]]) -> int:
    """Return the steps of some runs and of those they began with, each counted once.

    A run is known by its settings: networks that were combined into new weights got a new version and are named as their
    own beginning on the card.
    """
    found = {}
    for card in cards:
        run = card["training"]
        while run:
            found[json.dumps(run["config"], sort_keys=True)] = run["steps"]
            run = run.get("initial_weights")
    return sum(found.values())


def console() -> str:
    """Run the README's example and return what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *("ase-definet", "relax", str(ROOT / "examples/mos2/POSCAR"), "--host", "MoS2", "--device", "cpu"),
                *("-o", f"{folder}/MoS2_relaxed.vasp", "--vasp", f"{folder}/vasp_input"),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.replace(f"{folder}/", "").strip()


def filled(text: str, mark: str, content: str) -> str:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->``."""
    pattern = re.compile(f"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no {mark} section")
    return pattern.sub(lambda m: f"{m[1]}{content}\n{m[2]}", text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    content = filled(readme.read_text(encoding="utf-8"), "weights", table())
    content = filled(content, "comparison", compared())
    content = filled(content, "steps", ionic_steps())
    command = "$ ase-definet relax examples/mos2/POSCAR --host MoS2 -o MoS2_relaxed.vasp --vasp vasp_input"
    follow = "$ cd vasp_input      # POSCAR INCAR KPOINTS POTCAR.spec README.txt: add your POTCAR and run VASP"
    content = filled(content, "example", f"```console\n{command}\n{console()}\n{follow}\n```")
    readme.write_text(content, encoding="utf-8")
