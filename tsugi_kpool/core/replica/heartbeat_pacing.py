"""When a replica tells how it is, and what its sideband takes: beats give way to what must not be lost."""

from __future__ import annotations

import math

from tsugi_kpool.core.bucket import Bucket

MIN_BEAT_GAP_S = 0.125
"""Beats are never closer than this: at 200 bytes each, and with the vitals, a replica stays under 2 KB/s."""
BUDGET_BYTES_S = 2000.0
"""What a replica may send and receive over the sideband, in the mean over a few seconds."""
BUDGET_AIM = 0.95
"""Beats aim below the budget: what is sent in any case took 2 % more than it in a run of 22 steps a second."""
BUDGET_BURST_S = 2.0
"""So many seconds of the budget may be spent at once: rounds begin and end in bursts."""
VITALS_S = 1.0
"""How often the hub is told how the machine and the link are."""
SILENT_S = 2.0
"""A hub that has been silent for this long is told less often how things are, until it is heard again."""
SILENT_GAP_S = 1.0
"""Between two beats then: what a frozen hub has to read when it wakes up stays little."""


class HeartbeatPacing:
    """Owned by the link's thread, but for `nudged`; all times are its monotonic clock.

    Args:
        beat_s: Longest time between beats.
        budget_bytes_s: See `BUDGET_BYTES_S`.
    """

    def __init__(self, beat_s: float, budget_bytes_s: float) -> None:
        self.nudged = False
        """There is news that no beat has told yet; set by any thread."""
        self.up_bytes = self.down_bytes = 0
        """Sent and received so far, in frames."""
        self.heard_s = 0.0
        """When the hub was heard last."""
        self._beat_s = beat_s
        self._beaten_s = self._examined_s = -math.inf
        self._beat_bytes = 0
        self._budget = Bucket(budget_bytes_s * BUDGET_AIM, budget_bytes_s * BUDGET_BURST_S)

    def next_s(self, now_s: float) -> float:
        """When the next beat is due, if there is no other news and nothing else is sent or heard until then."""
        beaten_s = self._beaten_s
        due_s = beaten_s + self._beat_s  # one every beat_s is due in any case
        if self.nudged:
            # News goes out sooner, but gives way to what must not be lost: that may use up the budget.
            soon_s, allowed_s = beaten_s + MIN_BEAT_GAP_S, self._budget.allows_from(self._beat_bytes)
            soon_s = soon_s if soon_s > allowed_s else allowed_s
            due_s = soon_s if soon_s < due_s else due_s
        if (due_s if due_s > now_s else now_s) - self.heard_s > SILENT_S:
            due_s = max(due_s, beaten_s + SILENT_GAP_S)
        return due_s

    def takes_beat(self, now_s: float) -> bool:
        """Whether a beat is due; then it counts as sent, and tells all news of until now."""
        if now_s < self.next_s(now_s):
            return False
        self.nudged, self._beaten_s = False, now_s
        return True

    def skip(self, now_s: float) -> None:
        """Beats without news that were due before now count as sent; for a simulation that leaves them out."""
        while self._beaten_s + self._beat_s < now_s:
            self._beaten_s += self._beat_s

    def takes_vitals(self, now_s: float) -> bool:
        """Whether vitals are due; then they count as sent."""
        if now_s - self._examined_s < VITALS_S:
            return False
        self._examined_s = now_s
        return True

    def heard(self, frame_bytes: int, now_s: float) -> None:
        """The hub has said something."""
        self.heard_s = now_s
        self.down_bytes += frame_bytes
        self._budget.spend(frame_bytes, now_s)

    def sent(self, frame_bytes: int, beat: bool, now_s: float) -> None:
        """A frame has been given to the socket."""
        self.up_bytes += frame_bytes
        self._budget.spend(frame_bytes, now_s)
        if beat:
            self._beat_bytes = frame_bytes
