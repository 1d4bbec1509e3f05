#!/usr/bin/env bash
# The weights for properties: energies, gaps and moments of 2DMD. Killed, it goes on where it was.
# properties.sh TABLE: TABLE is 2dmd_labels.csv.xz; 2DMD is expected in ./2dmd, or packed in .data/2dmd.pack.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=0.1.1
mkdir -p .data runs
members=()

# run RECIPE SEED: train and export, unless that is done
run() {
  members+=("runs/$1-$2.safetensors")
  [ -e "runs/$1-$2.safetensors" ] && return
  sed -e "s|^seed = .*|seed = $2|" -e "s|^out = .*|out = \"runs/$1-$2\"|" "research/recipes/$1.toml" > "runs/$1-$2.toml"
  ase-definet train "runs/$1-$2.toml"
  ase-definet weights export "runs/$1-$2" "runs/$1-$2.safetensors" --version $version
}

[ -e .data/2dmd.pack ] || ase-definet data pack 2dmd .data/2dmd.pack
[ -e .data/labels.csv ] || python -m research.recipes.labels_2dmd "$1" .data/labels.csv
[ -e .data/properties.pack ] || ase-definet data pack .data/2dmd.pack .data/properties.pack --labels .data/labels.csv

run energies 0
run energies-wide 0
run energies-long-range 0
run energies-long-range 1
run energies-tmd 2 # goes on from energies-long-range-1
label() { [ -e "$1" ] || python -m research.distill_energies .data/properties.pack "$@"; }
label .data/properties-labelled.pack 800 high/P high/BN
run energies-student 3 # these go on from energies-long-range-0
run energies-student 4
run gaps 0
run gaps-long-range 0
run gaps-long-range 1
run gaps-tmd 0
run gaps-tmd-end 2 # goes on from gaps-long-range-1
ase-definet weights ensemble ase_definet/weights/properties/default.safetensors "${members[@]}" \
  --not-for MoS2,WSe2,P,BN runs/energies-0.safetensors --not-for MoS2,WSe2,P,BN runs/energies-long-range-0.safetensors \
  --not-for P,BN runs/energies-wide-0.safetensors --not-for P,BN runs/energies-long-range-1.safetensors \
  --data .data/properties.pack --name default --version $version --overwrite
ase-definet evaluate --data .data/properties.pack --properties default --pair-additive \
  --json research/results/properties-val.json --plot research/results/plots/properties --overwrite
