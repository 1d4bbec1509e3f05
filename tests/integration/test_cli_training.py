"""From files to weights on the command line, and what it says to bad usage."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from click.testing import CliRunner, Result

from ase_definet.checkpoints.format import load_checkpoint
from ase_definet.cli import cli
from ase_definet.data import PackedDataset
from tests.conftest import REPO, pristine
from tests.pairs import radial_pairs

CPU = ("--accelerator", "cpu")


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def ok(*args: object) -> Result:
    result = run(*args)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(code: int, *args: object) -> str:
    """Return the error of a command that fails in one line."""
    result = run(*args)
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.output.splitlines() if line != "reading pairs"]
    assert len(lines) == 1, result.output
    assert lines[0].startswith("Error: ")
    assert "bug" not in lines[0]
    return lines[0]


def frames() -> list[Atoms]:
    out = []
    for one in radial_pairs(12, 4):
        frame = one.unrelaxed.copy()
        frame.set_array("relaxed_positions", one.relaxed.positions)
        frame.info |= {"id": one.id, "split": one.split, "subset": one.subset}
        out.append(frame)
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return a folder with a data set and what the commands make of it; other tests only read it."""
    folder = tmp_path_factory.mktemp("made")
    write(folder / "set.xyz", frames())
    before = Path.cwd()
    os.chdir(folder)
    try:
        ok("data", "pack", "set.xyz", "set.pack", "--host", "MoS2", "--workers", 1)
        ok("train", "--data", "set.pack", "--preset", "small", "-o", "run", "--steps", 6, *CPU)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def here(made, monkeypatch) -> None:
    monkeypatch.chdir(made)


def test_from_files_to_scores(tmp_path):
    assert len(PackedDataset.open("set.pack").groups[0]) == 16
    info = ok("data", "info", "set.pack").output
    assert "high/MoS2" in info
    assert "host MoS2, 4x4x1 (48 sites), 16 pairs: train 12, val 4, test 0" in info
    assert re.search(r"v_S x\d+, v_Mo x\d+|v_Mo x\d+, v_S x\d+", info)
    assert re.search(r"mean 0\.0\d+, 50% 0\.0\d+, 90% 0\.0\d+, 99% 0\.\d+, largest 0\.\d+", info)
    weights = tmp_path / "mine.safetensors"
    assert f"use it as --model {weights}" in " ".join(
        ok("weights", "export", "run", weights, "--version", "3").output.split()
    )
    card = load_checkpoint(weights).card
    assert (card.name, card.version, card.training.steps) == ("mine", "3", 6)
    result = tmp_path / "scores.json"
    scored = ok("evaluate", "--data", "set.pack", "--model", weights, "--device", "cpu", "--json", result)
    assert "high/MoS2" in scored.output
    row = json.loads(result.read_text())["subsets"]["high/MoS2"]
    assert row["n"] == 4
    # the card and the evaluation call the same thing the validation error; the mean displacement they treat apart
    assert row["ideal_sites"]["coordinate_mae"] == pytest.approx(card.validation["high/MoS2"].ideal_sites, rel=0.1)
    assert row["coordinate_mae"] == pytest.approx(card.validation["high/MoS2"].mae, rel=0.1)
    assert run("weights", "export", "run", weights).exit_code == 2
    assert "wrote" in ok("weights", "export", "run", weights, "--overwrite", "--name", "yours").output
    assert load_checkpoint(weights).card.name == "yours"


def test_sound_data():
    assert "every pair is sound" in ok("data", "check", "set.xyz", "--host", "MoS2", "--workers", 1).output


def test_data_without_splits_are_shared_out(tmp_path):
    some = frames()[:10]
    for frame in some:
        del frame.info["split"]
    write(tmp_path / "set.xyz", some)
    shares = ("--split", 0.5, 0.3, 0.2, "--seed", 1, "--workers", 1)
    ok("data", "pack", tmp_path / "set.xyz", tmp_path / "a", "--host", "mos2", *shares)
    assert "train 5, val 3, test 2" in ok("data", "info", tmp_path / "a").output


def test_bad_pairs_are_named_and_left_out(tmp_path):
    some = frames()[:3]
    some[1].arrays["relaxed_positions"][4] += [0, 0, 7.0]
    write(tmp_path / "set.xyz", some)
    source = (tmp_path / "set.xyz", "--host", "MoS2", "--workers", 1)
    packed = ok("data", "pack", source[0], tmp_path / "a", *source[1:]).output
    assert re.search(r"left out +high/MoS2 high/MoS2-0-1: atom 4 \(\w+\) jumps by 7", packed)
    assert "2 pairs" in packed
    assert "left out 1" in packed
    checked = run("data", "check", *source)
    assert checked.exit_code == 1
    assert "jumps by" in checked.output
    assert checked.output.splitlines()[-1].endswith("1 pairs do not belong together")


def test_a_run_from_a_config_is_resumed_by_the_same_command(tmp_path):
    (tmp_path / "mine.toml").write_text(
        f'preset = "small"\ndata = "set.pack"\nout = "{tmp_path / "run"}"\naccelerator = "cpu"\n'
        "steps = 4\nvalidate_every = 2\n[model]\nfeatures = 8\nlayers = 1\n"
    )
    first = ok("train", tmp_path / "mine.toml")
    assert re.findall(r"step (\d) of 4, \d+ s, loss 0\.\d+, validation 0\.\d+ Å", first.output) == ["2", "4"]
    assert re.search(r"high/MoS2 +0\.\d{4} +0\.\d{4} +\(0\.\d{4}, 0\.\d{4}\)", first.output)
    again = ok("train", tmp_path / "mine.toml")  # nothing is left to do, the table is there all the same
    assert [line for line in first.output.splitlines() if line.startswith("high/MoS2")] == [
        line for line in again.output.splitlines() if line.startswith("high/MoS2")
    ]
    more = ok("train", tmp_path / "mine.toml", "--steps", 6)
    assert re.findall(r"step (\d) of 6", more.output) == ["6"]
    (tmp_path / "mine.toml").write_text((tmp_path / "mine.toml").read_text().replace("features = 8", "features = 4"))
    assert "a run with another model" in refused(1, "train", tmp_path / "mine.toml")


def test_fine_tuning_from_weights(tmp_path):
    ok("weights", "export", "run", tmp_path / "a.safetensors")
    weights, out = tmp_path / "a.safetensors", tmp_path / "tuned"
    ok("train", "--data", "set.pack", "--preset", "base", "-o", out, "--initial-weights", weights, "--steps", 1, *CPU)
    weights.unlink()
    ok("weights", "export", out, tmp_path / "b.safetensors")
    tuned = load_checkpoint(tmp_path / "b.safetensors")
    assert tuned.config.features == 48
    assert tuned.card.training.config["steps"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_at_a_terminal_there_is_a_bar(tmp_path):
    import pty  # noqa: PLC0415 - not on Windows

    ours, theirs = pty.openpty()
    command = "from ase_definet.cli import main; main()"
    arguments = [
        "train",
        "--data",
        "set.pack",
        "--preset",
        "small",
        "--steps",
        "3",
        "-o",
        str(tmp_path / "run"),
        *CPU,
    ]
    environment = os.environ | {"PYTHONPATH": str(REPO), "TERM": "xterm", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "stdout").open("w") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-c", command, *arguments], stdout=stdout, stderr=theirs, env=environment
        )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how Linux says that the other side is gone
        while part := os.read(ours, 1 << 12):
            shown += part
    os.close(ours)
    assert process.wait() == 0, shown
    assert b"3/3" in shown
    assert b"step 3 of 3" not in shown
    assert "done: 3 steps" in (tmp_path / "stdout").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("data", "pack", "set.xyz", "set.pack", "--host", "MoS2"), "set.pack exists.*--overwrite"),
        (("data", "pack", "set.xyz", "a.pack"), "no host is named there.*--host"),
        (("data", "pack", "set.xyz", "a.pack", "--host", "MoS3"), "unknown host 'MoS3'"),
        (("data", "pack", "set.xyz", "a.pack", "--host", "MoS2", "--split", 0.5, 0.1, 0.1), "--split.*add up to 1"),
        (("data", "pack", "set.xyz", "set.xyz/a.pack", "--host", "MoS2"), "expected a folder"),
        (("data", "pack", "set.xyz", "a.pack", "--workers", 0), "--workers"),
        (("data", "info"), "[Mm]issing argument"),
        (("train",), "give a CONFIG, or --data, --preset and --out"),
        (("train", "--preset", "small"), "--preset needs --data and --out"),
        (("train", "--preset", "large"), "'large' is not one of"),
        (("train", "bad.toml"), "does not know stpes"),
        (("train", "typed.toml"), "steps must be a whole number, found '5'"),
        (("train", "bad.toml", "--preset", "small"), "a CONFIG or a --preset, not both"),
        (("train", "--preset", "small", "--data", "set.pack", "-o", "x", "--steps", 0), "--steps"),
        (
            ("train", "--preset", "small", "--data", "set.pack", "-o", "x", "--initial-weights", "nothing", *CPU),
            "nothing",
        ),
        (("train", "--preset", "small", "--data", "set.pack", "-o", "x", "--devices", 99), "shared by 99 devices"),
        (("weights", "export", "run", "a.txt"), "weights end in .safetensors"),
    ],
)
def test_bad_usage(made, args, message):
    (made / "bad.toml").write_text('data = "set.pack"\nout = "x"\nstpes = 5\n')
    (made / "typed.toml").write_text('data = "set.pack"\nout = "x"\nsteps = "5"\n')
    (made / "empty").mkdir(exist_ok=True)
    (made / "empty" / "config.json").write_text((made / "run" / "config.json").read_text())
    before = sorted(p.name for p in made.iterdir())
    assert re.search(message, refused(2, *args))
    assert sorted(p.name for p in made.iterdir()) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("data", "pack", "text.txt", "a.pack", "--host", "MoS2"), "text.txt: cannot be read"),
        (("data", "pack", "set.xyz", "a.pack", "--host", "GaSe", "--workers", 1), "no pair could be used"),
        (("data", "info", "set.xyz"), "set.xyz: cannot be read as a packed data set"),
        (("data", "info", "nothing"), "nothing: no such file"),
        (("train", "--preset", "small", "--data", "set.xyz", "-o", "x", *CPU), "cannot be read as a packed data set"),
        (("data", "pack", "nothing", "a.pack"), "nothing: no such file or folder"),
        (("data", "check", "nothing"), "nothing: no such file or folder"),
        (
            ("train", "--preset", "small", "--data", "nothing", "-o", "x"),
            "no such file; make a packed data set",
        ),
        (("weights", "export", "nothing", "a.safetensors"), "nothing: no such folder"),
        (("weights", "export", "layout", "a.safetensors"), "holds no training run"),
        (("weights", "export", "empty", "a.safetensors"), "holds no checkpoint yet"),
        (("train", "nothing.toml"), "nothing.toml: no such file"),
    ],
)
def test_input_that_cannot_be_used(made, args, message):
    (made / "text.txt").write_text("what is this?\n")
    for name in ("layout", "empty"):
        (made / name).mkdir(exist_ok=True)
    (made / "empty" / "config.json").write_text((made / "run" / "config.json").read_text())
    assert message in refused(1, *args)
    assert not (made / "a.pack").exists()
    assert not (made / "x").exists()


def test_a_damaged_pack_is_no_reason_to_pack_it_again(tmp_path):
    data = bytearray(Path("set.pack").read_bytes())
    data[-1] ^= 1
    (tmp_path / "set.pack").write_bytes(data)
    assert "damaged" in refused(1, "data", "info", tmp_path / "set.pack")
    assert "damaged" in refused(1, "evaluate", "--data", tmp_path / "set.pack", "--device", "cpu")


def test_evaluation_packs_files_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path / "host.cif", pristine("MoS2", 1))
    write(tmp_path / "set.xyz", frames()[11:14])
    command = ("evaluate", "--data", tmp_path / "set.xyz", "--host", tmp_path / "host.cif", "--device", "cpu")
    assert "once" in ok(*command, "--no-superposition").output
    assert "once" not in ok(*command, "--no-superposition").output
    (packed,) = (tmp_path / "cache" / "ase-definet").iterdir()
    assert sorted(PackedDataset.open(packed).groups[0].split.tolist()) == [0, 1, 1]
    changed = pristine("MoS2", 1)
    changed.positions += np.array([0, 0, 0.5])
    write(tmp_path / "host.cif", changed)
    assert "once" in ok(*command, "--no-superposition").output


@pytest.mark.parametrize(("save", "said"), [(1, "resumes from the last checkpoint in"), (100, "starts again")])
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tmp_path, monkeypatch, save, said):
    asked = ("train", "--data", "set.pack", "--preset", "small", "-o", tmp_path / "run", "--steps", 6, *CPU)

    def interrupted(_, run, loss):  # noqa: ARG001
        if run.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ase_definet.cli.train._Meter.__call__", interrupted)
        stopped = run(*asked, "--checkpoint-every", save)
    assert stopped.exit_code == 130, stopped.output
    (line,) = stopped.output.strip().splitlines()
    assert line.startswith("stopped; ")
    assert said in line
    again = ok(*asked)
    assert ("going on after step" in again.output) == (save == 1)
    assert "done: 6 steps" in again.output
