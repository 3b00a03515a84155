"""Reads the files of JSON lines that a run writes, during the run or long after."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tsugi_kpool.core.renamed import renewed
from tsugi_kpool.foreign import open_plain

LONGEST_BYTES = 1 << 24
"""Longest record. Reading stops there, as at a line that is still being written."""


class Tail:
    """Reads a file of JSON lines on from where it stopped last. Lines that are no records are counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.unreadable = 0
        """Number of lines that were no JSON objects, without a last line that is still being written."""

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the records that have been completed since the last call."""
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
        """Whether the file ends within a line, as it does when its writer was killed."""
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
    """Return a record's time in seconds, or None when it has none."""
    try:
        return datetime.fromisoformat(str(record.get("time"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def number(value: object) -> float | None:
    """Return a finite number, or None for anything else that a summary or an event may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        known = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return known if math.isfinite(known) else None


def numbers(value: object) -> dict[str, float]:
    """Return the finite numbers of a mapping by their names; none of anything else."""
    if not isinstance(value, Mapping):
        return {}
    known = ((str(name), number(each)) for name, each in value.items())
    return {name: each for name, each in known if each is not None}
