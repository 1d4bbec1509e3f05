"""Relax the same validation structures by everything a user could turn to, on one core.

Run as ``python -m research.experiments.comparison PACK [METHOD...]``; PACK is 2DMD, packed. The sample is the same few
structures of every subset's validation split, evenly spread over the names in alphabetical order, which are compositions
for most. Each method has a file of its own under research/results/comparison, one row per structure, and goes on where
it was. Structures are taken in rounds, one of every subset after the other, so that what has been cut off is still
balanced. Without METHOD, every method that is ready here runs; potentials that cannot be installed beside each other are
run from environments of their own. A potential that cannot be made leaves the reason instead of rows.

Seconds are processor time of one thread, matching excluded for what needs none.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from ase_definet.checkpoints.bundled import bundled_cards
from ase_definet.data import PackedDataset, PairGroup
from ase_definet.errors import CalculatorError
from ase_definet.evaluation.superposition import LinearSuperposition
from ase_definet.matching.site_kind import SiteKind
from ase_definet.relaxation.calculators import get_calculator, lacking_of
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.result import RelaxResult
from ase_definet.relaxation.stepping import relax_with
from ase_definet.structures.cell import completed_cell
from ase_definet.structures.metrics import minimum_image, near_sites
from research.paths import RESULTS

OUT = RESULTS / "comparison"
PER_SUBSET = 6
NEAR = 3.0
"""Atoms closer than this to a defect site count as near, in Å: the published metric A3."""

OPTIMIZER = "BFGS"
FMAX = 0.05
"""Largest force of a relaxed structure, in eV/Å."""

MAX_STEPS = 60
"""Force evaluations of one relaxation, at most."""

POTENTIALS = {"chgnet": "chgnet", "sevennet": "sevenn", "mattersim": "mattersim"}
"""Names of calculators, and the packages whose versions are recorded."""


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure of the sample.

    Attributes:
        group: What it belongs to.
        index: Its index there.
        matched: The network's prediction, whose match and ideal sites the other methods begin with.
        relaxed: What DFT found.
        seconds: Processor time of the prediction.
    """

    group: PairGroup
    index: int
    matched: RelaxResult
    relaxed: Atoms
    seconds: float

    @property
    def id(self) -> str:
        """Its name."""
        return self.group.ids[self.index]


Method = Callable[[Structure], tuple[Atoms, dict[str, Any]]]
"""Returns the relaxed atoms, and what else there is to record: seconds, steps, whether it converged."""


def sample(group: PairGroup) -> list[int]:
    """Return the indices of a subset's sample, in the order in which they are measured."""
    names = sorted((group.ids[int(i)], int(i)) for i in group.indices("val"))
    spread = np.linspace(0, len(names) - 1, min(PER_SUBSET, len(names))).round().astype(int)
    middle_out = sorted(spread, key=lambda k: abs(k - (len(names) - 1) / 2))  # no two neighbours in the first rounds
    return [names[k][1] for k in middle_out]


def structures(pack: PackedDataset, relaxer: DefiNetRelaxer) -> Iterator[Callable[[], Structure]]:
    """Yield what makes the structures of the sample, in rounds over the subsets."""
    chosen = [(group, sample(group)) for group in pack.groups]
    for turn in range(PER_SUBSET):
        for group, indices in ((group, indices) for group, indices in chosen if turn < len(indices)):
            yield lambda group=group, index=indices[turn]: matched(relaxer, group, index)


def matched(relaxer: DefiNetRelaxer, group: PairGroup, index: int) -> Structure:
    """Return a structure with its match."""
    unrelaxed, relaxed = group.atoms(index)
    assert relaxed is not None
    began = time.process_time()
    result = relaxer.predict(unrelaxed, host=group.host)
    return Structure(group, index, result, relaxed, time.process_time() - began)


def errors(structure: Structure, atoms: Atoms) -> dict[str, float]:
    """Return the coordinate MAE of all atoms and of those near defects, in Å, as ``ase-definet evaluate`` defines them."""
    truth, sites = structure.relaxed, structure.matched.site_map
    given = structure.matched.unrelaxed
    cell = completed_cell(truth.cell.array, truth.positions, truth.pbc)
    error = np.abs(minimum_image(atoms.positions - truth.positions, cell))
    defects = sites.positions[sites.kinds != SiteKind.PRISTINE]
    near = near_sites(given.positions, defects, cell, NEAR)
    return {"coordinate_mae": float(error.mean()), "a3": float(error[near].mean())}


def still(structure: Structure) -> tuple[Atoms, dict[str, Any]]:
    """Leave every atom on its host site."""
    return structure.matched.unrelaxed, {"seconds": 0.0}


def network(structure: Structure) -> tuple[Atoms, dict[str, Any]]:
    """Return the prediction of the bundled weights."""
    return structure.matched.atoms, {"seconds": structure.seconds, "trust": structure.matched.trust}


def superposition() -> Method:
    """Return the sum of single-defect fields, fitted to the training pairs of each subset once."""
    fitted: dict[str, tuple[LinearSuperposition, float]] = {}

    def method(structure: Structure) -> tuple[Atoms, dict[str, Any]]:
        group = structure.group
        if group.subset not in fitted:
            began = time.process_time()
            fit = LinearSuperposition(group, group.indices("train"))
            fitted[group.subset] = fit, time.process_time() - began
        fit, fit_seconds = fitted[group.subset]
        began = time.process_time()
        numbers = group.numbers[[structure.index]]
        positions = (group.sites + fit.predict(numbers)[0])[numbers[0] > 0]
        seconds = time.process_time() - began
        atoms = structure.matched.unrelaxed.copy()
        atoms.positions = positions
        return atoms, {"seconds": seconds, "fit_seconds": fit_seconds}

    return method


def potential(name: str) -> Method:
    """Return the relaxation by a calculator, from the host's sites, at fixed cell."""
    calculator = get_calculator(name)

    def method(structure: Structure) -> tuple[Atoms, dict[str, Any]]:
        began = time.process_time()
        run = relax_with(structure.matched.unrelaxed, calculator, OPTIMIZER, FMAX, MAX_STEPS)
        row = {"seconds": time.process_time() - began, "steps": run.steps, "converged": run.converged}
        row |= {"last_fmax": float(run.fmax[-1])} if len(run.fmax) else {}
        return run.atoms, row | ({"error": run.error} if run.error else {})

    return method


def method_of(name: str) -> Method:
    """Return a method by its name.

    Raises:
        CalculatorError: It is a potential that cannot be made here.
    """
    plain = {"ideal_sites": lambda: still, "network": lambda: network, "superposition": superposition}
    return plain[name]() if name in plain else potential(name)


def package_of(name: str) -> str:
    """Return what a method is, with its version."""
    if name in POTENTIALS:
        return f"{POTENTIALS[name]} {version(POTENTIALS[name])}"
    return f"default {bundled_cards()['default'].card.version}" if name == "network" else ""


def measure(name: str, pack: PackedDataset, source: str) -> None:
    """Add the rows of a method that are not there yet, one by one."""
    file = OUT / f"{name}.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": {}}
    content = {
        "method": name,
        "package": package_of(name),
        "command": "python -m research.experiments.comparison",
        "pack": source,
    }
    if name in POTENTIALS:
        content |= {"optimizer": OPTIMIZER, "fmax": FMAX, "max_steps": MAX_STEPS}
    content["rows"] = found["rows"]
    try:
        method = method_of(name)
    except CalculatorError as error:
        write(file, content | {"reason": str(error)})
        print(name, error, flush=True)
        return
    relaxer = DefiNetRelaxer(device="cpu")
    for number, make in enumerate(structures(pack, relaxer)):
        if number == 0:
            make()  # what is done once: tables, weights
        structure = make()
        if structure.id in content["rows"]:
            continue
        atoms, row = method(structure)
        group = structure.group
        head = {"subset": group.subset, "atoms": len(atoms)} | errors(structure, atoms)
        content["rows"][structure.id] = head | row | {"load": round(os.getloadavg()[0], 1)}
        write(file, content)
        print(name, structure.id, content["rows"][structure.id], flush=True)


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a file of results."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)


def main() -> None:
    """Run the methods that are named, or all that are ready."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    source, *named = sys.argv[1:]
    pack = PackedDataset.open(Path(source))
    ready = [
        name for name in POTENTIALS if not lacking_of(name)
    ]  # whether weights are there shows when they are made
    for name in named or ["ideal_sites", "superposition", "network", *ready]:
        measure(name, pack, pack.sha256)


if __name__ == "__main__":
    main()
