"""A short sweep in every run of the tests, and that the sweep would notice what it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ase_definet.data import packed
from ase_definet.errors import DefiNetError
from tests.conftest import REPO
from tests.reliability import mutations
from tests.reliability.mutations import BINARY, SUBJECTS, TEXT, Hang, Subject, table, trial


def test_a_short_sweep():
    """In a process of its own, for its limit of memory."""
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.reliability.mutations", "--seed", "0", "--count", "60"]
    done = subprocess.run(command, cwd=REPO, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(zip(mutations.OUTCOMES, map(int, done.stdout.splitlines()[-1].split()[1:]), strict=True))
    assert counts["fine"] + counts["refused"] == 60
    assert min(counts["fine"], counts["refused"]) > 10


@pytest.mark.parametrize("mutation", sorted({*TEXT, *BINARY}, key=lambda one: one.__name__))
def test_mutations_follow_from_the_seed_and_change_something(mutation):
    content = b"MoS2 12\n 1.0 3.19 0.0\n0.5, 2e-3 Direct\n" * 20
    made = [mutation(content, np.random.default_rng(k)) for k in range(20)]
    assert made == [mutation(content, np.random.default_rng(k)) for k in range(20)]
    assert sum(one != content for one in made) >= 15
    assert isinstance(mutation(b"", np.random.default_rng(0)), bytes)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    mutations.prepare(folder)
    return folder


def one_trial(made, monkeypatch, subject: Subject) -> mutations.Trial:
    monkeypatch.setattr(mutations, "SUBJECTS", (subject,))
    return trial(0, 0, made)


def keep(content: bytes, _rng: object) -> bytes:
    return content


def cut(content: bytes, _rng: object) -> bytes:
    return content[:100]


def other_cell(content: bytes, _rng: object) -> bytes:
    at = next(k for k in range(content.index(b"unit_cell"), len(content)) if content[k : k + 1].isdigit())
    return content[:at] + (b"9" if content[at : at + 1] != b"9" else b"8") + content[at + 1 :]


def pack(mutation) -> Subject:
    (given,) = (subject for subject in SUBJECTS if subject.name == "pack")
    return Subject("pack", given.file, given.commands, (mutation,), given.same)


def test_what_the_sweep_calls_fine_and_refused(made, monkeypatch):
    assert one_trial(made, monkeypatch, pack(keep)).outcome == "fine"
    assert one_trial(made, monkeypatch, pack(cut)).outcome == "refused"
    assert one_trial(made, monkeypatch, pack(other_cell)).outcome == "refused"


def test_the_sweep_notices_a_digest_that_covers_too_little(made, monkeypatch):
    whole = packed._digest
    monkeypatch.setattr(packed, "_digest", lambda metadata, _: metadata.get("sha256") or whole(metadata, _))
    assert one_trial(made, monkeypatch, pack(other_cell)).outcome == "accepted"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (KeyError("numbers"), "bug"),
        (MemoryError(), "memory"),
        (Hang(), "hang"),
        (KeyboardInterrupt(), "traceback"),
        (DefiNetError("first\nError: second"), "refused"),
    ],
)
def test_the_sweep_notices_how_a_command_ends(made, monkeypatch, error, outcome):
    def fail(*_):
        raise error

    monkeypatch.setattr(packed.PackedDataset, "open", fail)
    assert one_trial(made, monkeypatch, pack(keep)).outcome == outcome


def test_the_sweep_notices_numbers_that_are_none(made, monkeypatch, tmp_path):
    del monkeypatch
    text = (made / "in.extxyz").read_text().splitlines()
    text[2] = text[2].replace(text[2].split()[1], "nan")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.extxyz").write_text("\n".join(text) + "\n")
    good = CliRunner().invoke(mutations.cli, ["hosts"])
    assert mutations._judged(good, tmp_path)[0] == "wrong"


def test_the_table_counts(made, monkeypatch):
    some = [one_trial(made, monkeypatch, pack(mutation)) for mutation in (keep, cut, cut)]
    assert table(some)[-1].split() == ["all", "1", "2", *["0"] * 6]
