"""The input sets as real DFT codes take them, where one is installed: small, coarse, on one core."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.dft.codes import write_inputs
from ase_definet.dft.collect import collect
from ase_definet.dft.cp2k import data_folder

PSEUDO = Path("/usr/share/espresso/pseudo")
"""Where Debian's quantum-espresso-data has pseudopotentials."""
FILES = ("B.pbe-n-kjpaw_psl.1.0.0.UPF", "N.pbe-n-kjpaw_psl.1.0.0.UPF")
SETUPS = Path("/usr/share/gpaw-setups")
NICE = ["nice", "-n", "10"] if shutil.which("nice") else []

needs_pw = pytest.mark.skipif(
    shutil.which("pw.x") is None or not all((PSEUDO / name).exists() for name in FILES),
    reason="needs Debian's quantum-espresso and quantum-espresso-data",
)
needs_cp2k = pytest.mark.skipif(
    shutil.which("cp2k") is None or data_folder(None) is None, reason="needs Debian's cp2k and cp2k-data"
)
needs_gpaw = pytest.mark.skipif(
    importlib.util.find_spec("gpaw") is None or not SETUPS.is_dir(), reason="needs gpaw and Debian's gpaw-data"
)


def cluster(extra: int = 0) -> Atoms:
    """Return N, B and perhaps N in a cell with vacuum, in no order, one held along x and y and one altogether."""
    positions = [[1.3, 0.3, 6.1], [0, 0, 6], [-1.3, -0.2, 6.0]]
    atoms = Atoms("NBN"[: 2 + extra], positions[: 2 + extra], cell=[5, 5, 12, 90, 90, 120], pbc=True)
    held = [FixCartesian([1], [True, True, False])] + ([FixAtoms([2])] if extra else [])
    atoms.set_constraint(held)
    return atoms


def execute(folder: Path, *command: str) -> str:
    """Run a command with one thread and low priority; return what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "GPAW_SETUP_PATH": str(SETUPS)}
    done = subprocess.run(
        [*NICE, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    return done.stdout + done.stderr


@pytest.fixture
def library(tmp_path):
    """Make a folder with one pseudopotential for each element."""
    folder = tmp_path / "pseudo"
    folder.mkdir()
    for name in FILES:
        shutil.copy(PSEUDO / name, folder)
    return folder


def checked(folder: Path, atoms: Atoms) -> None:
    """Count and collect a run; what was held stayed, what was free moved."""
    run, found = collect(folder)
    assert run.steps >= 2
    assert run.notes == ()
    assert len(run.fmax) == run.steps
    assert np.isfinite(run.fmax).all()
    assert found.get_chemical_symbols() == atoms.get_chemical_symbols()
    np.testing.assert_allclose(found.cell, atoms.cell, atol=1e-6)
    moved = found.positions - atoms.positions
    np.testing.assert_allclose(moved[1, :2], 0.0, atol=1e-5)
    np.testing.assert_allclose(moved[2:], 0.0, atol=1e-5)
    assert np.abs(moved[0]).max() > 1e-4
    result = CliRunner().invoke(cli, ["count-steps", str(folder)])
    assert result.exit_code == 0, result.output
    assert f"steps     {run.steps}, " in result.output


QE = {"ecutwfc": 20, "ecutrho": 120, "conv_thr": 1e-4, "nstep": 2}


@needs_pw
@pytest.mark.parametrize(
    ("options", "extra", "said"),
    [
        ({"magnetic": "none"}, 0, "number of electrons       =         8.00"),
        ({"charge": -1}, 1, "2D cutoff"),
        ({"kpoints": (2, 2, 1), "spin_multiplicity": 2, "profile": "robust"}, 1, "number of k points=     4"),
        ({"dipole": True, "magnetic": "parity", "profile": "paper"}, 0, "dipole"),
    ],
)
def test_quantum_espresso(options, extra, said, tmp_path, library):
    atoms = cluster(extra)
    write_inputs(atoms, tmp_path / "run", "espresso", library=library, settings=QE, **options)
    output = execute(tmp_path / "run", "pw.x", "-in", "espresso.pwi")
    (tmp_path / "run" / "espresso.pwo").write_text(output)
    assert "ignored" not in output  # no card or key that this pw.x does not know
    assert said in output
    checked(tmp_path / "run", atoms)


CP2K = {
    "FORCE_EVAL/DFT/MGRID/CUTOFF": "100",
    "MOTION/GEO_OPT/MAX_ITER": "1",
    "FORCE_EVAL/DFT/SCF/EPS_SCF": "1e-2",
    "FORCE_EVAL/DFT/QS/EPS_DEFAULT": "1e-8",
}
LOOSE = {"FORCE_EVAL/DFT/SCF/OUTER_SCF/EPS_SCF": "1e-2"}


@needs_cp2k
@pytest.mark.parametrize(
    ("options", "settings", "extra"),
    [
        ({"charge": -1}, LOOSE, 1),
        ({"kpoints": (2, 2, 1), "spin_multiplicity": 2, "profile": "robust"}, {}, 1),
        ({"kpoints": (2, 1, 1)}, {}, 1),
        ({"dipole": True, "magnetic": "parity", "profile": "paper"}, LOOSE, 0),
    ],
)
def test_cp2k(options, settings, extra, tmp_path):
    atoms = cluster(extra)
    if not options.get("kpoints") and extra:
        atoms.set_initial_magnetic_moments([1.0, 0.0, -1.0])
    write_inputs(atoms, tmp_path / "run", "cp2k", settings=CP2K | settings, **options)
    said = execute(tmp_path / "run", "cp2k", "-i", "cp2k.inp", "-o", "cp2k.out")
    assert "PROGRAM ENDED" in (tmp_path / "run" / "cp2k.out").read_text(), said
    checked(tmp_path / "run", atoms)


@needs_gpaw
def test_gpaw(tmp_path):
    atoms = cluster(1)
    settings = {"mode": {"name": "pw", "ecut": 200}, "convergence": {"energy": 0.01, "density": 0.01, "forces": 1.0}}
    write_inputs(atoms, tmp_path / "run", "gpaw", spin_multiplicity=2, settings=settings)
    script = tmp_path / "run" / "relax.py"
    script.write_text(script.read_text().replace("STEPS = 30", "STEPS = 2"))
    execute(tmp_path / "run", sys.executable, "relax.py")
    checked(tmp_path / "run", atoms)
