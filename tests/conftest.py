"""Shared structures and paths."""

from __future__ import annotations

import errno
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

import ase_definet
from ase_definet.matching.library import library
from ase_definet.relaxation.relaxer import DefiNetRelaxer

REPO = Path(__file__).parent.parent
PACKAGE = Path(ase_definet.__file__).parent
"""What is tested: the checkout, or the wheel in an environment without it."""
DATA = REPO.parent / "shared" / "data" / "2dmd.tar.xz"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


def pristine(name: str, n: int, vacuum: float = 20.0) -> Atoms:
    """Return an n x n supercell of a library host, its layer in the middle of the vacuum; n x n x 2 of a crystal."""
    host = library()[name]
    if not host.layered:
        return Atoms(numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=True).repeat((n, n, 2))
    cell = host.cell.copy()
    cell[2] = [0, 0, vacuum]
    atoms = Atoms(numbers=host.numbers, positions=host.positions, cell=cell, pbc=True)
    atoms = atoms.repeat((n, n, 1))
    atoms.positions[:, 2] += vacuum / 2 - atoms.positions[:, 2].mean()
    return atoms


def mos2_with_defects(n: int = 8) -> Atoms:
    """Return MoS2 with two S vacancies and W on Mo: the example of the README."""
    atoms = pristine("MoS2", n)
    molybdenum = np.flatnonzero(atoms.numbers == 42)
    sulfur = np.flatnonzero(atoms.numbers == 16)
    atoms.numbers[molybdenum[len(molybdenum) // 2]] = 74
    del atoms[sulfur[[0, len(sulfur) // 3]].tolist()]
    return atoms


@pytest.fixture
def mos2() -> Atoms:
    return mos2_with_defects()


@pytest.fixture(scope="session")
def relaxer() -> DefiNetRelaxer:
    return DefiNetRelaxer(host="MoS2", device="cpu")


FULL = 1 << 14
"""Bytes that fit on the disk of :func:`full_disk`."""


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with room for :data:`FULL` bytes: a real disk where we may mount one, else a feigned one.

    The feigned one lets ``os.fsync`` fail, which everything written here goes through.
    """
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FULL}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if mounted:
        # some kernels round the size up
        room = os.statvfs(folder)
        ballast = room.f_bavail * room.f_frsize - FULL
        if ballast > 0:
            (folder / "ballast").write_bytes(bytes(ballast))
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    yield folder


def count_all(space, defects):
    """Return the number of configurations, symmetry ignored: what all multiplicities add up to."""
    total, used = 1, dict.fromkeys({kind.host for kind in defects}, 0)
    for kind, count in defects.items():
        total *= math.comb(int((space.numbers == kind.host).sum()) - used[kind.host], count)
        used[kind.host] += count
    return total
