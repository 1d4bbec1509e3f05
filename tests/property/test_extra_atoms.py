"""Random defects of every kind, on sites and off: what was planted is found again, and no atom is lost."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ase_definet.errors import MatchError
from ase_definet.matching.extra_atoms import ExtraKind
from ase_definet.matching.library import library
from ase_definet.matching.site_kind import SiteKind
from ase_definet.matching.site_map import match_sites

NOISE = 0.05  # Å, of every atom in some direction
SAME_PLACE = 0.3  # Å, of a site found in a noisy structure
APART = 5.5  # Å, between planted defects, so that none is part of another
FOREIGN = ["Li", "W", "As"]


def layer(name, vacuum=8):
    host = library()[name]
    atoms = Atoms(numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=True)
    atoms.center(vacuum=vacuum, axis=2)
    return atoms


def bulk_hbn():
    a, c = 2.4894, 6.6706
    scaled = [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.25], [2 / 3, 1 / 3, 0.75], [1 / 3, 2 / 3, 0.75]]
    cell = [[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, c]]
    return Atoms("BNBN", scaled_positions=scaled, cell=cell, pbc=True)


HOSTS = {
    "MoS2": (layer("MoS2"), (6, 6, 1)),
    "BN": (layer("BN"), (8, 8, 1)),
    "bulk h-BN": (bulk_hbn(), (6, 6, 2)),
    "MgO": (bulk("MgO", "rocksalt", a=4.21, cubic=True), (3, 3, 3)),
}
# fractions of the unit cell where there is room; bulk h-BN: between the layers, MgO: the middle of the small cube
HOLLOW = {"MoS2": None, "BN": None, "bulk h-BN": (0.0, 0.0, 0.5), "MgO": (0.25, 0.25, 0.25)}
KINDS = ["vacancy", "substitution", "antisite", "interstitial", "adatom", "split vacancy", "dumbbell", "frenkel"]


def hollow(name, unit):
    """Return a place of the unit cell that is on no site, in Å: in a layer, the middle of a hexagon of the metal."""
    if HOLLOW[name] is not None:
        return np.array(HOLLOW[name]) @ unit.cell.array
    metal = {"MoS2": "Mo", "BN": "B"}[name]
    scaled = unit.get_scaled_positions()
    height = scaled[unit.symbols == metal][0][2]
    used = [tuple(np.round(3 * s[:2]).astype(int) % 3) for s in scaled]
    free = next(corner for corner in ((0, 0), (1, 2), (2, 1)) if corner not in used)
    return np.array([free[0] / 3, free[1] / 3, height]) @ unit.cell.array


class Planter:
    """A structure in which defects are planted far from one another, and what is expected of it."""

    def __init__(self, name, rng):
        self.name, self.rng = name, rng
        self.unit, repeat = HOSTS[name]
        self.repeat = np.array(repeat)
        self.ideal = self.unit.repeat(repeat)
        self.positions = self.ideal.positions.copy()
        self.symbols = list(map(str, self.ideal.symbols))
        self.gone, self.added = [], []
        self.on_sites, self.off_sites, self.places = [], [], []
        self.layered = name in {"MoS2", "BN"}

    def mic(self, vectors):
        fraction = np.linalg.solve(self.ideal.cell.array.T, np.atleast_2d(vectors).T).T
        return (fraction - np.round(fraction)) @ self.ideal.cell.array

    def far(self, place):
        return all(np.linalg.norm(self.mic(place - other)) > APART for other in self.places)

    def atom(self, symbol=None):
        """Draw an atom far from all defects."""
        for k in self.rng.permutation(len(self.ideal)).tolist():
            if self.far(self.ideal.positions[k]) and symbol in {None, self.symbols[k]}:
                self.places.append(self.ideal.positions[k])
                return k
        return None

    def place(self):
        """Draw a place on no site, far from all defects."""
        for _ in range(200):
            cells = self.rng.integers(0, self.repeat)
            place = hollow(self.name, self.unit) + cells @ self.unit.cell.array
            if self.far(place):
                self.places.append(place)
                return place
        return None

    def foreign(self):
        return str(self.rng.choice(FOREIGN))

    def plant(self, kind):
        getattr(self, kind.replace(" ", "_"))()

    def vacancy(self):
        if (k := self.atom()) is not None:
            self.gone.append(k)
            self.on_sites.append((f"v_{self.symbols[k]}", self.ideal.positions[k]))

    def substitution(self, new=None):
        if (k := self.atom()) is not None:
            old, new = self.symbols[k], new or self.foreign()
            self.symbols[k] = new
            self.on_sites.append((f"{new}_{old}", self.ideal.positions[k]))

    def antisite(self):
        if (k := self.atom()) is not None:
            old = self.symbols[k]
            self.symbols[k] = next(e for e in sorted(set(map(str, self.unit.symbols))) if e != old)
            self.on_sites.append((f"{self.symbols[k]}_{old}", self.ideal.positions[k]))

    def interstitial(self, element=None):
        if (place := self.place()) is not None:
            element = element or self.foreign()
            self.added.append((element, place))
            self.off_sites.append((f"{element}_i", ExtraKind.INTERSTITIAL, place))
            return True
        return False

    def adatom(self):
        if not self.layered or (place := self.place()) is None:
            return
        element, side = self.foreign(), int(self.rng.choice([-1, 1]))
        heights = self.ideal.positions[:, 2]
        edge = heights.max() if side > 0 else heights.min()
        place = np.array([*place[:2], edge + side * self.rng.uniform(1.2, 2.5)])
        self.added.append((element, place))
        self.off_sites.append((f"{element}_ads", ExtraKind.ADATOM, place))

    def split_vacancy(self):
        if (k := self.atom()) is None:
            return
        same = np.flatnonzero(np.array(self.symbols) == self.symbols[k])
        steps = self.mic(self.ideal.positions[same] - self.ideal.positions[k])
        size = np.linalg.norm(steps, axis=1)
        step = steps[size > 1e-6][np.argmin(size[size > 1e-6])]
        other = int(same[np.argmin(np.linalg.norm(steps - step, axis=1))])
        self.gone.append(k)
        self.positions[other] -= step / 2
        name = self.symbols[k]
        self.on_sites += [(f"v_{name}", self.ideal.positions[n]) for n in (k, other)]
        self.off_sites.append((f"{name}_i", ExtraKind.SPLIT_VACANCY, self.positions[other]))

    def dumbbell(self):
        if (k := self.atom()) is None:
            return
        along = np.array([0.0, 0.0, 1.0]) if self.name != "MgO" else np.full(3, 1 / np.sqrt(3))
        half = self.rng.uniform(0.65, 0.85) * along
        element = self.symbols[k] if self.rng.random() < 0.5 else self.foreign()
        self.positions[k] = self.positions[k] - half
        self.added.append((element, self.ideal.positions[k] + half))
        # which of two equal atoms is on the site does not matter
        self.off_sites.append((f"{element}_i", ExtraKind.SPLIT_INTERSTITIAL, self.ideal.positions[k]))

    def frenkel(self):
        """An atom of the host at an interstitial place, its site vacant far from there."""
        if (k := self.atom()) is None:
            return
        if self.interstitial(self.symbols[k]):
            self.gone.append(k)
            self.on_sites.append((f"v_{self.symbols[k]}", self.ideal.positions[k]))

    def structure(self, shift, setting):
        """Return it: noisy, shifted, in another setting of its cell, its atoms permuted and in any image."""
        rng = self.rng
        symbols = [*self.symbols, *(element for element, _ in self.added)]
        positions = np.array([*self.positions, *(place for _, place in self.added)])
        atoms = Atoms(symbols, positions=positions, cell=self.ideal.cell, pbc=True)
        del atoms[self.gone]
        atoms.set_cell(np.array(setting) @ atoms.cell.array)
        move = rng.normal(size=(len(atoms), 3))
        atoms.positions += NOISE * move / np.linalg.norm(move, axis=1)[:, None] + shift
        atoms.positions += rng.integers(-1, 2, (len(atoms), 3)) @ atoms.cell.array
        return atoms[rng.permutation(len(atoms))]


SETTINGS = [
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]],
    [[0, 1, 0], [-1, -1, 0], [0, 0, 1]],
    [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
    [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
]


def check(planter, atoms, shift, degrees, site_map):
    real = site_map.atom_index >= 0
    off = [extra.atom_index for extra in site_map.extra]
    assert real.sum() + len(off) == len(atoms)
    assert sorted([*site_map.atom_index[real], *off]) == list(range(len(atoms)))
    assert [atoms.symbols[k] for k in off] == [extra.element for extra in site_map.extra]
    np.testing.assert_array_equal(site_map.kinds == SiteKind.VACANCY, ~real)

    box = Atoms(positions=[np.zeros(3)], cell=planter.ideal.cell)
    box.rotate(degrees, "z", rotate_cell=True)
    turn = np.linalg.solve(planter.ideal.cell.array, box.cell.array)

    def near(found, expected, limit):
        back = np.asarray(found) @ turn.T - shift
        return np.linalg.norm(planter.mic(back - expected)) < limit

    left = list(site_map.defects)
    for name, place in planter.on_sites:
        here = [d for d in left if d.name == name and near(d.position, place, SAME_PLACE)]
        assert len(here) == 1, f"{name}: found {site_map.defect_counts}"
        left.remove(here[0])
    assert left == []
    extra = list(site_map.extra)
    for name, kind, place in planter.off_sites:
        limit = 1.0 if kind is ExtraKind.SPLIT_INTERSTITIAL else SAME_PLACE
        here = [e for e in extra if (e.name, e.kind) == (name, kind) and near(e.position, place, limit)]
        assert len(here) == 1, f"{name} ({kind}): found {extra}"
        extra.remove(here[0])
    assert extra == []


@given(
    name=st.sampled_from(sorted(HOSTS)),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
    degrees=st.floats(0, 360),
    setting=st.sampled_from(SETTINGS),
)
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_planted_defects_of_every_kind_are_found_again(name, kinds, seed, degrees, setting):
    rng = np.random.default_rng(seed)
    planter = Planter(name, rng)
    for kind in kinds:
        planter.plant(kind)
    shift = rng.uniform(-5, 5, 3)
    atoms = planter.structure(shift, setting)
    atoms.rotate(degrees, "z", rotate_cell=True)
    site_map = match_sites(atoms, planter.unit)
    check(planter, atoms, shift, degrees, site_map)
    if planter.off_sites:
        with pytest.raises(MatchError, match="no kind of site"):
            site_map.require_sites_only()
    else:
        site_map.require_sites_only()


@pytest.mark.parametrize("name", sorted(HOSTS))
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone(name, kind):
    for seed in range(3):
        planter = Planter(name, np.random.default_rng(seed))
        planter.plant(kind)
        atoms = planter.structure(np.zeros(3), SETTINGS[0])
        check(planter, atoms, np.zeros(3), 0.0, match_sites(atoms, planter.unit))
