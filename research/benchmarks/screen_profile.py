"""Where the time of a screen goes: ``python -m research.benchmarks.screen_profile [--count 256] [--json OUT]``.

One process, one thread, 8 x 8 cells of MoS2, from an enumeration and from its file, in each format of the structures.
Times are those of the processor, so that other jobs on the machine matter little, and those of the profiler are
included: the stages in Python are somewhat faster without it.
"""

import argparse
import cProfile
import json
import pstats
import tempfile
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ase_definet.matching.library import get_host
from ase_definet.screening import screen as screening
from ase_definet.screening.enumeration import DefectSpace, parse_defects
from ase_definet.screening.structures_file import FORMATS

DEFECTS = "v_S*2 + W_Mo"
SIZE = 8
SETTINGS = {"model": "default", "device": "cpu", "max_strain": 0.06}
MILLI = 1e3
STAGES = ("read", "match", "prepare", "network", "results", "write", "total")
"""Reading or enumerating; matching, or what takes its place; the input of the network and its domain; the network; the
results and properties; rows, text and files; and all of it."""


def candidates(count: int) -> tuple[DefectSpace, list[Any]]:
    """Return the first configurations of an enumeration."""
    space = DefectSpace(get_host("MoS2"), [[SIZE, 0, 0], [0, SIZE, 0], [0, 0, 1]])
    return space, list(islice(space.enumerate(parse_defects(DEFECTS)), count))


def profile(source: Iterable[Any], count: int, structures: str) -> dict[str, float]:
    """Return the milliseconds of each stage per structure of a screen of some structures."""
    settings = SETTINGS | {"host": get_host("MoS2"), "structures": structures}
    screening.relax_block(("warm",), [candidates(1)[0].atoms(candidates(1)[1][0])], 0, settings)
    profiler = cProfile.Profile(timer=time.process_time)
    with tempfile.TemporaryDirectory() as folder:
        results = screening.Results(Path(folder) / "out", {"structures": structures})
        profiler.enable()
        screening.screen(source, results, settings)
        profiler.disable()
        results.close()
    spent: dict[str, float] = {}
    for (file, _, function), (_, _, _, cumulative, _) in pstats.Stats(profiler).stats.items():
        key = f"{Path(file).stem}.{function}"
        spent[key] = spent.get(key, 0.0) + cumulative

    def of(*names: str) -> float:
        return MILLI * sum(spent.get(name, 0.0) for name in names) / count

    matched = of("relaxer._matched")
    network = of("relaxer._predict")
    return {
        "read": of("screen._tasks"),
        "match": of("enumeration.placed") + matched,
        "prepare": of("relaxer._prepare") - matched,
        "network": network,
        "results": of("relaxer._run") - network,
        "write": of("screen._finished", "screen.add", "screen.digest_of", "structures_file.content"),
        "total": of("screen.screen"),
    }


def measured(count: int) -> list[dict[str, Any]]:
    """Profile screens of the same structures in every form."""
    torch.set_num_threads(1)
    space, found = candidates(count)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.extxyz"
        path.write_text("".join(space.extxyz(one) for one in found), encoding="utf-8")
        for structures in FORMATS:
            rows.append(
                {"source": "enumeration", "structures": structures}
                | profile(((one.name, one) for one in found), count, structures)
            )
            rows.append(
                {"source": "file", "structures": structures}
                | profile(screening.structures_of([path]), count, structures)
            )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measured(options.count)
    print("processor time in ms per structure")
    for row in rows:
        stages = "  ".join(f"{stage} {row[stage]:.2f}" for stage in STAGES)
        print(f"  {row['source']:11s}  {row['structures']:7s}  {stages}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
