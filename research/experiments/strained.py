"""What strain and other host geometry do to predictions: ``python -m research.experiments.strained 2DMD_PACK``.

There are no DFT data of strained defects. What can be measured is how much of the prediction survives: validation
pairs are put on a host whose cell is strained in its plane, or whose layers are thicker or thinner, as another
functional would have it, and the predicted displacements are compared with those of DFT in the host as it was. The
displacements of DFT change with the host too, by how much is not known: an error that grows with the strain says that
the network can no longer be used, one that does not grow is no proof that it can. Writes research/results/strained.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ase_definet.data import PackedDataset, PairGroup
from ase_definet.matching.library import get_host
from ase_definet.relaxation.domain import known_host
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from research.paths import RESULTS

OUT = RESULTS / "strained.json"
PAIRS = 16
"""Validation pairs of each subset."""
STRAINS = (-0.04, -0.02, -0.01, 0.0, 0.01, 0.02, 0.04)
STRETCHES = (-0.08, -0.04, -0.02, 0.02, 0.04, 0.08)
"""Of a layer along its normal."""


def put_on(group: PairGroup, index: int, strain: float, stretch: float) -> tuple[Atoms, Atoms, np.ndarray]:
    """Return a host, a defect structure on its sites, and the displacements of DFT in the host as it was, in Å."""
    scale = np.array([1 + strain, 1 + strain, 1 + stretch])
    pbc = [True, True, bool(group.pbc[2])]
    cell = group.unit_cell * [[1 + strain], [1 + strain], [1]]
    host = Atoms(group.unit_numbers, group.unit_positions * scale, cell=cell, pbc=pbc)
    numbers = group.numbers[index]
    real = numbers > 0
    atoms = Atoms(
        numbers[real], group.sites[real] * scale, cell=group.cell * [[1 + strain], [1 + strain], [1]], pbc=pbc
    )
    chosen = np.array([index])
    moved = (group.offsets(chosen) + group.moves(chosen))[0][real]
    return host, atoms, moved - moved.mean(axis=0)


def scored(relaxer: DefiNetRelaxer, group: PairGroup, strain: float, stretch: float) -> dict[str, Any]:
    """Return the coordinate MAE of network and ideal sites, in Å, and the offset of the host's sites."""
    chosen = np.random.default_rng(0).permutation(group.indices("val"))[:PAIRS]
    rows, offset = [], 0.0
    for index in chosen:
        host, atoms, true = put_on(group, int(index), strain, stretch)
        given = get_host(host, group.host)
        result = relaxer.predict(atoms, given)
        offset = known_host(given)[2]
        found = result.atoms.positions - atoms.positions
        rows.append((np.abs(found - found.mean(axis=0) - true).mean(), np.abs(true).mean()))
    network, still = np.mean(rows, axis=0)
    return {
        "strain": strain,
        "stretch": stretch,
        "offset": round(float(offset), 3),
        "network": round(float(network), 5),
        "ideal_sites": round(float(still), 5),
        "share": round(float(network / still), 3),
    }


def main() -> None:
    """Measure and write."""
    pack = PackedDataset.open(Path(sys.argv[1]))
    relaxer = DefiNetRelaxer(device="cpu", extrapolate=True)
    table: dict[str, list[dict[str, Any]]] = {}
    for group in pack.groups:
        cases = [(s, 0.0) for s in STRAINS] + [(0.0, s) for s in STRETCHES if group.host != "BN"]  # one atom thick
        table[group.subset] = [scored(relaxer, group, *case) for case in cases]
        for row in table[group.subset]:
            print(group.subset, row, flush=True)
    out = {
        "command": "python -m research.experiments.strained 2dmd.pack",
        "weights": relaxer.card.version,
        "pairs": PAIRS,
        "units": "Å; share: network over ideal sites; offset: of the host's sites, root mean square",
        "subsets": table,
    }
    lines = json.dumps(out, indent=1, ensure_ascii=False)
    OUT.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
