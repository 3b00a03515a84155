"""The offset between two machines' clocks, from four time stamps as in NTP (RFC 5905, sections 8 and 10).

All stamps are of monotonic clocks: what happens to the wall clock does not matter.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

WINDOW = 16
"""Number of exchanges kept. The one with the shortest round trip counts, because queues only ever lengthen a round
trip."""
WANDER = 500e-6
"""Upper limit of the drift between two oscillators, in seconds per second (RFC 5905 takes 500 parts per million)."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    sent_s: float
    """Our clock, when the question left."""
    received_s: float
    """The hub's clock, when the question came."""
    answered_s: float
    """The hub's clock, when the answer left."""
    back_s: float
    """Our clock, when the answer came."""

    @property
    def rtt_s(self) -> float:
        """Round trip without the time between question and answer at the hub."""
        return (self.back_s - self.sent_s) - (self.answered_s - self.received_s)

    @property
    def offset_s(self) -> float:
        """The hub's clock minus ours if both ways take equally long; wrong by at most half the round trip."""
        return ((self.received_s - self.sent_s) + (self.answered_s - self.back_s)) / 2

    @property
    def possible(self) -> bool:
        """Whether these can be the stamps of one exchange."""
        stamps = (self.sent_s, self.received_s, self.answered_s, self.back_s)
        return all(map(math.isfinite, stamps)) and self.answered_s >= self.received_s and self.rtt_s >= 0.0


class ClockFilter:
    """Estimates the offset from the newest exchanges; feed it every one."""

    def __init__(self) -> None:
        self._newest: deque[Exchange] = deque(maxlen=WINDOW)

    def take(self, exchange: Exchange) -> None:
        """Take in an exchange; an impossible one is ignored.

        Every exchange bounds the offset. One whose bounds exclude the present estimate says that a clock was replaced
        (another hub, a machine that slept): what was known before is forgotten.
        """
        if not exchange.possible:
            return
        best = self.best()
        if best is not None:
            # The two bounds overlap while both clocks run on. Their drift since the best exchange widens the bounds.
            wander_s = WANDER * abs(exchange.back_s - best.back_s)
            if abs(exchange.offset_s - best.offset_s) > (exchange.rtt_s + best.rtt_s) / 2 + wander_s:
                self._newest.clear()
        self._newest.append(exchange)

    def usual_rtt_s(self) -> float | None:
        """Return the median round trip of the newest exchanges, queues included; None before any."""
        return median(each.rtt_s for each in self._newest) if self._newest else None

    def best(self) -> Exchange | None:
        """Return the exchange with the shortest round trip among the newest, the newest of equals; None before
        any."""
        return min(reversed(self._newest), key=lambda each: each.rtt_s, default=None)
