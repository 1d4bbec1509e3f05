"""Cells that ASE accepts and that leave an axis open, are left-handed, or have their vacuum along another axis."""

from __future__ import annotations

import itertools
import json
from typing import ClassVar

import numpy as np
import pytest
from ase import Atoms
from ase.build import mx2
from ase.calculators.calculator import Calculator
from ase.geometry import complete_cell
from ase.io import read, write
from ase.neighborlist import neighbor_list
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from ase_definet.cli import cli
from ase_definet.data import PairSource, pack_pairs
from ase_definet.evaluation.compare_steps import compare_steps, fit_scale, scaled
from ase_definet.evaluation.scores import score_pairs
from ase_definet.plotting.structure import draw_relaxation
from ase_definet.screening.html_report import write_report
from ase_definet.structures.cell import facing
from ase_definet.structures.metrics import minimum_image, near_sites


def layer(kind: str = "vacuum") -> Atoms:
    """Return 5x5 MoS2 with a sulphur vacancy, always the same but for its cell."""
    atoms = mx2("MoS2", a=3.19, thickness=3.13, size=(5, 5, 1))
    del atoms[[4]]
    atoms.pbc = True
    full = atoms.cell.array + np.diag([0, 0, 20.0])
    if kind == "vacuum":
        atoms.set_cell(full)
    elif kind == "open":
        atoms.pbc = [True, True, False]
    elif kind == "short":
        atoms.set_cell(atoms.cell.array + np.diag([0, 0, 3.5]))
        atoms.pbc = [True, True, False]
    elif kind == "left-handed":
        atoms.set_cell(full[[1, 0, 2]])
    elif kind == "vacuum along a":
        atoms.set_cell(full[[2, 0, 1]])
    elif kind == "layer across x":
        atoms.positions = np.roll(atoms.positions, 1, axis=1)
        atoms.set_cell(np.roll(full, 1, axis=1)[[2, 0, 1]])
    elif kind == "open, layer across x":
        atoms.positions = np.roll(atoms.positions, 1, axis=1)
        atoms.set_cell(np.roll(atoms.cell.array, 1, axis=1)[[2, 0, 1]])
    elif kind == "open, layer across y":
        atoms.positions = np.roll(atoms.positions, 2, axis=1)
        atoms.set_cell(np.roll(atoms.cell.array, 2, axis=1)[[1, 2, 0]])
        atoms.pbc = [True, False, True]
    else:
        assert kind == "zero"
    return atoms


KINDS = (
    *("zero", "open", "short", "left-handed", "vacuum along a", "layer across x", "open, layer across x"),
    "open, layer across y",
)


class Springs(Calculator):
    """Springs of 1 eV/Å² between neighbours, 2.42 Å long; they ask ASE which atoms are neighbours."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        i, vector, length = neighbor_list("iDd", atoms, 2.8)
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, ((length - 2.42) / length)[:, None] * vector)
        self.results = {"energy": float(((length - 2.42) ** 2).sum() / 4), "forces": forces}


@pytest.fixture(scope="module")
def expected(relaxer):
    return compare_steps(relaxer.predict(layer()), Springs, scale=1.01).summary()


@pytest.mark.parametrize("kind", KINDS)
def test_a_comparison_does_not_depend_on_how_the_cell_is_given(relaxer, expected, kind):
    result = relaxer.predict(layer(kind))
    found = compare_steps(result, Springs, scale=1.01).summary()
    for key in ("distance", "prediction_error", "ideal_sites_error", "scale"):
        assert found[key] == pytest.approx(expected[key], abs=1e-5), key
    for key in ("unrelaxed", "predicted"):
        assert (found[key]["steps"], found[key]["error"]) == (expected[key]["steps"], "")
    assert fit_scale(result, Springs) == pytest.approx(fit_scale(relaxer.predict(layer()), Springs), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_vectors_along_a_layer_are_scaled(kind):
    atoms = layer(kind)
    out = scaled(atoms, 1.02)
    axis = int(np.abs(np.ptp(atoms.positions, axis=0)).argmin())
    factors = np.full(3, 1.02)
    factors[axis] = 1.0
    assert out.positions == pytest.approx(atoms.positions * factors)
    expected = atoms.cell.array * np.where(atoms.cell.array[:, axis].astype(bool), 1.0, 1.02)[:, None]
    assert out.cell.array == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_distances_and_masks(kind):
    atoms, plain = layer(kind), layer()
    cell = atoms.cell.array
    rng = np.random.default_rng(3)
    small = rng.normal(0, 0.2, (len(atoms), 3))
    images = rng.integers(-2, 3, (len(atoms), 3)) @ np.where(atoms.pbc[:, None], cell, 0.0)
    assert minimum_image(small + images, cell) == pytest.approx(small, abs=1e-9)
    for radius in (3.0, 6.0):
        near = near_sites(atoms.positions, atoms.positions[:2], cell, radius)
        if kind != "short":  # the caller's to complete
            expected = near_sites(plain.positions, plain.positions[:2], plain.cell.array, radius)
            assert near.tolist() == expected.tolist()


@given(
    rows=st.lists(st.lists(st.floats(-8, 8), min_size=3, max_size=3), min_size=3, max_size=3),
    vector=st.lists(st.floats(-9, 9), min_size=3, max_size=3),
    zero=st.sampled_from([None, 0, 1, 2]),
)
@example(rows=[[2, 0, 0], [0, 0, 0], [-8, 1, -4]], vector=[2, 3, 3], zero=None)  # ASE takes it for the shortest
def test_the_shortest_image_is_found_in_any_cell(rows, vector, zero):
    cell = np.array(rows) + np.diag([9.0, -10.0, 11.0])
    if abs(np.linalg.det(cell)) < 200:
        return
    if zero is not None:
        cell[zero] = 0
    found = minimum_image(np.array([vector]), cell)[0]
    shifts = np.array(list(itertools.product(range(-4, 5), repeat=3))) @ cell
    assert np.linalg.norm(found) <= np.linalg.norm(vector + shifts, axis=1).min() + 1e-9
    turns = (vector - found) @ np.linalg.inv(complete_cell(cell))
    assert turns == pytest.approx(np.where(cell.any(axis=1), np.round(turns), 0.0), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_show_a_layer_from_above(relaxer, tmp_path, kind):
    atoms = layer(kind)
    result = relaxer.predict(atoms)
    depth, sides = facing(atoms.cell.array, atoms.positions, atoms.pbc)
    assert depth == np.ptp(atoms.positions, axis=0).argmin()
    assert np.abs(sides[:, depth]).max() == 0
    assert np.linalg.norm(sides, axis=1) == pytest.approx(15.95)
    for view, axes in (("top", ((depth + 1) % 3, (depth + 2) % 3)), ("side", ((depth + 1) % 3, depth))):
        path = tmp_path / f"{view}.svg"
        draw_relaxation(atoms, result.atoms, path, defects=result.site_map.defects, view=view)
        text = path.read_text()
        assert all(f">{'xyz'[axis]} (Å)<" in text for axis in axes)


@pytest.mark.parametrize(
    "atoms",
    [
        Atoms("C", cell=[0, 0, 0]),
        Atoms("C", cell=[9, 0, 0]),
        Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]], cell=[20, 20, 20]),
    ],
)
def test_what_is_no_layer_is_seen_along_z(atoms, tmp_path):
    assert facing(atoms.cell.array, atoms.positions, atoms.pbc)[0] == 2
    moved = atoms.copy()
    moved.positions += 0.1
    for view in ("top", "side"):
        assert draw_relaxation(atoms, moved, tmp_path / f"{view}.png", view=view).stat().st_size > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands(tmp_path, kind):
    write(tmp_path / "a.extxyz", layer(kind))
    files = [str(tmp_path / name) for name in ("a.extxyz", "b.extxyz")]
    for command in (
        ["relax", files[0], "--host", "MoS2", "-o", files[1], "--device", "cpu"],
        ["plot", *files, "--host", "MoS2", "-o", str(tmp_path / "p.svg")],
        ["compare-steps", files[0], "--host", "MoS2", "--calculator", "emt", "--json", str(tmp_path / "v.json")],
        ["screen", files[0], "--host", "MoS2", "--device", "cpu", "-o", str(tmp_path / "results")],
        ["report", str(tmp_path / "results"), "-o", str(tmp_path / "r.html")],
    ):
        done = CliRunner().invoke(cli, command)
        assert "this is a bug" not in done.output
        assert "LinAlgError" not in done.output
        if command[0] != "compare-steps":  # EMT knows no MoS2, which is a result
            assert done.exit_code == 0, done.output
    assert ">v_S</text>" in (tmp_path / "p.svg").read_text()
    reason = json.loads((tmp_path / "v.json").read_text())["structures"][0]["error"]
    assert "EMT" in reason or "Mo" in reason
    page = write_report(tmp_path / "results", tmp_path / "again.html").read_text(encoding="utf-8")
    picture = json.loads(page.split('id="data">')[1].split("</script>")[0])["pictures"]["0"]
    depth = int(np.ptp(read(files[0]).positions, axis=0).argmin())
    assert picture["axes"] == [(depth + 1) % 3, (depth + 2) % 3, depth]


@pytest.mark.parametrize("kind", ["zero", "open", "short", "left-handed"])
def test_scores_do_not_depend_on_how_the_cell_is_given(relaxer, tmp_path, kind):
    tables = []
    for given_as in (kind, "vacuum"):
        unrelaxed = layer(given_as)
        relaxed = unrelaxed.copy()
        relaxed.positions += np.random.default_rng(0).normal(0, 0.02, (len(relaxed), 3))
        pair = PairSource("one", "high/MoS2", "val", "MoS2", unrelaxed, relaxed)
        pack, problems = pack_pairs([pair], tmp_path / f"{given_as}.pack", workers=1)
        assert problems == []
        (score,), left_out = score_pairs(relaxer, pack, "val")
        assert left_out == []
        tables.append(score.maes)
    for method, values in tables[1].items():
        assert tables[0][method] == pytest.approx(values, abs=1e-4)
