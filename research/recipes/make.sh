#!/usr/bin/env bash
# The runs behind the bundled weights `default` 0.7.0 in their order, as far as they can be repeated: README.md beside this
# file says where the original runs went differently. Killed, it goes on where it was. 2DMD is expected in ./2dmd.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=0.7.0
mkdir -p .data runs

# run NAME [CONFIG]: train and export, unless that is done
run() {
  [ -e "runs/$1.safetensors" ] && return
  ase-definet train "${2:-research/recipes/$1.toml}"
  ase-definet weights export "runs/$1" "runs/$1.safetensors" --version $version
}

# label PACK OUT N WEIGHTS...: add structures labelled by networks to a pack, unless that is done
label() { [ -e "$2" ] || python -m research.distill "$@"; }

[ -e .data/2dmd.pack ] || ase-definet data pack 2dmd .data/2dmd.pack

# the general network (README.md, note 1)
run first
run noisy
label .data/2dmd.pack .data/labelled.pack 800 runs/noisy.safetensors runs/first.safetensors
run end
run low

# networks for some hosts (README.md, notes 2 and 3)
run gase-inse
run p-bn
run p
for seed in 21 22 23; do
  sed -e "s|^seed = .*|seed = $seed|" -e "s|^out = .*|out = \"runs/bn-$seed\"|" research/recipes/bn.toml > "runs/bn-$seed.toml"
  run "bn-$seed" "runs/bn-$seed.toml"
done
python -m research.experiments.comparisons .data/2dmd.pack "memorisation: dropout 0.25, noisy"
small=runs/comparisons/memorisation-dropout-0-25-noisy-starts-in-half-of-the-structures/weights.safetensors
label .data/2dmd.pack .data/labelled-own.pack 1500 \
  {GaSe,InSe}=runs/gase-inse.safetensors {GaSe,InSe,P,P}=runs/end.safetensors \
  {P,BN,BN}=runs/p-bn.safetensors P=runs/p.safetensors P=$small BN=runs/bn-{22,23}.safetensors
run gase-inse-end
run p-student
run bn-student

# 0.5.0: wide networks for black phosphorus and h-BN; MoS2 and WSe2 by themselves
run p-wide
label .data/2dmd.pack .data/labelled-p.pack 1500 \
  P=runs/{low,p-wide,p,p-student,p-bn}.safetensors
run p-end
run bn-wide
label .data/2dmd.pack .data/labelled-bn.pack 2000 \
  BN=runs/{bn-wide,bn-student,p-bn,bn-21,bn-23}.safetensors
run bn-end
run mos2-wse2
label .data/2dmd.pack .data/labelled-mos2-wse2.pack 1200 {MoS2,WSe2}=runs/{mos2-wse2,low}.safetensors
run mos2-wse2-end

# 0.6.0: a wide network for GaSe and InSe; teachers predict again from noisy positions half-way to their mean
run gase-inse-wide
label .data/2dmd.pack .data/labelled-p-next.pack 2000 P=runs/p-end.safetensors \
  --repeat P=runs/{p-wide,p-student}.safetensors --draws 3
run p-next
label .data/labelled-p-next.pack .data/labelled-p-last.pack 2200 P=runs/{p-next,p-end}.safetensors \
  --repeat P=runs/{p-wide,p-student}.safetensors
run p-last
gase_inse=({GaSe,InSe}=runs/{gase-inse-end,gase-inse-wide}.safetensors --repeat {GaSe,InSe}=runs/{gase-inse-wide,gase-inse}.safetensors)
label .data/2dmd.pack .data/labelled-gase-inse-student.pack 1200 "${gase_inse[@]}" --draws 3
run gase-inse-student
label .data/2dmd.pack .data/labelled-gase-inse-last.pack 2600 "${gase_inse[@]}"
run gase-inse-last
label .data/2dmd.pack .data/labelled-bn-last.pack 1500 BN=runs/{bn-end,bn-wide,bn-student}.safetensors \
  --repeat BN=runs/bn-wide.safetensors
run bn-last

ase-definet weights combine runs/low.safetensors runs/0.6.0.safetensors --name default --version 0.6.0 --overwrite \
  --host-weights GaSe,InSe runs/gase-inse-last.safetensors --host-weights P runs/p-last.safetensors --host-weights BN runs/bn-last.safetensors \
  --host-weights MoS2,WSe2 runs/mos2-wse2-end.safetensors

# 0.7.0: deep networks, and Muon
run gase-inse-deep
label .data/2dmd.pack .data/labelled-bn-deep.pack 2000 BN=runs/0.6.0.safetensors
run bn-deep
label .data/2dmd.pack .data/labelled-gase-inse-deep.pack 1700 \
  {GaSe,InSe}=runs/{0.6.0,gase-inse-deep}.safetensors --repeat {GaSe,InSe}=runs/gase-inse-deep.safetensors
run gase-inse-deep-end

ase-definet weights combine runs/0.6.0.safetensors ase_definet/weights/default.safetensors --name default --version $version --overwrite \
  --host-weights GaSe,InSe runs/gase-inse-deep-end.safetensors --host-weights BN runs/bn-deep.safetensors
