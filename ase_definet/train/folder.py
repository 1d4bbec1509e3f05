"""The folder of a training run: one process at a time writes to it, and notices when it is moved or removed."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from filelock import FileLock, Timeout

from ase_definet.errors import DefiNetWarning, TrainingError

LOCK = ".lock"
HOLDER = ".holder"
"""Says who holds the lock, as ``pid@host``: the lock itself cannot be read everywhere."""


_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What file systems without locks say, some clusters' among them."""


class RunFolder:
    """A folder that is locked as long as the context lasts.

    Args:
        path: The folder; made on entry if need be, and never again.

    Raises:
        TrainingError: Another process trains there.
        OSError: The folder cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / LOCK, timeout=0)
        self._holder: TextIO | None = None

    def __enter__(self) -> Self:
        """Make and lock the folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise TrainingError(
                f"{self.path}: another training is writing there ({self._named_holder()}); wait for it, or give "
                "another `out`"
            ) from error
        except (NotImplementedError, OSError) as error:  # after Timeout, which is an OSError too
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            text = f"{self.path}: its file system has no locks; start no second training there"
            warnings.warn(text, DefiNetWarning, stacklevel=2)
        try:
            self._holder = (self.path / HOLDER).open("w", encoding="utf-8")
            self._holder.write(f"{os.getpid()}@{socket.gethostname()}\n")
            self._holder.flush()
        except BaseException as error:
            self.__exit__(None, None, None)
            if isinstance(error, OSError) and error.filename is None:  # a full disk does not say of what
                error.filename = str(self.path / HOLDER)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let others in."""
        if self._holder is not None:
            with suppress(OSError):  # a full disk has been told of already
                self._holder.close()
            self._holder = None
        self._lock.release()

    def check(self) -> None:
        """Make sure that the folder is still the one that was entered.

        What an open file is cannot be taken over by another, as the number of a removed folder can.

        Raises:
            TrainingError: It was moved or removed, or another folder stands in its place.
        """
        if self._holder is None:
            raise TrainingError(f"{self.path}: this training has left its folder")
        try:
            same = os.path.samestat(os.fstat(self._holder.fileno()), os.stat(self.path / HOLDER))  # noqa: PTH116
        except OSError:
            same = False
        if not same:
            raise TrainingError(
                f"{self.path}: the folder was moved or removed while this training wrote to it; put it back, and the "
                "same command goes on after its last checkpoint"
            )

    def _named_holder(self) -> str:
        try:
            return (self.path / HOLDER).read_text(encoding="utf-8", errors="replace").strip() or "unknown"
        except OSError:
            return "unknown"
