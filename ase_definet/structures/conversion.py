"""Conversion of structures of other packages to Atoms and back, with magnetic moments and constraints."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ase_definet.errors import DefiNetWarning, StructureError
from ase_definet.structures.charges import (
    CHARGE_SOURCE,
    STATED,
    STATED_TOLERANCE,
    SUMMED_TOLERANCE,
    Source,
    charge_of,
)
from ase_definet.structures.constraints import held_directions, hold

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

WHOLE = 1e-3
"""An occupancy this close to 1 is 1: refinements and rounded files write 0.9999."""

SITE_LABEL = "site_label"
"""Array of Atoms with the label of each site in a file."""

OCCUPANCY = "occupancy"
"""Array of Atoms, or key of ``info`` as ASE's CIF reader leaves it, with the occupancy of each site."""

_OCCUPANCIES = (OCCUPANCY, "occupancies", "site_occupancy")
_MOMENTS = ("magmoms", "magmom", "initial_magmom", "magnetic_moments", "initial_magnetic_moments")
_OXIDATION = "oxi_states"
_SPIN = "species_spin"
_ELEMENTS = frozenset(chemical_symbols[1:])
_NAMED = 3
_VECTOR = 3


# Occupancies


def refuse_partial(atoms: Atoms) -> None:
    """Reject a structure with partially occupied sites, in any form that ASE's readers or users store.

    Raises:
        StructureError: A site is partially occupied; the message names it.
    """
    _refuse(_partial_sites(atoms))


def _partial_sites(atoms: Atoms) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield label and occupancies of every partially occupied site of an Atoms."""
    labels = atoms.arrays.get(SITE_LABEL)
    kinds = atoms.arrays.get("spacegroup_kinds")
    given = atoms.info.get(OCCUPANCY)
    if isinstance(given, Mapping):  # of ASE's CIF reader: by kind of site, then by element
        present = None if kinds is None else {str(kind): k for k, kind in reversed(list(enumerate(kinds)))}
        for kind, shares in given.items():
            if isinstance(shares, Mapping) and (present is None or str(kind) in present):
                yield (
                    str(kind if present is None else present[str(kind)]),
                    {str(element): _number(share) for element, share in shares.items()},
                )
    columns = [values for name, values in atoms.arrays.items() if name.lower() in _OCCUPANCIES]
    for values in columns:
        if np.shape(values) == (len(atoms),):
            for k, share in enumerate(values):
                label = str(k) if labels is None else f"{k} {str(labels[k])!r}"
                yield label, {atoms.symbols[k]: _number(share)}


def _number(share: object) -> float:
    try:
        return float(share)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")


def _refuse(sites: Iterable[tuple[str, Mapping[str, float]]]) -> None:
    partial = [(label, shares) for label, shares in sites if not _is_whole(shares)]
    if not partial:
        return
    named = ", ".join(f"{label} ({_shares(shares)})" for label, shares in partial[:_NAMED])
    more = f" and {len(partial) - _NAMED} more" if len(partial) > _NAMED else ""
    raise StructureError(
        f"expected every site to hold one whole atom, found partial occupancies: site {named}{more}; delete the "
        "sites that are vacant, set the occupancy of the others to 1, or write an ordered supercell of a disordered "
        "crystal (pymatgen's OrderDisorderedStructureTransformation makes one)"
    )


def _is_whole(shares: Mapping[str, float]) -> bool:
    return len(shares) == 1 and abs(next(iter(shares.values())) - 1) <= WHOLE


def _shares(shares: Mapping[str, float]) -> str:
    return " + ".join(f"{element} with occupancy {share:g}" for element, share in shares.items())


# Moments


def moments_of(atoms: Atoms) -> Array | None:
    """Return the magnetic moments stored with a structure.

    Initial moments take precedence. Without them, moments from a column of a file are used, which ASE's reader of
    extended XYZ treats as results of a calculation.

    Returns:
        Shape ``(n_atoms,)``, or ``(n_atoms, 3)`` if they are non-collinear, in μB; None if there are none.
    """
    if atoms.has("initial_magmoms"):
        return np.asarray(atoms.arrays["initial_magmoms"])
    from ase.calculators.singlepoint import SinglePointCalculator  # noqa: PLC0415

    stored = atoms.calc.results if isinstance(atoms.calc, SinglePointCalculator) else {}
    for place in (atoms.arrays, stored, atoms.info):
        for name in _MOMENTS:
            values = place.get(name)
            if isinstance(values, np.ndarray | list | tuple) and len(values) == len(atoms):
                moments = np.asarray(values)
                known = moments.dtype.kind in "iuf" and moments.shape in {(len(atoms),), (len(atoms), _VECTOR)}
                # a calculation that ended without moments is no reason to start without
                if known and (place is not stored or moments.any()):
                    return moments.astype(float)
    return None


def with_moments(atoms: Atoms) -> Atoms:
    """Return an Atoms with its moments, if any, as initial moments; the same object if they already are."""
    if atoms.has("initial_magmoms"):
        return atoms
    moments = moments_of(atoms)
    if moments is None:
        return atoms
    out: Atoms = atoms.copy()
    out.set_initial_magnetic_moments(moments)
    if atoms.calc is not None and (known := getattr(atoms.calc, "atoms", None)) is not None and known == atoms:
        out.calc = copy(atoms.calc)  # results are only valid for atoms with these moments
        out.calc.atoms = out.copy()
    else:
        out.calc = atoms.calc
    return out


# pymatgen


def from_structure(structure: Any) -> Atoms:
    """Return the Atoms of a pymatgen Structure.

    Moments (the site property ``magmom``, else the spin of a Species) become initial moments, selective dynamics
    becomes FixAtoms and FixScaled, and oxidation states the array ``oxi_states``, not charges. The charge of
    the structure goes to ``info["charge"]``, unless it is merely the sum of the oxidation states.

    Raises:
        StructureError: A site is partially occupied, or its species is not an element.
    """
    from pymatgen.io.ase import AseAtomsAdaptor  # noqa: PLC0415

    _refuse(_sites_of(structure))
    plain = _plain(structure)
    atoms: Atoms = AseAtomsAdaptor.get_atoms(plain, msonable=False)
    _mend_columns(atoms)
    species = [_species(site) for site in structure]
    for name, attribute in ((_OXIDATION, "oxi_state"), (_SPIN, "spin")):
        values = [getattr(kind, attribute, None) for kind in species]
        if any(value is not None for value in values):
            atoms.set_array(name, np.array([np.nan if value is None else value for value in values], dtype=float))
    moments = _moments(structure, species)
    if moments is not None:
        atoms.set_initial_magnetic_moments(moments)
    flags = structure.site_properties.get("selective_dynamics")
    if flags:  # along cell vectors; pymatgen's adaptor takes them for x, y and z
        hold(atoms, ~np.array([[True] * 3 if flag is None else list(flag) for flag in flags], dtype=bool))
    charge = stated_charge(structure)
    if charge is not None:
        atoms.info["charge"] = charge
    if atoms.info.get(CHARGE_SOURCE) == STATED:  # an Atoms stores it explicitly
        del atoms.info[CHARGE_SOURCE]
    return with_moments(atoms)


def stated_charge(structure: Any) -> Any:
    """Return the charge set explicitly on a pymatgen Structure, None if there is none.

    ``Structure.charge`` adds up oxidation states if no charge was set, and pymatgen's files store that sum as if it
    had been set. A non-zero charge that equals this sum is therefore ignored, unless set by :func:`state_charge`.
    """
    charge = vars(structure).get("_charge")
    if charge is None or structure.properties.get(CHARGE_SOURCE) is not None:
        return charge
    states = [getattr(_species(site), "oxi_state", None) for site in structure]
    if not states or any(state is None for state in states):
        return charge
    total = float(np.sum(np.array(states, dtype=float)))
    try:
        guessed = abs(total) > SUMMED_TOLERANCE and abs(float(charge) - total) < STATED_TOLERANCE
    except (TypeError, ValueError):
        return charge  # charge_of reports the error
    return None if guessed else charge


def keep_source(structure: Any, source: Source = STATED) -> None:
    """Record in a pymatgen Structure that its charge was set, if :func:`stated_charge` could not tell."""
    if source != STATED or stated_charge(structure) is None:
        structure.properties[CHARGE_SOURCE] = source


def _sites_of(structure: Any) -> Iterator[tuple[str, Mapping[str, float]]]:
    for k, site in enumerate(structure):
        species = {str(kind.symbol): float(share) for kind, share in site.species.items()}
        named = site.label not in {None, site.species_string, *species}
        yield f"{k} {site.label!r}" if named else str(k), species or {"nothing": 0.0}
        if _is_whole(species) and next(iter(species)) not in _ELEMENTS:
            raise StructureError(f"site {k} ({site.species_string}) is no element: remove placeholders of vacancies")


def _species(site: Any) -> Any:
    return next(iter(site.species))


def _plain(structure: Any) -> Any:
    """Return a Structure with full occupancies and the site properties that pymatgen's adaptor converts to arrays."""
    from pymatgen.core import Structure  # noqa: PLC0415

    ours = {"magmom", "selective_dynamics", _OXIDATION, _SPIN}
    kept = {name: list(values) for name, values in structure.site_properties.items() if name not in ours}
    if any(value is None for value in kept.get("charge", [])):
        kept["charge"] = [0.0 if value is None else value for value in kept["charge"]]
    for name in ("final_magmom", "final_charge"):  # None if a site lacks it
        if name in kept and any(value is None for value in kept[name]):
            del kept[name]
    plain = Structure(
        structure.lattice,
        [str(_species(site).symbol) for site in structure],
        [site.frac_coords for site in structure],
        site_properties=kept,
        properties=dict(structure.properties or {}),
    )
    if (calc := getattr(structure, "calc", None)) is not None:
        plain.calc = calc
    return plain


def _mend_columns(atoms: Atoms) -> None:
    """Fill in site properties that some sites lack; drop those that no file can store, with a warning."""
    for name, values in list(atoms.arrays.items()):
        if values.dtype != object:
            continue
        try:
            atoms.arrays[name] = np.array([np.nan if value is None else value for value in values], dtype=float)
        except (TypeError, ValueError):
            if all(value is None or isinstance(value, str) for value in values):
                # "" would shift the columns of extended XYZ
                atoms.arrays[name] = np.array([value or "-" for value in values])
                continue
            del atoms.arrays[name]
            text = f"the site property {name!r} was left out: it holds neither numbers nor text"
            warnings.warn(text, DefiNetWarning, stacklevel=3)


def _moments(structure: Any, species: list[Any]) -> Array | None:
    """Return the moments of a Structure, the site property first, as pymatgen's own input sets do."""
    from pymatgen.electronic_structure.core import Magmom  # noqa: PLC0415

    given = structure.site_properties.get("magmom") or [None] * len(structure)
    found = [
        getattr(kind, "spin", None) if value is None else value for value, kind in zip(given, species, strict=True)
    ]
    if all(value is None for value in found):
        return None
    lacking = sum(value is None for value in found)
    if lacking:
        text = f"{lacking} of {len(found)} sites have no magnetic moment: taken as 0 μB"
        warnings.warn(text, DefiNetWarning, stacklevel=3)
    try:
        if not any(isinstance(value, list | tuple | np.ndarray | Magmom) for value in found):
            return np.array([0.0 if value is None else value for value in found], dtype=float)
        vectors = np.array([np.zeros(3) if v is None else Magmom(v).get_moment() for v in found], dtype=float)
    except (TypeError, ValueError) as error:
        raise StructureError(
            f"expected moments as numbers or vectors of three, in μB, found the site property magmom = {given[:3]}"
        ) from error
    # pymatgen turns a scalar Magmom into a vector along z
    along_z = not vectors[:, :2].any() and not any(isinstance(v, list | tuple | np.ndarray) for v in found)
    return vectors[:, 2] if along_z else vectors


def as_structure(atoms: Atoms) -> Any:
    """Return the pymatgen Structure of an Atoms: the inverse of :func:`from_structure`.

    Initial moments become the spin of Species if they came from there, else the site property ``magmom``. An inferred
    charge, and constraints that selective dynamics cannot express, cause a DefiNetWarning.
    """
    from pymatgen.core import Species  # noqa: PLC0415
    from pymatgen.io.ase import AseAtomsAdaptor  # noqa: PLC0415

    held, lost = held_directions(atoms)
    charge = charge_of(atoms)
    for text in filter(None, [charge.note, *lost]):
        warnings.warn(text, DefiNetWarning, stacklevel=2)
    atoms = with_moments(atoms)
    plain: Atoms = atoms.copy()
    plain.calc = atoms.calc
    plain.set_constraint()  # pymatgen's adaptor supports two kinds of constraints only
    plain.info.pop("charge", None)
    plain.info.pop(CHARGE_SOURCE, None)
    states, spins = (plain.arrays.pop(name, None) for name in (_OXIDATION, _SPIN))
    moments = plain.arrays.pop("initial_magmoms", None)
    structure: Any = AseAtomsAdaptor.get_structure(plain)
    if held.any():
        structure.add_site_property("selective_dynamics", (~held).tolist())
    if charge.source != "none":
        structure.set_charge(charge.value)
    in_species = moments is not None and moments.ndim == 1 and spins is not None
    if moments is not None and not (in_species and np.isfinite(spins).all()):
        structure.add_site_property("magmom", moments.tolist())
    if states is not None or in_species:
        for k, site in enumerate(structure):
            state = None if states is None or np.isnan(states[k]) else _short(states[k])
            spin = _short(moments[k]) if in_species and np.isfinite(spins[k]) else None
            if state is not None or spin is not None:
                site.species = {Species(site.specie.symbol, state, spin): 1}
    if charge.source != "none":
        keep_source(structure, charge.source)
    return structure


def _short(value: float) -> float | int:
    """Return a whole number as an int, because pymatgen distinguishes the spins 5 and 5.0."""
    return int(value) if float(value).is_integer() else float(value)


# Both


def as_atoms(structure: object) -> Atoms:
    """Return an Atoms from an Atoms or a pymatgen Structure, whose charge goes to ``info["charge"]``.

    Moments of the atoms become initial moments: see :func:`moments_of` and
    :func:`from_structure`. An Atoms that needs no conversion is returned as it is.

    Raises:
        StructureError: It is neither, or has partially occupied sites.
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
