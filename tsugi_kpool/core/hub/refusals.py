"""What was refused, by kind: counted, recorded now and then, and told to the member whose it was."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from tsugi_kpool.core.events import Refused
from tsugi_kpool.core.messages import NotTaken

EVENT_EVERY_S = 10.0
"""A kind of refusal is recorded at most this often; the counts lose nothing."""


NOTICE_EVERY_S = 5.0
"""A member is told at most this often that something of its own was refused."""
NAMED = 3
"""Members and messages that a status names."""


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
    _of: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    """(replica, message, kind): what members have said of themselves."""
    _noticed_s: dict[int, float] = field(default_factory=dict)

    def add(self, kind: Kind, times: int = 1) -> None:
        self.counts[kind] += times

    def add_of(self, replica: int, message: str, kind: Kind, now_s: float) -> NotTaken | None:
        """A member's own message was refused: what it is to be told now, if it has not just been."""
        self.add(kind)
        self._of[replica, message, kind] += 1
        if now_s - self._noticed_s.get(replica, -NOTICE_EVERY_S) < NOTICE_EVERY_S:
            return None
        self._noticed_s[replica] = now_s
        return NotTaken(message, kind, self._of[replica, message, kind])

    def named(self) -> tuple[str, ...]:
        """Whose messages were refused, in words; late copies of what is known are nobody's trouble."""
        worst = [(who, times) for who, times in self._of.most_common() if who[2] != Kind.OLD]
        return tuple(f"{times} {what} of replica {of} ({kind})" for (of, what, kind), times in worst[:NAMED])

    def events(self, now_s: float) -> list[Refused]:
        """What is due to be recorded."""
        due = []
        for kind, count in self.counts.items():
            if count > self._told[kind] and now_s - self._told_s.get(kind, -EVENT_EVERY_S) >= EVENT_EVERY_S:
                due.append(Refused(kind, count - self._told[kind], count))
                self._told[kind], self._told_s[kind] = count, now_s
        return due
