"""Check one pair of structures and match it to the sites of its host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.geometry import get_distances
from numpy.typing import NDArray

from ase_definet.data.labels import labels_in
from ase_definet.data.pairs import SPLITS, PairSource
from ase_definet.errors import DefiNetError, StructureError
from ase_definet.matching.site_map import SiteMap, match_sites
from ase_definet.structures.cell import completed_cell
from ase_definet.structures.metrics import minimum_image
from ase_definet.structures.neighbors import pairs_within
from ase_definet.structures.state import State, state_of

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

OFF_SITE = 0.5
"""An unrelaxed atom further than this from its site is not a guess on host sites, in Å."""
EXCHANGE = 1.5
"""Atoms that move further than this may have changed places, in Å."""
JUMP = 4.0
"""An atom that moves further than this was not relaxed but moved, in Å; hops to a vacancy (3 to 4 Å) are real."""
OVERLAP = 0.5
"""Relaxed atoms closer than this overlap, in Å."""
SAME_CELL = 1e-3
"""Cell components that differ by less are the same, in Å."""


@dataclass(frozen=True, eq=False)
class MatchedPair:
    """A valid pair, on the sites and in the frame of its host.

    Attributes:
        id: Its name.
        subset: Its subset.
        split: ``train``, ``val`` or ``test``.
        host: Name of the host.
        unit_numbers: Atomic numbers of the host's primitive cell, shape ``(n_basis,)``.
        unit_positions: Positions in it, strained onto the cell, shape ``(n_basis, 3)``, in Å.
        unit_cell: Its vectors as rows, strained onto the cell, shape ``(3, 3)``, in Å; for a layer the vacuum last.
        pbc: Which of them are periodic.
        supercell: Integer matrix, rows in the primitive vectors, shape ``(3, 3)``.
        numbers: Atomic number on every site, 0 where empty, shape ``(n_sites,)``.
        offset: Unrelaxed position minus site, zero where empty, shape ``(n_sites, 3)``, in Å.
        move: Relaxed minus unrelaxed position, shape ``(n_sites, 3)``, in Å; None without a relaxed structure.
        state: State of both structures.
        warnings: Warnings of the matching.
        labels: Properties of the relaxed structure by name.
    """

    id: str
    subset: str
    split: str
    host: str
    unit_numbers: Array
    unit_positions: Array
    unit_cell: Array
    pbc: tuple[bool, bool, bool]
    supercell: Array
    numbers: Array
    offset: Array
    move: Array | None
    state: State
    warnings: tuple[str, ...]
    labels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A pair that was rejected.

    Attributes:
        id: Its name.
        subset: Its subset.
        split: ``train``, ``val`` or ``test``.
        reason: Why it was rejected.
    """

    id: str
    subset: str
    split: str
    reason: str


def examine(reference: PairSource) -> MatchedPair | Problem:
    """Read, check and match one pair.

    Args:
        reference: Location of the pair.

    Returns:
        The pair on its sites, or the reason for rejecting it.
    """
    try:
        return _examine(reference)
    except (DefiNetError, OSError) as error:
        return Problem(reference.id, reference.subset, reference.split, str(error))


def _examine(reference: PairSource) -> MatchedPair:
    if reference.split not in SPLITS:
        raise StructureError(f"split must be one of {', '.join(SPLITS)}, found {reference.split}")
    unrelaxed, relaxed = reference.load()
    labels = dict(reference.labels) | labels_in(unrelaxed, relaxed, reference.label_names)
    return replace(_matched(reference, unrelaxed, relaxed), labels=labels)


def _matched(reference: PairSource, unrelaxed: Atoms | None, relaxed: Atoms | None) -> MatchedPair:
    if unrelaxed is None:
        if relaxed is None:
            raise StructureError("there is neither an unrelaxed nor a relaxed structure")
        return _from_sites(reference, relaxed)
    site_map = match_sites(unrelaxed, reference.host)
    site_map.require_sites_only()
    distance = np.linalg.norm(site_map.offsets, axis=1)
    if distance.max() > OFF_SITE:
        atom = site_map.atom_index[int(distance.argmax())]
        raise StructureError(
            f"unrelaxed atom {atom} ({unrelaxed.symbols[atom]}) lies {distance.max():.2f} Å from its site, at most "
            f"{OFF_SITE} Å is expected: is this structure relaxed already?"
        )
    order = site_map.atom_index
    real = order >= 0
    turn = site_map.rotation
    offset = site_map.offsets @ turn
    move = None
    if relaxed is not None:
        move = np.zeros((len(order), 3))
        move[real] = (_displacement(unrelaxed, relaxed, distance.max()) @ turn)[order[real]]
    return _row(reference, site_map, offset, move, state_of(unrelaxed))


def _from_sites(reference: PairSource, relaxed: Atoms) -> MatchedPair:
    """Match a relaxed structure; its displacements are its offsets from the sites."""
    site_map = match_sites(relaxed, reference.host)
    site_map.require_sites_only()
    cell = completed_cell(relaxed.cell.array, relaxed.positions, relaxed.pbc)
    _refuse_overlap(relaxed, cell)
    move = site_map.offsets @ site_map.rotation
    return _row(reference, site_map, np.zeros_like(move), move, state_of(relaxed))


def _row(reference: PairSource, site_map: SiteMap, offset: Array, move: Array | None, state: State) -> MatchedPair:
    unit_cell, unit_positions = site_map.unit
    return MatchedPair(
        id=reference.id,
        subset=reference.subset,
        split=reference.split,
        host=site_map.host.name,
        unit_numbers=site_map.host.numbers,
        unit_positions=unit_positions,
        unit_cell=unit_cell,
        pbc=site_map.pbc,
        supercell=site_map.supercell,
        numbers=site_map.numbers,
        offset=offset,
        move=move,
        state=state,
        warnings=site_map.warnings,
    )


def _displacement(unrelaxed: Atoms, relaxed: Atoms, off_site: float) -> Array:
    """Return relaxed minus unrelaxed positions, after checking that the two structures belong together."""
    if len(relaxed) != len(unrelaxed):
        raise StructureError(f"{len(unrelaxed)} unrelaxed and {len(relaxed)} relaxed atoms: not the same structure")
    differ = np.flatnonzero(relaxed.numbers != unrelaxed.numbers)
    if len(differ):
        i = int(differ[0])
        same = np.array_equal(np.sort(relaxed.numbers), np.sort(unrelaxed.numbers))
        what = "the order of the atoms differs" if same else "the species differ"
        raise StructureError(
            f"{what}: atom {i} is {unrelaxed.symbols[i]} unrelaxed and {relaxed.symbols[i]} relaxed; "
            f"{len(differ)} such atoms"
        )
    change = np.abs(relaxed.cell.array - unrelaxed.cell.array)
    if not change.max() <= SAME_CELL:  # not a number either
        raise StructureError(f"the cell changed by up to {change.max():.3f} Å; only relaxations at fixed cell count")
    cell = completed_cell(unrelaxed.cell.array, unrelaxed.positions, unrelaxed.pbc)
    move = minimum_image(relaxed.positions - unrelaxed.positions, cell)
    length = np.linalg.norm(move, axis=1)
    if not np.isfinite(length).all():
        raise StructureError("a relaxed position is not a finite number")
    _refuse_exchange(unrelaxed, relaxed, cell, np.flatnonzero(length > EXCHANGE), off_site)
    if length.max() > JUMP:
        i = int(length.argmax())
        raise StructureError(f"atom {i} ({unrelaxed.symbols[i]}) jumps by {length[i]:.2f} Å, more than {JUMP} Å")
    _refuse_overlap(relaxed, cell)
    return move


def _refuse_overlap(relaxed: Atoms, cell: Array) -> None:
    close = pairs_within(relaxed.positions, cell, (True, True, True), OVERLAP)[0]
    if len(close):
        raise StructureError(f"relaxed atom {int(close[0])} lies within {OVERLAP} Å of another")


def _refuse_exchange(unrelaxed: Atoms, relaxed: Atoms, cell: Array, far: Array, off_site: float) -> None:
    """Reject a pair in which two atoms exchanged places: this is a change of order, not a relaxation."""
    if not len(far):
        return
    _, distance = get_distances(relaxed.positions[far], unrelaxed.positions[far], cell=cell, pbc=True)
    onto, own = distance.argmin(axis=1), np.arange(len(far))
    close = distance.min(axis=1) < EXCHANGE / 2 + off_site
    for k in np.flatnonzero(close & (onto[onto] == own) & (onto != own)):
        i, j = int(far[k]), int(far[onto[k]])
        raise StructureError(
            f"atoms {i} and {j} ({unrelaxed.symbols[i]}) have changed places: the order of the atoms differs between "
            "the two structures"
        )
