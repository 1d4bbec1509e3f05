"""Checked settings: the range of each setting is declared with its field.

The same checks apply to network sizes from training configs, from checkpoints and from Python.
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
    """Return the names of values for which a dataclass has no field."""
    return sorted(set(values) - {f.name for f in fields(kind)})


def check_types(kind: type, values: Mapping[str, Any]) -> None:
    """Check the types of values against a dataclass; fields of other than plain types are not checked.

    Args:
        kind: The dataclass.
        values: Plain values by the names of its fields, as in JSON or TOML.

    Raises:
        ValueError: A value has another type, or is text with a zero byte.
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
    """Check that all values are fields of a dataclass and have the right types.

    Missing values are allowed: settings that were added later default to the earlier behaviour.

    Args:
        kind: The dataclass.
        values: Plain values by the names of its fields.

    Raises:
        ValueError: A value is unknown or has another type.
    """
    if unknown := unknown_settings(kind, values):
        raise ValueError(f"unknown settings {', '.join(unknown)}; a newer ase-definet may support them")
    check_types(kind, values)


def check_ranges(settings: Any) -> None:
    """Check that the fields of a dataclass with bounds (:func:`within`) lie within them.

    Raises:
        ValueError: A field is out of bounds.
    """
    for f in fields(settings):
        if _RANGE not in f.metadata:
            continue
        least, most = f.metadata[_RANGE]
        value = getattr(settings, f.name)
        if not least <= value <= most:  # false for NaN too
            raise ValueError(f"{f.name} must be between {least:.10g} and {most:.10g}, found {value}")
