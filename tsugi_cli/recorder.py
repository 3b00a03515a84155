"""events.jsonl, metrics.jsonl, status.jsonl: a JSON object a line, as it happens. Never raises into the hub."""

from __future__ import annotations

import errno
import os
import queue
import time
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from tsugi_kpool.core.messages import FleetStatus

from .run_dir import RunPaths
from .status_log import Pace, compact

METRIC = "micro_step"
"""The event that goes to metrics.jsonl; all others go to events.jsonl."""


class Recorder:
    """Called by the hub's thread; the console takes the same records out of `pending`."""

    def __init__(self, paths: RunPaths) -> None:
        self._files = {
            "metrics": _Lines(paths.metrics),
            "events": _Lines(paths.events),
            "status": _Lines(paths.status),
        }
        self._pace = Pace()
        self._pending: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.lost = 0
        """Records that could not be written (disk full, directory gone)."""

    def record(self, name: str, data: dict[str, Any]) -> None:
        """Write one record, with the time of this machine's clock."""
        stamped = _stamp()
        if name == METRIC:
            self._write("metrics", {**stamped, **data})
        else:
            event = {**stamped, "event": name, **data}
            self._write("events", event)
            self._pending.put(event)

    def status(self, status: FleetStatus) -> None:
        """Keep the status, when it is time for one, so that the run can be shown again. Called by one thread."""
        if self._pace.due(status):
            self._pace.written(status, self._write("status", {**_stamp(), **compact(status)}))

    def pending(self) -> list[dict[str, Any]]:
        """Events since the last call."""
        events = []
        while not self._pending.empty():
            events.append(self._pending.get_nowait())
        return events

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _write(self, kind: str, record: dict[str, Any]) -> int:
        """Append a line; returns the bytes that it takes."""
        try:
            return self._files[kind].append(msgspec.json.encode(record))
        except (OSError, ValueError, TypeError):
            self.lost += 1
            return 0


class _Lines:
    """A file of lines. What a full disk has torn does not spoil the next line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._torn = False

    def append(self, line: bytes) -> int:
        """Write a line; returns its bytes.

        Raises:
            OSError: not all of it could be written.
        """
        data = (b"\n" if self._torn else b"") + line + b"\n"
        written = self._file.write(data) or 0
        self._torn = written < len(data) and (written > 0 or self._torn)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    def close(self) -> None:
        self._file.close()


def _stamp() -> dict[str, str]:
    return {"time": _in_words(time.time_ns() // 1_000_000)}


@lru_cache(maxsize=4)
def _in_words(milliseconds: int) -> str:
    """A time of the wall clock; thousands of records may share one."""
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(timespec="milliseconds")
