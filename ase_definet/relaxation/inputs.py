"""Atoms and SiteMap to a DefectGraph, and displacements back to Atoms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ase_definet.errors import StructureError
from ase_definet.matching.site_kind import SiteKind
from ase_definet.matching.site_map import SiteMap
from ase_definet.matching.supercell import cells_of, waves_of
from ase_definet.model.graph import DefectGraph, build_graph
from ase_definet.model.lattice_convolution import LatticeGeometry
from ase_definet.structures.constraints import sound
from ase_definet.structures.neighbors import neighbor_list

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]
InitialPositions: TypeAlias = Literal["ideal", "given"]
"""Where the network sees the atoms: on the host's sites, as in training, or where they are given."""


def to_graph(
    site_map: SiteMap,
    cutoff: float,
    max_neighbors: int | None = None,
    initial_positions: InitialPositions = "ideal",
    dtype: torch.dtype = torch.float32,
) -> DefectGraph:
    """Build the defect-explicit graph of a matched structure.

    Args:
        site_map: The match; nodes are in its (host) order, vacancies included.
        cutoff: Longest edge, in Å.
        max_neighbors: Cap per site, in whole shells; None for no cap.
        initial_positions: ``"ideal"`` puts atoms on the host's sites, as in training; ``"given"`` leaves them where
            they are.
        dtype: Precision of positions and cell.
    """
    positions = site_map.positions + (site_map.offsets if initial_positions == "given" else 0.0)
    return build_graph(
        positions,
        site_map.cell,
        site_map.pbc,
        numbers=site_map.numbers,
        host_numbers=site_map.host_numbers,
        kinds=site_map.kinds,
        cutoff=cutoff,
        max_neighbors=max_neighbors,
        dtype=dtype,
    )


def build_lattice(
    numbers: Array,
    positions: Array,
    cell: Array,
    pbc: tuple[bool, bool, bool],
    supercell: Array,
    cutoff: float,
    *,
    dtype: torch.dtype = torch.float32,
    keep_kernels: bool = False,
) -> LatticeGeometry:
    """Build the geometry of a perfect supercell, its sites cell by cell as everywhere.

    Args:
        numbers: Atomic numbers of the primitive cell, shape ``(n_basis,)``.
        positions: Positions in it, shape ``(n_basis, 3)``, in Å.
        cell: Its vectors as rows, shape ``(3, 3)``, in Å.
        pbc: Which of them are periodic; of a layer all but the last.
        supercell: Integer matrix, rows in the primitive vectors, shape ``(3, 3)``.
        cutoff: Longest edge, in Å.
        dtype: Precision of the network.
        keep_kernels: Whether what it makes of a network's filters is kept for the next call.
    """
    target, source, shift, vector = neighbor_list(positions, cell, pbc, cutoff)
    return LatticeGeometry(
        torch.as_tensor(source),
        torch.as_tensor(target),
        torch.as_tensor(shift),
        torch.as_tensor(vector, dtype=dtype),
        torch.as_tensor(numbers),
        torch.as_tensor(supercell),
        torch.as_tensor(cells_of(supercell)),
        torch.as_tensor(waves_of(supercell)),
        keep_kernels=keep_kernels,
    )


def displaced(
    atoms: Atoms, site_map: SiteMap, displacement: Array, initial_positions: InitialPositions = "ideal"
) -> Atoms:
    """Return a copy of the structure with its atoms on their sites plus a displacement.

    Order, cell, images, arrays, info and constraints are the caller's; constrained atoms stay, the calculator goes.
    Without constraints the mean position of the atoms is that of the input, as VASP keeps it.

    Args:
        atoms: The structure that was matched.
        site_map: Its match.
        displacement: Of every site, shape ``(n_sites, 3)``, in Å; that of empty sites is ignored.
        initial_positions: What the displacement is relative to, as in :func:`to_graph`.

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
