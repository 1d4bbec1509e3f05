"""Names of point defects, as doped and pymatgen-analysis-defects write them: ``v_Mo``, ``W_Mo``, ``Li_i``.

An adatom is ``Li_ads``: the ``Li_{ads}`` of the ``Adsorbate`` in pymatgen-analysis-defects without its braces; doped
has no name for it. Both treat the atoms of split interstitials and split vacancies as ordinary interstitials: a split
vacancy of N is two ``v_N`` and one ``N_i``.
"""

from __future__ import annotations

from ase.data import chemical_symbols

VACANCY_PREFIX = "v"
"""A lower-case v: ``V_Mo`` is vanadium on a molybdenum site."""


def defect_name(found: int, host: int) -> str:
    """Name a point defect, without its charge.

    Args:
        found: Atomic number found on the site, 0 for a vacancy.
        host: Atomic number of the host on that site.

    >>> defect_name(0, 42), defect_name(23, 42), defect_name(74, 42)
    ('v_Mo', 'V_Mo', 'W_Mo')
    """
    return f"{chemical_symbols[found] if found else VACANCY_PREFIX}_{chemical_symbols[host]}"


def interstitial_name(found: int) -> str:
    """Name an atom on no site inside a crystal or layer, without its charge.

    Args:
        found: Its atomic number.

    >>> interstitial_name(3)
    'Li_i'
    """
    return f"{chemical_symbols[found]}_i"


def adatom_name(found: int) -> str:
    """Name an atom on the surface of a layer, without its charge.

    Args:
        found: Its atomic number.

    >>> adatom_name(3)
    'Li_ads'
    """
    return f"{chemical_symbols[found]}_ads"
