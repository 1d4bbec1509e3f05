"""Five structures that deserve less and less trust."""

# %% [markdown]
# # When to distrust a prediction
#
# A network always answers. What matters is whether anything supports the answer. Every result says so in `trust`, in
# its warnings and in the expected error of each atom. This page shows the levels on one structure each.

# %%
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import read

from ase_definet import DefiNetError, DefiNetRelaxer, RelaxResult, get_host

EXAMPLES = Path(__file__).resolve().parent.parent


def show(result: RelaxResult) -> None:
    """Print what a result says about itself."""
    defects = ", ".join(f"{name} x{number}" for name, number in result.site_map.defect_counts.items())
    error = "unknown" if result.expected_error is None else f"up to {result.expected_error.max():.3f} Å"
    moved = np.linalg.norm(result.displacement, axis=1).max()
    print(f"{defects}: {result.trust}, moved by {result.method} up to {moved:.2f} Å, expected error {error}")
    for warning in result.warnings:
        print(f"  warning: {warning}")


def layer(name: str, size: int) -> Atoms:
    """Return a supercell of a library host, its layer in 20 Å of vacuum."""
    host = get_host(name)
    atoms = Atoms(host.numbers, host.positions, cell=[*host.cell[:2], [0, 0, 20]], pbc=True)
    atoms.positions[:, 2] += 10 - atoms.positions[:, 2].mean()
    return atoms.repeat((size, size, 1))


# %% [markdown]
# ## Inside
#
# Two vacancies and a tungsten atom in MoS2: the training data are full of these.

# %%
show(DefiNetRelaxer(host="MoS2").predict(read(EXAMPLES / "mos2" / "POSCAR")))

# %% [markdown]
# ## Near
#
# The network was never trained on MoSe2. On vacancies there, it was nevertheless better than leaving the atoms on
# their sites, as DFT calculations of others show. The prediction is used, but there is no measured expected error.

# %%
mose2 = layer("MoSe2", 6)
del mose2[next(atom.index for atom in mose2 if atom.symbol == "Se")]
show(DefiNetRelaxer(host="MoSe2").predict(mose2))

# %% [markdown]
# ## Outside
#
# Nothing supports an answer for oxygen vacancies in MgO. The atoms stay on the host's sites (`none` has moved them),
# so that a pipeline never gets worse structures than it sent.

# %%
mgo = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(2)
del mgo[1]
show(DefiNetRelaxer(host=bulk("MgO", "rocksalt", a=4.21)).predict(mgo))

# %% [markdown]
# `extrapolate=True` (on the command line `--extrapolate`) takes the network's answer all the same. `strict=True`
# (`--strict`) makes every warning an error, which is what a workflow without a reader should use:

# %%
try:
    DefiNetRelaxer(host=bulk("MgO", "rocksalt", a=4.21), strict=True).predict(mgo)
except DefiNetError as error:
    print(type(error).__name__, str(error)[:90], "...")

# %% [markdown]
# ## Refused
#
# The network represents sites. An atom on no site, such as an adatom, is described, and refused:

# %%
adatom = layer("MoS2", 5)
adatom.append("Li")
adatom.positions[-1] = adatom.positions[:-1].mean(axis=0) + np.array([0, 0, 4])
try:
    DefiNetRelaxer(host="MoS2").predict(adatom)
except DefiNetError as error:
    print(type(error).__name__, str(error)[:160], "...")

# %% [markdown]
# ## Within one structure
#
# Trust in a structure is not trust in every atom. The expected error is largest where the network knows least, which
# is usually at the defects. Here are the five atoms to look at first:

# %%
result = DefiNetRelaxer(host="MoS2").predict(read(EXAMPLES / "mos2" / "POSCAR"))
worst = np.argsort(-result.expected_error)[:5]
for index in worst:
    print(f"atom {index} ({result.atoms.symbols[index]}): {result.expected_error[index]:.4f} Å")

# %% [markdown]
# ## What no estimate can tell
#
# - The expected error is calibrated on structures like the training data. It does not see a wrong charge, a wrong
#   magnetic state, or a wrong functional, unless you say what they are.
# - A network that keeps symmetry cannot break it: if DFT would distort a symmetric defect, the prediction stays
#   symmetric.
# - A defect that is bistable has two geometries. The network gives one.
#
# The final test is always the first ionic step of DFT: [what to look at](one_defect.md#the-input-set).
# [Trust](../trust.md) lists what was measured, and [beyond the training data](../extrapolation.md) shows large and
# extended defects.
