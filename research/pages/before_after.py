"""Draw the README's picture: the example before and after, displacements enlarged.

Run as ``python -m research.pages.before_after``; needs matplotlib (``pip install ase-definet[dev]``).
"""

from ase.io import read

from ase_definet import DefiNetRelaxer
from ase_definet.plotting.structure import draw_relaxation
from research.paths import DOCS, ROOT

atoms = read(ROOT / "examples" / "mos2" / "POSCAR")
result = DefiNetRelaxer(host="MoS2", device="cpu").predict(atoms)
target = DOCS / "images" / "before-after.png"
print("wrote", draw_relaxation(atoms, result.atoms, target, defects=result.site_map.defects, overwrite=True))
