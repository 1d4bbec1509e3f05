"""Pack 2DMD for training: ``python -m ase_definet.train.pack SOURCE OUT``.

Reads the published layout (folders of CIFs with train/val/test.csv) and writes one ``.npz`` per subset and host, on
the ideal sites of the library host; see :mod:`ase_definet.train.occupations` for the arrays.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms
from ase.io.cif import parse_cif
from numpy.typing import NDArray

from ase_definet.errors import StructureError
from ase_definet.host import Host, get_host
from ase_definet.metrics import minimum_image

Array: TypeAlias = NDArray[Any]

SUBSETS = {
    "high-MoS2": ("high_density_defects/MoS2", "CIF", 8),
    "high-WSe2": ("high_density_defects/WSe2", "CIF", 8),
    "high-BN": ("high_density_defects/hBN", "CIF", 8),
    "high-GaSe": ("high_density_defects/GaSe", "CIF", 6),
    "high-InSe": ("high_density_defects/InSe", "CIF", 6),
    "high-P": ("high_density_defects/BP", "CIF", 6),
    "low-MoS2": ("low_density_defects/MoS2", "CIF_POSCAR", 8),
    "low-WSe2": ("low_density_defects/WSe2", "CIF_POSCAR", 8),
}
"""Folder (with or without a suffix like ``_500``), folder of CIFs in it, and repeats, by subset."""

ON_SITE = 0.3
"""Unrelaxed atoms lie this close to a site, in Å (0.12 where 2DMD has another layer thickness)."""
SPLITS = ("train", "val", "test")


def pack(source: Path, out: Path) -> None:
    """Pack every subset that is there.

    Args:
        source: Folder with ``high_density_defects`` and ``low_density_defects``.
        out: Folder to write to.

    Raises:
        StructureError: No subset is there, or a pair does not belong together.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = False
    for name, (prefix, cifs, n) in SUBSETS.items():
        folders = [p for s in ("", "_500", "_spin_500") if (p := source / f"{prefix}{s}").is_dir()]
        if not folders:
            continue
        found = True
        host = get_host(name.split("-")[1])
        listed = list(_ids(folders[0]))
        with ProcessPoolExecutor() as pool:
            rows = list(pool.map(partial(_pair, host, n), [folders[0] / cifs / i for i, _ in listed], chunksize=16))
        numbers, start, move = (np.array(column) for column in zip(*rows, strict=True))
        np.savez_compressed(
            out / f"{name}.npz",
            ids=np.array([i for i, _ in listed]),
            split=np.array([s for _, s in listed]),
            numbers=numbers.astype(np.uint8),
            start=start.astype(np.float32),
            move=move.astype(np.float32),
            unit_numbers=host.numbers,
            unit_positions=host.positions,
            unit_cell=host.cell,
            n=n,
        )
        print(f"{name}: {len(listed)} pairs")  # noqa: T201
    if not found:
        raise StructureError(f"{source}: expected folders such as high_density_defects/MoS2_500, found none")


def _ids(folder: Path) -> Iterator[tuple[str, str]]:
    for split in SPLITS:
        with (folder / f"{split}.csv").open(newline="") as stream:
            yield from ((row["atoms_id"], split) for row in csv.DictReader(stream))


def _read(path: Path) -> Atoms:
    """Read a P1 CIF without ASE's search for symmetry-equivalent sites, which is quadratic in the atoms."""
    atoms: Atoms = next(iter(parse_cif(str(path)))).get_unsymmetrized_structure()
    return atoms


def _pair(host: Host, n: int, stem: Path) -> tuple[Array, Array, Array]:
    """Return numbers, unrelaxed minus ideal and relaxed minus unrelaxed on the sites; NaN where unknown."""
    unrelaxed = _read(stem.with_name(f"{stem.name}_unrelaxed.cif"))
    cell = unrelaxed.cell.array
    cells = np.array([[i, j] for i in range(n) for j in range(n)])
    base = np.linalg.solve(host.cell.T, host.positions.T).T[:, :2]
    fractions = ((cells[:, None] + base) / n).reshape(-1, 2)
    heights = np.tile(host.positions[:, 2], n * n)
    plane = fractions[None] - unrelaxed.get_scaled_positions(wrap=False)[:, None, :2]
    plane -= np.round(plane)
    rise = heights[None] - unrelaxed.positions[:, None, 2]
    across = np.linalg.norm(plane @ cell[:2, :2], axis=-1)
    distance = np.hypot(across, rise - _height_offset(across, rise))
    site = distance.argmin(axis=1)
    worst = float(distance.min(axis=1).max())
    if worst > ON_SITE or len(set(site.tolist())) < len(site):
        raise StructureError(f"{stem.name}: an unrelaxed atom lies {worst:.2f} Å from the sites of {host.name}")
    return _on_sites(stem, unrelaxed, site, fractions @ cell[:2, :2], heights, cell)


def _height_offset(plane: Array, rise: Array) -> float:
    """Return the rigid shift of the layer along z, in Å."""
    nearest = (plane**2 + rise**2).argmin(axis=1)
    return float(np.median(np.take_along_axis(rise, nearest[:, None], axis=1)))


def _on_sites(
    stem: Path, unrelaxed: Atoms, site: Array, plane: Array, heights: Array, cell: Array
) -> tuple[Array, Array, Array]:
    numbers = np.zeros(len(heights), dtype=int)
    numbers[site] = unrelaxed.numbers
    start = np.full((len(heights), 3), np.nan)
    start[site] = minimum_image(unrelaxed.positions - np.column_stack([plane, heights])[site], cell)
    move = np.full((len(heights), 3), np.nan)
    path = stem.with_name(f"{stem.name}_relaxed.cif")
    if path.exists():
        relaxed = _read(path)
        if not np.array_equal(relaxed.numbers, unrelaxed.numbers) or np.abs(relaxed.cell.array - cell).max() > 1e-3:  # noqa: PLR2004
            raise StructureError(f"{stem.name}: relaxed and unrelaxed structure differ in species, order or cell")
        move[site] = minimum_image(relaxed.positions - unrelaxed.positions, cell)
    return numbers, start, move


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
