"""The expected error of every atom, learned from structures that were left out of training.

A network's own estimate is fitted to validation pairs like those it was trained on. Outside of them it falls short;
by how much depends on what is new and on the defect. Both are learned from networks that were trained without
something and measured on it (research/experiments/left_out.py): the logarithm of the expected error is linear in a
few features of the atom and of its structure, plus one term for each respect in which the structure lies outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from ase.data import atomic_numbers, covalent_radii
from numpy.typing import NDArray

from ase_definet.checkpoints.card import ErrorModelRecord
from ase_definet.errors import CheckpointError
from ase_definet.matching.naming import VACANCY_PREFIX
from ase_definet.matching.site_kind import SiteKind
from ase_definet.matching.site_map import SiteMap
from ase_definet.structures.neighbors import pairs_between

Array: TypeAlias = NDArray[Any]

_OF_ALL = (
    "one",
    "own",
    "moved",
    "from_defect",
    "from_defect_squared",
    "mean_own",
    "mean_moved",
    "most_moved",
    "atoms",
    "vacancies",
    "substitutions",
    "misfit",
    "misfit_from_defect",
    "charge",
)
FEATURES = (*_OF_ALL, *(f"layer_{name}" for name in _OF_ALL))
"""What the expected error is linear in. Logarithms of the network's own estimate, of the predicted displacement and
of the distance from the closest defect, of the atom, the last also squared; means of the first two and the largest of
the second over the structure; logarithms of its numbers of atoms and, plus one, of vacancies and substitutions; by
how much the largest substitution exceeds what it replaces in covalent radius (Å), also times the logarithm of the
distance; and the magnitude of the charge. All of them once more for layers, which can buckle."""

FAR = 10.0
"""Distances from defects beyond this are all the same, in Å."""

OWN, MOVED, NEAR = 1e-4, 2e-3, 1.0
"""What is added to the network's estimate, to displacements and to distances before the logarithm is taken, in Å."""


@dataclass(frozen=True, slots=True)
class Defective:
    """What the expected error of a structure depends on, besides the network.

    Attributes:
        defects: How often each point defect occurs, by name.
        charge: Net charge, in e.
        layered: Whether the host is a layer.
    """

    defects: Mapping[str, int]
    charge: int
    layered: bool

    @property
    def misfit(self) -> float:
        """By how much the largest substitution exceeds what it replaces, in covalent radius, in Å; at least 0."""
        pairs = (name.split("_") for name in self.defects if not name.startswith(f"{VACANCY_PREFIX}_"))
        radii = ((covalent_radii[atomic_numbers[own]], covalent_radii[atomic_numbers[host]]) for own, host in pairs)
        return max([0.0, *(float(own - host) for own, host in radii)])

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of vacancies and of substitutions."""
        empty = sum(n for name, n in self.defects.items() if name.startswith(f"{VACANCY_PREFIX}_"))
        return empty, sum(self.defects.values()) - empty


def features(own: Array, moved: Array, from_defect: Array, structure: Defective) -> Array:
    """Return the features of all atoms of a structure, shape ``(n_atoms, n_features)``, as in :data:`FEATURES`.

    Args:
        own: The network's own estimate of each atom's error, shape ``(n_atoms,)``, in Å.
        moved: Length of its predicted displacement, shape ``(n_atoms,)``, in Å.
        from_defect: Its distance from the closest defect, shape ``(n_atoms,)``, in Å.
        structure: What else counts.
    """
    log_own, log_moved = np.log(own + OWN), np.log(moved + MOVED)
    away = np.log(np.minimum(from_defect, FAR) + NEAR)
    vacancies, substitutions = np.log1p(structure.counts)
    misfit = structure.misfit
    rows = [1.0, log_own, log_moved, away, away**2, log_own.mean(), log_moved.mean(), log_moved.max()]
    rows += [np.log(len(own)), vacancies, substitutions, misfit, misfit * away, abs(structure.charge)]
    table = np.stack([row * np.ones(len(own)) for row in rows], axis=1)
    return np.hstack([table, structure.layered * table])


def weights_for(record: ErrorModelRecord, respects: Sequence[str], host: str | None) -> Array | None:
    """Return the weight of every feature for a structure; None if nothing was measured of one of its respects.

    Args:
        record: The model, from a card.
        respects: The keys of the respects in which the structure lies outside; none for one inside.
        host: Name of its host in the library; of importance inside only, where the model is for some hosts.

    Raises:
        CheckpointError: The card has features that are not known.
    """
    unknown = sorted(set(record.features) - set(FEATURES))
    if unknown:
        raise CheckpointError(f"the card's error model has the features {', '.join(unknown)}; upgrade ase-definet")
    weights = np.array([record.features.get(name, 0.0) for name in FEATURES])
    if respects:
        if not set(respects) <= set(record.respects):
            return None
        weights[0] += sum(record.respects[key] for key in respects)
    elif host not in record.inside:
        return None
    return weights


def expected_lengths(weights: Array, atoms: Array) -> Array:
    """Return expected lengths of errors in Å, shape ``(n_atoms,)``; the features as of :func:`features`."""
    return np.asarray(np.exp(atoms @ weights))


def expected_of_sites(site_map: SiteMap, charge: int, own: Array, displacement: Array, weights: Array) -> Array:
    """Return the expected length of the error of every site, 0 on empty sites, shape ``(n_sites,)``, in Å.

    Args:
        site_map: The match of the structure.
        charge: Its net charge, in e.
        own: The network's own estimates, shape ``(n_sites,)``, in Å.
        displacement: Predicted displacements, shape ``(n_sites, 3)``, in Å.
        weights: As of :func:`weights_for`.
    """
    real = site_map.atom_index >= 0
    structure = Defective(site_map.defect_counts, charge, site_map.host.layered)
    moved = np.linalg.norm(displacement, axis=1)
    away = distances_from_defects(site_map)
    out = np.zeros(len(own))
    out[real] = expected_lengths(weights, features(own[real], moved[real], away[real], structure))
    return out


def distances_from_defects(site_map: SiteMap) -> Array:
    """Return the distance of every site from the closest defect, at most :data:`FAR`, shape ``(n_sites,)``, in Å."""
    out = np.full(len(site_map.positions), FAR)
    defects = site_map.positions[site_map.kinds != SiteKind.PRISTINE]
    if len(defects):
        pbc = site_map.host.periodic
        target, _, vector = pairs_between(site_map.positions, defects, site_map.cell, pbc, FAR)
        np.minimum.at(out, target, np.linalg.norm(vector, axis=1))
    return out
