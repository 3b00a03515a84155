"""Files that come in from another machine over its connection to the hub, one after the other, beside their place."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tsugi_cli.data import cache
from tsugi_cli.data.shipped import File
from tsugi_kpool.core.bucket import Bucket
from tsugi_kpool.core.parcels import Parcel
from tsugi_kpool.durable import flush_all
from tsugi_kpool.errors import LaunchError

from .fetching import ASKS_AT_ONCE, ASKS_PER_S
from .pace import Pace, latest_s

DISK_SHARE = 2
"""They take at most one part in so many of what is free: others' checkpoints and logs lie there, too."""


class Incoming:
    """`begin`, then `take` what `due` has asked for until all is `whole`; `publish` or `drop`.

    Args:
        route: The connection over which it comes.
        ticket: Of the place that whoever gives it has.
        folder: Where the files are put together; nobody else's.
        files: Their names, sizes and hashes.
        what: Of what they are, in words.
        prefix: Stands before the names in questions and parts.
        asks_per_s: How many parts are asked for in a second.
        first_s: When the first of all attempts to get this began; None: it begins now.
    """

    def __init__(
        self,
        route: bytes,
        ticket: str,
        folder: Path,
        files: Mapping[str, File],
        what: str,
        prefix: str = "",
        asks_per_s: float = ASKS_PER_S,
        first_s: float | None = None,
    ) -> None:
        self.route, self.ticket, self.heard_s = route, ticket, time.monotonic()
        self._folder, self._files, self._left = folder, files, list(files)
        self._what, self._prefix = what, prefix
        self._bucket = Bucket(asks_per_s, ASKS_AT_ONCE, self.heard_s)
        self._bytes, now_s = sum(file.size for file in files.values()), self.heard_s
        self.pace = Pace(self._bytes, now_s, latest_s(self._bytes, now_s, now_s if first_s is None else first_s))
        self._parcel = Parcel(0)

    def begin(self) -> None:
        """Make room for it.

        Raises:
            OSError: the disk has none, or does not take it.
            LaunchError: a file is not what was promised.
        """
        self.drop()
        self._folder.mkdir(parents=True)
        if self._bytes > (free := shutil.disk_usage(self._folder).free) // DISK_SHARE:
            raise OSError(f"the {self._what} takes {self._bytes} bytes, and {free} are free")
        self._parcel = self._next()

    @property
    def whole(self) -> bool:
        """Whether all files have come."""
        return not self._left

    def due(self, now_s: float) -> Iterator[tuple[str, int]]:
        """Yield (file, start) of the parts to ask for now."""
        while self._left and self._bucket.takes(now_s) and (start := self._parcel.due(now_s)) is not None:
            yield self._prefix + self._left[0], start

    def take(self, file: str, start: int, data: bytes, now_s: float) -> bool:
        """Write a part; returns whether it brings us further.

        Raises:
            OSError: the disk does not take it.
            LaunchError: the file is not what was promised.
        """
        if not self._left or file != self._prefix + self._left[0]:
            return False
        fresh = self._parcel.take(start, data)
        if not fresh:
            return False
        self.heard_s = now_s
        self.pace.came(len(fresh), now_s)
        with (self._folder / self._left[0]).open("ab") as out:
            out.write(fresh)
        if self._parcel.whole:
            self._check(self._left.pop(0))
            self._parcel = self._next()
        return True

    @property
    def folder(self) -> Path:
        """Where the files are until they are moved."""
        return self._folder

    def publish(self, target: Path) -> None:
        """Move the folder to its place.

        Raises:
            OSError: the disk does not take it.
        """
        flush_all(self._folder)
        self._folder.rename(target)

    def put_into(self, target: Path) -> None:
        """Move the files into a folder that may have others already.

        Raises:
            OSError: the disk does not take it.
        """
        flush_all(self._folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in self._files:
            (self._folder / name).rename(target / name)
        self.drop()

    def drop(self) -> None:
        """Delete what has come."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _next(self) -> Parcel:
        """Return the parcel of the next file; empty files are there at once."""
        while self._left and not self._files[self._left[0]].size:
            (self._folder / self._left[0]).touch()
            self._check(self._left.pop(0))
        return Parcel(self._files[self._left[0]].size if self._left else 0)

    def _check(self, name: str) -> None:
        if cache.file_digest(self._folder / name) != self._files[name].sha256:
            raise LaunchError(f"{name} of the {self._what} is not what was offered")
