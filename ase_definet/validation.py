"""Count what a prediction saves: relax from the unrelaxed and from the predicted structure, with the same settings.

Any ASE calculator will do. An ionic step is one evaluation of the forces, as VASP counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.convert import displaced
from ase_definet.metrics import minimum_image
from ase_definet.relaxer import RelaxResult
from ase_definet.stepping import MAX_STEPS, Relaxation, relax_with

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

SAME_MINIMUM = 0.1
"""Two relaxed structures whose atoms are all closer than this are the same minimum, in Å."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The same structure relaxed from two starts.

    Attributes:
        unrelaxed: From the host's sites.
        predicted: From the network's prediction.
        distance: Largest distance of an atom between the two final structures, in Å.
        prediction_error: Mean absolute component of predicted minus relaxed from the prediction, in Å.
        unrelaxed_error: The same of the host's sites and the structure relaxed from them, in Å.
    """

    unrelaxed: Relaxation
    predicted: Relaxation
    distance: float
    prediction_error: float
    unrelaxed_error: float

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
            "unrelaxed_error": self.unrelaxed_error,
        }


def on_sites(result: RelaxResult) -> Atoms:
    """Return the structure that was given, with its atoms on the sites of its host."""
    given = result.atoms.copy()
    given.positions -= result.displacement
    return displaced(given, result.site_map, np.zeros((len(result.site_map.kinds), 3)))


def compare_starts(
    result: RelaxResult,
    make_calculator: Callable[[], Any],
    optimizer: str = "BFGS",
    fmax: float = 0.05,
    max_steps: int = MAX_STEPS,
) -> Comparison:
    """Relax a structure from the host's sites and from its prediction, with the same settings.

    Args:
        result: The prediction, from :meth:`~ase_definet.relaxer.DefiNetRelaxer.predict`.
        make_calculator: Returns a new calculator; called once for each of the two.
        optimizer: One of :data:`~ase_definet.stepping.OPTIMIZERS`.
        fmax: Largest force of a converged structure, in eV/Å.
        max_steps: Evaluations of the forces, at most, each time.

    Returns:
        Both relaxations and what came of them.

    Raises:
        CalculatorError: The optimizer is not known, or the calculator cannot be made.
    """
    sites = on_sites(result)
    runs = [relax_with(start, make_calculator(), optimizer, fmax, max_steps) for start in (sites, result.atoms)]
    unrelaxed, predicted = runs
    return Comparison(
        unrelaxed=unrelaxed,
        predicted=predicted,
        distance=float(np.linalg.norm(_difference(unrelaxed.atoms, predicted.atoms), axis=1).max()),
        prediction_error=float(np.abs(_difference(result.atoms, predicted.atoms)).mean()),
        unrelaxed_error=float(np.abs(_difference(sites, unrelaxed.atoms)).mean()),
    )


def _difference(one: Atoms, other: Atoms) -> Array:
    """Return how two structures differ when their means lie on each other, shape ``(n_atoms, 3)``, in Å."""
    difference = minimum_image(one.positions - other.positions, one.cell.array)
    return np.asarray(difference - difference.mean(axis=0))
