"""Progress bars: the same in every command, on standard error, and nowhere but on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ase.io import write

from ase_definet.cli.progress import ProgressBar
from tests.conftest import mos2_with_defects
from tests.pairs import radial_pairs

pty = pytest.importorskip("pty")

LAUNCH = "import sys; from ase_definet.cli import main; sys.argv[0] = 'ase-definet'; main()"
COMMANDS = {
    "relax": ("relaxing", "relax a.vasp b.vasp --host MoS2 --device cpu --output-dir out"),
    "screen": ("failed", "screen a.vasp b.vasp --host MoS2 --device cpu -o out --block 1"),
    "data pack": ("reading pairs", "data pack pairs.xyz set.pack --host MoS2 --workers 1"),
    "evaluate": ("scoring", "evaluate --data pairs.xyz --host MoS2 --device cpu --no-superposition"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.vasp", mos2_with_defects(4))
    frames = []
    for k, pair in enumerate(radial_pairs(4, 4)):
        frame = pair.unrelaxed
        frame.set_array("relaxed_positions", pair.relaxed.positions)
        frame.info |= {"id": f"k{k}", "split": "val", "subset": pair.subset}
        frames.append(frame)
    write(tmp_path / "pairs.xyz", frames)
    return tmp_path


def run(folder: Path, command: str, *, terminal: bool) -> tuple[str, str]:
    """Run a command with standard error on a terminal, or not; return what it printed on both streams."""
    leader, follower = pty.openpty() if terminal else os.pipe()
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "TERM": "xterm", "COLUMNS": "100"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", LAUNCH, *command.split()],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=follower,
            text=True,
            check=True,
            env=environment,
        )
        os.set_blocking(leader, False)
        try:
            shown = os.read(leader, 100_000).decode()
        except BlockingIOError:
            shown = ""
    finally:
        os.close(leader)
        os.close(follower)
    return done.stdout, shown


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bar_on_a_terminal(folder, command):
    label, line = COMMANDS[command]
    out, shown = run(folder, line, terminal=True)
    assert label in shown
    assert "━" in shown
    assert "━" not in out
    assert "\x1b" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_none_in_a_file(folder, command):
    _, shown = run(folder, COMMANDS[command][1], terminal=False)
    assert "━" not in shown
    assert "\r" not in shown
    assert "\x1b" not in shown


def test_silent_without_a_terminal(capsys):
    with ProgressBar("counting", 3) as bar:
        bar.advance("an argument of whoever calls back")
        bar.update(2, "still counting")
    assert capsys.readouterr() == ("", "")
