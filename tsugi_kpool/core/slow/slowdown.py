"""A slowdown: one time of being slow, from the moment it is noticed until the replica has recovered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tsugi_kpool.core.diagnosis import Cause, Diagnosis, Part, Parts
from tsugi_kpool.core.messages import Slowness
from tsugi_kpool.core.messages.facts import MachineFacts
from tsugi_kpool.core.records import TurnedSlow

ENTER = math.log(1.5)
LEAVE = math.log(1.25)
"""Hysteresis: entering and leaving have different thresholds, so that a replica at the edge does not flap."""
CAUSE_TURNS = 5
"""A new cause is reported after it has held for this many turns."""
WEAKER_TURNS = 30
"""And after so many where it explains less: that data or rounds are waited for says nothing of why. The facts that
have named a link, round trips and transfers, come and go from second to second while the link stays as slow.
"""
WORSE = 1.5
"""A slowdown is reported again when its factor is this many times the reported one."""
TELL_AFTER_S = 3.0
"""Delay of the first report, so that the machine's facts of that time have arrived."""


@dataclass
class Slowdown:
    """Updated by `Stragglers`."""

    noticed_s: float
    since_s: float | None
    """When it began; None when the replica has been slow from its first steps on."""
    before: Parts
    before_level: float
    """The level that ends the slowdown. For a replica that was never faster it is the fleet's, and moves with it."""
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
        """Take in its present state."""
        ratio = math.exp(level - self.before_level)
        self.factor = after.total / self.before.total if self.before.total > 0 else ratio
        self.after, self.diagnosis = after, diagnosis

    def worth_telling(self, now_s: float) -> bool:
        """Return whether an event is due: the first report, another cause that has held for a while, or a much larger
        factor."""
        if self.diagnosis is None or now_s - self.noticed_s < TELL_AFTER_S:
            return False
        worse = self.factor >= WORSE * self._told_factor
        if self.told is not None and self.told.cause is self.diagnosis.cause and not worse:
            self._other_turns = 0
            return False
        self._other_turns += 1
        if self.told is not None and self._other_turns < turns_to_replace(self.told, self.diagnosis):
            return False
        self.told, self._told_factor, self._other_turns = self.diagnosis, self.factor, 0
        return True

    @staticmethod
    def resumed(kept: TurnedSlow, since_s: float | None, now_s: float) -> Slowdown:
        """Return the slowdown of an earlier hub's record; `since_s` is by this hub's clock."""
        diagnosis = Diagnosis(Part(kept.part), Cause(kept.cause), kept.evidence)
        slowdown = Slowdown(now_s, since_s, kept.before, kept.before_level, kept.usual, kept.rtt_before_s)
        slowdown.after, slowdown.diagnosis, slowdown.told = kept.after, diagnosis, diagnosis
        slowdown.factor = kept.after.total / kept.before.total if kept.before.total > 0 else 1.0
        slowdown._told_factor, slowdown.transfer_before_s = slowdown.factor, kept.transfer_before_s
        return slowdown

    def slowness(self, now_s: float) -> Slowness | None:
        """Return the slowdown for a status; None before it has been diagnosed.

        One turn's diagnosis may lack a round trip or vitals, and name another cause. So the cause in a status changes
        when an event reports it (`worth_telling`), not before.
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
        """Return its seconds so far; from when it was noticed, if its beginning is unknown."""
        return now_s - (self.noticed_s if self.since_s is None else self.since_s)


def turns_to_replace(told: Diagnosis, found: Diagnosis) -> int:
    """Return for how many turns a diagnosis must hold before it replaces the reported one."""
    weaker = found.part is told.part and told.cause is Cause.LINK and found.cause is not Cause.LINK
    return WEAKER_TURNS if weaker else CAUSE_TURNS
