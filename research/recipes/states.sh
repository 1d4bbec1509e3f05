#!/usr/bin/env bash
# The state-aware network of h-BN in the weights 0.8.0, from the repository's root, after make.sh:
#   bash research/recipes/states.sh 2DMD_FOLDER HBN_FOLDER
set -euo pipefail
twodmd=$1 hbn=$2
mkdir -p .data runs
python -m research.recipes.hbn_database "$hbn" .data/hbn.extxyz
ase-definet data pack .data/hbn.extxyz .data/hbn.pack --relaxed-only
ase-definet data pack "$twodmd/high_density_defects/hBN_spin_500" .data/bn-high.pack
python -c 'from pathlib import Path
from ase_definet.data.packed import PackedDataset, save_groups
packs = (PackedDataset.open(f".data/{name}.pack") for name in ("hbn", "bn-high"))
save_groups([group for pack in packs for group in pack.groups], Path(".data/bn-states.pack"))'
ase-definet train research/recipes/bn-states.toml
ase-definet weights export runs/bn-states runs/bn-states.safetensors --version 0.8.0
ase-definet train research/recipes/bn-states-end.toml
ase-definet weights export runs/bn-states-end runs/bn-states-end.safetensors --version 0.8.0
ase-definet weights combine default runs/0.8.0.safetensors --name default --version 0.8.0 --beside --host-weights BN,BN-bulk runs/bn-states-end.safetensors
# measured with the weights 0.7.0, which have seen nothing of that database
python -m research.experiments.near_domain default .data/hbn.pack --card runs/0.8.0.safetensors
# the network itself on compositions that it was not trained on: defects of known elements on new sites
python -m research.experiments.near_domain runs/0.8.0.safetensors .data/hbn.pack --split val --out near_domain_states
