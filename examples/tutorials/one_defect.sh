#!/usr/bin/env bash
# %% hide
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "$(mktemp -d)"
ln -s "$examples" examples

# %% [markdown]
# # One defect, to VASP
#
# You have a POSCAR with a defect in it, and want DFT to start from a better geometry. The example is an 8x8 cell of MoS2 with two
# S vacancies and a W atom on a Mo site.
#
# ## Is it what you think it is?
#
# `match` runs no network. It says which supercell of the host the structure is, and which sites are defects:

# %%
ase-definet match examples/mos2/POSCAR --host MoS2

# %% [markdown]
# If a defect is missing here, or one too many is listed, the structure is not what you meant, or the host is another one: stop
# and look. `--host` also takes the file of your own pristine cell, and `--host auto` searches the library.
#
# ## Relax

# %%
ase-definet relax examples/mos2/POSCAR --host MoS2 -o relaxed.vasp --vasp run --report report.json

# %% [markdown]
# The last row before the files is the one to read. The expected error is an estimate of the distance between each atom and its
# position in DFT. There is no row of `trust` and no warning here, so the structure is like those the network was trained on;
# [when to distrust a prediction](distrust.md) shows the other cases.
#
# `report.json` has all of this for scripts:

# %%
python - <<'PYTHON'
import json
(record,) = json.load(open("report.json"))
print("defects ", *(defect["name"] for defect in record["defects"]))
for key in ("trust", "method", "warnings"):
    print(f"{key:8}", record[key])
PYTHON

# %% [markdown]
# ## The input set

# %%
cat run/INCAR

# %%
cat run/README.txt

# %% [markdown]
# POTCAR is not included, because its licence does not allow it: build it as `POTCAR.spec` says, or set `PMG_VASP_PSP_DIR` and it is
# written for you. Then run VASP in the folder. The settings are those of the training data, so that DFT relaxes to the minimum that
# the network has learnt; any tag can be replaced with `--incar`.
#
# After the first ionic step, look at the largest force. If it exceeds 0.5 eV/Å, the prediction was poor, and the set should be
# written again with `--profile robust`: the default optimizer is fast near a minimum and unreliable far from one.
#
# ## Was it worth it?
#
# `--from-unrelaxed` writes a control set beside the first, with the atoms on the host's sites and the same settings:

# %%
ase-definet relax examples/mos2/POSCAR --host MoS2 -o relaxed_again.vasp --vasp again --from-unrelaxed
diff again/INCAR again_unrelaxed/INCAR && echo "the same INCAR"

# %% [markdown]
# When both have finished, `ase-definet count-steps --control again_unrelaxed again` prints the ionic steps of each. Leave the control out in
# production. [From prediction to converged DFT](../dft.md) has everything else: k-points, spins, other codes.
