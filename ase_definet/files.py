"""Files that are the old one or the new one, whatever happens while they are written, and never lost unasked."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ase_definet.errors import OutputExistsError

_SQLITE = {8: errno.EROFS, 10: errno.EIO, 13: errno.ENOSPC}
"""What the file system says where SQLite says READONLY, IOERR and FULL."""


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
    except Exception as error:
        if (named := _named(error, path, fresh)) is None:
            raise
        raise named from error
    finally:
        fresh.unlink(missing_ok=True)


def _named(error: Exception, path: Path, fresh: Path) -> OSError | None:
    """Return what a file system or SQLite has against a file under the name that the caller knows.

    A full disk is told by ``write`` and ``fsync``, which do not say of which file.

    Args:
        error: Anything.
        path: The file that is to be written.
        fresh: The other name that it is written under.
    """
    if isinstance(error, OSError):
        unnamed = error.filename is None or os.fsdecode(error.filename) == str(fresh)
        if error.errno is None or not unnamed or isinstance(error, BrokenPipeError):
            return None
        return OSError(error.errno, error.strerror, str(path))
    if type(error).__module__ == "sqlite3":
        reason = _SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        return None if reason is None else OSError(reason, os.strerror(reason), str(path))
    return None
