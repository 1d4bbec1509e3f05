"""The course of one relaxation, and what the readers of all codes share."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.io.formats import UnknownFileTypeError
from numpy.typing import NDArray

from ase_definet.errors import StructureError
from ase_definet.structures.constraints import free_forces

Array: TypeAlias = NDArray[Any]

_SAME_CELL = 1e-3
_SAME_PLACE = 1e-4


@dataclass(frozen=True, eq=False)
class IonicSteps:
    """The course of one relaxation.

    Attributes:
        path: The file it was read from.
        formula: Composition, empty where the file does not tell.
        energies: Energy at each ionic step, shape ``(n,)``, in eV: VASP's and GPAW's extrapolated to no smearing,
            that of the others as they print it.
        fmax: Largest force at each step along directions in which atoms may move, shape ``(n,)``, in eV/Å; empty
            where the file does not tell.
        converged: Whether it reached its own criterion; None where the file does not tell.
        settings: In which runs must not differ that are compared, as far as the files tell.
        notes: What is incomplete about the file.
        code: The code that wrote it, as users call it; empty where the file does not tell.
        atoms: The structure of the last step, in the order of the run; None where the file does not tell.
        input_settings: Whether ``settings`` are all of an input file, so that one that another run lacks is a
            difference.
    """

    path: Path
    formula: str
    energies: Array
    fmax: Array
    converged: bool | None
    settings: Mapping[str, str]
    notes: tuple[str, ...] = ()
    code: str = ""
    atoms: Atoms | None = None
    input_settings: bool = False

    @property
    def steps(self) -> int:
        """Number of ionic steps: evaluations of the forces."""
        return len(self.energies)


class Course(NamedTuple):
    """What :func:`course` makes of images: see :class:`IonicSteps`."""

    energies: Array
    fmax: Array
    formula: str
    last: Atoms


def opened(path: Path) -> Any:
    """Open a file to read bytes, compressed or not."""
    import gzip  # noqa: PLC0415

    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def text_of(path: Path) -> str:
    """Return the text of a file, compressed or not."""
    with opened(path) as stream:
        return str(stream.read().decode(errors="replace"))


def doubts(text: str, end: str, no_scf: str) -> list[str]:
    """Return what is wrong with a code's output.

    Args:
        text: The output.
        end: What is in it if the run ended by itself.
        no_scf: What the code prints for an electronic run that did not converge.
    """
    notes = [] if end in text else ["the file is cut off: the run was killed or is still running"]
    if no_scf in text:
        notes.append(f"{text.count(no_scf)} electronic runs did not converge: their forces are not to be trusted")
    return notes


def read_images(path: Path, fmt: str | None, stream: io.StringIO | None = None) -> list[Atoms]:
    """Read all structures of a file with ASE.

    Args:
        path: The file.
        fmt: ASE's name of its format, None where the file tells.
        stream: Its text, where it was read before.

    Raises:
        StructureError: ASE cannot read it, or there is none in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ASE's plans for its own readers
            found = read(stream or path, ":", format=fmt, do_not_split_by_at_sign=True)
    except (UnknownFileTypeError, OSError) as error:
        raise StructureError(f"{path}: ASE cannot read it: {error}") from error
    except Exception as error:  # a file cut off in its first step raises anything
        raise StructureError(f"{path}: no complete ionic step, or cut off ({type(error).__name__})") from error
    if not found:
        raise StructureError(f"{path}: no complete ionic step")
    return list(found)


def course(images: Sequence[Atoms], path: Path) -> Course:
    """Return energies and largest forces of the steps that have both.

    Raises:
        StructureError: None has.
    """
    whole = [image for image in images if image.calc is not None and {"energy", "forces"} <= set(image.calc.results)]
    if not whole:
        raise StructureError(f"{path}: no ionic step with energy and forces")
    energies = np.array([image.calc.results["energy"] for image in whole])
    fmax = np.array([largest(image, image.calc.results["forces"]) for image in whole])
    return Course(energies, fmax, whole[0].get_chemical_formula(), whole[-1])


def largest(atoms: Atoms, forces: Array) -> float:
    """Return the largest force along directions in which atoms may move, in eV/Å."""
    return float(np.linalg.norm(free_forces(atoms, forces), axis=1).max())


def refuse_other_atoms(path: Path, found: Atoms, beside: Path, expected: Atoms) -> None:
    """Refuse an output that is about other atoms than the input beside it.

    Raises:
        StructureError: The elements differ, or their order.
    """
    if np.array_equal(found.numbers, expected.numbers):
        return
    same = sorted(found.numbers) == sorted(expected.numbers)
    what = "the same atoms in another order" if same else f"{found.get_chemical_formula()}"
    raise StructureError(
        f"{path}: it holds {what}, but {beside.name} beside it {expected.get_chemical_formula()}: these files are "
        "not of one run"
    )


def take_start(path: Path, images: Sequence[Atoms], beside: Path, start: Atoms) -> None:
    """Give the steps of an output the cell and the constraints of the input beside it, which rounds less.

    Args:
        path: The output.
        images: Its steps, changed in place.
        beside: The input.
        start: Its structure.

    Raises:
        StructureError: They are not of one run: other elements, another order or another cell.
    """
    refuse_other_atoms(path, images[0], beside, start)
    if np.abs(np.asarray(images[0].cell) - np.asarray(start.cell)).max() > _SAME_CELL:
        raise StructureError(f"{path}: its cell is another than that of {beside.name} beside it: not of one run")
    for image in images:
        results = {} if image.calc is None else image.calc.results
        image.set_cell(start.cell)
        image.set_constraint(start.constraints)
        if image is images[0] and np.abs(image.positions - start.positions).max() < _SAME_PLACE:
            image.set_positions(start.positions, apply_constraint=False)
        if {"energy", "forces"} <= set(results):  # else they would be results of another structure
            image.calc = SinglePointCalculator(image, energy=results["energy"], forces=results["forces"])
