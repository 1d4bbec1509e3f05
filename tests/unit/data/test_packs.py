"""Reading, checking and packing pairs: what was planted comes back, what is bad is left out by name."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.db import connect
from ase.io import read, write
from ase.io.trajectory import Trajectory
from safetensors import safe_open
from safetensors.numpy import save_file

from ase_definet.data import (
    FORMAT,
    MatchedPair,
    PackedDataset,
    PairSource,
    Problem,
    examine,
    find_pairs,
    is_pack,
    pack_pairs,
)
from ase_definet.data.packed import _digest
from ase_definet.errors import DefiNetError, HostError, StructureError
from ase_definet.matching.site_map import match_sites
from tests.conftest import REPO, pristine

PACKED = 1e-4
"""Positions survive packing to this, in Å: integers, with a scale for each pair."""
FILES = 1e-4
"""Positions survive the text formats to this, in Å."""
MOVE = 0.05
"""Standard deviation of the planted displacements, in Å."""
MGO = bulk("MgO", "rocksalt", 4.21)


def pair(seed: int = 0, atoms: Atoms | None = None, foreign: str = "W") -> tuple[Atoms, Atoms]:
    """Return a structure with a vacancy and a substitution, and the same after small random moves."""
    rng = np.random.default_rng(seed)
    unrelaxed = pristine("MoS2", 4) if atoms is None else atoms.copy()
    unrelaxed.symbols[int(rng.integers(len(unrelaxed)))] = foreign
    del unrelaxed[int(rng.integers(len(unrelaxed)))]
    relaxed = unrelaxed.copy()
    relaxed.positions += rng.normal(scale=MOVE, size=(len(relaxed), 3))
    return unrelaxed, relaxed


def reference(key: str = "one", seed: int = 0, **changes) -> PairSource:
    unrelaxed, relaxed = pair(seed)
    return replace(PairSource(key, "own/MoS2", "train", "MoS2", unrelaxed, relaxed), **changes)


def packed(references, tmp_path: Path) -> tuple[PackedDataset, dict[str, str]]:
    pack, problems = pack_pairs(references, tmp_path / "out" / "pack", workers=1)
    return pack, {problem.id: problem.reason for problem in problems}


def same(found: Atoms, expected: Atoms) -> bool:
    """Whether two structures agree, atom by atom, up to images."""
    delta = np.linalg.solve(expected.cell.array.T, (found.positions - expected.positions).T)
    length = np.abs((delta - np.round(delta)).T @ expected.cell.array).max()
    return np.array_equal(found.numbers, expected.numbers) and length < FILES


def assert_loads(one: PairSource, unrelaxed: Atoms, relaxed: Atoms | None) -> None:
    before, after = one.load()
    assert same(before, unrelaxed)
    assert (after is None) == (relaxed is None)
    if relaxed is not None:
        assert same(after, relaxed)


# readers


def write_2dmd(folder: Path, splits: dict[str, list[str]], files: str = "CIF") -> dict[str, tuple[Atoms, Atoms]]:
    """Write the published layout; ids that start with ``open`` get no relaxed structure."""
    (folder / files).mkdir(parents=True)
    out = {}
    for split, keys in splits.items():
        (folder / f"{split}.csv").write_text("\n".join(["atoms_id", *keys, ""]))
        for key in keys:
            out[key] = pair(len(out))
            write(folder / files / f"{key}_unrelaxed.cif", out[key][0])
            if not key.startswith("open"):
                write(folder / files / f"{key}_relaxed.cif", out[key][1])
    return out


@pytest.mark.parametrize(
    ("folder", "files", "subset"),
    [
        ("high_density_defects/MoS2_500", "CIF", "high/MoS2"),
        ("high_density_defects/MoS2_spin_500", "CIF", "high/MoS2"),
        ("low_density_defects/MoS2", "CIF_POSCAR", "low/MoS2"),
        ("mine/MoS2_spin", "CIF", "mine/MoS2"),
    ],
)
@pytest.mark.parametrize("start", ["above", "there"])
def test_the_published_layout(tmp_path, folder, files, subset, start):
    expected = write_2dmd(tmp_path / folder, {"train": ["b", "a"], "val": ["c"], "test": ["open1"]}, files)
    found = list(find_pairs(tmp_path if start == "above" else tmp_path / folder))
    assert [(r.id, r.split) for r in found] == [("b", "train"), ("a", "train"), ("c", "val"), ("open1", "test")]
    for one in found:
        assert one.subset == subset
        assert one.host.name == "MoS2"
        assert_loads(one, expected[one.id][0], None if one.id == "open1" else expected[one.id][1])


def test_the_published_layout_from_within(tmp_path, monkeypatch):
    """Subsets are named after folders, also where the source is called ``.``."""
    write_2dmd(tmp_path / "high_density_defects" / "MoS2_500", {"train": ["a"]})
    for folder in ("high_density_defects", "high_density_defects/MoS2_500", "high_density_defects/MoS2_500/CIF"):
        monkeypatch.chdir(tmp_path / folder)
        assert [one.subset for one in find_pairs(Path())] == ["high/MoS2"]


def test_the_published_layout_without_lists_and_with_both_folders(tmp_path):
    folder = tmp_path / "high_density_defects" / "MoS2_500"
    write_2dmd(folder, {"train": [f"k{k}" for k in range(10)]})
    (folder / "train.csv").unlink()
    (folder / "CIF_POSCAR").mkdir()
    found = list(find_pairs(tmp_path))
    assert [one.id for one in found] == [f"k{k}" for k in range(10)]
    assert Counter(one.split for one in found) == {"train": 8, "val": 1, "test": 1}


def test_the_published_layout_with_an_own_host_beside(tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "ABC.cif", pristine("MoS2", 1))
    write_2dmd(tmp_path / "set" / "ABC_500", {"train": ["a"]})
    (one,) = find_pairs(tmp_path)
    assert (one.subset, one.host.name) == ("set/ABC", "ABC")
    assert isinstance(examine(one), MatchedPair)
    (tmp_path / "set" / "ABC.cif").unlink()
    with pytest.raises(HostError, match="unknown host 'ABC'"):
        list(find_pairs(tmp_path))


def test_a_list_without_its_column(tmp_path):
    write_2dmd(tmp_path / "a" / "MoS2", {"train": ["a"]})
    (tmp_path / "a" / "MoS2" / "train.csv").write_text("name\na\n")
    with pytest.raises(StructureError, match="column atoms_id"):
        list(find_pairs(tmp_path))


@pytest.mark.parametrize("suffix", ["cif", "vasp", "xyz", "json", "traj", "xsf"])
def test_named_pairs_in_any_format(tmp_path, suffix):
    (tmp_path / "b").mkdir()
    expected = {"a": pair(0), "b/a": pair(1), "b/open": (pair(2)[0], None)}
    for key, (unrelaxed, relaxed) in expected.items():
        write(tmp_path / f"{key}_unrelaxed.{suffix}", unrelaxed)
        if relaxed is not None:
            write(tmp_path / f"{key}_relaxed.{suffix}", relaxed)
    found = list(find_pairs(tmp_path, "MoS2"))
    assert [one.id for one in found] == list(expected)
    assert {one.subset for one in found} == {tmp_path.name}
    for one in found:
        assert_loads(one, *expected[one.id])


def test_named_pairs_may_mix_formats_and_have_lists(tmp_path):
    splits = {"a": "test", "b": "train", "c": "val"}
    for k, (key, split) in enumerate(splits.items()):
        unrelaxed, relaxed = pair(k)
        write(tmp_path / f"{key}_unrelaxed.cif", unrelaxed)
        write(tmp_path / f"{key}_relaxed.vasp", relaxed)
        (tmp_path / f"{split}.csv").write_text(f"atoms_id\n{key}\n")
    found = list(find_pairs(tmp_path, "MoS2"))
    assert {one.id: one.split for one in found} == splits
    assert all(isinstance(examine(one), MatchedPair) for one in found)


def test_extended_xyz_with_relaxed_positions(tmp_path):
    frames, expected = [], {}
    for k in range(3):
        unrelaxed, relaxed = expected[str(k + 1)] = pair(k)
        frame = unrelaxed.copy()
        frame.set_array("relaxed_positions", relaxed.positions)
        frames.append(frame)
    frames[1].info |= {"id": "named", "split": "test", "subset": "mine", "host": "MoS2"}
    expected["named"] = expected.pop("2")
    write(tmp_path / "set.xyz", frames)
    found = {one.id: one for one in find_pairs(tmp_path / "set.xyz", "MoS2")}
    assert sorted(found) == sorted(expected)
    assert (found["named"].split, found["named"].subset) == ("test", "mine")
    assert found["1"].subset == "set"
    for key, one in found.items():
        assert_loads(one, *expected[key])


@pytest.mark.parametrize("order", ["twos", "stages", "backwards"])
def test_extended_xyz_in_twos(tmp_path, order):
    """The same id may occur in several subsets."""
    frames, expected = [], {}
    for k, (subset, key) in enumerate([("x", "1"), ("y", "1"), ("y", "2")]):
        expected[subset, key] = pair(k)
        for atoms, stage in zip(expected[subset, key], ("unrelaxed", "relaxed"), strict=True):
            frame = atoms.copy()
            frame.info |= {"id": int(key), "stage": stage, "subset": subset, "host": "MoS2", "split": "val"}
            frames.append(frame)
    open_ = pair(5)[0]
    open_.info |= {"id": 3, "stage": "unrelaxed", "subset": "y", "host": "MoS2", "split": "val"}
    expected["y", "3"] = open_, None
    frames = {"twos": frames, "stages": frames[::2] + frames[1::2], "backwards": frames[::-1]}[order]
    write(tmp_path / "set.extxyz", [*frames, open_])
    found = {(one.subset, one.id): one for one in find_pairs(tmp_path / "set.extxyz")}
    assert sorted(found) == sorted(expected)
    for key, one in found.items():
        assert_loads(one, *expected[key])
        assert (one.split, one.host) == ("val", "MoS2")


@pytest.mark.parametrize("suffix", ["db", "json"])
def test_a_database(tmp_path, suffix):
    expected = {}
    with connect(tmp_path / f"set.{suffix}") as database:
        unrelaxed, relaxed = expected["1"] = pair(0)
        database.write(unrelaxed, data={"relaxed_positions": relaxed.positions}, host="MoS2", split="train")
        expected["p7"] = pair(1)
        for atoms, stage in zip(expected["p7"], ("unrelaxed", "relaxed"), strict=True):
            database.write(atoms, pair="p7", stage=stage, host="MoS2", split="test", subset="own")
    found = {one.id: one for one in find_pairs(tmp_path / f"set.{suffix}")}
    assert {key: (one.subset, one.split) for key, one in found.items()} == {
        "1": ("set", "train"),
        "p7": ("own", "test"),
    }
    for key, one in found.items():
        assert_loads(one, *expected[key])


def test_a_trajectory_is_one_pair(tmp_path):
    unrelaxed, relaxed = pair()
    between = unrelaxed.copy()
    between.positions += 0.1
    with Trajectory(tmp_path / "run.traj", "w") as trajectory:
        for atoms in (unrelaxed, between, relaxed):
            trajectory.write(atoms)
    (one,) = find_pairs(tmp_path / "run.traj", "MoS2")
    assert (one.id, one.subset) == ("run", "run")
    assert_loads(one, unrelaxed, relaxed)


def sorted_pair(seed: int) -> tuple[Atoms, Atoms]:
    """Return a pair whose species come in blocks, as in a POSCAR."""
    unrelaxed, relaxed = pair(seed)
    order = np.argsort(unrelaxed.numbers, kind="stable")
    return unrelaxed[order], relaxed[order]


def test_runs_of_vasp(tmp_path):
    expected = {"a": sorted_pair(0), "b/c": sorted_pair(1), "open": (sorted_pair(2)[0], None)}
    for key, (unrelaxed, relaxed) in expected.items():
        (tmp_path / key).mkdir(parents=True)
        write(tmp_path / key / "POSCAR", unrelaxed)
        if relaxed is not None:
            write(tmp_path / key / "CONTCAR", relaxed)
    (tmp_path / "open" / "CONTCAR").touch()  # as VASP leaves it before the first step
    found = list(find_pairs(tmp_path, "MoS2"))
    assert [one.id for one in found] == list(expected)
    for one in found:
        assert_loads(one, *expected[one.id])
    (one,) = find_pairs(tmp_path / "a", "MoS2")
    assert one.id == "a"


def write_vasprun(path: Path, start: Atoms, end: Atoms, steps: int) -> None:
    """Write as much of a vasprun.xml as readers need: a relaxation of at most 5 steps that took some."""

    def rows(values, name):
        return (
            f'<varray name="{name}">' + "".join(f"<v>{x:.9f} {y:.9f} {z:.9f}</v>" for x, y, z in values) + "</varray>"
        )

    def structure(atoms, name=""):
        cell = rows(atoms.cell.array, "basis") + rows(atoms.cell.reciprocal(), "rec_basis")
        at = rows(atoms.get_scaled_positions(), "positions")
        label = f' name="{name}"' if name else ""
        return f'<structure{label}><crystal>{cell}<i name="volume">{atoms.get_volume()}</i></crystal>{at}</structure>'

    symbols, types = list(start.symbols), list(dict.fromkeys(start.symbols))
    energy = (
        "<energy>"
        + "".join(f'<i name="{n}">-1.0</i>' for n in ("e_fr_energy", "e_wo_entrp", "e_0_energy"))
        + "</energy>"
    )
    forces = rows(np.zeros((len(end), 3)), "forces")
    step = f"<calculation><scstep>{energy}</scstep>{structure(end)}{forces}{energy}</calculation>"
    atoms = "".join(f"<rc><c>{s}</c><c>{types.index(s) + 1}</c></rc>" for s in symbols)
    kinds = "".join(
        f"<rc><c>{symbols.count(s)}</c><c>{s}</c><c>1.0</c><c>4.0</c><c>PAW_PBE {s} 01Jan2000</c></rc>" for s in types
    )
    path.write_text(
        '<?xml version="1.0" encoding="ISO-8859-1"?><modeling>'
        '<generator><i name="program" type="string">vasp</i><i name="version" type="string">6.4.2</i></generator>'
        '<incar><i type="int" name="NSW">5</i></incar>'
        '<kpoints><generation param="Gamma"><v type="int" name="divisions">1 1 1</v></generation>'
        f"{rows(np.zeros((1, 3)), 'kpointlist')}"
        '<varray name="weights"><v>1.0</v></varray></kpoints>'
        '<parameters><separator name="general"><i type="int" name="NSW">5</i><i type="int" name="NELM">60</i>'
        '<i type="int" name="IBRION">2</i><i name="EDIFFG">-0.01</i></separator></parameters>'
        f"<atominfo><atoms>{len(symbols)}</atoms><types>{len(types)}</types>"
        f'<array name="atoms"><set>{atoms}</set></array><array name="atomtypes"><set>{kinds}</set></array></atominfo>'
        f"{structure(start, 'initialpos')}{step * steps}{structure(end, 'finalpos')}</modeling>"
    )


def test_a_run_of_vasp_that_did_not_converge_is_refused(tmp_path):
    unrelaxed, relaxed = sorted_pair(0)
    for key, steps in (("done", 3), ("cut", 5)):
        (tmp_path / key).mkdir()
        write(tmp_path / key / "POSCAR", unrelaxed)
        write(tmp_path / key / "CONTCAR", unrelaxed)  # the XML says more
        write_vasprun(tmp_path / key / "vasprun.xml", unrelaxed, relaxed, steps)
    found = {one.id: one for one in find_pairs(tmp_path, "MoS2")}
    assert_loads(found["done"], unrelaxed, relaxed)
    with pytest.raises(StructureError, match="did not converge"):
        found["cut"].load()


@pytest.mark.parametrize("name", ["F m -3 m", "P 1"])
def test_a_cif_of_few_sites_and_a_space_group(tmp_path, name):
    """Only where a CIF lists all atoms may its symmetry be ignored."""
    sites = "Mg1 Mg 0 0 0\nO1 O 0.5 0.5 0.5\n"
    (tmp_path / "a.cif").write_text(
        "data_x\n_cell_length_a 4.21\n_cell_length_b 4.21\n_cell_length_c 4.21\n"
        "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
        f"_symmetry_space_group_name_H-M '{name}'\n"
        "loop_\n_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n"
        f"_atom_site_fract_z\n{sites}"
    )
    path = tmp_path / "a.cif"
    found, _ = PairSource("a", "b", "train", MGO, path, None).load()
    assert len(found) == (2 if name == "P 1" else 8)
    assert same(found, read(path))
    assert found.pbc.all()


def test_names_with_an_at_sign(tmp_path):
    unrelaxed, relaxed = pair()
    write(tmp_path / "a_unrelaxed.xyz", unrelaxed)
    write(tmp_path / "a_relaxed.xyz", relaxed)
    for stage in ("unrelaxed", "relaxed"):
        (tmp_path / f"a_{stage}.xyz").rename(tmp_path / f"V@S_{stage}.xyz")
    (one,) = find_pairs(tmp_path, "MoS2")
    assert_loads(one, unrelaxed, relaxed)


@pytest.mark.parametrize("content", [b"atoms_id\n\xff\n", b"name\na\n", b"a,atoms_id\n1\n", b"\xff\xfe"])
def test_damaged_lists(tmp_path, content):
    write_2dmd(tmp_path / "a" / "MoS2", {"train": ["a"]})
    (tmp_path / "a" / "MoS2" / "train.csv").write_bytes(content)
    with pytest.raises(StructureError, match=r"train\.csv: (cannot be read as a list|expected a column atoms_id)"):
        list(find_pairs(tmp_path))


# sources that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "no such file or folder"),
        ("empty", {}, "no pairs found"),
        ("text.txt", "what is this?\n", "cannot be read"),
        ("damaged.xyz", "3\n\nMo 0 0\n", "cannot be read"),
        ("damaged.db", "what is this?\n", "cannot be read"),
        ("empty.xyz", "", "cannot be read|holds no structures"),
    ],
)
def test_sources_that_are_none(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        path.mkdir()
    with pytest.raises(StructureError, match=message) as caught:
        list(find_pairs(path, "MoS2"))
    assert name in str(caught.value)


def frames_of(*infos) -> list[Atoms]:
    out = []
    for info in infos:
        atoms = pair()[0]
        atoms.info |= info
        out.append(atoms)
    return out


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        ([{"id": 1}], "structure 1: expected an array relaxed_positions"),
        ([{"id": 2, "stage": "half"}], "structure 1: expected"),
        ([{"id": 7, "stage": "relaxed"}], "7 has a relaxed structure and no unrelaxed one"),
        ([{"id": 7, "stage": "relaxed"}, {"id": 7, "stage": "relaxed"}], "structure 2: a second relaxed"),
    ],
)
def test_frames_that_make_no_pairs(tmp_path, infos, message):
    write(tmp_path / "a.xyz", frames_of(*infos))
    with pytest.raises(StructureError, match=message):
        list(find_pairs(tmp_path / "a.xyz", "MoS2"))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"id": 1}, "structure 2: expected an array relaxed_positions"),
        ({"id": 7, "stage": "relaxed"}, "7 has a relaxed structure and no unrelaxed one"),
        ({"id": 0, "stage": "unrelaxed"}, "structure 2: a second unrelaxed structure of 0"),
        ({"id": 2, "stage": "unrelaxed", "host": None}, "no host is named there"),
    ],
)
def test_a_frame_of_no_pair_costs_itself_only(tmp_path, own, message):
    good = {"id": 0, "stage": "unrelaxed", "host": "MoS2", "split": "test"}
    own = {"host": "MoS2", "split": "test"} | own
    write(tmp_path / "a.xyz", frames_of(good, {k: v for k, v in own.items() if v is not None}))
    pack, problems = pack_pairs(find_pairs(tmp_path / "a.xyz"), tmp_path / "a.pack", workers=1)
    assert sum(len(group) for group in pack.groups) == len(problems) == 1
    assert message in problems[0].reason


def test_a_host_must_come_from_somewhere(tmp_path):
    write(tmp_path / "a.xyz", frames_of({"id": 1, "stage": "unrelaxed"}))
    write(tmp_path / "a_unrelaxed.cif", pair()[0])
    for source in (tmp_path, tmp_path / "a.xyz"):
        with pytest.raises(HostError, match="no host is named there; give one"):
            list(find_pairs(source))


# splits


def many(n: int, splits=("",)) -> list[Atoms]:
    own = [{"split": split} if split else {} for split in splits]
    return frames_of(*({"id": k, "stage": "unrelaxed"} | own[k % len(own)] for k in range(n)))


@pytest.mark.parametrize(
    ("n", "fractions", "counts"),
    [
        (37, (0.8, 0.1, 0.1), {"train": 30, "val": 3, "test": 4}),
        (40, (0.5, 0.25, 0.25), {"train": 20, "val": 10, "test": 10}),
        (10, (1.0, 0.0, 0.0), {"train": 10}),
        (10, (0.0, 0.0, 1.0), {"test": 10}),
        (1, (0.8, 0.1, 0.1), {"train": 1}),
    ],
)
def test_random_splits_have_exact_shares_and_do_not_change(tmp_path, n, fractions, counts):
    write(tmp_path / "a.xyz", many(n))
    first, again, other = (
        {one.id: one.split for one in find_pairs(tmp_path / "a.xyz", "MoS2", fractions, seed)} for seed in (0, 0, 1)
    )
    assert first == again
    assert Counter(first.values()) == Counter(other.values()) == counts
    assert first != other or len(counts) == 1


def test_splits_of_the_source_stay(tmp_path):
    write(tmp_path / "a.xyz", many(30, ("test", "", "")))
    found = {one.id: one.split for one in find_pairs(tmp_path / "a.xyz", "MoS2", (0.5, 0.5, 0.0))}
    assert all(found[str(k)] == "test" for k in range(0, 30, 3))
    assert Counter(found.values()) == {"test": 10, "train": 10, "val": 10}


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1)])
def test_shares_must_add_up(tmp_path, fractions):
    with pytest.raises(DefiNetError, match="must add up to 1"):
        list(find_pairs(tmp_path, "MoS2", fractions))


# bad pairs


def unrelaxed_with(change) -> Atoms:
    atoms = pair()[0]
    change(atoms)
    return atoms


def relaxed_with(change) -> Atoms:
    atoms = pair()[1]
    change(atoms)
    return atoms


def swap(atoms: Atoms) -> None:
    i, j = np.flatnonzero(atoms.numbers == 42)[0], np.flatnonzero(atoms.numbers == 16)[0]
    order = np.arange(len(atoms))
    order[[i, j]] = j, i
    atoms.numbers[:], atoms.positions[:] = atoms.numbers[order], atoms.positions[order]


def put(index: int, vector, to: int | None = None):
    def change(atoms: Atoms) -> None:
        atoms.positions[index] = (atoms.positions[index] if to is None else atoms.positions[to]) + vector

    return change


def other_species(atoms: Atoms) -> None:
    atoms.numbers[3] = 34


def longer_cell(atoms: Atoms) -> None:
    atoms.cell[0, 0] += 0.1


def unknown_cell(atoms: Atoms) -> None:
    atoms.cell[0, 0] = np.nan


def bad_pairs(tmp_path: Path) -> dict[str, tuple[PairSource, str]]:
    """Return references that are bad, each in its own way, and what is said of them."""
    good = reference()
    garbage, missing = tmp_path / "garbage.cif", tmp_path / "missing.cif"
    garbage.write_text("no structure\n")

    def with_adatom(atoms):
        top = atoms.positions[np.argmax(atoms.positions[:, 2])]
        return atoms + Atoms("O", [top + np.array([0, 0, 2.0])])

    changes = {
        "count": ({"relaxed": good.relaxed[1:]}, "46 relaxed atoms: not the same structure"),
        "species": ({"relaxed": relaxed_with(other_species)}, "the species differ: atom 3"),
        "order": ({"relaxed": relaxed_with(swap)}, "the order of the atoms differs"),
        "cell": ({"relaxed": relaxed_with(longer_cell)}, "the cell changed by up to 0.100 Å"),
        "no cell": ({"relaxed": relaxed_with(unknown_cell)}, "the cell changed"),
        "exchange": ({"relaxed": relaxed_with(exchange(4, 7))}, "atoms 4 and 7 .* have changed places"),
        "jump": ({"relaxed": relaxed_with(put(5, [0, 0, 6.0]))}, "atom 5 .* jumps by [56]"),
        "nan": ({"relaxed": relaxed_with(put(5, np.nan))}, "not a finite number"),
        "overlap": ({"relaxed": relaxed_with(put(16, [0, 0, 0.3], to=17))}, "lies within 0.5 Å of another"),
        "unrelaxed nan": ({"unrelaxed": unrelaxed_with(put(0, np.nan))}, "not a number"),
        "unrelaxed overlap": ({"unrelaxed": unrelaxed_with(put(0, 0.1, to=1))}, "overlap"),
        "off site": (
            {"unrelaxed": unrelaxed_with(put(10, [1.0, 0, 0]))},
            "atom 10 .* from its site.*relaxed already",
        ),
        "adatom": (
            {"unrelaxed": with_adatom(good.unrelaxed), "relaxed": with_adatom(good.relaxed)},
            r"sits on no free site .* O_ads \(adatom\)",
        ),
        "adatom, relaxed alone": (
            {"unrelaxed": None, "relaxed": with_adatom(good.relaxed)},
            r"sits on no free site .* O_ads \(adatom\)",
        ),
        "garbage": ({"relaxed": garbage}, "garbage.cif: cannot be read"),
        "missing": ({"unrelaxed": missing}, "missing.cif: cannot be read"),
        "host": ({"host": "MoS3"}, "unknown host 'MoS3'"),
        "other host": ({"host": "GaSe"}, "GaSe"),
        "split": ({"split": "validation"}, "split must be one of train, val, test, found validation"),
    }
    return {key: (replace(good, id=key, **change), text) for key, (change, text) in changes.items()}


def test_bad_pairs_are_left_out_by_name(tmp_path):
    bad = bad_pairs(tmp_path)
    references = [reference("first"), *(one for one, _ in bad.values()), reference("last", 1)]
    pack, problems = packed(references, tmp_path)
    assert [key for group in pack.groups for key in group.ids] == ["first", "last"]
    assert list(problems) == list(bad)
    for key, (_, text) in bad.items():
        with pytest.raises(StructureError, match=text):
            raise StructureError(problems[key])


def test_an_id_that_occurs_twice(tmp_path):
    references = [reference("a", 0), reference("a", 1), reference("a", 2, subset="other")]
    pack, problems = packed(references, tmp_path)
    assert [group.subset for group in pack.groups] == ["own/MoS2", "other"]
    assert problems == {"a": "this id occurs twice; the first counts"}
    expected = np.sort(np.linalg.norm(references[0].relaxed.positions - references[0].unrelaxed.positions, axis=1))
    assert np.abs(np.sort(np.linalg.norm(moves(pack)[0], axis=1)) - expected).max() < PACKED


def test_a_hop_to_an_empty_site_is_real(tmp_path):
    """A neighbour of the vacancy may jump into it; that is no error."""
    unrelaxed = pristine("MoS2", 4)
    gone, neighbor = 1, 4
    target = unrelaxed.positions[gone].copy()
    vector = unrelaxed.get_distance(neighbor, gone, mic=True, vector=True)
    assert 3 < np.linalg.norm(vector) < 5
    del unrelaxed[gone]
    relaxed = unrelaxed.copy()
    relaxed.positions[neighbor - 1] = target  # any image
    _, problems = packed([reference(unrelaxed=unrelaxed, relaxed=relaxed)], tmp_path)
    assert problems == {}


def test_nothing_good_is_an_error_that_says_why(tmp_path):
    with pytest.raises(
        StructureError, match=r"no pair could be used \(1 have problems\): species: the species differ"
    ):
        packed([bad_pairs(tmp_path)["species"][0]], tmp_path)
    with pytest.raises(StructureError, match="none was found"):
        packed([], tmp_path)
    assert not list(tmp_path.glob("out/*"))


def test_any_host_of_the_library_may_be_looked_for(tmp_path):
    pack, problems = packed([reference("a", host="auto")], tmp_path)
    assert problems == {}
    assert pack.groups[0].host == "MoS2"


def test_a_layer_without_a_third_cell_vector(tmp_path):
    """As ``ase.build.mx2`` makes them."""
    one = reference()
    for atoms in (one.unrelaxed, one.relaxed):
        atoms.cell[2] = 0
        atoms.pbc = (True, True, False)
    pack, problems = packed([one], tmp_path)
    assert problems == {}
    expected = np.sort(np.linalg.norm(one.relaxed.positions - one.unrelaxed.positions, axis=1))
    assert np.abs(np.sort(np.linalg.norm(moves(pack)[0], axis=1)) - expected).max() < PACKED


# packing


def moves(pack: PackedDataset) -> list[np.ndarray]:
    """Return the displacements of the atoms of every pair."""
    out = []
    for group in pack.groups:
        for k in range(len(group)):
            unrelaxed, relaxed = group.atoms(k)
            out.append(relaxed.positions - unrelaxed.positions)
    return out


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def disguised(seed: int, unrelaxed: Atoms, relaxed: Atoms) -> tuple[Atoms, Atoms]:
    """Return both with another origin, orientation, order, axes and images."""
    rng = np.random.default_rng(seed)
    turn, shift = rotation(seed), rng.normal(scale=3, size=3)
    order = rng.permutation(len(unrelaxed))
    axes = rng.permutation(3)
    out = []
    for atoms in (unrelaxed, relaxed):
        new = atoms[order]
        new.positions = (new.positions + shift) @ turn.T
        new.set_cell((atoms.cell.array @ turn.T)[axes])
        new.positions += rng.integers(-2, 3, (len(new), 3)) @ new.cell.array
        out.append(new)
    return out[0], out[1]


def flipped(unrelaxed: Atoms, relaxed: Atoms) -> tuple[Atoms, Atoms]:
    """Return both with their first two axes swapped: left-handed."""
    out = [atoms.copy() for atoms in (unrelaxed, relaxed)]
    for atoms in out:
        atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    return out[0], out[1]


def layer(name: str, matrix) -> Atoms:
    return make_supercell(pristine(name, 1), np.array([[*matrix[0], 0], [*matrix[1], 0], [0, 0, 1]]))


CASES = {
    "plain": ("MoS2", pair),
    "disguised": ("MoS2", lambda: disguised(1, *pair())),
    "disguised P": ("P", lambda: disguised(2, *pair(3, pristine("P", 4), "N"))),
    "disguised GaSe": ("GaSe", lambda: disguised(3, *pair(4, pristine("GaSe", 3), "In"))),
    "left-handed": ("MoS2", lambda: flipped(*pair())),
    "left-handed GaSe": ("GaSe", lambda: flipped(*pair(1, pristine("GaSe", 3), "In"))),
    "oblique": ("MoS2", lambda: pair(0, layer("MoS2", ((4, 1), (-1, 4))))),
    "oblique disguised": ("MoS2", lambda: disguised(5, *pair(0, layer("MoS2", ((5, 2), (-2, 3)))))),
    "crystal": (MGO, lambda: pair(0, bulk("MgO", "rocksalt", 4.21, cubic=True).repeat(2), "Ca")),
    "crystal disguised": (MGO, lambda: disguised(6, *pair(1, bulk("MgO", "rocksalt", 4.21).repeat(4), "Ca"))),
}


def up_to_images(vectors: np.ndarray, cell: np.ndarray) -> np.ndarray:
    fractions = np.linalg.solve(cell.T, vectors.T).T
    return vectors - np.round(fractions) @ cell


@pytest.mark.parametrize("case", CASES)
def test_what_is_packed_is_what_was_given(tmp_path, case):
    """One rotation, one shift and one order take the packed structures, in the host's frame, to the given ones."""
    host, make = CASES[case]
    unrelaxed, relaxed = make()
    unrelaxed.positions += np.random.default_rng(9).normal(scale=0.01, size=(len(unrelaxed), 3))
    pack, problems = packed([reference(host=host, unrelaxed=unrelaxed, relaxed=relaxed)], tmp_path)
    assert problems == {}
    (group,) = pack.groups
    before, after = group.atoms(0)
    site_map = match_sites(unrelaxed, host)
    order = site_map.atom_index[site_map.atom_index >= 0]
    turn = site_map.rotation.T
    assert np.array_equal(before.numbers, unrelaxed.numbers[order])
    given = up_to_images(relaxed.positions - unrelaxed.positions, unrelaxed.cell.array)[order]
    assert np.abs((after.positions - before.positions) @ turn - given).max() < PACKED
    for ours, theirs in ((before, unrelaxed), (after, relaxed)):
        difference = ours.positions @ turn - theirs.positions[order]
        shift = (before.positions @ turn - unrelaxed.positions[order])[0]
        assert np.abs(up_to_images(difference - shift, unrelaxed.cell.array)).max() < PACKED
    # and, whatever the matching says, all distances are those that were given
    for ours, theirs in ((before, unrelaxed), (after, relaxed)):
        mine, given = (np.sort(atoms.get_all_distances(mic=True), axis=None) for atoms in (ours, theirs))
        near = given < 6  # across a vacuum of another height there is no comparison
        assert np.abs(mine[: near.sum()] - given[near]).max() < 10 * PACKED


@pytest.mark.parametrize("case", CASES)
def test_sites_cells_and_waves_belong_together(tmp_path, case):
    host, make = CASES[case]
    unrelaxed, relaxed = make()
    pack, _ = packed([reference(host=host, unrelaxed=unrelaxed, relaxed=relaxed)], tmp_path)
    (group,) = pack.groups
    n_cells = round(abs(np.linalg.det(group.supercell)))
    assert len(group.cells) == len(group.waves) == n_cells
    assert len(group.sites) == len(group.host_numbers) == n_cells * len(group.unit_numbers) == group.numbers.shape[1]
    phase = group.waves @ group.supercell.T
    assert np.abs(phase - np.round(phase)).max() < 1e-9
    inside = group.cells @ np.linalg.inv(group.supercell)
    assert len(np.unique(np.round(inside % 1 * 1e6) % 1e6, axis=0)) == n_cells
    # orthogonality: the waves are all those of the supercell, each once
    overlap = np.exp(2j * np.pi * group.waves @ group.cells.T)
    assert np.abs(overlap @ overlap.conj().T - n_cells * np.eye(n_cells)).max() < 1e-6
    assert np.abs(np.linalg.norm(group.offsets(np.array([0]))[0], axis=1)).max() < 2 * PACKED
    assert (
        sorted(np.linalg.norm(group.cell[:2], axis=1))
        == pytest.approx(sorted(np.linalg.norm(unrelaxed.cell.array, axis=1))[:2])
        or host is MGO
    )


def test_pairs_on_the_same_sites_form_a_group(tmp_path):
    """However they were oriented; other supercells and other strains are other groups."""
    stretched = [atoms.copy() for atoms in pair(5)]
    for atoms in stretched:
        atoms.set_cell(atoms.cell.array * [[1.01], [1.01], [1]], scale_atoms=True)
    bigger = pair(6, pristine("MoS2", 5))
    references = [
        reference("a", 1),
        reference("b", unrelaxed=bigger[0], relaxed=bigger[1]),
        reference("c", **dict(zip(("unrelaxed", "relaxed"), disguised(3, *pair(2)), strict=True))),
        reference("d", unrelaxed=stretched[0], relaxed=stretched[1]),
        reference("e", 3, split="val", relaxed=None),
        reference("f", 4, split="test"),
    ]
    pack, problems = packed(references, tmp_path)
    assert problems == {}
    assert [group.ids for group in pack.groups] == [("a", "c", "e", "f"), ("b",), ("d",)]
    assert list(pack.subsets) == ["own/MoS2"]
    group = pack.groups[0]
    assert len(group) == 4
    assert group.has_relaxed.tolist() == [True, True, False, True]
    assert group.indices("train").tolist() == [0, 1]
    assert group.indices("val").tolist() == []
    assert group.indices("val", relaxed=False).tolist() == [2]
    assert group.indices("test").tolist() == [3]
    assert group.atoms(2)[1] is None
    assert np.abs(pack.groups[2].unit_cell[:2] - 1.01 * group.unit_cell[:2]).max() < 1e-6
    assert np.abs(pack.groups[2].unit_cell[2] - group.unit_cell[2]).max() < 1e-9


def test_pairs_without_any_relaxed_structure(tmp_path):
    pack, problems = packed([reference(relaxed=None)], tmp_path)
    assert problems == {}
    before, after = pack.groups[0].atoms(0)
    assert after is None
    assert len(before) == 47
    assert len(pack.groups[0].indices("train")) == 0


def exchange(i, j):
    def change(atoms):
        atoms.positions[[i, j]] = atoms.positions[[j, i]]

    return change


def test_equal_structures_and_large_moves_survive(tmp_path):
    still, far = reference("still"), reference("far")
    still = replace(still, relaxed=still.unrelaxed.copy())
    far.relaxed.positions[7] += [0, 0, 3.8]
    pack, problems = packed([still, far], tmp_path)
    assert problems == {}
    found = moves(pack)
    assert np.abs(found[0]).max() == 0
    for vectors, one in zip(found, (still, far), strict=True):
        expected = np.sort(np.linalg.norm(one.relaxed.positions - one.unrelaxed.positions, axis=1))
        assert np.abs(np.sort(np.linalg.norm(vectors, axis=1)) - expected).max() < 2 * PACKED


def test_a_pack_is_the_same_on_any_number_of_processes(tmp_path):
    references = [reference(f"k{k}", k) for k in range(20)]
    one, _ = pack_pairs(references, tmp_path / "one", workers=1)
    seen = []
    two, _ = pack_pairs(references, tmp_path / "two", workers=2, progress=seen.append)
    assert one.sha256 == two.sha256
    assert [row.id for row in seen] == [f"k{k}" for k in range(20)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_damaged_pack_is_refused(tmp_path, place):
    pack, _ = packed([reference(f"k{k}", k) for k in range(3)], tmp_path)
    data = bytearray(pack.path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    index = {"first": start, "middle": (start + len(data)) // 2, "last": len(data) - 1}[place]
    data[index] ^= 1
    pack.path.write_bytes(data)
    with pytest.raises(StructureError, match="damaged"):
        PackedDataset.open(pack.path)


def test_any_changed_byte_of_a_pack_is_noticed(tmp_path):
    """Of the header, where hosts, cells and ids' places stand, as of the arrays; what is not noticed is the same."""
    pack, _ = packed([reference(f"k{k}", k) for k in range(3)], tmp_path)
    whole = pack.path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    for place in [*range(8), *rng.integers(8, header, 150), *rng.integers(header, len(whole), 50)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(0, 8))
        pack.path.write_bytes(flipped)
        with pytest.raises(StructureError, match=r"pack it anew|data pack"):
            PackedDataset.open(pack.path)
    pack.path.write_bytes(whole)
    assert PackedDataset.open(pack.path).sha256 == pack.sha256


@pytest.mark.parametrize("word", ["unit_cell", "unit_positions", "supercell", "unit_numbers"])
def test_a_changed_digit_of_the_sites_is_noticed(tmp_path, word):
    """The header stays good JSON of the same length, and the numbers are plausible."""
    pack, _ = packed([reference()], tmp_path)
    data = bytearray(pack.path.read_bytes())
    place = next(k for k in range(data.index(word.encode()), len(data)) if chr(data[k]) in "123456789")
    data[place] = ord("2") if data[place] != ord("2") else ord("3")
    pack.path.write_bytes(data)
    with pytest.raises(StructureError, match=r"damaged .*pack it anew"):
        PackedDataset.open(pack.path)


def test_packs_of_an_older_version_are_refused_as_such(tmp_path):
    pack, _ = packed([reference()], tmp_path)
    pack.path.write_bytes(pack.path.read_bytes().replace(FORMAT.encode(), b"ase-definet pairs 1"))
    assert is_pack(pack.path)
    with pytest.raises(
        StructureError, match="found 'ase-definet pairs 1'; pack it anew with `ase-definet data pack`"
    ):
        PackedDataset.open(pack.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda metadata, _: metadata.pop("sha256"),
        lambda metadata, _: metadata.update(groups="no JSON"),
        lambda metadata, _: metadata.update(groups="[" * 100_000),
        lambda metadata, _: metadata.update(groups='{"a": 1}'),
        lambda metadata, _: metadata.update(groups="[{}]"),
        lambda metadata, _: metadata.pop("groups"),
        lambda _, arrays: arrays.pop("0.ids"),
        lambda _, arrays: arrays.pop("0.move"),
        lambda _, arrays: arrays.update({"0.more": np.zeros(3, np.uint8)}),
        lambda _, arrays: arrays.update({"0.split": np.zeros(3, np.int64)}),
        lambda _, arrays: arrays.update({"0.ids": np.full(3, 255, np.uint8)}),
    ],
)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_pack_of_other_content_is_refused_in_one_line(tmp_path, change, sealed):
    """Also with a digest that fits: no reader of it may fail in ways of its own."""
    pack, _ = packed([reference()], tmp_path)
    with safe_open(pack.path, framework="np") as file:
        metadata, arrays = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(metadata, arrays)
    if sealed and "sha256" in metadata:
        metadata["sha256"] = _digest(metadata, arrays)
    save_file(arrays, pack.path, metadata)
    with pytest.raises(StructureError, match=r"damaged .*pack it anew"):
        PackedDataset.open(pack.path)


ORPHANS = r"""
import os
import time
from dataclasses import dataclass
from pathlib import Path
from ase.build import mx2
from ase_definet.data import PairSource, pack_pairs

class Slow(PairSource):
    def load(self):
        os.write(1, b"working\n")
        time.sleep(600)

def slow(_):
    os.write(1, b"working\n")
    time.sleep(600)

if __name__ == "__main__":
    atoms = mx2("MoS2", size=(4, 4, 1), vacuum=10)
    kind = {kind}
    some = [kind(str(k), "a", "train", "MoS2", atoms, None) for k in range(100)]
    pack_pairs(some, Path({out!r}), workers=2, progress=slow)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
@pytest.mark.parametrize("kind", ["Slow", "PairSource"], ids=["busy", "idle"])
def test_killed_packing_leaves_no_workers(tmp_path, kind):
    """The workers hold the pipe of the standard output open for as long as they live."""
    script = tmp_path / "script.py"
    script.write_text(ORPHANS.format(kind=kind, out=str(tmp_path / "pack")))
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"working\n"
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)  # raises where the pipe stays open
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "pack").exists()


def test_a_full_disk_is_said_of_the_pack(tmp_path, full_disk):
    del tmp_path
    with pytest.raises(OSError, match="No space left on device") as caught:
        pack_pairs([reference(f"k{k}", k) for k in range(40)], full_disk / "pack", workers=1)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(full_disk / "pack")
    assert [p.name for p in full_disk.iterdir() if p.name != "ballast"] == []


@pytest.mark.parametrize("kept", [0, 4, 100, -1000, -1])
def test_a_truncated_pack_is_refused(tmp_path, kept):
    pack, _ = packed([reference(f"k{k}", k) for k in range(3)], tmp_path)
    pack.path.write_bytes(pack.path.read_bytes()[:kept])
    with pytest.raises(StructureError, match="cannot be read as a packed data set"):
        PackedDataset.open(pack.path)


def test_other_files_are_no_packs(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(StructureError, match="make it with `ase-definet data pack`"):
        PackedDataset.open(tmp_path / "weights.safetensors")
    with pytest.raises(StructureError, match="nothing"):
        PackedDataset.open(tmp_path / "nothing")
    with pytest.raises(StructureError, match="cannot be read"):
        PackedDataset.open(tmp_path)


def test_a_pack_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "out" / "pack").mkdir(parents=True)
    with pytest.raises(OSError, match="pack"):
        packed([reference()], tmp_path)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["pack"]


def test_examine_keeps_the_warnings_of_the_matching():
    row = examine(reference())
    assert isinstance(row, MatchedPair)
    assert row.warnings == ()
    unrelaxed = pristine("MoS2", 4)
    del unrelaxed[[k for k in range(48) if unrelaxed.numbers[k] == 16][:1]]
    unrelaxed.set_cell(unrelaxed.cell.array * [[1.04], [1.04], [1]], scale_atoms=True)
    row = examine(reference(unrelaxed=unrelaxed, relaxed=None))
    assert not isinstance(row, Problem)
    assert "strained" in " ".join(row.warnings)
