#!/usr/bin/env bash
# A host that no network knows: a potential relaxes it, if one is installed; without, the atoms stay on their sites.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mktemp -d)
ase-definet calculators
for potential in sevennet chgnet; do
  if ase-definet calculators | grep -q "^$potential .*; ready$"; then
    ase-definet relax "$here/mgo/POSCAR_v_O" --host MgO --calculator "$potential" -o "$out/$potential.vasp"
  fi
done
ase-definet relax "$here/mgo/POSCAR_v_O" --host MgO -o "$out/POSCAR_relaxed"
