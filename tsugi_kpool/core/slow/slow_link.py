"""A link that turns slow though nobody waits for it: with overlap, rounds come later and steps do not.

Two facts must stand together. Rounds' transfers have grown, which says that some member's link is slow, and one
member's round trip to the hub has grown with it and beyond the others', which says whose: a link that is full of a
round's bytes shows its queues.
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
"""A shorter round trip is no slow link, however short it was before."""
LATE_STEPS = 2.0
"""A transfer that is over within so many steps makes no round late."""
STANDS_TURNS = 5
"""A slow link is told, and taken back, once the facts have stood for this many turns."""
NOW = 3
"""Newest rounds that say what a transfer takes now: on a slow link eight of them take long."""
USUAL = 64
"""Newest rounds of a fleet in which nobody is slow, whose median is usual. A round trip is the median of 16, a second
apart: what is usual must not have become the new transfer before the round trip shows it."""
USUAL_MEMORY = 0.05
"""Least weight of the newest round trip in what is usual."""


def grown(before_s: float, now_s: float) -> bool:
    """Whether a round trip has become that of a slow link."""
    return now_s >= max(LEAST_RTT_S, LINK_GROWTH * before_s)


class Transfers:
    """What the newest rounds took on the wire, and what they usually take."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=NOW)
        self._learnt: deque[float] = deque(maxlen=USUAL)
        self.usual_s: float | None = None
        """While nobody is slow."""
        self.grown_at_s: float | None = None
        """When the first of the newest rounds that took far longer than usual began."""

    def add(self, transfer_s: float, calm: bool, now_s: float) -> None:
        """A round has been reduced everywhere; `calm` while nobody is slow."""
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
        """Of the newest rounds."""
        return median(self._newest) if self._newest else None

    def late(self, step_s: float) -> bool:
        """Whether rounds take far longer than usual, and longer than what they hide behind."""
        now_s = self.now_s
        if now_s is None or self.usual_s is None:
            return False
        return now_s >= LINK_GROWTH * self.usual_s and now_s >= LATE_STEPS * step_s


class View(NamedTuple):
    """A link as a turn of the hub sees it."""

    rtt_s: float | None
    """Its median round trip."""
    others_s: float
    """The others'."""
    transfers: Transfers
    """Of the rounds, which all links share."""
    late: bool
    """Whether those come late."""
    resent: tuple[str, ...] = ()
    """What its network sends again, in words."""


class LinkWatch:
    """One replica's round trips against what was usual."""

    def __init__(self) -> None:
        self.usual_s: float | None = None
        self._since_s: float | None = None
        """When it turned slow."""
        self._view: View | None = None
        self._learnt = self._turns = 0
        """Turns in which the facts have spoken against what is told."""

    @property
    def slow(self) -> bool:
        """Whether it has been told to be slow."""
        return self._since_s is not None

    def learn(self, rtt_s: float | None) -> None:
        """A calm replica's median round trip: what is usual moves slowly, and not to that of a slow link."""
        if rtt_s is None or (self.usual_s is not None and grown(self.usual_s, rtt_s)):
            return
        self._learnt += 1
        known_s = self.usual_s if self.usual_s is not None else rtt_s
        self.usual_s = known_s + max(USUAL_MEMORY, 1 / self._learnt) * (rtt_s - known_s)

    def suspect(self, rtt_s: float | None) -> bool:
        """Whether its round trip is that of a slow link."""
        return rtt_s is not None and self.usual_s is not None and grown(self.usual_s, rtt_s)

    def turn(self, view: View, now_s: float) -> bool:
        """A turn of the hub; true when the link has turned slow, or is as it was."""
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
        """As a status shows it; None while it is not slow."""
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
    """The lower median of the others' round trips: what is slow for all of them is nobody's own link."""
    left = sorted(round_trips)
    if own_s is not None:
        left.remove(own_s)
    return left[(len(left) - 1) // 2] if left else 0.0
