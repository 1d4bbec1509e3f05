"""How many configurations the weights for properties rank per second: ``python -m research.benchmarks.properties [OUT]``.

Occupations of 8x8 WSe2 in, formation energies and expected errors out, on the CPU, in process time and wall time.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ase_definet.matching.library import library
from ase_definet.properties.predictor import FORMATION_ENERGY, PropertyPredictor

TUNGSTEN = 74
COUNTS = {3: 20_000, 6: 8_000, 12: 2_000, 24: 500}
"""Configurations measured, by their number of defects."""


def occupations(n_defects: int, n: int) -> np.ndarray:
    """Return random occupations with vacancies and substitutions."""
    rng = np.random.default_rng(0)
    base = np.tile(library()["WSe2"].numbers, 64)
    out = np.tile(base, (n, 1))
    for row in out:
        sites = rng.choice(len(base), n_defects, replace=False)
        vacant = rng.integers(2, size=n_defects) > 0
        row[sites] = np.where(vacant, 0, np.where(base[sites] == TUNGSTEN, 42, 16))
    return out


def main(out: Path | None) -> None:
    """Measure, print and write."""
    predictor = PropertyPredictor(device="cpu")
    rows = {}
    for n_defects, n in COUNTS.items():
        given = occupations(n_defects, n)
        predictor.predict_occupations("WSe2", 8, given[:10], targets=[FORMATION_ENERGY])
        rows[str(n_defects)] = {}
        for name, fast in (("ensemble", False), ("smallest", True)):
            wall, cpu = time.perf_counter(), time.process_time()
            predictor.predict_occupations("WSe2", 8, given, targets=[FORMATION_ENERGY], fast=fast)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            rows[str(n_defects)][name] = {"per_second": round(n / wall), "per_cpu_second": round(n / cpu)}
        print(f"{n_defects} defects: {rows[str(n_defects)]}", flush=True)
    found = {"weights": predictor.model, "threads": torch.get_num_threads(), "rows": rows}
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
