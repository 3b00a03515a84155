"""A slow link that no replica waits for: with overlap, rounds take longer and steps do not.

Two facts must come together. The transfers of rounds have grown, so some member's link is slow. One member's round
trip to the hub has grown as well, and beyond the others', so it is that member's link: a link that is full of a
round's bytes has long queues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from tsugi_kpool.core.diagnosis import Cause, Part, compared
from tsugi_kpool.core.messages import Slowness

LINK_GROWTH = 3.0
LEAST_RTT_S = 0.02
"""A round trip below this is no slow link, however short it was before."""
LATE_STEPS = 2.0
"""A transfer that ends within so many steps delays no round."""
STANDS_TURNS = 5
"""Turns of the hub for which the facts must hold before a slow link is reported, or reported as recovered."""
NOW = 3
"""Newest rounds that show the present transfer time. On a slow link more than these take long to come."""
USUAL = 64
"""Newest rounds without a slow replica; their median is the usual transfer time. A round trip is the median of 16, a
second apart, so this window is long: the new transfer time must not be the usual one before the round trip shows it.
"""
USUAL_MEMORY = 0.05
"""Smallest weight of a new round trip in the usual one."""


def grown(before_s: float, now_s: float) -> bool:
    """Return whether a round trip has grown to that of a slow link."""
    return now_s >= max(LEAST_RTT_S, LINK_GROWTH * before_s)


class Transfers:
    """Transfer times of the newest rounds, and the usual one."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=NOW)
        self._learnt: deque[float] = deque(maxlen=USUAL)
        self.usual_s: float | None = None
        """Median while nobody is slow."""
        self.grown_at_s: float | None = None
        """When the first of the present run of slow rounds began; None while they are not slow."""

    def add(self, transfer_s: float, calm: bool, now_s: float) -> None:
        """Take in a reduced round; `calm` says that nobody is slow."""
        self._newest.append(transfer_s)
        if self.usual_s is None or transfer_s < LINK_GROWTH * self.usual_s:
            self.grown_at_s = None
        elif self.grown_at_s is None:
            self.grown_at_s = now_s - transfer_s
        if calm:
            self._learnt.append(transfer_s)
            self.usual_s = median(self._learnt)

    @property
    def now_s(self) -> float | None:
        """Median of the newest rounds."""
        return median(self._newest) if self._newest else None

    def late(self, step_s: float) -> bool:
        """Return whether rounds take far longer than usual, and longer than the steps that hide them."""
        now_s = self.now_s
        if now_s is None or self.usual_s is None:
            return False
        return now_s >= LINK_GROWTH * self.usual_s and now_s >= LATE_STEPS * step_s


class View(NamedTuple):
    """A link's facts at one turn of the hub."""

    rtt_s: float | None
    """Its median round trip."""
    others_s: float
    """The lower median of the others' round trips."""
    transfers: Transfers
    """Transfers of the rounds, which all links share."""
    late: bool
    """Whether rounds are late."""
    resent: tuple[str, ...] = ()
    """Evidence of retransmissions."""


class LinkWatch:
    """Compares one replica's round trips with its usual one."""

    def __init__(self) -> None:
        self.usual_s: float | None = None
        self._since_s: float | None = None
        """When the link turned slow; None while it is not."""
        self._view: View | None = None
        self._learnt = self._turns = 0
        """`_turns`: turns in a row in which the facts contradicted what was reported last."""

    @property
    def slow(self) -> bool:
        """Whether the link has been reported as slow."""
        return self._since_s is not None

    def learn(self, rtt_s: float | None) -> None:
        """Take in the median round trip of a replica that is not slow. Slow links do not change what is usual."""
        if rtt_s is None or (self.usual_s is not None and grown(self.usual_s, rtt_s)):
            return
        self._learnt += 1
        known_s = self.usual_s if self.usual_s is not None else rtt_s
        self.usual_s = known_s + max(USUAL_MEMORY, 1 / self._learnt) * (rtt_s - known_s)

    def suspect(self, rtt_s: float | None) -> bool:
        """Return whether this round trip is that of a slow link."""
        return rtt_s is not None and self.usual_s is not None and grown(self.usual_s, rtt_s)

    def turn(self, view: View, now_s: float) -> bool:
        """Judge the link at a turn of the hub. Returns true when it has just turned slow, or recovered."""
        slow = view.late and self.suspect(view.rtt_s) and (view.rtt_s or 0.0) >= LINK_GROWTH * view.others_s
        self._turns = self._turns + 1 if slow is (self._since_s is None) else 0
        if slow:
            self._view = view
        if self._turns < STANDS_TURNS:
            return False
        self._turns = 0
        began_s = view.transfers.grown_at_s
        self._since_s = (now_s if began_s is None else began_s) if slow else None
        return True

    def slowness(self, now_s: float) -> Slowness | None:
        """Return the slowness for a status; None while the link is not slow."""
        if self._since_s is None or self._view is None:
            return None
        rtt_s, transfers = self._view.rtt_s or 0.0, self._view.transfers
        before_s, after_s = transfers.usual_s or 0.0, transfers.now_s or 0.0
        return Slowness(
            factor=after_s / before_s if before_s > 0 else 1.0,
            since_s=now_s - self._since_s,
            before_s=before_s,
            after_s=after_s,
            part=Part.ROUND,
            cause=Cause.LINK,
            evidence=(f"round trip {compared(self.usual_s or 0.0, rtt_s)}", *self._view.resent),
        )


def others(round_trips: Sequence[float], own_s: float | None) -> float:
    """Return the lower median of the others' round trips. If all of them are slow, no single link is."""
    left = sorted(round_trips)
    if own_s is not None:
        left.remove(own_s)
    return left[(len(left) - 1) // 2] if left else 0.0
