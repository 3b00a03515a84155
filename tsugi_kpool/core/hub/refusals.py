"""What was refused, by kind: counted, and recorded now and then."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from tsugi_kpool.core.events import Refused

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

    def events(self, now_s: float) -> list[Refused]:
        """What is due to be recorded."""
        due = []
        for kind, count in self.counts.items():
            if count > self._told[kind] and now_s - self._told_s.get(kind, -EVENT_EVERY_S) >= EVENT_EVERY_S:
                due.append(Refused(kind, count - self._told[kind], count))
                self._told[kind], self._told_s[kind] = count, now_s
        return due
