"""GPAW: a Python script with ASE's optimizer, and the structure beside it."""

from __future__ import annotations

import ast
import io
import pprint
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.dft.input_set import CUTOFF, FORCE, SMEARING, STEPS, Code, Files, InputSet, override
from ase_definet.dft.run_output import IonicSteps, course, read_images, refuse_other_atoms, text_of
from ase_definet.errors import InputSetError

Array: TypeAlias = NDArray[Any]

START, SCRIPT, OUTPUT, LOG = "start.extxyz", "relax.py", "relax.traj", "relax.log"

_SCRIPT = '''"""Relax {start} with GPAW. Written by ase-definet."""

from ase.io import read
from ase.optimize import {optimizer}
from gpaw import GPAW

PARAMETERS = {parameters}
FMAX = {fmax}  # eV/Å
STEPS = {steps}  # evaluations of the forces

if __name__ == "__main__":
    atoms = read("{start}")
    atoms.calc = GPAW(txt="gpaw.txt", **PARAMETERS)
    with {optimizer}(atoms, trajectory="{output}", logfile="{log}"{options}) as optimizer:
        converged = optimizer.run(fmax=FMAX, steps=STEPS - 1)
    with open("{log}", "a") as log:
        print("converged" if converged else "not converged", file=log)
'''
_SMALL = 1e-6
_CONVERGED, _STOPPED = "converged", "not converged"


def files(plan: InputSet) -> Files:
    """Write the script and the structure.

    Raises:
        InputSetError: A setting is no Python literal, or GPAW cannot hold the spin with a dipole correction.
    """
    from ase.io import write  # noqa: PLC0415 - slow to import

    values = _values(plan)
    overridden = override(values, {key: _literal(key, value) for key, value in plan.settings.items()})
    atoms = plan.atoms.copy()
    if plan.spin and plan.unpaired is not None:
        atoms.set_initial_magnetic_moments(_summing_to(atoms.get_initial_magnetic_moments(), plan.unpaired))
    if plan.dipole:  # GPAW has dipole layers along open axes alone
        atoms.pbc[plan.axis_of_vacuum()] = False
    text = io.StringIO()
    columns = ["symbols", "positions", *(["initial_magmoms"] if plan.spin else [])]
    write(text, atoms, format="extxyz", columns=[*columns, *(["move_mask"] if atoms.constraints else [])])
    robust = plan.profile == "robust"
    script = _SCRIPT.format(
        start=START,
        optimizer="BFGS",
        parameters=pprint.pformat(values, sort_dicts=False, width=100),
        fmax=FORCE,
        steps=STEPS,
        output=OUTPUT,
        log=LOG,
        options=", maxstep=0.05" if robust else "",  # Å; by default 0.2
    )
    notes = [
        "PAW setups are GPAW's own: gpaw install-data FOLDER, or the package gpaw-data of Debian.",
        f"The plane-wave cutoff is {CUTOFF:g} eV as in the published calculations.",
        f"If {STEPS} steps do not suffice: take the last structure of {OUTPUT} as {START} and run again.",
    ]
    warnings = []
    if plan.starts_without_moments:
        warnings.append("spinpol with no moments to start from: GPAW finds no spin from there.")
    return Files({START: text.getvalue(), SCRIPT: script}, f"gpaw python {SCRIPT}", notes, warnings, overridden)


def _values(plan: InputSet) -> dict[str, Any]:
    """Return GPAW's parameters."""
    occupations: dict[str, Any] = {"name": "methfessel-paxton", "order": 0, "width": SMEARING}  # of order 0: Gaussian
    if plan.spin and plan.unpaired is not None:
        occupations["fixmagmom"] = True
        if plan.dipole:  # GPAW stops: its dipole layer knows one Fermi level
            raise InputSetError(
                f"GPAW cannot hold the spin multiplicity ({plan.multiplicity}) with a dipole correction; leave "
                "out one of them."
            )
    values: dict[str, Any] = {
        "mode": {"name": "pw", "ecut": CUTOFF},
        "xc": "PBE",
        "kpts": {"size": plan.grid, "gamma": True},
        "charge": plan.charge,
        "spinpol": plan.spin,
        "occupations": occupations,
        "convergence": {"forces": FORCE / 10},
    }
    if plan.careful:
        values["symmetry"] = "off"
    if plan.dipole:
        plan.across()  # refuses layers that lie askew
        values["poissonsolver"] = {"dipolelayer": "xyz".replace("xyz"[plan.axis_of_vacuum()], "")}
    if plan.profile == "robust":
        values["mixer"] = {"backend": "pulay", "beta": 0.05, "nmaxold": 5, "weight": 50}
    return values


def _summing_to(moments: Array, total: int) -> Array:
    """Return moments with a given sum, at which GPAW then holds it."""
    now = float(moments.sum())
    if abs(now - total) < _SMALL:
        return moments
    return moments * (total / now) if abs(now) > _SMALL else np.full(len(moments), total / len(moments))


def _literal(key: str, value: Any) -> Any:
    """Return a setting as Python has it, text where it is no literal but a word."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        if value.replace("-", "").replace("_", "").isalnum():
            return value
        raise InputSetError(
            f"{key}={value} is no value for GPAW: expected a Python literal, such as 600 or {{'size': (2, 2, 1)}}."
        ) from error


def read_steps(path: Path) -> IonicSteps:
    """Read the ionic steps of the trajectory that the script writes.

    Raises:
        StructureError: There is no complete step in it, or the structure beside it is of other atoms.
    """
    images = read_images(path, "traj")
    energies, fmax, formula, last = course(images, path)
    beside = path.with_name(START)
    if beside.is_file():
        refuse_other_atoms(path, last, beside, read_images(beside, "extxyz")[0])
    log = path.with_name(LOG)
    ends = text_of(log).split("\n")[-2:-1] if log.is_file() else []
    converged = {_CONVERGED: True, _STOPPED: False}.get(ends[0].strip()) if ends else None
    notes = () if converged is not None else (f"{LOG} does not say how it ended: killed or still running",)
    settings = _settings(path.with_name(SCRIPT))
    return IonicSteps(
        path,
        formula,
        energies,
        fmax,
        converged,
        settings,
        notes,
        code="gpaw",
        atoms=last,
        input_settings=bool(settings),
    )


def _settings(path: Path) -> dict[str, str]:
    """Return what the script beside a trajectory tells GPAW, without running it."""
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    try:
        tree = ast.parse(text_of(path))
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                value = ast.literal_eval(node.value)
                named = value if isinstance(value, dict) else {node.targets[0].id: value}
                found |= {key: str(one) for key, one in named.items()}
    except (SyntaxError, ValueError):  # a script of one's own
        return {}
    return found


CODE = Code("gpaw", "GPAW", files, (START, SCRIPT), (OUTPUT,), read_steps)
