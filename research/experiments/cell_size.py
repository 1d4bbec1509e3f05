"""How one defect's field changes with the size of the cell around it: research/results/cell_size.json.

Run as ``python -m research.experiments.cell_size``.
"""

import json

import numpy as np
from ase import Atoms

from ase_definet import DefiNetRelaxer
from ase_definet.matching.library import get_host
from research.paths import RESULTS

OUT = RESULTS / "cell_size.json"
NEAR, FAR = 3.0, 8.0
SIZES = (4, 6, 8, 12, 16, 24, 32)
CASES = {"v_S in MoS2": ("MoS2", 1), "v_Se in WSe2": ("WSe2", 1), "v_B in h-BN": ("BN", 0)}


def vacancy(host: str, site: int, n: int) -> tuple[Atoms, np.ndarray]:
    """Return an n x n cell without one atom, and where that was."""
    unit = get_host(host)
    atoms = Atoms(unit.numbers, unit.positions, cell=unit.cell, pbc=(True, True, False)).repeat((n, n, 1))
    index = (n // 2 * n + n // 2) * len(unit.numbers) + site
    where = atoms.positions[index].copy()
    del atoms[index]
    return atoms, where


def main() -> None:
    """Relax every case in every size and write the fields' norms."""
    relaxer = DefiNetRelaxer(device="cpu")
    out: dict = {"model": relaxer.model, "cases": {}}
    for name, (host, site) in CASES.items():
        rows = []
        for n in SIZES:
            atoms, where = vacancy(host, site, n)
            result = relaxer.predict(atoms, host)
            distance = np.linalg.norm(atoms.positions - where, axis=1)
            length = np.linalg.norm(result.displacement, axis=1)
            near = np.sort(length[distance < NEAR])[::-1]
            rows.append(
                {
                    "n": n,
                    "sites": len(atoms) + 1,
                    "largest": float(length.max()),
                    "near_mean": float(near.mean()),
                    "far_mean": float(length[distance > FAR].mean()) if (distance > FAR).any() else None,
                    "expected_error_near": float(result.expected_error[distance < NEAR].mean())
                    if result.expected_error is not None
                    else None,
                    "forward_seconds": result.timings["forward"],
                }
            )
        out["cases"][name] = rows
    OUT.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
