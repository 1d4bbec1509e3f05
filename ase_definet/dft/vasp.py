"""VASP input sets that finish what the network began.

Only pymatgen's file writers are used, imported when first needed; the network and torch are not known here.
"""

from __future__ import annotations

import json
import os
import warnings as python_warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ase_definet.dft import incar as incar_tags
from ase_definet.dft.incar import (
    CALCULATED_MOMENTS,
    FUNCTIONAL,
    HIGH_SPIN_MOMENT,
    LOW_SPIN_MOMENT,
    PROFILES,
    UNIT_MOMENT,
    Magnetic,
    Profile,
    parse_incar_overrides,
)
from ase_definet.dft.incar_rules import Planned, broken_rules
from ase_definet.errors import DefiNetWarning, InputSetError, StructureError
from ase_definet.structures.cell import VACUUM_GAP, lacking_vectors, widest_gap
from ase_definet.structures.charges import NetCharge, charge_of, whole_charge
from ase_definet.structures.constraints import held_directions
from ase_definet.structures.conversion import as_atoms
from ase_definet.structures.files import write_set

__all__ = [
    "FORCE_LIMIT",
    "FUNCTIONAL",
    "HIGH_SPIN_MOMENT",
    "LOW_SPIN_MOMENT",
    "ORDER_FILE",
    "PROFILES",
    "PUBLISHED_VACUUM",
    "UNIT_MOMENT",
    "VACUUM_GAP",
    "InputSetReport",
    "Magnetic",
    "Profile",
    "parse_incar_overrides",
    "restore_order",
    "write_vasp_inputs",
]

PUBLISHED_VACUUM = 15.0
"""Vacuum of the published calculations, in Å; less is worth a warning."""
GAMMA_LENGTH = 15.0
"""A shorter cell vector asks for more than one k-point along it, in Å."""
FORCE_LIMIT = 0.5
"""A first-step largest force above this, in eV/Å, sends IBRION = 1 astray."""
ORDER_FILE = "site_order.json"
"""Holds the permutation of the sites, where there is one."""

MOST_SPACING = 2.0
"""A larger spacing of k-points is a mistake, in 1/Å."""

_SMALL = 1e-6
_ORIGINS: dict[bool | None, str] = {
    True: "Geometry predicted by DefiNet in one forward pass; VASP is to finish it.",
    False: "Control run: atoms on the host's sites, nothing predicted. Count its steps beside the prediction's.",
    None: "Input set for the structure as given; nothing says that it was predicted.",
}
_PROVENANCE = {
    "model": "weights",
    "model_hash": "hash",
    "host": "host",
    "defects": "defects",
    "version": "ase-definet",
}


@dataclass(frozen=True)
class InputSetReport:
    """What :func:`write_vasp_inputs` wrote.

    Attributes:
        directory: Where the files are.
        files: Names of the files written.
        incar: The INCAR as written.
        overridden: For each overridden tag, the value of the profile (None where it had none) and yours.
        warnings: Reasons to look twice; also in README.txt.
    """

    directory: Path
    files: tuple[str, ...]
    incar: dict[str, Any]
    overridden: dict[str, tuple[Any, Any]]
    warnings: tuple[str, ...]


def write_vasp_inputs(
    structure: object,
    directory: str | os.PathLike[str],
    profile: Profile = "few-steps",
    *,
    incar: Mapping[str, Any] | None = None,
    magnetic: Magnetic = "high-spin",
    kpoints: tuple[int, int, int] | float = (1, 1, 1),
    dipole: bool = False,
    charge: int | None = None,
    large_cell: bool = False,
    notes: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    predicted: bool | None = None,
    overwrite: bool = False,
) -> InputSetReport:
    """Write POSCAR, INCAR, KPOINTS, POTCAR.spec and README.txt, and POTCAR where pymatgen knows a library.

    The atoms keep their order and are not wrapped. Only where a species comes in several blocks are the sites
    sorted by species; ``site_order.json`` then holds the permutation and :func:`restore_order` undoes it.

    Args:
        structure: Predicted structure, an Atoms or a pymatgen Structure, with a full, right-handed cell. FixAtoms,
            FixScaled and, where the cell allows it, FixCartesian, FixedPlane and FixedLine become selective dynamics;
            others are named as dropped.
        directory: Where to write; made if it does not exist.
        profile: Key of :data:`PROFILES`: ``few-steps`` (RMM-DIIS, for a good start), ``robust`` (conjugate
            gradients) or ``paper`` (the published settings).
        incar: Tags that replace or extend those of the profile, checked against each other and the other files. A
            MAGMOM here is in the order of POSCAR; it, LDAUU and the like may be given by element (``{"Mo": 4}``).
        magnetic: Ferromagnetic ``high-spin`` start as published; ``parity`` of the electron count (NUPDOWN 0
            or 1); or ``none``. Moments of the atoms take precedence as MAGMOM, in μB: initial ones, else those that
            a calculator found. Vectors need LNONCOLLINEAR or LSORBIT in ``incar``.
        kpoints: Γ-centred grid, or largest spacing of k-points in Å⁻¹ (2π included, as KSPACING).
            Vacuum axes always get one k-point.
        dipole: Whether to correct the dipole along the one vacuum axis; for neutral, asymmetric slabs.
        charge: Charge of the cell, a whole number in units of e (+1 is one electron fewer); sets NELECT. Default is
            the charge the atoms carry: see :func:`~ase_definet.structures.charges.charge_of`. A DefiNetWarning and
            README.txt name one that nobody stated.
        large_cell: Whether to project in real space (LREAL = Auto).
        notes: Lines to add to README.txt.
        provenance: What made the prediction, for README.txt: any of ``model``, ``model_hash``, ``host``,
            ``defects``, ``version``. Default is what the relaxer left in ``atoms.info``, its warnings included.
        predicted: Whether README.txt calls the structure a prediction (True) or the control run from the host's sites
            (False). Default is a prediction where the provenance says what made it, else a structure as it was given.
        overwrite: Whether files in the way may be replaced.

    Returns:
        What was written.

    Raises:
        StructureError: If there are no atoms, no full right-handed cell, or values that are not finite.
        InputSetError: If the options contradict the structure or each other.
        OutputExistsError: If a file is in the way.
    """
    target = Path(directory).resolve()
    atoms = as_atoms(structure)
    _check_structure(atoms)
    if provenance is None:
        prefix = "definet_"
        provenance = {k.removeprefix(prefix): str(v) for k, v in atoms.info.items() if str(k).startswith(prefix)}
        notes = [*notes, *filter(None, [provenance.pop("warnings", "")])]
    if profile not in PROFILES:
        raise InputSetError(f"Unknown profile {profile!r}; choose from {', '.join(PROFILES)}.")
    net = _net_charge(atoms, charge)
    cell, scaled = np.asarray(atoms.cell), atoms.get_scaled_positions(wrap=False)
    order = _poscar_order(atoms.numbers)
    gaps = [widest_gap(cell, scaled, axis) for axis in range(3)]
    vacuum = [axis for axis, (width, _) in enumerate(gaps) if width >= VACUUM_GAP]

    grid, warnings = _kpoint_grid(kpoints, cell, vacuum)
    warnings += _gamma_warnings(grid, cell, vacuum, chosen=kpoints != (1, 1, 1))
    held, dropped = held_directions(atoms)
    dropped += ["Velocities were dropped: a relaxation has none."] if atoms.has("momenta") else []
    warnings += dropped + _vacuum_warnings(atoms, [width for width, _ in gaps], vacuum)
    symbols = np.asarray(atoms.get_chemical_symbols())[order].tolist()
    potcar_symbols = incar_tags.potcar_symbols(list(dict.fromkeys(symbols)))
    potcars, problems = incar_tags.library_potcars(potcar_symbols)
    warnings += problems

    given = incar_tags.named(incar or {})
    overrides = incar_tags.expanded(given, symbols)
    electrons = _Electrons(symbols, potcar_symbols, potcars)
    tags = dict(PROFILES[profile]) | ({"LREAL": "Auto"} if large_cell else {})
    tags |= _electron_tags(net.value, magnetic, electrons, overrides)
    spin, ignored = incar_tags.spin_tags(atoms, magnetic, order, overrides)
    if "MAGMOM" in spin and isinstance(structure, Atoms) and not structure.has("initial_magmoms"):
        ignored += [CALCULATED_MOMENTS] if atoms.has("initial_magmoms") else []
    if {"LNONCOLLINEAR", "LSORBIT"} & set(overrides) and "ISPIN" not in spin:
        del tags["ISPIN"]  # it has no effect on vectors
    tags |= spin | (incar_tags.dipole_tags(atoms, gaps, vacuum, net.value) if dipole else {})
    planned = Planned(
        tags | overrides,
        overridden=frozenset(overrides),
        by_element=frozenset(tag for tag, value in given.items() if isinstance(value, Mapping)),
        symbols=tuple(symbols),
        reordered=not np.array_equal(order, np.arange(len(atoms))),
        grid=grid,
        vacuum=tuple(vacuum),
        charge=net.value,
        neutral=electrons.known,
        enmax=incar_tags.largest_enmax(potcars),
        present=frozenset(path.name for path in target.iterdir()) if target.is_dir() else frozenset(),
        dipole=dipole,
        large_cell=large_cell,
    )
    warnings += ignored + _charge_warnings(net, planned) + broken_rules(planned)

    written, overridden, doubts = incar_tags.final_incar(
        tags, overrides, _own_tags(tags, profile, net.value, magnetic, electrons, atoms, order)
    )
    warnings += doubts
    if not potcars and (target / "POTCAR").exists():
        warnings.append(f"The POTCAR already here was left as it is: it must list {' '.join(potcar_symbols)}.")
    files = {
        "POSCAR": _poscar(atoms, scaled, order, ~held),
        "INCAR": str(written),
        "KPOINTS": _kpoints_file(grid),
        "POTCAR.spec": "\n".join(potcar_symbols) + "\n",
    }
    if potcars:
        files["POTCAR"] = "".join(str(potcar).strip("\n") + "\n" for potcar in potcars)
    if planned.reordered:
        files[ORDER_FILE] = json.dumps({"poscar_to_input": order.tolist()}) + "\n"
    files["README.txt"] = _readme(
        profile,
        files,
        potcar_symbols,
        overridden=overridden,
        notes=notes,
        provenance=provenance or {},
        warnings=warnings,
        predicted=True if predicted is None and provenance else predicted,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_set(target, files, overwrite=overwrite, stale=[ORDER_FILE])
    return InputSetReport(target, tuple(files), dict(written), overridden, tuple(warnings))


def restore_order(atoms: Atoms, directory: str | os.PathLike[str]) -> Atoms:
    """Return atoms read from VASP's files in the order they had before :func:`write_vasp_inputs`.

    Args:
        atoms: Structure in the order of POSCAR, such as ``ase.io.read("CONTCAR")``.
        directory: Where the input set was written.

    Returns:
        A copy in the input order; the order of POSCAR itself where there is no ``site_order.json``.

    Raises:
        InputSetError: If ``site_order.json`` is not a permutation of these atoms.
    """
    path = Path(directory) / ORDER_FILE
    if not path.exists():
        return atoms.copy()
    try:
        order = np.asarray(json.loads(path.read_text(encoding="utf-8"))["poscar_to_input"], dtype=int)
    except (ValueError, KeyError, TypeError) as error:
        raise InputSetError(f"{path} does not hold a list 'poscar_to_input'; write the input set again.") from error
    if not np.array_equal(np.sort(order), np.arange(len(atoms))):
        raise InputSetError(
            f"{path} orders {order.size} sites, not these {len(atoms)} atoms; use the directory's own."
        )
    return atoms[np.argsort(order)]


def _check_structure(atoms: Atoms) -> None:
    """Refuse structures that no POSCAR can hold."""
    if len(atoms) == 0:
        raise StructureError("Expected a structure with atoms; found none.")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(np.asarray(atoms.cell)).all()):
        raise StructureError("Positions or cell hold values that are not finite; check the prediction.")
    if (atoms.numbers == 0).any():
        raise StructureError("Dummy atoms (X) have no POTCAR; remove them, a vacancy is simply absent.")
    cell = np.asarray(atoms.cell)
    volume = float(np.linalg.det(cell))
    if abs(volume) < _SMALL:
        raise StructureError(f"VASP needs three independent cell vectors, {lacking_vectors(cell)}.")
    if volume < 0:
        raise StructureError(
            "VASP needs a right-handed cell; swap two vectors: atoms.set_cell(atoms.cell[[1, 0, 2]])."
        )


def _poscar_order(numbers: np.ndarray) -> np.ndarray:
    """Return the input index of each POSCAR site, shape ``(n_atoms,)``: one block per species, stable."""
    species, first = np.unique(numbers, return_index=True)
    if 1 + np.count_nonzero(np.diff(numbers)) == len(species):
        return np.arange(len(numbers))
    return np.argsort(first[np.searchsorted(species, numbers)], kind="stable")


def _vacuum_warnings(atoms: Atoms, widths: list[float], vacuum: list[int]) -> list[str]:
    """Say where the vacuum is thin or missing."""
    messages = []
    for axis, (width, periodic) in enumerate(zip(widths, atoms.pbc, strict=True)):
        if axis in vacuum and width < PUBLISHED_VACUUM:
            messages.append(f"The vacuum along {'abc'[axis]} is {width:.1f} Å; the published one is 15 Å or more.")
        elif axis not in vacuum and not periodic:
            messages.append(f"Axis {'abc'[axis]} is not periodic in ASE but is in VASP: the gap is {width:.1f} Å.")
    return messages


def _kpoint_grid(
    kpoints: tuple[int, int, int] | float, cell: np.ndarray, vacuum: list[int]
) -> tuple[tuple[int, ...], list[str]]:
    """Return the Γ-centred grid with one k-point along each vacuum axis."""
    asked = np.asarray(kpoints)
    if asked.ndim == 0 and asked.dtype.kind in "if" and 0 < asked <= MOST_SPACING:
        lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(cell), axis=0)
        grid = np.maximum(1, np.ceil(lengths / asked - _SMALL)).astype(int)
        grid[vacuum] = 1
        return tuple(grid.tolist()), []
    if asked.shape != (3,) or asked.dtype.kind != "i" or (asked < 1).any():
        raise InputSetError(
            f"Expected three positive integers or a spacing of at most 2 1/Å for kpoints; found {kpoints!r}."
        )
    grid = asked.copy()
    grid[vacuum] = 1
    changed = not np.array_equal(grid, asked)
    message = f"K-points {asked.tolist()} were reduced to {grid.tolist()}: one along the vacuum is all it needs."
    return tuple(grid.tolist()), [message] if changed else []


def _gamma_warnings(grid: tuple[int, ...], cell: np.ndarray, vacuum: list[int], *, chosen: bool) -> list[str]:
    """Say so where Γ alone, which nobody asked for, is little for a cell."""
    lengths = np.linalg.norm(cell, axis=1)
    short = [a for a in range(3) if a not in vacuum and grid[a] == 1 and lengths[a] < GAMMA_LENGTH]
    if chosen or not short:
        return []
    named = ", ".join(f"{'abc'[axis]} {lengths[axis]:.1f} Å" for axis in short)
    expected = f"Γ alone is meant for cells of {GAMMA_LENGTH:g} Å or more, this one has {named}"
    return [f"{expected}: give kpoints (--kpoints 2x2x1, or a spacing such as 0.25)."]


def _net_charge(atoms: Atoms, charge: object) -> NetCharge:
    """Return the charge that was asked for, else the one the atoms carry; one that nobody stated is a warning."""
    if charge is not None:
        try:
            return NetCharge(whole_charge(charge, "charge"), "stated")
        except StructureError as error:
            raise InputSetError(str(error)) from error
    net = charge_of(atoms)
    if net.note:
        python_warnings.warn(net.note, DefiNetWarning, stacklevel=3)
    return net


@dataclass(frozen=True, eq=False)
class _Electrons:
    """Valence electrons of the neutral cell, looked up when they are first needed."""

    symbols: list[str]
    potcar_symbols: list[str]
    potcars: list[Any]

    @cached_property
    def neutral(self) -> float:
        """Their number; an InputSetError where it is not known."""
        species = dict.fromkeys(self.symbols)
        valence = incar_tags.valence_electrons(self.potcar_symbols, self.potcars)
        each = dict(zip(species, valence, strict=True))
        return sum(each[symbol] for symbol in self.symbols)

    def known(self) -> float | None:
        """Return their number, None where it is not known."""
        try:
            return self.neutral
        except InputSetError:
            return None


def _electron_tags(charge: int, magnetic: str, electrons: _Electrons, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return NELECT of a charged cell, and NUPDOWN where the parity of the electrons decides."""
    if not charge and magnetic != "parity":
        return {}
    number = overrides["NELECT"] if "NELECT" in overrides else electrons.neutral - charge
    tags = {"NELECT": number} if charge else {}
    return tags | ({"NUPDOWN": round(number) % 2} if magnetic == "parity" else {})


def _own_tags(
    shaped: Mapping[str, Any],
    profile: str,
    charge: int,
    magnetic: str,
    electrons: _Electrons,
    atoms: Atoms,
    order: np.ndarray,
) -> dict[str, Any]:
    """Return the tags of an input set as they would be without overrides, which have shaped some of them.

    Where they need an override (the valence electrons are unknown, moments are vectors), they are left out.
    """
    tags = {tag: value for tag, value in shaped.items() if tag not in {"NELECT", "NUPDOWN"}}
    tags["ISPIN"] = PROFILES[profile]["ISPIN"]
    parts: list[Callable[[], dict[str, Any]]] = [
        lambda: _electron_tags(charge, magnetic, electrons, {}),
        lambda: incar_tags.spin_tags(atoms, magnetic, order, {})[0],
    ]
    for part in parts:
        with suppress(InputSetError):
            tags |= part()
    return tags


def _charge_warnings(net: NetCharge, planned: Planned) -> list[str]:
    """Say where a charge comes from, and what a charged layer needs."""
    messages = [f"{net.note[0].upper()}{net.note[1:]}."] if net.note else []
    if abs(planned.implied_charge) > _SMALL and planned.vacuum:
        messages.append(
            "Charged cell with vacuum: its energy needs an image-charge correction that no tag written here gives "
            "(correct it afterwards, or see KERNEL_TRUNCATION of VASP 6.5 and later)."
        )
    return messages


def _poscar(atoms: Atoms, scaled: np.ndarray, order: np.ndarray, free: np.ndarray) -> str:
    """Return the text of POSCAR, with selective dynamics where anything is fixed."""
    from pymatgen.core import Lattice, Structure  # noqa: PLC0415 - slow to import
    from pymatgen.io.vasp.inputs import Poscar  # noqa: PLC0415 - slow to import

    symbols = [atoms.symbols[index] for index in order]
    structure = Structure(Lattice(np.asarray(atoms.cell)), symbols, scaled[order], to_unit_cell=False)
    return str(Poscar(structure, selective_dynamics=free[order]).get_str())


def _kpoints_file(grid: tuple[int, ...]) -> str:
    """Return the text of KPOINTS."""
    from pymatgen.io.vasp.inputs import Kpoints  # noqa: PLC0415 - slow to import

    return str(Kpoints.gamma_automatic(grid)).rstrip("\n") + "\n"


def _readme(
    profile: str,
    files: Mapping[str, str],
    potcar_symbols: list[str],
    *,
    overridden: Mapping[str, tuple[Any, Any]],
    notes: Sequence[str],
    provenance: Mapping[str, str],
    warnings: Sequence[str],
    predicted: bool | None,
) -> str:
    """Return the text of README.txt."""
    lines = [_ORIGINS[predicted]]
    lines += [f"  {name}: {provenance[key]}" for key, name in _PROVENANCE.items() if key in provenance]
    lines += [f"  {key}: {value}" for key, value in provenance.items() if key not in _PROVENANCE]
    lines.append(f"Profile {profile}." + (" Overridden:" if overridden else ""))
    lines += [f"  {tag} = {new} (was {'unset' if old is None else old})" for tag, (old, new) in overridden.items()]
    lines.append(f"POTCAR: {' '.join(potcar_symbols)}, release {FUNCTIONAL}, in this order.")
    if "POTCAR" not in files:
        lines.append("  Not included (licence): build it from your library as POTCAR.spec lists it.")
    worse = "write the set again with profile robust" if profile == "few-steps" else "distrust the prediction"
    if predicted is None and profile == "few-steps":
        lines.append("Profile few-steps is for a start close to the minimum; from anywhere else take robust.")
    if predicted:
        lines += [
            f"Check after step 1: if the largest force exceeds {FORCE_LIMIT} eV/Å, {worse}:",
            "  from ase.io import read; print((read('OUTCAR', index=0).get_forces() ** 2).sum(axis=1).max() ** 0.5)",
        ]
    runs = "." if predicted is None else "--control CONTROL PREDICTION"
    lines += [
        f"Count the ionic steps: ase-definet count-steps {runs}",
        "If NSW steps do not suffice: cp CONTCAR POSCAR and run again.",
    ]
    if ORDER_FILE in files:
        lines += [
            f"The sites were sorted by species ({ORDER_FILE}). Take the result back in your own order:",
            "  from ase.io import read; from ase_definet.dft.vasp import restore_order",
            "  relaxed = restore_order(read('CONTCAR'), '.')",
        ]
    else:
        lines.append("Take the result back, in your own order: from ase.io import read; relaxed = read('CONTCAR')")
    lines += [f"Note: {note}" for note in notes] + [f"Warning: {warning}" for warning in warnings]
    return "\n".join(lines) + "\n"
