"""The phase of every replica against the fleet: what the hub gathers from beats and vitals, and concludes from it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import msgspec

from .change_point import Change
from .diagnosis import Case, Diagnosis, LinkFacts, OtherLink, Parts, diagnose, grown, mean_facts
from .drift import Level, Yardstick, drift, middle
from .effects import Effect, Event, Keep
from .episode import ENTER, LEAVE, Episode
from .facts import UNKNOWN, MachineFacts
from .fleet import Member
from .messages import Beat, Slowness, Vitals
from .pace import ENOUGH, RECENT, Pace, usual
from .records import Recovered, TurnedSlow
from .tax import StragglerTax
from .work import Workload

TURN_S = 1.0
"""Conclusions are drawn at most this often: they cost more than taking a beat in."""
FEWEST = 4
"""Micro-steps since the newest change from which a pace is known."""
BEFORE = 4 * RECENT
"""Micro-steps before a change that say what was usual."""
VITALS_KEPT = 8
TRANSFERS_KEPT = 8
TRANSFERS_NOW = 3
"""Newest rounds that say what a transfer takes now: on a slow link eight of them take long."""
USUAL_MEMORY = 0.05
"""Least weight of the newest vitals in what is usual for a machine."""


@dataclass(frozen=True)
class Phase:
    """What is known of one replica's phase."""

    slowness: Slowness | None = None
    jitters: bool = False
    drift: float | None = None
    drift_error: float | None = None
    vitals: Vitals | None = None


class _Replica:
    """All that is remembered of one replica."""

    def __init__(self, incarnation: str) -> None:
        self.pace = Pace(incarnation)
        self.episode: Episode | None = None
        self.vitals: deque[tuple[float, Vitals]] = deque(maxlen=VITALS_KEPT)
        self.usual: MachineFacts = MachineFacts()
        """The machine as it is while the replica is not slow."""
        self.usual_rtt_s: float | None = None
        self._usual_of = 0
        self._trained = False
        """Whether it trained when the vitals before came: a thread that loads or waits to begin is no measure."""

    def examine(self, vitals: Vitals, now_s: float) -> None:
        """Take in vitals; those of a training replica that is not slow say what is usual."""
        self.vitals.append((now_s, vitals))
        trained, self._trained = self._trained, bool(self.pace.marks)
        if not trained or self.episode is not None or not self.pace.quiet:
            return
        self._usual_of += 1
        weight = max(USUAL_MEMORY, 1 / self._usual_of)
        self.usual = _blend(self.usual, vitals.machine, weight)
        rtt_s = vitals.rtt_usual_s
        if rtt_s is not None:
            known = self.usual_rtt_s if self.usual_rtt_s is not None else rtt_s
            self.usual_rtt_s = known + weight * (rtt_s - known)

    def slow_link(self, number: int) -> OtherLink | None:
        """This replica's link as what may hold the others up, when its round trip has grown by much."""
        before_s = self.episode.rtt_before_s if self.episode else self.usual_rtt_s
        now_s = self.vitals[-1][1].rtt_usual_s if self.vitals else None
        if before_s is None or now_s is None or not grown(before_s, now_s):
            return None
        return OtherLink(number, before_s, now_s)

    def newest(self, since_s: float) -> list[Vitals]:
        """Vitals of after this time; the newest one if there are none."""
        return [vitals for at_s, vitals in self.vitals if at_s > since_s] or [v for _, v in list(self.vitals)[-1:]]

    def diagnosis(
        self, episode: Episode, after: Parts, transfer_s: float | None, others: OtherLink | None
    ) -> Diagnosis:
        """Why it is slow; `transfer_s` are the seconds of a round's collective now, `others` another slow link."""
        newest = self.newest(-math.inf if episode.since_s is None else episode.since_s + TURN_S)
        case = Case(
            before=episode.before,
            after=after,
            usual=episode.usual,
            now=mean_facts([vitals.machine for vitals in newest]),
            link_before=LinkFacts(episode.rtt_before_s, episode.transfer_before_s),
            link_now=LinkFacts(newest[-1].rtt_usual_s if newest else None, transfer_s),
            other=others,
        )
        return diagnose(case)

    def resume(self, kept: TurnedSlow, now_s: float) -> None:
        """It was slow by the word of the hub before this one, to which only the replica's own clock is common."""
        since_s = None if kept.trained_s is None else now_s - (self.pace.trained_at(now_s) - kept.trained_s)
        self.episode = Episode.resumed(kept, since_s, now_s)

    def record(self, number: int) -> TurnedSlow | None:
        """What another hub must know of the episode; None before it has been looked at."""
        episode = self.episode
        if episode is None or episode.after is None or episode.diagnosis is None:
            return None
        return TurnedSlow(
            replica=number,
            incarnation=self.pace.incarnation,
            trained_s=None if episode.since_s is None else round(self.pace.trained_at(episode.since_s), 3),
            before=episode.before,
            before_level=episode.before_level,
            after=episode.after,
            part=episode.diagnosis.part,
            cause=episode.diagnosis.cause,
            evidence=episode.diagnosis.evidence,
            usual=episode.usual,
            rtt_before_s=episode.rtt_before_s,
            transfer_before_s=episode.transfer_before_s,
        )

    def turned(self, change: Change, now_s: float) -> None:
        """The pace has changed: begin an episode if it turned slow, unless one goes on whose beginning is known."""
        if not change.up or (self.episode is not None and self.episode.since_s is not None):
            return
        before = [mark for mark in self.pace.marks if mark.at_s < change.since_s]
        if before and self.pace.level - change.before >= ENTER:
            parts = usual(before[-BEFORE:])
            self.episode = Episode(now_s, change.since_s, parts, change.before, self.usual, self.usual_rtt_s)


class PhaseBook:
    """Takes in facts as they come, and once a second says who is slow and why. O(1) memory for each replica."""

    def __init__(self) -> None:
        self._replicas: dict[int, _Replica] = {}
        self._workload = Workload()
        self._turned_s = -math.inf
        self._fleet = Level(0.0, math.inf)
        self._transfers: deque[float] = deque(maxlen=TRANSFERS_KEPT)
        self._usual_transfer_s: float | None = None
        """While nobody is slow."""
        self.tax = StragglerTax()
        self._kept: dict[int, TurnedSlow] = {}
        """Replicas that were slow by the word of the hub before this one, and have not been heard since."""

    def slow_before(self, kept: TurnedSlow) -> None:
        """An earlier hub has told that this replica is slow."""
        self._kept[kept.replica] = kept

    def recovered_before(self, number: int) -> None:
        """And that it is not any more."""
        self._kept.pop(number, None)

    def beat(self, beat: Beat, now_s: float) -> None:
        """A beat that tells of a new micro-step."""
        replica = self._replica(beat.replica, beat.incarnation)
        change = replica.pace.take(beat, self._workload, now_s)
        kept = self._kept.pop(beat.replica, None) if self._kept else None
        if kept is not None and kept.incarnation == beat.incarnation:
            replica.resume(kept, now_s)
        if change is not None:
            replica.turned(change, now_s)

    def vitals(self, vitals: Vitals, now_s: float) -> None:
        """How a replica's machine is."""
        self._replica(vitals.replica, vitals.incarnation).examine(vitals, now_s)

    def round(self, transfer_s: float) -> None:
        """A round has landed everywhere: its collective took this long once the last member had joined."""
        if transfer_s <= 0.0:
            return
        self._transfers.append(transfer_s)
        if not any(replica.episode for replica in self._replicas.values()):
            self._usual_transfer_s = median(self._transfers)

    def turn(self, members: Mapping[int, Member], training: bool, now_s: float) -> list[Effect]:
        """Draw conclusions when it is time to: an event for each replica that turned slow, or recovered.

        Args:
            members: The present ones; what is known of others is forgotten.
            training: Whether all of them train.
            now_s: The time.
        """
        if now_s - self._turned_s < TURN_S:
            return []
        self._turned_s = now_s
        for gone in [number for number in self._replicas if number not in members]:
            del self._replicas[gone]
        known = [members[number] for number in self._replicas]
        rates = [member.rates() for member in known]
        self.tax.advance(now_s, rates, training and len(known) == len(members))
        return self._conclude(now_s)

    def of(self, number: int, now_s: float) -> Phase:
        """What is known of this replica now."""
        replica = self._replicas.get(number)
        if replica is None:
            return Phase()
        known = len(replica.pace.marks) >= FEWEST and math.isfinite(self._fleet.error)
        own, error = drift(replica.pace.mean, self._fleet) if known else (None, None)
        slowness = replica.episode.slowness(now_s) if replica.episode else None
        vitals = replica.vitals[-1][1] if replica.vitals else None
        return Phase(slowness, replica.pace.jitters(), own, error, vitals)

    def _replica(self, number: int, incarnation: str) -> _Replica:
        known = self._replicas.get(number)
        if known is None or known.pace.incarnation != incarnation:
            known = self._replicas[number] = _Replica(incarnation)
        return known

    def _conclude(self, now_s: float) -> list[Effect]:
        paced = {number: each for number, each in self._replicas.items() if each.pace.since_change >= FEWEST}
        if not paced:
            return []
        self._fleet = middle([each.pace.mean for each in paced.values()])
        levels = {number: each.pace.level for number, each in paced.items()}
        yardstick = Yardstick(list(levels.values()))
        first_at = {level: self._replicas[number] for number, level in reversed(levels.items())}
        events: list[Effect] = []
        links: list[OtherLink] | None = None
        for number, replica in paced.items():
            others = yardstick.of(levels[number])
            if others is not None and (replica.episode is not None or levels[number] - others >= ENTER):
                _measure(replica, first_at[others], others, now_s)
            if replica.episode is not None:
                if replica.episode.transfer_before_s is None:
                    replica.episode.transfer_before_s = self._usual_transfer_s
                links = self._slow_links() if links is None else links
                other = next((link for link in links if link.replica != number), None)
                verdict = replica.diagnosis(replica.episode, replica.pace.parts, self._transfer_s(), other)
                events += _continue(number, replica, replica.episode, levels[number], verdict, now_s)
        return events

    def _slow_links(self) -> list[OtherLink]:
        """The links whose round trips have grown, the worst first."""
        found = (each.slow_link(number) for number, each in self._replicas.items())
        return sorted((link for link in found if link is not None), key=_growth, reverse=True)

    def _transfer_s(self) -> float | None:
        """Of the newest rounds."""
        return median(list(self._transfers)[-TRANSFERS_NOW:]) if self._transfers else None


def _measure(replica: _Replica, example: _Replica, others: float, now_s: float) -> None:
    """Against the fleet: a replica that is slow without ever having been faster.

    Args:
        replica: Slow, or in an episode.
        example: A replica at the level `others`, which is what it is compared with.
        others: The yardstick.
        now_s: The time.
    """
    episode = replica.episode
    if episode is not None:
        if episode.since_s is None:
            episode.before, episode.before_level = example.pace.parts, others
    elif replica.pace.since_change >= ENOUGH:
        facts = mean_facts([vitals.machine for _, vitals in example.vitals])
        replica.episode = Episode(now_s, None, example.pace.parts, others, facts, example.usual_rtt_s)


def _growth(link: OtherLink) -> float:
    return link.now_s / max(link.before_s, 1e-9)


def _continue(
    number: int, replica: _Replica, episode: Episode, level: float, diagnosis: Diagnosis, now_s: float
) -> list[Effect]:
    """An episode a turn later: it has ended, or it stands as it stands now."""
    if level - episode.before_level < LEAVE:
        replica.episode = None
        lasted = {"replica": number, "seconds": round(episode.lasted_s(now_s), 3), "micro_step_s": math.exp(level)}
        return [Keep(Recovered(number)), Event("recovered", lasted)] if episode.told is not None else []
    episode.update(replica.pace.parts, level, diagnosis)
    if not episode.worth_telling(now_s):
        return []
    slowness, kept = episode.slowness(now_s), replica.record(number)
    if slowness is None or kept is None:
        return []
    return [Keep(kept), Event("slow", {"replica": number, **msgspec.structs.asdict(slowness)})]


def _blend(old: MachineFacts, new: MachineFacts, weight: float) -> MachineFacts:
    """What is usual moves slowly; what was unknown is taken as it comes."""
    blended: dict[str, float | str] = {"gpu_throttle": new.gpu_throttle}
    for name in MachineFacts.__struct_fields__[:-1]:
        before, now = getattr(old, name), getattr(new, name)
        blended[name] = now if before == UNKNOWN or now == UNKNOWN else before + weight * (now - before)
    return MachineFacts(**blended)  # type: ignore[arg-type]
