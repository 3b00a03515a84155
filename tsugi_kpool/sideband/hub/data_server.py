"""Gives a run's prepared data, and the checkpoint that it goes on from, to machines that join: at a bounded rate.

A thread of its own reads the files; the hub's thread only passes questions in and answers out: a slow disk holds
nobody up.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tsugi_kpool.core.bucket import Bucket
from tsugi_kpool.core.messages import DataPart, DataRequest
from tsugi_kpool.core.parcels import LISTING, PART_BYTES
from tsugi_kpool.queue_thread import QueueThread

BYTES_PER_S = float(32 << 20)
"""Of all that join together: a hub's link and core have other work."""
WAITING = 256
"""Questions that wait for the disk. What comes beyond them is lost, and asked again."""
POLL_S = 0.2

Deliver = Callable[[bytes, DataPart], None]


class DataServer(QueueThread[DataRequest]):
    """`start`, `stop`; `take` from the hub's thread.

    Args:
        listing: What describes the data's files; its hash is their address. Empty: there are none.
        files: By name, those that are given, of the data and of a checkpoint.
        deliver: Called in this thread with an answer and its route; must not raise.
    """

    def __init__(self, listing: bytes, files: Mapping[str, Path], deliver: Deliver) -> None:
        super().__init__("tsugi-hub-data", WAITING, POLL_S)
        self._listing, self._files, self._deliver = listing, files, deliver
        self._bucket = Bucket(BYTES_PER_S, BYTES_PER_S / 8)

    @property
    def address(self) -> str:
        """SHA-256 of the listing, which has that of every file; empty where no data are given."""
        return hashlib.sha256(self._listing).hexdigest() if self._listing else ""

    def handle(self, route: bytes, message: DataRequest) -> None:
        part = self._part(message)
        if part is not None:
            self._pace(len(part))
            self._deliver(route, DataPart(message.file, message.start, part))

    def _part(self, question: DataRequest) -> bytes | None:
        """Return the bytes that were asked for; None for what is not given, or cannot be read."""
        if question.file == LISTING:
            return self._listing[question.start : question.start + PART_BYTES]
        path = self._files.get(question.file)
        if path is None:
            return None
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(question.start)
                return file.read(PART_BYTES)
        except (OSError, OverflowError):
            return None

    def _pace(self, size: int) -> None:
        now_s = time.monotonic()
        if (wait_s := self._bucket.allows_from(size) - now_s) > 0:
            self.pause(wait_s)
        self._bucket.spend(size, time.monotonic())
