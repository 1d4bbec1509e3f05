"""Properties as text and as JSON, for every command that shows them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase_definet.matching.host import Host
    from ase_definet.properties.predictor import PropertyValue

    Properties = Mapping[str, PropertyValue]

_ENERGY, _PER_DEFECT = "formation_energy", "formation_energy_per_defect"
_TITLES = {_ENERGY: "energy", "gap_min": "gap", "total_mag": "moment"}
_HEADS = {_ENERGY: "energy", _PER_DEFECT: "per site", "gap_min": "gap", "total_mag": "moment"}
_NAME_WIDTH = 48


_EQUILIBRIUM = 0.02
"""Chemical potentials are in equilibrium with the host to this, per primitive cell, in eV."""


def property_rows(
    properties: Properties, potentials: Mapping[str, float], host: Host | None = None, said: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Return rows of a name and a text, such as ``energy``, ``2.72 ± 0.03 eV to form (...)``.

    Args:
        properties: The properties of one structure, by name.
        potentials: The chemical potentials of its formation energy, in eV by element.
        host: Its host: chemical potentials that are not in equilibrium with it are said.
        said: Warnings that are printed beside the rows: reasons among them are not said twice.
    """
    shown = {name: _shortened(one, said) for name, one in properties.items() if name != _PER_DEFECT}
    if not shown:
        return []
    first = next(iter(shown.values()))
    if all(one.value is None for one in shown.values()) and len({one.reasons for one in shown.values()}) == 1:
        if len(shown) == 1:
            return [(_title(next(iter(shown))), f"unknown{_why(first, first.reasons)}")]
        return [("unknown", f"{', '.join(_title(name) for name in shown)}{_why(first, first.reasons)}")]
    common = [reason for reason in first.reasons if all(reason in one.reasons for one in shown.values())]
    common = common if len(shown) > 1 else []
    rows = []
    for name, one in shown.items():
        text = _measure(one, " to form" if name == _ENERGY else "")
        per = properties.get(_PER_DEFECT)
        if name == _ENERGY and one.value is not None:
            mu = ", ".join(f"{element} {value:.3f}" for element, value in potentials.items())
            each = f", {per.value:.3f} eV per defect site" if per is not None and per.value is not None else ""
            text = f"{text}{each}" + (f" (chemical potentials {mu} eV)" if mu else "")
        rows.append((_title(name), text + _why(one, [reason for reason in one.reasons if reason not in common])))
        if name == _ENERGY and one.value is not None and host is not None:
            rows += _equilibrium_row(host, potentials)
    if common:
        known = [one.trust for one in shown.values() if one.value is not None] or [first.trust]
        rows.append(("", f"these are {known[0]} the training data: {'; '.join(common)}"))
    return rows


def _shortened(one: PropertyValue, said: Collection[str]) -> PropertyValue:
    """Return a property without the reasons that are said elsewhere."""
    reasons = [reason for reason in one.reasons if reason not in said]
    return one if len(reasons) == len(one.reasons) else replace(one, reasons=(*reasons, "see the warnings"))


def _equilibrium_row(host: Host, potentials: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return a row that says that chemical potentials are not in equilibrium with the host, if that is so."""
    from ase.data import chemical_symbols

    from ase_definet.properties.chemical_potentials import distance_from_equilibrium
    from ase_definet.relaxation.domain import known_host

    away = distance_from_equilibrium(host, known_host(host)[0] or "", potentials)
    if away is None or abs(away) < _EQUILIBRIUM:
        return []
    elements = dict.fromkeys(chemical_symbols[z] for z in host.numbers)
    limits = " or ".join(f"--mu rich:{element}" for element in elements)
    text = f"these potentials exceed the energy of {host.name} by {away:+.2f} eV per cell; in equilibrium: {limits}"
    return [("", text)]


def property_lines(structures: Sequence[tuple[str, Properties]]) -> list[str]:
    """Return a table of the properties of several structures.

    Args:
        structures: Title and properties of each.
    """
    names = list(dict.fromkeys(name for _, properties in structures for name in properties))
    if not names:
        return []
    units = {name: one.unit for _, properties in structures for name, one in properties.items()}
    wide = min(max(len(title) for title, _ in structures), _NAME_WIDTH)
    heads = [f"{_HEADS.get(name, name)}{f' ({units[name]})' if units[name] else ''}" for name in names]
    widths = [max(len(head), 15) for head in heads]
    line = f"{'':{wide}s}  " + "  ".join(f"{head:>{width}s}" for head, width in zip(heads, widths, strict=True))
    lines = [f"{line}  trust of these"]
    for title, properties in structures:
        cells = [_cell(properties.get(name)) for name in names]
        text = "  ".join(f"{cell:>{width}s}" for cell, width in zip(cells, widths, strict=True))
        trust = next((one.trust for one in properties.values()), "")
        short = title if len(title) <= wide else f"...{title[3 - wide :]}"
        lines.append(f"{short:{wide}s}  {text}  {trust}")
    return lines


def property_record(properties: Properties) -> dict[str, Any]:
    """Return properties as JSON-ready data."""
    return {
        name: {
            "value": one.value,
            "unit": one.unit,
            "expected_error": one.expected_error,
            "trust": one.trust,
            "reasons": list(one.reasons),
        }
        for name, one in properties.items()
    }


def _title(name: str) -> str:
    return _TITLES.get(name, name)


def _measure(one: PropertyValue, what: str = "") -> str:
    """Return a value with its expected error and unit, and what it is."""
    if one.value is None:
        return "unknown"
    unit = f" {one.unit}" if one.unit else ""
    if one.expected_error is None:
        return f"{one.value:.3f}{unit}{what}, expected error unknown"
    return f"{one.value:.3f} ± {one.expected_error:.3f}{unit}{what}"


def _cell(one: PropertyValue | None) -> str:
    if one is None or one.value is None:
        return "unknown"
    return f"{one.value:.3f} ± {'?' if one.expected_error is None else f'{one.expected_error:.3f}'}"


def _why(one: PropertyValue, reasons: Sequence[str]) -> str:
    """Return why a property is not inside the training data, or unknown, in brackets."""
    if (one.trust == "inside" and one.value is not None) or not reasons:
        return ""
    trust = "" if one.trust == "inside" else f"{one.trust}: "
    return f" ({trust}{'; '.join(reasons)})"
