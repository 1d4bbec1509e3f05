"""Relax atoms at fixed cell with any ASE calculator, counting the evaluations of the forces."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import BFGS, FIRE, LBFGS
from ase.optimize.sciopt import SciPyFminCG
from numpy.typing import NDArray

from ase_definet.errors import CalculatorError
from ase_definet.structures.constraints import sound

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

OPTIMIZERS: Mapping[str, Any] = MappingProxyType({"BFGS": BFGS, "LBFGS": LBFGS, "FIRE": FIRE, "CG": SciPyFminCG})
MAX_STEPS = 200

LARGEST_FORCE = 1000.0
"""A larger force than this, in eV/Å, is no force but a calculator that has lost its way."""

LARGEST_MOVE = 6.0
"""An atom further than this from where it started, in Å, has left the structure."""

Step: TypeAlias = Callable[[int, float], object]
"""Called after every evaluation of the forces, with their number so far and the largest force, in eV/Å."""


@dataclass(frozen=True, eq=False)
class Relaxation:
    """One relaxation at fixed cell.

    Attributes:
        steps: Evaluations of the forces, the first and the last included.
        converged: Whether the largest force fell below the limit.
        fmax: Largest force at each step, shape ``(n,)``, in eV/Å.
        energies: Energy at each step, shape ``(n,)``, in eV.
        seconds: Wall time.
        atoms: The last structure; where the calculator gave up, the one of lowest energy, or the one given if there
            is none. Without its calculator; always finite.
        error: Why the calculator gave up, empty if it did not.
        best: Which step :attr:`atoms` is of, -1 where it is the structure given.
    """

    steps: int
    converged: bool
    fmax: Array
    energies: Array
    seconds: float
    atoms: Atoms
    error: str = ""
    best: int = -1

    def summary(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        finite = [float(e) for e in self.energies]
        return {
            "steps": self.steps,
            "converged": self.converged,
            "first_fmax": float(self.fmax[0]) if len(self.fmax) else None,
            "last_fmax": float(self.fmax[-1]) if len(self.fmax) else None,
            "first_energy_above_last": finite[0] - finite[-1] if finite else None,
            "final_energy": finite[-1] if finite else None,
            "seconds": self.seconds,
            "error": self.error,
        }


def relax_with(
    atoms: Atoms,
    calculator: Any,
    optimizer: str = "BFGS",
    fmax: float = 0.05,
    max_steps: int = MAX_STEPS,
    progress: Step = lambda _steps, _fmax: None,
) -> Relaxation:
    """Relax the atoms at fixed cell with an ASE calculator.

    Args:
        atoms: The initial structure, in Å; not changed. Its constraints hold.
        calculator: Any ASE calculator.
        optimizer: One of :data:`OPTIMIZERS`, in any case.
        fmax: Largest force of a converged structure, in eV/Å.
        max_steps: Evaluations of the forces, at most.
        progress: Called after each of them.

    Returns:
        What happened, even where the calculator failed or the structure fell apart.

    Raises:
        CalculatorError: The optimizer is not known.
        StructureError: A constraint names an atom that is not there.
    """
    optimizer = optimizer.upper()
    if optimizer not in OPTIMIZERS:
        raise CalculatorError(f"unknown optimizer {optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
    moving = atoms.copy()
    moving.set_constraint(sound(atoms))
    moving.pbc &= moving.cell.any(axis=1)  # calculators repeat a zero vector after 1 Å
    recorder = _Recorder(calculator, fmax, max_steps, moving.positions.copy(), progress)
    moving.calc = recorder
    began = time.perf_counter()
    error = ""
    try:
        # an optimizer that divides by zero says so by positions that are not finite, which the recorder refuses
        with np.errstate(divide="ignore", invalid="ignore"):
            run = OPTIMIZERS[optimizer](moving, logfile=None)
            run.run(fmax=fmax, steps=max_steps)
    except _Enough:
        pass
    except Exception as failure:  # noqa: BLE001 - calculators raise anything, and a failure is a result
        error = " ".join(str(failure).split()) or type(failure).__name__
    converged = bool(recorder.fmax) and recorder.fmax[-1] < fmax and not error
    moving.calc = None
    moving.set_constraint(atoms.copy().constraints)
    moving.pbc = atoms.pbc
    if not error and not np.isfinite(moving.positions).all():
        error = _LOST
    best = len(recorder.fmax) - 1
    if error:
        moving.positions = atoms.positions if recorder.lowest is None else recorder.lowest
        best = int(np.argmin(recorder.energies)) if recorder.energies else -1
    return Relaxation(
        steps=len(recorder.fmax),
        converged=converged,
        fmax=np.array(recorder.fmax),
        energies=np.array(recorder.energies),
        seconds=time.perf_counter() - began,
        atoms=moving,
        error=error,
        best=best,
    )


_LOST = "the optimizer lost its way to positions that are not finite: do the forces depend on the positions?"


class _Enough(Exception):  # noqa: N818 - it ends a run that is long enough, and no one sees it
    """The forces are small enough, or the steps are used up."""


class _Recorder(Calculator):
    """Pass every new geometry to another calculator once, and keep what it says."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, inner: Any, limit: float, most: int, start: Array, progress: Step) -> None:
        super().__init__()
        self.inner, self.limit, self.most, self.start, self.progress = inner, limit, most, start, progress
        self.fmax: list[float] = []
        self.energies: list[float] = []
        self.lowest: Array | None = None

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """Evaluate energy and forces of a geometry."""
        super().calculate(atoms, properties, system_changes)
        if not np.isfinite(atoms.positions).all():
            raise CalculatorError(_LOST)
        gone = np.linalg.norm(atoms.positions - self.start, axis=1)
        if gone.max() > LARGEST_MOVE:
            raise CalculatorError(f"atom {gone.argmax()} went {gone.max():.1f} Å away: the structure falls apart")
        self.results = {"forces": self.inner.get_forces(atoms), "energy": self.inner.get_potential_energy(atoms)}
        felt = self.results["forces"].copy()
        for constraint in atoms.constraints:  # sound ones, and what the optimizer sees
            constraint.adjust_forces(atoms, felt)
        energy = float(self.results["energy"])
        if not np.isfinite(felt).all() or not np.isfinite(energy):
            wrong = np.count_nonzero(~np.isfinite(felt).all(axis=1))
            raise CalculatorError(
                f"the forces on {wrong} of {len(felt)} atoms are not finite, at an energy of {energy:g} eV"
            )
        largest = float(np.linalg.norm(felt, axis=1).max())
        if largest > LARGEST_FORCE:
            atom = np.linalg.norm(felt, axis=1).argmax()
            raise CalculatorError(
                f"a force of {largest:.3g} eV/Å on atom {atom}: are two atoms on top of one another?"
            )
        if energy < min(self.energies, default=np.inf):
            self.lowest = atoms.positions.copy()
        self.fmax.append(largest)
        self.energies.append(energy)
        self.progress(len(self.fmax), largest)
        # some optimizers go on for a while after the forces have fallen below their limit
        if self.fmax[-1] < self.limit or len(self.fmax) >= self.most:
            raise _Enough
