"""Files that somebody else may have put there: opened without waiting or following links, and read within bounds.

A run directory may come from another user, an archive or a shared disk. What lies in it under a known name may be a
named pipe, which lets its reader wait for ever, a device, which has no end, or a link to a file that is none of the
run's.
"""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path
from typing import BinaryIO

SMALL_BYTES = 1 << 24
"""Upper limit for files of settings, keys and facts: the manifest of a run of 10,000 replicas has a tenth of it."""
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISLNK, "a link"),
)


def kind(mode: int) -> str:
    """Return what a file of this `st_mode` is, in words: "a file", "a named pipe", ..."""
    return next((words for test, words in _KINDS if test(mode)), "a file")


def check_plain(descriptor: int, path: Path) -> os.stat_result:
    """Return the facts of an open file.

    Raises:
        OSError: it is no plain file.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise _refused(f"it is {kind(found.st_mode)}, not a file", path)
    return found


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading, if it is one.

    Raises:
        OSError: it is not there, cannot be read, or is a link, a pipe, a device, a socket or a directory.
    """
    return os.fdopen(_opened(path, os.O_RDONLY), "rb")


def _opened(path: Path, flags: int) -> int:
    # O_NONBLOCK: opening a pipe that nobody else has open would wait. On a plain file it changes nothing.
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refused("it is a link, which is not followed", path) from error
        if error.errno == errno.ENXIO:  # what opening a socket says, and a pipe that nobody reads
            raise _refused(f"it is {kind(path.lstat().st_mode)}, not a file", path) from error
        raise
    try:
        check_plain(descriptor, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def append_to(path: Path) -> FileIO:
    """Open a file to append to, and make it if it is not there.

    Raises:
        OSError: it cannot be written, or is a link, a pipe, a device, a socket or a directory.
    """
    return os.fdopen(_opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab", buffering=0)


def read_plain(path: Path, most_bytes: int = SMALL_BYTES) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: as `open_plain`, or it is longer than `most_bytes`.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size  # read(n) takes memory for n bytes, however few there are
        if size > most_bytes:
            raise OSError(errno.EFBIG, f"it has more than {most_bytes} bytes", str(path))
        return file.read(size)


def _refused(words: str, path: Path) -> OSError:
    return OSError(errno.EINVAL, words, str(path))
