"""Hosts: the built-in library, the user's own, and the pristine supercell commensurate with a defect cell."""

from __future__ import annotations

import difflib
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.data import chemical_symbols
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray

from ase_definet.errors import HostError, StructureError
from ase_definet.structures.conversion import from_structure, refuse_partial, to_structure, with_moments
from ase_definet.structures.neighbors import pairs_within
from ase_definet.structures.reading import read_structure

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

VACUUM_GAP = 7.0
"""An empty slab at least this thick along an axis makes a structure two-dimensional, in Å."""

OVERLAP = 0.4
"""Two atoms closer than this are one atom given twice, in Å."""

LARGEST = 1e6
"""No coordinate of an atom and no cell vector is longer, in Å: beyond it, double precision loses what is relaxed."""

HEAVIEST = 118
"""Largest atomic number."""

SYMMETRY_PRECISION = 0.01
"""Positions closer than this are equivalent when a host is reduced to its primitive cell, in Å."""

_LOOSER = (0.02, 0.04, 0.08)  # tried where a host may be a supercell with noise, in Å

NOISE = 0.02
"""Copies of a host's primitive cell that differ by less are the same, in Å, root mean square."""

VACUUM_LENGTH = 40.0
"""Length of the axis across a two-dimensional host in the frame used for matching, in Å; more for a thick slab."""


@dataclass(frozen=True, eq=False)
class Host:
    """A pristine crystal, by its primitive cell.

    Attributes:
        name: How results refer to it.
        numbers: Atomic numbers, shape ``(n_basis,)``.
        positions: Cartesian positions, shape ``(n_basis, 3)``, in Å; unwrapped across a layer.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å. The last row of a two-dimensional host is its
            unit normal times :data:`VACUUM_LENGTH`, or more where it is a thick slab.
        layered: Whether the host is two-dimensional, its last axis the vacuum.
        source: Where the geometry is from.
    """

    name: str
    numbers: Array
    positions: Array
    cell: Array
    layered: bool
    source: str

    @property
    def formula(self) -> str:
        """Reduced chemical formula, in the order of the basis."""
        elements, counts = np.unique(self.numbers, return_counts=True)
        divisor = int(np.gcd.reduce(counts))
        order = sorted(range(len(elements)), key=lambda k: int(np.flatnonzero(self.numbers == elements[k])[0]))
        return "".join(
            chemical_symbols[elements[k]] + (str(counts[k] // divisor) if counts[k] > divisor else "") for k in order
        )

    @property
    def composition(self) -> dict[int, int]:
        """Atoms of each element in the primitive cell, by atomic number: the order of the basis does not matter."""
        elements, counts = np.unique(self.numbers, return_counts=True)
        return dict(zip(elements.tolist(), counts.tolist(), strict=True))

    @property
    def periodic(self) -> tuple[bool, bool, bool]:
        """Along which axes of :attr:`cell` the host repeats."""
        return (True, True, not self.layered)

    @cached_property
    def nearest_neighbor(self) -> float:
        """Shortest distance between two sites, in Å."""
        radius = 2.0
        while True:
            _, _, vector = pairs_within(self.positions, self.cell, self.periodic, radius)
            if len(vector):
                return float(np.linalg.norm(vector, axis=1).min())
            radius *= 1.5


# Unit cells of the 2DMD data set (Yang and Shen, Zenodo 14027373, CC BY 4.0; structures of Huang et al.,
# npj 2D Mater. Appl. 7, 6 (2023)): in-plane vectors in Å, then atomic number, two fractions and height in Å.
_HEXAGONAL = np.array([[1.0, 0.0], [-0.5, 3**0.5 / 2]])
_B, _C = (1 / 3, 2 / 3), (2 / 3, 1 / 3)
_LIBRARY: dict[str, tuple[Array, list[tuple[int, float, float, float]]]] = {
    "MoS2": (3.19031570 * _HEXAGONAL, [(42, *_B, 3.719751), (16, *_C, 2.154866), (16, *_C, 5.284636)]),
    "WSe2": (3.32706951 * _HEXAGONAL, [(74, *_B, 3.767238), (34, *_C, 5.448465), (34, *_C, 2.086010)]),
    "BN": (2.51242846 * _HEXAGONAL, [(5, *_B, 3.853633), (7, *_C, 3.853633)]),
    "GaSe": (
        3.81906671 * _HEXAGONAL,
        [(31, *_C, 7.665453), (31, *_C, 10.136343), (34, *_B, 11.309606), (34, *_B, 6.492190)],
    ),
    "InSe": (
        4.09647352 * _HEXAGONAL,
        [(49, *_B, 10.588755), (49, *_B, 7.754693), (34, *_C, 11.856269), (34, *_C, 6.487179)],
    ),
    "P": (
        np.diag([3.29991800, 4.60092600]),
        [
            (15, 0.0, 0.58855700, 4.182468),
            (15, 0.0, 0.41144300, 6.288710),
            (15, 0.5, 0.08855700, 6.288710),
            (15, 0.5, 0.91144300, 4.182468),
        ],
    ),
}
LIBRARY_SOURCE = "2DMD (Zenodo 14027373)"
"""``Host.source`` of the built-in hosts."""

ALIASES = {"hbn": "BN", "h-bn": "BN", "bp": "P", "black-phosphorus": "P", "black phosphorus": "P", "phosphorene": "P"}
"""Other names of library hosts, lower case."""


def library() -> dict[str, Host]:
    """Return the built-in hosts by name.

    >>> sorted(library())
    ['BN', 'GaSe', 'InSe', 'MoS2', 'P', 'WSe2']
    """
    return {name: _library_host(name) for name in _LIBRARY}


@cache
def _library_host(name: str) -> Host:
    axes, basis = _LIBRARY[name]
    cell = np.diag([0.0, 0.0, VACUUM_LENGTH])
    cell[:2, :2] = axes
    rows = np.array(basis)
    positions = np.column_stack([rows[:, 1:3] @ axes, rows[:, 3]])
    return Host(name, rows[:, 0].astype(int), positions, cell, layered=True, source=LIBRARY_SOURCE)


def get_host(host: object, name: str | None = None) -> Host:
    """Return a host from a library name, a file, an Atoms, a pymatgen Structure or a Host.

    Args:
        host: What the user gave. Names are those of :func:`library`, aliases included, in any case; files
            are whatever ASE reads. A conventional cell or a supercell is reduced to its primitive cell.
        name: How to call it; default is the library's name, the file's stem or the formula.

    Raises:
        HostError: The name is unknown, or the file does not hold a usable crystal.

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
            another = _elements_of(str(host))  # MoSe2 is no misspelt MoS2
            if near and another and another != _elements_of(known[near[0]]):
                near = []
            hint = f"did you mean {known[near[0]]!r}? " if near else ""
            raise HostError(
                f"unknown host {str(host)!r}: {hint}The library has {', '.join(sorted(_LIBRARY))}; "
                "anything else must be a structure file that ASE reads"
            )
        try:
            atoms = read_structure(path)
        except StructureError as error:
            raise HostError(f"host file: {error}") from error
        return _reduced(atoms, name or path.stem, str(path))
    try:
        atoms = as_atoms(host)
    except StructureError as error:
        raise HostError(f"host: {error}; a library name or a file will do as well") from error
    return _reduced(atoms, name or atoms.get_chemical_formula("metal", empirical=True), "given")


def _elements_of(name: str) -> set[str]:
    """Return the elements of a name that is a chemical formula, none of any other name."""
    symbols = re.findall(r"([A-Z][a-z]?)[0-9.]*", name)
    whole = re.fullmatch(r"([A-Z][a-z]?[0-9.]*)+", name) is not None
    return set(symbols) if whole and set(symbols) <= set(chemical_symbols) else set()


def as_atoms(structure: object) -> Atoms:
    """Return an Atoms from an Atoms or a pymatgen Structure, whose charge goes to ``info["charge"]``.

    Moments that the atoms carry become initial moments: see :func:`~ase_definet.structures.conversion.moments_of` and
    :func:`~ase_definet.structures.conversion.from_structure`. An Atoms is returned as it is where there is nothing to do.

    Raises:
        StructureError: It is neither, or sites of it are partly occupied.
    """
    from ase import Atoms  # noqa: PLC0415

    if isinstance(structure, Atoms):
        refuse_partial(structure)
        return with_moments(structure)
    if hasattr(structure, "lattice") and hasattr(structure, "sites"):
        return from_structure(structure)
    raise StructureError(
        f"expected an ase.Atoms or a pymatgen Structure, found {type(structure).__name__}: read the file first"
    )


def as_structure(atoms: Atoms) -> Any:
    """Return a pymatgen Structure from an Atoms, with its charge, its moments and what is held.

    A charge that nobody stated, and constraints that selective dynamics cannot say, are a DefiNetWarning.
    """
    return to_structure(atoms)


def check_structure(atoms: Atoms) -> tuple[Array, Array, int | None]:
    """Refuse what no method could use.

    Returns:
        The structure in its matching frame: see :func:`layer_frame`.

    Raises:
        StructureError: No atoms, an atom that is no element, no cell, not finite, or two atoms in one place.
    """
    if len(atoms) == 0:
        raise StructureError("the structure has no atoms")
    check_elements(atoms.numbers)
    if not np.isfinite(atoms.positions).all():
        bad = int(np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))[0])
        raise StructureError(f"atom {bad} ({atoms.symbols[bad]}) has a position that is not a number")
    if np.abs(atoms.positions).max() > LARGEST:
        bad = int(np.abs(atoms.positions).max(axis=1).argmax())
        raise StructureError(
            f"atom {bad} ({atoms.symbols[bad]}) lies {np.abs(atoms.positions[bad]).max():.3g} Å from the origin, "
            f"at most {LARGEST:g} Å is expected: check the coordinates and their unit"
        )
    cell = atoms.cell.array
    _check_cell(cell)
    frame, positions, axis = layer_frame(cell, atoms.positions, atoms.pbc)
    i, j, vector = pairs_within(positions, frame, (True, True, axis is None), OVERLAP)
    if len(i):
        k = int(np.argmin(np.linalg.norm(vector, axis=1)))
        a, b = sorted((int(i[k]), int(j[k])))
        raise StructureError(
            f"atoms {a} and {b} overlap ({np.linalg.norm(vector[k]):.3f} Å apart): remove the duplicate"
        )
    return frame, positions, axis


def check_elements(numbers: Array) -> None:
    """Refuse atoms that are no element.

    Args:
        numbers: Atomic numbers, shape ``(n_atoms,)``.

    Raises:
        StructureError: One is not between 1 and 118.
    """
    wrong = np.flatnonzero((numbers < 1) | (numbers > HEAVIEST))
    if not len(wrong):
        return
    bad, number = int(wrong[0]), int(numbers[wrong[0]])
    if number == 0:
        raise StructureError(f"atom {bad} (X) is no element: remove placeholders of vacancies")
    raise StructureError(
        f"atom {bad} has the atomic number {number}, expected 1 to {HEAVIEST}: check the species of the structure"
    )


def _check_cell(cell: Array) -> None:
    """Refuse a cell that no crystal has; zero vectors are open axes.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.

    Raises:
        StructureError: It is not finite, does not repeat along two axes, or is too small or too large for atoms.
    """
    shown = [[float(f"{x:.4g}") for x in row] for row in cell]
    if not np.isfinite(cell).all():
        raise StructureError(
            f"expected a periodic cell, found a component that is not a number (vectors {shown}): check it"
        )
    given = np.abs(cell).max(axis=1) > 0
    longest = np.abs(cell).max()
    if longest > LARGEST:
        raise StructureError(
            f"a cell vector is {longest:.3g} Å long, at most {LARGEST:g} Å is expected: check the cell and its unit"
        )
    scale = np.where(given, np.abs(cell).max(axis=1), 1.0)
    rank = int(np.linalg.matrix_rank(cell / scale[:, None]))
    if rank < max(2, int(given.sum())):
        raise StructureError(
            f"expected a periodic cell, found one of rank {rank} (vectors {shown}): "
            "a defect cell must repeat; set atoms.cell"
        )
    # the shortest vectors of a lattice are those of its reduced cell
    shortest = np.linalg.norm(cell[given], axis=1).min()
    if shortest >= OVERLAP:
        reduced, _ = minkowski_reduce(np.where(given[:, None], cell, 0.0), pbc=given)
        shortest = np.linalg.norm(reduced[given], axis=1).min()
    if shortest < OVERLAP:
        raise StructureError(
            f"the cell repeats after {shortest:.3g} Å, so that every atom overlaps its own images: check "
            "the cell and its unit"
        )


def completed_cell(cell: Array, positions: Array, pbc: Array | None = None) -> Array:
    """Give the axis across a layer, where the cell leaves it open, a normal long enough to hold the layer.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å. A zero vector is open.
        positions: Shape ``(n_atoms, 3)``, in Å.
        pbc: Periodic axes, shape ``(3,)``. Where exactly one is not and its vector leaves less than
            :data:`VACUUM_GAP` beside the layer, it is open too.

    Returns:
        The cell without open axes, shape ``(3, 3)``, in Å.
    """
    cell = np.array(cell, dtype=float)
    missing = ~cell.any(axis=1)
    if not missing.any() and pbc is not None and np.sum(pbc) == 2 and vacuum_axis(cell, positions) is None:  # noqa: PLR2004
        missing = ~np.asarray(pbc, dtype=bool)
    for axis in np.flatnonzero(missing):
        normal = np.cross(cell[axis - 2], cell[axis - 1])
        normal /= np.linalg.norm(normal)
        cell[axis] = normal * (np.ptp(positions @ normal) + VACUUM_LENGTH)
    return cell


def widest_gap(cell: Array, scaled: Array, axis: int) -> tuple[float, float]:
    """Return the width, in Å, and the fractional centre of the largest empty layer across an axis.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        scaled: Fractional positions, shape ``(n_atoms, 3)``.
        axis: Which cell vector the layers are stacked along.
    """
    width, centre = _emptiest(scaled[:, axis])
    return float(width / np.linalg.norm(np.linalg.inv(cell)[:, axis])), centre


def _emptiest(fractions: Array) -> tuple[float, float]:
    """Return width and centre of the largest gap between fractions, around the circle."""
    levels = np.sort(fractions % 1.0)
    widths = np.empty_like(levels)
    np.subtract(levels[1:], levels[:-1], out=widths[:-1])
    widths[-1] = levels[0] + 1.0 - levels[-1]
    first = int(widths.argmax())
    return float(widths[first]), float(levels[first] + widths[first] / 2)


def vacuum_gaps(cell: Array, positions: Array) -> list[float]:
    """Return the width of the largest empty layer across each axis, in Å.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        positions: Shape ``(n_atoms, 3)``, in Å.
    """
    inverse = np.linalg.inv(cell)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    return [
        _emptiest(column)[0] * float(height) for column, height in zip((positions @ inverse).T, heights, strict=True)
    ]


def vacuum_axis(cell: Array, positions: Array) -> int | None:
    """Return the axis along which a layer is surrounded by vacuum, or None.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        positions: Shape ``(n_atoms, 3)``, in Å.

    Raises:
        StructureError: There is vacuum along more than one axis (a wire or a molecule).
    """
    gaps = vacuum_gaps(cell, positions)
    axes = [axis for axis in range(3) if gaps[axis] >= VACUUM_GAP]
    if len(axes) <= 1:
        return axes[0] if axes else None
    # small cells of few atoms have wide gaps between periodic images too: the vacuum is the widest by far
    widest, second = sorted(axes, key=lambda axis: -gaps[axis])[:2]
    if gaps[widest] - gaps[second] < VACUUM_GAP / 2:
        raise StructureError(
            f"vacuum along axes {widest} and {second} ({gaps[widest]:.1f} and {gaps[second]:.1f} Å): "
            "expected a crystal or one layer, found a wire or a molecule"
        )
    return widest


def layer_frame(cell: Array, positions: Array, pbc: Array | None = None) -> tuple[Array, Array, int | None]:
    """Put a structure in the frame used for matching: vacuum axis last, normal to the layer, layer unwrapped.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å; a zero vector counts as vacuum.
        positions: Shape ``(n_atoms, 3)``, in Å.
        pbc: Periodic axes, shape ``(3,)``; the only one that is not counts as vacuum.

    Returns:
        ``(frame, positions, axis)``: rows of the frame (for a layer: the two periodic vectors and the unit normal
        times :data:`VACUUM_LENGTH` or, for a thick slab, more), the positions with images across the vacuum undone,
        and the vacuum axis.
    """
    cell = completed_cell(cell, positions, pbc)
    axis = vacuum_axis(cell, positions)
    if axis is None:
        return cell, positions, None
    fractions = positions @ np.linalg.inv(cell)
    _, emptiest = widest_gap(cell, fractions, axis)
    images = np.floor(fractions[:, axis] - emptiest)
    images -= np.round(np.median(images))
    first, second = (cell[k] for k in range(3) if k != axis)
    normal = np.cross(first, second)
    normal *= np.sign(normal @ cell[axis]) / np.linalg.norm(normal)
    positions = positions - images[:, None] * cell[axis]
    height = max(VACUUM_LENGTH, float(np.ptp(positions @ normal)) + VACUUM_LENGTH / 2)
    return np.array([first, second, normal * height]), positions, axis


def facing(cell: Array, positions: Array, pbc: Array | None = None) -> tuple[int, Array]:
    """Return from where to look at a structure: a layer from above, whichever axis is across it.

    Args:
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å; a zero vector counts as vacuum.
        positions: Shape ``(n_atoms, 3)``, in Å.
        pbc: Periodic axes, shape ``(3,)``; the only one that is not counts as vacuum.

    Returns:
        ``(depth, sides)``: the Cartesian axis to look along, z for what is no layer, and the two cell vectors that
        lie across it, shape ``(2, 3)``, in Å; zero where the cell has none.
    """
    cell = np.asarray(cell, dtype=float)
    given = cell.any(axis=1)
    axis: int | None = None
    if given.sum() >= 2 and np.linalg.matrix_rank(cell) == given.sum():  # noqa: PLR2004 - no wire, no molecule
        with suppress(StructureError):
            axis = vacuum_axis(completed_cell(cell, positions, pbc), positions)
    sides = np.delete(cell, 2 if axis is None else axis, axis=0)
    if axis is None:
        return 2, sides
    return int(np.abs(np.cross(*sides)).argmax()), sides


def _reduced(atoms: Atoms, name: str, source: str) -> Host:
    """Reduce a crystal to its primitive cell, Minkowski-reduced, in the matching frame."""
    try:
        frame, positions, axis = check_structure(atoms)
    except StructureError as error:
        raise HostError(f"host {name!r}: {error}") from error
    if axis is not None:
        normal = frame[2] / np.linalg.norm(frame[2])
        positions = positions - normal * (positions @ normal).min()
    numbers, positions, cell = _primitive(atoms.numbers, positions, frame, name)
    if axis is None:
        cell = np.array(minkowski_reduce(cell)[0])
        return Host(name, numbers, positions, cell, layered=False, source=source)
    cell, positions, axis = layer_frame(cell, positions)
    if axis is None:
        raise HostError(f"host {name!r}: lost its vacuum on reduction: give its primitive cell")
    cell = np.array(minkowski_reduce(cell, pbc=(True, True, False))[0])
    return Host(name, numbers, positions, cell, layered=True, source=source)


def _primitive(numbers: Array, positions: Array, cell: Array, name: str) -> tuple[Array, Array, Array]:
    """Return numbers, positions and cell of the primitive cell, means over its copies.

    The tolerance is the smallest at which the copies agree: a supercell that somebody relaxed is a little noisy. A
    cell whose copies differ by more than noise is a superstructure, and stays whole.
    """
    best = _fold(numbers, positions, cell, SYMMETRY_PRECISION)
    if best is None:
        raise HostError(f"host {name!r}: spglib finds no primitive cell: are atoms too close to one another?")
    for tolerance in _LOOSER:
        found = _fold(numbers, positions, cell, tolerance)
        if found is not None and len(found.numbers) < len(best.numbers) and found.noise <= NOISE:
            best = found
    return best.numbers, best.positions, best.cell


@dataclass(frozen=True, eq=False)
class _Folded:
    """A primitive cell, and by how much its copies in the crystal differ, root mean square, in Å."""

    numbers: Array
    positions: Array
    cell: Array
    noise: float


def _fold(numbers: Array, positions: Array, cell: Array, tolerance: float) -> _Folded | None:
    """Fold a crystal onto the primitive cell that spglib finds at a tolerance, in Å."""
    import spglib  # noqa: PLC0415

    scaled = np.linalg.solve(cell.T, positions.T).T
    with warnings.catch_warnings():  # spglib announces a change of its error handling at every call
        warnings.simplefilter("ignore", DeprecationWarning)
        found = spglib.standardize_cell(
            (cell, scaled, numbers), to_primitive=True, no_idealize=True, symprec=tolerance
        )
    if found is None:
        return None
    # its vectors carry the noise of the atoms they were found with: they are rational in those of the cell
    matrix = np.round(cell @ np.linalg.inv(found[0]))
    copies = round(abs(float(np.linalg.det(matrix))))
    if copies == 0 or len(found[2]) * copies != len(numbers):
        return None
    primitive = np.linalg.solve(matrix, cell)
    first = np.asarray(found[1]) @ primitive
    inverse = np.linalg.inv(primitive)
    mean, squared = first.copy(), 0.0
    for k, (place, number) in enumerate(zip(first, found[2], strict=True)):
        away = (positions[numbers == number] - place) @ inverse
        away = (away - np.round(away)) @ primitive
        near = np.argsort((away**2).sum(axis=1), kind="stable")[:copies]
        mean[k] += away[near].mean(axis=0)
        squared += float(((away[near] - away[near].mean(axis=0)) ** 2).sum())
    noise = float(np.sqrt(squared / len(numbers)))
    return _Folded(np.asarray(found[2]), mean, primitive, noise) if noise < tolerance else None
