"""What the aggregator's thread lets the training thread know, and how that waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tsugi_kpool.core.messages import Drain, Finish, Message, Refill
from tsugi_kpool.errors import TrainingError, TsugiError

POLL_S = 0.2
"""How often a wait looks whether it still makes sense."""


class ThreadFlags:
    """Set in the aggregator's thread, waited for in the training thread."""

    def __init__(self) -> None:
        self.formed = threading.Event()
        """We have been in a group."""
        self.draining = threading.Event()
        self.refilled = threading.Event()
        """There is data again."""
        self.finish: Finish | None = None
        self.finished = threading.Event()
        self.stirred = threading.Event()
        """One of the three orders has come that end a wait for the end."""
        self.between_rounds = threading.Event()
        self.between_rounds.set()
        self.error: TsugiError | None = None
        """What has gone wrong in the aggregator's thread."""

    def take(self, order: Message, version: int) -> None:
        """Take in an order that concerns the end; `version` is ours."""
        if isinstance(order, Drain):
            self.draining.set()
        elif isinstance(order, Refill):
            self.refilled.set()
        elif isinstance(order, Finish) and order.version == version:
            self.finish = order
            self.finished.set()
        if isinstance(order, Drain | Refill | Finish):
            self.stirred.set()

    @property
    def first(self) -> int:
        """The lowest replica that is left at the end, which exports the adapter."""
        return self.finish.first if self.finish is not None else 0

    def check(self) -> None:
        """Raise here what has gone wrong in the thread."""
        if self.error is not None:
            raise self.error

    def wait(
        self, event: threading.Event, timeout_s: float | None = None, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Wait for one of our events, or raise what has gone wrong meanwhile; `meanwhile` is called now and then.

        Raises:
            TrainingError: it did not come within `timeout_s`.
        """
        started_s = time.monotonic()
        while not event.wait(POLL_S):
            self.check()
            meanwhile()
            if timeout_s is not None and time.monotonic() - started_s > timeout_s:
                raise TrainingError(f"the other replicas did not come to an end within {timeout_s:g} s")

    def again(self, meanwhile: Callable[[], None]) -> bool:
        """There is no data left: wait for the end, or until there is more; whether there is."""
        while not (self.finished.is_set() or self.refilled.is_set() or self.draining.is_set()):
            self.wait(self.stirred, meanwhile=meanwhile)
            self.stirred.clear()
        refilled = self.refilled.is_set() and not self.draining.is_set()
        self.refilled.clear()
        return refilled
