"""The training thread's waits for a commit: of every round without overlap, of its own change with `kpool.linger`."""

from __future__ import annotations

import time

from tsugi_kpool.core.hub.round_book import ROUND_GRACE_S
from tsugi_kpool.core.replica.stage import Stage
from tsugi_kpool.core.settings import KPool
from tsugi_kpool.errors import RoundError

from .aggregator import Aggregator
from .buffer import ElasticBuffer
from .thread_flags import POLL_S


class CommitWait:
    """Belongs to the training thread. It changes nothing of the aggregator, but clears its flag `committed` and tells
    its linger how a wait has ended.

    Args:
        settings: The pool's.
        buffer: What of ours is not committed yet.
        aggregator: Commits it.
    """

    def __init__(self, settings: KPool, buffer: ElasticBuffer, aggregator: Aggregator) -> None:
        self._settings, self._buffer, self._aggregator = settings, buffer, aggregator

    def between_rounds(self) -> None:
        """Wait while a round is in flight or reduced but not committed: training without overlap.

        Raises:
            RoundError: it took longer than `round_timeout_s`, or than the hub has for what it has asked of the round.
        """
        aggregator, flags = self._aggregator, self._aggregator.flags
        started_s, timeout_s = time.monotonic(), self._settings.round_timeout_s
        while not flags.between_rounds.wait(POLL_S):
            flags.check()
            if time.monotonic() > max(started_s, aggregator.asked_s + 2 * ROUND_GRACE_S) + timeout_s:
                reason = f"{aggregator.stage} and not committed after {timeout_s:g} s"
                raise RoundError(aggregator.round, f"{reason} (kpool.round_timeout_s)")

    def linger(self) -> None:
        """Wait a moment for the commit of our newest change, where that is worth it (`kpool.linger`)."""
        aggregator = self._aggregator
        bound_s = aggregator.linger.bound_s(aggregator.version, len(aggregator.members), self._buffer.pooled())
        if bound_s:
            aggregator.linger.ended(self._own_is_committed(time.monotonic() + bound_s), aggregator.version)

    def _own_is_committed(self, deadline_s: float) -> bool:
        """Wait until nothing of ours is buffered or in flight; returns false when the wait has ended otherwise."""
        flags = self._aggregator.flags
        while True:
            flags.committed.clear()  # before we look: a commit that comes after that ends the wait
            if not any(self._buffer.pooled()):
                return True
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or flags.draining.is_set() or self._aggregator.stage is Stage.OUTSIDE:
                return False
            flags.committed.wait(min(left_s, POLL_S))
            flags.check()
