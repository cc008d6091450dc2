"""A file that is replaced in one step: whoever looks at any moment finds the old or the new one.

What is written goes to a temporary file beside it first, which is locked. If the process dies, the
lock dies with it, and the next save to the same path removes the leftover.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import secrets
import stat
import zlib
from collections.abc import Callable
from typing import IO, Any

fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # Windows, where an open file cannot be removed: as good as a lock
    fcntl = None

__all__ = ["replace_file"]


def replace_file(path: str, write: Callable[[IO[bytes]], None]) -> None:
    r"""Writes a file anew; on any failure it stays as it was.

    A symbolic link stays, and its target is replaced; so do the permissions of the file. A new one
    gets those of any new file. What is no ordinary file (a pipe, a device) is written to directly.

    Args:
        path (str): The file, which may exist.
        write (callable): Is given a binary file to write to.

    Raises:
        OSError: If the file or its folder cannot be written.
    """
    found = _stat(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        with open(path, "wb") as special:  # says so if it is a folder
            write(special)
        return
    if found is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    prefix = f".qlr-save-{zlib.crc32(os.fsencode(name)):08x}-"
    _remove_abandoned(folder, prefix)
    temporary, file = _new_file(folder, prefix, path)
    try:
        with file:
            if found is not None:
                _take_over(file.fileno(), found)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # while it is locked
                os.replace(temporary, target)
        if fcntl is None:
            os.replace(temporary, target)
    except BaseException:  # Ctrl-C, too
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        if not path:
            raise
        if not os.path.basename(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path) from None
        return None


def _new_file(folder: str, prefix: str, path: str) -> tuple[str, IO[bytes]]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        temporary = os.path.join(folder, prefix + secrets.token_hex(8))
        try:
            file = os.fdopen(os.open(temporary, flags, 0o666), "wb")
        except OSError as error:  # of the path that the caller knows
            raise type(error)(error.errno, error.strerror, path) from None
        if _lock(file.fileno()) and os.fstat(file.fileno()).st_nlink == 0:
            file.close()  # another save took it for abandoned before it was locked
            continue
        return temporary, file


def _lock(descriptor: int, waits: bool = True) -> bool:
    """Whether the file is locked now. Not all file systems can."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _remove_abandoned(folder: str, prefix: str) -> None:
    """Removes what processes that were killed have left: files that nobody holds a lock on."""
    with contextlib.suppress(OSError):
        for name in [n for n in os.listdir(folder) if n.startswith(prefix)]:
            with contextlib.suppress(OSError):
                temporary = os.path.join(folder, name)
                if fcntl is None:
                    os.unlink(temporary)
                    continue
                with open(temporary, "rb") as file:
                    if _lock(file.fileno(), waits=False):
                        os.unlink(temporary)


def _take_over(descriptor: int, found: os.stat_result) -> None:
    """Owner, group and permissions of the file that is replaced, as far as they can be given."""
    if hasattr(os, "fchown"):
        with contextlib.suppress(OSError):
            os.fchown(descriptor, found.st_uid, found.st_gid)
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode))


def _sync_folder(folder: str) -> None:
    """Puts the new name on disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
