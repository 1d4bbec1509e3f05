"""One picture of one relaxation, for a talk or a paper: before, after, defect sites, displacements.

Needs matplotlib (``pip install 'ase-definet[plot]'``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from ase_definet.errors import DefiNetError, StructureError
from ase_definet.matching.extra_atoms import ExtraAtom
from ase_definet.matching.site_kind import SiteKind
from ase_definet.matching.site_map import Defect
from ase_definet.structures.cell import completed_cell, facing
from ase_definet.structures.files import keep_existing, replacing
from ase_definet.structures.metrics import minimum_image

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]
View: TypeAlias = Literal["top", "side"]

FORMATS = (".png", ".svg", ".pdf")
"""Endings of the files that can be written."""
ARROW = 2.5
"""Length that the longest displacement is drawn with, where no factor is given, in Å."""
LEAST = 0.06
"""Displacements shorter than this share of the longest get no arrow."""

FARTHEST = 3.0
"""No atom moves further than this, in Å: it is another atom."""

_INK, _VACANCY, _SUBSTITUTION, _EXTRA, _MOVE = "#222222", "#0072B2", "#009E73", "#CC79A7", "#D55E00"
_SHOWN = 0.5  # of the covalent radius
_MARGIN = ARROW  # Å around the atoms
_WIDTH = 5.2  # of a panel, in inches


def draw_relaxation(
    before: Atoms,
    after: Atoms,
    path: Path,
    *,
    defects: Sequence[Defect | ExtraAtom] = (),
    view: View = "top",
    enlarged: float | None = None,
    title: str = "",
    overwrite: bool = False,
) -> Path:
    """Draw a structure before and after, with its displacements as arrows and its defect sites as rings.

    Args:
        before: The structure as it was, in Å.
        after: The same atoms in the same order, in the same cell.
        path: The file to write; its name ends in one of :data:`FORMATS`.
        defects: What to mark, from :attr:`~ase_definet.matching.site_map.SiteMap.all_defects`; vacancies with a
            dashed ring, atoms on no site with a dotted one.
        view: From above a layer (``top``; what is none is seen along z), or along it (``side``).
        enlarged: What displacements are multiplied with; by default the longest one is :data:`ARROW` long.
        title: Written above.
        overwrite: Replace a file that is in the way.

    Returns:
        The file written.

    Raises:
        StructureError: The two are not the same atoms, in the same order, in the same cell.
        OutputExistsError: The file exists and ``overwrite`` is False.
        DefiNetError: The name of the file has another ending.
    """
    if path.suffix.lower() not in FORMATS:
        raise DefiNetError(f"{path}: cannot draw this format; expected a name that ends in {', '.join(FORMATS)}")
    keep_existing(path, overwrite=overwrite)
    _check_alike(before, after)
    path.parent.mkdir(parents=True, exist_ok=True)
    move = _displacements(before, after)
    factor = _enlargement(move) if enlarged is None else enlarged
    scene = _Scene.of(before, move, view)
    figure, panels = _panels(scene)
    words = f", displacements x {factor:g}" if move.any() and factor != 1 else ""
    pictures = ((before.positions, "before"), (before.positions + move, f"after{words}"))
    for panel, (positions, text) in zip(panels, pictures, strict=True):
        _draw_structure(panel, scene, positions, before.numbers)
        _draw_defects(panel, defects, scene.h, scene.v)
        panel.set_title(text, fontsize=11, color=_INK, loc="left")
    panels[0].set_ylabel("xyz"[scene.v] + " (Å)", color=_INK)
    _draw_arrows(panels[1], scene, before.positions, move, factor)
    if title:
        figure.suptitle(title, fontsize=12, color=_INK, x=0.01, ha="left")
    with replacing(path) as fresh, rc_context({"svg.fonttype": "none"}):  # words stay words, to be edited
        figure.savefig(fresh, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    return path


def _check_alike(before: Atoms, after: Atoms) -> None:
    if len(before) != len(after) or not np.array_equal(before.numbers, after.numbers):
        raise StructureError(
            f"expected the same atoms in the same order before and after, found {before.get_chemical_formula()} and "
            f"{after.get_chemical_formula()}{'' if len(before) != len(after) else ' in another order'}"
        )
    difference = float(np.abs(before.cell.array - after.cell.array).max())
    if difference > 1e-3:  # noqa: PLR2004 - rounding of files
        raise StructureError(
            f"expected one cell before and after, found vectors that differ by up to {difference:.3f} Å: the "
            "displacements would mean nothing"
        )


def _displacements(before: Atoms, after: Atoms) -> Array:
    """Return the way of every atom to its nearest image, shape ``(n_atoms, 3)``, in Å.

    Raises:
        StructureError: One is so long that the atoms are in another order.
    """
    cell = before.cell.array
    if cell.any(axis=1).sum() >= 2:  # noqa: PLR2004 - no wire, no molecule
        cell = completed_cell(cell, before.positions, before.pbc)
    move = minimum_image(after.positions - before.positions, cell)
    far = np.linalg.norm(move, axis=1)
    if len(far) and far.max() > FARTHEST:
        worst = int(far.argmax())
        raise StructureError(
            f"atom {worst} ({before.symbols[worst]}) is {far[worst]:.1f} Å from where it was, and "
            f"{int((far > FARTHEST).sum())} in all are beyond {FARTHEST:g} Å: are the atoms in another order?"
        )
    return move


def _enlargement(move: Array) -> float:
    """Return the factor, of one digit, that makes the longest displacement about :data:`ARROW` long."""
    longest = float(np.linalg.norm(move, axis=1).max(initial=0.0))
    return float(f"{max(1.0, ARROW / longest):.1g}") if longest > 0 else 1.0


@dataclass(frozen=True, eq=False)
class _Scene:
    """What is seen from where.

    Attributes:
        h: Cartesian axis to the right.
        v: Cartesian axis upwards.
        depth: Cartesian axis towards the eye or away from it.
        toward: 1 where it points towards the eye, -1 where it points away.
        sides: The two cell vectors to outline, shape ``(2, 3)``, in Å; None where none are.
        low: Lowest coordinates of all atoms, before and after, shape ``(3,)``, in Å.
        high: The highest.
    """

    h: int
    v: int
    depth: int
    toward: int
    sides: Array | None
    low: Array
    high: Array

    @classmethod
    def of(cls, before: Atoms, move: Array, view: View) -> _Scene:
        """Look at a structure from above or from the side."""
        across, sides = facing(before.cell.array, before.positions, before.pbc)
        everything = np.concatenate([before.positions, before.positions + move])
        low, high = everything.min(axis=0), everything.max(axis=0)
        h, other = (across + 1) % 3, (across + 2) % 3
        if view == "side":
            return cls(h, across, other, -1, None, low, high)
        return cls(h, other, across, 1, sides, low, high)


def _panels(scene: _Scene) -> tuple[Figure, Any]:
    """Return an empty figure of two panels, with axes and limits."""
    h, v = scene.h, scene.v
    span = (scene.high - scene.low)[[h, v]] + 2 * _MARGIN
    figure = Figure(
        figsize=(2 * _WIDTH, max(1.8, _WIDTH * span[1] / span[0] + 0.8)), layout=ConstrainedLayoutEngine(w_pad=0.05)
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel in panels:
        panel.set_aspect("equal")
        panel.set_xlim(scene.low[h] - _MARGIN, scene.high[h] + _MARGIN)
        panel.set_ylim(scene.low[v] - _MARGIN, scene.high[v] + _MARGIN)
        panel.set_xlabel("xyz"[h] + " (Å)", color=_INK)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _draw_structure(panel: Any, scene: _Scene, positions: Array, numbers: Array) -> None:
    axes = [scene.h, scene.v]
    if scene.sides is not None:
        _draw_cell(panel, scene.sides, positions, axes)
    _draw_atoms(panel, positions[:, axes], positions[:, scene.depth], numbers, toward=scene.toward)


def _draw_arrows(panel: Any, scene: _Scene, positions: Array, move: Array, factor: float) -> None:
    """Draw the displacements that are long enough to be seen."""
    axes = [scene.h, scene.v]
    length = np.linalg.norm(move, axis=1)
    long = length > LEAST * length.max(initial=0.0)
    if not long.any():
        return
    panel.quiver(
        *positions[long][:, axes].T,
        *(factor * move[long][:, axes]).T,
        angles="xy",
        scale_units="xy",
        scale=1,
        color=_MOVE,
        width=0.0045,
        headwidth=3.5,
        headlength=4,
        headaxislength=3.6,
        zorder=5,
    )


def _draw_cell(panel: Any, sides: Array, positions: Array, axes: list[int]) -> None:
    """Draw the outline of the cell, laid around the atoms, seen from above."""
    if not sides.any(axis=1).all():
        return
    fractions = np.linalg.lstsq(sides.T, positions.T, rcond=None)[0].T
    origin = np.floor(fractions.min(axis=0) + 1e-3) @ sides
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) @ sides + origin
    panel.plot(*corners[:, axes].T, color="#c3cad4", lw=1, ls=(0, (5, 4)), zorder=0)


def _draw_atoms(panel: Any, points: Array, depth: Array, numbers: Array, toward: int) -> None:
    """Draw discs to scale, those in front last."""
    order = np.argsort(toward * depth, kind="stable")
    size = 2 * _SHOWN * covalent_radii[numbers[order]]
    panel.add_collection(
        EllipseCollection(
            size,
            size,
            np.zeros(len(size)),
            units="xy",
            offsets=points[order],
            transOffset=panel.transData,
            facecolors=jmol_colors[numbers[order]],
            edgecolors="#555e6b",
            linewidths=0.6,
            zorder=2,
        )
    )


def _ring(defect: Defect | ExtraAtom) -> tuple[str, Any]:
    """Return the color and the line style that a defect is marked with."""
    if isinstance(defect, ExtraAtom):
        return _EXTRA, (0, (1, 1.2))
    return (_VACANCY, (0, (3, 2))) if defect.kind is SiteKind.VACANCY else (_SUBSTITUTION, "-")


def _draw_defects(panel: Any, defects: Sequence[Defect | ExtraAtom], h: int, v: int) -> None:
    for defect in defects:
        color, style = _ring(defect)
        place = defect.position[h], defect.position[v]
        ring = EllipseCollection(
            [2.4],
            [2.4],
            [0],
            units="xy",
            offsets=[place],
            transOffset=panel.transData,
            facecolors="none",
            edgecolors=color,
            linewidths=1.6,
            linestyles=[style],
            zorder=4,
        )
        panel.add_collection(ring)
        if len(defects) <= 6:  # noqa: PLR2004 - more names than that cover the picture
            panel.annotate(
                defect.name,
                place,
                xytext=(9, 8),
                textcoords="offset points",
                color=color,
                fontsize=9,
                zorder=6,
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
            )
