"""Flags that the aggregator's thread sets and the training thread waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tsugi_kpool.core.messages import Drain, Finish, Message, Refill
from tsugi_kpool.errors import TrainingError, TsugiError

POLL_S = 0.2
"""How often a wait checks whether it still makes sense."""


class ThreadFlags:
    """Set in the aggregator's thread, waited for in the training thread."""

    def __init__(self) -> None:
        self.formed = threading.Event()
        """A group has been formed here."""
        self.draining = threading.Event()
        self.refilled = threading.Event()
        """There are data again."""
        self.finish: Finish | None = None
        self.finished = threading.Event()
        self.stirred = threading.Event()
        """One of the orders that end a wait for the end has come: Drain, Refill, Finish."""
        self.between_rounds = threading.Event()
        self.between_rounds.set()
        self.committed = threading.Event()
        """A round has been committed here since the training thread cleared this."""
        self.error: TsugiError | None = None
        """The error that has ended the aggregator's thread."""

    def take(self, order: Message, version: int) -> None:
        """Take in an order; only those about the end count. `version` is ours."""
        if isinstance(order, Drain):
            self.draining.set()
        elif isinstance(order, Refill):
            self.refilled.set()
        elif isinstance(order, Finish) and order.version == version:
            self.finish = order
            self.finished.set()
        # After the order's own flag: whoever wakes up by `stirred` reads the flags next.
        if isinstance(order, Drain | Refill | Finish):
            self.stirred.set()

    @property
    def first(self) -> int:
        """The lowest remaining replica at the end, which exports the adapter."""
        return self.finish.first if self.finish is not None else 0

    def check(self) -> None:
        """Raise the error of the aggregator's thread, if there is one."""
        if self.error is not None:
            raise self.error

    def wait(
        self, event: threading.Event, timeout_s: float | None = None, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Wait for one of our events, or raise the aggregator's error; `meanwhile` is called now and then.

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
        """Wait, with no data left, for the end or for more data; returns whether there is more."""
        while not (self.finished.is_set() or self.refilled.is_set() or self.draining.is_set()):
            self.wait(self.stirred, meanwhile=meanwhile)
            # Cleared before the flags are read again: an order that comes in between has set its own flag first.
            self.stirred.clear()
        refilled = self.refilled.is_set() and not self.draining.is_set()
        self.refilled.clear()
        return refilled
