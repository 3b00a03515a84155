"""A file that travels in parts over the sideband: which part to ask for next, and what has come whole. Pure.

Parts may be lost, come twice or out of order. What has been written without a gap is the file's length on disk, so
whoever was cut off or killed goes on from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

PART_BYTES = 48 * 1024
"""Of one part: a frame has room for it."""
WINDOW = 16
"""Parts asked for and not come yet: less than a megabyte waits in any buffer."""
AGAIN_S = 3.0
"""A part that has not come is asked for again after this time."""
LISTING = ""
"""Name of the listing of all files, which is asked for as a file is."""


@dataclass
class Parcel:
    """One file that is being fetched."""

    size: int
    written: int = 0
    """Bytes on disk, without a gap."""
    _asked_s: dict[int, float] = field(default_factory=dict)
    """Start of a part -> when it was asked for."""
    _come: dict[int, bytes] = field(default_factory=dict)
    """Start -> a part that has come before one that stands before it."""

    @property
    def whole(self) -> bool:
        """Whether all of it is on disk."""
        return self.written >= self.size

    def due(self, now_s: float) -> int | None:
        """Return the start of the part to ask for now, which counts as asked for; None: nothing is due."""
        for start in range(self.written, min(self.size, self.written + WINDOW * PART_BYTES), PART_BYTES):
            if start not in self._come and now_s - self._asked_s.get(start, -math.inf) >= AGAIN_S:
                self._asked_s[start] = now_s
                return start
        return None

    def take(self, start: int, data: bytes) -> bytes:
        """Take a part that has come; returns the bytes to write at the end of what is written, perhaps none.

        A part that was not asked for, or has another length, is dropped.
        """
        if start not in self._asked_s or start < self.written or len(data) != min(PART_BYTES, self.size - start):
            return b""
        self._come[start] = data
        ready = bytearray()
        while (part := self._come.pop(self.written + len(ready), None)) is not None:
            self._asked_s.pop(self.written + len(ready), None)
            ready += part
        self.written += len(ready)
        return bytes(ready)
