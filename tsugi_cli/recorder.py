"""events.jsonl and metrics.jsonl: one JSON object a line, written as it happens. Never raises into the hub."""

from __future__ import annotations

import json
import queue
from datetime import datetime
from typing import IO, Any

from .run_dir import RunPaths

METRIC = "micro_step"
"""The event that goes to metrics.jsonl; all others go to events.jsonl."""


class Recorder:
    """Called by the hub's thread; the console takes the same records out of `pending`."""

    def __init__(self, paths: RunPaths) -> None:
        self._files: dict[str, IO[str] | None] = {
            "metrics": paths.metrics.open("a", encoding="utf-8"),
            "events": paths.events.open("a", encoding="utf-8"),
        }
        self._pending: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.lost = 0
        """Records that could not be written (disk full, directory gone)."""

    def record(self, name: str, data: dict[str, Any]) -> None:
        """Write one record, with the time of this machine's clock."""
        stamped = {"time": datetime.now().astimezone().isoformat(timespec="milliseconds")}
        if name == METRIC:
            self._write("metrics", {**stamped, **data})
        else:
            event = {**stamped, "event": name, **data}
            self._write("events", event)
            self._pending.put(event)

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

    def _write(self, kind: str, record: dict[str, Any]) -> None:
        file = self._files[kind]
        if file is None:
            return
        try:
            file.write(json.dumps(record) + "\n")
            file.flush()
        except (OSError, ValueError):
            self.lost += 1
