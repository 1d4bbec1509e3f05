"""VASP settings for a structure, determined before any file is written: order, k-points, INCAR, potentials."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ase_definet.dft import incar as incar_tags
from ase_definet.dft.incar import CALCULATED_MOMENTS, FUNCTIONAL_TAGS, PROFILES
from ase_definet.dft.incar_rules import Planned, broken_rules
from ase_definet.dft.input_set import (
    check_structure,
    gamma_warnings,
    kpoint_grid,
    net_charge,
    other_state,
    vacuum_warnings,
)
from ase_definet.errors import InputSetError, StructureError
from ase_definet.structures.cell import VACUUM_GAP, widest_gap
from ase_definet.structures.charges import NetCharge
from ase_definet.structures.constraints import held_directions
from ase_definet.structures.conversion import as_atoms
from ase_definet.structures.state import Said, said_of

Array: TypeAlias = NDArray[Any]

ORDER_FILE = "site_order.json"
"""Holds the permutation of the sites, where there is one."""

_SMALL = 1e-6


@dataclass(frozen=True)
class Options:
    """What the user chose; see :func:`~ase_definet.dft.vasp.write_vasp_inputs`.

    Attributes:
        profile: Key of :data:`~ase_definet.dft.incar.PROFILES`.
        incar: Tags that replace or extend those of the profile.
        magnetic: ``high-spin``, ``parity`` or ``none``.
        kpoints: Γ-centred grid, or largest spacing in 1/Å.
        dipole: Whether to correct the dipole along the vacuum.
        charge: Of the cell, in e; None for what the structure carries.
        structure_charge: Whether the charge that the structure carries counts; else it is taken as neutral.
        spin_multiplicity: Unpaired electrons plus one; None for what the structure carries.
        functional: Its name; None for what the structure carries, or PBE.
        large_cell: Whether to project in real space.
    """

    profile: str = "few-steps"
    incar: Mapping[str, Any] = field(default_factory=dict)
    magnetic: str = "high-spin"
    kpoints: tuple[int, int, int] | float = (1, 1, 1)
    dipole: bool = False
    charge: int | None = None
    structure_charge: bool = True
    spin_multiplicity: int | None = None
    functional: str | None = None
    large_cell: bool = False


@dataclass(frozen=True, eq=False)
class Sites:
    """A structure as POSCAR lists it.

    Attributes:
        atoms: In the caller's order.
        scaled: Fractional positions in the caller's order, not wrapped, shape ``(n_atoms, 3)``.
        order: Input index of each POSCAR site, shape ``(n_atoms,)``.
        symbols: Element of each POSCAR site.
        gaps: Width in Å and fractional centre of the largest empty layer across each axis.
        vacuum: Axes along which there is vacuum.
    """

    atoms: Atoms
    scaled: Array
    order: Array
    symbols: list[str]
    gaps: list[tuple[float, float]]
    vacuum: list[int]

    @classmethod
    def of(cls, atoms: Atoms) -> Sites:
        """Sort the sites of a structure by species, where they are not, and find its vacuum."""
        cell, scaled = np.asarray(atoms.cell), atoms.get_scaled_positions(wrap=False)
        order = poscar_order(atoms.numbers)
        gaps = [widest_gap(cell, scaled, axis) for axis in range(3)]
        vacuum = [axis for axis, (width, _) in enumerate(gaps) if width >= VACUUM_GAP]
        return cls(atoms, scaled, order, np.asarray(atoms.get_chemical_symbols())[order].tolist(), gaps, vacuum)

    @property
    def reordered(self) -> bool:
        """Whether the order is another one than the caller's."""
        return not np.array_equal(self.order, np.arange(len(self.order)))


@dataclass(frozen=True, eq=False)
class InputPlan:
    """The contents of VASP's input files.

    Attributes:
        sites: The structure as POSCAR lists it.
        free: Which coordinates move, in the caller's order, shape ``(n_atoms, 3)``.
        grid: Number of k-points along each axis, Γ-centred.
        incar: The INCAR, a pymatgen object.
        overridden: For each overridden tag, the value of the profile (None where it had none) and the user's.
        potcar_symbols: One for each species, in the order of POSCAR.
        potcars: The same from the user's library, as pymatgen objects; none where it lacks one.
        charge: Of the cell, and where it is from.
        spin_multiplicity: Of the cell, None where nobody says.
        functional: The one that was asked for.
        warnings: Reasons to look twice.
    """

    sites: Sites
    free: Array
    grid: tuple[int, ...]
    incar: Any
    overridden: Mapping[str, tuple[Any, Any]]
    potcar_symbols: list[str]
    potcars: list[Any]
    charge: NetCharge
    spin_multiplicity: int | None
    functional: str
    warnings: tuple[str, ...]

    @property
    def written_functional(self) -> str:
        """The functional of the INCAR: the one asked for, where it is known how to write it, else PBE."""
        return self.functional if self.functional in FUNCTIONAL_TAGS else "PBE"

    @property
    def state(self) -> Said:
        """What the input set is for."""
        return Said(self.charge.value, self.spin_multiplicity, self.written_functional)

    def poscar(self) -> Any:
        """Return pymatgen's Poscar, with selective dynamics where anything is fixed."""
        from pymatgen.core import Lattice, Structure  # noqa: PLC0415 - slow to import
        from pymatgen.io.vasp.inputs import Poscar  # noqa: PLC0415 - slow to import

        sites = self.sites
        cell = Lattice(np.asarray(sites.atoms.cell))
        structure = Structure(cell, sites.symbols, sites.scaled[sites.order], to_unit_cell=False)
        comment = None if self.state.ordinary else f"{structure.formula}; {self.state}"
        return Poscar(structure, comment=comment, selective_dynamics=self.free[sites.order])

    def kpoints(self) -> Any:
        """Return pymatgen's Kpoints."""
        from pymatgen.io.vasp.inputs import Kpoints  # noqa: PLC0415 - slow to import

        return Kpoints.gamma_automatic(self.grid)

    def site_order(self) -> str | None:
        """Return the text of :data:`ORDER_FILE`, None where the sites are in the caller's order."""
        if not self.sites.reordered:
            return None
        return json.dumps({"poscar_to_input": self.sites.order.tolist()}) + "\n"

    def files(self) -> dict[str, str]:
        """Return the text of every file but README.txt, by name."""
        files = {
            "POSCAR": str(self.poscar().get_str()),
            "INCAR": str(self.incar),
            "KPOINTS": str(self.kpoints()).rstrip("\n") + "\n",
            "POTCAR.spec": "\n".join(self.potcar_symbols) + "\n",
        }
        if self.potcars:
            files["POTCAR"] = "".join(str(potcar).strip("\n") + "\n" for potcar in self.potcars)
        order = self.site_order()
        return files | ({} if order is None else {ORDER_FILE: order})


def plan_inputs(structure: object, options: Options, present: frozenset[str] = frozenset()) -> InputPlan:
    """Determine the contents of VASP's input files.

    Args:
        structure: An Atoms or a pymatgen Structure, with a full, right-handed cell.
        options: What the user chose.
        present: Names of the files already in the folder.

    Raises:
        StructureError: If there are no atoms, no full right-handed cell, or values that are not finite.
        InputSetError: If the options contradict the structure or each other.
    """
    atoms = as_atoms(structure)
    check_structure(atoms, "VASP", "POTCAR")
    if options.profile not in PROFILES:
        raise InputSetError(f"Unknown profile {options.profile!r}; choose from {', '.join(PROFILES)}.")
    uncharged = options.charge is None and not options.structure_charge
    net = NetCharge(0) if uncharged else net_charge(atoms, options.charge)
    multiplicity, functional, remarks = _spin_and_functional(atoms, options)
    sites = Sites.of(atoms)
    grid, warnings = kpoint_grid(options.kpoints, np.asarray(atoms.cell), sites.vacuum)
    warnings += gamma_warnings(grid, np.asarray(atoms.cell), sites.vacuum, chosen=options.kpoints != (1, 1, 1))
    held, dropped = held_directions(atoms)
    dropped += ["Velocities were dropped: a relaxation has none."] if atoms.has("momenta") else []
    warnings += dropped + vacuum_warnings(atoms, [width for width, _ in sites.gaps], sites.vacuum, "VASP")
    potcar_symbols = incar_tags.potcar_symbols(list(dict.fromkeys(sites.symbols)))
    potcars, problems = incar_tags.library_potcars(potcar_symbols)
    warnings += problems + remarks
    electrons = _Electrons(sites.symbols, potcar_symbols, potcars)
    # a Structure has no initial moments but those of its sites: nothing to be said of where they are from
    started = not isinstance(structure, Atoms) or structure.has("initial_magmoms")
    # what nobody asked for is filled in from the structure, so that the rest is told one thing
    given, options = options, replace(options, spin_multiplicity=multiplicity, functional=functional)
    written, overridden, remarks = _incar(
        sites, options, net, grid, electrons, present, calculated=atoms.has("initial_magmoms") and not started
    )
    warnings += remarks
    if not potcars and "POTCAR" in present:
        warnings.append(f"The POTCAR already here was left as it is: it must list {' '.join(potcar_symbols)}.")
    plan = InputPlan(
        *(sites, ~held, grid, written, overridden, potcar_symbols, potcars, net, multiplicity, functional),
        warnings=tuple(warnings),
    )
    asked = {"charge": given.charge, "functional": given.functional}
    texts = other_state(atoms, Said(net.value, multiplicity, functional), asked)
    return replace(plan, warnings=(*plan.warnings, *texts))


def poscar_order(numbers: Array) -> Array:
    """Return the input index of each POSCAR site, shape ``(n_atoms,)``: one block per species, stable."""
    species, first = np.unique(numbers, return_index=True)
    if 1 + np.count_nonzero(np.diff(numbers)) == len(species):
        return np.arange(len(numbers))
    return np.argsort(first[np.searchsorted(species, numbers)], kind="stable")


def _spin_and_functional(atoms: Atoms, options: Options) -> tuple[int | None, str, list[str]]:
    """Return multiplicity and functional that were asked for, else those the atoms carry, and what to say of them."""
    info = {"spin_multiplicity": options.spin_multiplicity, "functional": options.functional}
    asked = Atoms(info={name: value for name, value in info.items() if value is not None})
    try:
        said = said_of(asked)
    except StructureError as error:
        raise InputSetError(str(error)) from error
    own = said_of(Atoms(info={name: atoms.info[name] for name in info if name in atoms.info}))
    multiplicity = own.spin_multiplicity if options.spin_multiplicity is None else said.spin_multiplicity
    functional = (own.functional if options.functional is None else said.functional) or "PBE"
    text = str(options.functional or atoms.info.get("functional") or functional)
    remarks = []
    if functional not in FUNCTIONAL_TAGS:
        remarks.append(
            f"The input set is for PBE, not for {functional}: only {', '.join(FUNCTIONAL_TAGS)} are written with the "
            "POTCARs of PBE; give the tags through incar (--incar) if you know better."
        )
    elif len(text.split()) > 1:
        remarks.append(
            f"The functional {text!r} was taken for {functional} as it was published: give what is different through "
            "incar (--incar AEXX=0.32)."
        )
    return multiplicity, functional, remarks


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


def _incar(
    sites: Sites,
    options: Options,
    net: NetCharge,
    grid: tuple[int, ...],
    electrons: _Electrons,
    present: frozenset[str],
    *,
    calculated: bool,
) -> tuple[Any, dict[str, tuple[Any, Any]], list[str]]:
    """Return the INCAR, what overrides replaced in it, and warnings.

    Args:
        sites: The structure as POSCAR lists it.
        options: What the user chose.
        net: Charge of the cell.
        grid: Number of k-points along each axis.
        electrons: Valence electrons of the neutral cell.
        present: Names of the files already in the folder.
        calculated: Whether the initial moments of the atoms are those that a calculator found.
    """
    given = incar_tags.named(options.incar)
    overrides = incar_tags.expanded(given, sites.symbols)
    tags, ignored = _shaped_tags(sites, options, net.value, electrons, overrides, calculated=calculated)
    planned = Planned(
        tags | overrides,
        overridden=frozenset(overrides),
        by_element=frozenset(tag for tag, value in given.items() if isinstance(value, Mapping)),
        symbols=tuple(sites.symbols),
        reordered=sites.reordered,
        grid=grid,
        vacuum=tuple(sites.vacuum),
        charge=net.value,
        charge_stated=net.source == "stated",
        multiplicity=options.spin_multiplicity,
        functional=options.functional or "PBE",
        functional_tags=FUNCTIONAL_TAGS.get(options.functional or "PBE", {}),
        neutral=electrons.known,
        enmax=incar_tags.largest_enmax(electrons.potcars),
        present=present,
        dipole=options.dipole,
        large_cell=options.large_cell,
    )
    warnings = ignored + _charge_warnings(net, planned) + broken_rules(planned)
    own = _own_tags(tags, sites, options, net.value, electrons)
    written, overridden, doubts = incar_tags.final_incar(tags, overrides, own)
    return written, overridden, warnings + doubts


def _shaped_tags(
    sites: Sites,
    options: Options,
    charge: int,
    electrons: _Electrons,
    overrides: Mapping[str, Any],
    *,
    calculated: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Return the tags of an input set, shaped by overrides but without them, and what to say about the moments."""
    tags = dict(PROFILES[options.profile]) | ({"LREAL": "Auto"} if options.large_cell else {})
    tags |= FUNCTIONAL_TAGS.get(options.functional or "PBE", {})
    tags |= _electron_tags(charge, options, electrons, overrides)
    unpaired = None if options.spin_multiplicity is None else options.spin_multiplicity - 1
    spin, ignored = incar_tags.spin_tags(sites.atoms, options.magnetic, sites.order, overrides, unpaired)
    if "MAGMOM" in spin and calculated:
        ignored.append(CALCULATED_MOMENTS)
    if {"LNONCOLLINEAR", "LSORBIT"} & set(overrides) and "ISPIN" not in spin:
        del tags["ISPIN"]  # it has no effect on vectors
    tags |= spin
    if options.dipole:
        tags |= incar_tags.dipole_tags(sites.atoms, sites.gaps, sites.vacuum, charge)
    return tags, ignored


def _electron_tags(
    charge: int, options: Options, electrons: _Electrons, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Return NELECT of a charged cell, and NUPDOWN where the multiplicity or the parity of the electrons decides."""
    multiplicity = options.spin_multiplicity
    if multiplicity is not None and multiplicity > 1 and options.magnetic == "none":
        raise InputSetError(
            f"magnetic is 'none' (--magnetic-start none), which knows no unpaired electrons, and the spin "
            f"multiplicity is {multiplicity}: leave one of them out."
        )
    tags: dict[str, Any] = {}
    if charge or options.magnetic == "parity":
        number = overrides["NELECT"] if "NELECT" in overrides else electrons.neutral - charge
        tags |= {"NELECT": number} if charge else {}
        tags |= {"NUPDOWN": round(number) % 2} if options.magnetic == "parity" else {}
    if multiplicity is None:
        return tags
    if tags.get("NUPDOWN", multiplicity - 1) != multiplicity - 1:
        raise InputSetError(
            f"magnetic is 'parity' (--magnetic-start parity), which sets NUPDOWN = {tags['NUPDOWN']}, and the spin "
            f"multiplicity is {multiplicity}, NUPDOWN = {multiplicity - 1}: leave one of them out."
        )
    vectors = bool(overrides.get("LNONCOLLINEAR") or overrides.get("LSORBIT"))
    polarised = options.magnetic != "none" and overrides.get("ISPIN") != 1
    return tags | ({"NUPDOWN": multiplicity - 1} if polarised and not vectors else {})


def _own_tags(
    shaped: Mapping[str, Any], sites: Sites, options: Options, charge: int, electrons: _Electrons
) -> dict[str, Any]:
    """Return the tags of an input set as they would be without overrides, which have shaped some of them.

    Where they need an override (the valence electrons are unknown, moments are vectors), they are left out.
    """
    tags = {tag: value for tag, value in shaped.items() if tag not in {"NELECT", "NUPDOWN"}}
    tags["ISPIN"] = PROFILES[options.profile]["ISPIN"]
    unpaired = None if options.spin_multiplicity is None else options.spin_multiplicity - 1
    parts: list[Callable[[], dict[str, Any]]] = [
        lambda: _electron_tags(charge, options, electrons, {}),
        lambda: incar_tags.spin_tags(sites.atoms, options.magnetic, sites.order, {}, unpaired)[0],
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
