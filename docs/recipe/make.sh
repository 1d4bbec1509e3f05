#!/usr/bin/env bash
# The runs behind the bundled weights `default` 0.7.0, as they went on two CPU cores; each `train` resumes when killed.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=0.7.0
run() { ase-definet train "docs/recipe/$1.toml"; ase-definet weights export "runs/$1" "runs/$1.safetensors" --version $version; }

ase-definet data pack 2dmd .data/2dmd.pack

# the general network (the second teacher of `end` were the weights 0.2.1, which came from the same first run)
run first
run noisy
python docs/distill.py .data/2dmd.pack .data/labelled.pack 800 runs/noisy.safetensors runs/first.safetensors
run end
run low

# networks for some hosts; `p-bn` labelled structures, and began `bn-student`, as it was after 3,700 of its 5,000 steps,
# when it labelled for `p-end` it was at their end
run gase-inse
run p-bn
run p        # a second one was that of docs/experiments.py, "dropout 0.25, half of the structures start on their way"
run bn       # three times, with seeds 21, 22 and 23
python docs/experiments.py .data/2dmd.pack "by heart: dropout 0.25, half"
small=runs/experiments/by-heart-dropout-0-25-half-of-the-structures-start-on-their-way/weights.safetensors
python docs/distill.py .data/2dmd.pack .data/labelled-own.pack 1500 \
  {GaSe,InSe}=runs/gase-inse.safetensors {GaSe,InSe,P,P}=runs/end.safetensors \
  {P,BN,BN}=runs/p-bn.safetensors P=runs/p.safetensors P=$small {BN,BN}=runs/bn.safetensors
run gase-inse-end
run p-student
run bn-student

# 0.5.0: wide networks for black phosphorus and h-BN; MoS2 and WSe2 by themselves
run p-wide
python docs/distill.py .data/2dmd.pack .data/labelled-p.pack 1500 \
  P=runs/{low,p-wide,p,p-student,p-bn}.safetensors
run p-end
run bn-wide
python docs/distill.py .data/2dmd.pack .data/labelled-bn.pack 2000 \
  BN=runs/{bn-wide,bn-student,p-bn,bn,bn}.safetensors  # p-bn after 3,700 steps, bn with seeds 21 and 23
run bn-end
run mos2-wse2  # its length was 12,000 steps until step 4,700; the rate began to fall there
python docs/distill.py .data/2dmd.pack .data/labelled-mos2-wse2.pack 1200 {MoS2,WSe2}=runs/{mos2-wse2,low}.safetensors
run mos2-wse2-end

# 0.6.0: a wide network for GaSe and InSe; teachers are asked again, with the atoms begun half-way to their mean
# (docs/distill.py, DRAWS: 3 for labelled-p-next and labelled-gase-inse-student, 1 for the others)
run gase-inse-wide
python docs/distill.py .data/2dmd.pack .data/labelled-p-next.pack 2000 P=runs/p-end.safetensors \
  --again P=runs/{p-wide,p-student}.safetensors
run p-next
python docs/distill.py .data/labelled-p-next.pack .data/labelled-p-last.pack 2200 P=runs/{p-next,p-end}.safetensors \
  --again P=runs/{p-wide,p-student}.safetensors
run p-last
gase_inse=({GaSe,InSe}=runs/{gase-inse-end,gase-inse-wide}.safetensors --again {GaSe,InSe}=runs/{gase-inse-wide,gase-inse}.safetensors)
python docs/distill.py .data/2dmd.pack .data/labelled-gase-inse-student.pack 1200 "${gase_inse[@]}"
run gase-inse-student
python docs/distill.py .data/2dmd.pack .data/labelled-gase-inse-last.pack 2600 "${gase_inse[@]}"
run gase-inse-last
python docs/distill.py .data/2dmd.pack .data/labelled-bn-last.pack 1500 BN=runs/{bn-end,bn-wide,bn-student}.safetensors \
  --again BN=runs/bn-wide.safetensors
run bn-last

ase-definet weights combine runs/low.safetensors runs/0.6.0.safetensors --name default --version 0.6.0 --overwrite \
  --host-weights GaSe,InSe runs/gase-inse-last.safetensors --host-weights P runs/p-last.safetensors --host-weights BN runs/bn-last.safetensors \
  --host-weights MoS2,WSe2 runs/mos2-wse2-end.safetensors

# 0.7.0: deep networks, and Muon
run gase-inse-deep
python docs/distill.py .data/2dmd.pack .data/labelled-bn-deep.pack 2000 BN=runs/0.6.0.safetensors
run bn-deep
python docs/distill.py .data/2dmd.pack .data/labelled-gase-inse-deep.pack 1700 \
  {GaSe,InSe}=runs/{0.6.0,gase-inse-deep}.safetensors --again {GaSe,InSe}=runs/gase-inse-deep.safetensors
run gase-inse-deep-end

ase-definet weights combine runs/0.6.0.safetensors ase_definet/weights/default.safetensors --name default --version $version --overwrite \
  --host-weights GaSe,InSe runs/gase-inse-deep-end.safetensors --host-weights BN runs/bn-deep.safetensors
