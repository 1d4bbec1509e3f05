"""Take the result of a DFT run back: the structure of its last step, in the order of the input set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ase_definet.dft.input_plan import ORDER_FILE
from ase_definet.dft.ionic_steps import read_steps
from ase_definet.dft.run_output import IonicSteps, read_images, refuse_other_atoms
from ase_definet.dft.vasp import restore_order
from ase_definet.errors import StructureError


def collect(folder: Path) -> tuple[IonicSteps, Atoms]:
    """Read a run of any code, and its last structure.

    Args:
        folder: Where the input set was written and the code was run; or its output.

    Returns:
        ``(run, atoms)``: the course of the run; and the structure of its last step in the order that the atoms had
        before the input set was written, with energy and forces in ``atoms.calc`` and ``dft_code``, ``dft_steps``,
        ``dft_converged`` and ``dft_largest_force`` (in eV/Å) in ``atoms.info``.

    Raises:
        StructureError: There is no complete ionic step, it does not tell the structure, or the files in the folder
            are of other structures.
        InputSetError: The order of the atoms cannot be told.
    """
    run = read_steps(folder)
    if run.atoms is None:
        raise StructureError(f"{run.path}: it does not tell the structure of the last step{_why(run)}")
    beside = run.path.parent
    if run.code == "vasp" and (beside / "POSCAR").is_file():
        refuse_other_atoms(run.path, run.atoms, beside / "POSCAR", read_images(beside / "POSCAR", "vasp")[0])
    atoms = _restored(run.atoms, beside) if run.code == "vasp" else run.atoms.copy()
    if run.code != "vasp":
        _set_results(atoms, run.atoms, np.arange(len(atoms)))
    atoms.info["dft_code"] = run.code or "ase"
    atoms.info["dft_steps"] = run.steps
    if run.converged is not None:
        atoms.info["dft_converged"] = run.converged
    if len(run.fmax):
        atoms.info["dft_largest_force"] = float(run.fmax[-1])
    return run, atoms


def _why(run: IonicSteps) -> str:
    return f" ({'; '.join(run.notes)})" if run.notes else ""


def _restored(atoms: Atoms, folder: Path) -> Atoms:
    """Return atoms of VASP in the order they had before POSCAR was written, with their results."""
    numbered = atoms.copy()
    numbered.set_tags(np.arange(len(atoms)))
    restored = restore_order(numbered, folder) if (folder / ORDER_FILE).exists() else numbered
    order = restored.get_tags()
    restored.set_tags(atoms.get_tags()[order])
    _set_results(restored, atoms, order)
    return restored


def _set_results(atoms: Atoms, source: Atoms, order: np.ndarray) -> None:
    """Give atoms the energy and forces of others, of which they are ``source[order]``."""
    if source.calc is None:
        return
    results = source.calc.results
    atoms.calc = SinglePointCalculator(atoms, energy=results["energy"], forces=results["forces"][order])
