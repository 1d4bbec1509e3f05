"""Count what a prediction saves: relax from the ideal sites and from the prediction, with the same settings.

Any ASE calculator will do. An ionic step is one evaluation of the forces, as VASP counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.errors import CalculatorError
from ase_definet.relaxation.result import RelaxResult
from ase_definet.relaxation.stepping import MAX_STEPS, Relaxation, relax_with
from ase_definet.structures.cell import completed_cell, vacuum_axis
from ase_definet.structures.metrics import minimum_image

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

SAME_MINIMUM = 0.1
"""Two relaxed structures whose atoms are all closer than this are the same minimum, in Å."""

_SCALES = (0.99, 1.0, 1.01)
_FARTHEST = 0.04  # the parabola is not to be trusted further
_ROUGH = 0.05  # eV/Å


@dataclass(frozen=True, eq=False)
class Comparison:
    """The same structure relaxed from the host's ideal sites and from the prediction.

    Attributes:
        unrelaxed: The relaxation from the host's ideal sites.
        predicted: That from the network's prediction.
        distance: Largest distance of an atom between the two final structures, in Å.
        prediction_error: Mean absolute component of predicted minus relaxed from the prediction, in Å.
        ideal_sites_error: The same of the host's ideal sites and the structure relaxed from them, in Å.
        scale: What the lattice vectors were multiplied with beforehand.
    """

    unrelaxed: Relaxation
    predicted: Relaxation
    distance: float
    prediction_error: float
    ideal_sites_error: float
    scale: float = 1.0

    @property
    def same_minimum(self) -> bool:
        """Whether both found the same minimum."""
        return self.distance < SAME_MINIMUM

    @property
    def saved(self) -> float | None:
        """Share of the ionic steps that the prediction saves; None where one of the two did not converge."""
        if not (self.unrelaxed.converged and self.predicted.converged):
            return None
        return 1 - self.predicted.steps / self.unrelaxed.steps

    def summary(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        return {
            "unrelaxed": self.unrelaxed.summary(),
            "predicted": self.predicted.summary(),
            "same_minimum": self.same_minimum,
            "distance": self.distance,
            "steps_saved": self.saved,
            "prediction_error": self.prediction_error,
            "ideal_sites_error": self.ideal_sites_error,
            "scale": self.scale,
        }


def compare_steps(
    result: RelaxResult,
    make_calculator: Callable[[], Any],
    optimizer: str = "BFGS",
    fmax: float = 0.05,
    max_steps: int = MAX_STEPS,
    scale: float = 1.0,
) -> Comparison:
    """Relax a structure from the host's sites and from its prediction, with the same settings.

    Args:
        result: The prediction, from :meth:`~ase_definet.relaxation.relaxer.DefiNetRelaxer.predict`.
        make_calculator: Returns a new calculator; called once for each of the two.
        optimizer: One of :data:`~ase_definet.relaxation.stepping.OPTIMIZERS`.
        fmax: Largest force of a converged structure, in eV/Å.
        max_steps: Evaluations of the forces, at most, each time.
        scale: What the lattice vectors are multiplied with beforehand, those along a layer only, and the atoms with
            them: see :func:`fit_scale`.

    Returns:
        Both relaxations and what came of them.

    Raises:
        CalculatorError: The optimizer is not known, or the calculator cannot be made.
    """
    if not callable(make_calculator):
        raise CalculatorError(
            f"expected a function that returns a new calculator, found a {type(make_calculator).__name__}: write "
            "lambda: MyCalculator(...)"
        )
    sites, moved = (scaled(atoms, scale) for atoms in (result.unrelaxed, result.atoms))
    runs = [relax_with(atoms, make_calculator(), optimizer, fmax, max_steps) for atoms in (sites, moved)]
    unrelaxed, predicted = runs
    return Comparison(
        unrelaxed=unrelaxed,
        predicted=predicted,
        distance=float(np.linalg.norm(_difference(unrelaxed.atoms, predicted.atoms), axis=1).max()),
        prediction_error=float(np.abs(_difference(moved, predicted.atoms)).mean()),
        ideal_sites_error=float(np.abs(_difference(sites, unrelaxed.atoms)).mean()),
        scale=scale,
    )


def fit_scale(result: RelaxResult, make_calculator: Callable[[], Any], max_steps: int = 15) -> float:
    """Return by how much a calculator's lattice constant differs from that of the cell, as a factor.

    The pristine supercell, its atoms relaxed with a few steps, is calculated at three scales; a parabola through
    the energies gives the best one. For a layer only the vectors along it are scaled.

    Args:
        result: A prediction, whose host and supercell are taken.
        make_calculator: Returns a new calculator.
        max_steps: Evaluations of the forces at each scale, at most.

    Raises:
        CalculatorError: The calculator failed, or its best lattice constant is not within a few per cent.
    """
    site_map = result.site_map
    pristine = result.unrelaxed[[0] * len(site_map.kinds)]
    pristine.set_constraint()
    pristine.positions, pristine.numbers = site_map.positions, site_map.host_numbers
    energies = []
    for scale in _SCALES:
        run = relax_with(scaled(pristine, scale), make_calculator(), fmax=_ROUGH, max_steps=max_steps)
        if run.error or not len(run.energies):
            raise CalculatorError(f"the pristine host could not be calculated at scale {scale}: {run.error}")
        energies.append(float(run.energies.min()))
    curvature, slope, _ = np.polyfit(_SCALES, energies, 2)
    best = float(-slope / (2 * curvature)) if curvature > 0 else np.inf
    if not abs(best - 1) < _FARTHEST:
        raise CalculatorError(
            f"this calculator's lattice constant of {site_map.host.name} is not within {_FARTHEST:.0%} of the "
            "cell's: relax the host with it and build the cell anew"
        )
    return best


def scaled(atoms: Atoms, scale: float) -> Atoms:
    """Return a copy with its lattice vectors multiplied, those along a layer only, and the atoms with them."""
    out = atoms.copy()
    if scale == 1:
        return out
    factors = np.full(3, scale)
    layer = vacuum_axis(completed_cell(out.cell.array, out.positions, out.pbc), out.positions)
    if layer is not None:
        factors[layer] = 1.0
    constraints = out.constraints
    out.set_constraint()
    out.set_cell(out.cell.array * factors[:, None], scale_atoms=True)
    out.set_constraint(constraints)
    return out


def _difference(one: Atoms, other: Atoms) -> Array:
    """Return how two structures differ when their means lie on each other, shape ``(n_atoms, 3)``, in Å."""
    cell = completed_cell(one.cell.array, one.positions, one.pbc)
    difference = minimum_image(one.positions - other.positions, cell)
    return np.asarray(difference - difference.mean(axis=0))
