"""Cells to measure with."""

import numpy as np
from ase import Atoms
from ase.build import make_supercell

from ase_definet.matching.library import get_host


def mos2(n: int, seed: int = 0) -> Atoms:
    """Return an n x n cell of MoS2 with one defect site in sixty: S vacancies and W on Mo."""
    host = get_host("MoS2")
    unit = Atoms(host.numbers, host.positions, cell=host.cell, pbc=(True, True, False))
    atoms = make_supercell(unit, np.diag([n, n, 1]))
    rng = np.random.default_rng(seed)
    sulphur, molybdenum = np.flatnonzero(atoms.numbers == 16), np.flatnonzero(atoms.numbers == 42)  # noqa: PLR2004
    atoms.numbers[rng.choice(molybdenum, max(1, len(atoms) // 180), replace=False)] = 74
    del atoms[rng.choice(sulphur, max(2, len(atoms) // 90), replace=False)]
    return atoms
