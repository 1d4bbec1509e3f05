"""Where the time of a screen goes: ``python -m research.benchmarks.screen_profile [--count 256] [--json OUT]``.

One process, one thread, 8 x 8 cells of MoS2, from an enumeration and from its file, in each format of the structures.
Times are those of the processor, so that other jobs on the machine matter little.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.format import load_checkpoint
from ase_definet.matching.library import get_host
from ase_definet.relaxation.freed_memory import keep_freed_memory
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.screening import screen as screening
from ase_definet.screening.enumeration import DefectSpace, parse_defects
from ase_definet.screening.structures_file import FORMATS

DEFECTS = "v_S*2 + W_Mo"
SIZE = 8
SETTINGS = {"model": "default", "device": "cpu", "max_strain": 0.06}
MILLI = 1e3
STAGES = ("read", "match", "prepare", "network", "results", "write", "rest")
"""Reading or enumerating; matching, or what takes its place; the input of the network and its domain; the network; the
results and properties; rows, digests, text and files."""
PLACES = (
    (DefectSpace, "placed", "match"),
    (DefiNetRelaxer, "_matched", "match"),
    (DefiNetRelaxer, "_prepare", "prepare"),
    (DefiNetRelaxer, "_predict", "network"),
    (DefiNetRelaxer, "_run", "results"),
    (screening, "_finished", "write"),
    (screening, "digest_of", "write"),
    (screening.Results, "add", "write"),
)
"""Where the stages are: owner and name of a function."""


def candidates(count: int) -> tuple[DefectSpace, list[Any]]:
    """Return the first configurations of an enumeration."""
    space = DefectSpace(get_host("MoS2"), [[SIZE, 0, 0], [0, SIZE, 0], [0, 0, 1]])
    return space, list(islice(space.enumerate(parse_defects(DEFECTS)), count))


class Stopwatch:
    """Add up the processor time of functions, without what others that are measured take within them."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._within: list[float] = []

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Measure what happens meanwhile."""
        self._within.append(0.0)
        began = time.process_time()
        try:
            yield
        finally:
            whole = time.process_time() - began
            self.spent[stage] = self.spent.get(stage, 0.0) + whole - self._within.pop()
            if self._within:
                self._within[-1] += whole

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is measured."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.running(stage):
                return function(*arguments, **options)

        return call

    def each(self, stage: str, stream: Iterable[Any]) -> Iterator[Any]:
        """Yield what a stream yields, and measure how long it takes to."""
        iterator = iter(stream)
        while True:
            with self.running(stage):
                one = next(iterator, None)
            if one is None:
                return
            yield one


def profile(source: Iterable[Any], count: int, structures: str) -> dict[str, float]:
    """Return the milliseconds of each stage per structure of a screen of some structures."""
    sha256 = load_checkpoint(resolve_model("default")).sha256  # as the command line does: not once for each block
    settings = SETTINGS | {"host": get_host("MoS2"), "structures": structures, "sha256": sha256}
    space, (first,) = candidates(1)
    screening.relax_block(("warm",), [space.atoms(first)], 0, settings)
    watch = Stopwatch()
    measured = [(owner, name, stage) for owner, name, stage in PLACES if hasattr(owner, name)]
    kept = [getattr(owner, name) for owner, name, _ in measured]
    try:
        for (owner, name, stage), real in zip(measured, kept, strict=True):
            setattr(owner, name, watch.timed(stage, real))
        with tempfile.TemporaryDirectory() as folder:
            results = screening.Results(Path(folder) / "out", {"structures": structures})
            with watch.running("rest"):
                screening.screen(watch.each("read", source), results, settings)
            results.close()
    finally:
        for (owner, name, _), real in zip(measured, kept, strict=True):
            setattr(owner, name, real)
    return {stage: MILLI * watch.spent.get(stage, 0.0) / count for stage in STAGES}


def measured(count: int) -> list[dict[str, Any]]:
    """Profile screens of the same structures in every form."""
    keep_freed_memory()  # as the command line does
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    space, found = candidates(count)
    rows = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as after:
        after.callback(torch.set_num_threads, threads)
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
        stages += f"  in all {sum(row[stage] for stage in STAGES):.2f}"
        print(f"  {row['source']:11s}  {row['structures']:7s}  {stages}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
