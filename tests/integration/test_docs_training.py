"""The commands of docs/training.md, run as they stand there: on data made here, and on a part of 2DMD."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from ase.io import write

from tests.conftest import DATA, REPO, pristine

STEPS = "--steps 40 --checkpoint-every 10"


def commands() -> list[str]:
    """Return the lines of the page's first block, with a shorter run."""
    text = (REPO / "docs" / "training.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- training -->\n```bash\n(.*?)```\n<!-- /training -->", text, re.DOTALL)
    assert block
    lines = [line.split("  #")[0].strip() for line in block[1].splitlines()]
    assert any("--preset small" in line for line in lines)
    return [line.replace("--preset small", f"--preset small {STEPS}") for line in lines]


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def make_2dmd(folder: Path) -> None:
    """Write vacancies in 5x5 MoS2 whose surroundings move outwards, in the published layout."""
    rng = np.random.default_rng(0)
    files = folder / "2dmd" / "high_density_defects" / "MoS2_500" / "CIF"
    files.mkdir(parents=True)
    ids = [f"MoS2_{k}" for k in range(40)]
    for name in ids:
        unrelaxed = pristine("MoS2", 5)
        gone = int(rng.integers(len(unrelaxed)))
        away = unrelaxed.get_distances(gone, range(len(unrelaxed)), mic=True, vector=True)
        length = np.linalg.norm(away, axis=1)[:, None]
        moves = np.delete(0.5 * away / np.maximum(length, 1) ** 3, gone, axis=0)
        del unrelaxed[gone]
        relaxed = unrelaxed.copy()
        relaxed.positions += moves - moves.mean(axis=0)
        write(files / f"{name}_unrelaxed.cif", unrelaxed)
        write(files / f"{name}_relaxed.cif", relaxed)
    for split, part in (("train", ids[:28]), ("val", ids[28:]), ("test", [])):
        (files.parent / f"{split}.csv").write_text("\n".join(["atoms_id", *part]) + "\n")


def take_2dmd(folder: Path, pairs: int = 60) -> None:
    """Unpack some real pairs."""
    prefix = "high_density_defects/MoS2_500"
    with tarfile.open(DATA) as archive:
        names = archive.getnames()
        root = next(name for name in names if name.endswith(prefix)).removesuffix(prefix)
        out = folder / "2dmd" / prefix
        (out / "CIF").mkdir(parents=True)
        for split, count in (("train", pairs), ("val", 12), ("test", 0)):
            listed = archive.extractfile(f"{root}{prefix}/{split}.csv")
            assert listed
            ids = listed.read().decode().split()[1:][:count]
            (out / f"{split}.csv").write_text("\n".join(["atoms_id", *ids]) + "\n")
            for name in ids:
                for what in ("unrelaxed", "relaxed"):
                    member = archive.extractfile(f"{root}{prefix}/CIF/{name}_{what}.cif")
                    assert member
                    (out / "CIF" / f"{name}_{what}.cif").write_bytes(member.read())


@pytest.mark.skipif(os.name != "posix", reason="bash, and a kill -9 of a whole process group")
@pytest.mark.parametrize(
    "source",
    [make_2dmd, pytest.param(take_2dmd, marks=pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data"))],
)
def test_the_page_runs(tmp_path, source):
    (tmp_path / "examples").symlink_to(REPO / "examples")
    source(tmp_path)
    pack, info, train, *rest = commands()
    run(pack, tmp_path)
    assert "high/MoS2" in run(info, tmp_path).stdout
    kill_when_saved(train, tmp_path)
    assert "done: 40 steps" in run(train, tmp_path).stdout
    log = (tmp_path / "runs/small/log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "40"]
    outputs = [run(line, tmp_path).stdout for line in rest]
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["subsets"]["high/MoS2"]["n"] == 12
    assert "expected_error" in result["subsets"]["high/MoS2"]
    assert list((tmp_path / "plots").glob("*.png"))
    assert "expected error" in outputs[-1]
    assert (tmp_path / "small.vasp").exists()


def kill_when_saved(line: str, folder: Path) -> None:
    """Start a run that saves often, and kill it hard after its first checkpoint."""
    process = subprocess.Popen(
        ["bash", "-c", line],
        cwd=folder,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last = folder / "runs/small/last.pt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.2)
    assert last.exists()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
