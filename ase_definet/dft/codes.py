"""The DFT codes that input sets are written for, and the one way to write and to take back any of them."""

from __future__ import annotations

import os
import warnings as python_warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase_definet.dft import aims, cp2k, espresso, gpaw
from ase_definet.dft.input_set import Code, input_set
from ase_definet.dft.readme import code_readme
from ase_definet.dft.vasp import carried_provenance, write_vasp_inputs
from ase_definet.dft.vasp_output import read_vasp_steps
from ase_definet.errors import DefiNetWarning, InputSetError
from ase_definet.structures.conversion import as_atoms
from ase_definet.structures.files import write_set

CODES: Mapping[str, Code] = {
    "vasp": Code(
        "vasp",
        "VASP",
        None,  # write_vasp_inputs has more: INCAR rules, functionals, POTCARs
        ("POSCAR", "INCAR", "KPOINTS", "POTCAR.spec"),
        ("vasprun.xml", "vasprun.xml.gz", "OUTCAR", "OUTCAR.gz", "OSZICAR"),
        read_vasp_steps,
    ),
    **{code.name: code for code in (espresso.CODE, cp2k.CODE, aims.CODE, gpaw.CODE)},
}
"""All codes by their names; a further one is one file and one entry here."""


@dataclass(frozen=True)
class InputsReport:
    """What :func:`write_inputs` wrote.

    Attributes:
        code: Key of :data:`CODES`.
        directory: Where the files are.
        files: Names of the files written.
        overridden: For each of the user's settings, what it replaced (None: nothing), and the new value.
        warnings: Reasons to look twice; also in README.txt.
    """

    code: str
    directory: Path
    files: tuple[str, ...]
    overridden: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def write_inputs(
    structure: object,
    directory: str | os.PathLike[str],
    code: str = "vasp",
    profile: str = "few-steps",
    *,
    settings: Mapping[str, Any] | None = None,
    magnetic: str = "high-spin",
    kpoints: tuple[int, int, int] | float = (1, 1, 1),
    dipole: bool = False,
    charge: int | None = None,
    spin_multiplicity: int | None = None,
    functional: str | None = None,
    library: str | os.PathLike[str] | None = None,
    notes: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    predicted: bool | None = None,
    overwrite: bool = False,
) -> InputsReport:
    """Write the input set of a DFT code: the same physics for each, in its own words.

    PBE, fixed cell, Gaussian smearing of 0.05 eV (CP2K: none at Γ, Fermi-Dirac elsewhere), one k-point along vacuum,
    forces of 0.01 eV/Å, 30 steps. The atoms keep their order (VASP's are sorted where a species comes in several
    blocks), and what holds them.

    Args:
        structure: An Atoms or a pymatgen Structure, with a full, right-handed cell. Charge and spin multiplicity are
            those of :func:`~ase_definet.structures.state.state_of`. FixAtoms, FixCartesian, and FixScaled, FixedPlane
            and FixedLine along Cartesian axes (VASP: cell vectors) are written; others are named as dropped.
        directory: Where to write; made if it does not exist.
        code: Key of :data:`CODES`.
        profile: ``few-steps`` for a good start, ``robust`` for a doubtful one, ``paper`` for the published settings
            as far as the code has them.
        settings: What replaces or extends the settings, in the code's own keys: INCAR tags, ``ecutwfc``,
            ``FORCE_EVAL/DFT/MGRID/CUTOFF``, keywords of control.in, parameters of GPAW.
        magnetic: Ferromagnetic ``high-spin`` start; ``parity`` of the electrons for the total moment; or ``none``.
            Moments of the atoms take precedence.
        kpoints: Γ-centred grid, or largest spacing of k-points in Å⁻¹ (2π included).
        dipole: Whether to correct the dipole along the one vacuum axis; for neutral, asymmetric layers.
        charge: Net charge in e; default is the structure's.
        spin_multiplicity: The one to hold; default is the structure's, and otherwise the code finds the moment (CP2K
            holds the lowest).
        functional: Default is the structure's, or PBE; no code but VASP takes another.
        library: Folder of pseudopotentials (Quantum ESPRESSO), data (CP2K) or species defaults (FHI-aims).
        notes: Lines to add to README.txt.
        provenance: What made the prediction; default is what the relaxer left in ``atoms.info``.
        predicted: Whether README.txt calls the structure a prediction (True) or the control run (False).
        overwrite: Whether files in the way may be replaced.

    Returns:
        What was written.

    Raises:
        StructureError: There are no atoms, no full right-handed cell, or values that are not finite.
        InputSetError: The code is unknown, a pseudopotential or basis set is missing, or the options contradict the
            structure or each other.
        OutputExistsError: A file is in the way.

    Examples:
        >>> from ase import Atoms
        >>> from tempfile import mkdtemp
        >>> layer = Atoms("BN", [[0, 0, 10], [1.255, 0.725, 10]], cell=[2.51, 2.51, 20, 90, 90, 120], pbc=True)
        >>> write_inputs(layer, mkdtemp(), code="gpaw", kpoints=0.3).files
        ('start.extxyz', 'relax.py', 'README.txt')
    """
    if code not in CODES:
        raise InputSetError(f"Unknown code {code!r}; choose from {', '.join(CODES)}.")
    asked: dict[str, Any] = {
        "magnetic": magnetic,
        "kpoints": kpoints,
        "dipole": dipole,
        "charge": charge,
        "functional": functional,
    }
    title, files = CODES[code].title, CODES[code].files
    if files is None:
        asked |= {"profile": profile, "incar": settings, "spin_multiplicity": spin_multiplicity}
        asked |= {"notes": notes, "provenance": provenance, "predicted": predicted, "overwrite": overwrite}
        return _write_vasp(structure, directory, library, **asked)
    folder = None if library is None else Path(library)
    plan = input_set(
        structure, title, profile, multiplicity=spin_multiplicity, library=folder, settings=settings, **asked
    )
    written = files(plan)
    if plan.charge_note:
        python_warnings.warn(plan.charge_note, DefiNetWarning, stacklevel=2)
    if provenance is None:
        provenance, carried = carried_provenance(as_atoms(structure))
        notes = [*notes, *carried]
    predicted = True if predicted is None and provenance else predicted
    told = code_readme(title, plan, written, notes=notes, provenance=provenance, predicted=predicted)
    texts = {**written.texts, "README.txt": told}
    target = Path(directory).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_set(target, texts, overwrite=overwrite)
    return InputsReport(code, target, tuple(texts), dict(written.overridden), (*plan.warnings, *written.warnings))


def _write_vasp(
    structure: object, directory: str | os.PathLike[str], library: str | os.PathLike[str] | None, **options: Any
) -> InputsReport:
    """Write VASP's input set."""
    if library is not None:
        raise InputSetError("VASP's POTCARs come from pymatgen's library: set PMG_VASP_PSP_DIR instead of library.")
    report = write_vasp_inputs(structure, directory, **options)
    return InputsReport("vasp", report.directory, report.files, report.overridden, report.warnings)
