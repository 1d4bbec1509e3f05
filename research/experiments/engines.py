"""What each engine says of one defect per kind of host: ``python -m research.experiments.engines NAME [KEY=VALUE...]``.

NAME is ``network`` or a calculator, whose results are added to research/results/engines.json, defect by defect: the same
command goes on. What cannot be made here is recorded with the reason. Potentials that cannot be installed beside each other are run from environments of their
own. ``python -m research.experiments.engines`` runs the network and every calculator that is ready.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atom, Atoms
from ase.constraints import FixAtoms
from ase.geometry import get_distances

from ase_definet.errors import CalculatorError, DefiNetError, DefiNetWarning
from ase_definet.matching.host import Host
from ase_definet.matching.library import get_host
from ase_definet.relaxation.calculation import CalculatorStage
from ase_definet.relaxation.calculators import CALCULATORS, lacking_of, parse_values
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.stepping import relax_with
from ase_definet.variants.search import search, table_rows
from research.paths import RESULTS

OUT = RESULTS / "engines.json"
SKIPPED = {"emt", "lj", "gpaw", "vasp"}
"""Not potentials for these defects, or DFT."""

FMAX = 0.02
"""Largest force of a relaxed structure, in eV/Å: v_Cd is flat."""

MAX_STEPS = 120
"""Force evaluations of one relaxation, at most."""

STARTS = 6
SELF = 0.1
"""An atom closer than this to the defect is the defect, in Å."""

DIMER = 2.80
"""Distance of the two Te that are held, in Å."""

STILL = 0.005
"""Neighbours that move by less on average do not move, in Å."""

DIMER_LIMIT = 3.0
"""Two Te closer than this are a dimer, in Å."""

OUTWARD, INWARD = "outward", "inward"


@dataclass(frozen=True)
class Case:
    """One defect.

    Attributes:
        name: As the page calls it.
        host: Its host in the library.
        make: Returns the structure on the host's sites, and where its defect is.
        shell: Element and number of the neighbours that are looked at.
        expected: Which way DFT moves them, or what else is known of it.
    """

    name: str
    host: str
    make: Callable[[], tuple[Atoms, np.ndarray]]
    shell: tuple[str, int]
    expected: str


def supercell(name: str, matrix: tuple[int, int, int] | np.ndarray) -> Atoms:
    """Return a supercell of a host of the library."""
    host: Host = get_host(name)
    unit = Atoms(host.numbers, positions=host.positions, cell=host.cell, pbc=True)
    if host.layered:
        unit.center(vacuum=8.0, axis=2)
    if np.ndim(matrix) == 1:
        return unit.repeat(matrix)
    from ase.build import make_supercell  # noqa: PLC0415

    return make_supercell(unit, matrix)


CUBIC = 2 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
"""Of the primitive cell of two face-centred lattices: 2x2x2 conventional cells."""


def changed(name: str, matrix: Any, element: str, to: str | None) -> Callable[[], tuple[Atoms, np.ndarray]]:
    """Return what makes a vacancy, or a substitution."""

    def make() -> tuple[Atoms, np.ndarray]:
        atoms = supercell(name, matrix)
        index = int(np.flatnonzero(atoms.symbols == element)[0])
        where = atoms.positions[index].copy()
        if to is None:
            del atoms[index]
        else:
            atoms.symbols[index] = to
        return atoms, where

    return make


def lithium() -> tuple[Atoms, np.ndarray]:
    """Return MoS2 with Li above a Mo, between three S."""
    atoms = supercell("MoS2", (5, 5, 1))
    metal = atoms.positions[np.flatnonzero(atoms.symbols == "Mo")[0]]
    where = np.array([*metal[:2], atoms.positions[:, 2].max() + 1.5])
    atoms.append(Atom("Li", where))
    return atoms, where


def arsenic() -> tuple[Atoms, np.ndarray]:
    """Return h-BN with As 1.8 Å above an empty N site, as in the h-BN database (monolayer-AsN-q+0-triplet)."""
    atoms = supercell("BN", (6, 6, 1))
    index = int(np.flatnonzero(atoms.symbols == "N")[0])
    where = atoms.positions[index] + [0, 0, 1.8]
    del atoms[index]
    atoms.append(Atom("As", where))
    return atoms, where


CASES = (
    Case("MgO v_O", "MgO", changed("MgO", CUBIC, "O", None), ("Mg", 6), OUTWARD),
    Case("MgO Mg_O", "MgO", changed("MgO", CUBIC, "O", "Mg"), ("Mg", 6), OUTWARD),
    Case("CdTe v_Cd", "CdTe", changed("CdTe", CUBIC, "Cd", None), ("Te", 4), INWARD),
    Case("GaN v_Ga", "GaN", changed("GaN", (4, 4, 2), "Ga", None), ("N", 4), OUTWARD),
    Case("MoS2 Li_ads", "MoS2", lithium, ("S", 3), "Li 2.3 to 2.5 Å from three S"),
    Case("h-BN As_ads", "BN", arsenic, ("B", 3), "As 1.9 to 2.2 Å from three B"),
)


def looked_at(case: Case, before: Atoms, where: np.ndarray, after: Atoms) -> dict[str, Any]:
    """Return what a relaxed structure looks like around the defect."""
    element, n = case.shell
    if case.expected in {OUTWARD, INWARD}:
        centre = [where, where + np.median(after.positions - before.positions, axis=0)]
    else:
        centre = [before.positions[-1], after.positions[-1]]
    of = np.flatnonzero(before.symbols == element)
    was, now = (
        get_distances(point[None], atoms.positions[of], cell=atoms.cell, pbc=True)[1][0]
        for point, atoms in zip(centre, (before, after), strict=True)
    )
    shell = np.argsort(was + 1e3 * (was < SELF))[:n]  # an antisite is its own nearest atom
    moved = float((now[shell] - was[shell]).mean())
    between = get_distances(after.positions[of[shell]], cell=after.cell, pbc=True)[1]
    if case.expected in {OUTWARD, INWARD}:
        right = bool(moved > 0) if case.expected == OUTWARD else bool(moved < 0)
    else:
        low, high = (float(word) for word in case.expected.split(" Å")[0].split(" ", 1)[1].split(" to "))
        right = bool((now[shell] > low).all() and (now[shell] < high).all())
    return {
        "distance": float(now[shell].mean()),
        "moved": moved,
        "shortest_between": float(between[np.triu_indices(n, 1)].min()),
        "as_expected": right,
    }


def of_network(case: Case) -> dict[str, Any]:
    """Return what the network says: its trust, and its answer where there is one."""
    atoms, where = case.make()
    relaxer = DefiNetRelaxer(host=case.host, device="cpu", extrapolate=True)
    began = time.process_time()
    try:
        result = relaxer.predict(atoms)
    except DefiNetError as error:
        return {"refused": str(error), "atoms": len(atoms)}
    out = {"atoms": len(atoms), "trust": result.trust, "outside": list(result.outside)}
    out |= {"seconds": time.process_time() - began}
    return out | looked_at(case, result.unrelaxed, where, result.atoms)


def of_calculator(case: Case, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a potential says."""
    atoms, where = case.make()
    relaxer = DefiNetRelaxer(
        host=case.host,
        device="cpu",
        calculator=name,
        calculator_settings=settings,
        refine=True,
        fmax=FMAX,
        max_steps=MAX_STEPS,
    )
    began = time.process_time()
    result = relaxer.predict(atoms)
    seconds = time.process_time() - began
    done = result.calculation
    out: dict[str, Any] = {"atoms": len(atoms), "warnings": list(result.warnings)}
    if done is not None:
        out |= {"steps": done.steps, "converged": done.converged, "fmax": done.fmax, "seconds": seconds}
        out |= {"energy": done.energy, "error": done.error}
    return out | looked_at(case, result.unrelaxed, where, result.atoms)


def dimer(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Search the minima of v_Cd in CdTe, and put a number on the dimer: two Te held at their distance, and let go."""
    atoms, where = changed("CdTe", CUBIC, "Cd", None)()
    relaxer = DefiNetRelaxer(
        host="CdTe", device="cpu", calculator=name, calculator_settings=settings, fmax=FMAX, max_steps=MAX_STEPS
    )
    folder = Path(tempfile.gettempdir()) / "ase-definet-engines" / "-".join([name, *map(str, settings.values())])
    folder.parent.mkdir(exist_ok=True)
    found = search(atoms, relaxer, folder, STARTS)  # goes on where it was
    stage = relaxer.calculator
    if stage is None:
        raise AssertionError
    held = _held_dimer(found.undistorted, where, stage)
    lowest = min((one.end.energy for one in found.variants), default=float("nan"))
    return {
        "starts": STARTS,
        "steps": sum(end.calculation.steps for end in found.ends),
        "variants": [row | {"starts": row["starts"].split()} for row in table_rows(found.variants)],
        "failed": [end.name for end in found.failed],
        "shortest_te_te": [_shortest_te(one.end.atoms, where) for one in found.variants],
        "held": {"distance": DIMER, "above": held[0] - lowest, "let_go": held[1], "let_go_above": held[2] - lowest},
    }


def _held_dimer(ideal: Atoms, where: np.ndarray, stage: CalculatorStage) -> tuple[float, float, float]:
    """Return the energy with two Te held close, their distance once let go, and the energy then."""
    atoms = ideal.copy()
    te = np.flatnonzero(atoms.symbols == "Te")
    vectors, lengths = get_distances(where[None], atoms.positions[te], cell=atoms.cell, pbc=True)
    first, second = np.argsort(lengths[0])[:2]
    a, b = vectors[0, first], vectors[0, second]
    middle, along = (a + b) / 2, (a - b) / np.linalg.norm(a - b)
    atoms.positions[te[first]] += middle + along * DIMER / 2 - a
    atoms.positions[te[second]] += middle - along * DIMER / 2 - b
    atoms.set_constraint(FixAtoms(te[[first, second]]))
    held = relax_with(atoms, stage.calculator, "BFGS", FMAX, MAX_STEPS)
    free = held.atoms.copy()
    free.set_constraint()
    let_go = relax_with(free, stage.calculator, "BFGS", FMAX, MAX_STEPS)
    apart = let_go.atoms.get_distance(te[first], te[second], mic=True)
    return float(held.energies[-1]), float(apart), float(let_go.energies[-1])


def _shortest_te(atoms: Atoms, where: np.ndarray) -> float:
    te = np.flatnonzero(atoms.symbols == "Te")
    lengths = get_distances(where[None], atoms.positions[te], cell=atoms.cell, pbc=True)[1][0]
    near = te[np.argsort(lengths)[:4]]
    between = get_distances(atoms.positions[near], cell=atoms.cell, pbc=True)[1]
    return float(between[np.triu_indices(4, 1)].min())


def run(name: str, settings: dict[str, Any]) -> None:
    """Run all cases with one engine, as far as they are not there, and save each."""
    label = " ".join([name, *(f"{key}={value}" for key, value in settings.items())])
    if name == "network":
        save(label, {"cases": {case.name: of_network(case) for case in CASES}})
        return
    entry = CALCULATORS[name]
    try:
        package = f"{entry.module} {version(entry.module.replace('_', '-'))}"
    except PackageNotFoundError:
        package = entry.module
    before = json.loads(OUT.read_text(encoding="utf-8"))["engines"].get(label, {}) if OUT.exists() else {}
    known = before if before.get("package") == package and "cases" in before else {"cases": {}}
    out = {"package": package, "settings": settings, **known}
    try:
        for case in CASES:
            if case.name not in out["cases"]:
                out["cases"][case.name] = of_calculator(case, name, dict(settings))
                save(label, out)
        if "v_Cd" not in out:
            out["v_Cd"] = dimer(name, dict(settings))
    except CalculatorError as error:
        out = {"package": package, "settings": settings, "reason": str(error)}
    save(label, out)


def save(label: str, found: dict[str, Any]) -> None:
    """Put what is known of an engine among the results."""
    out = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {"engines": {}}
    out["command"] = "python -m research.experiments.engines"
    out["expected"] = {case.name: case.expected for case in CASES}
    out["shell"] = {case.name: f"{case.shell[1]} {case.shell[0]}" for case in CASES}
    out |= {"fmax": FMAX, "max_steps": MAX_STEPS, "dimer_limit": DIMER_LIMIT, "still": STILL}
    out["engines"][label] = found
    OUT.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    print("saved", label, list(found.get("cases", {})), flush=True)


def main() -> None:
    """Run the engines that are named, or all that are ready."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", DefiNetWarning)
    named = sys.argv[1:]
    ready = [name for name in CALCULATORS if name not in SKIPPED and not lacking_of(name)]
    jobs = [(named[0], parse_values(named[1:]))] if named else [(name, {}) for name in ("network", *ready)]
    for name, settings in jobs:
        run(name, settings)


if __name__ == "__main__":
    main()
