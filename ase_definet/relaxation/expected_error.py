"""The expected error of every atom, learned from structures that were left out of training.

A network's own estimate is fitted to validation pairs like those it was trained on. Outside of them it falls short, by
how much depends on what is new and on the defect. Both are learned from networks that were trained without something
and measured on it (research/experiments/left_out.py): the logarithm of the expected error is linear in a few features
of the atom and of its structure, plus one term for each respect in which the structure lies outside the training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.checkpoints.card import ErrorModelRecord
from ase_definet.errors import CheckpointError
from ase_definet.matching.site_kind import SiteKind
from ase_definet.matching.site_map import SiteMap
from ase_definet.structures.neighbors import pairs_between

Array: TypeAlias = NDArray[Any]

FEATURES = ("one", "own", "moved", "from_defect", "mean_own", "mean_moved", "most_moved", "atoms", "defects")
"""What the expected error is linear in, as logarithms but for the first, which is 1: the network's own estimate, the
predicted displacement and the distance from the closest defect, of the atom; means of the first two (of their
logarithms), the largest displacement, and the numbers of atoms and of defect sites, of the structure."""

FAR = 10.0
"""Distances from defects beyond this are all the same, in Å."""

OWN, MOVED, NEAR = 1e-4, 2e-3, 1.0
"""What is added to the network's estimate, to displacements and to distances before the logarithm is taken, in Å."""


def features(own: Array, moved: Array, from_defect: Array, defects: int) -> Array:
    """Return the features of all atoms of a structure, shape ``(n_atoms, 9)``, in the order of :data:`FEATURES`.

    Args:
        own: The network's own estimate of each atom's error, shape ``(n_atoms,)``, in Å.
        moved: Length of its predicted displacement, shape ``(n_atoms,)``, in Å.
        from_defect: Its distance from the closest defect, shape ``(n_atoms,)``, in Å.
        defects: Number of defect sites.
    """
    log_own, log_moved, one = np.log(own + OWN), np.log(moved + MOVED), np.ones(len(own))
    columns = [one, log_own, log_moved, np.log(from_defect + NEAR), log_own.mean() * one, log_moved.mean() * one]
    columns += [log_moved.max() * one, np.log(len(own)) * one, np.log(max(defects, 1)) * one]
    return np.stack(columns, axis=1)


def weights_of(record: ErrorModelRecord, respects: Sequence[str], host: str | None) -> Array | None:
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


def lengths(weights: Array, atoms: Array) -> Array:
    """Return expected lengths of errors in Å, shape ``(n_atoms,)``; the features as of :func:`features`."""
    return np.asarray(np.exp(atoms @ weights))


def distances_from_defects(site_map: SiteMap) -> Array:
    """Return the distance of every site from the closest defect, at most :data:`FAR`, shape ``(n_sites,)``, in Å."""
    out = np.full(len(site_map.positions), FAR)
    defects = site_map.positions[site_map.kinds != SiteKind.PRISTINE]
    if len(defects):
        pbc = site_map.host.periodic
        target, _, vector = pairs_between(site_map.positions, defects, site_map.cell, pbc, FAR)
        np.minimum.at(out, target, np.linalg.norm(vector, axis=1))
    return out
