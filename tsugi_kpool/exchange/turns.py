"""How many members get a result at the same time. Pure.

Where the hub's link is what is short, the last member has its result at the same time whether all get theirs at once
or one after the other; but one after the other the first one has it early, and gives its part of the next round while
the others still receive. Where the members' links are short that would keep the hub's waiting. Nobody knows which it
is, so it is tried: half as many at a time, again and again, as long as handing out takes no longer.
"""

from __future__ import annotations

from dataclasses import dataclass

WORTH_S = 0.2
"""Where all have it after this time nothing is gained."""
LONGER = 1.4
"""What took this many times as long is worse, although the first members have it earlier. All at once a round takes
twice what handing out takes, for all give their parts at once, too; one after the other once, and one part more: with
three members that is shorter up to 1.5 times, with more up to nearly 2. Where members' links are short, half as many
at a time take 2 times as long."""
CHANGED = 2.0
"""Where it takes this many times as long as when all got it at once, twice in a row, the links are others now. Parts
that come in meanwhile make it a little slower, and one round alone may have been held up by something else."""
AGAIN_AFTER = 50
"""After so many rounds fewer are tried again: links change."""
FIRST_AGAIN_AFTER = 3
"""After the first try that took longer; each further one in a row doubles it. What held up one round, such as another
program's traffic, is no property of the link, and each round of all at once costs half of one more."""
PATIENCE = 3.0
"""Who takes this many times as long as usual for its result keeps nobody waiting."""
LEAST_PATIENCE_S = 0.5
FIRST_PATIENCE_S = 30.0
"""As long as nobody knows what is usual. Then all get it at once, and nobody waits for anybody."""


@dataclass(frozen=True)
class Turn:
    """How a result is handed out."""

    at_once: int
    """Members that get it at the same time."""
    patience_s: float
    """After this time the next one does not wait for one that has not said that it has it."""


class Turns:
    """Decides from what earlier rounds took. `next`, then `took`, once a round."""

    def __init__(self) -> None:
        self._members = self._usual = self._tried = self._rest = 0
        """Who get a result; at a time; at a time in the round that goes on; rounds until fewer are tried."""
        self._reference: float | None = None
        """Seconds for each byte and member when all got it at once."""
        self._pause = FIRST_AGAIN_AFTER
        """Rounds until fewer are tried again, after a try that took longer."""
        self._slow = False
        """Whether the round before took so long that the links may have changed."""

    def next(self, members: int, size: int) -> Turn:
        """Return how the next result is handed out.

        Args:
            members: Who get it.
            size: Its bytes.
        """
        if members != self._members:
            self._members = self._usual = members
            self._reference, self._rest, self._pause = None, 0, FIRST_AGAIN_AFTER
        tries = self._reference is not None and not self._rest and self._usual > 1
        self._tried = self._usual // 2 if tries else self._usual
        if self._reference is None:
            return Turn(self._tried, FIRST_PATIENCE_S)
        return Turn(self._tried, max(LEAST_PATIENCE_S, PATIENCE * self._reference * size * self._tried))

    def took(self, size: int, seconds: float) -> None:
        """Take in what handing out has taken, until the last one had it.

        Args:
            size: Bytes of the result.
            seconds: From its beginning, until the last one of those had it who have said so in time.
        """
        cost, reference = seconds / max(1, size * self._members), self._reference
        longer = reference is not None and cost > LONGER * reference
        was_slow = self._slow
        self._slow = reference is not None and cost > CHANGED * reference
        self._rest = max(0, self._rest - 1)
        if self._usual == self._members and self._tried == self._usual:
            self._reference = cost if reference is None else (cost + reference) / 2
            self._rest = AGAIN_AFTER if seconds < WORTH_S else self._rest
        elif self._tried < self._usual and not longer:
            self._usual, self._pause = self._tried, FIRST_AGAIN_AFTER
        elif self._tried < self._usual:
            self._rest, self._pause = self._pause, min(2 * self._pause, AGAIN_AFTER)
        elif self._slow and was_slow:
            self._usual, self._reference = self._members, None
