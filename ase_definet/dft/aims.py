"""FHI-aims: geometry.in by ASE, control.in with the species defaults of the user's own licence."""

from __future__ import annotations

import io
import os
import warnings as python_warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ase import Atoms
from ase.data import atomic_numbers

from ase_definet.dft.input_set import FORCE, SMEARING, STEPS, Code, Files, InputSet, by_components, override
from ase_definet.dft.run_output import IonicSteps, course, doubts, read_images, take_start, text_of
from ase_definet.errors import InputSetError, StructureError

GEOMETRY, CONTROL, OUTPUT = "geometry.in", "control.in", "aims.out"
SOURCE = "species_defaults/defaults_2020 of FHI-aims"

_STEP = "Geometry optimization: Attempting to predict improved coordinates."
_CONVERGED = "Present geometry is converged."
_DONE = "Have a nice day."
_NO_SCF = "Self-consistency cycle not converged"


def files(plan: InputSet) -> Files:
    """Write geometry.in and control.in.

    Raises:
        InputSetError: A folder of species defaults was named, and lacks an element.
    """
    values = _values(plan)
    overridden = override(values, {key.lower(): _worded(value) for key, value in plan.settings.items()})
    species, notes, warnings = _species(plan)
    if plan.starts_without_moments:
        warnings.append("spin collinear with no moments to start from: FHI-aims finds no spin from there.")
    head = "".join(f"{key:35s}{value}\n" for key, value in values.items())
    notes += [
        by_components("FHI-aims", "its limit"),
        f"If max_relaxation_steps do not suffice: cp geometry.in.next_step {GEOMETRY} and run again.",
    ]
    return Files(
        {GEOMETRY: _geometry(plan), CONTROL: head + species},
        f"aims.x > {OUTPUT}",
        notes,
        warnings,
        overridden,
    )


def _geometry(plan: InputSet) -> str:
    """Return geometry.in, moments to start from included."""
    from ase.io.aims import write_aims  # noqa: PLC0415 - slow to import

    text = io.StringIO()
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # ASE's plans for its own writer
        write_aims(text, plan.atoms)
    return "".join(line for line in text.getvalue().splitlines(keepends=True) if not line.startswith("#"))


def _values(plan: InputSet) -> dict[str, str]:
    """Return the keywords of control.in, ASE's writer of which needs the species defaults."""
    values = {
        "xc": "pbe",
        "relativistic": "atomic_zora scalar",
        "spin": "collinear" if plan.spin else "none",
        "charge": f"{plan.charge}",
    }
    if plan.spin and plan.unpaired is not None:
        values["fixed_spin_moment"] = f"{plan.unpaired}"
    values |= {
        "k_grid": " ".join(map(str, plan.grid)),
        "occupation_type": f"gaussian {SMEARING:g}",
        "sc_accuracy_rho": "1e-5",
        "relax_geometry": f"trm {FORCE:g}",
        "max_relaxation_steps": f"{STEPS}",
        "relax_unit_cell": "none",
    }
    if plan.careful and not plan.gamma:
        values["symmetry_reduced_k_grid"] = ".false."
    if plan.dipole:
        if plan.across() != 2:  # noqa: PLR2004 - the z axis
            raise InputSetError("The dipole correction of FHI-aims needs the vacuum along z; rotate the cell.")
        values["use_dipole_correction"] = ".true."
    if plan.profile == "robust":
        values["max_atomic_move"] = "0.1"  # Å; by default 0.2
    return values


def _worded(value: Any) -> str:
    """Return a value as control.in has it."""
    if isinstance(value, bool):
        return f".{str(value).lower()}."
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _species(plan: InputSet) -> tuple[str, list[str], list[str]]:
    """Return the species defaults of all elements, none where nobody says where they are, notes and warnings.

    Raises:
        InputSetError: The folder that was named is none, or lacks an element.
    """
    names = [f"{atomic_numbers[element]:02d}_{element}_default" for element in plan.species]
    named = plan.library or os.environ.get("AIMS_SPECIES_DIR")
    if not named:
        braced = f"{{{','.join(names)}}}" if len(names) > 1 else names[0]
        notes = [
            "Species defaults are not included (licence). With FOLDER those of FHI-aims, light or tight:",
            f"  cat FOLDER/{braced} >> {CONTROL}",
        ]
        warning = (
            f"{CONTROL} has no species defaults for {', '.join(plan.species)} yet: append those of {SOURCE}, or say "
            "where they are with library (--library FOLDER) or AIMS_SPECIES_DIR."
        )
        return "", notes, [warning]
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        raise InputSetError(f"Expected a folder of species defaults, found none at {folder}; see {SOURCE}.")
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        elements = ", ".join(name.split("_")[1] for name in lacking)
        raise InputSetError(
            f"No species defaults for {elements} in {folder}: expected {', '.join(lacking)}; take the folder light, "
            f"intermediate or tight in {SOURCE}."
        )
    texts = ["\n" + (folder / name).read_text(encoding="utf-8", errors="replace") for name in names]
    return "".join(texts), [f"Species defaults from {folder}: {', '.join(names)}."], []


def read_steps(path: Path) -> IonicSteps:
    """Read the ionic steps of an output of FHI-aims.

    Atoms held fixed, and the settings, are those of geometry.in and control.in beside it.

    Raises:
        StructureError: There is no complete step in it, or geometry.in beside it is of other atoms.
    """
    text = text_of(path)
    images = _images(path, text)
    notes = doubts(text, _DONE, _NO_SCF)
    beside = path.with_name(GEOMETRY)
    start = read_images(beside, "aims")[0] if beside.is_file() else None
    if start is None:
        notes.append(f"no {GEOMETRY} beside it: atoms held fixed, if any, count in the largest force")
    else:
        take_start(path, images, beside, start)
    energies, fmax, formula, last = course(images, path)
    settings = _settings(path.with_name(CONTROL))
    return IonicSteps(
        path,
        formula,
        energies,
        fmax,
        True if _CONVERGED in text else False if _DONE in text else None,
        settings,
        tuple(notes),
        code="aims",
        atoms=last,
        input_settings=bool(settings),
    )


def _images(path: Path, text: str) -> list[Atoms]:
    """Return the steps of an output; where its end cannot be read, those before it."""
    from ase.io import read  # noqa: PLC0415 - slow to import

    whole = text.rfind(_STEP)
    if whole < 0:
        raise StructureError(f"{path}: no complete ionic step of a relaxation in it")
    with TemporaryDirectory() as folder, python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # ASE's plans for its own reader, which takes no open file
        copy = Path(folder) / OUTPUT
        copy.write_text(text[: whole + len(_STEP)] + "\n\n", encoding="utf-8")
        try:
            return list(read(copy, ":", format="aims-output", non_convergence_ok=True))
        except Exception as error:  # ASE's reader raises anything
            raise StructureError(f"{path}: no complete ionic step, or cut off ({type(error).__name__})") from error


def _settings(path: Path) -> dict[str, str]:
    """Return the keywords of control.in ahead of the species."""
    if not path.is_file():
        return {}
    settings: dict[str, str] = {}
    for line in text_of(path).splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["species"]:
            break
        if words:
            settings[words[0]] = " ".join(words[1:])
    return settings


CODE = Code("aims", "FHI-aims", files, (GEOMETRY, CONTROL), (OUTPUT,), read_steps, banner="FHI-aims")
