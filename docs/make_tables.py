"""Write what the README says of the weights and of the example from the bundled card and a real run.

Run as ``python docs/make_tables.py`` after the weights changed; a test holds the README against the card.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from ase_definet.checkpoints.bundled import bundled_cards

ROOT = Path(__file__).parent.parent
NAMES = {"BN": "h-BN", "P": "black phosphorus"}


def table() -> str:
    """Return the README's part on the weights, in Markdown."""
    parts = []
    for name, card in bundled_cards().items():
        pairs = sum(host["training_pairs"] for host in card["training"]["hosts"].values())
        routed = card.get("routed", [])
        runs = [card, *routed]
        labelled = sum(sum(run["training"].get("labelled_by_networks", {}).values()) for run in runs)
        own = f", and {labelled:,} random structures that its predecessors labelled," if labelled else ""
        served = "; ".join(" and ".join(NAMES.get(host, host) for host in one["hosts"]) for one in routed)
        kind = f"networks for {served}, and one for all other hosts" if routed else "one network for all hosts"
        parts.append(
            f"`{name}` {card['version']}: {kind}, {card['parameters']:,} parameters, trained on "
            f"{pairs:,} pairs of 2DMD{own} for {steps(runs):,} steps of {card['training']['batch']} on two "
            "CPU cores. "
            f"Elements: {', '.join(card['training']['elements'])}.\n"
        )
        parts.append("| subset | defect sites | unrelaxed | **relaxed** | near, unrelaxed | **near, relaxed** |")
        parts.append("| --- | --- | --- | --- | --- | --- |")
        for subset, row in card["validation"].items():
            density, host = subset.replace("-", "/").split("/")
            sites = "2.5-12.5 %" if density == "high" else "1-3 per 8x8 cell"
            parts.append(
                f"| {NAMES.get(host, host)}, {density} density | {sites} | {row['dummy']:.4f} | "
                f"**{row['mae']:.4f}** | "
                f"{row['dummy_a3']:.4f} | **{row['a3']:.4f}** |"
            )
    return "\n".join(parts)


def steps(cards: list[dict]) -> int:
    """Return the steps of some runs and of those they began with, each counted once."""
    found = {}
    for card in cards:
        name, run = (card["name"], card["version"]), card["training"]
        while run:
            found[name] = run.get("steps") or 0
            run = run.get("init")
            name = (run["name"], run["version"]) if run else name
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
    command = "$ ase-definet relax examples/mos2/POSCAR --host MoS2 -o MoS2_relaxed.vasp --vasp vasp_input"
    follow = "$ cd vasp_input      # POSCAR INCAR KPOINTS POTCAR.spec README.txt: add your POTCAR and run VASP"
    content = filled(content, "example", f"```console\n{command}\n{console()}\n{follow}\n```")
    readme.write_text(content, encoding="utf-8")
