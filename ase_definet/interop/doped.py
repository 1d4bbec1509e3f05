"""Structure, host and charge from the defect entries of doped and pymatgen-analysis-defects.

Neither package is imported: their objects hold everything that is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ase_definet.errors import StructureError
from ase_definet.structures.charges import whole_charge
from ase_definet.structures.conversion import keep_source, stated_charge


@dataclass(frozen=True, eq=False)
class DefectStructure:
    """A defect supercell, its host and its charge.

    Attributes:
        structure: The defect supercell, a pymatgen Structure; its charge is that of the defect.
        host: The pristine supercell, or cell, a pymatgen Structure.
        charge: Charge of the cell, in units of e.
        name: Name in the other package, such as ``v_S_-1``.
    """

    structure: Any
    host: Any
    charge: int
    name: str


def from_doped(entry: Any) -> DefectStructure:
    """Return structure, host and charge of a defect of doped or pymatgen-analysis-defects.

    The order of the sites is that of the entry. A charged defect keeps its charge, which the network takes where it
    was trained on charged defects, and which input sets turn into NELECT. If an entry has no charge state, the charge
    of its structure is used, if there is one; oxidation states of its sites are not added up.

    Args:
        entry: A ``DefectEntry`` of doped or of pymatgen-analysis-defects, or a ``Defect`` of the latter, for which
            its own ``get_supercell_structure`` builds the cell.

    Returns:
        Ready for ``relaxer.relax(defect.structure, defect.host)``.

    Raises:
        StructureError: The object is neither, or holds no supercell.

    References:
        Kavanagh et al., J. Open Source Softw. 9, 6433 (2024), doped; Shen et al., J. Open Source Softw. 9, 5941
        (2024), pymatgen-analysis-defects.
    """
    defect = getattr(entry, "defect", entry)
    structure = getattr(entry, "defect_supercell", None)
    host = getattr(entry, "bulk_supercell", None)
    if structure is None and getattr(entry, "sc_entry", None) is not None:
        structure = entry.sc_entry.structure
    if host is None and getattr(entry, "bulk_entry", None) is not None:
        host = getattr(entry.bulk_entry, "structure", None)
    if structure is None and hasattr(defect, "get_supercell_structure"):
        structure = defect.get_supercell_structure()
    if host is None:
        host = getattr(defect, "structure", None)
    if structure is None or host is None:
        raise StructureError(
            f"expected a DefectEntry of doped or a Defect of pymatgen-analysis-defects with its supercell, found "
            f"{type(entry).__name__}; of a DefectsGenerator take the values of its defect_entries"
        )
    stated = getattr(entry, "charge_state", None)
    if stated is None:  # the structure's own, but none that pymatgen adds up from oxidation states
        stated = stated_charge(structure) or 0
    charge = whole_charge(stated, "charge_state")
    structure = structure.copy()
    structure.set_charge(charge)
    keep_source(structure)
    return DefectStructure(structure, host, charge, str(getattr(entry, "name", "") or type(entry).__name__))
