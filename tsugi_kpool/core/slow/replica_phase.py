"""All that is remembered of one replica's phase: its pace, its machine, its link, and whether it is slow."""

from __future__ import annotations

import math
from collections import deque

from tsugi_kpool.core.case import Case, Diagnosis, LinkFacts, OtherLink, Parts
from tsugi_kpool.core.messages import Vitals
from tsugi_kpool.core.messages.facts import UNKNOWN, MachineFacts
from tsugi_kpool.core.records import TurnedSlow

from .change_point import Change
from .diagnosis import diagnose, mean_facts, resent
from .episode import ENTER, Episode
from .pace import RECENT, Pace, usual
from .slow_link import LinkWatch, grown

SETTLED_S = 1.0
"""Vitals that came so soon after a change still tell of the time before."""
BEFORE = 4 * RECENT
"""Micro-steps before a change that say what was usual."""
VITALS_KEPT = 8
USUAL_MEMORY = 0.05
"""Least weight of the newest vitals in what is usual for a machine."""


class ReplicaPhase:
    """Mutable: the book that it belongs to feeds it."""

    def __init__(self, incarnation: str) -> None:
        self.pace = Pace(incarnation)
        self.episode: Episode | None = None
        self.vitals: deque[tuple[float, Vitals]] = deque(maxlen=VITALS_KEPT)
        self.usual: MachineFacts = MachineFacts()
        """The machine as it is while the replica is not slow."""
        self.link = LinkWatch()
        self._usual_of = 0
        self._diagnosed: tuple[Episode, object, Diagnosis] | None = None
        """The newest diagnosis, and what it was made of."""
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
        self.link.learn(vitals.rtt_usual_s)

    @property
    def resent(self) -> list[str]:
        """What its network sends again now, when that is much more than usual."""
        return resent(self.usual, self.vitals[-1][1].machine) if self.vitals else []

    @property
    def rtt_s(self) -> float | None:
        """Its newest median round trip."""
        return self.vitals[-1][1].rtt_usual_s if self.vitals else None

    def slow_link(self, number: int) -> OtherLink | None:
        """This replica's link as what may hold the others up, when its round trip has grown by much."""
        before_s, now_s = self.episode.rtt_before_s if self.episode else self.link.usual_s, self.rtt_s
        if before_s is None or now_s is None or not grown(before_s, now_s):
            return None
        return OtherLink(number, before_s, now_s)

    def newest(self, since_s: float) -> list[Vitals]:
        """Vitals of after this time; the newest one if there are none."""
        return [vitals for at_s, vitals in self.vitals if at_s > since_s] or [v for _, v in list(self.vitals)[-1:]]

    def diagnosis(
        self, episode: Episode, after: Parts, transfer_s: float | None, others: OtherLink | None
    ) -> Diagnosis:
        """Why it is slow; `transfer_s` are the seconds of a round's collective now, `others` another slow link.

        A slow replica has news less often than it is looked at: the same facts are not weighed twice.
        """
        heard_s = (self.pace.marks[-1].at_s if self.pace.marks else None, self.vitals[-1][0] if self.vitals else None)
        seen = (episode.since_s, episode.before, episode.transfer_before_s, heard_s, transfer_s, others)
        if self._diagnosed is None or self._diagnosed[0] is not episode or self._diagnosed[1] != seen:
            self._diagnosed = episode, seen, diagnose(self._case(episode, after, transfer_s, others))
        return self._diagnosed[2]

    def _case(self, episode: Episode, after: Parts, transfer_s: float | None, others: OtherLink | None) -> Case:
        newest = self.newest(-math.inf if episode.since_s is None else episode.since_s + SETTLED_S)
        return Case(
            before=episode.before,
            after=after,
            usual=episode.usual,
            now=mean_facts([vitals.machine for vitals in newest]),
            link_before=LinkFacts(episode.rtt_before_s, episode.transfer_before_s),
            link_now=LinkFacts(newest[-1].rtt_usual_s if newest else None, transfer_s),
            other=others,
        )

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
            self.episode = Episode(now_s, change.since_s, parts, change.before, self.usual, self.link.usual_s)


def _blend(old: MachineFacts, new: MachineFacts, weight: float) -> MachineFacts:
    """What is usual moves slowly; what was unknown is taken as it comes."""
    blended: dict[str, float | str] = {"gpu_throttle": new.gpu_throttle}
    for name in MachineFacts.__struct_fields__:
        if name in blended:
            continue
        before, now = getattr(old, name), getattr(new, name)
        blended[name] = now if before == UNKNOWN or now == UNKNOWN else before + weight * (now - before)
    return MachineFacts(**blended)  # type: ignore[arg-type]
