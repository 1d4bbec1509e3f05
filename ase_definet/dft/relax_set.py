"""The VASP input set as pymatgen, custodian and atomate2 take it; apart, because pymatgen is slow to import."""

from __future__ import annotations

import warnings
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar, VaspInput
from pymatgen.io.vasp.sets import MPScanRelaxSet, VaspInputSet

from ase_definet.dft.incar import FUNCTIONAL, PROFILES
from ase_definet.dft.input_plan import ORDER_FILE, InputPlan, Options, plan_inputs
from ase_definet.errors import DefiNetWarning, InputSetError

_INSTEAD = {
    "user_kpoints_settings": "give kpoint_grid",
    "auto_kspacing": "give kpoint_grid",
    "auto_metal_kpoints": "give kpoint_grid",
    "auto_lreal": "give large_cell",
    "auto_ismear": "give ISMEAR and SIGMA in user_incar_settings",
    "auto_ispin": "give magnetic='none'",
    "inherit_incar": "give the tags in user_incar_settings",
    "constrain_total_magmom": "give NUPDOWN in user_incar_settings, or magnetic='parity'",
    "vdw": "give IVDW in user_incar_settings",
}
"""Options of pymatgen's class that would have no effect here, and what to do instead."""


@dataclass
class DefiNetRelaxSet(VaspInputSet):
    """The input set of :func:`~ase_definet.dft.vasp.write_vasp_inputs`, for pymatgen, custodian and atomate2.

    Sites keep their order; only where a species comes in several blocks are they sorted by species, and
    ``site_order.json`` is then written too, for :func:`~ase_definet.dft.vasp.restore_order`. Moments, selective
    dynamics and the charge are those that the structure carries. What deserves a second look is a DefiNetWarning.

    Args:
        structure: The structure, a pymatgen Structure; an input set may also be made without one, for any number.
        profile: ``few-steps`` (RMM-DIIS, for a good start), ``robust`` (conjugate gradients) or ``paper`` (the
            published settings).
        magnetic: ``high-spin``, ``parity`` of the electron count, or ``none``.
        kpoint_grid: Γ-centred grid, or largest spacing of k-points in Å⁻¹ (2π included).
        dipole: Whether to correct the dipole along the one vacuum axis.
        charge: Charge of the cell in e; default is that of the structure.
        spin_multiplicity: Number of unpaired electrons plus one; default is that of the structure's
            ``properties["spin_multiplicity"]``, or none.
        functional: As for :func:`~ase_definet.dft.vasp.write_vasp_inputs`; default is that of the structure's
            ``properties["functional"]``, or PBE.
        large_cell: Whether to project in real space (LREAL = Auto).
        user_incar_settings: Tags that replace or extend those of the profile.
        use_structure_charge: Whether the charge of the structure counts where ``charge`` is not given.
        sort_structure: Whether pymatgen sorts the sites by electronegativity first, for good.

    Raises:
        InputSetError: The options contradict the structure or each other, or have no effect here.
        StructureError: VASP cannot use the structure.

    Examples:
        >>> from ase_definet.dft.vasp import DefiNetRelaxSet
        >>> from pymatgen.core import Structure
        >>> boron_nitride = Structure([[2.51, 0, 0], [-1.255, 2.174, 0], [0, 0, 20]], ["B", "N"],
        ...                           [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]])
        >>> input_set = DefiNetRelaxSet(boron_nitride, kpoint_grid=(9, 9, 1))
        >>> input_set.incar["IBRION"], input_set.kpoints.kpts, input_set.potcar_symbols
        (1, [(9, 9, 1)], ['B', 'N'])

        In atomate2: ``RelaxMaker(input_set_generator=DefiNetRelaxSet(profile="robust"))``.
    """

    CONFIG: ClassVar[dict[str, Any]] = {
        "PARENT": "none",
        "INCAR": {},
        "POTCAR": MPScanRelaxSet.CONFIG["POTCAR"],
        "POTCAR_FUNCTIONAL": FUNCTIONAL,
    }

    profile: str = "few-steps"
    magnetic: str = "high-spin"
    kpoint_grid: Any = (1, 1, 1)  # three numbers, or one; a list where it comes from JSON
    dipole: bool = False
    charge: int | None = None
    spin_multiplicity: int | None = None
    functional: str | None = None
    large_cell: bool = False
    sort_structure: bool = False
    validate_magmom: bool = False
    use_structure_charge: bool = True

    def __post_init__(self) -> None:
        """Validate the options."""
        if isinstance(self.kpoint_grid, list):
            self.kpoint_grid = tuple(self.kpoint_grid)
        # pymatgen adds W_sv, as in the table, to a set for a structure with W, and warns of it when that is read back
        table = self.CONFIG["POTCAR"]
        asked: dict[str, str] = dict(getattr(self, "user_potcar_settings", None) or {})
        others = {symbol: name for symbol, name in asked.items() if table.get(symbol) != name}
        self.user_potcar_settings: dict[str, str] = {}
        if others or self.user_potcar_functional not in {None, FUNCTIONAL}:
            raise InputSetError(
                f"expected the POTCARs of {FUNCTIONAL} that pymatgen's MPScanRelaxSet chooses, found "
                f"{others or self.user_potcar_functional}: leave them out, or edit POTCAR.spec of the files written"
            )
        super().__post_init__()
        self._config_dict["INCAR"] = dict(PROFILES.get(self.profile, {}))

    def plan(self, structure: object = None, present: frozenset[str] = frozenset()) -> InputPlan:
        """Determine the contents of all files.

        Args:
            structure: An Atoms or a Structure; default is the set's own.
            present: Names of files already in the folder.

        Raises:
            InputSetError: There is no structure, or the options contradict it or each other.
            StructureError: VASP cannot use the structure.
        """
        self._refuse_what_has_no_effect()
        given = self.structure if structure is None else structure
        if given is None:
            raise InputSetError("the input set has no structure: give it one, as structure or to get_input_set")
        options = Options(
            profile=self.profile,
            incar=self.user_incar_settings,
            magnetic=self.magnetic,
            kpoints=self.kpoint_grid,
            dipole=self.dipole,
            charge=self.charge,
            structure_charge=self.use_structure_charge,
            spin_multiplicity=self.spin_multiplicity,
            functional=self.functional,
            large_cell=self.large_cell,
        )
        return plan_inputs(given, options, present | frozenset(self.files_to_transfer))

    @property
    def incar(self) -> Incar:
        """The INCAR."""
        return self.plan().incar

    @property
    def kpoints(self) -> Kpoints:
        """The KPOINTS, Γ-centred."""
        return self.plan().kpoints()

    @property
    def poscar(self) -> Poscar:
        """The POSCAR, with selective dynamics where anything is fixed."""
        return self.plan().poscar()

    @property
    def potcar_symbols(self) -> list[str]:
        """The POTCAR symbols, in the order of POSCAR."""
        return self.plan().potcar_symbols

    def get_input_set(self, structure: Any = None, prev_dir: Any = None, potcar_spec: bool = False) -> VaspInput:  # noqa: FBT001, FBT002 - pymatgen's
        """Return all files as a VaspInput; what deserves a second look is a DefiNetWarning.

        Args:
            structure: A Structure; default is the set's own.
            prev_dir: Folder of a run whose last structure is taken where none is given.
            potcar_spec: Whether to name the POTCARs only.
        """
        self._set_previous(prev_dir)
        if structure is not None:
            self.structure = structure
        plan = self.plan()
        for text in plan.warnings:
            warnings.warn(text, DefiNetWarning, stacklevel=2)
        order = plan.site_order()
        found = VaspInput(
            plan.incar,
            plan.kpoints(),
            plan.poscar(),
            "\n".join(plan.potcar_symbols) if potcar_spec else self.potcar,
            potcar_spec=potcar_spec,
            optional_files=None if order is None else {ORDER_FILE: order},
        )
        found["INCAR"] = plan.incar  # a VaspInput copies it to an Incar that writes R2SCAN as R2scan
        return found

    def _refuse_what_has_no_effect(self) -> None:
        """Refuse what would silently be ignored; here, because atomate2 sets options of a set that exists."""
        defaults = {f.name: f.default if f.default is not MISSING else {} for f in fields(self)}
        for name, instead in _INSTEAD.items():
            value = getattr(self, name)
            if value != defaults[name]:
                raise InputSetError(f"{name} = {value!r} has no effect on a {type(self).__name__}: {instead}")
