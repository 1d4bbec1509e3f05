"""Structures recognised on the sites of another have the match that they would have alone, to the bit."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ase_definet.matching.host_sites import HostSites
from ase_definet.matching.library import get_host
from ase_definet.matching.shared_sites import Matcher, SharedSites
from ase_definet.matching.site_map import MIN_ADVANTAGE, match_sites
from tests.conftest import pristine

STRAIN = 0.06
SAME = 1e-4


def same_match(one, other) -> None:
    for field in fields(HostSites):
        if field.name != "host":
            assert np.array_equal(getattr(one.sites, field.name), getattr(other.sites, field.name)), field.name
    for name in ("numbers", "kinds", "atom_index", "offsets"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.host == other.host
    assert one.cost == pytest.approx(other.cost, abs=1e-9)
    assert one.margin == pytest.approx(other.margin, abs=SAME)
    assert one.warnings == other.warnings
    assert one.extra == other.extra
    assert one.runner_up <= other.runner_up + SAME


def defective(host: str, size: int, seed: int, shift=(0.0, 0.0, 0.0), noise: float = 1e-9):
    rng = np.random.default_rng(seed)
    atoms = pristine(host, size)
    atoms.positions += np.array(shift) + rng.normal(scale=noise, size=atoms.positions.shape)
    for _ in range(rng.integers(4)):
        atoms.numbers[rng.integers(len(atoms))] = rng.choice([5, 7, 16, 34, 42, 74])
    del atoms[rng.choice(len(atoms), rng.integers(4), replace=False)]
    return atoms[rng.permutation(len(atoms))] if seed % 3 == 0 else atoms


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([("MoS2", 4), ("BN", 5), ("WSe2", 5)]),
    st.lists(st.integers(0, 1000), min_size=3, max_size=5),
    st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-5, 5)),
    st.sampled_from([0.0, 1e-9, 1e-3]),
)
def test_recognised_structures_match_as_they_do_alone(case, seeds, shift, noise):
    host, matcher = get_host(case[0]), Matcher()
    for seed in seeds:
        atoms = defective(*case, seed, shift, noise)
        same_match(matcher.match(atoms, host, STRAIN), match_sites(atoms, host))


def recognised(atoms, plain) -> bool:
    return SharedSites(match_sites(plain, "MoS2"), plain).match(atoms) is not None


def test_most_structures_of_a_screen_are_recognised():
    plain = pristine("MoS2", 6)
    assert all(recognised(defective("MoS2", 6, seed), plain) for seed in range(12))


@pytest.mark.parametrize(
    "what",
    ["moved", "shifted", "cell", "pbc", "adatom", "two on a site", "little left", "a sublattice", "nan", "no atom"],
)
def test_what_a_match_may_read_differently_is_left_to_it(what):
    plain = pristine("MoS2", 6)
    atoms = plain.copy()
    if what == "moved":
        atoms.positions[5] += [0.3, 0, 0]
    elif what == "shifted":
        atoms.positions += [0.001, 0, 0]
    elif what == "cell":
        atoms.set_cell(atoms.cell * [[1.001], [1], [1]], scale_atoms=True)
    elif what == "pbc":
        atoms.pbc = not atoms.pbc[2]
    elif what == "adatom":
        atoms.append("S")
        atoms.positions[-1] = atoms.positions[0] + [0, 0, 3.0]
    elif what == "two on a site":
        atoms.append(atoms[3])
    elif what == "little left":
        del atoms[40:]
    elif what == "a sublattice":
        atoms.numbers[np.flatnonzero(atoms.numbers == 42)[:-10]] = 74
    elif what == "nan":
        atoms.positions[0] = np.nan
    else:
        del atoms[:]
    assert recognised(plain, plain)
    assert not recognised(atoms, plain)


def test_another_registration_is_not_ruled_out_by_a_doubtful_match():
    plain = pristine("MoS2", 6)
    sure = match_sites(plain, "MoS2")
    assert SharedSites.serves(sure)
    doubtful = replace(sure, runner_up=sure.cost + MIN_ADVANTAGE / 2)
    assert not SharedSites.serves(doubtful)
    assert SharedSites(replace(sure, runner_up=0.1), plain).match(defective("MoS2", 6, 5)) is None


def test_only_a_few_cells_are_remembered():
    matcher = Matcher()
    for size in range(2, 10):
        matcher.match(pristine("MoS2", size), get_host("MoS2"), STRAIN)
    assert len(matcher._known) < 8
