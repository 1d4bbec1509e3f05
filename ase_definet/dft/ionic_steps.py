"""Count ionic steps in what DFT codes and ASE leave behind, and compare a control with a prediction."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from ase_definet.dft.codes import CODES
from ase_definet.dft.run_output import IonicSteps, course, opened, read_images
from ase_definet.errors import StructureError

__all__ = ["IonicSteps", "compare_settings", "read_steps"]

_HEAD = 20_000
"""Where a code says its name in its output, in bytes."""
_SHOWN = 8
"""Differing settings that are named one by one."""


def read_steps(path: Path) -> IonicSteps:
    """Read the ionic steps of a run.

    Args:
        path: What a DFT code of :data:`~ase_definet.dft.codes.CODES` leaves behind, an ASE trajectory, or a folder
            with one of the first.

    Raises:
        StructureError: There is no such file, or no complete ionic step in it.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise StructureError(f"{path}: no such file")
    for code in CODES.values():
        if any(fnmatch(path.name.lower(), f"*{pattern.lower()}*") for pattern in code.outputs):
            return code.read_steps(path)
    head = _head(path)
    for code in CODES.values():
        if code.banner and code.banner in head:
            return code.read_steps(path)
    if path.suffix == ".xml":
        return CODES["vasp"].read_steps(path)
    energies, fmax, formula, last = course(read_images(path, None), path)
    return IonicSteps(path, formula, energies, fmax, None, {}, atoms=last)


def _read_folder(folder: Path) -> IonicSteps:
    """Read the run in a folder: of the code's outputs the most telling one that can be read."""
    found = {name: _outputs(folder, code.outputs) for name, code in CODES.items()}
    found = {name: paths for name, paths in found.items() if paths}
    if len(found) > 1:
        named = ", ".join(paths[0].name for paths in found.values())
        raise StructureError(f"{folder}: holds the outputs of several codes ({named}): name the one that is meant")
    if not found:
        named = ", ".join(pattern for code in CODES.values() for pattern in code.outputs)
        raise StructureError(f"{folder}: expected one of {named}, found none of them")
    ((name, paths),) = found.items()
    for path in paths[:-1]:
        try:
            return CODES[name].read_steps(path)
        except StructureError:  # cut off, perhaps: the next may tell more
            continue
    return CODES[name].read_steps(paths[-1])


def _outputs(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files of a folder that have such names, in the order of the names."""
    return [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]


def _head(path: Path) -> str:
    with opened(path) as stream:
        return str(stream.read(_HEAD).decode(errors="replace"))


def compare_settings(one: IonicSteps, other: IonicSteps) -> list[str]:
    """Name what keeps two runs from being compared.

    Args:
        one: A control.
        other: A prediction.
    """
    if one.code and other.code and one.code != other.code:
        return [f"other code: {one.code} in {one.path}, {other.code} in {other.path}"]
    problems = []
    if one.formula and other.formula and one.formula != other.formula:
        problems.append(f"other composition: {one.formula} in {one.path}, {other.formula} in {other.path}")
    whole = one.input_settings and other.input_settings
    for key in dict.fromkeys((*one.settings, *other.settings)):
        first, second = (run.settings.get(key, "unset" if whole else None) for run in (one, other))
        if first is not None and second is not None and not _same(first, second):
            problems.append(f"{key} differs: {first} in {one.path}, {second} in {other.path}")
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], f"{len(problems) - _SHOWN} more settings differ"]
    return problems


def _same(first: str, second: str) -> bool:
    try:
        return bool(np.isclose(float(first), float(second), rtol=1e-6, atol=1e-12))
    except ValueError:
        return first.lower() == second.lower()
