"""Draw the README's picture: the example before and after, displacements enlarged.

Run as ``python docs/make_picture.py``; needs matplotlib (``pip install ase-definet[dev]``).
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.io import read
from matplotlib import pyplot as plt

from ase_definet import DefiNetRelaxer

ENLARGED = 15
ROOT = Path(__file__).parent.parent

mpl.use("Agg")
atoms = read(ROOT / "examples" / "mos2" / "POSCAR")
result = DefiNetRelaxer(host="MoS2", device="cpu").predict(atoms)
figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, constrained_layout=True)
for ax, structure, title in zip(
    axes, (atoms, result.atoms), ("guess", f"one pass later (displacements x {ENLARGED})"), strict=True
):
    order = np.argsort(structure.positions[:, 2])
    numbers = structure.numbers[order]
    ax.scatter(
        *structure.positions[order, :2].T,
        s=130 * covalent_radii[numbers] ** 2,
        c=jmol_colors[numbers],
        edgecolors="0.3",
        linewidths=0.5,
    )
    for defect in result.site_map.defects:
        ax.plot(*defect.position[:2], marker="o", ms=22, mec="crimson", mfc="none", mew=1.6)
        ax.annotate(defect.name, defect.position[:2], xytext=(12, 10), textcoords="offset points", color="crimson")
    ax.set(aspect="equal", title=title, xlabel="x (Å)")
axes[0].set_ylabel("y (Å)")
move = result.displacement * ENLARGED
axes[1].quiver(
    *atoms.positions[:, :2].T, *move[:, :2].T, angles="xy", scale_units="xy", scale=1, width=0.003, zorder=3
)
target = ROOT / "docs" / "images" / "before-after.png"
figure.savefig(target, dpi=110)
print("wrote", target)
