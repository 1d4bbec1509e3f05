"""How good weights are just outside of their training data: ``python -m research.experiments.near_domain WEIGHTS PACK``.

Every structure of the pack is one that the weights have not been trained on. They are sorted by the respects in which
they lie outside the training data (:mod:`ase_definet.relaxation.domain`), and for each set of respects the error of
the network is put beside that of the ideal sites, and the error that the network expects beside the true one. Where
one respect alone was tried often enough, it goes on the card of the weights as ``near`` (``--card``): with the share
of the ideal sites' error that is left, and the factor by which expected errors fall short.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint, write_card
from ase_definet.data import PackedDataset
from ase_definet.evaluation.scores import ideal_sites
from ase_definet.relaxation.domain import Domain
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from research.paths import RESULTS

ENOUGH = 10
"""Structures that make a respect one that was tried."""
BETTER = 0.9
"""What is left of the ideal sites' error, at most, where the network is said to be better."""
OF_HOST = ("defects",)
"""Respects of which nothing follows for other hosts."""
TRIED = ("charge:1", "charge:2", "spin", "functional", "excited", "defects", "species", "host:BN-bulk", "density:low")


Row: TypeAlias = tuple[float, float, float, float]
"""Of one structure, in Å: coordinate MAE of the network and of the ideal sites, mean length of the error, expected."""


def measure(weights: str, pack: PackedDataset, split: str | None = None) -> dict[frozenset[str], list[Row]]:
    """Return what was found for each structure, by the respects in which it lies outside."""
    relaxer = DefiNetRelaxer(weights, device="cpu", extrapolate=True)
    open_card = relaxer.card.changed(near={key: {"share": 0.0, "error_factor": 1.0} for key in TRIED})
    relaxer.domain = Domain(open_card, relaxer.model)
    rows: dict[frozenset[str], list[Row]] = defaultdict(list)
    for group in pack.groups:
        for index in np.flatnonzero(group.has_relaxed) if split is None else group.indices(split):
            unrelaxed, relaxed = group.atoms(int(index))
            if relaxed is not None:
                words, row = _one(relaxer, unrelaxed, relaxed, group.host)
                rows[words].append(row)
    return rows


def _one(relaxer: DefiNetRelaxer, unrelaxed: Atoms, relaxed: Atoms, host: str) -> tuple[frozenset[str], Row]:
    result = relaxer.predict(unrelaxed, host)
    words = frozenset(one.key for one in result.judgement.reservations if one.word != "pristine")
    true, still = relaxed.positions, ideal_sites(unrelaxed, result.site_map)
    error = result.atoms.positions - true
    length = np.linalg.norm(error, axis=1).mean()
    expected = np.nan if result.expected_error is None else result.expected_error.mean()
    row = (np.abs(error).mean(), np.abs(still - true).mean(), length, expected)
    return words, row


def summary(rows: list[Row]) -> dict[str, Any]:
    """Return means over structures, in Å, and their ratios."""
    error, still, length, expected = np.array(rows).mean(axis=0)
    return {
        "structures": len(rows),
        "network": round(float(error), 5),
        "ideal_sites": round(float(still), 5),
        "share": round(float(error / still), 3),
        "error_factor": round(float(length / expected), 2) if np.isfinite(expected) else None,
    }


def near_entries(rows: dict[frozenset[str], list[Row]], source: str, hosts: list[str]) -> dict[str, dict[str, Any]]:
    """Return the respects in which the network was better than the ideal sites, one after the other.

    A respect is judged by the structures that lie outside in it and otherwise only in respects that were found to be
    near before it. Those in which all structures differ come first, together.
    """
    common = frozenset.intersection(*rows)
    out: dict[str, dict[str, Any]] = {}
    found = True
    while found:
        found = False
        for word in sorted(set().union(*rows) - set(out)):
            known = {*out, word, *common}
            own = [row for words, some in rows.items() if word in words and words <= known for row in some]
            if len(own) < ENOUGH or (share := summary(own))["share"] > BETTER:
                continue
            out[word] = {key: share[key] for key in ("share", "error_factor", "structures")} | {"source": source}
            if word in OF_HOST:
                out[word]["hosts"] = [host for host in hosts if f"host:{host}" not in set().union(*rows)]
            found = True
    return out


def main() -> None:
    """Measure, write the table, and with ``--card`` put what follows from it on the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("pack", type=Path)
    parser.add_argument("--card", type=Path, help="weights file whose card is written anew with the entries `near`")
    parser.add_argument("--split", help="only pairs of this split, which the weights have not been trained on")
    parser.add_argument("--out", default="near_domain", help="name of the table under research/results")
    given = parser.parse_args()
    pack = PackedDataset.open(given.pack)
    rows = measure(given.weights, pack, given.split)
    table = {" ".join(sorted(words)) or "inside": summary(rows[words]) for words in sorted(rows, key=sorted)}
    hosts = sorted({group.host for group in pack.groups})
    source = f"{given.pack.name}, sha256 {pack.sha256[:12]}"
    out = {
        "command": f"python -m research.experiments.near_domain {given.weights} {given.pack.name}"
        + (f" --split {given.split}" if given.split else ""),
        "weights": load_checkpoint(resolve_model(given.weights)).card.version,
        "units": "Å: coordinate MAE; share: network over ideal sites; error_factor: true over expected error",
        "least": ENOUGH,
        "table": table,
        "near": near_entries(rows, source, hosts),
    }
    (RESULTS / f"{given.out}.json").write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for words, row in table.items():
        print(f"{words:40s} {row}")
    if given.card:
        loaded = load_checkpoint(given.card)
        card = loaded.card.changed(near={**loaded.card.plain().get("near", {}), **out["near"]})
        save_checkpoint(given.card, loaded.model, card, overwrite=True)
        write_card(given.card, overwrite=True)


if __name__ == "__main__":
    main()
