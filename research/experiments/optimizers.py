"""Is it the optimizer that costs the steps from a prediction? Starts with the network's own errors on CHGNet's surface.

Run as ``python -m research.experiments.optimizers PACK [--structures N]`` with the pack of 2DMD, in an environment with
CHGNet; it goes on where it was. CHGNet's minimum of a structure is found first; the start is that minimum plus what the
prediction is off from DFT, so that surface and errors are both real though not of one another. From there, each optimizer
relaxes at fixed cell, and the evaluations of the forces are counted until no force is longer than 0.05 and 0.01 eV/Å.
Writes ``results/optimizers.json``.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.optimize import BFGS, LBFGS
from ase.optimize.precon import Exp, PreconLBFGS
from chgnet.model import CHGNet
from chgnet.model.dynamics import CHGNetCalculator

from ase_definet import DefiNetRelaxer
from ase_definet.data import SPLITS, PackedDataset
from ase_definet.structures.files import replacing
from ase_definet.structures.metrics import minimum_image
from research.paths import RESULTS

OUT = RESULTS / "optimizers.json"
SUBSETS = ("low/MoS2", "low/WSe2")
FORCES = (0.05, 0.01)
"""Largest force of a relaxed structure, in eV/Å."""

MINIMUM = 0.003
"""The same where the minimum is looked for."""

MAX_STEPS = 200

OPTIMIZERS: dict[str, Callable[[Atoms], Any]] = {
    "BFGS": lambda atoms: BFGS(atoms, logfile=None),
    "BFGS, alpha = 30": lambda atoms: BFGS(atoms, logfile=None, alpha=30.0),
    "LBFGS": lambda atoms: LBFGS(atoms, logfile=None),
    "PreconLBFGS, Exp": lambda atoms: PreconLBFGS(atoms, precon=Exp(A=3), logfile=None),
    "PreconLBFGS, Exp, no line search": lambda atoms: PreconLBFGS(
        atoms, precon=Exp(A=3), logfile=None, use_armijo=False
    ),
}


class Counted(CHGNetCalculator):  # type: ignore[misc]
    """CHGNet that notes the largest force of every evaluation in ``largest``."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        """Calculate, and note the largest force."""
        super().calculate(*args, **kwargs)
        self.largest.append(float(np.linalg.norm(self.results["forces"], axis=1).max()))


def relax(start: Atoms, model: CHGNet, make: Callable[[Atoms], Any], force: float) -> tuple[Atoms, list[float]]:
    """Relax a copy; return it with the largest force of every evaluation."""
    atoms = start.copy()
    atoms.calc = Counted(model, use_device="cpu")
    atoms.calc.largest = []
    make(atoms).run(fmax=force, steps=MAX_STEPS)
    return atoms, atoms.calc.largest


def steps_to(largest: list[float], force: float) -> int | None:
    """Return the evaluations until the largest force is at most this, None where it never is."""
    return next((step for step, value in enumerate(largest, 1) if value <= force), None)


def pairs(pack: PackedDataset, subset: str) -> Iterator[tuple[str, Atoms, Atoms]]:
    """Yield name, unrelaxed and relaxed structure of the validation pairs of a subset."""
    for given in pack.groups:
        if given.subset != subset:
            continue
        group = given.in_memory()
        for index in np.flatnonzero(group.split == SPLITS.index("val")):
            unrelaxed, relaxed = group.atoms(int(index))
            if relaxed is not None:
                yield f"{subset}/{group.ids[index]}", unrelaxed, relaxed


def measure(unrelaxed: Atoms, relaxed: Atoms, relaxer: DefiNetRelaxer, model: CHGNet, host: str) -> dict[str, Any]:
    """Count the steps of all optimizers for one structure."""
    result = relaxer.predict(unrelaxed, host=host)
    error = minimum_image(result.atoms.positions - relaxed.positions, relaxed.cell.array)
    error -= error.mean(axis=0)
    minimum, sites = relax(result.unrelaxed, model, OPTIMIZERS["BFGS"], MINIMUM)
    start = minimum.copy()
    start.positions += error
    out: dict[str, Any] = {
        "error": float(np.abs(error).mean()),
        "largest_error": float(np.abs(error).max()),
        "sites": [steps_to(sites, force) for force in FORCES],
        "from_prediction": {},
    }
    for name, make in OPTIMIZERS.items():
        _, largest = relax(start, model, make, FORCES[-1])
        out["first_force"] = largest[0]
        out["from_prediction"][name] = [steps_to(largest, force) for force in FORCES]
    return out


def main() -> None:
    """Measure structures that were not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pack", type=Path)
    parser.add_argument("--structures", type=int, default=3, help="of each subset")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    model, relaxer = CHGNet.load(verbose=False), DefiNetRelaxer(device="cpu")
    content = json.loads(OUT.read_text()) if OUT.exists() else {"structures": {}}
    content |= {"weights": relaxer.model, "forces": FORCES}
    for subset in SUBSETS:
        for (name, unrelaxed, relaxed), _ in zip(
            pairs(PackedDataset.open(asked.pack), subset), range(asked.structures), strict=False
        ):
            if name not in content["structures"]:
                host = subset.rpartition("/")[2]
                content["structures"][name] = measure(unrelaxed, relaxed, relaxer, model, host)
                with replacing(OUT) as fresh:
                    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
                print(name, content["structures"][name], flush=True)


if __name__ == "__main__":
    main()
