"""Commands killed, without room or without their folder: ``python -m tests.reliability.interruptions --count 20``.

Every command that writes runs to its end once. Then it is started anew and, at a random moment, killed (kill -9), or
its folder is moved away, or it runs where no file may grow beyond a random size. Afterwards the same command runs
again, undisturbed, and must end with the same content: nothing lost, nothing twice, nothing hanging, no folder made
anew under a name that was moved away, no message of a bug, and no temporary file left, except by a kill.
Exit code 1 if anything else happens.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase.db import connect
from ase.io import iread, read, write
from safetensors.torch import load_file

from ase_definet.cli import cli
from tests.pairs import radial_pairs

FAULTS = ("killed", "moved", "no room")
PATIENCE = 180
"""Seconds after which a command counts as hanging."""
TIMES = ("seconds",)
"""Columns that no two runs share."""


@dataclass(frozen=True)
class Command:
    """A command and what it makes.

    Attributes:
        arguments: What is asked for, given the folder to write to.
        content: What was made, in a form that compares.
        again: Further arguments that a run after an interruption needs.
    """

    arguments: Callable[[Path], list[str]]
    content: Callable[[Path], Any]
    again: tuple[str, ...] = ()


def frames_of(path: Path) -> list[tuple[Any, ...]]:
    """Return names and positions of the structures of a file."""
    return [
        (a.info.get("name"), a.symbols.get_chemical_formula(), a.positions.round(8).tobytes()) for a in iread(path)
    ]


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, without times."""
    with path.open(newline="") as stream:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(stream)]


def screen_of(folder: Path) -> Any:
    """Return what a screen found."""
    results = folder / "results"
    return frames_of(results / "structures.extxyz"), rows_of(results / "table.csv"), rows_of(results / "failures.csv")


def database_of(path: Path) -> Any:
    """Return names and positions in a database."""
    return [(row.name, row.positions.round(8).tobytes()) for row in connect(path).select()]


def poscars_of(folder: Path) -> Any:
    """Return names and positions of the files of a folder."""
    return [(path.name, read(path).positions.round(8).tobytes()) for path in sorted(folder.glob("*.vasp"))]


def weights_of(folder: Path) -> Any:
    """Return the numbers of the weights that a training run exports."""
    out = folder / "exported.safetensors"
    code, said = in_child(["weights", "export", str(folder / "run"), str(out), "--overwrite"], folder / "export.log")
    if code != 0:
        return code, said
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in load_file(out).items()}


def commands(material: Path) -> dict[str, Command]:
    """Return the commands that write, working on files of a folder."""
    enumerate_ = ["enumerate", "--host", "WSe2", "--supercell", "5x5", "--defects", "v_Se*2 + S_Se"]
    train = [
        "train",
        "--data",
        str(material / "set.pack"),
        "--preset",
        "small",
        "--steps",
        "6",
        "--accelerator",
        "cpu",
    ]
    some = sorted(str(path) for path in (material / "some").iterdir())
    return {
        "screen": Command(
            lambda f: [
                "screen",
                str(material / "all.extxyz"),
                "--host",
                "WSe2",
                "-o",
                str(f / "results"),
                "--block",
                "8",
            ],
            screen_of,
        ),
        "enumerate to a folder": Command(
            lambda f: [*enumerate_, "-o", str(f / "all")], lambda f: poscars_of(f / "all"), ("--overwrite",)
        ),
        "enumerate to extended XYZ": Command(
            lambda f: [*enumerate_, "-o", str(f / "all.extxyz")],
            lambda f: frames_of(f / "all.extxyz"),
            ("--overwrite",),
        ),
        "enumerate to a database": Command(
            lambda f: [*enumerate_, "-o", str(f / "all.db")], lambda f: database_of(f / "all.db"), ("--overwrite",)
        ),
        "data pack": Command(
            lambda f: ["data", "pack", str(material / "set.extxyz"), str(f / "set.pack"), "--host", "MoS2"],
            lambda f: hashlib.sha256((f / "set.pack").read_bytes()).hexdigest(),
            ("--overwrite",),
        ),
        "train": Command(lambda f: [*train, "-o", str(f / "run")], weights_of),
        "relax": Command(
            lambda f: ["relax", *some, "--host", "WSe2", "--output-dir", str(f / "relaxed")],
            lambda f: [
                (p.name, read(p).positions.round(8).tobytes()) for p in sorted((f / "relaxed").glob("*.vasp"))
            ],
            ("--overwrite",),
        ),
    }


def prepare(material: Path) -> None:
    """Write the inputs of the commands."""
    for arguments in (
        ["--defects", "v_Se + S_Se", "-o", str(material / "all.extxyz")],
        ["--defects", "v_Se", "-o", str(material / "some")],
        ["--defects", "v_W", "-o", str(material / "more")],
    ):
        code, said = in_child(["enumerate", "--host", "WSe2", "--supercell", "6x6", *arguments], material / "log")
        if code:
            raise RuntimeError(said)
    for path in (material / "more").glob("*.vasp"):
        path.rename(material / "some" / path.name)
    for path in (material / "some").iterdir():
        if path.suffix != ".vasp":
            path.unlink()
    frames = []
    for one in radial_pairs(24, 8):
        frame = one.unrelaxed.copy()
        frame.set_array("relaxed_positions", one.relaxed.positions)
        frame.info |= {"id": one.id, "split": one.split, "subset": one.subset}
        frames.append(frame)
    write(material / "set.extxyz", frames)
    code, said = in_child(
        ["data", "pack", str(material / "set.extxyz"), str(material / "set.pack"), "--host", "MoS2"], material / "log"
    )
    if code:
        raise RuntimeError(said)


def start(arguments: list[str], log: Path, most_bytes: int | None = None) -> Any:
    """Start a command in a process of its own that has everything imported."""

    def run() -> None:
        os.setsid()  # its workers are killed with it, as a batch system would
        stream = log.open("w")
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        if most_bytes is not None:
            import resource  # noqa: PLC0415 - not on Windows

            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        cli.main(arguments, prog_name="ase-definet")

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child


def in_child(arguments: list[str], log: Path, most_bytes: int | None = None) -> tuple[int | None, str]:
    """Run a command to its end; return its exit code, None if it hangs, and what it said."""
    child = start(arguments, log, most_bytes)
    child.join(PATIENCE)
    if child.is_alive():
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
        return None, log.read_text(errors="replace")
    return child.exitcode, log.read_text(errors="replace")


def interrupt(
    command: Command, fault: str, expected: Any, cost: tuple[float, int], folder: Path, rng: random.Random
) -> str:
    """Disturb a command once; return what is wrong with how it ended, empty if nothing."""
    work = folder / "work"
    work.mkdir()
    arguments, log = command.arguments(work), folder / "log"
    seconds, largest = cost
    if fault == "no room":
        code, said = in_child(arguments, log, rng.randrange(max(1, largest)))
        if code is None:
            return "hangs without room"
        return f"without room: {said}" if "bug" in said or "Traceback" in said else ""
    child = start(arguments, log)
    time.sleep(rng.uniform(0, 1.05 * seconds))
    if fault == "killed":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.join()
        return ""
    return without_folder(command, expected, child, folder)


def without_folder(command: Command, expected: Any, child: Any, folder: Path) -> str:
    """Move the folder of a running command away; return what is wrong with how it ended, empty if nothing."""
    work, log = folder / "work", folder / "log"
    gone = folder / "gone"
    work.rename(gone)
    child.join(PATIENCE)
    if child.is_alive():
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
        return "hangs without its folder"
    said = log.read_text(errors="replace")
    if work.exists():  # right only if it was moved before the command had begun, and all is in the new one
        shutil.rmtree(gone)
        with contextlib.suppress(Exception):
            if command.content(work) == expected:
                return ""
        left = sorted(str(path.relative_to(work)) for path in work.rglob("*"))
        return f"made its folder anew, with {left}: {said}"
    gone.rename(work)
    return f"without its folder: {said}" if "bug" in said or "Traceback" in said else ""


def trial(command: Command, fault: str, expected: Any, cost: tuple[float, int], rng: random.Random) -> str:
    """Disturb a command, run it again and compare; return what is wrong, empty if nothing."""
    with tempfile.TemporaryDirectory(prefix="interrupted-") as name:
        folder = Path(name)
        if wrong := interrupt(command, fault, expected, cost, folder, rng):
            return wrong
        work = folder / "work"
        code, said = in_child([*command.arguments(work), *command.again], folder / "log")
        if code is None:
            return f"hangs when run again: {said}"
        if code:
            return f"does not run again ({code}): {said}"
        try:
            found = command.content(work)
        except Exception as error:  # noqa: BLE001 - whatever it is, what was written cannot be read
            return f"left what cannot be read: {error!r}"
        if found != expected:
            return f"ends with another content: {said}"
        left = [str(path.relative_to(work)) for path in work.rglob(".ase-definet-[0-9a-zA-Z]*-*")]
        return f"leaves {left}" if left and fault != "killed" else ""


def sweep(seed: int, count: int, chosen: Callable[[str], bool] = lambda _: True) -> Counter[tuple[str, str, str]]:
    """Disturb every command a number of times in every way.

    Args:
        seed: Of the moments and sizes.
        count: Trials of each command and fault.
        chosen: Which commands, by name.

    Returns:
        How often each command, disturbed in each way, ended how.
    """
    out: Counter[tuple[str, str, str]] = Counter()
    rng = random.Random(seed)  # noqa: S311 - no secret
    with tempfile.TemporaryDirectory(prefix="material-") as name:
        material = Path(name)
        prepare(material)
        for label, command in commands(material).items():
            if not chosen(label):
                continue
            whole = material / "whole"
            whole.mkdir()
            began = time.perf_counter()
            code, said = in_child(command.arguments(whole), material / "log")
            seconds = time.perf_counter() - began
            if code:
                raise RuntimeError(f"{label}: {said}")
            expected = command.content(whole)
            largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
            for fault in FAULTS:
                for _ in range(count):
                    out[label, fault, trial(command, fault, expected, (seconds, largest), rng)] += 1
            shutil.rmtree(whole)
    return out


def main() -> None:
    """Run the sweep and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--command", default="", help="Only commands whose names begin like this.")
    options = parser.parse_args()
    began = time.perf_counter()
    found = sweep(options.seed, options.count, lambda label: label.startswith(options.command))
    print("| command | " + " | ".join(FAULTS) + " |\n|---|" + "---|" * len(FAULTS))
    for label in dict.fromkeys(label for label, _, _ in found):
        cells = [f"{found[label, fault, '']} of {options.count}" for fault in FAULTS]
        print(f"| {label} | " + " | ".join(cells) + " |")
    wrong = {key: n for key, n in found.items() if key[2]}
    for (label, fault, why), n in wrong.items():
        print(f"{label}, {fault}, {n} times: {why}")
    print(f"{sum(found.values())} interruptions, seed {options.seed}, {time.perf_counter() - began:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
