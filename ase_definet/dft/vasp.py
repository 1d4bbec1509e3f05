"""VASP input sets that finish what the network began.

Only pymatgen's file writers are used, imported when first needed; the network and torch are not known here.
"""

from __future__ import annotations

import json
import os
import warnings as python_warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from ase_definet.dft.incar import (
    FUNCTIONAL,
    HIGH_SPIN_MOMENT,
    LOW_SPIN_MOMENT,
    PROFILES,
    UNIT_MOMENT,
    Magnetic,
    Profile,
    parse_incar_overrides,
)
from ase_definet.dft.input_plan import ORDER_FILE, PUBLISHED_VACUUM
from ase_definet.dft.readme import FORCE_LIMIT, readme
from ase_definet.errors import DefiNetWarning, InputSetError
from ase_definet.structures.cell import VACUUM_GAP
from ase_definet.structures.conversion import as_atoms
from ase_definet.structures.files import write_set

if TYPE_CHECKING:
    from ase_definet.dft.relax_set import DefiNetRelaxSet

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
    "DefiNetRelaxSet",
    "InputSetReport",
    "Magnetic",
    "Profile",
    "parse_incar_overrides",
    "restore_order",
    "write_vasp_inputs",
]


def __getattr__(name: str) -> Any:
    """Import what needs pymatgen when it is first used (PEP 562)."""
    if name == "DefiNetRelaxSet":
        from ase_definet.dft.relax_set import DefiNetRelaxSet  # noqa: PLC0415 - slow to import

        return DefiNetRelaxSet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    spin_multiplicity: int | None = None,
    functional: str | None = None,
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
        spin_multiplicity: Number of unpaired electrons plus one; sets NUPDOWN, and moments that add up to it where
            the atoms have none. Default is what the atoms carry (``info["spin_multiplicity"]``), or nothing.
        functional: PBE, PBEsol, SCAN, r2SCAN, HSE06 or PBE0, all with the POTCARs of PBE; for others the set is in
            PBE, and a warning says so. Default is what the atoms carry (``info["functional"]``), or PBE.
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
    from ase_definet.dft.relax_set import DefiNetRelaxSet  # noqa: PLC0415 - slow to import

    target = Path(directory).resolve()
    if provenance is None:
        provenance, carried = _carried_provenance(as_atoms(structure))
        notes = [*notes, *carried]
    input_set = DefiNetRelaxSet(
        profile=profile,
        user_incar_settings=dict(incar or {}),
        magnetic=magnetic,
        kpoint_grid=kpoints,
        dipole=dipole,
        charge=charge,
        spin_multiplicity=spin_multiplicity,
        functional=functional,
        large_cell=large_cell,
    )
    present = frozenset(path.name for path in target.iterdir()) if target.is_dir() else frozenset()
    plan = input_set.plan(structure, present)
    if plan.charge.note:
        python_warnings.warn(plan.charge.note, DefiNetWarning, stacklevel=2)
    files = plan.files()
    files["README.txt"] = readme(
        plan,
        profile,
        notes=notes,
        provenance=provenance,
        predicted=True if predicted is None and provenance else predicted,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_set(target, files, overwrite=overwrite, stale=[ORDER_FILE])
    return InputSetReport(target, tuple(files), dict(plan.incar), dict(plan.overridden), plan.warnings)


def _carried_provenance(atoms: Atoms) -> tuple[dict[str, str], list[str]]:
    """Return what the relaxer left in the atoms: what made the prediction, and its warnings."""
    prefix = "definet_"
    provenance = {k.removeprefix(prefix): str(v) for k, v in atoms.info.items() if str(k).startswith(prefix)}
    return provenance, list(filter(None, [provenance.pop("warnings", "")]))


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
