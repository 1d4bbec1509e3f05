"""A few steps of an ASE calculator after the prediction."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ase_definet.errors import DefiNetWarning, StrictError
from ase_definet.relaxation.result import RelaxResult

if TYPE_CHECKING:
    from ase import Atoms

REFINE_STEPS = 5
"""Steps of a refinement, at most, where nothing else is asked for."""

REFINED = 0.05
"""Largest force at which a refinement stops early, in eV/Å."""


def refined(result: RelaxResult, given: Atoms, calculator: Any, steps: int, *, strict: bool) -> RelaxResult:
    """Take a few steps from a prediction, at fixed cell; where the calculator fails, the prediction stays.

    Args:
        result: The prediction.
        given: The structure that was given.
        calculator: Any ASE calculator.
        steps: Evaluations of its forces, at most; fewer where they fall below :data:`REFINED`.
        strict: Whether nothing doubtful is wanted.

    Raises:
        StrictError: It failed, and nothing doubtful is wanted.
    """
    from ase_definet.relaxation.stepping import relax_with  # noqa: PLC0415 - ASE's optimizers take a while to import

    run = relax_with(result.atoms, calculator, "BFGS", REFINED, steps)
    name = type(calculator).__name__
    if not run.error:
        run.atoms.info |= {"definet_refined": f"{run.steps} steps of {name}", "definet_method": "calculator"}
        moved = run.atoms.positions - given.positions
        return replace(result, atoms=run.atoms, displacement=moved, method="calculator")
    text = f"{name} failed after {run.steps} steps, the result is the prediction alone: {run.error}"
    if strict:
        raise StrictError(text)
    warnings.warn(text, DefiNetWarning, stacklevel=3)
    reasons = (*result.warnings, text)
    result.atoms.info["definet_warnings"] = "; ".join(reasons)
    return replace(result, warnings=reasons)
