"""What the hub remembers of one replica: its pace, its machine, its link, and its slowdown."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import fmean as mean

from tsugi_kpool.core.diagnosis import Diagnosis, LinkFacts, OtherLink, Parts, Symptoms
from tsugi_kpool.core.messages import Vitals
from tsugi_kpool.core.messages.facts import UNKNOWN, MachineFacts
from tsugi_kpool.core.records import TurnedSlow

from .change_point import ChangePoint, cut
from .diagnose import diagnose, mean_facts, resent
from .pace import RECENT, SEVERAL_ROUNDS, Pace, usual
from .slow_link import LinkWatch, grown
from .slowdown import ENTER, Slowdown

SETTLED_S = 1.0
"""Vitals that came so soon after a change still show the time before it."""
BEFORE = 4 * RECENT
"""So many steps before a change show what was usual."""
RISING = SEVERAL_ROUNDS
"""Marks after a change for which its level may still rise: waits are means over so many."""
VITALS_KEPT = 8
USUAL_MEMORY = 0.05
"""Smallest weight of new vitals in the average of the usual machine facts."""


class ReplicaHistory:
    """Updated by `Stragglers`, which owns it."""

    def __init__(self, incarnation: str) -> None:
        self.pace = Pace(incarnation)
        self.slowdown: Slowdown | None = None
        self.vitals: deque[tuple[float, Vitals]] = deque(maxlen=VITALS_KEPT)
        self.usual: MachineFacts = MachineFacts()
        """Machine facts averaged while the replica is not slow."""
        self.link = LinkWatch()
        self._rise: _Rise | None = None
        """The newest change to slower, until it has made the replica slow, or has not."""
        self._usual_of = 0
        self._diagnosed: tuple[Slowdown, object, Diagnosis] | None = None
        """The newest diagnosis, with its slowdown and its input."""
        self._trained = False
        """Whether it was training at the previous vitals: a thread that loads or waits to begin is no measure."""

    def examine(self, vitals: Vitals, now_s: float) -> None:
        """Take in vitals. Those of a training replica that is not slow update what is usual."""
        self.vitals.append((now_s, vitals))
        trained, self._trained = self._trained, bool(self.pace.marks)
        if not trained or self.slowdown is not None or not self.pace.quiet:
            return
        self._usual_of += 1
        weight = max(USUAL_MEMORY, 1 / self._usual_of)
        self.usual = _blend(self.usual, vitals.machine, weight)
        self.link.learn(vitals.rtt_usual_s)

    @property
    def resent(self) -> list[str]:
        """Evidence of its TCP retransmissions, if they are far above the usual."""
        return resent(self.usual, self.vitals[-1][1].machine) if self.vitals else []

    @property
    def rtt_s(self) -> float | None:
        """Its newest median round trip."""
        return self.vitals[-1][1].rtt_usual_s if self.vitals else None

    def slow_link(self, number: int) -> OtherLink | None:
        """Return this replica's link if its round trip has grown so much that it may hold the others up; else
        None."""
        before_s, now_s = self.slowdown.rtt_before_s if self.slowdown else self.link.usual_s, self.rtt_s
        if before_s is None or now_s is None or not grown(before_s, now_s):
            return None
        return OtherLink(number, before_s, now_s)

    def newest(self, since_s: float) -> list[Vitals]:
        """Return the vitals since this time; if there are none, the newest ones."""
        return [vitals for at_s, vitals in self.vitals if at_s > since_s] or [v for _, v in list(self.vitals)[-1:]]

    def diagnosis(
        self, slowdown: Slowdown, after: Parts, transfer_s: float | None, others: OtherLink | None
    ) -> Diagnosis:
        """Return why it is slow.

        A slow replica has news less often than it is looked at: the same facts are not weighed twice.
        """
        heard_s = (self.pace.marks[-1].at_s if self.pace.marks else None, self.vitals[-1][0] if self.vitals else None)
        seen = (slowdown.since_s, slowdown.before, slowdown.transfer_before_s, heard_s, transfer_s, others)
        if self._diagnosed is None or self._diagnosed[0] is not slowdown or self._diagnosed[1] != seen:
            self._diagnosed = slowdown, seen, diagnose(self._symptoms(slowdown, after, transfer_s, others))
        return self._diagnosed[2]

    def _symptoms(
        self, slowdown: Slowdown, after: Parts, transfer_s: float | None, others: OtherLink | None
    ) -> Symptoms:
        newest = self.newest(-math.inf if slowdown.since_s is None else slowdown.since_s + SETTLED_S)
        return Symptoms(
            before=slowdown.before,
            after=after,
            usual=slowdown.usual,
            now=mean_facts([vitals.machine for vitals in newest]),
            link_before=LinkFacts(slowdown.rtt_before_s, slowdown.transfer_before_s),
            link_now=LinkFacts(newest[-1].rtt_usual_s if newest else None, transfer_s),
            other=others,
        )

    def resume(self, kept: TurnedSlow, now_s: float) -> None:
        """Restore a slowdown from the previous hub's record. Only the replica's own clock is common to both hubs."""
        since_s = None if kept.trained_s is None else now_s - (self.pace.trained_at(now_s) - kept.trained_s)
        self.slowdown = Slowdown.resumed(kept, since_s, now_s)

    def record(self, number: int) -> TurnedSlow | None:
        """Return the record of the slowdown for the next hub; None before the slowdown has been diagnosed."""
        slowdown = self.slowdown
        if slowdown is None or slowdown.after is None or slowdown.diagnosis is None:
            return None
        return TurnedSlow(
            replica=number,
            incarnation=self.pace.incarnation,
            trained_s=None if slowdown.since_s is None else round(self.pace.trained_at(slowdown.since_s), 3),
            before=slowdown.before,
            before_level=slowdown.before_level,
            after=slowdown.after,
            part=slowdown.diagnosis.part,
            cause=slowdown.diagnosis.cause,
            evidence=slowdown.diagnosis.evidence,
            usual=slowdown.usual,
            rtt_before_s=slowdown.rtt_before_s,
            transfer_before_s=slowdown.transfer_before_s,
        )

    def turned(self, change: ChangePoint) -> None:
        """Remember a change to slower; one to faster ends it."""
        if not change.up:
            self._rise = None
            return
        before = [mark for mark in self.pace.marks if mark.at_s < change.since_s]
        if self._rise is None and before:
            self._rise = _Rise(change, usual(before[-BEFORE:]), self.usual, self.link.usual_s)

    def slowed(self, now_s: float) -> None:
        """Begin a slowdown if the newest change has made the replica slow, unless one with a known beginning is going
        on. Waits are means over several steps, so a level goes on rising after the change has been found.
        """
        rise = self._rise
        if rise is None:
            return
        if self.pace.level - rise.change.before >= ENTER:
            if self.slowdown is None or self.slowdown.since_s is None:
                parts, level = rise.before, rise.change.before
                self.slowdown = Slowdown(now_s, rise.change.since_s, parts, level, rise.usual, rise.rtt_s)
            self._rise = None
        elif self.pace.since_change > RISING:
            self._rise = None

    def date(self) -> None:
        """Find the beginning of a slowdown that seems to have none, if the newest marks hold it.

        No change is found while the first mean after another one is learnt: at that time it looks as if the replica
        had been slow ever since.
        """
        if self.slowdown is None or self.slowdown.since_s is not None:
            return
        marks = list(self.pace.marks)
        at = cut([mark.level for mark in marks])
        if at is None:
            return
        before = mean(mark.level for mark in marks[:at])
        if self.pace.level - before >= ENTER:
            parts, noticed_s = usual(marks[:at][-BEFORE:]), self.slowdown.noticed_s
            self.slowdown = Slowdown(noticed_s, marks[at].at_s, parts, before, self.usual, self.link.usual_s)


@dataclass(frozen=True)
class _Rise:
    """A change to slower, and what was usual before it."""

    change: ChangePoint
    before: Parts
    usual: MachineFacts
    rtt_s: float | None


def _blend(old: MachineFacts, new: MachineFacts, weight: float) -> MachineFacts:
    """Return the moving average of the facts; a fact that was unknown is taken as it comes."""
    blended: dict[str, float | str] = {"gpu_throttle": new.gpu_throttle}
    for name in MachineFacts.__struct_fields__:
        if name in blended:
            continue
        before, now = getattr(old, name), getattr(new, name)
        blended[name] = now if before == UNKNOWN or now == UNKNOWN else before + weight * (now - before)
    return MachineFacts(**blended)  # type: ignore[arg-type]
