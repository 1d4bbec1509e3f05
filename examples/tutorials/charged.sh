#!/usr/bin/env bash
# %% hide
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "$(mktemp -d)"
ln -s "$examples" examples
cp examples/hbn/POSCAR_5x5_C_N POSCAR

# %% [markdown]
# # Charged defects
#
# A carbon atom on a nitrogen site of h-BN is an acceptor. Its charge decides its geometry, so it is an input of the network and of DFT.
#
# ## One command for all charges

# %%
ase-definet relax POSCAR --host BN --charge -1:1 --vasp run --kpoints 0.25

# %% [markdown]
# Each charge has its own result. Read the rows `trust` and `accuracy` of each: for the same host and defect, one charge may be in the training
# data and another not. A file such as POSCAR cannot hold a charge, of which a warning reminds you; extended XYZ does.
#
# ## What DFT is told

# %%
grep NELECT run_q*/INCAR
grep -h "^Charge" run_q-1/README.txt run_q0/README.txt run_q+1/README.txt

# %% [markdown]
# NELECT counts the valence electrons of the POTCARs named in `POTCAR.spec`. The neutral set has none: that is VASP's default.
#
# ## Spin
#
# Without a multiplicity, DFT finds the moment. `--spin` holds it, and a multiplicity that the number of electrons does not allow is an error
# rather than a run that fails later:

# %%
ase-definet relax POSCAR --host BN --charge 0 --spin 2 -o doublet.extxyz
ase-definet relax POSCAR --host BN --charge 0 --spin 1 -o singlet.extxyz || echo "exit code $?"

# %% [markdown]
# ## How much did the charge change?

# %%
python - <<'PYTHON'
from ase.geometry import find_mic
from ase.io import read
import numpy as np

neutral = read("POSCAR_relaxed_q0", format="vasp")
for charge in ("-1", "+1"):
    charged = read(f"POSCAR_relaxed_q{charge}", format="vasp")
    _, moved = find_mic(charged.positions - neutral.positions, neutral.cell)
    print(f"charge {charge}: atoms move by up to {moved.max():.3f} Å from their neutral positions")
PYTHON

# %% [markdown]
# Compare that with the expected errors above before you interpret it. The energy of a charged cell also
# needs a correction for its periodic images, which no geometry contains.
#
# [Charge, spin and functional](../states.md) has the rules, [trust](../trust.md) what was measured for charged defects.
