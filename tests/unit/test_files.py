"""A file is the old one or the new one."""

from __future__ import annotations

import os

import pytest

from ase_definet.files import replacing


def test_the_new_file_takes_the_place_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as fresh:
        fresh.write_text("one")
        assert not path.exists()
        assert fresh.suffix == path.suffix
    assert path.read_text() == "one"
    with replacing(path) as fresh:
        fresh.write_text("two")
        assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "two"


@pytest.mark.parametrize("where", ["writing", "syncing"])
def test_what_fails_leaves_the_old_one(tmp_path, monkeypatch, where):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, KeyboardInterrupt)):
        half_way(path, where)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def half_way(path, where):
    with replacing(path) as fresh:
        fresh.write_text("half")
        if where == "writing":
            raise KeyboardInterrupt
