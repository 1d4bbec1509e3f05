"""Names of point defects, as doped and pymatgen-analysis-defects write them: ``v_Mo``, ``W_Mo``."""

from __future__ import annotations

from ase.data import chemical_symbols

VACANCY_PREFIX = "v"
"""A lower-case v: ``V_Mo`` is vanadium on a molybdenum site."""


def defect_name(found: int, host: int) -> str:
    """Name a point defect, without its charge.

    Args:
        found: Atomic number found on the site, 0 for a vacancy.
        host: Atomic number that the host has there.

    >>> defect_name(0, 42), defect_name(23, 42), defect_name(74, 42)
    ('v_Mo', 'V_Mo', 'W_Mo')
    """
    return f"{chemical_symbols[found] if found else VACANCY_PREFIX}_{chemical_symbols[host]}"
