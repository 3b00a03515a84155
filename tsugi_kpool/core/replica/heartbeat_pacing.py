"""Heartbeat pacing: when the next beat is due within the byte budget. Beats give way to reliable messages."""

from __future__ import annotations

import math

from tsugi_kpool.core.bucket import Bucket

MIN_BEAT_GAP_S = 0.125
"""Least time between beats that have news. At 200 bytes each, and with the vitals, a replica stays under 2 KB/s. A
beat without news delays none: it comes only where the one before it is `beat_s` old."""
BUDGET_BYTES_S = 2000.0
"""Budget of the sideband: bytes a second that a replica sends and receives, averaged over a few seconds."""
BUDGET_AIM = 0.95
"""Beats aim for this share of the budget: messages that are sent in any case overdrew it by 2 % in a run of 22 steps
a second."""
BUDGET_BURST_S = 2.0
"""Burst: so many seconds of the budget may be spent at once, because rounds begin and end in bursts."""
VITALS_S = 1.0
"""Period of the vitals (facts of machine and link)."""
SILENT_S = 2.0
"""After this much silence of the hub, beats are sent less often until it is heard again."""
SILENT_GAP_S = 1.0
"""Least time between beats while the hub is silent, so that a frozen hub finds few of them when it wakes up."""


class HeartbeatPacing:
    """Decides when beats and vitals are sent. Used by the link thread alone, except `nudged`; times are its monotonic
    clock.

    Args:
        beat_s: Longest time between beats.
        budget_bytes_s: See `BUDGET_BYTES_S`.
    """

    def __init__(self, beat_s: float, budget_bytes_s: float) -> None:
        self.nudged = False
        """Some progress is in no beat yet. Any thread may set it."""
        self.up_bytes = self.down_bytes = 0
        """Bytes sent and received so far, in frames."""
        self.heard_s = 0.0
        """When the hub was heard last."""
        self._beat_s = beat_s
        self._beaten_s = self._told_s = self._examined_s = -math.inf
        self._beat_bytes = 0
        self._budget = Bucket(budget_bytes_s * BUDGET_AIM, budget_bytes_s * BUDGET_BURST_S)

    def next_s(self, now_s: float) -> float:
        """Return when the next beat is due, if until then nothing happens and nothing else is sent or received."""
        beaten_s = self._beaten_s
        due_s = beaten_s + self._beat_s  # one every beat_s is due in any case
        if self.nudged:
            # News goes out sooner, but gives way to what must not be lost: that may use up the budget.
            soon_s, allowed_s = self._told_s + MIN_BEAT_GAP_S, self._budget.allows_from(self._beat_bytes)
            soon_s = soon_s if soon_s > allowed_s else allowed_s
            due_s = soon_s if soon_s < due_s else due_s
        if (due_s if due_s > now_s else now_s) - self.heard_s > SILENT_S:
            due_s = max(due_s, beaten_s + SILENT_GAP_S)
        return due_s

    def takes_beat(self, now_s: float) -> bool:
        """Return whether a beat is due; if so, it counts as sent, with all progress up to now in it."""
        if now_s < self.next_s(now_s):
            return False
        if self.nudged:
            self._told_s = now_s
        self.nudged, self._beaten_s = False, now_s
        return True

    def skip(self, now_s: float) -> None:
        """Count idle beats that were due before now as sent: a simulation leaves them out."""
        while self._beaten_s + self._beat_s < now_s:
            self._beaten_s += self._beat_s

    def takes_vitals(self, now_s: float) -> bool:
        """Return whether vitals are due; if so, they count as sent."""
        if now_s - self._examined_s < VITALS_S:
            return False
        self._examined_s = now_s
        return True

    def heard(self, frame_bytes: int, now_s: float) -> None:
        """Count a frame that has come from the hub."""
        self.heard_s = now_s
        self.down_bytes += frame_bytes
        self._budget.spend(frame_bytes, now_s)

    def sent(self, frame_bytes: int, beat: bool, now_s: float) -> None:
        """Count a frame that has been given to the socket."""
        self.up_bytes += frame_bytes
        self._budget.spend(frame_bytes, now_s)
        if beat:
            self._beat_bytes = frame_bytes
