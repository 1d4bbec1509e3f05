"""Any supercell of any host: the configurations are one of each orbit of the space group, by brute force."""

from __future__ import annotations

import itertools
import warnings
from functools import cache

import numpy as np
import spglib
from ase import Atoms
from ase.build import bulk
from ase.data import chemical_symbols as symbols
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from ase_definet.matching.library import get_host
from ase_definet.screening.enumeration import DefectSpace, parse_defects
from tests.conftest import count_all

LAYERS = ("MoS2", "BN", "P", "GaSe")
CRYSTALS = ("Si", "NaCl", "Cu", "Mg", "tilted")


@cache
def host_of(name):
    made = {
        "Si": lambda: bulk("Si"),
        "NaCl": lambda: bulk("NaCl", "rocksalt", a=5.6),
        "Cu": lambda: bulk("Cu"),
        "Mg": lambda: bulk("Mg"),
        "tilted": lambda: Atoms(
            "TiO", [[0, 0, 0], [1.4, 1.1, 0.9]], cell=[[3, 0.2, 0], [0.7, 4, 0], [0.4, 1.1, 5]], pbc=True
        ),
    }
    return get_host(made[name]() if name in made else name)


def whole_group(space):
    """Return every symmetry of the supercell as spglib finds it there, as permutations of the sites."""
    scaled = np.linalg.solve(space.cell.T, space.positions.T).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = spglib.get_symmetry((space.cell, scaled, space.numbers), symprec=0.01)
    tree = cKDTree(np.mod(scaled, 1.0) % 1.0, boxsize=1.0)
    group = set()
    for turn, shift in zip(found["rotations"], found["translations"], strict=True):
        if space.host.layered and (turn[2, :2].any() or turn[:2, 2].any()):
            continue
        off, image = tree.query(np.mod(scaled @ turn.T + shift, 1.0) % 1.0)
        assert off.max() < 0.01
        assert sorted(image.tolist()) == list(range(len(scaled)))
        group.add(tuple(image.tolist()))
    return group


def check(space, text, max_distance=None):
    defects = parse_defects(text)
    group = whole_group(space)
    assert space.order == len(group)
    found = list(space.enumerate(defects, max_distance))
    seen = set()
    for one in found:
        occupied = list(zip(one.sites, one.kinds, strict=True))
        orbit = {frozenset((g[site], kind) for site, kind in occupied) for g in group}
        assert len(orbit) == one.multiplicity
        assert not orbit & seen, "two configurations of one orbit"
        seen |= orbit
    assert len({one.name.casefold() for one in found}) == len(found)
    if max_distance is None:
        assert len(seen) == count_all(space, defects)
    return found


matrices = st.lists(st.integers(-3, 3), min_size=9, max_size=9).map(lambda v: np.array(v).reshape(3, 3))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(LAYERS), matrices, st.integers(1, 3))
def test_layers(name, matrix, number):
    matrix[2], matrix[:, 2] = 0, 0
    matrix[2, 2] = 1
    host = host_of(name)
    one, other = (int(z) for z in (host.numbers[0], host.numbers[-1]))
    cells = abs(round(np.linalg.det(matrix)))
    assume(0 < cells <= 8)
    space = DefectSpace(host, matrix)
    text = f"v_{symbols[one]}*{number} + V_{symbols[other]}"
    assume(all(number + 1 <= (space.numbers == z).sum() for z in (one, other)))
    check(space, text)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CRYSTALS), matrices, st.integers(1, 2))
def test_crystals(name, matrix, number):
    host = host_of(name)
    cells = abs(round(np.linalg.det(matrix)))
    assume(0 < cells <= 8)
    space = DefectSpace(host, matrix)
    element = symbols[int(host.numbers[0])]
    assume(number + 1 <= (space.numbers == host.numbers[0]).sum())
    check(space, f"v_{element}*{number} + Zr_{element}")


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(LAYERS + CRYSTALS), matrices, st.floats(2.0, 9.0))
def test_a_largest_distance_keeps_whole_orbits(name, matrix, limit):
    host = host_of(name)
    if host.layered:
        matrix[2], matrix[:, 2] = 0, 0
        matrix[2, 2] = 1
    assume(0 < abs(round(np.linalg.det(matrix))) <= 8)
    space = DefectSpace(host, matrix)
    element = symbols[int(host.numbers[0])]
    assume((space.numbers == host.numbers[0]).sum() >= 3)
    text = f"v_{element}*2 + Zr_{element}"
    close = {one.name: one.multiplicity for one in check(space, text, limit)}
    everything = space.enumerate(parse_defects(text))
    assert close == {one.name: one.multiplicity for one in everything if one.distances[-1] <= limit}


@settings(max_examples=50, deadline=None)
@given(matrices, st.lists(st.tuples(*[st.integers(-50, 50)] * 3), min_size=1, max_size=10))
def test_cells_are_added_modulo_the_supercell(matrix, vectors):
    assume(0 < abs(round(np.linalg.det(matrix))) <= 40)
    space = DefectSpace(host_of("tilted"), matrix)
    keys = space._key(space.cells)
    assert sorted(keys.tolist()) == list(range(len(space.cells)))
    vectors = np.array(vectors)
    for vector, index in zip(vectors, space._index[space._key(vectors)], strict=True):
        away = np.linalg.solve(matrix.T.astype(float), vector - space.cells[index])
        assert np.abs(away - np.round(away)).max() < 1e-6


def test_distances_are_those_of_all_images():
    space = DefectSpace(host_of("tilted"), np.array([[2, 1, 0], [-1, 3, 1], [0, 0, 2]]))
    shifts = np.array(list(itertools.product(range(-3, 4), repeat=3))) @ space.cell
    pairs = np.array(list(itertools.combinations(range(len(space.numbers)), 2)))
    vectors = space.positions[pairs[:, 1]] - space.positions[pairs[:, 0]]
    expected = np.linalg.norm(vectors[:, None] + shifts, axis=2).min(axis=1)
    np.testing.assert_allclose(space.distances(pairs[:, 0], pairs[:, 1]), expected, atol=1e-9)
