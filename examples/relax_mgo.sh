#!/usr/bin/env bash
# A host that no network knows: a potential relaxes it, if one is installed; without, the atoms stay on their sites.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mktemp -d)
calculators=$(ase-definet calculators)
echo "$calculators"
for potential in sevennet chgnet; do
  if grep -q "^$potential .*; ready$" <<< "$calculators"; then
    ase-definet relax "$here/mgo/POSCAR_v_O" --host MgO --calculator "$potential" -o "$out/$potential.vasp"
  fi
done
ase-definet relax "$here/mgo/POSCAR_v_O" --host MgO -o "$out/POSCAR_relaxed"
