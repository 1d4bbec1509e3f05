#!/usr/bin/env bash
# %% hide
set -euo pipefail
cd "$(mktemp -d)"

# %% [markdown]
# # A screen
#
# Which arrangements of two Se vacancies in WSe2 relax most, and how far can the predictions be trusted?
#
# ## How many are there?

# %%
ase-definet enumerate --host WSe2 --supercell 6x6 --defects "v_Se*2"

# %% [markdown]
# Arrangements that a symmetry of the host maps onto each other are counted once. Always count before you write: adding a third
# vacancy multiplies the number.

# %%
ase-definet enumerate --host WSe2 --supercell 6x6 --defects "v_Se*3"

# %% [markdown]
# `--max-distance` keeps the compact clusters of them, and `--density` with `--limit` draws random ones instead.
#
# ## Relax them all

# %%
ase-definet enumerate --host WSe2 --supercell 6x6 --defects "v_Se*2" -o candidates.extxyz
ase-definet screen candidates.extxyz --host WSe2 -o results --device cpu
ls results

# %% [markdown]
# If it is interrupted, the same command goes on where it was. With more than one core, `--workers` runs several processes.
#
# ## Look
#
# The table has one row for each structure. Here are those that move furthest:

# %%
python - <<'PYTHON'
import csv
rows = list(csv.DictReader(open("results/table.csv")))
rows.sort(key=lambda row: -float(row["largest_displacement"]))
print("name             multiplicity  trust   moved, Å  expected error, Å")
for row in rows[:4]:
    moved, error = float(row["largest_displacement"]), float(row["largest_expected_error"])
    print(f"{row['name']:16} {row['multiplicity']:>12}  {row['trust']:6} {moved:9.3f} {error:18.3f}")
PYTHON

# %% [markdown]
# `ase-definet report` writes a page with the whole table, distributions, and pictures of the structures that are least certain:

# %%
ase-definet report results -o report.html

# %% [markdown]
# ## On to DFT
#
# The relaxed structures are in `results/structures.extxyz`, with names and expected errors. Take the ones you need:

# %%
python - <<'PYTHON'
from ase.io import read
from ase_definet import write_vasp_inputs

relaxed = read("results/structures.extxyz", ":")
chosen = sorted(relaxed, key=lambda atoms: atoms.info["multiplicity"])[0]
report = write_vasp_inputs(chosen, "run")
print(chosen.info["name"], *report.files)
PYTHON

# %% [markdown]
# [Screening](../screening.md) describes the files, what is checked when a screen is resumed, and how to use a cluster.
