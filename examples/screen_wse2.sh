#!/usr/bin/env bash
# From a question to a page: all pairs of Se vacancies in 8x8 WSe2, relaxed, the most uncertain first.
set -euo pipefail
folder=$(mktemp -d)
ase-definet enumerate --host WSe2 --supercell 8x8 --defects "v_Se*2" -o - |
  ase-definet screen - --host WSe2 -o "$folder/results" --parquet
ase-definet report "$folder/results" -o "$folder/report.html"
head -4 "$folder/results/table.csv" | cut -d, -f2,7,9-14
