"""Straggler detection: takes in beats and vitals, and reports who is slow and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from tsugi_kpool.core.diagnosis import Diagnosis, OtherLink
from tsugi_kpool.core.events import LinkRecovered, Slow
from tsugi_kpool.core.messages import Beat, Slowness, Vitals
from tsugi_kpool.core.records import Recovered, TurnedSlow

from .diagnose import mean_facts
from .drift import Level, Yardstick, drift, middle
from .pace import ENOUGH
from .replica_history import ReplicaHistory
from .slow_link import Transfers, View, others
from .slowdown import ENTER, LEAVE, Slowdown
from .tax import Rated, StragglerTax
from .work import Workload

TURN_S = 1.0
"""Period of the conclusions: they cost more than taking in a beat."""
FEWEST = 4
"""Fewest steps since the newest change from which a pace is known."""


Concluded = TurnedSlow | Recovered | Slow | LinkRecovered
"""What a turn of the book finds: records, and events that have none."""


@dataclass(frozen=True)
class SpeedStatus:
    """The speed and the machine facts of one replica."""

    slowness: Slowness | None = None
    jitters: bool = False
    drift: float | None = None
    drift_error: float | None = None
    vitals: Vitals | None = None


class Stragglers:
    """Takes in facts as they come, and once a second concludes who is slow and why. O(1) memory for each replica."""

    def __init__(self) -> None:
        self._replicas: dict[int, ReplicaHistory] = {}
        self._workload = Workload()
        self._turned_s = -math.inf
        self._fleet = Level(0.0, math.inf)
        self._transfers = Transfers()
        self.tax = StragglerTax()
        self._kept: dict[int, TurnedSlow] = {}
        """Replicas that the previous hub reported as slow, and that this hub has not heard yet."""

    def slow_before(self, kept: TurnedSlow) -> None:
        """Restore from the journal: this replica was slow."""
        self._kept[kept.replica] = kept

    def recovered_before(self, number: int) -> None:
        """Restore from the journal: this replica had recovered."""
        self._kept.pop(number, None)

    def beat(self, beat: Beat, now_s: float) -> None:
        """Take in a beat that reports a new step."""
        replica = self._replicas.get(beat.replica)
        if replica is None or replica.pace.incarnation != beat.incarnation:
            replica = self._replica(beat.replica, beat.incarnation)
        change = replica.pace.take(beat, self._workload, now_s)
        kept = self._kept.pop(beat.replica, None) if self._kept else None
        if kept is not None and kept.incarnation == beat.incarnation:
            replica.resume(kept, now_s)
        if change is not None:
            replica.turned(change)
        replica.slowed(now_s)

    def vitals(self, vitals: Vitals, now_s: float) -> None:
        """Take in a replica's vitals."""
        self._replica(vitals.replica, vitals.incarnation).examine(vitals, now_s)

    def round(self, transfer_s: float, now_s: float) -> None:
        """Take in a reduced round; `transfer_s` is its collective's time after the last member had joined."""
        if transfer_s > 0.0:
            calm = not any(each.slowdown or each.link.suspect(each.rtt_s) for each in self._replicas.values())
            self._transfers.add(transfer_s, calm, now_s)

    def due(self, now_s: float) -> bool:
        """Return whether it is time to draw conclusions."""
        return now_s - self._turned_s >= TURN_S

    def turn(self, members: Mapping[int, Rated], training: bool, now_s: float) -> list[Concluded]:
        """Draw conclusions if it is time. Returns a record for each replica that turned slow or recovered.

        For links there are events without a record: another hub judges them anew.

        Args:
            members: The present ones; what is known of others is forgotten.
            training: Whether all of them train.
            now_s: The time.
        """
        if not self.due(now_s):
            return []
        self._turned_s = now_s
        for gone in [number for number in self._replicas if number not in members]:
            del self._replicas[gone]
        known = [members[number] for number in self._replicas]
        self.tax.advance(now_s, [member.rates() for member in known], training and len(known) == len(members))
        return [*self._conclude(now_s), *self._look_at_links(now_s)]

    def of(self, number: int, now_s: float) -> SpeedStatus:
        """Return what is known of this replica now."""
        replica = self._replicas.get(number)
        if replica is None:
            return SpeedStatus()
        pace, fleet = replica.pace.mean, self._fleet
        # A pace that has changed this moment is not known until its next step: its error is infinite.
        known = len(replica.pace.marks) >= FEWEST and math.isfinite(fleet.error + pace.error)
        own, error = drift(pace, fleet) if known else (None, None)
        slowness = replica.slowdown.slowness(now_s) if replica.slowdown else replica.link.slowness(now_s)
        vitals = replica.vitals[-1][1] if replica.vitals else None
        return SpeedStatus(slowness, replica.pace.jitters(), own, error, vitals)

    def _replica(self, number: int, incarnation: str) -> ReplicaHistory:
        known = self._replicas.get(number)
        if known is None or known.pace.incarnation != incarnation:
            known = self._replicas[number] = ReplicaHistory(incarnation)
        return known

    def _conclude(self, now_s: float) -> list[TurnedSlow | Recovered]:
        paced = {number: each for number, each in self._replicas.items() if each.pace.since_change >= FEWEST}
        if not paced:
            return []
        self._fleet = middle([each.pace.mean for each in paced.values()])
        levels = {number: each.pace.level for number, each in paced.items()}
        yardstick = Yardstick(list(levels.values()))
        looked_at = [
            (number, replica)
            for number, replica in paced.items()
            if replica.slowdown is not None or yardstick.exceeded(levels[number], ENTER)
        ]
        if not looked_at:
            return []
        first_at = {level: self._replicas[number] for number, level in reversed(levels.items())}
        found: list[TurnedSlow | Recovered] = []
        links: list[OtherLink] | None = None
        for number, replica in looked_at:
            others = yardstick.of(levels[number])
            if others is not None and (replica.slowdown is not None or levels[number] - others >= ENTER):
                _measure(replica, first_at[others], others, now_s)
            replica.date()
            if replica.slowdown is not None:
                if replica.slowdown.transfer_before_s is None:
                    replica.slowdown.transfer_before_s = self._transfers.usual_s
                links = self._slow_links() if links is None else links
                other = next((link for link in links if link.replica != number), None)
                verdict = replica.diagnosis(replica.slowdown, replica.pace.parts, self._transfers.now_s, other)
                found += _continue(number, replica, replica.slowdown, levels[number], verdict, now_s)
        return found

    def _slow_links(self) -> list[OtherLink]:
        """Return the links whose round trips have grown, the worst first."""
        found = (each.slow_link(number) for number, each in self._replicas.items())
        return sorted((link for link in found if link is not None), key=_growth, reverse=True)

    def _look_at_links(self, now_s: float) -> list[Slow | LinkRecovered]:
        """Return events of links that turned slow or recovered. Replicas in a slowdown are left out: theirs has a
        cause already."""
        late = math.isfinite(self._fleet.error) and self._transfers.late(math.exp(self._fleet.mean))
        paced = {number: each for number, each in self._replicas.items() if each.slowdown is None}
        watched = [n for n, each in paced.items() if each.link.slow or (late and each.link.suspect(each.rtt_s))]
        known = [each.rtt_s for each in self._replicas.values() if each.rtt_s is not None] if watched else []
        events: list[Slow | LinkRecovered] = []
        for number in watched:
            replica = self._replicas[number]
            view = View(replica.rtt_s, others(known, replica.rtt_s), self._transfers, late, tuple(replica.resent))
            if replica.link.turn(view, now_s):
                events.append(_link_event(number, replica.link.slowness(now_s)))
        return events


def _measure(replica: ReplicaHistory, example: ReplicaHistory, others: float, now_s: float) -> None:
    """Compare a replica with the fleet: this finds one that is slow without ever having been faster.

    Args:
        replica: Slow, or in a slowdown.
        example: A replica at the level `others`, which is what it is compared with.
        others: The yardstick.
        now_s: The time.
    """
    slowdown = replica.slowdown
    if slowdown is not None:
        if slowdown.since_s is None:
            slowdown.before, slowdown.before_level = example.pace.parts, others
    elif replica.pace.since_change >= ENOUGH:
        facts = mean_facts([vitals.machine for _, vitals in example.vitals])
        replica.slowdown = Slowdown(now_s, None, example.pace.parts, others, facts, example.link.usual_s)


def _growth(link: OtherLink) -> float:
    return link.now_s / max(link.before_s, 1e-9)


def _link_event(number: int, slowness: Slowness | None) -> Slow | LinkRecovered:
    """Return the event of a link that has turned slow, or recovered."""
    if slowness is None:
        return LinkRecovered(number)
    return Slow(number, **msgspec.structs.asdict(slowness))


def _continue(
    number: int, replica: ReplicaHistory, slowdown: Slowdown, level: float, diagnosis: Diagnosis, now_s: float
) -> list[TurnedSlow | Recovered]:
    """Update a slowdown at a turn of the hub, or end it. Returns what to report."""
    if level - slowdown.before_level < LEAVE:
        replica.slowdown = None
        recovered = Recovered(number, round(slowdown.lasted_s(now_s), 3), math.exp(level))
        return [recovered] if slowdown.told is not None else []
    slowdown.update(replica.pace.parts, level, diagnosis)
    if not slowdown.worth_telling(now_s):
        return []
    kept = replica.record(number)
    if kept is None:
        return []
    return [kept]
