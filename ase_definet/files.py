"""Files that are the old one or the new one, whatever happens while they are written, and never lost unasked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ase_definet.errors import OutputExistsError


def keep_existing(*paths: Path, overwrite: bool) -> None:
    """Refuse to replace files that nobody said may go.

    Args:
        *paths: The files to write.
        overwrite: Whether they may go.

    Raises:
        OutputExistsError: One of them exists and ``overwrite`` is False.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputExistsError(f"{path} exists; choose another name or pass overwrite=True (--overwrite)")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield another name beside a file, to write to; it takes the file's place if all goes well, else it goes.

    What was written is on the disk before it takes the place: a full disk or a lost machine costs the new file only.

    Args:
        path: The file to write or replace. Its folder is made if need be. The other name has the same ending.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".new.{path.name}")  # one name, so that kills leave no heap of them
    try:
        yield fresh
        with fresh.open("rb") as stream:
            os.fsync(stream.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
