"""A boundary between two steps on worker 0: what it broadcasts to its replica's other workers, and how it waits."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tsugi_kpool.core.messages import Discarded, Lease
from tsugi_kpool.core.replica.ports import Uplink
from tsugi_kpool.core.settings import KPool

from .aggregator import REASON_CHARS, Aggregator
from .buffer import ElasticBuffer
from .commit_wait import CommitWait
from .local_group import LocalGroup, StepMessage


class Boundary:
    """Worker 0's side of a boundary, in the training thread, once the replica has been started.

    Args:
        local_group: The workers of our replica.
        buffer: Ours.
        aggregator: Ours.
        uplink: Hears what has been thrown away.
        settings: The pool's.
    """

    def __init__(
        self, local_group: LocalGroup, buffer: ElasticBuffer, aggregator: Aggregator, uplink: Uplink, settings: KPool
    ) -> None:
        self._local_group, self._buffer = local_group, buffer
        self.aggregator, self.uplink = aggregator, uplink
        self.commit_wait = CommitWait(settings, buffer, aggregator)
        self.draining = self.saving = False
        """As it was in the last broadcast."""
        self._anew = False

    def take_in(self) -> None:
        """Apply committed rounds. If what is buffered is unusable, throw it away and report that."""
        thrown_away = self._buffer.apply_rounds()
        if thrown_away is not None:
            self._anew = True
            reason, tokens = thrown_away
            self.uplink.report(Discarded(0, 0, "", reason[:REASON_CHARS], tokens))

    def broadcast(self, lease: Lease | None = None, evaluate: bool = False) -> StepMessage:
        """Tell the other workers of our replica what they must know; returns the message."""
        checkpoint_parts, flags = self.aggregator.checkpoint_parts, self.aggregator.flags
        self.draining = flags.draining.is_set()
        self.saving = checkpoint_parts is not None and checkpoint_parts.wanted
        message = StepMessage(
            draining=self.draining,
            active=self._buffer.active,
            version=self.aggregator.version,
            members=len(self.aggregator.members),
            lease=lease,
            evaluate=evaluate,
            first=flags.first,
            saving=self.saving,
            anew=self._anew,
        )
        self._local_group.broadcast(message, self._buffer.inherited() if self._local_group.many else None)
        self._anew = False
        return message

    def wait(
        self,
        event: threading.Event,
        timeout_s: float | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait for an event of the aggregator. Meanwhile the other workers are told to wait, however long it
        takes; `meanwhile` is called now and then, and may raise."""

        def both() -> None:
            self._still_waiting()
            meanwhile()

        with self._local_group.telling():
            self.aggregator.flags.wait(event, timeout_s, both)

    def again(self) -> bool:
        """Wait, with no data left, for the end or for more data; returns whether there is more."""
        with self._local_group.telling():
            return self.aggregator.flags.again(self._still_waiting)

    def _still_waiting(self) -> None:
        if self._buffer.refused is not None:  # the last contribution was unusable: nothing else would let it go
            self.take_in()
        self._local_group.broadcast(StepMessage(waiting=True))
