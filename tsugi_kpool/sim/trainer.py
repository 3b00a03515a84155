"""The training thread of a simulated replica: data, steps, and the end of both."""

from __future__ import annotations

import math
import random

from .kernel import Kernel
from .replica import Replica
from .scenario import Speeds
from .uplink import Uplink

FROZEN_S = 0.1
"""Period of looking at a frozen step."""


class Trainer:
    """Takes steps one after the other while there are data; waits for nothing else, unless it lingers."""

    def __init__(
        self, kernel: Kernel, replica: Replica, speeds: Speeds, micro_batch: int, draw: random.Random
    ) -> None:
        self._kernel, self._replica, self._micro_batch = kernel, replica, micro_batch
        self._base_s, self._jitter = speeds.base_s(replica.number), speeds.jitter
        self._mu, self._gauss = -self._jitter * self._jitter / 2, draw.gauss
        self._changes = speeds.changes(replica.number)
        self._uplink: Uplink | None = None
        self._start = self._stop = 0
        self._size = micro_batch
        self._busy = False
        self.closed = False
        """Whether its process is dead."""
        self.frozen = False
        self._idle_since_s: float | None = None
        self._lingers: tuple[float, float] | None = None
        """Since when it has lingered, and until when; None: it does not."""

    def connect(self, uplink: Uplink) -> None:
        """Connect to the uplink, which brings data and takes progress."""
        self._uplink = uplink

    def go_on(self) -> None:
        """Begin the next step, unless one is running, data are missing, or training is over."""
        replica = self._replica
        if self.closed or self.frozen or self._busy or not replica.generation or replica.drained or replica.waiting:
            return
        if replica.draining:
            self._drain()
        elif self._lingering():
            return
        elif self._start < self._stop or self._refill():
            self._begin()

    def _lingering(self) -> bool:
        """Whether it still waits for the commit of its own newest change."""
        replica, linger = self._replica, self._replica.linger
        if self._lingers is None or linger is None:
            return False
        (since_s, until_s), now_s = self._lingers, self._kernel.now_s
        committed = not any(replica.ledger.steps)
        if not committed and now_s < until_s:
            return True
        self._lingers = None
        replica.progress.lingered_s += now_s - since_s
        linger.ended(committed, replica.version)
        return False

    def _refill(self) -> bool:
        """Take the next lease. Returns false when it is not here yet, or when there are no more data."""
        lease = self._uplink.take() if self._uplink is not None else None
        if lease is None:
            if self._idle_since_s is None:
                self._idle_since_s = self._kernel.now_s
            return False
        self._replica.ticket = lease.ticket
        if lease.start == lease.stop:
            self._drain()
            return False
        self._start, self._stop = lease.start, lease.stop
        self._size = lease.micro_batch or self._micro_batch
        return True

    def _begin(self) -> None:
        now_s = self._kernel.now_s
        if self._idle_since_s is not None:
            self._replica.progress.waited_s += now_s - self._idle_since_s
            self._idle_since_s = None
        seconds = self._base_s
        if self._jitter:  # as `spread`
            seconds *= math.exp(self._gauss(self._mu, self._jitter))
        if self._size != self._micro_batch:
            seconds *= self._size / self._micro_batch
        if self._changes:
            seconds *= self._factor(now_s)
        self._busy = True
        self._replica.begin()
        self._kernel.after(seconds, self._end, self._replica.version, self._replica.active, seconds)

    def _factor(self, now_s: float) -> float:
        factor = 1.0
        for change in self._changes:
            if change.from_s <= now_s:
                factor = change.factor
        return factor

    def _end(self, computed_on: int, active: tuple[int, ...], seconds: float) -> None:
        if self.closed:
            return
        if self.frozen:
            self._kernel.after(FROZEN_S, self._end, computed_on, active, seconds)
            return
        self._busy = False
        stop = min(self._stop, self._start + self._size)
        self._replica.train(self._start, stop, computed_on, seconds, active)
        self._start = stop
        if self._uplink is not None:
            if (measured := self._replica.evaluated()) is not None:
                self._uplink.report(measured)
            self._uplink.nudge()
        if bound_s := self._replica.lingers_s():
            now_s = self._kernel.now_s
            self._lingers = (now_s, now_s + bound_s)
            self._kernel.after(bound_s, self.go_on)
        self.go_on()

    def _drain(self) -> None:
        self._replica.drained = True
        if self._uplink is not None:
            self._uplink.nudge()
