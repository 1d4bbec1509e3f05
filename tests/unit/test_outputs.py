"""Ionic steps read back from files: ASE's own example of an OUTCAR, trajectories, and files that are cut off."""

from __future__ import annotations

import json
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read
from ase.optimize import BFGS
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.errors import StructureError
from ase_definet.outputs import compare_settings, read_steps

EXAMPLE = Path(ase.__file__).parent / "test" / "testdata" / "vasp" / "OUTCAR_example_1"
OSZICAR = """\
       N       E                     dE             d eps       ncg     rms          rms(c)
DAV:   1     0.142013158467E+03    0.14201E+03   -0.10000E+03   100   0.1E+02
   1 F= -.10844083E+02 E0= -.10843983E+02  d E =-.20E-03  mag=     2.0000
DAV:   1    -0.108460713169E+02   -0.19883E-02   -0.1E-02   100   0.2E-01
   2 F= -.10846071E+02 E0= -.10845971E+02  d E =-.19E-02  mag=     2.0000
"""

needs_example = pytest.mark.skipif(not EXAMPLE.exists(), reason="this ASE came without its test data")


@pytest.fixture
def trajectories(tmp_path):
    """Relax gold in copper from a far and from a near start."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.numbers[0] = 79
    for name, shift in (("control.traj", 0.3), ("prediction.traj", 0.02)):
        start = atoms.copy()
        start.positions[5] += shift
        start.calc = EMT()
        BFGS(start, trajectory=str(tmp_path / name), logfile=None).run(fmax=0.05)
    return tmp_path / "control.traj", tmp_path / "prediction.traj"


def test_trajectories(trajectories):
    control, prediction = map(read_steps, trajectories)
    images = read(trajectories[0], ":")
    assert control.steps == len(images) > prediction.steps
    assert control.fmax == pytest.approx([np.linalg.norm(i.get_forces(), axis=1).max() for i in images])
    assert control.formula == "AuCu31"
    assert control.converged is None
    assert compare_settings(control, prediction) == []


@needs_example
def test_outcar(tmp_path):
    run = read_steps(EXAMPLE)
    images = read(EXAMPLE, ":", format="vasp-out")
    assert run.steps == len(images)
    assert run.energies == pytest.approx([i.get_potential_energy() for i in images])
    assert {"ENCUT", "EDIFFG", "IBRION", "ISPIN", "NKPTS"} <= set(run.settings)
    changed = tmp_path / "OUTCAR"
    text = EXAMPLE.read_text()
    encut = run.settings["ENCUT"]
    changed.write_text(text.replace(f"ENCUT  =  {encut}", "ENCUT  =  999.0"))
    other = read_steps(tmp_path)
    assert other.settings["ENCUT"] == "999.0"
    assert compare_settings(run, other) == [f"ENCUT differs: {encut} in {EXAMPLE}, 999.0 in {changed}"]


@needs_example
def test_a_file_cut_off_says_so_or_is_refused(tmp_path):
    text = EXAMPLE.read_text()
    (tmp_path / "OUTCAR").write_text(text[: text.index("General timing")])
    assert any("cut off" in note for note in read_steps(tmp_path).notes)
    (tmp_path / "OUTCAR").write_text(text[: text.index("POSITION")])
    with pytest.raises(StructureError, match=r"no complete ionic step|no ionic step"):
        read_steps(tmp_path)


def test_oszicar(tmp_path):
    (tmp_path / "OSZICAR").write_text(OSZICAR)
    run = read_steps(tmp_path)
    assert run.energies.tolist() == [-10.844083, -10.846071]
    assert run.notes == ("OSZICAR tells no forces",)
    (tmp_path / "OSZICAR").write_text("")
    with pytest.raises(StructureError, match="no complete ionic step"):
        read_steps(tmp_path)


def test_compositions_are_compared(tmp_path, trajectories):
    other = bulk("Cu", cubic=True)
    other.positions[0] += 0.1
    other.calc = EMT()
    BFGS(other, trajectory=str(tmp_path / "other.traj"), logfile=None).run(fmax=0.05)
    (problem,) = compare_settings(read_steps(trajectories[0]), read_steps(tmp_path / "other.traj"))
    assert "AuCu31" in problem
    assert "Cu4" in problem


def test_nothing_there(tmp_path):
    with pytest.raises(StructureError, match="found none of them"):
        read_steps(tmp_path)
    with pytest.raises(StructureError, match="no such file"):
        read_steps(tmp_path / "OUTCAR")
    (tmp_path / "vasprun.xml").write_text("<modeling>")
    with pytest.raises(StructureError, match=r"vasprun\.xml"):
        read_steps(tmp_path)


def test_command(trajectories, tmp_path):
    control, prediction = map(str, trajectories)
    done = CliRunner().invoke(cli, ["count-steps", control, prediction])
    assert done.exit_code == 0
    assert "saved" in done.output
    assert "AuCu31" in done.output
    done = CliRunner().invoke(cli, ["count-steps", control, str(tmp_path / "none"), "--json"])
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["runs"][0]["steps"] == read_steps(trajectories[0]).steps
    assert "no such file" in report["errors"][0]
