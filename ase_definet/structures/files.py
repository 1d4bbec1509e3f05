"""Atomic writing of files and folders: after any interruption, they are either the old or the new ones.

Everything is written under a temporary name in the same folder, ``.ase-definet-MACHINE-PROCESS-RANDOM-NAME``, and
renamed when it is complete. The name is unpredictable and unique to the writer. Temporary files of killed runs are
removed by the next run that writes there, unless their writer may still be running.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from ase_definet.errors import OutputExistsError, ScreeningError

INCOMPLETE = "INCOMPLETE"
"""Name of the file that marks a folder while its files are being replaced, and remains if the writer is killed."""
MANIFEST = ".ase-definet-files"
"""Name of the file that lists names and digests of the files that this package wrote to a folder."""

_OURS = re.compile(r"^\.ase-definet-(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{16}-")
_WRITER = re.compile(r"^written by ase-definet, process (?P<process>\d+) on (?P<machine>[0-9a-f]{8})$", re.MULTILINE)
_LONGEST_NAME = 255
"""Longest name on common file systems, in bytes."""
_DEAD_AFTER = 86_400.0
"""A writer on another machine that wrote nothing for this long is considered dead, in s."""
_MERGED_AFTER = 3_600.0
"""Upper limit of the time to move files into a folder, in s."""
_NAMED_AFTER = 10.0
"""Upper limit of the time between creating the mark of a writer and naming the writer in it, in s."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)})

_swept: set[Path] = set()
_marking = threading.Lock()
_marked: set[str] = set()
"""Folders in which this process is replacing files at the moment."""


def keep_existing(*paths: Path, overwrite: bool) -> None:
    """Refuse to replace existing files without permission.

    Args:
        *paths: The files to write.
        overwrite: Whether they may be replaced.

    Raises:
        OutputExistsError: A file exists and ``overwrite`` is False.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputExistsError(f"{path} exists; choose another name or pass overwrite=True (--overwrite)")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file to write to, which replaces a file on success and is removed otherwise.

    The content is synced to disk first, so that a full disk or a crash only loses the new file. A replaced file keeps
    its permission bits; a new one gets those of the umask. If the path is a symbolic link, its target is replaced and
    the link is kept.

    Args:
        path: The file to write or replace. Its folder must exist: if it is removed meanwhile, it is not recreated.
            The temporary file has the same extension.

    Raises:
        OutputExistsError: A folder, a pipe or a device has that name.
        FileNotFoundError: There is no such folder, or it was removed or moved while the file was written.
        OSError: The file cannot be written; the error names ``path``.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.exists() and not target.is_file():
        raise OutputExistsError(f"{path} is no ordinary file; choose another name")
    fresh = _beside(target)
    with _named(path, fresh):
        fresh.open("x").close()  # neither follows links nor opens existing files
        try:
            yield fresh
            with fresh.open("r+b") as stream:  # Windows syncs only what is open for writing
                os.fsync(stream.fileno())
            if target.exists():
                with suppress(PermissionError):  # some network file systems have no permission bits
                    shutil.copymode(target, fresh)
            fresh.replace(target)
        finally:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)


@contextmanager
def new_database(path: Path, kind: str = "db") -> Iterator[Any]:
    """Yield an empty ASE database in a private file, such as that of :func:`replacing`.

    It has no lock file, because one left by a killed process would block all later ones indefinitely.

    Args:
        path: The file; empty.
        kind: ASE's name for the kind of database, ``db`` or ``json``.

    Raises:
        OSError: The database cannot be written, for instance because the disk is full.
    """
    import sqlite3  # noqa: PLC0415

    from ase.db import connect  # noqa: PLC0415

    try:
        with connect(path, type=kind, use_lock_file=False, append=kind == "db") as database:
            yield database
    except sqlite3.OperationalError as error:
        full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder, whose files become the content of a folder on success.

    A new folder appears at once and complete. In an existing one, exactly the files that an earlier call wrote there
    are replaced; meanwhile it contains a file :data:`INCOMPLETE`, which remains if the process is killed. The next
    call with the same path repairs that.

    Args:
        path: The folder. Its parent folder must exist.

    Raises:
        OutputExistsError: The path is no folder, another process is writing there, or a file from an earlier call
            that would be replaced has been modified; nothing is changed then.
        FileNotFoundError: The parent folder does not exist, or was removed while the files were written.
        OSError: The files cannot be written.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.exists() and not target.is_dir():
        raise OutputExistsError(f"{path} is a file, expected a folder; choose another name")
    there = target.is_dir()
    if there:
        _writer_of_mark(target)
    fresh = _beside(target / "files" if there else target)
    with _named(path, fresh):
        fresh.mkdir()
        try:
            yield fresh
            if there:
                _merge(fresh, target)
                return
            _write_manifest(fresh, _digests(fresh))
            try:
                fresh.rename(target)
            except OSError as error:
                if not target.exists():
                    raise
                raise OutputExistsError(
                    f"{path} was made by another process in the meantime; choose another name"
                ) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def write_set(path: Path, files: Mapping[str, str], *, overwrite: bool, stale: Sequence[str] = ()) -> None:
    """Write several text files to a folder, all or none.

    A new folder appears at once with all files. In an existing one, other files are kept; while the new files are
    moved in, it contains a file :data:`INCOMPLETE`, which remains if the process is killed. Other writers are
    rejected meanwhile, so that sets of files are never mixed.

    Args:
        path: The folder. Its parent folder must exist.
        files: Their texts by their names.
        overwrite: Whether files in the way may be replaced.
        stale: Names of files of an earlier set, which are removed if they are not in this one.

    Raises:
        OutputExistsError: A file is in the way, the path is no folder, or another process is writing there; nothing
            is changed then.
        FileNotFoundError: The folder was removed or moved in the meantime.
        OSError: The files cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise OutputExistsError(f"{path} is a file; give a directory.")
    there = path.is_dir()
    names = dict.fromkeys((*files, *stale))
    fresh = _beside(path / "files" if there else path)
    with _named(path, fresh):
        keep_existing(*(path / name for name in names), overwrite=overwrite)
        fresh.mkdir()
        try:
            for name, text in files.items():
                (fresh / name).write_text(text, encoding="utf-8")
            if not there and _appears(fresh, path):
                return
            with _marked_incomplete(path):
                # again: another writer may have come first
                keep_existing(*(path / name for name in names), overwrite=overwrite)
                for name in files:
                    if (path / name).is_dir():
                        raise OutputExistsError(f"{path / name} is a folder, expected a file or nothing; rename it")
                for name in files:
                    (fresh / name).replace(path / name)
                for name in names.keys() - files.keys():
                    (path / name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _appears(fresh: Path, path: Path) -> bool:
    """Rename a folder; return False if another process created one of that name in the meantime."""
    try:
        fresh.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        return False
    return True


def refuse_incomplete(folder: Path) -> None:
    """Refuse to read a folder with a mixture of old and new files.

    Raises:
        ScreeningError: The process that wrote the folder was interrupted, or is still running.
    """
    mark = folder / INCOMPLETE
    if not mark.is_file():
        return
    text = mark.read_text(encoding="utf-8", errors="replace")
    if not text or _WRITER.search(text):
        raise ScreeningError(
            f"{folder} is incomplete: it was being written when {mark} was made; wait until that is gone, or write "
            "the folder again with --overwrite"
        )


def is_vacant(folder: Path, *besides: str) -> bool:
    """Whether a folder contains only temporary files of killed writers and files of the given names."""
    with os.scandir(folder) as entries:
        return all(_OURS.match(entry.name) or entry.name in besides for entry in entries)


def others_in(folder: Path) -> int:
    """Return the number of visible files in a folder that :func:`replacing_folder` did not write."""
    visible = sum(1 for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_file())
    return visible - len({name for name, _ in _read_manifest(folder)})


def _merge(fresh: Path, target: Path) -> None:
    """Move new files into a folder and remove obsolete ones of an earlier call."""
    with _marked_incomplete(target) as mark:
        try:  # nothing is changed yet
            old, new = _read_manifest(target), list(_digests(fresh))
            stale = _stale(target, old, {name for name, _ in new})
            # both lists, so that all files are known as ours if this is interrupted
            _write_manifest(target, [*old, *new])
        except BaseException:
            mark.unlink(missing_ok=True)
            raise
        for path in stale:
            path.unlink(missing_ok=True)
        for name, _ in new:
            (fresh / name).replace(target / name)
        _write_manifest(target, new)


@contextmanager
def _marked_incomplete(folder: Path) -> Iterator[Path]:
    """Mark a folder while its files are being replaced.

    The mark remains after an exception, except an OutputExistsError, which means that nothing was changed.

    Raises:
        OutputExistsError: Another process, or another thread of this one, is writing there.
    """
    mark, key = folder / INCOMPLETE, os.path.realpath(folder)
    with _marking:  # a mark of this process is one that a run before left, unless its folder is among these
        if key in _marked:
            raise OutputExistsError(f"{folder}: another thread is writing there; wait for it")
        _take_mark(folder)
        _marked.add(key)
    try:
        yield mark
        mark.unlink()
    except OutputExistsError:
        mark.unlink(missing_ok=True)
        raise
    finally:
        _marked.discard(key)


def _stale(folder: Path, old: list[tuple[str, str]], kept: set[str]) -> list[Path]:
    """Return the files of an earlier call that have to be removed.

    Raises:
        OutputExistsError: One of them was modified, or a folder has the name of a new file.
    """
    written: dict[str, set[str]] = {}
    for name, digest in old:
        written.setdefault(name, set()).add(digest)
    stale = [folder / name for name in written if name not in kept and (folder / name).is_file()]
    for path in stale:
        if _digest(path) not in written[path.name]:
            raise OutputExistsError(
                f"{path} was written by an earlier run and changed since; it does not belong to the new files: move "
                "it away, or write to another folder"
            )
    for name in kept:
        if (folder / name).is_dir():
            raise OutputExistsError(f"{folder / name} is a folder, expected a file or nothing there; rename it")
    return stale


def _take_mark(folder: Path) -> None:
    """Mark a folder as incomplete, unless another writer that marked it is running.

    Raises:
        OutputExistsError: Another writer is running, or the file of that name belongs to the user.
    """
    mark = folder / INCOMPLETE
    if _writer_of_mark(folder) is not None:
        mark.unlink(missing_ok=True)
    try:
        with mark.open("x", encoding="utf-8") as stream:
            stream.write(
                "This folder holds old and new files: a process was stopped while it replaced them, or is still at "
                "it.\nIf it was stopped, run the same command again with --overwrite.\n"
                f"written by ase-definet, process {os.getpid()} on {_machine()}\n"
            )
    except FileExistsError as error:
        raise OutputExistsError(f"{folder}: another process is writing there; wait for it") from error


def _writer_of_mark(folder: Path) -> int | None:
    """Return the process that was interrupted in a folder (0 if it had not named itself), None if none was.

    Raises:
        OutputExistsError: It is still running, or the file of that name belongs to the user.
    """
    mark = folder / INCOMPLETE
    try:
        text = mark.read_text(encoding="utf-8", errors="replace")
        when = mark.stat().st_mtime
    except FileNotFoundError:
        return None
    found = _WRITER.search(text)
    if not text:  # of a writer between creating it and naming itself in it
        if time.time() - when < _NAMED_AFTER:
            raise OutputExistsError(f"{folder}: another process is writing there; wait for it")
        return 0
    if not found:
        raise OutputExistsError(f"{mark} is not of this package, which needs that name; rename it")
    process = int(found["process"])
    recent = time.time() - when < _MERGED_AFTER
    if recent and process != os.getpid() and _may_live(found["machine"], process, when):
        raise OutputExistsError(
            f"{folder}: another process ({process}) is writing there; wait for it, or remove {mark} if that process "
            "does something else"
        )
    return process


def _write_manifest(folder: Path, entries: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> None:
    with replacing(folder / MANIFEST) as fresh, fresh.open("w", encoding="ascii") as stream:
        stream.writelines(json.dumps({"name": name, "digest": digest}) + "\n" for name, digest in entries)


def _read_manifest(folder: Path) -> list[tuple[str, str]]:
    """Return names and digests of the files written to a folder; names may occur twice.

    Raises:
        OutputExistsError: The list cannot be read, so that it is unknown which files may be removed.
    """
    path = folder / MANIFEST
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    except ValueError:
        lines = ["damaged"]
    out = []
    for line in lines:
        try:
            entry = json.loads(line)
            name, digest = str(entry["name"]), str(entry["digest"])
        except (ValueError, KeyError, TypeError):
            name = ""
            digest = ""
        if not name or name in {".", ".."} or Path(name).name != name:
            raise OutputExistsError(
                f"{path}, the list of the files that may be replaced, is damaged; write to another folder, or remove "
                "the old files and the list by hand"
            )
        out.append((name, digest))
    return out


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield names and digests of the visible files in a folder."""
    for entry in os.scandir(folder):
        if not entry.name.startswith("."):
            yield entry.name, _digest(Path(entry.path))


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def private_prefix(folder: Path) -> str:
    """Return a unique prefix of names in a folder, after removing temporary files of killed runs."""
    _sweep(folder)
    return f".ase-definet-{_machine()}-{os.getpid()}-{secrets.token_hex(8)}-"


def _beside(path: Path) -> Path:
    """Return a unique temporary name in the folder of a path."""
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; was it removed in the meantime?", str(folder))
    head = private_prefix(folder)
    room = _LONGEST_NAME - len(head) - 16  # SQLite adds an ending of its own
    tails = (path.name, path.suffix, "")
    return folder / (head + next(tail for tail in tails if len(os.fsencode(tail)) <= room))


@contextmanager
def _named(path: Path, fresh: Path) -> Iterator[None]:
    """Make file system errors name the requested file instead of the temporary one."""
    try:
        yield
    except OSError as error:
        without = error.filename is None and error.errno in _NO_ROOM
        if without or str(error.filename) == str(fresh):
            error.filename = str(path)
        raise


def _sweep(folder: Path) -> None:
    """Remove temporary files of killed runs from a folder, once per process."""
    place = folder.absolute()
    if place in _swept:
        return
    _swept.add(place)
    with suppress(OSError):
        for entry in list(filter(lambda entry: _OURS.match(entry.name), os.scandir(folder))):
            found = _OURS.match(entry.name)
            with suppress(OSError):
                when = entry.stat(follow_symlinks=False).st_mtime
                if not found or _may_live(found["machine"], int(found["process"]), when):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink()


def _may_live(machine: str, process: int, when: float) -> bool:
    """Whether a process that last wrote at a time, in s since the epoch, may still be running."""
    if machine == _machine() and os.name == "posix":  # elsewhere, signal 0 is not harmless
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return True
        return True
    return time.time() - when < _DEAD_AFTER


@cache
def _machine() -> str:
    """Return an identifier of the process namespace: this machine or container."""
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{platform.node()} {space}".encode("utf-8", "replace")).hexdigest()[:8]
