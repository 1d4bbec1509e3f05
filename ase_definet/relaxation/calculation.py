"""The stage of a calculator: relax, at fixed cell, what the network does not know, or everything after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from ase_definet.errors import CalculatorError, StrictError
from ase_definet.matching.site_map import SiteMap
from ase_definet.matching.symmetry import space_group_operations
from ase_definet.relaxation.calculators import check_elements, get_calculator, name_of, tell_state
from ase_definet.relaxation.result import LEFT, Calculation, RelaxResult
from ase_definet.structures.cell import completed_cell
from ase_definet.structures.constraints import sound
from ase_definet.structures.metrics import near_sites
from ase_definet.structures.state import said_of

if TYPE_CHECKING:
    from ase_definet.relaxation.stepping import Relaxation, Step

Array: TypeAlias = NDArray[Any]

FMAX = 0.05
"""Largest force of a converged structure, in eV/Å."""

MAX_STEPS = 200
"""Evaluations of the forces for one structure, at most."""

SYMMETRY_BREAKING = 0.02
"""Standard deviation of the displacement of a symmetric start, in Å, along each axis, at most twice of it."""

BREAKING_REACH = 4.0
"""Atoms this close to a defect are displaced where the start is symmetric, in Å."""

SYMMETRIC = 1e-3
"""Tolerance to which a start must be symmetric to be displaced, in Å."""

MANY_ATOMS = 300
"""Above so many atoms L-BFGS relaxes: the Hessian of BFGS would take longer than the forces."""

UNBOUND = 1.5
"""An atom with no other within this times the sum of their covalent radii is bonded to nothing."""

VERY_MANY_ATOMS = 3000
"""Above so many atoms a start is displaced without a search for symmetries, which would take minutes."""


@dataclass
class CalculatorStage:
    """What the relaxer does with a calculator.

    Attributes:
        calculator: Any ASE calculator.
        name: What to call it.
        refine: Whether everything is relaxed, also what the network knows.
        fmax: Largest force of a converged structure, in eV/Å.
        max_steps: Evaluations of the forces for one structure, at most.
        symmetry_breaking: Standard deviation of the displacement of a symmetric start, in Å; 0 for none.
        seed: Of that displacement: the same structure always has the same start.
        progress: Called after every evaluation of the forces, with their number and the largest force, in eV/Å.
    """

    calculator: Any
    name: str
    refine: bool = False
    fmax: float = FMAX
    max_steps: int = MAX_STEPS
    symmetry_breaking: float = SYMMETRY_BREAKING
    seed: int = 0
    progress: Step = lambda _steps, _fmax: None

    @classmethod
    def of(
        cls,
        calculator: Any,
        settings: Mapping[str, Any] | None = None,
        *,
        refine: bool = False,
        fmax: float = FMAX,
        max_steps: int = MAX_STEPS,
        symmetry_breaking: float = SYMMETRY_BREAKING,
        seed: int = 0,
    ) -> CalculatorStage | None:
        """Return the stage of a calculator given by name or as an object; None without one.

        Raises:
            CalculatorError: There is no such calculator, or a setting makes no sense.
        """
        if calculator is None:
            given = {"refine": refine, "calculator_settings": settings}
            useless = [name for name, value in given.items() if value]
            if useless:
                raise CalculatorError(f"{useless[0]} without a calculator: give one, by name or from ASE")
            return None
        if not fmax > 0:
            raise CalculatorError(f"fmax must be positive, found {fmax}")
        if max_steps < 1:
            raise CalculatorError(f"max_steps must be at least 1, found {max_steps}")
        if not 0 <= symmetry_breaking <= 0.5:  # noqa: PLR2004 - beyond, it breaks more than the symmetry
            raise CalculatorError(f"symmetry_breaking must lie between 0 and 0.5 Å, found {symmetry_breaking}")
        if isinstance(calculator, str):
            name, calculator = calculator, get_calculator(calculator, **(settings or {}))
        elif settings:
            raise CalculatorError("settings are for a calculator given by name; make this one with them")
        else:
            name = name_of(calculator)
        return cls(calculator, name, refine, fmax, max_steps, symmetry_breaking, seed)

    def serves(self, trust: str) -> bool:
        """Return whether a result of this trust is relaxed with the calculator."""
        return self.refine or trust == "outside"

    def run(self, atoms: Atoms, site_map: SiteMap) -> tuple[Relaxation, float]:
        """Relax a structure from where it is, or from beside it if it is symmetric.

        Args:
            atoms: The start.
            site_map: The match of the structure, for where its defects are.

        Returns:
            What happened, and the largest displacement of the start, in Å.

        Raises:
            CalculatorError: The calculator does not know an element of the structure.
        """
        from ase_definet.relaxation.stepping import relax_with  # noqa: PLC0415 - ASE's optimizers are slow to import

        check_elements(self.calculator, atoms.numbers, self.name)
        moved, displaced = break_symmetry(atoms, site_map, self.symmetry_breaking, self.seed)
        optimizer = "LBFGS" if len(atoms) > MANY_ATOMS else "BFGS"
        return relax_with(moved, self.calculator, optimizer, self.fmax, self.max_steps, self.progress), displaced

    def relaxed(self, result: RelaxResult, given: Atoms, start: str, *, strict: bool) -> RelaxResult:
        """Relax a result with the calculator; where that fails, what is best so far stays.

        Args:
            result: What the network made of the structure, or left on the host's sites.
            given: The structure that was given.
            start: What the result is, in words.
            strict: Whether nothing doubtful is wanted.

        Raises:
            CalculatorError: It does not know an element of the structure.
            StrictError: It failed or did not converge, and nothing doubtful is wanted.
        """
        atoms = result.atoms
        said = said_of(given)
        ignored = tell_state(self.calculator, said.charge or 0, said.spin_multiplicity)
        run, displaced = self.run(atoms, result.site_map)
        useful = run.best > 0 or (run.best == 0 and not run.error)
        unbound = unbound_atoms(run.atoms if useful else atoms)
        done = Calculation(
            calculator=self.name,
            start=start,
            steps=run.steps,
            converged=run.converged and not unbound,
            fmax=float(run.fmax[run.best]) if useful else None,
            fmax_limit=self.fmax,
            energy=float(run.energies[run.best]) if useful else None,
            displaced=displaced,
            seed=self.seed,
            seconds=run.seconds,
            error=run.error,
            unbound=unbound,
        )
        doubts = [ignored] if ignored else []
        if unbound:
            named = ", ".join(f"{k} ({run.atoms.symbols[k]})" for k in unbound)
            doubts.append(
                f"atoms bonded to nothing: {named}; small forces on them do not make this a minimum of a defect: "
                "check where they were put"
            )
        if run.error:
            left = f"its best geometry (step {run.best + 1}, {done.fmax:.3f} eV/Å)" if useful else f"{start} alone"
            doubts.append(f"{self.name} failed after {run.steps} steps, the result is {left}: {run.error}")
        elif not run.converged and start != PREDICTION:
            doubts.append(
                f"{self.name} did not reach {self.fmax:g} eV/Å in {run.steps} steps: the largest force is "
                f"{run.fmax[-1]:.3f} eV/Å"
            )
        if strict and doubts:
            raise StrictError("; ".join(doubts))
        return _with_calculation(result, run.atoms if useful else atoms, given, done, doubts)


PREDICTION, IDEAL, GIVEN = "the prediction", "the host's ideal sites", "the given positions"
"""What a calculator may start from."""


def _with_calculation(
    result: RelaxResult, atoms: Atoms, given: Atoms, done: Calculation, doubts: list[str]
) -> RelaxResult:
    """Return a result with what a calculator made of it."""
    reasons = result.warnings
    if done.energy is None:
        if result.method == "none":
            reasons += (LEFT,)
    elif not done.error:  # what was said of the network concerns this geometry no longer
        network = {one.reason for one in result.judgement.reservations}
        reasons = tuple(text for text in reasons if text not in network)
    reasons += tuple(doubts)
    out = atoms.copy()
    for key in ("definet_warnings", "definet_calculation", "definet_energy"):
        out.info.pop(key, None)
    out.info["definet_calculation"] = str(done)
    if reasons:
        out.info["definet_warnings"] = "; ".join(reasons)
    if done.energy is None:
        return replace(result, atoms=out, warnings=reasons, calculation=done)
    out.info |= {"definet_method": "calculator", "definet_energy": done.energy}
    out.arrays.pop("definet_expected_error", None)  # it was that of the prediction
    return replace(
        result,
        atoms=out,
        displacement=out.positions - given.positions,
        warnings=reasons,
        expected_error=None,
        method="calculator",
        calculation=done,
        timings={**result.timings, "calculator": done.seconds},
    )


def break_symmetry(atoms: Atoms, site_map: SiteMap, size: float, seed: int) -> tuple[Atoms, float]:
    """Displace the atoms around the defects a little, at random, if the structure is symmetric.

    A symmetric structure has symmetric forces: without this, a relaxation would stay on a saddle point if the minimum
    has a lower symmetry, as after a Jahn-Teller distortion.

    Args:
        atoms: The structure.
        site_map: Its match.
        size: Standard deviation along each axis, in Å; no component is larger than twice of it.
        seed: Of the random numbers.

    Returns:
        The structure and the length of the largest displacement, in Å, 0 where it is not symmetric.
    """
    defects = np.array([defect.position for defect in site_map.all_defects])
    if not size or not len(defects) or not is_symmetric(atoms):
        return atoms, 0.0
    cell = completed_cell(atoms.cell.array, atoms.positions, atoms.pbc)
    near = near_sites(atoms.positions, defects, cell, BREAKING_REACH)
    move = np.zeros((len(atoms), 3))
    move[near] = np.random.default_rng(seed).normal(scale=size, size=(near.sum(), 3)).clip(-2 * size, 2 * size)
    if not atoms.constraints:
        move[near] -= move[near].mean(axis=0)
    out = atoms.copy()
    kept = out.constraints
    out.set_constraint(sound(out))
    out.set_positions(atoms.positions + move, apply_constraint=True)
    out.set_constraint(kept)
    return out, float(np.linalg.norm(out.positions - atoms.positions, axis=1).max())


def unbound_atoms(atoms: Atoms) -> tuple[int, ...]:
    """Return the atoms that have no other within bonding distance, see :data:`UNBOUND`, periodic images included."""
    searched = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc & atoms.cell.any(axis=1))
    cutoffs = UNBOUND * covalent_radii[atoms.numbers]
    bonded = np.unique(neighbor_list("i", searched, cutoffs))
    return tuple(np.setdiff1d(np.arange(len(atoms)), bonded).tolist())


def is_symmetric(atoms: Atoms) -> bool:
    """Return whether a structure has a symmetry besides the identity; of very many atoms nobody looks for one."""
    if len(atoms) > VERY_MANY_ATOMS:
        return True
    cell = completed_cell(atoms.cell.array, atoms.positions, atoms.pbc)
    rotations, _ = space_group_operations(cell, atoms.positions, atoms.numbers, precision=SYMMETRIC)
    return len(rotations) > 1
