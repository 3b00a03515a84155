"""Reading the files of JSON lines that a run writes, while it writes them or long after."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from tsugi_kpool.core.renamed import renewed
from tsugi_kpool.foreign import open_plain

LONGEST_BYTES = 1 << 24
"""No record is as long: reading ends there, as at a line that is still being written."""


class Tail:
    """A file of JSON lines, read on from where the last reading ended. What is no record is counted, not raised."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.unreadable = 0
        """Lines that were no JSON objects; a last line that is still being written is none of them."""

    def read(self) -> Iterator[dict[str, Any]]:
        """The records that have been completed since."""
        try:
            file = open_plain(self._path)
        except OSError:
            return
        with file:
            file.seek(self._at)
            while line := file.readline(LONGEST_BYTES):
                if not line.endswith(b"\n"):
                    return
                self._at += len(line)
                record = _object(line)
                if record is not None:
                    yield record
                elif line.strip():
                    self.unreadable += 1

    @property
    def torn(self) -> bool:
        """Whether the file ends in the middle of a line, as it does when its writer was killed."""
        try:
            return self._path.stat().st_size > self._at
        except OSError:
            return False


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return renewed(record) if isinstance(record, dict) else None


def seconds(record: dict[str, Any]) -> float | None:
    """A record's time in seconds, or None when it has none."""
    try:
        return datetime.fromisoformat(str(record.get("time"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def number(value: object) -> float | None:
    """A finite number, or None for everything else that a summary or an event may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
