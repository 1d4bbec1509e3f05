"""Choose the pairs of 2DMD that ship with the tests, and score them with the bundled weights.

Run as ``python -m research.experiments.shipped_pairs PACK FOLDER`` to choose them again, which writes tests/data/2dmd/pairs.extxyz
(PACK is 2DMD, packed; FOLDER is 2DMD as published), and without arguments after new weights, to score those that are there; both
write tests/data/2dmd/scores.json. Of each subset, the pairs
of its validation split are taken whose mean errors, of the network and of the ideal sites, over all atoms and near
defects, are closest to those of the subset: a sample of two can then be compared with the committed results.
"""

import io
import itertools
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

from ase_definet.checkpoints.bundled import bundled_cards
from ase_definet.data import PackedDataset, PairSource, find_pairs, pack_pairs
from ase_definet.evaluation.scores import Score, score_pairs
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from research.paths import ROOT

OUT = ROOT / "tests" / "data" / "2dmd"
PER_SUBSET = 2
DECIMALS = 5
"""Of a position in Å; those of 2DMD have a resolution of some 1e-4 Å."""
REGIONS = ("coordinate_mae", "a3")
METHODS = ("model", "ideal_sites")


def errors(score: Score) -> list[float]:
    """Return what the sample should have in common with its subset, in Å."""
    return [score.maes[method][region] for method in METHODS for region in REGIONS]


def typical(scores: list[Score]) -> tuple[Score, ...]:
    """Return the few structures whose mean errors are closest to those of all, relative to these."""
    table = np.array([errors(score) for score in scores])
    mean = table.mean(axis=0)
    chosen = np.array(list(itertools.combinations(range(len(scores)), PER_SUBSET)))
    off = np.abs(table[chosen].mean(axis=1) / mean - 1).max(axis=1)
    return tuple(scores[k] for k in chosen[off.argmin()])


def frame(source: PairSource) -> Atoms:
    """Return a pair as one structure with the array ``relaxed_positions``, lengths rounded."""
    unrelaxed, relaxed = source.load()
    assert unrelaxed is not None
    assert relaxed is not None
    cell = unrelaxed.cell.array.round(DECIMALS) + 0.0  # no -0
    atoms = Atoms(unrelaxed.numbers, unrelaxed.positions.round(DECIMALS), cell=cell, pbc=True)
    atoms.set_array("relaxed_positions", relaxed.positions.round(DECIMALS))
    host = source.host if isinstance(source.host, str) else source.host.name
    atoms.info = {"id": source.id, "subset": source.subset, "split": source.split, "host": host}
    return atoms


def compact(frames: list[Atoms]) -> str:
    """Return structures as extended XYZ without padding and zeros at the end of numbers."""
    stream = io.StringIO()
    write(stream, frames, format="extxyz")
    lines = stream.getvalue().splitlines()
    return "".join(f"{_narrow(line)}\n" for line in lines)


def _narrow(line: str) -> str:
    if "=" in line:  # cell and names stay as they are
        return line
    return " ".join(re.sub(r"(\.\d*?)0+$", r"\1", word).removesuffix(".") for word in line.split())


def scores_of(pairs: Path) -> list[Score]:
    """Score the pairs of a file with the bundled weights."""
    with tempfile.TemporaryDirectory() as folder:
        pack, problems = pack_pairs(find_pairs(pairs), Path(folder) / "pairs.pack", workers=1)
        assert not problems, problems
        scores, left_out = score_pairs(DefiNetRelaxer(device="cpu"), pack, superposition=False)
    assert not left_out, left_out
    return scores


def main() -> None:
    """Choose the pairs if a pack is given, and score them."""
    if len(sys.argv) > 1:
        pack = PackedDataset.open(Path(sys.argv[1]))
        scores, _ = score_pairs(DefiNetRelaxer(device="cpu"), pack, superposition=False)
        subsets = sorted({score.subset for score in scores})
        chosen = [one for name in subsets for one in typical([s for s in scores if s.subset == name])]
        sources = {(source.subset, source.id): source for source in find_pairs(Path(sys.argv[2]))}
        text = compact([frame(sources[score.subset, score.id]) for score in chosen])
        (OUT / "pairs.extxyz").write_text(text, encoding="utf-8")
    card = bundled_cards()["default"].card
    rows = {
        score.id: {"subset": score.subset}
        | {method: {region: round(score.maes[method][region], 6) for region in REGIONS} for method in METHODS}
        for score in scores_of(OUT / "pairs.extxyz")
    }
    content = {"model": f"default {card.version}", "unit": "Å", "pairs": rows}
    (OUT / "scores.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
