"""The built-in hosts, and hosts given by name, file or structure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ase_definet.errors import HostError, StructureError
from ase_definet.matching.host import Host, reduced
from ase_definet.structures.cell import VACUUM_LENGTH
from ase_definet.structures.conversion import as_atoms
from ase_definet.structures.reading import read_structure

Array: TypeAlias = NDArray[Any]

_HEXAGONAL = np.array([[1.0, 0.0], [-0.5, 3**0.5 / 2]])

_B, _C = (1 / 3, 2 / 3), (2 / 3, 1 / 3)

LIBRARY_SOURCE = "2DMD (Zenodo 14027373)"
"""Source of the hosts of the 2DMD data set."""

_HBN_DATABASE = "h-BN database (QCS-Theory, MIT)"
ROUNDED_SOURCE = "PBE lattice constants, rounded to 0.01 Å"
"""Source of crystals that no network was trained on: hosts for calculators."""
_CUBIC = np.eye(2)
_FCC = ((0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0))
_GPAW = "PBE, GPAW (research/experiments/pbe_hosts.py)"


@dataclass(frozen=True)
class _Entry:
    """A host of the library: in-plane vectors; number, two fractions and height of each atom; in Å.

    The cell of a crystal may be a conventional one.
    """

    axes: Array
    basis: Sequence[tuple[int, float, float, float]]
    source: str = LIBRARY_SOURCE
    height: float | None = None
    """Third vector of a crystal, in Å; None for a layer."""


def _two_fcc(first: int, second: int, a: float, along: float) -> _Entry:
    """Return a cubic crystal of two face-centred lattices, the second shifted along the space diagonal.

    Args:
        first: Atomic number.
        second: Atomic number.
        a: Lattice constant, in Å.
        along: Shift in parts of the diagonal: 0.5 for rock salt, 0.25 for zinc blende.
    """
    basis = [
        (z, x + shift, y + shift, a * (h + shift)) for z, shift in ((first, 0), (second, along)) for x, y, h in _FCC
    ]
    return _Entry(a * _CUBIC, basis, source=ROUNDED_SOURCE, height=a)


# Unit cells of the 2DMD data set (Yang and Shen, Zenodo 14027373, CC BY 4.0; structures of Huang et al., npj 2D
# Mater. Appl. 7, 6 (2023)) and of the h-BN database (QCS-Theory/hBN-database, MIT; HSE06 with D3).
_LIBRARY: Mapping[str, _Entry] = MappingProxyType(
    {
        "MoS2": _Entry(3.19031570 * _HEXAGONAL, [(42, *_B, 3.719751), (16, *_C, 2.154866), (16, *_C, 5.284636)]),
        "WSe2": _Entry(3.32706951 * _HEXAGONAL, [(74, *_B, 3.767238), (34, *_C, 5.448465), (34, *_C, 2.086010)]),
        "BN": _Entry(2.51242846 * _HEXAGONAL, [(5, *_B, 3.853633), (7, *_C, 3.853633)]),
        "GaSe": _Entry(
            3.81906671 * _HEXAGONAL,
            [(31, *_C, 7.665453), (31, *_C, 10.136343), (34, *_B, 11.309606), (34, *_B, 6.492190)],
        ),
        "InSe": _Entry(
            4.09647352 * _HEXAGONAL,
            [(49, *_B, 10.588755), (49, *_B, 7.754693), (34, *_C, 11.856269), (34, *_C, 6.487179)],
        ),
        "P": _Entry(
            np.diag([3.29991800, 4.60092600]),
            [
                (15, 0.0, 0.58855700, 4.182468),
                (15, 0.0, 0.41144300, 6.288710),
                (15, 0.5, 0.08855700, 6.288710),
                (15, 0.5, 0.91144300, 4.182468),
            ],
        ),
        "BN-bulk": _Entry(
            2.48938569 * _HEXAGONAL,
            [(5, *_B, 1.66765954), (7, *_C, 1.66765954), (5, *_C, 5.00297861), (7, *_B, 5.00297861)],
            source=_HBN_DATABASE,
            height=6.67063814,
        ),
        "MoSe2": _Entry(
            3.31926747 * _HEXAGONAL,
            [(42, *_B, 1.66907481), (34, *_C, 0.0), (34, *_C, 3.33814962)],
            source=_GPAW,
        ),
        "WS2": _Entry(
            3.18623066 * _HEXAGONAL,
            [(74, *_B, 1.57250990), (16, *_C, 0.0), (16, *_C, 3.14501981)],
            source=_GPAW,
        ),
        "MgO": _two_fcc(12, 8, 4.25, 0.5),
        "CdTe": _two_fcc(48, 52, 6.62, 0.25),
        "GaN": _Entry(
            3.22 * _HEXAGONAL,
            [(31, *_B, 0.0), (31, *_C, 2.62), (7, *_B, 1.97), (7, *_C, 4.59)],
            source=ROUNDED_SOURCE,
            height=5.24,
        ),
    }
)

ALIASES = {
    "hbn": "BN",
    "h-bn": "BN",
    "bp": "P",
    "black-phosphorus": "P",
    "black phosphorus": "P",
    "phosphorene": "P",
    "hbn-bulk": "BN-bulk",
    "h-bn-bulk": "BN-bulk",
    "bulk-hbn": "BN-bulk",
    "bulk h-bn": "BN-bulk",
}
"""Other names of library hosts, lower case."""


def library() -> dict[str, Host]:
    """Return the built-in hosts by name.

    >>> sorted(library())
    ['BN', 'BN-bulk', 'CdTe', 'GaN', 'GaSe', 'InSe', 'MgO', 'MoS2', 'MoSe2', 'P', 'WS2', 'WSe2']
    """
    return {name: _library_host(name) for name in _LIBRARY}


@cache
def _library_host(name: str) -> Host:
    entry = _LIBRARY[name]
    cell = np.diag([0.0, 0.0, VACUUM_LENGTH if entry.height is None else entry.height])
    cell[:2, :2] = entry.axes
    rows = np.array(entry.basis)
    positions = np.column_stack([rows[:, 1:3] @ entry.axes, rows[:, 3]])
    if entry.source == ROUNDED_SOURCE:  # conventional cells
        return reduced(Atoms(rows[:, 0].astype(int), positions=positions, cell=cell, pbc=True), name, entry.source)
    return Host(name, rows[:, 0].astype(int), positions, cell, layered=entry.height is None, source=entry.source)


def is_library_host(host: Host) -> bool:
    """Whether a host is from the library, rather than a user's crystal of the same name."""
    return host.name in _LIBRARY and host.source == _LIBRARY[host.name].source


def get_host(host: object, name: str | None = None) -> Host:
    """Return a host from a library name, a file, an Atoms, a pymatgen Structure or a Host.

    Args:
        host: The host. Names are those of :func:`library`, including aliases, in any case; files may have any
            format that ASE reads. A conventional cell or a supercell is reduced to its primitive cell.
        name: Its name; default is the library's name, the file's stem or the formula.

    Raises:
        HostError: The name is unknown, or the file does not contain a valid crystal.

    >>> get_host("h-BN").formula
    'BN'
    """
    if isinstance(host, Host):
        return host
    if isinstance(host, (str, Path)):
        known = {key.lower(): key for key in _LIBRARY} | ALIASES
        if str(host).lower() in known:
            return _library_host(known[str(host).lower()])
        path = Path(host)
        if not path.is_file():
            near = difflib.get_close_matches(str(host).lower(), known, n=1, cutoff=0.7)
            another = _elements_of(str(host))  # MoSe2 is not a misspelt MoS2
            if near and another and another != _elements_of(known[near[0]]):
                near = []
            hint = f"did you mean {known[near[0]]!r}? " if near else ""
            if not near and (path.suffix or len(path.parts) > 1):
                hint = "there is no such file; "
            raise HostError(
                f"unknown host {str(host)!r}: {hint}the library has {', '.join(sorted(_LIBRARY))}; "
                "anything else must be a structure file that ASE reads"
            )
        try:
            atoms = read_structure(path)
        except StructureError as error:
            raise HostError(f"host file: {error}") from error
        return reduced(atoms, name or path.stem, str(path))
    try:
        atoms = as_atoms(host)
    except StructureError as error:
        raise HostError(f"host: {error}; a library name or a file will do as well") from error
    return reduced(atoms, name or atoms.get_chemical_formula("metal", empirical=True), "given")


def _elements_of(name: str) -> set[str]:
    """Return the elements of a name that is a chemical formula, else nothing."""
    symbols = re.findall(r"([A-Z][a-z]?)[0-9.]*", name)
    whole = re.fullmatch(r"([A-Z][a-z]?[0-9.]*)+", name) is not None
    return set(symbols) if whole and set(symbols) <= set(chemical_symbols) else set()
