"""Pictures of one relaxation: what is drawn, what is refused, and the command."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from click.testing import CliRunner
from matplotlib.image import imread

from ase_definet.cli import cli
from ase_definet.errors import DefiNetError, OutputExistsError, StructureError
from ase_definet.matching.site_map import match_sites
from ase_definet.plotting.structure import FORMATS, draw_relaxation
from ase_definet.screening.screen import defect_sites
from tests.conftest import mos2_with_defects, pristine


@pytest.fixture(scope="module")
def pair(relaxer):
    atoms = mos2_with_defects()
    return atoms, relaxer.predict(atoms)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("view", ["top", "side"])
def test_every_format_and_view(pair, tmp_path, ending, view):
    atoms, result = pair
    path = draw_relaxation(
        atoms, result.atoms, tmp_path / f"new/a{ending}", defects=result.site_map.defects, view=view
    )
    assert path.stat().st_size > 5000
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_names_and_factor_are_written(pair, tmp_path):
    atoms, result = pair
    draw_relaxation(
        atoms, result.atoms, tmp_path / "a.svg", defects=result.site_map.defects, enlarged=7, title="two & one"
    )
    text = (tmp_path / "a.svg").read_text()
    for label in ("v_S", "W_Mo", "displacements x 7", "two &amp; one"):
        assert f">{label}</text>" in text or f" {label}</text>" in text


def test_atoms_on_no_site_are_marked_with_their_names(tmp_path):
    atoms = pristine("MoS2", 4)
    top = atoms.positions[np.argmax(atoms.positions[:, 2])]
    atoms += Atoms("Li", [top + np.array([0, 0, 2.0])])
    write(tmp_path / "a.extxyz", atoms)
    names = ["plot", *[str(tmp_path / "a.extxyz")] * 2, "--host", "MoS2"]
    for view in ("top", "side"):
        target = tmp_path / f"{view}.svg"
        done = CliRunner().invoke(cli, [*names, "--view", view, "-o", str(target)])
        assert done.exit_code == 0, done.output
        assert "Li_ads</text>" in target.read_text()


def test_the_report_gets_atoms_on_no_site_too(pair):
    atoms, result = pair
    top = atoms.positions[np.argmax(atoms.positions[:, 2])] + np.array([0, 0, 2.0])
    site_map = match_sites(atoms + Atoms("Li", [top]), "MoS2")
    named = [part.split() for part in defect_sites(replace(result, site_map=site_map)).split(";")]
    assert [part[0] for part in named] == [*(d.name for d in site_map.defects), "Li_ads"]
    np.testing.assert_allclose([float(v) for v in named[-1][1:]], top, atol=1e-4)


def test_arrows_and_rings_are_there(pair, tmp_path):
    atoms, result = pair
    still = draw_relaxation(atoms, atoms, tmp_path / "still.png")
    moved = draw_relaxation(atoms, result.atoms, tmp_path / "moved.png", enlarged=30)
    marked = draw_relaxation(atoms, atoms, tmp_path / "marked.png", defects=result.site_map.defects)

    def orange(path):
        red, green, blue = imread(path)[..., :3].transpose(2, 0, 1)
        return int(((abs(red - 0.835) < 0.05) & (abs(green - 0.369) < 0.05) & (blue < 0.06)).sum())

    assert orange(still) == 0
    assert orange(moved) > 500
    assert np.abs(imread(marked) - imread(still)).max() > 0.5


def test_moves_across_the_boundary_are_short(tmp_path):
    atoms = pristine("MoS2", 3)
    wrapped = atoms.copy()
    wrapped.positions[0] += [0.1, 0, 0]
    wrapped.positions[4] += atoms.cell[0]
    draw_relaxation(atoms, wrapped, tmp_path / "a.svg", enlarged=None)
    assert "displacements x 20" in (tmp_path / "a.svg").read_text()  # 2.5 Å for 0.1 Å, one digit


def test_what_cannot_be_drawn(pair, tmp_path):
    atoms, result = pair
    with pytest.raises(StructureError, match="same atoms"):
        draw_relaxation(atoms, result.atoms[1:], tmp_path / "a.png")
    swapped = result.atoms.copy()
    sulphur = np.flatnonzero(atoms.numbers == 16)[[0, 20]]
    swapped.positions[sulphur] = swapped.positions[sulphur[::-1]]
    with pytest.raises(StructureError, match="another order"):
        draw_relaxation(atoms, swapped, tmp_path / "a.png")
    stretched = atoms.copy()
    stretched.set_cell(atoms.cell * 1.01)
    with pytest.raises(StructureError, match="one cell"):
        draw_relaxation(atoms, stretched, tmp_path / "a.png")
    with pytest.raises(DefiNetError, match=r"\.png, \.svg, \.pdf"):
        draw_relaxation(atoms, atoms, tmp_path / "a.jpg")
    (tmp_path / "a.png").touch()
    with pytest.raises(OutputExistsError):
        draw_relaxation(atoms, atoms, tmp_path / "a.png")
    assert draw_relaxation(atoms, atoms, tmp_path / "a.png", overwrite=True).stat().st_size > 0


def test_the_command(pair, tmp_path):
    atoms, result = pair
    for name, structure in (("a.vasp", atoms), ("b.vasp", result.atoms)):
        ordered = structure[np.argsort(structure.numbers, kind="stable")]
        ordered.calc = None
        write(tmp_path / name, ordered)
    given = ["plot", str(tmp_path / "a.vasp"), str(tmp_path / "b.vasp"), "-o", str(tmp_path / "p.svg")]
    done = CliRunner().invoke(cli, [*given, "--host", "MoS2"])
    assert done.exit_code == 0, done.output
    assert ">W_Mo</text>" in (tmp_path / "p.svg").read_text()
    again = CliRunner().invoke(cli, given)
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    wrong = CliRunner().invoke(cli, [*given[:-1], str(tmp_path / "p.gif")])
    assert wrong.exit_code == 2
    assert ".png, .svg, .pdf" in wrong.output
    odd = CliRunner().invoke(cli, [*given, "--host", "BN", "--overwrite"])
    assert odd.exit_code == 1
    assert "a.vasp" in odd.output
