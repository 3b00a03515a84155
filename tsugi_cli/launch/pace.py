"""How fast what another machine gives comes in, and whether it is worth to wait for it. Pure: `now_s` comes from the
caller."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

WINDOW_S = 60.0
"""A pace is that of so long: twice what a silence may last, so that no cut of a link looks like a slow one."""
MOST_S, LEAST_BYTES_PER_S = 300.0, 1 << 16
"""What comes may take so long, with a second more for so many bytes: a trickle holds up nobody's end."""
MOST_TOTAL_S = 3600.0
"""And all that is tried one after the other takes no longer than this."""


class Verdict(StrEnum):
    """What to do with whoever gives something."""

    GOES_ON = "it comes"
    SLOW = "it comes slowly"
    """Somebody else, who offers the same, is taken instead."""
    TOO_SLOW = "it came too slowly"


@dataclass
class Pace:
    """`came` for every part, `verdict` now and then.

    Args:
        total: Bytes that are to come.
        began_s: When it has begun.
        until_s: It has to be here by then.
    """

    total: int
    began_s: float
    until_s: float
    come: int = 0
    """Bytes that are here."""
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._marks.append((self.began_s, 0))

    def came(self, size: int, now_s: float) -> None:
        """So many bytes more are here."""
        self.come += size
        self._marks.append((now_s, self.come))
        self._forget(now_s)

    def bytes_per_s(self, now_s: float) -> float | None:
        """Return the pace of the last WINDOW_S; None before there is one."""
        self._forget(now_s)
        at_s, come = self._marks[0]
        return (self.come - come) / (now_s - at_s) if now_s - self.began_s >= WINDOW_S and now_s > at_s else None

    def verdict(self, now_s: float) -> Verdict:
        """Return whether it can be here in time, and whether somebody else had better give it."""
        pace = self.bytes_per_s(now_s)
        if now_s > self.until_s:
            return Verdict.TOO_SLOW
        if not pace:
            return Verdict.GOES_ON  # it is young, or silent, of which others judge
        if pace * (self.until_s - now_s) < self.total - self.come:
            return Verdict.TOO_SLOW
        return Verdict.SLOW if pace < LEAST_BYTES_PER_S and self.come < self.total else Verdict.GOES_ON

    def _forget(self, now_s: float) -> None:
        """Keep one mark that is as old as the window, or older."""
        while len(self._marks) > 1 and now_s - self._marks[1][0] >= WINDOW_S:
            self._marks.popleft()


def latest_s(total: int, now_s: float, first_s: float) -> float:
    """Return when what begins to come now has to be here.

    Args:
        total: Its bytes.
        now_s: When it begins.
        first_s: When the first attempt began.
    """
    return min(first_s + MOST_TOTAL_S, now_s + MOST_S + total / LEAST_BYTES_PER_S)
