"""Write what the README says of the weights and of the example: from the card, the scores and a real run.

Run as ``python -m research.pages.readme`` after the weights changed; a test compares the README with this.
"""

import json
import re
import subprocess
import tempfile
from typing import Any

from ase_definet.checkpoints.bundled import bundled_cards
from research.pages.sections import cp2k_steps
from research.pages.stored import result
from research.paths import ROOT

PERCENT = 100
NAMES = {"BN": "h-BN", "BN-bulk": "bulk h-BN", "P": "black phosphorus"}


def defect_sites(density: str, row: dict[str, Any]) -> str:
    """Return how many sites of a cell are defective: their share where there are many, else their number."""
    if density == "high":
        low, high = (f"{PERCENT * share:.1f}" for share in row["defect_share"])
        return f"{low}-{high} %"
    low, high = row["defects"]
    return f"{low}-{high} per {row['cells'][0]} cell"


def _served(network: dict[str, Any]) -> str:
    """Return the hosts of one of several networks, and whether another one serves the rest of their structures."""
    hosts = " and ".join(NAMES.get(host, host) for host in network["hosts"])
    return f"{hosts} (neutral, in PBE)" if network.get("beside") else hosts


def table() -> str:
    """Return the README's part on the weights, in Markdown."""
    parts = []
    summary = result("data_summary")["subsets"]
    for name, bundled in bundled_cards().items():
        card = bundled.card.plain()
        pairs = sum(host["training_pairs"] for host in card["training"]["hosts"].values())
        routed = card.get("routed", [])
        runs = [card, *routed]
        labelled = sum(sum(run["training"].get("labelled_by_networks", {}).values()) for run in runs)
        own = f", and {labelled:,} random structures that its predecessors labelled," if labelled else ""
        sizes = " or ".join(str(n) for n in sorted({run["training"]["batch_size"] for run in runs}))
        served = "; ".join(_served(one) for one in routed)
        kind = f"networks for {served}, and one for all other hosts" if routed else "one network for all hosts"
        parts.append(
            f"`{name}` {card['version']}: {kind}, {card['parameters']:,} parameters, trained on "
            f"{pairs:,} pairs of 2DMD and the h-BN database{own} for {steps(runs):,} steps of {sizes} structures on two "
            "CPU cores. "
            f"Elements: {', '.join(card['training']['elements'])}.\n"
        )
        parts.append("| subset | defect sites | ideal sites | **relaxed** | ideal sites, near | **relaxed, near** |")
        parts.append("| --- | --- | --- | --- | --- | --- |")
        scores = result(f"{name}-val")["subsets"]
        for subset, row in scores.items():
            ideal = row["ideal_sites"]
            density, host = subset.replace("-", "/").split("/")
            sites = defect_sites(density, summary[subset])
            parts.append(
                f"| {NAMES.get(host, host)}, {density} density | {sites} | {ideal['coordinate_mae']:.4f} | "
                f"**{row['coordinate_mae']:.4f}** | {ideal['a3']:.4f} | **{row['a3']:.4f}** |"
            )
    return "\n".join(parts)


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
    content = filled(content, "steps", ionic_steps())
    command = "$ ase-definet relax examples/mos2/POSCAR --host MoS2 -o MoS2_relaxed.vasp --vasp vasp_input"
    follow = "$ cd vasp_input      # POSCAR INCAR KPOINTS POTCAR.spec README.txt: add your POTCAR and run VASP"
    content = filled(content, "example", f"```console\n{command}\n{console()}\n{follow}\n```")
    readme.write_text(content, encoding="utf-8")
