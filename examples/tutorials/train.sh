#!/usr/bin/env bash
# %% hide
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cd "$(mktemp -d)"

# %% [markdown]
# # Train on your own pairs
#
# Your host is not in the library, or your defects are not in the training data, but you have relaxations of your own. Some dozens
# of them are enough to begin with. This tutorial stays with what runs in a minute: vacancies and gold atoms in copper, relaxed with
# the EMT potential instead of DFT, and a network that is far too small.
#
# ## Pairs
#
# A pair is one structure before and after relaxation. Extended XYZ with the array `relaxed_positions` is the simplest format;
# folders of CIFs, ASE databases and VASP runs work as well ([all formats](../training.md#data)).

# %%
cat > make_pairs.py <<'PYTHON'
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from ase.optimize import BFGS

host = bulk("Cu", cubic=True, a=3.6)
write("Cu.cif", host)
rng = np.random.default_rng(0)
pairs = []
for k in range(60):
    atoms = host.repeat(2)
    defects = rng.choice(len(atoms), 2, replace=False)
    atoms.symbols[defects[0]] = "Au"
    del atoms[defects[1]]
    relaxed = atoms.copy()
    relaxed.calc = EMT()
    BFGS(relaxed, logfile=None).run(fmax=0.01, steps=100)
    atoms.set_array("relaxed_positions", relaxed.positions)
    atoms.info |= {"id": f"pair-{k}", "subset": "emt/Cu", "host_file": "Cu.cif"}
    pairs.append(atoms)
write("pairs.extxyz", pairs)
PYTHON
python make_pairs.py

# %% [markdown]
# ## Pack and check
#
# Every pair is matched to its host, and those that do not belong together are listed and left out. The source names no splits, so
# one is drawn:

# %%
ase-definet data pack pairs.extxyz pairs.pack --split 0.8 0.2 0.0 --seed 0
ase-definet data info pairs.pack

# %% [markdown]
# ## Train
#
# `--preset small` is for first tries, `base` for real runs. If it is killed, the same command goes on.

# %%
ase-definet train --data pairs.pack --preset small --steps 200 --out runs/copper > training.txt
tail -n 1 training.txt
ase-definet weights export runs/copper copper.safetensors --version 1

# %% [markdown]
# ## Is it any good?
#
# Compare with the ideal sites, which need no network at all, on pairs that it was not trained on:

# %%
ase-definet evaluate --data pairs.pack --split val --model copper.safetensors --no-superposition

# %% [markdown]
# Then relax with them:

# %%
python - <<'PYTHON'
from ase.io import read, write
write("POSCAR", read("pairs.extxyz", 0), format="vasp")
PYTHON
ase-definet relax POSCAR --host Cu.cif --model copper.safetensors -o relaxed.vasp

# %% [markdown]
# ## With real data
#
# Start from the bundled weights (`initial_weights = "default"` in a TOML file), give the run some thousand steps, and put the result beside
# the bundled networks with `ase-definet weights combine`. [Training](../training.md) has the settings, and what the bundled weights were made
# with.
