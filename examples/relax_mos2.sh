#!/usr/bin/env bash
# From a guessed POSCAR to a relaxed one and a VASP input set, in a folder of its own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mktemp -d)
ase-definet match "$here/mos2/POSCAR" --host MoS2
ase-definet relax "$here/mos2/POSCAR" --host MoS2 -o "$out/POSCAR_relaxed" --vasp "$out/vasp" --report "$out/report.json"
ls "$out/vasp"
