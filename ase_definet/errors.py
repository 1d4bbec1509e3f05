"""Exceptions of ase-definet, with one base class."""

from __future__ import annotations


class DefiNetError(Exception):
    """Base class of all errors of this package; the message says what was expected, found, and what to do."""


class StructureError(DefiNetError, ValueError):
    """A structure cannot be used: unreadable, no cell, not finite, overlapping atoms."""


class HostError(DefiNetError, ValueError):
    """A host is unknown, unreadable, or has no supercell that fits the structure."""


class MatchError(DefiNetError, ValueError):
    """The atoms cannot be assigned to the sites of the host."""


class CheckpointError(DefiNetError, ValueError):
    """Weights are missing, corrupt, foreign or of a version this package does not read."""


class TrainingError(DefiNetError, ValueError):
    """A training run cannot be set up, resumed or continued as requested."""


class EnumerationError(DefiNetError, ValueError):
    """Defects cannot be placed as requested."""


class ScreeningError(DefiNetError, ValueError):
    """A screen cannot be started or resumed as requested."""


class VariantsError(DefiNetError, ValueError):
    """A search for the minima of a defect cannot be started or resumed as requested."""


class OtherRequestError(ScreeningError, VariantsError):
    """The folder of a screen or a search holds something else: this one needs another."""


class CalculatorError(DefiNetError, ValueError):
    """A calculator or optimizer is unknown or not installed."""


class InputSetError(DefiNetError, ValueError):
    """A VASP input set cannot be written as requested."""


class OutputExistsError(DefiNetError, FileExistsError):
    """An output exists and overwriting was not requested."""


class DeviceError(DefiNetError, RuntimeError):
    """The requested device is not available, or lacks the memory for a single structure."""


class StrictError(DefiNetError, ValueError):
    """A warning that ``strict=True`` turned into an error."""


class DefiNetWarning(UserWarning):
    """A reason to distrust a result; the message names it."""
