"""Random defect structures against the truth that was planted: ``python -m tests.reliability.matches --count 1000``.

Hosts are the library's, crystals, stacks of two layers, dense and doped hosts, and relaxed supercells with a little
noise. Cells are strained, alike or differently along their axes, shifted, turned, rattled and permuted, up to tens of
thousands of sites. A match is right if every planted defect is found at its place and no other. Exit code 1 if any
match is wrong without a warning.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk, graphene, mx2
from scipy.spatial import cKDTree

from ase_definet.errors import HostError, MatchError
from ase_definet.matching.host import Host
from ase_definet.matching.library import get_host, library
from ase_definet.matching.naming import defect_name
from ase_definet.matching.site_map import SiteMap, match_sites

FOREIGN = (6, 74, 49, 23)
"""C, W, In, V: put on sites where a substitution is planted."""
SAME_PLACE = 0.6
"""A defect found this near to where it was planted is the planted one, in Å: strain and rattling move the mean."""
LARGEST = 20_000
"""Sites of the largest cells."""


@dataclass(frozen=True)
class Case:
    """A structure and what is in it.

    Attributes:
        label: Kind of host.
        atoms: The structure.
        host: What its host is given as.
        planted: Name and position of every defect, in Å, in the structure's frame.
        settings: In words, to find the case again.
    """

    label: str
    atoms: Atoms
    host: object
    planted: list[tuple[str, np.ndarray]]
    settings: str


def layer(name: str) -> Atoms:
    """Return the primitive cell of a library host with vacuum."""
    host = library()[name]
    atoms = Atoms(numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=True)
    atoms.center(vacuum=8, axis=2)
    return atoms


def stack(lower: Atoms, upper: Atoms, gap: float = 3.3) -> Atoms:
    """Put a layer on another, strained onto its cell."""
    out, above = lower.copy(), upper.copy()
    cell = above.cell.array
    cell[:2] = lower.cell.array[:2]
    above.set_cell(cell, scale_atoms=True)
    above.positions[:, 2] += out.positions[:, 2].max() + gap - above.positions[:, 2].min()
    out += above
    out.center(vacuum=8, axis=2)
    return out


def hosts(rng: np.random.Generator) -> dict[str, Callable[[], Atoms]]:
    """Return how to make the hosts of each kind; some of them are random."""

    def doped(element: str) -> Atoms:
        atoms = bulk("C", cubic=True).repeat(int(rng.integers(2, 4)))
        atoms.symbols[int(rng.integers(len(atoms)))] = element
        return atoms

    def noisy(name: str) -> Atoms:
        atoms = layer(name).repeat((3, 3, 1))
        atoms.positions += rng.normal(size=atoms.positions.shape) * float(rng.choice([0.001, 0.002, 0.005]))
        return atoms

    two = bulk("MgO", "rocksalt", a=4.21, cubic=True)
    layers = [name for name, host in library().items() if host.layered]
    made: dict[str, Callable[[], Atoms]] = {f"library {name}": (lambda name=name: layer(name)) for name in layers}
    made |= {
        "crystal MgO": lambda: two,
        "crystal Si": lambda: bulk("Si", cubic=True),
        "crystal GaAs": lambda: bulk("GaAs", "zincblende", a=5.65),
        "crystal ZnO": lambda: bulk("ZnO", "wurtzite", a=3.25, c=5.2),
        "crystal Cu": lambda: bulk("Cu", cubic=True),
        "crystal diamond": lambda: bulk("C"),
        "stack MoS2/graphene": lambda: stack(
            mx2("MoS2", a=3.16, size=(4, 4, 1), vacuum=8), graphene(size=(5, 5, 1), vacuum=8)
        ),
        "stack MoS2/h-BN": lambda: stack(
            mx2("MoS2", a=3.15, size=(4, 4, 1), vacuum=8), layer("BN").repeat((5, 5, 1))
        ),
        "stack MoS2/WSe2": lambda: stack(layer("MoS2"), layer("WSe2")),
        "doped diamond": lambda: doped("N"),
        "noisy MoS2": lambda: noisy("MoS2"),
        "noisy h-BN": lambda: noisy("BN"),
    }
    return made


def draw(rng: np.random.Generator) -> Case:
    """Draw a case."""
    made = hosts(rng)
    label = str(rng.choice(sorted(made)))
    unit = made[label]()
    layered = not label.startswith(("crystal", "doped"))
    host = get_host(unit) if not label.startswith("library") else label.split()[1]
    basis = len(host.numbers) if isinstance(host, Host) else len(unit)
    largest = max(1.0, (rng.choice([200, 600, LARGEST]) / len(unit)) ** (1 / 2 if layered else 1 / 3))
    n = max(int(rng.integers(1, max(2, round(largest) + 1))), 1 if len(unit) > 24 else 3)
    m = max(1, n + int(rng.integers(-1, 2)))
    size = (n, m, 1) if layered else (n, m, n)
    atoms = unit.repeat(size)
    atoms.pbc = True
    # no two supercells of a host with few cells fit within this much, so that the truth is one
    strain = rng.choice([0.0, 0.01, 0.02, 0.035]) * rng.uniform(-1, 1, 3)
    if rng.random() < 0.5:
        strain[:] = strain[0]
    if layered:
        strain[2] = 0
    cell = atoms.cell.array * (1 + strain)
    atoms.set_cell(cell, scale_atoms=True)
    share = float(rng.choice([0.0, 0.02, 0.1]))
    count = max(1, round(share * rng.random() * len(atoms)))
    # a dopant of the host stays, and stays alone: else the same structure has other readings
    common = [z for z in set(unit.numbers.tolist()) if np.count_nonzero(unit.numbers == z) > len(unit) / 50]
    chosen = rng.choice(np.flatnonzero(np.isin(atoms.numbers, common)), count, replace=False)
    planted, gone = [], []
    for k in chosen.tolist():
        old = int(atoms.numbers[k])
        new = 0
        if rng.random() < 0.5:
            new = int(rng.choice([z for z in {*FOREIGN, *common} if z != old]))
            atoms.numbers[k] = new
        else:
            gone.append(k)
        planted.append((defect_name(new, old), k))
    atoms.positions += rng.uniform(-5, 5, 3)
    turn = float(rng.choice([0, rng.uniform(0, 360)]))
    atoms.rotate(turn, "z" if layered else rng.normal(size=3), rotate_cell=True)
    truth = [(name, atoms.positions[k].copy()) for name, k in planted]
    rattle = float(rng.choice([0, 0.02, 0.08]))
    atoms.positions += rattle * rng.normal(size=atoms.positions.shape)
    del atoms[gone]
    atoms = atoms[rng.permutation(len(atoms))]
    settings = f"{label} {size} basis {basis} strain {strain.round(4).tolist()} {count} defects rattle {rattle}"
    return Case(label, atoms, host, truth, settings)


def is_right(case: Case, found: SiteMap) -> bool:
    """Return whether the planted defects were found, each at its place, and no other."""
    defects = found.defects
    if found.extra or sorted(d.name for d in defects) != sorted(name for name, _ in case.planted):
        return False
    if not defects:
        return True
    cell = case.atoms.cell.array
    images = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]) @ cell
    inverse = np.linalg.inv(cell)
    for name in {d.name for d in defects}:
        here = np.array([d.position for d in defects if d.name == name])
        there = np.array([position for other, position in case.planted if other == name])
        here, there = ((p @ inverse % 1) @ cell for p in (here, there))
        tree = cKDTree((here[:, None] + images).reshape(-1, 3))
        distance, index = tree.query(there)
        if distance.max() > SAME_PLACE or len(np.unique(index // len(images))) != len(here):
            return False
    return True


def judge(case: Case) -> tuple[str, str]:
    """Match a case; return what came of it and why."""
    try:
        found = match_sites(case.atoms, case.host)
    except (HostError, MatchError) as error:
        return "refused", str(error)
    if is_right(case, found):
        return ("right, with a warning" if found.ambiguous else "right"), "; ".join(found.warnings)
    kind = "wrong, with a warning" if found.ambiguous else "SILENTLY WRONG"
    return kind, f"{found.supercell_name} {found.defect_counts} cost {found.cost:.3f} {'; '.join(found.warnings)}"


def sweep(seed: int, count: int, report: Callable[[str], object] = lambda _: None) -> Counter[tuple[str, str]]:
    """Judge random cases.

    Args:
        seed: Of the first case; each case has its own.
        count: Number of cases.
        report: Called with a line for each that is not right.

    Returns:
        Number of cases of each kind of host and outcome.
    """
    out: Counter[tuple[str, str]] = Counter()
    for k in range(seed, seed + count):
        case = draw(np.random.default_rng(k))
        outcome, why = judge(case)
        out[case.label, outcome] += 1
        if not outcome.startswith("right"):
            report(f"{outcome}: seed {k}: {case.settings}: {why}")
    return out


def main() -> None:
    """Run the sweep and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    began = time.perf_counter()
    found = sweep(options.seed, options.count, print)
    outcomes = sorted({outcome for _, outcome in found})
    print("| host | " + " | ".join(outcomes) + " |\n|---|" + "---|" * len(outcomes))
    for label in sorted({label for label, _ in found}):
        print(f"| {label} | " + " | ".join(str(found[label, outcome]) for outcome in outcomes) + " |")
    print(f"{options.count} matches, seed {options.seed}, {time.perf_counter() - began:.0f} s")
    sys.exit(1 if any(outcome.isupper() for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
