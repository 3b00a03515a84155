"""A replica's being slow, from the moment at which it is noticed to that at which it has recovered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tsugi_kpool.core.diagnosis import Cause, Diagnosis, Part, Parts
from tsugi_kpool.core.messages import Slowness
from tsugi_kpool.core.messages.facts import MachineFacts
from tsugi_kpool.core.records import TurnedSlow

ENTER = math.log(1.5)
LEAVE = math.log(1.25)
"""Entering and leaving are apart, so that a replica at the edge does not flap between the two."""
CAUSE_TURNS = 5
"""What differs from what was told is told once it has stood for this many turns."""
WORSE = 1.5
"""So many times the factor that was told is news."""
TELL_AFTER_S = 3.0
"""A new slowdown is told a little later, when the machine's facts of that time have arrived."""


@dataclass
class Slowdown:
    """Mutable: the book that it belongs to keeps it up to date."""

    noticed_s: float
    since_s: float | None
    """When it began; None when the replica has been slow from its first steps on."""
    before: Parts
    before_level: float
    """The level to which it must come back; for a replica that was never faster, the fleet's moves."""
    usual: MachineFacts = field(default_factory=MachineFacts)
    """The machine before."""
    rtt_before_s: float | None = None
    after: Parts | None = None
    factor: float = 1.0
    diagnosis: Diagnosis | None = None
    told: Diagnosis | None = None
    transfer_before_s: float | None = None
    _told_factor: float = 1.0
    _other_turns: int = 0

    def update(self, after: Parts, level: float, diagnosis: Diagnosis) -> None:
        """How it stands now."""
        ratio = math.exp(level - self.before_level)
        self.factor = after.total / self.before.total if self.before.total > 0 else ratio
        self.after, self.diagnosis = after, diagnosis

    def worth_telling(self, now_s: float) -> bool:
        """Whether an event is due: the first one, or one that has stood for a while: another cause, or much worse."""
        if self.diagnosis is None or now_s - self.noticed_s < TELL_AFTER_S:
            return False
        worse = self.factor >= WORSE * self._told_factor
        if self.told is not None and self.told.cause is self.diagnosis.cause and not worse:
            self._other_turns = 0
            return False
        self._other_turns += 1
        if self.told is not None and self._other_turns < CAUSE_TURNS:
            return False
        self.told, self._told_factor, self._other_turns = self.diagnosis, self.factor, 0
        return True

    @staticmethod
    def resumed(kept: TurnedSlow, since_s: float | None, now_s: float) -> Slowdown:
        """One of which an earlier hub has told; `since_s` by this hub's clock."""
        diagnosis = Diagnosis(Part(kept.part), Cause(kept.cause), kept.evidence)
        slowdown = Slowdown(now_s, since_s, kept.before, kept.before_level, kept.usual, kept.rtt_before_s)
        slowdown.after, slowdown.diagnosis, slowdown.told = kept.after, diagnosis, diagnosis
        slowdown.factor = kept.after.total / kept.before.total if kept.before.total > 0 else 1.0
        slowdown._told_factor, slowdown.transfer_before_s = slowdown.factor, kept.transfer_before_s
        return slowdown

    def slowness(self, now_s: float) -> Slowness | None:
        """The slowdown as a status shows it; None before it has been looked at.

        A verdict of one turn may miss a round trip or a vital, and name something else. So a status changes its cause
        when an event does (`worth_telling`), not before.
        """
        shown = self.diagnosis
        if shown is None or self.after is None:
            return None
        if self.told is not None and self.told.cause is not shown.cause:
            shown = self.told
        return Slowness(
            factor=self.factor,
            since_s=None if self.since_s is None else now_s - self.since_s,
            before_s=self.before.total,
            after_s=self.after.total,
            part=shown.part,
            cause=shown.cause,
            evidence=shown.evidence,
        )

    def lasted_s(self, now_s: float) -> float:
        """Since it began, as far as that is known."""
        return now_s - (self.noticed_s if self.since_s is None else self.since_s)
