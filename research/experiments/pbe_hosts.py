"""Fit PBE lattice constant and thickness of 2H monolayers with GPAW: ``python -m research.experiments.pbe_hosts NAME...``.

The hosts MoSe2 and WS2 of the library come from here; MoS2 is the check against the cell of 2DMD (VASP). GPAW is
not among the dependencies of the package: docs/dft.md says how to install it.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from ase.build import mx2
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from research.paths import RESULTS

START = {"MoS2": (3.18, 3.13), "MoSe2": (3.32, 3.34), "WS2": (3.19, 3.14), "WSe2": (3.32, 3.36)}
"""Where each fit starts: lattice constant and thickness, in Å."""


def fit(name: str) -> dict[str, object]:
    """Relax the in-plane cell and the positions of one monolayer to 0.005 eV/Å."""
    from gpaw import GPAW, PW  # noqa: PLC0415 - not among the dependencies

    a, thickness = START[name]
    atoms = mx2(name, kind="2H", a=a, thickness=thickness, vacuum=7.0)
    atoms.pbc = True
    atoms.calc = GPAW(
        mode=PW(600),
        xc="PBE",
        kpts={"size": (10, 10, 1), "gamma": True},
        symmetry={"symmorphic": False},
        convergence={"density": 1e-6},
        txt=None,
    )
    BFGS(FrechetCellFilter(atoms, mask=[1, 1, 0, 0, 0, 1])).run(fmax=0.005, steps=30)
    height = atoms.positions[:, 2]
    return {
        "name": name,
        "a": float(np.linalg.norm(atoms.cell[0])),
        "b": float(np.linalg.norm(atoms.cell[1])),
        "thickness": float(np.ptp(height)),
        "fmax": float(np.abs(atoms.get_forces()).max()),
        "stress_xx": float(atoms.get_stress()[0]),
    }


def main() -> None:
    """Fit the monolayers that are named and write what came out."""
    out = {
        "command": f"python -m research.experiments.pbe_hosts {' '.join(sys.argv[1:])}",
        "code": "GPAW 25.1.0, PBE, plane waves 600 eV, 10x10 k-points",
        "hosts": {name: fit(name) for name in sys.argv[1:]},
        "lengths": "Å",
    }
    (RESULTS / "pbe_hosts.json").write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
