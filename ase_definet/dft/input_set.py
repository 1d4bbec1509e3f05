"""What every DFT code gets told of a structure: order, what is held, charge, spin, k-points, criteria.

Each code writes it in its own words, in its own file of this package; :mod:`ase_definet.dft.codes` has the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ase_definet.dft.incar import own_moments, starting_moments
from ase_definet.errors import InputSetError, StructureError
from ase_definet.structures.cell import VACUUM_GAP, lacking_vectors, widest_gap
from ase_definet.structures.charges import NetCharge, charge_of, is_unknown, whole_charge
from ase_definet.structures.constraints import held_axes, hold_axes
from ase_definet.structures.conversion import as_atoms
from ase_definet.structures.state import PREDICTED_STATE, Said, functional_named, state_of, wrong_parity

if TYPE_CHECKING:
    from ase_definet.dft.run_output import IonicSteps

Array: TypeAlias = NDArray[Any]

PROFILES = ("paper", "few-steps", "robust")
"""Names of the profiles, the same for every code."""
MAGNETIC = ("high-spin", "parity", "none")
"""Ways to start the spins where the atoms have no moments."""
PUBLISHED_VACUUM = 15.0
"""Vacuum of the published calculations, in Å; less is worth a warning."""
GAMMA_LENGTH = 15.0
"""A shorter cell vector asks for more than one k-point along it, in Å."""
MOST_SPACING = 2.0
"""A larger spacing of k-points is a mistake, in 1/Å."""
FORCE = 0.01
"""A relaxation ends where no force on a free atom is larger, in eV/Å."""
STEPS = 30
"""Most evaluations of the forces in one run."""
SMEARING = 0.05
"""Width of the Gaussian smearing, in eV."""
CUTOFF = 500.0
"""Plane-wave cutoff where one suits all elements, in eV."""

_SMALL = 1e-6
_ASSIGNMENT = re.compile(r"\s*([A-Za-z][\w/()-]*)\s*=\s*(\S.*?)\s*", re.DOTALL)


@dataclass(frozen=True, eq=False)
class InputSet:
    """What every code gets told.

    Attributes:
        atoms: In the caller's order, periodic along all axes, held by FixAtoms and FixCartesian or not at all; its
            initial moments are those to start from, and it has no other properties.
        charge: Net charge, in e.
        charge_note: Notice about the charge for the user, or empty.
        spin: Whether spins are polarised.
        multiplicity: Spin multiplicity to hold; None where the code is to find the total moment.
        own_moments: Whether the moments are the caller's own.
        grid: Number of k-points along each axis, Γ-centred.
        gaps: Width in Å of the largest empty layer across each axis.
        vacuum: Axes along which there is vacuum.
        profile: One of :data:`PROFILES`.
        dipole: Whether to correct the dipole along the vacuum.
        library: Folder of pseudopotentials, basis sets or species defaults; None for the code's usual place.
        settings: The user's own, which replace or extend those of the code; keys as the code names them.
        warnings: Reasons to look twice.
    """

    atoms: Atoms
    charge: int
    charge_note: str
    spin: bool
    multiplicity: int | None
    own_moments: bool
    grid: tuple[int, int, int]
    gaps: tuple[float, float, float]
    vacuum: tuple[int, ...]
    profile: str
    dipole: bool = False
    library: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def careful(self) -> bool:
        """Whether symmetry is not used: everywhere but in the published settings."""
        return self.profile != "paper"

    @property
    def unpaired(self) -> int | None:
        """Number of unpaired electrons to hold, None where the code is to find it."""
        return None if self.multiplicity is None else self.multiplicity - 1

    @property
    def species(self) -> list[str]:
        """Elements, in the order in which they first come."""
        return list(dict.fromkeys(self.atoms.get_chemical_symbols()))

    @property
    def held(self) -> Array:
        """Which atoms must not move along which Cartesian axes, shape ``(n_atoms, 3)``."""
        return held_axes(self.atoms)[0]

    @property
    def gamma(self) -> bool:
        """Whether Γ is the only k-point."""
        return self.grid == (1, 1, 1)

    @property
    def starts_without_moments(self) -> bool:
        """Whether spins are polarised, but nothing makes the code find a moment."""
        moments = self.atoms.get_initial_magnetic_moments()
        return self.spin and self.unpaired is None and not moments.any()

    def axis_of_vacuum(self) -> int:
        """Return the one vacuum axis along which a dipole is corrected.

        Raises:
            InputSetError: There are none or several, or the cell is charged.
        """
        if len(self.vacuum) != 1:
            found = ", ".join(f"{width:.1f}" for width in self.gaps)
            raise InputSetError(
                f"The dipole correction needs exactly one vacuum axis (a gap of {VACUUM_GAP:g} Å or more); the gaps "
                f"along a, b, c are {found} Å. Leave dipole out."
            )
        if self.charge:
            raise InputSetError("The dipole correction is for neutral layers only; leave dipole out.")
        return self.vacuum[0]

    def across(self) -> int:
        """Return the Cartesian axis along which the one vacuum lies, which the other vectors must be normal to.

        Raises:
            InputSetError: As of :meth:`axis_of_vacuum`, or the vacuum lies along no Cartesian axis.
        """
        axis = self.axis_of_vacuum()
        along = _cartesian(np.asarray(self.atoms.cell), axis)
        if along is None:
            raise InputSetError(
                f"The dipole correction needs the vacuum ({'abc'[axis]}) along x, y or z and the layer normal to it; "
                "rotate the cell, or leave dipole out."
            )
        return along

    def with_warnings(self, texts: Iterable[str]) -> InputSet:
        """Return the same with more warnings."""
        return replace(self, warnings=(*self.warnings, *texts))


def override(values: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Put the user's settings among those of a code.

    Args:
        values: What the code is told, changed in place.
        settings: The user's own, in the code's keys and as its values.

    Returns:
        For each of the user's settings, what it replaced (None: nothing), and the new value.
    """
    overridden = {key: (values.get(key), value) for key, value in settings.items()}
    values.update(settings)
    return overridden


def by_components(title: str, limit: str) -> str:
    """Return the note on a code that compares components of forces with its limit."""
    return f"{title} compares each component of the forces with {limit}, not their length as VASP does."


@dataclass(frozen=True, eq=False)
class Files:
    """What a code's input set consists of.

    Attributes:
        texts: The text of every file but README.txt, by name.
        run: How to run it, a line of the shell.
        notes: What to know about it, for README.txt.
        warnings: Reasons to look twice, beside those of the :class:`InputSet`.
        overridden: For each of the user's settings, what it replaced (None: nothing), and the new value.
        multiplicity: Spin multiplicity that the code holds though nobody asked for one, None where it holds none.
    """

    texts: Mapping[str, str]
    run: str
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    overridden: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    multiplicity: int | None = None


@dataclass(frozen=True)
class Code:
    """One DFT code.

    Attributes:
        name: What users call it.
        title: Its name in prose.
        files: Writes an input set in the code's own words; None for VASP, which has a writer of its own.
        writes: Names of the files that it writes, README.txt aside.
        outputs: Names of what a run leaves, the most telling first; they may have wildcards.
        read_steps: Reads the ionic steps of such a file.
        banner: What its output begins with, for files of other names; empty where that says nothing.
    """

    name: str
    title: str
    files: Callable[[InputSet], Files] | None
    writes: tuple[str, ...]
    outputs: tuple[str, ...]
    read_steps: Callable[[Path], IonicSteps]
    banner: str = ""


def input_set(
    structure: object,
    code: str,
    profile: str = "few-steps",
    *,
    magnetic: str = "high-spin",
    kpoints: tuple[int, int, int] | float = (1, 1, 1),
    dipole: bool = False,
    charge: int | None = None,
    multiplicity: int | None = None,
    functional: str | None = None,
    library: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> InputSet:
    """Determine the settings of a code for a structure.

    Args:
        structure: An Atoms or a pymatgen Structure; see :func:`~ase_definet.dft.codes.write_inputs`.
        code: Name of the code in prose, for errors and warnings.
        profile: One of :data:`PROFILES`.
        magnetic: One of :data:`MAGNETIC`.
        kpoints: Γ-centred grid, or largest spacing in 1/Å.
        dipole: Whether to correct the dipole along the vacuum.
        charge: Of the cell, in e; default is what the structure says.
        multiplicity: Spin multiplicity to hold; default is what the structure says.
        functional: PBE, which is all that is written; default is what the structure says.
        library: Folder of pseudopotentials, basis sets or species defaults.
        settings: The user's own, in the code's keys.

    Raises:
        StructureError: There are no atoms, no full right-handed cell, or values that are not finite.
        InputSetError: The options contradict the structure or each other.
    """
    given = as_atoms(structure)
    check_structure(given, code)
    for name, value, known in (("profile", profile, PROFILES), ("magnetic start", magnetic, MAGNETIC)):
        if value not in known:
            raise InputSetError(f"Unknown {name} {value!r}; choose from {', '.join(known)}.")
    net = net_charge(given, charge)
    held_multiplicity = _multiplicity(given, multiplicity, functional, code)
    gaps, grid, warnings = _periodicity(given, kpoints, code)
    vacuum = tuple(axis for axis, width in enumerate(gaps) if width >= VACUUM_GAP)
    electrons = int(given.numbers.sum()) - net.value
    moments, spin, own, remarks = _moments(given, magnetic, held_multiplicity)
    if magnetic == "parity" and held_multiplicity is None:
        held_multiplicity = 1 + electrons % 2
    _check_multiplicity(held_multiplicity, electrons, net.value, spin=spin)
    atoms, dropped = _bare(given, moments)
    warnings += dropped + remarks
    asked = {"charge": charge, "functional": functional}
    warnings += other_state(given, Said(net.value, _said_multiplicity(given, multiplicity), "PBE"), asked)
    warnings += _charge_warnings(net, layered=bool(vacuum))
    return InputSet(
        atoms=atoms,
        charge=net.value,
        charge_note=net.note,
        spin=spin,
        multiplicity=held_multiplicity,
        own_moments=own,
        grid=grid,
        gaps=gaps,
        vacuum=vacuum,
        profile=profile,
        dipole=dipole,
        library=library,
        settings=dict(settings or {}),
        warnings=tuple(warnings),
    )


def _periodicity(
    atoms: Atoms, kpoints: tuple[int, int, int] | float, code: str
) -> tuple[tuple[float, float, float], tuple[int, int, int], list[str]]:
    """Return the widest gap along each axis, the grid of k-points, and what to say about both."""
    cell = np.asarray(atoms.cell)
    scaled = atoms.get_scaled_positions(wrap=False)
    a, b, c = (widest_gap(cell, scaled, axis)[0] for axis in range(3))
    vacuum = [axis for axis, width in enumerate((a, b, c)) if width >= VACUUM_GAP]
    grid, warnings = kpoint_grid(kpoints, cell, vacuum)
    warnings += gamma_warnings(grid, cell, vacuum, chosen=kpoints != (1, 1, 1))
    warnings += vacuum_warnings(atoms, (a, b, c), vacuum, code)
    return (a, b, c), (grid[0], grid[1], grid[2]), warnings


def _bare(given: Atoms, moments: Array | None) -> tuple[Atoms, list[str]]:
    """Return the atoms with nothing but moments to start from and what holds them, and what was dropped."""
    held, dropped = held_axes(given)
    dropped += ["Velocities were dropped: a relaxation has none."] if given.has("momenta") else []
    atoms = Atoms(given.get_chemical_symbols(), given.positions, cell=given.cell, pbc=True)
    if moments is not None:
        atoms.set_initial_magnetic_moments(moments)
    hold_axes(atoms, held)
    return atoms, dropped


def _charge_warnings(net: NetCharge, *, layered: bool) -> list[str]:
    """Say what a charged layer lacks, and where a charge was taken from."""
    warnings = []
    if net.value and layered:
        warnings.append(
            "Charged cell with vacuum: its energy needs an image-charge correction that the input set does not give."
        )
    if net.note:
        warnings.append(f"{net.note[0].upper()}{net.note[1:]}.")
    return warnings


def check_structure(atoms: Atoms, code: str, potentials: str = "pseudopotential or basis") -> None:
    """Refuse structures that no input file can hold."""
    if len(atoms) == 0:
        raise StructureError("Expected a structure with atoms; found none.")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(np.asarray(atoms.cell)).all()):
        raise StructureError("Positions or cell hold values that are not finite; check the prediction.")
    if (atoms.numbers == 0).any():
        raise StructureError(f"Dummy atoms (X) have no {potentials}; remove them, a vacancy is simply absent.")
    cell = np.asarray(atoms.cell)
    volume = float(np.linalg.det(cell))
    if abs(volume) < _SMALL:
        raise StructureError(f"{code} needs three independent cell vectors, {lacking_vectors(cell)}.")
    if volume < 0:
        raise StructureError(
            f"{code} needs a right-handed cell; swap two vectors: atoms.set_cell(atoms.cell[[1, 0, 2]])."
        )


def parse_settings(assignments: Iterable[str]) -> dict[str, str]:
    """Parse ``KEY=VALUE`` strings into settings of a code, values as they are written.

    Args:
        assignments: Such as ``["ecutwfc=60", "FORCE_EVAL/DFT/MGRID/CUTOFF=400"]``.

    Raises:
        InputSetError: One is no assignment, or repeats a key.

    Example:
        >>> parse_settings(["ecutwfc=60", "mixing_mode='local-TF'"])
        {'ecutwfc': '60', 'mixing_mode': "'local-TF'"}
    """
    parsed: dict[str, str] = {}
    for assignment in assignments:
        match = _ASSIGNMENT.fullmatch(assignment)
        if match is None or not assignment.replace("\t", " ").isprintable():
            raise InputSetError(f"Expected a setting as KEY=VALUE, such as ecutwfc=60; found {assignment!r}.")
        if match[1] in parsed:
            raise InputSetError(f"The setting {match[1]} is given twice; give it once.")
        parsed[match[1]] = match[2]
    return parsed


def other_state(atoms: Atoms, wanted: Said, asked: Mapping[str, Any]) -> list[str]:
    """Say so where the geometry was predicted for another state than an input set is for.

    Args:
        atoms: The structure.
        wanted: What the input set is for.
        asked: Charge and functional that were asked for, None where the structure decides.
    """
    made_for = atoms.info.get(PREDICTED_STATE)
    silent = {name for name in asked if is_unknown(atoms.info.get(name)) and asked[name] is None}
    wanted = replace(wanted, **dict.fromkeys(silent))
    if made_for is None or str(made_for) == str(wanted):
        return []
    text = (
        f"The geometry was predicted for another state ({made_for}) than this input set is for ({wanted}): relax it "
        "again for this one."
    )
    return [text]


def _said_multiplicity(atoms: Atoms, asked: int | None) -> int | None:
    return state_of(atoms).spin_multiplicity if asked is None else asked


def net_charge(atoms: Atoms, charge: object) -> NetCharge:
    """Return the charge that was asked for, else the one the atoms carry."""
    if charge is None:
        return charge_of(atoms)
    try:
        return NetCharge(whole_charge(charge, "charge"), "stated")
    except StructureError as error:
        raise InputSetError(str(error)) from error


def vacuum_warnings(atoms: Atoms, widths: Sequence[float], vacuum: Sequence[int], code: str) -> list[str]:
    """Say where the vacuum is thin or missing."""
    messages = []
    for axis, (width, periodic) in enumerate(zip(widths, atoms.pbc, strict=True)):
        if axis in vacuum and width < PUBLISHED_VACUUM:
            messages.append(f"The vacuum along {'abc'[axis]} is {width:.1f} Å; the published one is 15 Å or more.")
        elif axis not in vacuum and not periodic:
            messages.append(f"Axis {'abc'[axis]} is not periodic in ASE but is in {code}: the gap is {width:.1f} Å.")
    return messages


def kpoint_grid(
    kpoints: tuple[int, int, int] | float, cell: Array, vacuum: Sequence[int]
) -> tuple[tuple[int, ...], list[str]]:
    """Return the Γ-centred grid with one k-point along each vacuum axis, and what to say about it.

    Raises:
        InputSetError: It is neither a grid nor a spacing.
    """
    asked = np.asarray(kpoints)
    along = list(vacuum)
    if asked.ndim == 0 and asked.dtype.kind in "if" and 0 < asked <= MOST_SPACING:
        lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(cell), axis=0)
        grid = np.maximum(1, np.ceil(lengths / asked - _SMALL)).astype(int)
        grid[along] = 1
        return tuple(grid.tolist()), []
    if asked.shape != (3,) or asked.dtype.kind != "i" or (asked < 1).any():
        raise InputSetError(
            f"Expected three positive integers or a spacing of at most 2 1/Å for kpoints; found {kpoints!r}."
        )
    grid = asked.copy()
    grid[along] = 1
    changed = not np.array_equal(grid, asked)
    message = f"K-points {asked.tolist()} were reduced to {grid.tolist()}: one along the vacuum is all it needs."
    return tuple(grid.tolist()), [message] if changed else []


def gamma_warnings(grid: tuple[int, ...], cell: Array, vacuum: Sequence[int], *, chosen: bool) -> list[str]:
    """Say so where Γ alone, which nobody asked for, is little for a cell."""
    lengths = np.linalg.norm(cell, axis=1)
    short = [a for a in range(3) if a not in vacuum and grid[a] == 1 and lengths[a] < GAMMA_LENGTH]
    if chosen or not short:
        return []
    named = ", ".join(f"{'abc'[axis]} {lengths[axis]:.1f} Å" for axis in short)
    expected = f"Γ alone is meant for cells of {GAMMA_LENGTH:g} Å or more, this one has {named}"
    return [f"{expected}: give kpoints (--kpoints 2x2x1, or a spacing such as 0.25)."]


def _multiplicity(atoms: Atoms, asked: int | None, functional: str | None, code: str) -> int | None:
    """Return the spin multiplicity to hold; refuse states that these input sets do not compute."""
    try:
        state = state_of(atoms)
        wanted = state.functional if functional is None else functional_named(functional)
    except StructureError as error:
        raise InputSetError(str(error)) from error
    if wanted not in (None, "PBE"):
        raise InputSetError(
            f"{wanted} was asked for, but the input set of {code} is one for PBE: give functional PBE (--functional "
            "PBE) to relax with that."
        )
    if state.excited:
        raise InputSetError(
            f"The structure is in an excited state, but the input set of {code} is one for the ground state; delete "
            "atoms.info['excited'] to relax that."
        )
    if asked is None:
        return state.spin_multiplicity
    if isinstance(asked, bool) or int(asked) != asked or asked < 1:
        raise InputSetError(f"Expected a spin multiplicity of 1 or more, a whole number; found {asked!r}.")
    return int(asked)


def _check_multiplicity(multiplicity: int | None, electrons: int, charge: int, *, spin: bool) -> None:
    """Refuse a multiplicity that these electrons cannot have."""
    if electrons < 0:
        raise InputSetError(f"A charge of {charge:+d} e leaves no electrons; check the charge.")
    if multiplicity is None:
        return
    if multiplicity > 1 and not spin:
        raise InputSetError(
            f"A spin multiplicity of {multiplicity} needs polarised spins, but magnetic is 'none': give high-spin or "
            "parity."
        )
    problem = wrong_parity(multiplicity, electrons, charge)
    if problem is None and multiplicity > electrons + 1:
        problem = f"{electrons} electrons cannot have a spin multiplicity of {multiplicity}; check it"
    if problem is not None:
        raise InputSetError(problem)


def _moments(atoms: Atoms, magnetic: str, multiplicity: int | None) -> tuple[Array | None, bool, bool, list[str]]:
    """Return moments to start from, whether spins are polarised, whether these are the atoms' own, and remarks."""
    own, found = own_moments(atoms)
    remarks = ["The moments to start from are those that the atoms' calculator found."] if found else []
    if magnetic == "none":
        lost = own is not None and bool(own.any())
        return None, False, False, ["The atoms' initial magnetic moments were ignored: magnetic is 'none'."] * lost
    if own is not None and own.ndim > 1:
        raise InputSetError("Expected collinear moments, one number per atom; found vectors: set one for each atom.")
    if own is None and multiplicity == 1:
        return None, False, False, []  # without moments to start from, a singlet stays closed in every code
    if own is None:
        return starting_moments(atoms.numbers, magnetic), True, False, []
    if not own.any():
        remarks.append(
            "All initial magnetic moments of the atoms are 0, which is what the run starts from: it may find no spin."
        )
    return own, True, True, remarks


def _cartesian(cell: Array, axis: int) -> int | None:
    """Return the Cartesian axis that a cell vector follows and the others are normal to, None where there is none."""
    along = int(np.abs(cell[axis]).argmax())
    rest = np.delete(cell[axis], along)
    others = np.delete(cell, axis, axis=0)[:, along]
    tolerance = _SMALL * float(np.abs(cell).max())
    return along if np.abs(rest).max() < tolerance and np.abs(others).max() < tolerance else None


def follows_z(cell: Array, axis: int) -> bool:
    """Return whether a cell vector is the third one, lies along z, and the other two are normal to it."""
    return axis == 2 and _cartesian(cell, axis) == 2  # noqa: PLR2004
