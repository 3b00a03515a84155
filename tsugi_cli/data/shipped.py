"""Prepared data that come from a run's hub: how an entry of the cache is described, and the folder that fills up.

An entry's listing says size and hash of every file. The listing's own hash is the entry's address: it names the
content, so whoever has it already fetches nothing, and whoever was killed in the middle goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from tsugi_kpool.errors import LaunchError, MachineError

from . import cache
from .facts import MANIFEST, Facts

MOST_FILES = 64
MOST_LISTING = 1 << 16
"""Bytes of a listing: so many files take less than half of it."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
NOT_OURS = "the hub lists data that cannot be: {}"


class File(msgspec.Struct, frozen=True):
    """One file of an entry."""

    size: int
    sha256: str


def listing_of(entry: Path) -> bytes:
    """Describe an entry of this machine.

    Raises:
        OSError, ValueError: it has gone or was damaged.
    """
    seal = json.loads((entry / cache.SEAL).read_text(encoding="utf-8"))
    return msgspec.json.encode({name: File(mark["size"], mark["sha256"]) for name, mark in sorted(seal.items())})


def read_listing(data: bytes) -> Mapping[str, File]:
    """Read a hub's listing.

    Raises:
        LaunchError: it is none, or names what is no file of an entry.
    """
    try:
        files = msgspec.json.decode(data, type=dict[str, File])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise LaunchError(NOT_OURS.format("no listing")) from error
    if not 0 < len(files) <= MOST_FILES or MANIFEST not in files:
        raise LaunchError(NOT_OURS.format(f"{len(files)} files"))
    for name, file in files.items():
        if not _NAME.fullmatch(name) or name == cache.SEAL or file.size < 0 or not _SHA256.fullmatch(file.sha256):
            raise LaunchError(NOT_OURS.format(f"{name[:60]!r} of {file.size} bytes"))
    return files


def known(fingerprint: str) -> Facts | None:
    """Return the facts of the entry of this machine that holds these data, whoever made it; None: there is none."""
    with suppress(OSError, MachineError):
        for entry in cache.folder().iterdir():
            with suppress(OSError, ValueError):
                if Facts.read(entry).fingerprint == fingerprint and (found := cache.find(entry.name)) is not None:
                    return found
    return None


@contextmanager
def receiving(address: str, waits: Callable[[], None]) -> Iterator[Path]:
    """Return the folder that an entry is fetched into, while nobody else of this user fetches it. It stays when the
    fetching is cut off.

    Args:
        address: Of the entry.
        waits: Called again and again while another process fetches it; what it raises ends the waiting.

    Raises:
        LaunchError: this is no address.
        MachineError: it cannot be made, or the disk does not take what comes.
    """
    place, name = cache.folder(), name_of(address)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _alone(FileLock(place / f".{name}.lock"), waits):
            scratch = place / f".fetching-{name}"
            (scratch / "entry").mkdir(parents=True, exist_ok=True)
            yield scratch
            with suppress(OSError):
                scratch.rmdir()
    except OSError as error:
        reason = error.strerror or error
        raise MachineError(
            f"cannot keep the run's data in {place}: {reason}; XDG_CACHE_HOME=FOLDER puts them elsewhere"
        ) from error


@contextmanager
def _alone(lock: FileLock, waits: Callable[[], None]) -> Iterator[None]:
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=0)
            break
        waits()
    try:
        yield
    finally:
        lock.release()


def publish(address: str, scratch: Path) -> Facts:
    """Make what has been fetched and verified an entry of the cache.

    Raises:
        LaunchError: its facts are none.
    """
    try:
        facts = Facts.read(scratch / "entry")
    except ValueError as error:
        raise LaunchError(NOT_OURS.format("no facts")) from error
    return cache.publish(name_of(address), scratch, facts)


def name_of(address: str) -> str:
    """Return the name of the entry with this address, which becomes the name of a folder.

    Raises:
        LaunchError: this is no address.
    """
    if not _SHA256.fullmatch(address):
        raise LaunchError(NOT_OURS.format(f"their address is {address[:60]!r}"))
    return address[:40]
