"""Lingering: how long a replica waits, after a step, for the commit of its own newest change (`kpool.linger`).

Nobody waits for a round, so the round with everybody's step t is committed just after step t + 1 has begun: what the
others have learnt comes a step late. Replicas that are about equally fast may wait a moment for it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tsugi_kpool.core.settings import KPool, Trigger

from .heartbeat_pacing import MIN_BEAT_GAP_S

STEPS = 9
"""Newest steps whose median is the usual one."""
ROUNDS = 16
"""Newest rounds that show who is behind."""
BEHIND = 1.5
"""Who has made so many times fewer steps than the usual member is behind, as the hub counts too
(core.rounds.trigger)."""
TRIES, ENOUGH = 8, 2
"""Of so many waits, so many must have ended with the commit; else nobody waits for a while."""
PAUSE_STEPS = 128
"""Steps of the usual replica after which all try again, at one version: replicas out of phase that try together find
into phase, one alone does not."""


class Linger:
    """Decides for one replica, of what it has seen: its steps, the rounds, and how its waits have ended.

    `committed` belongs to the aggregator's thread, all else to the training thread.

    Args:
        settings: The pool's.
    """

    def __init__(self, settings: KPool) -> None:
        self._share = settings.linger
        self._fewest = settings.count if settings.trigger is Trigger.COUNT else settings.min_steps
        turns = 1 if isinstance(settings.k, str) else -(-settings.n // settings.k)
        self._pause = max(1, PAUSE_STEPS * turns // self._fewest)
        self._rounds_s = (turns - 1) * MIN_BEAT_GAP_S
        """The rounds that ship all adapters take this at least: the next one fires when all beats show the last."""
        self._seconds: tuple[float, ...] = ()
        self._steps: tuple[tuple[int, float], ...] = ()
        """Of each round: our steps in it, and the usual member's."""
        self._ends: tuple[bool, ...] = ()
        self._from_version = 0

    def stepped(self, seconds: float) -> None:
        """A step has taken so long."""
        if self._share:
            self._seconds = (*self._seconds[1 - STEPS :], seconds)

    def committed(self, steps: Sequence[int], rank: int) -> None:
        """A round has been committed.

        Args:
            steps: Of each member, summed over the round's adapters.
            rank: Our place among the members.
        """
        if self._share:
            self._steps = (*self._steps[1 - ROUNDS :], (steps[rank], statistics.median(steps)))

    def bound_s(self, version: int, members: int, buffered: Sequence[int]) -> float:
        """Return how long to wait at most now, after a step; 0: go on at once.

        Args:
            version: Rounds committed.
            members: Of the generation.
            buffered: Our steps, for each adapter.
        """
        due = max(buffered, default=0) >= self._fewest  # else no round is to be expected before our next step
        if not self._seconds or members < 2 or not due or version < self._from_version or self.behind:
            return 0.0
        bound_s = self._share * statistics.median(self._seconds)
        return bound_s if bound_s > self._rounds_s else 0.0

    def ended(self, committed: bool, version: int) -> None:
        """A wait has ended: with the commit, or without it."""
        self._ends = (*self._ends[1 - TRIES :], committed)
        if len(self._ends) == TRIES and sum(self._ends) < ENOUGH:
            self._ends, self._from_version = (), (version // self._pause + 1) * self._pause

    @property
    def behind(self) -> bool:
        """Whether we make fewer steps than the usual member: nobody's newest change is late for our sake."""
        own, usual = (sum(each) for each in zip(*self._steps, strict=True)) if self._steps else (0, 0)
        return own * BEHIND < usual
