"""What was refused, by kind: counted, recorded now and then, and limited in how often it may be tried."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from .effects import Event

EVENT_EVERY_S = 10.0
"""A kind of refusal is recorded at most this often; the counts lose nothing."""


class Kind(StrEnum):
    """Why something was refused."""

    MALFORMED = "malformed"
    """No message of ours: garbage, too large, several frames, another schema version."""
    ROLE = "role"
    """The sender's key does not allow it."""
    IDENTITY = "identity"
    """In the name of a replica that the sender is not, or that may not join."""
    RANGE = "range"
    """A value that cannot be: negative, not a number, more than there is."""
    OLD = "old"
    """From before what is known already."""
    FLOOD = "flood"
    """More messages than a connection may send."""
    KEY = "key"
    """A connection with a key that is not on the list."""
    HANDSHAKE = "handshake"
    """A connection that is not of our kind: plain TCP, no encryption, or silence."""


@dataclass
class Refusals:
    """Counts by kind, and what of them has been recorded."""

    counts: Counter[str] = field(default_factory=Counter)
    _told: Counter[str] = field(default_factory=Counter)
    _told_s: dict[str, float] = field(default_factory=dict)

    def add(self, kind: Kind, times: int = 1) -> None:
        self.counts[kind] += times

    def events(self, now_s: float) -> list[Event]:
        """What is due to be recorded."""
        due = []
        for kind, count in self.counts.items():
            if count > self._told[kind] and now_s - self._told_s.get(kind, -EVENT_EVERY_S) >= EVENT_EVERY_S:
                due.append(Event("refused", {"kind": kind, "times": count - self._told[kind], "in_all": count}))
                self._told[kind], self._told_s[kind] = count, now_s
        return due


@dataclass
class Bucket:
    """A token bucket: `rate` messages a second, and `burst` at once."""

    rate: float
    burst: float
    _level: float = field(init=False)
    seen_s: float = 0.0

    def __post_init__(self) -> None:
        self._level = self.burst

    def takes(self, now_s: float) -> bool:
        """Whether one more message is within bounds."""
        self._level = min(self.burst, self._level + (now_s - self.seen_s) * self.rate)
        self.seen_s = now_s
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True
