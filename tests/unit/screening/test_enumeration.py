"""Configurations against brute force over the whole symmetry group, and against the published numbers."""

from __future__ import annotations

import io
import itertools
import os
import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.db import connect
from ase.geometry import get_distances
from ase.io import read, write
from ase.spacegroup import crystal
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.cli import enumerate as enumerate_module
from ase_definet.errors import EnumerationError
from ase_definet.matching.library import get_host, library
from ase_definet.matching.site_map import match_sites
from ase_definet.screening.enumeration import Configuration, DefectSpace, parse_defects
from ase_definet.structures.files import new_database
from tests.conftest import count_all

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
        ("v_S*0 + W_Mo", "'v_S\\*0' is no defect at all"),
        ("W_Mo + v_S x0", "'v_S x0' is no defect at all"),
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


@pytest.mark.parametrize("count", [0, -1])
def test_counts_that_are_none(count):
    space = DefectSpace(get_host("MoS2"), np.diag([2, 2, 1]))
    wanted = parse_defects("W_Mo") | dict.fromkeys(parse_defects("v_S"), count)
    with pytest.raises(EnumerationError, match="v_S: expected a count of at least 1"):
        next(space.enumerate(wanted))
    with pytest.raises(EnumerationError, match="at least one kind"):
        next(space.enumerate({}))


@pytest.mark.parametrize("limit", [0.0, -3.0, np.nan])
def test_a_distance_that_is_none(limit):
    space = DefectSpace(get_host("MoS2"), np.diag([2, 2, 1]))
    with pytest.raises(EnumerationError, match="positive length"):
        next(space.enumerate(parse_defects("v_S*2"), limit))


@pytest.mark.parametrize("density", [np.nan, np.inf, -0.1, 0.0, 1.1])
def test_a_density_that_is_none(density):
    space = DefectSpace(get_host("MoS2"), np.diag([2, 2, 1]))
    with pytest.raises(EnumerationError, match="defects on 12 sites"):
        next(space.sample(density, list(parse_defects("v_S + v_Mo"))))


def meaning(name):
    """Read a name: which kind is on which site."""
    what, _, sites = name.partition("-")
    sites = [int(site) for site in sites.split("-")]
    out = set()
    for label in what.split("+"):
        kind, _, number = label.partition("x")
        for _ in range(int(number or 1)):
            out.add((sites.pop(0), next(iter(parse_defects(kind)))))
    assert not sites
    return out


@pytest.mark.parametrize(
    ("host", "supercell", "text"),
    [
        ("MoS2", np.diag([2, 2, 1]), "v_S + O_S*2"),
        ("MoS2", np.diag([2, 2, 1]), "v_S*2 + O_S*2"),
        ("MoS2", np.diag([3, 3, 1]), "V_Mo + v_Mo"),
        ("MoS2", np.diag([3, 2, 1]), "v_Mo*2 + V_Mo*2"),
        ("MoS2", OBLIQUE, "V_S*2 + v_S + Co_Mo"),
        ("BN", np.diag([3, 3, 1]), "23_B*2 + v_B + v_N"),
        ("P", np.diag([2, 2, 1]), "V_P*2 + v_P*2"),
        ("GaSe", np.diag([2, 2, 1]), "V_Ga + v_Ga + V_Se + v_Se"),
        ("two orbits", np.diag([2, 2, 1]), "v_Fe*2 + V_Fe*2"),
    ],
)
def test_names_are_unique_and_tell_the_configuration(host, supercell, text, tmp_path):
    atoms = bulk("Fe", "fcc", a=3.6, cubic=True)
    atoms.positions[0, 2] += 0.3
    space = DefectSpace(get_host(atoms if host == "two orbits" else host), supercell)
    defects = parse_defects(text)
    everything = list(space.enumerate(defects))
    sampled = list(itertools.islice(space.sample(3 / len(space.numbers), list(defects), seed=1), 3000))
    for found in (everything, sampled):
        names = [one.name for one in found]
        assert len({name.casefold() for name in names}) == len(found)
        for one, name in zip(found, names, strict=True):
            assert meaning(name) == set(zip(one.sites, one.kinds, strict=True))
    written = ["--host", str(tmp_path / "host.vasp"), "--defects", text, "-o", str(tmp_path / "out")]
    Atoms(space.host.numbers, space.host.positions, cell=space.host.cell, pbc=space.host.periodic).write(
        tmp_path / "host.vasp"
    )
    size = " ".join(map(str, np.ravel(supercell)))
    done = CliRunner().invoke(cli, ["enumerate", *written, "--supercell", size])
    assert done.exit_code == 0, done.output
    files = [path.name.casefold() for path in (tmp_path / "out").glob("*.vasp")]
    assert len(set(files)) == len(files) == len(everything)


def test_random_configurations_come_once_until_there_are_no_others():
    space = DefectSpace(get_host("MoS2"), np.diag([2, 1, 1]))
    kinds = list(parse_defects("v_Mo + V_Mo + v_S + W_Mo"))
    found = list(space.sample(2 / 6, kinds))
    # two of four S, or two of two Mo with three kinds each, or one of either
    assert len(found) == 6 + 9 + 4 * 2 * 3
    assert len({one.name.casefold() for one in found}) == len(found)


def test_names_of_many_defects_fit_into_a_file_name(tmp_path):
    space = DefectSpace(get_host("MoS2"), np.diag([24, 24, 1]))
    found = list(itertools.islice(space.sample(0.3, list(parse_defects("v_S + O_S + W_Mo"))), 5))
    assert all(len(one.name) <= 200 for one in found)
    assert len({one.name for one in found}) == 5
    base = ["enumerate", "--host", "MoS2", "--supercell", "24x24", "--defects", "v_S + O_S + W_Mo"]
    output = tmp_path / "out"
    done = CliRunner().invoke(cli, [*base, "--density", "0.3", "--limit", "5", "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert {path.stem for path in output.glob("*.vasp")} == {one.name for one in found}


@pytest.mark.parametrize(
    ("host", "supercell", "text", "names"),
    [  # as the tables of all cells against all gave them: files of earlier enumerations keep their names
        ("BN", np.diag([3, 3, 1]), "C_B + C_N", {"C_B+C_N-0-1": 27, "C_B+C_N-0-5": 27, "C_B+C_N-0-9": 27}),
        ("MoS2", np.diag([2, 2, 1]), "v_S*2", {"v_Sx2-1-2": 4, "v_Sx2-1-4": 12, "v_Sx2-1-5": 12}),
        ("MoS2", OBLIQUE, "W_Mo*2", {"W_Mox2-0-3": 21}),
    ],
)
def test_names_and_order_stay(host, supercell, text, names):
    found = list(DefectSpace(get_host(host), supercell).enumerate(parse_defects(text)))
    assert [(one.name, one.multiplicity) for one in found] == list(names.items())


@pytest.mark.parametrize(
    ("size", "text", "number"), [(64, "v_S", 1), (32, "v_S*2", 203), (16, "v_S*2 + W_Mo", None), (128, "W_Mo", 1)]
)
def test_memory_follows_the_work(size, text, number):
    tracemalloc.start()
    space, defects = DefectSpace(get_host("MoS2"), np.diag([size, size, 1])), parse_defects(text)
    total = count = 0
    for one in space.enumerate(defects):
        total += one.multiplicity
        count += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == count_all(space, defects)
    assert number is None or count == number
    assert peak < 60e6


def test_random_configurations_of_large_cells_need_no_distances_between_all():
    tracemalloc.start()
    space = DefectSpace(get_host("MoS2"), np.diag([128, 128, 1]))
    found = next(space.sample(0.05, list(parse_defects("v_S + W_Mo"))))
    atoms = space.atoms(found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert len(found.sites) == round(0.05 * 49152)
    places = space.positions[list(found.sites)]
    nearest = get_distances(places[:100], places, cell=space.cell, pbc=space.host.periodic)[1]
    assert atoms.info["shortest_defect_distance"] <= nearest[nearest > 0].min() + 1e-4
    few = Configuration(found.sites[:40], found.kinds[:40], 0, space, found.labels)
    assert few.shortest_distance == few.distances[0]


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
        (["--defects", "v_Se*0 + Mo_W"], "'v_Se*0' is no defect at all"),
        (["--max-distance", "nan"], "positive length"),
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


@pytest.mark.parametrize(
    ("arguments", "notes"),
    [
        (["--defects", "V_S"], ["V_S is vanadium on S; a vacancy is v_S"]),
        (["--defects", "v_S + V_Mo"], ["V_Mo is vanadium on Mo; a vacancy is v_Mo"]),
        (["--defects", "v_S + 23_Mo + W_Mo"], []),
        (["--defects", "v_S*2 + W_Mo", "--density", "0.2", "--limit", "2"], ["counts in --defects are ignored"]),
        (["--defects", "v_S + W_Mo", "--density", "0.2", "--limit", "2"], []),
        (["--defects", "v_Mo", "--density", "0.09", "--limit", "9"], ["there are only 4 different configurations"]),
    ],
)
def test_what_may_be_meant_otherwise_is_said(arguments, notes):
    done = CliRunner().invoke(cli, ["enumerate", "--host", "MoS2", "--supercell", "2x2", *arguments])
    assert done.exit_code == 0, done.output
    said = done.stderr.strip().splitlines()
    assert len(said) == len(notes)
    for line, note in zip(said, notes, strict=True):
        assert note in line
    assert "vanadium" not in done.stdout


def test_overwriting_a_folder_leaves_the_users_files_and_no_stale_ones(tmp_path):
    output = tmp_path / "set"
    base = ["enumerate", "--host", "MoS2", "--supercell", "3x3", "-o", str(output)]
    assert CliRunner().invoke(cli, [*base, "--defects", "v_S*2"]).exit_code == 0
    first = {path.name for path in output.glob("*.vasp")}
    (output / "mine.vasp").write_text("mine")
    (output / "notes.txt").write_text("mine")
    assert CliRunner().invoke(cli, [*base, "--defects", "v_Mo*2"]).exit_code == 2
    assert {path.name for path in output.glob("*.vasp")} == first | {"mine.vasp"}
    done = CliRunner().invoke(cli, [*base, "--defects", "v_Mo*2", "--overwrite"])
    assert done.exit_code == 0, done.output
    assert "2 other files stay" in done.stderr
    names = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    assert not names & first
    assert {"mine.vasp", "notes.txt"} < names
    assert len(names) == 2 + int(done.stdout.split()[0])
    # a stale file that the user changed is the user's
    old = next(path for path in sorted(output.glob("*.vasp")) if path.name != "mine.vasp")
    old.write_text("edited")
    done = CliRunner().invoke(cli, [*base, "--defects", "v_S", "--overwrite"])
    assert done.exit_code != 0
    assert "changed since" in done.output
    assert {path.name for path in output.iterdir() if not path.name.startswith(".")} == names


@pytest.mark.parametrize("name", ["123", "True", 'a "quoted" name', "two\nlines", b"\xff\xfe"])
def test_any_name_of_a_host_can_be_written_and_read_again(name, tmp_path):
    name = os.fsdecode(name) if isinstance(name, bytes) else name
    host = get_host("MoS2")
    space = DefectSpace(replace(host, name=name), np.diag([2, 2, 1]))
    one = next(space.enumerate(parse_defects("v_S*2")))
    with (tmp_path / "a.extxyz").open("w", encoding="utf-8") as stream:
        enumerate_module._to_extxyz(stream, space, one)
        enumerate_module._to_extxyz(stream, space, one)
    assert len(read(tmp_path / "a.extxyz", ":")) == 2
    with new_database(tmp_path / "a.db") as database:
        enumerate_module._to_database(database, space, one)
    assert connect(tmp_path / "a.db").get(1).toatoms().get_chemical_formula() == "Mo4S6"


# POSCARs


@pytest.mark.parametrize(
    ("host", "size", "text"),
    [
        ("MoS2", "4x4", "v_S*2 + W_Mo"),
        ("BN", "3x3", "C_B + C_N"),
        ("GaSe", "3x3", "v_Ga + S_Se"),
        ("P", "3x3", "N_P"),
    ],
)
def test_a_poscar_has_one_block_for_each_species_and_leads_back_to_the_sites(host, size, text, tmp_path):
    base = ["enumerate", "--host", host, "--supercell", size, "--defects", text, "--limit", "3"]
    for output in ("folder", "all.extxyz"):
        done = CliRunner().invoke(cli, [*base, "-o", str(tmp_path / output)])
        assert done.exit_code == 0, done.output
    for known in read(tmp_path / "all.extxyz", ":"):
        path = tmp_path / "folder" / f"{known.info['name']}.vasp"
        symbols = path.read_text().splitlines()[5].split()
        assert len(symbols) == len(set(symbols))
        found = read(path)
        alike = (atoms[np.argsort(atoms.numbers, kind="stable")] for atoms in (known, found))
        one, other = alike
        assert one.get_chemical_symbols() == other.get_chemical_symbols()
        np.testing.assert_allclose(one.get_scaled_positions(), other.get_scaled_positions(), atol=1e-9)
        maps = [match_sites(atoms, host) for atoms in (known, found)]
        assert maps[0].defect_counts == maps[1].defect_counts
        np.testing.assert_array_equal(np.sort(maps[1].atom_index[maps[1].atom_index >= 0]), np.arange(len(found)))


@pytest.mark.parametrize(
    ("host", "defects"),
    [("WSe2", "v_Se*2 + Mo_W"), ("BN", "C_B + v_N"), ("P", "v_P"), ("BN", "Sn_B"), ("WSe2", "S_Se")],
)
def test_text_is_what_ase_writes(host, defects):
    space = DefectSpace(library()[host], np.diag([3, 3, 1]))
    for configuration in itertools.islice(space.enumerate(parse_defects(defects)), 12):
        stream = io.StringIO()
        write(stream, space.atoms(configuration), format="extxyz")
        assert space.extxyz(configuration) == stream.getvalue()


def test_text_of_an_empty_cell():
    space = DefectSpace(library()["BN"], np.eye(3, dtype=int))
    (one,) = space.enumerate(parse_defects("v_B + v_N"))
    assert space.extxyz(one).startswith("0\n")
