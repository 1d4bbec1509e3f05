"""What an INCAR must not say, given the files beside it: one table, a row for each rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ase_definet.errors import InputSetError
from ase_definet.structures.state import wrong_parity

Finding: TypeAlias = "bool | Mapping[str, Any]"

PER_SPECIES = (
    *("LDAUL", "LDAUU", "LDAUJ", "RWIGS", "ROPT"),
    *("VDW_C6", "VDW_R0", "QUAD_EFG", "NGYROMAG", "LANGEVIN_GAMMA"),
)
"""Tags with one value for each species of POSCAR."""
VECTORS = ("DIPOL", "SAXIS", "QSPIRAL", "EFIELD_PEAD", "LATTICE_CONSTRAINTS")
"""Tags with three values."""
TETRAHEDRA = 4
"""The tetrahedron method needs as many k-points."""

_FUNCTIONAL_DEFAULTS: Mapping[str, Any] = {"GGA": "PE", "METAGGA": "--", "LHFCALC": False, "HFSCREEN": 0.0}
"""Tags that decide on a functional, and what they are in PBE."""
_SCREENING_ROUNDED = 0.01
"""HFSCREEN of HSE06 is 0.2 or, unrounded, 0.2079 1/Å."""
_OTHER_MOMENT = 0.5

_LDAU = ("LDAUL", "LDAUU", "LDAUJ", "LDAUTYPE")
_CELL_CHANGES = 3
_LOOSE = 1e-5
_SMALL = 1e-6


@dataclass(frozen=True, eq=False)
class Planned:
    """An input set that is about to be written, as the rules see it.

    Attributes:
        incar: All tags and their values.
        overridden: Which tags the user gave.
        by_element: Which of them were given by element.
        symbols: Element of each atom, in the order of POSCAR.
        reordered: Whether that is another order than the caller's.
        grid: Number of k-points along each axis in KPOINTS.
        vacuum: Axes with vacuum.
        charge: Charge of the structure, in e.
        charge_stated: Whether somebody states it.
        multiplicity: Spin multiplicity that somebody states, None where nobody does.
        functional: Functional that is written, by the name of ``functional_tags``.
        functional_tags: What makes that functional of PBE; nothing for PBE itself.
        neutral: Returns the valence electrons of the neutral cell, None where they are not known.
        enmax: Largest ENMAX of the POTCARs, in eV; None where there are none.
        present: Names of the files already in the folder.
        dipole: Whether a dipole correction was asked for.
        large_cell: Whether projection in real space was asked for.
    """

    incar: Mapping[str, Any]
    overridden: frozenset[str]
    by_element: frozenset[str]
    symbols: tuple[str, ...]
    reordered: bool
    grid: tuple[int, ...]
    vacuum: tuple[int, ...]
    charge: int
    neutral: Callable[[], float | None]
    charge_stated: bool = False
    multiplicity: int | None = None
    functional: str = "PBE"
    functional_tags: Mapping[str, Any] = field(default_factory=dict)
    enmax: float | None = None
    present: frozenset[str] = frozenset()
    dipole: bool = False
    large_cell: bool = False

    @property
    def species(self) -> list[str]:
        """Species of POSCAR, in its order."""
        return list(dict.fromkeys(self.symbols))

    @property
    def noncollinear(self) -> bool:
        """Whether moments are vectors."""
        return bool(self.incar.get("LNONCOLLINEAR") or self.incar.get("LSORBIT"))

    @property
    def implied_charge(self) -> float:
        """Charge that NELECT makes where it is given, else the one stated, in e."""
        neutral = self.neutral() if "NELECT" in self.overridden else None
        return self.charge if neutral is None else neutral - float(self.incar["NELECT"])

    @property
    def electrons(self) -> float | None:
        """Electrons of the cell, None where they are not known."""
        if "NELECT" in self.incar:
            return float(self.incar["NELECT"])
        neutral = self.neutral()
        return None if neutral is None else neutral - self.charge

    @property
    def kpoints(self) -> int:
        """Number of k-points that no inversion of k relates."""
        points = np.stack(np.meshgrid(*[np.arange(n) for n in self.grid], indexing="ij"), axis=-1).reshape(-1, 3)
        inverted = -points % np.array(self.grid)
        same = int((points == inverted).all(axis=1).sum())
        return (len(points) + same) // 2


@dataclass(frozen=True)
class Rule:
    """One thing that an input set must not say.

    Attributes:
        tags: It is looked at where one of these is in the INCAR.
        check: Whether it is broken; a mapping adds words to the message.
        message: What is wrong and what to do. ``{TAG}`` stands for the value of a tag, other words are those of
            :func:`broken_rules` and of the check.
        refuse: Whether nothing is written then; else it is a warning.
    """

    tags: tuple[str, ...]
    check: Callable[[Planned], Finding]
    message: str
    refuse: bool = False


def broken_rules(planned: Planned, rules: tuple[Rule, ...] | None = None) -> list[str]:
    """Return a warning for each rule that an input set breaks.

    Args:
        planned: What is about to be written.
        rules: Default is :data:`RULES`.

    Raises:
        InputSetError: It breaks rules that refuse it; all of them are named.
    """
    words = {
        "species": " ".join(planned.species),
        "n_species": len(planned.species),
        "n_atoms": len(planned.symbols),
        "grid": "x".join(map(str, planned.grid)),
        "charge": f"{planned.charge:+d}" if planned.charge else "0",
        "multiplicity": planned.multiplicity,
        "unpaired": (planned.multiplicity or 1) - 1,
        "functional": planned.functional,
        "implied": f"{planned.implied_charge:+g}" if planned.implied_charge else "0",
        "gaps": ", ".join("abc"[axis] for axis in planned.vacuum) or "no axis",
        "enmax": planned.enmax,
    }
    refused: list[str] = []
    warned: list[str] = []
    for rule in RULES if rules is None else rules:
        if not any(tag in planned.incar for tag in rule.tags):
            continue
        found = rule.check(planned)
        if found is False:
            continue
        values = _Words(planned.incar) | words | ({} if found is True else dict(found))
        (refused if rule.refuse else warned).append(rule.message.format_map(_Words(values)))
    if refused:
        raise InputSetError("INCAR: " + "; ".join(refused))
    return [f"INCAR: {text}." for text in warned]


class _Words(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "unset"


def _is(planned: Planned, tag: str, *values: Any) -> bool:
    """Return whether a tag has one of these values; text in any case."""
    value = planned.incar.get(tag)
    return any(
        value.lower() == other.lower() if isinstance(value, str) and isinstance(other, str) else value == other
        for other in values
    )


def _number(planned: Planned, tag: str, default: float) -> float:
    """Return the value of a tag where it is a number."""
    value = planned.incar.get(tag, default)
    return float(value) if isinstance(value, int | float) else default


def _other_size(tag: str, *expected: Callable[[Planned], int]) -> Callable[[Planned], Finding]:
    """Return a check that a list has one of the expected lengths."""

    def check(planned: Planned) -> Finding:
        if tag not in planned.incar:
            return False
        found, wanted = int(np.size(planned.incar[tag])), [count(planned) for count in expected]
        return found not in wanted and {"found": found, "wanted": " or ".join(map(str, wanted))}

    return check


def _order_of_species(tag: str) -> Callable[[Planned], Finding]:
    """Return a check that names what goes to which species, where only the order says so."""

    def check(planned: Planned) -> Finding:
        if tag not in planned.overridden - planned.by_element or len(planned.species) == 1:
            return False
        values = planned.incar[tag]
        return {"given": ", ".join(f"{s} {v:g}" for s, v in zip(planned.species, values, strict=False))}

    return check


def _functional(planned: Planned) -> str:
    """Return the name of a meta-GGA that is on, without its part, else nothing."""
    name = str(planned.incar.get("METAGGA", "")).upper()
    return "" if name in {"", "NONE", "--"} else name


def _relaxes(planned: Planned) -> bool:
    return _number(planned, "NSW", 0) > 0 and not _is(planned, "IBRION", -1)


def _wrong_parity(planned: Planned) -> Finding:
    electrons, unpaired = planned.electrons, _number(planned, "NUPDOWN", -1)
    if electrons is None or unpaired < 0 or planned.multiplicity is not None:
        return False
    return abs((electrons - unpaired) % 2 - 1) < _SMALL and {"electrons": f"{electrons:g}"}


def _wrong_multiplicity(planned: Planned) -> Finding:
    """Look for a multiplicity that the valence electrons cannot have; a fraction of one is the user's own affair."""
    electrons = planned.electrons
    if planned.multiplicity is None or electrons is None or abs(electrons - round(electrons)) > _SMALL:
        return False
    charge = round(planned.implied_charge)
    problem = wrong_parity(planned.multiplicity, round(electrons), charge, "valence electrons")
    return problem is not None and {"problem": problem}


def _other_moments(planned: Planned) -> Finding:
    """Compare the sum of the starting moments with the number of unpaired electrons."""
    if planned.multiplicity is None or planned.noncollinear or _is(planned, "ISPIN", 1):
        return False
    total = float(np.sum(planned.incar["MAGMOM"]))
    return abs(total - (planned.multiplicity - 1)) > _OTHER_MOMENT and {"total": f"{total:.4g}"}


def _other_functional(planned: Planned) -> Finding:
    """Look for tags of the user that make another functional of the one that was asked for."""
    tags = planned.functional_tags
    if not tags:
        return False
    given = {tag: planned.incar[tag] for tag in _FUNCTIONAL_DEFAULTS if tag in planned.overridden}
    expected = {tag: tags.get(tag, _FUNCTIONAL_DEFAULTS[tag]) for tag in given}
    other = {tag: value for tag, value in given.items() if not _equal(value, expected[tag])}
    return bool(other) and {
        "given": ", ".join(f"{tag} = {value}" for tag, value in other.items()),
        "expected": ", ".join(f"{tag} = {expected[tag]}" for tag in other),
    }


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, str) and isinstance(other, str):
        return value.upper() == other.upper()
    return value == other or (
        not isinstance(value, str | bool)
        and not isinstance(other, str | bool)
        and abs(value - other) < _SCREENING_ROUNDED
    )


def _few_bands(planned: Planned) -> Finding:
    electrons = planned.electrons
    if electrons is None:
        return False
    least = int(np.ceil(electrons / (1 if planned.noncollinear else 2) - _SMALL))
    return _number(planned, "NBANDS", least) < least and {"least": least, "electrons": f"{electrons:g}"}


def _off_vacuum(planned: Planned) -> Finding:
    axis = int(_number(planned, "IDIPOL", 0))
    if axis not in {1, 2, 3} or axis - 1 in planned.vacuum:
        return False
    return {"axis": "abc"[axis - 1]}


RULES: tuple[Rule, ...] = (
    # k-points
    Rule(
        ("KSPACING",),
        lambda _: True,
        "KSPACING = {KSPACING} has no effect beside the KPOINTS file; give it as kpoints (--kpoints {KSPACING}), "
        "which is the same spacing and keeps one k-point along a vacuum",
        refuse=True,
    ),
    Rule(
        ("KGAMMA",),
        lambda p: not p.incar["KGAMMA"],
        "KGAMMA = {KGAMMA} has no effect beside the KPOINTS file, which is Γ-centred; leave it out",
        refuse=True,
    ),
    Rule(
        ("KGAMMA",),
        lambda p: bool(p.incar["KGAMMA"]),
        "KGAMMA has no effect beside the KPOINTS file, which is Γ-centred anyway",
    ),
    Rule(
        ("ISMEAR",),
        lambda p: _is(p, "ISMEAR", -4, -5, -14, -15) and p.kpoints < TETRAHEDRA and {"k": p.kpoints},
        "ISMEAR = {ISMEAR} is the tetrahedron method, which needs 4 k-points or more; the grid {grid} has {k}: give "
        "more k-points or leave ISMEAR at 0",
        refuse=True,
    ),
    Rule(
        ("KPAR",),
        lambda p: _number(p, "KPAR", 1) > p.kpoints and {"k": p.kpoints},
        "KPAR = {KPAR} is more than the {k} k-points of the grid {grid}: cores will idle, or VASP stops",
    ),
    # how many values
    *(
        Rule(
            (tag,),
            _other_size(tag, lambda p: len(p.species)),
            f"{tag} needs one value for each species, {{n_species}} for {{species}}, in this order; found {{found}}. "
            "Give all of them, or a dict by element",
            refuse=True,
        )
        for tag in PER_SPECIES
    ),
    *(
        Rule((tag,), _order_of_species(tag), f"{tag} goes to the species in the order of POSCAR: {{given}}")
        for tag in PER_SPECIES
    ),
    *(
        Rule((tag,), _other_size(tag, lambda _: 3), f"{tag} needs 3 values; found {{found}}", refuse=True)
        for tag in VECTORS
    ),
    Rule(
        ("MAGMOM",),
        _other_size("MAGMOM", lambda p: (3 if p.noncollinear else 1) * len(p.symbols)),
        "MAGMOM needs {wanted} values for {n_atoms} atoms (three each with LNONCOLLINEAR or LSORBIT, else one); "
        "found {found}",
        refuse=True,
    ),
    Rule(
        ("M_CONSTR",),
        _other_size("M_CONSTR", lambda p: len(p.symbols), lambda p: 3 * len(p.symbols)),
        "M_CONSTR needs {wanted} values for {n_atoms} atoms; found {found}",
        refuse=True,
    ),
    Rule(
        ("MAGMOM",),
        lambda p: p.reordered and "MAGMOM" in p.overridden - p.by_element,
        "MAGMOM goes to the atoms in the order of POSCAR, which is not yours (site_order.json); moments set on the "
        "atoms, or given by element, follow them",
    ),
    # spin
    Rule(
        ("MAGMOM",),
        lambda p: _is(p, "ISPIN", 1) and not p.noncollinear,
        "MAGMOM has no effect with ISPIN = 1; leave one of them out",
        refuse=True,
    ),
    Rule(
        ("NUPDOWN",),
        lambda p: _number(p, "NUPDOWN", -1) >= 0 and _is(p, "ISPIN", 1) and not p.noncollinear,
        "NUPDOWN = {NUPDOWN} has no effect with ISPIN = 1; leave one of them out (magnetic 'parity' sets NUPDOWN)",
        refuse=True,
    ),
    Rule(
        ("NUPDOWN",),
        lambda p: _number(p, "NUPDOWN", -1) >= 0 and p.noncollinear,
        "NUPDOWN = {NUPDOWN} has no effect on moments that are vectors (LNONCOLLINEAR or LSORBIT); leave it out",
        refuse=True,
    ),
    Rule(
        ("NUPDOWN",),
        _wrong_parity,
        "NUPDOWN = {NUPDOWN} does not go with {electrons} electrons: both are even or both odd",
    ),
    Rule(
        ("NUPDOWN", "NELECT", "ISPIN"),
        _wrong_multiplicity,
        "NUPDOWN = {unpaired} cannot be: {problem}",
        refuse=True,
    ),
    Rule(
        ("NUPDOWN", "ISPIN"),
        lambda p: p.multiplicity is not None and p.electrons is None,
        "NUPDOWN, ISPIN: the valence electrons are unknown without POTCARs: whether a spin multiplicity of "
        "{multiplicity} goes with them was not checked",
    ),
    Rule(
        ("NUPDOWN",),
        lambda p: (
            p.multiplicity is not None
            and "NUPDOWN" in p.overridden
            and _number(p, "NUPDOWN", -1) not in {-1, p.multiplicity - 1}
        ),
        "NUPDOWN = {NUPDOWN} contradicts the spin multiplicity of {multiplicity}, which is NUPDOWN = {unpaired}; "
        "leave one of them out",
        refuse=True,
    ),
    Rule(
        ("NUPDOWN",),
        lambda p: p.multiplicity is not None and "NUPDOWN" in p.overridden and _is(p, "NUPDOWN", -1),
        "NUPDOWN = {NUPDOWN} fixes no spin: VASP may leave the spin multiplicity of {multiplicity} that is asked for",
    ),
    Rule(
        ("ISPIN",),
        lambda p: (p.multiplicity or 1) > 1 and _is(p, "ISPIN", 1) and not p.noncollinear,
        "ISPIN = {ISPIN} knows no unpaired electrons, and the spin multiplicity is {multiplicity}; leave one of them "
        "out",
        refuse=True,
    ),
    Rule(
        ("LNONCOLLINEAR", "LSORBIT"),
        lambda p: p.noncollinear and p.multiplicity is not None,
        "moments that are vectors (LNONCOLLINEAR or LSORBIT) have no NUPDOWN: nothing fixes the spin multiplicity of "
        "{multiplicity} that was asked for",
    ),
    Rule(
        ("MAGMOM",),
        _other_moments,
        "MAGMOM adds up to {total} μB, and the spin multiplicity of {multiplicity} to {unpaired}: NUPDOWN decides",
    ),
    Rule(
        ("ISPIN",),
        lambda p: p.noncollinear and _is(p, "ISPIN", 2),
        "ISPIN = 2 has no effect with LNONCOLLINEAR or LSORBIT",
    ),
    Rule(
        ("LNONCOLLINEAR", "LSORBIT"),
        lambda p: p.noncollinear,
        "LNONCOLLINEAR and LSORBIT need the binary vasp_ncl",
    ),
    # electrons
    Rule(
        ("NELECT",),
        lambda p: _number(p, "NELECT", 1) <= 0,
        "NELECT = {NELECT} is no number of electrons",
        refuse=True,
    ),
    Rule(
        ("NELECT",),
        lambda p: "NELECT" in p.overridden and p.charge_stated and abs(p.implied_charge - p.charge) > _SMALL,
        "NELECT = {NELECT} makes a net charge of {implied}, and the charge that is stated (--charge, "
        "atoms.info['charge']) is {charge}: leave one of them out, or correct it",
        refuse=True,
    ),
    Rule(
        ("NELECT",),
        lambda p: "NELECT" in p.overridden and not p.charge_stated and abs(p.implied_charge - p.charge) > _SMALL,
        "NELECT = {NELECT} makes a net charge of {implied}, where the structure says {charge}; NELECT decides",
    ),
    Rule(
        ("NBANDS",),
        _few_bands,
        "NBANDS = {NBANDS} cannot hold {electrons} electrons; it takes {least} at least, and some empty ones",
        refuse=True,
    ),
    # dipole correction
    Rule(
        ("LDIPOL",),
        lambda p: p.dipole and not p.incar["LDIPOL"],
        "LDIPOL = {LDIPOL} contradicts the dipole correction that was asked for (dipole, --dipole); leave one out",
        refuse=True,
    ),
    Rule(
        ("LDIPOL",),
        lambda p: bool(p.incar["LDIPOL"]) and "IDIPOL" not in p.incar,
        "LDIPOL needs IDIPOL, the axis; dipole (--dipole) sets LDIPOL, IDIPOL and DIPOL",
        refuse=True,
    ),
    Rule(
        ("LDIPOL",),
        lambda p: bool(p.incar["LDIPOL"]) and abs(p.implied_charge) > _SMALL,
        "VASP stops on charged cells (here {implied} e) with LDIPOL; correct the energy afterwards",
        refuse=True,
    ),
    Rule(
        ("IDIPOL",),
        _off_vacuum,
        "IDIPOL = {IDIPOL} corrects along {axis}, where there is no vacuum (there is along {gaps})",
        refuse=True,
    ),
    Rule(
        ("IDIPOL",),
        lambda p: _is(p, "IDIPOL", 4) and len(p.vacuum) < 3,  # noqa: PLR2004 - three axes
        "IDIPOL = 4 is for molecules with vacuum along all axes (there is along {gaps})",
        refuse=True,
    ),
    Rule(
        ("IDIPOL",),
        lambda p: not p.incar.get("LDIPOL"),
        "IDIPOL without LDIPOL corrects the energy, but not the forces",
    ),
    Rule(
        ("DIPOL", "EFIELD"),
        lambda p: "IDIPOL" not in p.incar and not p.incar.get("LDIPOL"),
        "DIPOL and EFIELD have no effect without IDIPOL and LDIPOL; dipole (--dipole) sets them",
        refuse=True,
    ),
    # what moves, and until when
    Rule(
        ("ISIF",),
        lambda p: _number(p, "ISIF", 2) >= _CELL_CHANGES,
        "ISIF = {ISIF} changes the cell, and a vacuum with it; the prediction, its training data and the count of "
        "saved steps are for a fixed cell (ISIF = 2)",
    ),
    Rule(
        ("NSW", "IBRION"),
        lambda p: not _relaxes(p),
        "NSW = {NSW} with IBRION = {IBRION} relaxes nothing: a single point",
    ),
    Rule(
        ("IBRION",),
        lambda p: _relaxes(p) and not _is(p, "IBRION", 1, 2),
        "IBRION = {IBRION} is no quick way to a minimum that is near; 1 and 2 are",
    ),
    Rule(
        ("EDIFFG",),
        lambda p: _number(p, "EDIFFG", -1) >= 0,
        "EDIFFG = {EDIFFG} is a criterion for the energy (0: none); a negative one is for the largest force, in eV/Å",
    ),
    Rule(
        ("EDIFF",),
        lambda p: _number(p, "EDIFF", 1) <= 0,
        "EDIFF = {EDIFF} is never reached; it must be positive",
        refuse=True,
    ),
    Rule(
        ("EDIFF",),
        lambda p: _relaxes(p) and _is(p, "IBRION", 1) and _number(p, "EDIFF", 0) > _LOOSE,
        "EDIFF = {EDIFF} is loose for IBRION = 1, which needs good forces: 1e-5 or less",
    ),
    Rule(
        ("NELMIN", "NELM"),
        lambda p: _number(p, "NELM", 60) < _number(p, "NELMIN", 2),
        "NELM = {NELM} is fewer electronic steps than NELMIN = {NELMIN}",
        refuse=True,
    ),
    Rule(
        ("IMAGES",),
        lambda _: True,
        "IMAGES asks for a chain of structures in folders 00, 01 and so on, of which none is written; leave it out",
        refuse=True,
    ),
    # functional, basis, occupation
    Rule(
        ("ENCUT",),
        lambda p: p.enmax is not None and _number(p, "ENCUT", p.enmax) < p.enmax - _SMALL,
        "ENCUT = {ENCUT} is below the {enmax:g} eV (ENMAX) that the POTCARs ask for",
    ),
    Rule(
        ("METAGGA",),
        lambda p: bool(_functional(p)) and "GGA" in p.incar,
        "METAGGA = {METAGGA} replaces GGA = {GGA}; leave one of them out",
        refuse=True,
    ),
    Rule(
        ("METAGGA",),
        lambda p: _functional(p) in {"MBJ", "LMBJ"} and _relaxes(p),
        "METAGGA = {METAGGA} is a potential without an energy: its forces relax nothing; use NSW = 0",
        refuse=True,
    ),
    Rule(
        ("METAGGA",),
        lambda p: _functional(p) == "LIBXC" and "LIBXC1" not in p.incar,
        "METAGGA = LIBXC needs LIBXC1 (and LIBXC2), the functional's names",
        refuse=True,
    ),
    Rule(
        ("METAGGA",),
        lambda p: bool(_functional(p)) and not p.incar.get("LASPH"),
        "METAGGA = {METAGGA} wants LASPH = True",
    ),
    Rule(
        tuple(_FUNCTIONAL_DEFAULTS),
        _other_functional,
        "{given} makes another functional of the {functional} that was asked for (--functional, "
        "atoms.info['functional']), which has {expected}; leave one of them out",
        refuse=True,
    ),
    Rule(
        ("AEXX",),
        lambda p: "AEXX" in p.functional_tags and p.incar["AEXX"] != p.functional_tags["AEXX"],
        "AEXX = {AEXX} is another share of exact exchange than that of {functional}",
    ),
    Rule(
        ("METAGGA",),
        lambda p: bool(_functional(p)) and not p.functional_tags,
        "METAGGA = {METAGGA} is not the PBE of the POTCARs and the training data: its minimum and lattice constant "
        "are others",
    ),
    Rule(
        ("GGA",),
        lambda p: not _is(p, "GGA", "PE") and not p.functional_tags,
        "GGA = {GGA} is not the PBE of the POTCARs and the training data: its minimum and lattice constant are "
        "others",
    ),
    Rule(
        ("IVDW", "LUSE_VDW"),
        lambda p: _number(p, "IVDW", 0) > 0 or bool(p.incar.get("LUSE_VDW")),
        "IVDW = {IVDW}, LUSE_VDW = {LUSE_VDW}: the training data are PBE without dispersion; the minimum is another",
    ),
    Rule(
        ("LHFCALC",),
        lambda p: bool(p.incar["LHFCALC"]) and (_is(p, "ALGO", "Fast", "VeryFast", "F", "V") or _is(p, "IALGO", 48)),
        "LHFCALC does not work with ALGO = {ALGO}; use All, Damped or Normal",
        refuse=True,
    ),
    Rule(
        ("LHFCALC",),
        lambda p: bool(p.incar["LHFCALC"]) and not p.functional_tags,
        "LHFCALC is a hybrid, not the PBE of the training data: its minimum and lattice constant are others",
    ),
    Rule(
        ("SIGMA",),
        lambda p: _number(p, "SIGMA", 1) <= 0 and _number(p, "ISMEAR", 1) >= -1,
        "SIGMA = {SIGMA} must be positive with ISMEAR = {ISMEAR}",
        refuse=True,
    ),
    Rule(
        ("ISMEAR",),
        lambda p: _is(p, "ISMEAR", -2) and "FERWE" not in p.incar,
        "ISMEAR = -2 needs FERWE, the occupations",
        refuse=True,
    ),
    # DFT+U
    Rule(
        _LDAU,
        lambda p: not p.incar.get("LDAU") and {"which": ", ".join(tag for tag in _LDAU if tag in p.incar)},
        "{which} has no effect without LDAU = True; give it, or leave them out",
        refuse=True,
    ),
    Rule(
        ("LDAU",),
        lambda p: bool(p.incar["LDAU"]) and not {"LDAUL", "LDAUU"} <= set(p.incar),
        "LDAU needs LDAUL (which shell, -1 for none) and LDAUU (in eV) for each species: {species}",
        refuse=True,
    ),
    # one tag beside another, or beside a file
    Rule(
        ("ICHARG",),
        lambda p: _number(p, "ICHARG", 2) >= 10 and _relaxes(p),  # noqa: PLR2004 - fixed density
        "ICHARG = {ICHARG} keeps the density fixed: its forces relax nothing",
        refuse=True,
    ),
    Rule(
        ("ICHARG",),
        lambda p: _is(p, "ICHARG", 1, 11) and "CHGCAR" not in p.present,
        "ICHARG = {ICHARG} reads a CHGCAR, and there is none in this folder",
    ),
    Rule(
        ("ISTART",),
        lambda p: _number(p, "ISTART", 0) > 0 and "WAVECAR" not in p.present,
        "ISTART = {ISTART} reads a WAVECAR, and there is none in this folder",
    ),
    Rule(
        ("NPAR",),
        lambda p: "NCORE" in p.incar,
        "NPAR = {NPAR} and NCORE = {NCORE} say the same thing: VASP takes NPAR; leave one of them out",
        refuse=True,
    ),
    Rule(
        ("IALGO",),
        lambda p: "ALGO" in p.incar,
        "IALGO = {IALGO} and ALGO = {ALGO} say the same thing; leave one of them out",
        refuse=True,
    ),
    Rule(
        ("LREAL",),
        lambda p: p.large_cell and not p.incar["LREAL"],
        "LREAL = {LREAL} decides, though a large cell asks for projection in real space",
    ),
)
"""All rules, in the order in which their messages come."""
