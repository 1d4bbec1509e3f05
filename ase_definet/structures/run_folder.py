"""Folder of a training run or screen, locked by one process, which detects if the folder is moved."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TextIO

from filelock import FileLock, Timeout

from ase_definet.errors import DefiNetError, DefiNetWarning

LOCK = ".lock"
HOLDER = ".holder"
"""File with the holder of the lock, as ``pid@host``, because the lock itself cannot be read on all systems."""


_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
"""Errors of file systems without locks, such as those of some clusters."""


class RunFolder:
    """Context manager that locks a folder.

    Args:
        path: The folder; created on entry if necessary, but not again later. Its parent folder must exist.
        what: What writes there, for messages, such as ``training``.
        error: Class of the exceptions.
        otherwise: For messages, what to do if another process writes there.
        goes_on: For messages, from where the same command resumes.

    Raises:
        DefiNetError: Another process uses the folder; of class ``error``.
        OSError: The folder cannot be created or written to.
    """

    def __init__(self, path: Path, what: str, error: type[DefiNetError], *, otherwise: str, goes_on: str) -> None:
        self.path = path
        self._what, self._error, self._otherwise, self._goes_on = what, error, otherwise, goes_on
        self._lock = FileLock(path / LOCK, timeout=0)
        self._holder: TextIO | None = None

    def __enter__(self) -> Self:
        """Make and lock the folder."""
        self.path.mkdir(exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise self._error(
                f"{self.path}: another {self._what} is writing there ({self._named_holder()}); wait for it, or "
                f"{self._otherwise}"
            ) from error
        except (NotImplementedError, OSError) as error:  # after Timeout, which is an OSError too
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            text = f"{self.path}: its file system has no locks; start no second {self._what} there"
            warnings.warn(text, DefiNetWarning, stacklevel=2)
        try:
            self._holder = (self.path / HOLDER).open("w", encoding="utf-8")
            self._holder.write(f"{os.getpid()}@{socket.gethostname()}\n")
            self._holder.flush()
        except BaseException as error:
            self.__exit__(None, None, None)
            if isinstance(error, OSError) and error.filename is None:  # the error of a full disk names no file
                error.filename = str(self.path / HOLDER)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let others in."""
        if self._holder is not None:
            with suppress(OSError):  # a full disk has already been reported
                self._holder.close()
            self._holder = None
        self._lock.release()

    def check(self) -> None:
        """Check that the folder is still the one that was entered.

        The identity of an open file cannot be reused, unlike the inode number of a removed folder.

        Raises:
            DefiNetError: It was moved, removed or replaced.
        """
        if self._holder is None:
            raise self._error(f"{self.path}: this {self._what} has left its folder")
        self.check_file(self._holder, HOLDER)

    def check_file(self, stream: IO[Any], name: str) -> None:
        """Check that an open file is still the one of that name in the folder.

        Raises:
            DefiNetError: It, or the folder, was moved, replaced or removed.
        """
        try:
            same = os.path.samestat(os.fstat(stream.fileno()), os.stat(self.path / name))  # noqa: PTH116
        except OSError:
            same = False
        if not same:
            what = "the folder" if name == HOLDER else f"its file {name}"
            raise self._error(
                f"{self.path}: {what} was moved or removed while this {self._what} wrote to it; put it back, and the "
                f"same command goes on {self._goes_on}"
            )

    def _named_holder(self) -> str:
        try:
            return (self.path / HOLDER).read_text(encoding="utf-8", errors="replace").strip() or "unknown"
        except OSError:
            return "unknown"
