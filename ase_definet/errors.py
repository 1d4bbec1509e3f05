"""Everything ase-definet raises on purpose, under one root."""

from __future__ import annotations


class DefiNetError(Exception):
    """Root of all errors of this package; the message says what was expected, found, and what to do."""


class StructureError(DefiNetError, ValueError):
    """A structure cannot be used: unreadable, no cell, not finite, overlapping atoms."""


class HostError(DefiNetError, ValueError):
    """A host is unknown, unreadable, or no supercell of it fits the structure."""


class MatchError(DefiNetError, ValueError):
    """The atoms cannot be assigned to the sites of the host."""


class CheckpointError(DefiNetError, ValueError):
    """Weights are missing, corrupt, foreign or of a version this package does not read."""


class TrainingError(DefiNetError, ValueError):
    """A training run cannot be set up, resumed or continued as asked."""


class EnumerationError(DefiNetError, ValueError):
    """Defects cannot be placed as asked."""


class ScreeningError(DefiNetError, ValueError):
    """A screen cannot start, or go on, as asked."""


class CalculatorError(DefiNetError, ValueError):
    """A calculator or optimizer is unknown or not installed."""


class InputSetError(DefiNetError, ValueError):
    """A VASP input set cannot be written as asked."""


class OutputExistsError(DefiNetError, FileExistsError):
    """A file is in the way and overwriting was not asked for."""


class DeviceError(DefiNetError, RuntimeError):
    """The device asked for is not there, or has too little memory even for one structure."""


class StrictError(DefiNetError, ValueError):
    """A warning that ``strict=True`` turned into an error."""


class DefiNetWarning(UserWarning):
    """A reason to distrust a result; the message names it."""
