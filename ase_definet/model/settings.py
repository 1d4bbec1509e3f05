"""Settings that can be checked: each one says which values it may have where it is defined.

The sizes of a network come from a training config, from a checkpoint or from Python; the checks are the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any, get_type_hints

_RANGE = "range"
_SORTS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def within(default: Any, least: float, most: float) -> Any:
    """Return a dataclass field whose value must lie between two bounds, both included."""
    return field(default=default, metadata={_RANGE: (least, most)})


def unknown_settings(kind: type, values: Mapping[str, Any]) -> list[str]:
    """Return the names among values that a dataclass has no field for."""
    return sorted(set(values) - {f.name for f in fields(kind)})


def check_types(kind: type, values: Mapping[str, Any]) -> None:
    """Check that values are of the types that a dataclass wants; fields of other than plain types are left alone.

    Args:
        kind: The dataclass.
        values: Plain values by the names of its fields, as JSON or TOML holds them.

    Raises:
        ValueError: One is of another type, or is text with a zero byte in it.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        wanted = hints.get(name)
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{name} must be text without zero bytes, found {value!r}")
        if wanted not in _SORTS or type(value) is wanted or (wanted is float and type(value) is int):
            continue
        raise ValueError(f"{name} must be {_SORTS[wanted]}, found {value!r}")


def check_settings(kind: type, values: Mapping[str, Any]) -> None:
    """Check that a dataclass knows all of the values, and that they are of the types that it wants.

    What is missing is no error: a setting that was added later has its default, the behaviour of old.

    Args:
        kind: The dataclass.
        values: Plain values by the names of its fields.

    Raises:
        ValueError: One is unknown, or of another type.
    """
    if unknown := unknown_settings(kind, values):
        raise ValueError(f"unknown settings {', '.join(unknown)}; a newer ase-definet may know them")
    check_types(kind, values)


def check_ranges(settings: Any) -> None:
    """Check that the fields of a dataclass that have bounds (:func:`within`) lie between them.

    Raises:
        ValueError: One does not.
    """
    for f in fields(settings):
        if _RANGE not in f.metadata:
            continue
        least, most = f.metadata[_RANGE]
        value = getattr(settings, f.name)
        if not least <= value <= most:  # a NaN is not, either
            raise ValueError(f"{f.name} must be between {least:.10g} and {most:.10g}, found {value}")
