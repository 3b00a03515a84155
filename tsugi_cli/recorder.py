"""events.jsonl, metrics.jsonl, status.jsonl: a JSON object a line, as it happens. Never raises into the hub."""

from __future__ import annotations

import json
import queue
from datetime import datetime
from typing import IO, Any

from tsugi_kpool.core.messages import FleetStatus

from .run_dir import RunPaths
from .status_log import Pace, compact

METRIC = "micro_step"
"""The event that goes to metrics.jsonl; all others go to events.jsonl."""


class Recorder:
    """Called by the hub's thread; the console takes the same records out of `pending`."""

    def __init__(self, paths: RunPaths) -> None:
        self._files: dict[str, IO[str] | None] = {
            "metrics": paths.metrics.open("a", encoding="utf-8"),
            "events": paths.events.open("a", encoding="utf-8"),
            "status": paths.status.open("a", encoding="utf-8"),
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
            if file is not None:
                try:
                    file.close()
                except OSError:
                    self.lost += 1

    def _write(self, kind: str, record: dict[str, Any]) -> int:
        """Append a line; returns the characters that it takes."""
        file = self._files[kind]
        if file is None:
            return 0
        line = json.dumps(record) + "\n"
        try:
            file.write(line)
            file.flush()
        except (OSError, ValueError):
            self.lost += 1
        return len(line)


def _stamp() -> dict[str, str]:
    return {"time": datetime.now().astimezone().isoformat(timespec="milliseconds")}
