"""Conversion of matched structures to network inputs, and of displacements to Atoms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from ase.data import atomic_numbers, covalent_radii
from numpy.typing import NDArray

from ase_definet.errors import StructureError
from ase_definet.matching.extra_atoms import ExtraKind
from ase_definet.matching.host_sites import HostSites
from ase_definet.matching.site_kind import SiteKind
from ase_definet.matching.site_map import SiteMap
from ase_definet.model.protocol import Lattice, OnLattice, Prepared, Routed, Sites
from ase_definet.relaxation.domain import Judgement
from ase_definet.structures.constraints import sound
from ase_definet.structures.metrics import minimum_image
from ase_definet.structures.state import State

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]
InitialPositions: TypeAlias = Literal["ideal", "given"]
"""Where the network sees the atoms: on the host's sites, as in training, or where they are given."""

TOUCHING = 0.7
"""An atom on its site this close to an atom on no site, as a share of the sum of their covalent radii, stays where it
is given."""


@dataclass(frozen=True, eq=False)
class Item:
    """A structure on its way to the network.

    Attributes:
        index: Its position in the caller's input.
        atoms: The structure as given.
        site_map: Its match to the host.
        prepared: What the network made of its sites.
        warnings: Reasons to distrust the result, in words.
        judgement: How far the result can be trusted.
        timings: Seconds spent in ``match`` and ``graph``.
    """

    index: int
    atoms: Atoms
    site_map: SiteMap
    prepared: Prepared
    warnings: tuple[str, ...]
    judgement: Judgement
    timings: Mapping[str, float]

    @property
    def n_sites(self) -> int:
        """Number of sites, empty ones included."""
        return len(self.site_map.kinds)


def by_atom(site_map: SiteMap, values: Array, extra: float = 0) -> Array:
    """Return the values of the atoms, in the caller's order, from values by site, shape ``(n_sites,)``.

    Args:
        site_map: The match.
        values: The values of the sites.
        extra: The value of atoms on no site.
    """
    order = site_map.atom_index
    out = np.full(np.count_nonzero(order >= 0) + len(site_map.extra), extra, dtype=values.dtype)
    out[order[order >= 0]] = values[order >= 0]
    return out


def sites_of(
    site_map: SiteMap, initial_positions: InitialPositions = "ideal", state: tuple[int, ...] | None = None
) -> Sites:
    """Return the network input of a matched structure.

    Args:
        site_map: The match; sites are in its (host) order, vacancies included.
        initial_positions: ``"ideal"`` puts atoms on the host's sites, as in training; ``"given"`` leaves them where
            they are.
        state: Codes of the structure's state (:mod:`ase_definet.structures.state`).
    """
    given = initial_positions == "given"
    return Sites(
        positions=site_map.positions + site_map.offsets if given else site_map.positions,
        cell=site_map.cell,
        pbc=site_map.pbc,
        numbers=site_map.numbers,
        host_numbers=site_map.host_numbers,
        kinds=site_map.kinds,
        state=state,
        lattice=None if given else lattice_of(site_map.sites),
        rotation=site_map.rotation,
    )


def pristine_twin(prepared: Prepared) -> Prepared | None:
    """Return the pristine host on the sites of a prepared structure; None where the sites are not a lattice."""
    if isinstance(prepared, Routed):
        inner = pristine_twin(prepared.inner)
        return Routed(prepared.place, inner) if isinstance(inner, OnLattice) else None
    if not isinstance(prepared, OnLattice):
        return None
    sites = prepared.sites
    state = None if sites.state is None else State(functional=State.from_codes(sites.state).functional).codes
    host = replace(sites, numbers=sites.host_numbers, kinds=np.zeros_like(sites.kinds), state=state)
    return OnLattice(host, prepared.lattice)


def twin_key(twin: Prepared) -> Hashable:
    """Name a pristine host as a network sees it: twins of equal keys have equal predictions."""
    inner = twin.inner if isinstance(twin, Routed) else twin
    if not isinstance(inner, OnLattice):
        return id(twin)
    rotation = None if inner.sites.rotation is None else inner.sites.rotation.tobytes()
    return twin.key, rotation, inner.sites.state


@lru_cache(maxsize=8)
def lattice_of(sites: HostSites) -> Lattice:
    """Return the perfect supercell of some sites, in the frame of the host; one object for all structures on them."""
    cell, positions = sites.unit
    return Lattice(
        numbers=sites.host.numbers,
        positions=positions,
        cell=cell,
        pbc=sites.pbc,
        supercell=sites.supercell,
    )


def given_beside_extra_atoms(site_map: SiteMap) -> Array:
    """Return the sites whose atoms stay where they are given, because an atom on no site shares their place.

    These are the other halves of dumbbells, and atoms whose site is too close to an atom on no site, closer than they
    are themselves.

    Args:
        site_map: The match.
    """
    out: set[int] = set()
    occupied = np.flatnonzero(site_map.atom_index >= 0)
    radius = covalent_radii[site_map.numbers[occupied]]
    for atom in site_map.extra:
        if atom.kind is ExtraKind.SPLIT_INTERSTITIAL:
            out.update(atom.sites)
        vectors = minimum_image(site_map.positions[occupied] - np.array(atom.position), site_map.cell)
        ideal = np.linalg.norm(vectors, axis=1)
        now = np.linalg.norm(vectors + site_map.offsets[occupied], axis=1)
        close = (ideal < TOUCHING * (radius + covalent_radii[atomic_numbers[atom.element]])) & (ideal < now)
        out.update(occupied[close].tolist())
    return np.array(sorted(out), dtype=int)


def beside_extra_atoms(site_map: SiteMap, displacement: Array) -> Array:
    """Return displacements from the ideal sites that leave where they are given atoms beside one on no site.

    Args:
        site_map: The match.
        displacement: Of every site, shape ``(n_sites, 3)``, in Å.
    """
    if not site_map.extra:
        return displacement
    out = displacement.copy()
    given = given_beside_extra_atoms(site_map)
    out[given] = site_map.offsets[given]
    return out


def displaced(
    atoms: Atoms, site_map: SiteMap, displacement: Array, initial_positions: InitialPositions = "ideal"
) -> Atoms:
    """Return a copy of the structure with its atoms on their sites plus a displacement.

    Order, cell, images, arrays, info and constraints are the caller's; constrained atoms stay, the calculator goes.
    Without constraints the mean position of the atoms is that of the input, as VASP keeps it. Atoms on no site stay
    where they are beside the others.

    Args:
        atoms: The structure that was matched.
        site_map: Its match.
        displacement: Of every site, shape ``(n_sites, 3)``, in Å; that of empty sites is ignored.
        initial_positions: What the displacement is relative to, as in :func:`sites_of`.

    Raises:
        StructureError: The constraints cannot be kept, because they contradict each other or the structure.
    """
    real = site_map.kinds != SiteKind.VACANCY
    order = site_map.atom_index[real]
    move = np.zeros((len(atoms), 3))
    move[order] = displacement[real]
    if initial_positions == "ideal":
        move[order] -= site_map.offsets[real]
    if not atoms.constraints:
        move -= move.mean(axis=0)
    out = atoms.copy()
    out.calc = None
    kept = out.constraints
    try:
        out.set_constraint(sound(out))
        out.set_positions(atoms.positions + move, apply_constraint=True)
    except Exception as error:  # a constraint may be of any class, and raise anything
        raise _impossible(atoms, str(error) or type(error).__name__) from error
    if not np.isfinite(out.positions).all():
        raise _impossible(atoms, "they give positions that are not finite")
    out.set_constraint(kept)
    return out


def _impossible(atoms: Atoms, reason: str) -> StructureError:
    """Return the error of constraints that cannot be kept."""
    names = ", ".join(dict.fromkeys(type(constraint).__name__ for constraint in atoms.constraints))
    return StructureError(
        f"the atoms cannot be placed within their constraints ({names or 'none'}): {' '.join(reason.split())}; check "
        "that they do not contradict each other, or take them off"
    )
