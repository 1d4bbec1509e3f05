"""Configurations against brute force over the whole symmetry group, and against the published numbers."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from ase.build import bulk
from ase.db import connect
from ase.io import read
from ase.spacegroup import crystal
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.enumeration import DefectSpace, count_all, parse_defects
from ase_definet.errors import EnumerationError
from ase_definet.host import get_host
from ase_definet.sites import match_sites

OBLIQUE = [[3, 1, 0], [-1, 2, 0], [0, 0, 1]]


def brute_force(space: DefectSpace, defects) -> Counter:
    """Return the size of every orbit: all configurations, all operations, all translations."""
    kinds = [kind for kind, n in defects.items() for _ in range(n)]
    basis = len(space.host.numbers)
    translations = [
        np.array([space._index[space._key(cell + by)] * basis + b for cell in space.cells for b in range(basis)])
        for by in space.cells
    ]
    group = [translation[operation] for operation in space.operations for translation in translations]
    pools = [np.flatnonzero(space.numbers == kind.host) for kind in kinds]
    everything = {
        frozenset(zip(map(int, sites), kinds, strict=True))
        for sites in itertools.product(*pools)
        if len(set(sites)) == len(sites)
    }
    orbits = Counter()
    while everything:
        one = next(iter(everything))
        orbit = {frozenset((int(g[site]), kind) for site, kind in one) for g in group}
        assert orbit <= everything
        everything -= orbit
        orbits[len(orbit)] += 1
    return orbits


@pytest.mark.parametrize(
    ("host", "supercell", "text"),
    [
        ("MoS2", np.diag([3, 3, 1]), "v_S*2 + W_Mo"),
        ("MoS2", np.diag([4, 2, 1]), "v_S + Se_S"),
        ("MoS2", OBLIQUE, "v_Mo + v_S*2"),
        ("BN", np.diag([3, 3, 1]), "C_B*2 + C_N"),
        ("P", np.diag([3, 2, 1]), "v_P*3"),
        ("GaSe", np.diag([2, 2, 1]), "v_Ga*2 + S_Se"),
        ("rutile", np.diag([2, 2, 1]), "v_O*2 + Nb_Ti"),
        ("two orbits", np.diag([2, 2, 1]), "v_Fe*3"),
    ],
)
def test_against_brute_force(host, supercell, text):
    special = {
        "rutile": lambda: crystal(
            ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90]
        ),
        # a cubic cell with iron at the corner and at the face centres: the same element on two orbits
        "two orbits": lambda: bulk("Fe", "fcc", a=3.6, cubic=True),
    }
    if host == "two orbits":
        atoms = special[host]()
        atoms.positions[0, 2] += 0.3
        own = get_host(atoms)
    else:
        own = get_host(special[host]() if host in special else host)
    space, defects = DefectSpace(own, supercell), parse_defects(text)
    found = list(space.enumerate(defects))
    assert Counter(configuration.multiplicity for configuration in found) == brute_force(space, defects)
    assert sum(configuration.multiplicity for configuration in found) == count_all(space, defects)
    assert len({configuration.name for configuration in found}) == len(found)


@pytest.mark.parametrize(
    ("text", "number"),
    [("v_Se*2", 19), ("v_Se + S_Se", 29), ("v_W + v_Se", 15), ("v_W + v_Se*2", 743), ("v_W + v_Se + S_Se", 1415)],
)
def test_the_published_numbers(text, number):
    space = DefectSpace(get_host("WSe2"), np.diag([8, 8, 1]))
    defects = parse_defects(text)
    found = list(space.enumerate(defects))
    assert len(found) == number
    assert sum(configuration.multiplicity for configuration in found) == count_all(space, defects)


def test_structures_are_what_their_names_say():
    space = DefectSpace(get_host("MoS2"), np.diag([5, 5, 1]))
    for configuration in itertools.islice(space.enumerate(parse_defects("v_S*2 + W_Mo")), 0, None, 40):
        atoms = space.atoms(configuration)
        site_map = match_sites(atoms, "MoS2")
        assert site_map.defect_counts == {"v_S": 2, "W_Mo": 1}
        assert atoms.info["defects"] == "W_Mo x1, v_S x2"
        places = np.array([d.position for d in site_map.defects])
        lengths = sorted(
            np.linalg.norm(shift @ atoms.cell.array + a - b)
            for a, b in itertools.combinations(places, 2)
            for shift in itertools.product((-1, 0, 1), (-1, 0, 1), (0,))
        )
        assert atoms.info["shortest_defect_distance"] == pytest.approx(lengths[0], abs=1e-3)


def test_max_distance_keeps_the_close_ones():
    space = DefectSpace(get_host("MoS2"), np.diag([6, 6, 1]))
    defects = parse_defects("v_S*3")
    everything = list(space.enumerate(defects))
    close = list(space.enumerate(defects, max_distance=6.0))
    assert 0 < len(close) < len(everything)
    expected = Counter(c.distances for c in everything if c.distances[-1] <= 6.0)
    assert Counter(c.distances for c in close) == expected


def test_samples_repeat_and_have_their_density():
    space = DefectSpace(get_host("WSe2"), np.diag([8, 8, 1]))
    kinds = list(parse_defects("v_Se + S_Se + Mo_W"))
    one = list(itertools.islice(space.sample(0.05, kinds, seed=3), 20))
    again = list(itertools.islice(space.sample(0.05, kinds, seed=3), 20))
    other = list(itertools.islice(space.sample(0.05, kinds, seed=4), 20))
    assert [c.sites for c in one] == [c.sites for c in again] != [c.sites for c in other]
    assert {len(c.sites) for c in one} == {10}
    assert {kind.name for c in one for kind in c.kinds} == {"v_Se", "S_Se", "Mo_W"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v_S*2 + X", "cannot read the defect 'X'"),
        ("v_Qq", "Qq is no element"),
        ("S_S", "is no defect"),
        ("v_S*0", "no defect at all"),
        ("", "cannot read"),
    ],
)
def test_defects_that_cannot_be_read(text, message):
    with pytest.raises(EnumerationError, match=message):
        parse_defects(text)


def test_defects_that_do_not_fit():
    space = DefectSpace(get_host("MoS2"), np.diag([2, 2, 1]))
    with pytest.raises(EnumerationError, match=r"5 defects on Mo sites, of which .* has 4"):
        next(space.enumerate(parse_defects("v_Mo*3 + W_Mo*2")))
    with pytest.raises(EnumerationError, match=r"0 defects on Se|1 defects on Se sites"):
        next(space.enumerate(parse_defects("v_Se")))
    with pytest.raises(EnumerationError, match="makes 0 defects"):
        next(space.sample(0.01, list(parse_defects("v_S"))))
    with pytest.raises(EnumerationError, match="last row"):
        DefectSpace(get_host("MoS2"), np.diag([2, 2, 2]))
    with pytest.raises(EnumerationError, match="volume"):
        DefectSpace(get_host("MoS2"), np.zeros((3, 3)))


def test_vanadium_is_no_vacancy():
    kinds = list(parse_defects("v_V + Cr_V + 23_Mo"))
    assert [(kind.host, kind.element) for kind in kinds] == [(23, 0), (23, 24), (42, 23)]


def test_command(tmp_path):
    base = ["enumerate", "--host", "WSe2", "--supercell", "8x8", "--defects", "v_Se*2"]
    done = CliRunner().invoke(cli, base)
    assert done.exit_code == 0
    assert "19 configurations, 8128 with their images, 192 sites of WSe2" in done.output
    for name in ("all.extxyz", "all.db"):
        done = CliRunner().invoke(cli, [*base, "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert CliRunner().invoke(cli, [*base, "-o", str(tmp_path / name)]).exit_code == 2
    frames = read(tmp_path / "all.extxyz", ":")
    assert len(frames) == 19
    assert sum(frame.info["multiplicity"] for frame in frames) == 8128
    assert sorted(row.multiplicity for row in connect(tmp_path / "all.db").select()) == sorted(
        frame.info["multiplicity"] for frame in frames
    )
    done = CliRunner().invoke(cli, [*base, "--limit", "3", "-o", str(tmp_path / "some")])
    assert done.exit_code == 0
    assert len(list((tmp_path / "some").glob("*.vasp"))) == 3
    random = ["--density", "0.05", "--seed", "1", "--limit", "4", "-o", str(tmp_path / "random.extxyz")]
    assert CliRunner().invoke(cli, [*base, *random]).exit_code == 0
    assert len(read(tmp_path / "random.extxyz", ":")) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--defects", "v_Te"], "has 0"),
        (["--supercell", "8"], "expected 8x8"),
        (["--density", "0.1"], "--limit"),
        (["--host", "auto"], "name the host"),
        (["-o", "x.cif"], "expected a folder"),
    ],
)
def test_bad_usage(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ["enumerate", "--host", "WSe2", "--supercell", "4x4", "--defects", "v_Se"]
    done = CliRunner().invoke(cli, [*base, *change])
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
