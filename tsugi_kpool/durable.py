"""Durable files, which survive a power cut: written beside their place, flushed to the medium, then moved there."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from .core.checkpoint import FileFacts
from .foreign import open_plain

BLOCK_BYTES = 1 << 20


def write_file(path: Path, data: bytes) -> FileFacts:
    """Write a new file and flush it. Returns its size and hash.

    Raises:
        OSError: it could not be written whole; a part of it may stand there.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileFacts(len(data), hashlib.sha256(data).hexdigest())


def check_leads_to(path: Path, descriptor: int) -> None:
    """Check that an open file is still the one at this path: it outlives its folder, and the unmounting of its disk.

    Raises:
        OSError: it is not: nobody will ever see what is written to it.
    """
    found, held = path.stat(), os.fstat(descriptor)
    if (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def flush_folder(path: Path) -> None:
    """Flush a folder's own list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """Flush the files of a folder that somebody else has written, and its list of names."""
    for path in folder.iterdir():
        if path.is_file():
            flush_folder(path)
    flush_folder(folder)


def facts_of(path: Path, expected_bytes: int) -> FileFacts:
    """Return size and SHA-256 of a file. A file of another size is not hashed: it may have no end.

    Raises:
        OSError: it cannot be read, or is no plain file.
    """
    digest, size = hashlib.sha256(), 0
    with open_plain(path) as file:
        held = os.fstat(file.fileno()).st_size
        if held != expected_bytes:
            return FileFacts(held, "")
        while size <= expected_bytes and (block := file.read(BLOCK_BYTES)):
            digest.update(block)
            size += len(block)
    return FileFacts(size, digest.hexdigest())
