#!/usr/bin/env bash
# What the tool says of itself: a charged defect that it knows, and three structures that lie further and further outside.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)/trust
out=$(mktemp -d)
# inside: a charged carbon dimer in an h-BN monolayer, a doublet, with the geometry of HSE06
ase-definet relax "$here/POSCAR_BN_C_B_C_N" --host BN --charge -1 --spin 2 --functional HSE06 -o "$out/dimer" --report "$out/dimer.json"
# near: a host that was not trained on, like two that were
ase-definet relax "$here/POSCAR_MoSe2_v_Se" --host MoSe2 -o "$out/v_Se" --report "$out/v_Se.json"
# outside: an element, and a host, of which nothing is known; the atoms stay on their sites
ase-definet relax "$here/POSCAR_MoS2_Re_Mo" --host MoS2 -o "$out/Re_Mo" --report "$out/Re_Mo.json"
ase-definet relax "$here/POSCAR_MgO_v_O" --host "$here/POSCAR_MgO_host" -o "$out/v_O" --report "$out/v_O.json"
# --strict makes of that an error, --extrapolate an answer without an expected error
if ase-definet relax "$here/POSCAR_MoS2_Re_Mo" --host MoS2 -o "$out/strict" --strict; then exit 1; fi
ase-definet relax "$here/POSCAR_MoS2_Re_Mo" --host MoS2 -o "$out/extrapolated" --extrapolate
