"""Run the commands of examples/trust.sh and keep what they say: ``python -m research.experiments.trust_examples``.

Writes ``research/results/trust_examples.json``, which docs/trust.md shows.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path

from click.testing import CliRunner

from ase_definet.cli import cli
from research.paths import RESULTS, ROOT

OUT = RESULTS / "trust_examples.json"
SCRIPT = ROOT / "examples" / "trust.sh"


def commands() -> list[list[str]]:
    """Return the relaxations of the script that end well, as words, with the folder still to be named."""
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("ase-definet relax")]


def main() -> None:
    """Run and write."""
    rows = []
    for words in commands():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            named = [w.replace("$here", str(SCRIPT.with_suffix(""))).replace("$out", str(out)) for w in words]
            done = CliRunner().invoke(cli, named, catch_exceptions=False)
            if done.exit_code:
                raise SystemExit(f"{' '.join(words)}: {done.output}")
            lines = [line for line in done.output.splitlines() if not line.startswith("wrote")]
        shown = [w.replace("$here", "examples/trust").replace("$out/", "") for w in words]
        kept = shown[: shown.index("--report")] if "--report" in shown else shown
        rows.append({"command": " ".join(["ase-definet", *kept]), "says": lines})
    OUT.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
