"""Random defects, shift, order, images, rattle and rotation: what was planted is found again."""

import numpy as np
from ase import Atoms
from ase.build import bulk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ase_definet.matching.library import library
from ase_definet.matching.site_map import match_sites

RATTLE = 0.08  # Å, of every atom in some direction
POSITION_TOLERANCE = 0.1  # Å, of an ideal site found in a rattled structure
FOREIGN = ["C", "W", "In"]

CRYSTALS = {
    "MgO": bulk("MgO", "rocksalt", a=4.21, cubic=True),
    "GaAs": bulk("GaAs", "zincblende", a=5.65, cubic=True),
}
SIZES = {"MoS2": (5, 5, 1), "BN": (6, 6, 1), "GaSe": (4, 4, 1), "P": (5, 4, 1), "MgO": (2, 2, 2), "GaAs": (2, 2, 3)}


def pristine(name):
    if name in CRYSTALS:
        return CRYSTALS[name].repeat(SIZES[name])
    host = library()[name]
    atoms = Atoms(numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=True)
    atoms.set_cell([*atoms.cell[:2], [0, 0, 20]])
    return atoms.repeat(SIZES[name])


@given(
    name=st.sampled_from(sorted(SIZES)),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 0.1),
    degrees=st.floats(0, 360),
)
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_planted_defects_are_found_again(name, seed, share, degrees):
    rng = np.random.default_rng(seed)
    atoms = pristine(name)
    elements = [*sorted(set(atoms.symbols)), *FOREIGN]
    planted, gone = [], []
    for k in rng.choice(len(atoms), round(share * len(atoms)), replace=False):
        new = str(rng.choice([e for e in elements if e != atoms.symbols[k]])) if rng.random() < 0.5 else None
        planted.append((f"{new or 'v'}_{atoms.symbols[k]}", k))
        if new:
            atoms.symbols[k] = new
        else:
            gone.append(k)
    atoms.positions += rng.uniform(-5, 5, 3)
    atoms.rotate(degrees, "z", rotate_cell=True)
    ideal = atoms.positions.copy()
    del atoms[gone]
    move = rng.normal(size=(len(atoms), 3))
    atoms.positions += RATTLE * move / np.linalg.norm(move, axis=1)[:, None]
    atoms.positions += rng.integers(-1, 2, (len(atoms), 3)) @ atoms.cell.array
    atoms = atoms[rng.permutation(len(atoms))]

    site_map = match_sites(atoms, CRYSTALS.get(name, name))

    left = list(site_map.defects)
    for defect, k in planted:
        fractions = [np.linalg.solve(atoms.cell.array.T, np.subtract(d.position, ideal[k])) for d in left]
        gaps = [np.linalg.norm((f - np.round(f)) @ atoms.cell.array) for f in fractions]
        here = [n for n, d in enumerate(left) if d.name == defect and gaps[n] < POSITION_TOLERANCE]
        assert len(here) == 1, f"{defect} not found: {site_map.defect_counts}"
        del left[here[0]]
    assert left == []
