"""How much of the relaxation no one-shot prediction can give: research/results/broken_symmetry.json.

Run as ``python -m research.experiments.broken_symmetry hbn.pack``. A prediction from the ideal sites has the symmetry
of the ideal sites; where DFT ends in a minimum of lower symmetry (an impurity that leaves the plane to either side,
a distortion in one of several equivalent directions), the best that it can be is the mean of the equivalent minima.
For each subset of the validation split: the share of the ideal sites' coordinate MAE that remains when every structure
is replaced by that mean.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.spacegroup.symmetrize import prep_symmetry, symmetrize_rank1
from numpy.typing import NDArray

from ase_definet.data import PackedDataset, PairGroup
from ase_definet.matching.symmetry import SYMMETRY_PRECISION
from research.paths import RESULTS

OUT = RESULTS / "broken_symmetry.json"


def symmetric_part(
    cell: NDArray[np.float64],
    positions: NDArray[np.float64],
    numbers: NDArray[np.int_],
    displacement: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the mean of the images of a displacement field under the symmetry of a structure.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        positions: On ideal sites, shape ``(n_atoms, 3)``, in Å.
        numbers: Atomic numbers, shape ``(n_atoms,)``.
        displacement: Shape ``(n_atoms, 3)``, in Å.
    """
    atoms = Atoms(numbers, positions, cell=cell, pbc=True)
    operations = prep_symmetry(atoms, symprec=SYMMETRY_PRECISION)
    return np.asarray(symmetrize_rank1(cell, np.linalg.inv(cell), displacement, *operations))


def broken(group: PairGroup, index: int) -> tuple[float, float]:
    """Return mean absolute components of a relaxation, and of what breaks its symmetry, in Å."""
    there = group.numbers[index] > 0
    field = (group.offsets(np.array([index])) + group.moves(np.array([index])))[0][there]
    field -= field.mean(axis=0)
    cell = group.atoms(index)[0].cell.complete().array
    part = symmetric_part(cell, group.sites[there], group.numbers[index][there], field)
    return float(np.abs(field).mean()), float(np.abs(field - part).mean())


def main() -> None:
    """Write the shares of all subsets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path)
    pack = PackedDataset.open(parser.parse_args().pack)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for group in pack.groups:
        for index in group.indices("val"):
            found.setdefault(group.subset, {})[group.ids[index]] = broken(group, int(index))
    table = {}
    for subset, rows in sorted(found.items()):
        whole, beyond = np.mean(list(rows.values()), axis=0)
        table[subset] = {"n": len(rows), "ideal_sites": whole, "broken": beyond, "share": beyond / whole}
    OUT.write_text(json.dumps({"split": "val", "subsets": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
