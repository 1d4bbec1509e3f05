"""Relax a defective MoS2 sheet in an ASE script and write what VASP needs to finish."""

import tempfile
from pathlib import Path

import numpy as np
from ase.io import read

from ase_definet import DefiNetRelaxer, write_vasp_inputs

atoms = read(Path(__file__).parent / "mos2" / "POSCAR")

relaxer = DefiNetRelaxer(host="MoS2")
result = relaxer.predict(atoms)

print("supercell:", result.site_map.supercell_name, " defects:", result.site_map.defect_counts)
for defect in result.site_map.defects:
    print(f"  {defect.name:5s} at", np.round(defect.position, 2), "Å")

moved = np.linalg.norm(result.displacement, axis=1)
print(f"largest displacement: {moved.max():.3f} Å (atom {moved.argmax()}), mean {moved.mean():.3f} Å")
for warning in result.warnings:
    print("warning:", warning)

directory = Path(tempfile.mkdtemp()) / "vasp"
report = write_vasp_inputs(result.atoms, directory, profile="few-steps", incar={"NSW": 60})
print("input set:", ", ".join(report.files))
