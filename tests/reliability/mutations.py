"""Mutate real inputs and see what the commands say to them: ``python -m tests.reliability.mutations --count 600``.

Bytes are flipped, files cut off, lines dropped, doubled and swapped, numbers replaced by ``nan``, ``1e300``, ``-1``,
nothing or far too many digits, bytes put in that are no UTF-8: in structures, packed data sets, weights, checkpoints,
configs, INCAR tags and folders of screens. The command that reads the file then runs in this process, with a time
limit. Good outcomes are that it is fine with the file, or says in one line what is wrong with it. Anything else is
listed, and makes the exit code 1:

- ``bug``: it calls it a bug of its own;
- ``traceback``: an error of Python reached the user, or more than one line;
- ``accepted``: a file that carries a digest of its content was changed and nobody noticed;
- ``wrong``: it went well, and what was written is not finite;
- ``memory``, ``hang``: it asked for more than it may have.

Every trial follows from the seed and its number; ``--only NUMBER --keep FOLDER`` repeats one and keeps its input.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from ase import Atoms
from ase.db import connect
from ase.io import read, write
from click.testing import CliRunner, Result

from ase_definet.cli import cli
from ase_definet.errors import DefiNetError
from ase_definet.model.config import DefiNetConfig
from ase_definet.model.definet import DefiNet
from tests.conftest import mos2_with_defects, pristine
from tests.pairs import radial_pairs

OUTCOMES = ("fine", "refused", "bug", "traceback", "accepted", "wrong", "memory", "hang")
GOOD = frozenset(("fine", "refused"))
LIMIT = 60.0
"""Seconds a command may take."""
ROOM = 6 << 30
"""Bytes that a command may have, beyond what is in use before it."""

NUMBER = re.compile(rb"(?<![\w.])[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?")
NO_NUMBERS = (
    *(b"nan", b"inf", b"-inf", b"1e300", b"-1e300", b"1e-320", b"-1", b"0", b"", b"119", b"0x1f", b"1e", b"--5"),
    *(b"1" * 30, b"1" * 5000, b"100000", b"'", b"1d-6", b"true", b"[]", b"\xff\xfe", b"\xc2\xb2", b"None"),
)

Mutation = Callable[[bytes, np.random.Generator], bytes]


class Hang(BaseException):
    """The time is up; nothing may catch this."""


# mutations


def _place(content: bytes, rng: np.random.Generator) -> int:
    return int(rng.integers(0, len(content) + 1))


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip one to three bits."""
    out = bytearray(content)
    for _ in range(int(rng.integers(1, 4)) if out else 0):
        out[int(rng.integers(0, len(out)))] ^= 1 << int(rng.integers(0, 8))
    return bytes(out)


def flip_in_head(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip a bit among the first bytes, where formats say what they are."""
    head = min(len(content), int(rng.choice([16, 300, 4000])))
    return flip(content[:head], rng) + content[head:]


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut it off."""
    return content[: int(rng.choice([0, 1, 8, _place(content, rng), _place(content, rng), max(0, len(content) - 1)]))]


def drop(content: bytes, rng: np.random.Generator) -> bytes:
    """Take some bytes out."""
    at = _place(content, rng)
    return content[:at] + content[at + int(rng.integers(1, 65)) :]


def double(content: bytes, rng: np.random.Generator) -> bytes:
    """Write some bytes, or all, twice."""
    start = int(rng.choice([0, _place(content, rng)]))
    return content + content[start:]


def blank(content: bytes, rng: np.random.Generator) -> bytes:
    """Set some bytes to zero, as lost blocks of a disk are."""
    at, size = _place(content, rng), int(rng.integers(1, 513))
    return content[:at] + bytes(min(size, len(content) - at)) + content[at + size :]


def other_digit(content: bytes, rng: np.random.Generator) -> bytes:
    """Change one digit to another."""
    places = [found.start() for found in re.finditer(rb"\d", content[: 1 << 20])]
    if not places:
        return content + b"7"
    at = int(rng.choice(places))
    return content[:at] + bytes([48 + (content[at] - 48 + int(rng.integers(1, 10))) % 10]) + content[at + 1 :]


def no_number(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace a number by what is none, or none that can be meant."""
    places = [found.span() for found in NUMBER.finditer(content[: 1 << 20])]
    new = NO_NUMBERS[int(rng.integers(0, len(NO_NUMBERS)))]
    if not places:
        return content + new
    first = int(rng.choice([min(20, len(places)), len(places)]))  # heads are short and matter
    start, end = places[int(rng.integers(0, first))]
    return content[:start] + new + content[end:]


def no_numbers(content: bytes, rng: np.random.Generator) -> bytes:
    """Do that three times."""
    for _ in range(3):
        content = no_number(content, rng)
    return content


def lines(content: bytes, rng: np.random.Generator) -> bytes:
    """Drop, double or swap lines."""
    rows = content.splitlines(keepends=True)
    if not rows:
        return content + b"\n"
    first = int(rng.choice([min(12, len(rows)), len(rows)]))
    i, j = int(rng.integers(0, first)), int(rng.integers(0, len(rows)))
    match int(rng.integers(0, 4)):
        case 0:
            del rows[i]
        case 1:
            rows.insert(i, rows[i])
        case 2:
            rows[i], rows[j] = rows[j], rows[i]
        case _:
            rows[i] = b"\n"
    return b"".join(rows)


def words(content: bytes, rng: np.random.Generator) -> bytes:
    """Drop, double or swap words."""
    parts = re.split(rb"(\s+|[,:=])", content)
    i, j = (2 * int(rng.integers(0, (len(parts) + 1) // 2)) for _ in range(2))
    match int(rng.integers(0, 3)):
        case 0:
            parts[i] = b""
        case 1:
            parts[i] = parts[i] + b" " + parts[i]
        case _:
            parts[i], parts[j] = parts[j], parts[i]
    return b"".join(parts)


def insert(content: bytes, rng: np.random.Generator) -> bytes:
    """Put in what has no business there."""
    at = _place(content[: int(rng.choice([200, len(content) or 1]))], rng)
    odd = (b"\xff\xfe\x80", b"\0", b"\r", b"\n\n", b"\xe2\x80\xa8", b"[" * 100_000, b'"', b"\xed\xa0\x80", b"{}")
    return content[:at] + odd[int(rng.integers(0, len(odd)))] + content[at:]


TEXT: tuple[Mutation, ...] = (flip, flip_in_head, truncate, drop, double, no_number, no_number, no_numbers)
TEXT = (*TEXT, lines, lines, words, insert, other_digit)
BINARY: tuple[Mutation, ...] = (
    flip,
    flip,
    flip_in_head,
    truncate,
    drop,
    double,
    blank,
    other_digit,
    no_number,
    insert,
)


# what is mutated, and what reads it


@dataclass(frozen=True)
class Subject:
    """A file, and the commands that read it.

    Attributes:
        name: What it is.
        file: Its path in the folder of a trial.
        commands: Arguments of the commands, one picked for each trial; several separated by ``then``.
        mutations: What may be done to it.
        same: Whether two of these files say the same, for those that carry a digest; None for the others.
        needs: Folders and files that are copied to the trial's folder besides the file.
    """

    name: str
    file: str
    commands: tuple[str, ...]
    mutations: tuple[Mutation, ...] = TEXT
    same: Callable[[Path, Path], bool] | None = None
    needs: tuple[str, ...] = ()


def _bytes_alike(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _states_alike(one: Path, other: Path) -> bool:
    """Whether two checkpoints say the same: their archives may have been packed at other times."""

    def alike(a: object, b: object) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return bool(torch.equal(a, b))
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
        return a == b

    return alike(*(torch.load(path, weights_only=True) for path in (one, other)))


_RELAX = "relax {file} --host MoS2 --model {made}/tiny.safetensors --device cpu -o out/relaxed.extxyz"
_OTHER = (
    f"{_RELAX} --vasp out/vasp --from-unrelaxed --report out/report.json",
    "match {file} --host MoS2",
    "match {file} --host auto",
    "match {made}/good.vasp --host {file}",
    "vasp {file} -o out/vasp",
    "plot {file} {made}/good.vasp -o out/plot.png --host MoS2",
    "enumerate --host {file} --supercell 1x1 --defects v_S --limit 5 -o out/all.extxyz",
    "screen {file} --host MoS2 --model {made}/tiny.safetensors --device cpu -o out/screen",
)
_SCREEN = (
    "screen {made}/some.extxyz --host MoS2 --model {made}/tiny.safetensors --device cpu -o screen",
    "report screen -o out/report.html",
)
_TRAIN = "train run.toml --steps 4 -o run"
SUBJECTS = (
    Subject("POSCAR", "in.vasp", (_RELAX, *_OTHER)),
    Subject("CIF", "in.cif", (_RELAX, *_OTHER)),
    Subject(
        "extended XYZ",
        "in.extxyz",
        (_RELAX, *_OTHER, "data pack {file} out/a.pack --host MoS2 --workers 1", "data check {file} --host MoS2"),
    ),
    Subject("host", "host.vasp", ("match {made}/good.vasp --host {file}", _OTHER[6], "match {file} --host auto")),
    Subject("pairs", "pairs.xyz", ("data pack {file} out/a.pack --host MoS2 --workers 1",)),
    Subject("database", "set.db", ("data pack {file} out/a.pack --host MoS2 --workers 1",), BINARY),
    Subject("trajectory", "set.traj", ("data pack {file} out/a.pack --host MoS2 --workers 1",), BINARY),
    Subject(
        "list of pairs", "layout/MoS2/train.csv", ("data pack layout out/a.pack --workers 1",), needs=("layout",)
    ),
    Subject("authors' file", "authors.pt", ("weights import {file} out/a.safetensors",), BINARY),
    Subject("pack", "set.pack", ("data info {file}",), BINARY, _bytes_alike),
    Subject(
        "pack, evaluated",
        "set.pack",
        ("evaluate --data {file} --model {made}/tiny.safetensors --device cpu --no-superposition",),
        BINARY,
        _bytes_alike,
    ),
    Subject(
        "weights",
        "tiny.safetensors",
        ("relax {made}/good.vasp --host MoS2 --model {file} --device cpu -o out/relaxed.extxyz",),
        BINARY,
        _bytes_alike,
    ),
    Subject(
        "weights default",
        "default.safetensors",
        ("relax {made}/good.vasp --host MoS2 --model {file} --device cpu -o out/relaxed.extxyz",),
        BINARY,
        _bytes_alike,
    ),
    Subject("TOML", "mine.toml", ("train {file} --steps 2 -o out/run",)),
    Subject(
        "checkpoint", "run/last.pt", (_TRAIN, "weights export run out/a.safetensors"), BINARY, _states_alike, ("run",)
    ),
    Subject("log of a run", "run/log.csv", (_TRAIN,), needs=("run",)),
    Subject("config of a run", "run/config.json", ("weights export run out/a.safetensors",), needs=("run",)),
    Subject("INCAR", "incar.txt", ("vasp {made}/good.vasp -o out/vasp --incar {text}",)),
    Subject("k-points", "kpoints.txt", ("vasp {made}/good.vasp -o out/vasp --kpoints {text}",)),
    Subject("run.json", "screen/run.json", _SCREEN, needs=("screen",)),
    Subject("journal.json", "screen/journal.json", _SCREEN, needs=("screen",)),
    Subject("table.csv", "screen/table.csv", (*_SCREEN, f"{_SCREEN[0]} --parquet"), needs=("screen",)),
    Subject("failures.csv", "screen/failures.csv", _SCREEN, needs=("screen",)),
    Subject("structures.extxyz", "screen/structures.extxyz", _SCREEN, needs=("screen",)),
)


INCAR = ("NSW=60", "MAGMOM=127*0.6", "LREAL=Auto", "EDIFFG=-0.02", "LDAUU=0 4.0", "DIPOL=0.5 0.5 0.5", "NELECT=800.5")
TOML = """# a run
preset = "small"
data = "{data}"
out = "run"
accelerator = "cpu"
steps = 2
validate_every = 2
batch_size = 4
learning_rate = 1.5e-3
seed = 1
ema_decay = 0.99
schedule = "cosine"
license = "MIT"

[sampling_weights]
"high/MoS2" = 1.0

[model]
architecture = "site"
features = 8
layers = 1
cutoff = 5.0
short_range_cutoff = 4.0
dropout = 0.1
"""


def prepare(made: Path) -> None:
    """Make the sound inputs, with the commands themselves."""
    good = mos2_with_defects(4)
    write(made / "good.vasp", good, sort=True)
    write(made / "in.vasp", good, sort=True)
    write(made / "in.cif", good)
    write(made / "in.extxyz", _with_arrays(good))
    write(made / "host.vasp", pristine("MoS2", 1), sort=True)
    some = []
    for k, pair in enumerate(radial_pairs(12, 4)):
        frame = pair.unrelaxed
        frame.set_array("relaxed_positions", pair.relaxed.positions)
        frame.info |= {"id": f"k{k}", "split": pair.split, "subset": pair.subset, "name": f"k{k}"}
        some.append(frame)
    write(made / "pairs.xyz", some[:4])
    write(made / "set.xyz", some)
    write(made / "some.extxyz", [*some[:3], Atoms("H", cell=[5, 5, 20], pbc=True, info={"name": "bad"})])
    with connect(made / "set.db") as database:
        for frame in some[:2]:
            database.write(frame, data={"relaxed_positions": frame.arrays["relaxed_positions"]}, split="train")
    write(made / "set.traj", [frame.copy() for frame in some[:1] * 2])
    (made / "layout" / "MoS2" / "CIF").mkdir(parents=True)
    for frame in some[:3]:
        for stage in ("unrelaxed", "relaxed"):
            write(made / "layout" / "MoS2" / "CIF" / f"{frame.info['id']}_{stage}.cif", frame)
    (made / "layout" / "MoS2" / "train.csv").write_text("atoms_id\nk0\nk1\nk2\n")
    torch.save(DefiNet(DefiNetConfig(features=8, layers=1, n_radial=8)).state_dict(), made / "authors.pt")
    (made / "incar.txt").write_text(INCAR[0])
    (made / "kpoints.txt").write_text("2x2x1")
    _sound("data", "pack", made / "set.xyz", made / "set.pack", "--host", "MoS2", "--workers", 1)
    (made / "mine.toml").write_text(TOML.format(data=made / "set.pack"))
    shutil.copy(made / "mine.toml", made / "run.toml")
    _sound("train", made / "run.toml", "-o", made / "run")
    _sound("weights", "export", made / "run", made / "tiny.safetensors")
    shutil.copy(Path(cli_weights()), made / "default.safetensors")
    screen = ("--host", "MoS2", "--model", made / "tiny.safetensors", "--device", "cpu", "-o", made / "screen")
    _sound("screen", made / "some.extxyz", *screen)


def cli_weights() -> Path:
    """Return the bundled weights."""
    from ase_definet.checkpoints.bundled import resolve_model  # noqa: PLC0415

    return resolve_model("default")


def _with_arrays(atoms: Atoms) -> Atoms:
    out = atoms.copy()
    out.info |= {"name": "one", "charge": 0.0, "multiplicity": 3}
    out.set_initial_magnetic_moments(np.linspace(0, 1, len(out)))
    return out


def _sound(*arguments: object) -> None:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exit_code:
        raise SystemExit(f"the sound inputs cannot be made: {arguments}: {result.output}")


# trials


@dataclass(frozen=True)
class Trial:
    """What became of one mutated input.

    Attributes:
        number: Of the trial.
        subject: Name of what was mutated.
        mutation: What was done to it.
        command: What read it.
        outcome: One of :data:`OUTCOMES`.
        said: The last line of the command.
        seconds: It took.
    """

    number: int
    subject: str
    mutation: str
    command: str
    outcome: str
    said: str
    seconds: float


def trial(number: int, seed: int, made: Path, keep: Path | None = None) -> Trial:
    """Mutate one input and run the command that reads it.

    Args:
        number: Of the trial; it picks the subject in turn, and with the seed all else.
        seed: Of the sweep.
        made: Folder of the sound inputs.
        keep: Folder that gets the input and all that is made of it.
    """
    rng = np.random.default_rng([seed, number])
    subject = SUBJECTS[number % len(SUBJECTS)]
    mutation = subject.mutations[int(rng.integers(0, len(subject.mutations)))]
    command = subject.commands[int(rng.integers(0, len(subject.commands)))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for needed in subject.needs:
            shutil.copytree(made / needed, folder / needed)
        if subject.file.endswith("run.toml") or command == _TRAIN:
            shutil.copy(made / "run.toml", folder / "run.toml")
        (folder / "out").mkdir()
        content = (made / subject.file).read_bytes()
        if subject.name == "INCAR":
            content = INCAR[int(rng.integers(0, len(INCAR)))].encode()
        mutated = mutation(content, rng)
        (folder / subject.file).write_bytes(mutated)
        before = folder / "before"  # the command may replace the file itself
        before.write_bytes(mutated)
        text = mutated.decode("utf-8", "surrogateescape") if "{text}" in command else ""
        arguments = [part.format(file=folder / subject.file, made=made, text=text) for part in command.split()]
        began = time.perf_counter()
        outcome, said = _outcome(arguments, folder)
        seconds = time.perf_counter() - began
        if outcome == "fine" and subject.same is not None and mutated != content:
            with suppress(Exception):
                outcome = "fine" if subject.same(made / subject.file, before) else "accepted"
        if keep is not None:
            shutil.copytree(folder, keep / str(number), dirs_exist_ok=True)
    return Trial(number, subject.name, mutation.__name__, command, outcome, said, seconds)


def _outcome(arguments: list[str], folder: Path) -> tuple[str, str]:
    """Run a command in a folder; return the outcome and its last line."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with _time_limit(LIMIT):
            result = CliRunner().invoke(cli, arguments)
    except Hang:
        return "hang", ""
    finally:
        os.chdir(before)
    return _judged(result, folder)


def _judged(result: Result, folder: Path) -> tuple[str, str]:
    """Say what a command's exit code, output and files amount to."""
    written = result.output.splitlines()
    errors = [line for line in result.stderr.splitlines() if line.strip()]
    said = (errors or written or [""])[-1]
    bugs = [line for line in written if "this is a bug" in line]
    crashed = result.exception is not None and not isinstance(result.exception, SystemExit)
    if crashed or "Traceback (most recent call last)" in result.output:
        outcome = "traceback"
        said = repr(result.exception) if crashed else said
    elif bugs:
        outcome, said = "bug", bugs[0]
    elif any("out of memory" in line for line in written):
        outcome = "memory"
    elif result.exit_code == 0:
        outcome = "fine" if _all_finite(folder / "out") else "wrong"
    else:
        one_line = sum(line.startswith("Error: ") for line in errors) == 1 and said.startswith("Error: ")
        outcome = "refused" if one_line and result.exit_code in {1, 2} else "traceback"
    return outcome, said


def _all_finite(folder: Path) -> bool:
    """Whether all positions are finite in the structures that a command wrote."""
    for path in [*folder.rglob("*.extxyz"), *folder.rglob("POSCAR")]:
        if path.stat().st_size and not all(np.isfinite(atoms.positions).all() for atoms in read(path, ":")):
            return False
    return True


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`Hang` after some time; end the process where even that is not heard."""
    faulthandler.dump_traceback_later(4 * seconds, exit=True)
    if not hasattr(signal, "SIGALRM"):
        yield
        faulthandler.cancel_dump_traceback_later()
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def _limit_memory() -> None:
    """Let a command that asks for far too much be refused, where that can be done."""
    try:
        import resource  # noqa: PLC0415 - not on Windows

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limit = pages * resource.getpagesize() + ROOM
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def table(trials: list[Trial]) -> list[str]:
    """Return a line for each subject with its counts of outcomes."""
    width = max(len(subject.name) for subject in SUBJECTS)
    out = [f"{'':{width}s} " + " ".join(f"{name:>9s}" for name in OUTCOMES)]
    for name in (*(subject.name for subject in SUBJECTS), "all"):
        counts = Counter(one.outcome for one in trials if name in {one.subject, "all"})
        out.append(f"{name:{width}s} " + " ".join(f"{counts[outcome]:9d}" for outcome in OUTCOMES))
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run the sweep; return 1 where an outcome is not good."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--only", type=int, help="number of one trial to repeat")
    parser.add_argument("--subject", help="name of the only subject")
    parser.add_argument("--keep", type=Path, help="folder that gets the inputs whose outcome is not good")
    given = parser.parse_args(arguments)
    numbers = range(given.count) if given.only is None else [given.only]
    if given.subject:
        numbers = [k for k in numbers if SUBJECTS[k % len(SUBJECTS)].name == given.subject]
    trials = []
    with tempfile.TemporaryDirectory() as name:
        made = Path(name).resolve()
        os.environ["XDG_CACHE_HOME"] = str(made / "cache")
        prepare(made)
        for number in numbers:
            _limit_memory()
            one = trial(number, given.seed, made, given.keep if given.only is not None else None)
            trials.append(one)
            if one.outcome not in GOOD or given.only is not None:
                if given.keep is not None and given.only is None:
                    trial(number, given.seed, made, given.keep)
                place = f"{one.outcome} in trial {number}, {one.seconds:.1f} s"
                print(f"{place}: {one.mutation} of {one.subject}: {one.command}")
                print(f"    {one.said[:600]}", flush=True)
    print(*table(trials), sep="\n")
    return int(any(one.outcome not in GOOD for one in trials))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DefiNetError as error:
        sys.exit(str(error))
