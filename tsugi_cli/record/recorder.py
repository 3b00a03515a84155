"""The recorder of events.jsonl, metrics.jsonl and status.jsonl: a JSON object a line. Never raises into the hub.

Metrics have a line for each beat with news, and are written four times a second: at 1,000 replicas a write for each
line would be a tenth of the hub's work.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from tsugi_kpool.core.effects import StepTaken, Told
from tsugi_kpool.core.events import Event, RecordsLost
from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.durable import check_leads_to
from tsugi_kpool.errors import MachineError
from tsugi_kpool.foreign import append_to

from .run_dir import RunPaths
from .run_lock import RunLock
from .status_log import StatusPacing, compact

TOGETHER_S = 0.25
TOGETHER_BYTES = 1 << 16
_encode = msgspec.json.Encoder().encode


class Recorder:
    """A run's files. `tell` writes at once, in the hub's thread; other sinks get the same events from `pending`.

    One at a time for a run.

    Raises:
        ConfigError: another process is at work on this run.
    """

    name = "the run's files"

    def __init__(self, paths: RunPaths) -> None:
        self._lock = RunLock(paths)
        self._lock.take()
        self._metrics = _Batch(_Lines(paths.metrics))
        self._events, self._status = _Lines(paths.events), _Lines(paths.status)
        self._pace = StatusPacing()
        self._pending: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.lost = 0
        """Records that could not be written (disk full, directory gone)."""

    def tell(self, told: Told) -> None:
        """Write an event or a step down, with the time of this machine's clock. Any thread; never raises."""
        if type(told) is StepTaken:
            self._metric(told.data)
        elif isinstance(told, Event):
            self._event(told)

    def event(self, event: Mapping[str, Any]) -> None:
        """Do nothing: this event was written when it happened, and comes from here."""

    def status(self, status: FleetStatus) -> None:
        """Write the status, when one is due, so that the run can be replayed. Called by one thread."""
        if self._pace.due(status):
            self._pace.written(status, self._write(self._status, {**_stamp(), **compact(status)}))

    def pending(self) -> list[dict[str, Any]]:
        """Return the events since the last call. Also writes what is left of metrics: a quiet hub has no next line to
        do it."""
        self._flush()
        events = []
        while not self._pending.empty():
            events.append(self._pending.get_nowait())
        return events

    def close(self) -> None:
        """Write what is left and release the run, so that another process may continue it."""
        self._flush()
        for file in (self._metrics, self._events, self._status):
            file.close()
        self._lock.release()

    def _event(self, event: Event) -> None:
        try:
            line = _line(event)
        except (ValueError, TypeError) as error:
            self._note(error)
            return
        self._write(self._events, line)
        self._pending.put(line)

    def _metric(self, data: dict[str, Any]) -> None:
        """Add a line to the metrics, with the time as its first field: a thousand lines may share one."""
        try:
            self._metrics.append(_opening(time.time_ns() // 1_000_000) + _encode(data)[1:])
        except (OSError, ValueError, TypeError) as error:
            self._note(error)

    def _write(self, file: _Lines, record: dict[str, Any]) -> int:
        """Append a line; returns the bytes that it takes."""
        try:
            return file.append(_encode(record))
        except (OSError, ValueError, TypeError) as error:
            self._note(error)
            return 0

    def _flush(self) -> None:
        try:
            self._metrics.flush()
        except (OSError, ValueError) as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        """Count a failure to write. The first one is reported to the user; training goes on."""
        self.lost += 1
        if self.lost == 1:
            reason = error.strerror or str(error) if isinstance(error, OSError) else repr(error)
            self._pending.put(_line(RecordsLost(reason)))


class _Lines:
    """A file of lines. A line that a full disk has torn does not damage the next one."""

    def __init__(self, path: Path) -> None:
        try:
            self._path, self._file = path, append_to(path)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise MachineError(f"{path} cannot be written: {error.strerror}") from error
        self._torn = False

    def append(self, line: bytes) -> int:
        """Write a line; returns its bytes.

        Raises:
            OSError: not all of it could be written.
        """
        self._look()
        data = (b"\n" if self._torn else b"") + line + b"\n"
        written = self._file.write(data) or 0
        self._torn = written < len(data) and (written > 0 or self._torn)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    def close(self) -> None:
        self._file.close()

    def _look(self) -> None:
        """Open a new file in place of one that was moved or deleted.

        Raises:
            OSError: its folder or its disk has gone, too.
        """
        try:
            check_leads_to(self._path, self._file.fileno())
        except FileNotFoundError:
            successor = append_to(self._path)
            self._file.close()
            self._file, self._torn = successor, False


class _Batch:
    """Lines that are written together. If there is no room for them, that counts as one failure."""

    def __init__(self, file: _Lines) -> None:
        self._file, self._lines, self._bytes = file, list[bytes](), 0
        self._written_s = time.monotonic()
        self._lock = threading.Lock()

    def append(self, line: bytes) -> None:
        """Take a line.

        Raises:
            OSError: it was time to write, and not all could be written.
        """
        with self._lock:
            self._lines.append(line)
            self._bytes += len(line)
        if self._bytes >= TOGETHER_BYTES or time.monotonic() - self._written_s >= TOGETHER_S:
            self.flush()

    def flush(self) -> None:
        """Write the lines.

        Raises:
            OSError: not all could be written.
        """
        with self._lock:
            lines, self._lines, self._bytes, self._written_s = self._lines, [], 0, time.monotonic()
            if lines:
                self._file.append(b"\n".join(lines))

    def close(self) -> None:
        self._file.close()


def _line(event: Event) -> dict[str, Any]:
    """An event as its line has it, with the time in its first place."""
    return {**_stamp(), "event": event.name, **event.data}


def _stamp() -> dict[str, str]:
    return {"time": _in_words(time.time_ns() // 1_000_000)}


@lru_cache(maxsize=4)
def _opening(milliseconds: int) -> bytes:
    """Return the beginning of a line, with its time; the record's own fields (at least one) follow."""
    return b'{"time":"' + _in_words(milliseconds).encode() + b'",'


@lru_cache(maxsize=4)
def _in_words(milliseconds: int) -> str:
    """Return a time of the wall clock as text; thousands of records may share one."""
    second, zone = _second(milliseconds // 1000)
    return f"{second}.{milliseconds % 1000:03d}{zone}"


@lru_cache(maxsize=4)
def _second(seconds: int) -> tuple[str, str]:
    """Return a time's whole seconds, and the offset of this place from UTC."""
    words = datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
    return words[:19], words[19:]
