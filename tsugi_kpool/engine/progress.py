"""A replica's progress, and the beat (heartbeat) that reports it to the hub."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from tsugi_kpool.core.messages import Beat
from tsugi_kpool.core.messages.from_replica import LOSS_SMOOTHING

from .aggregator import Aggregator
from .buffer import ElasticBuffer


@dataclass
class Progress:
    """Written by the training thread alone, read by the link's."""

    activity: str = "loading"
    steps: int = 0
    samples: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    started_s: float | None = None
    ended_s: float | None = None
    step_s: float = 0.0
    worked: int = 0
    wait_s: float = 0.0
    sync_wait_s: float = 0.0
    stepped_s: float = 0.0
    loss: float = 0.0
    lr: float = 0.0
    drained: bool = False
    ticket: int = 0
    _apart: tuple[float, float | None] = (0.0, None)
    """Seconds that were no training, and since when it is none now. One value: the link's thread reads it once."""

    def trained_s(self) -> float:
        """Seconds since training began, up to its end, without those between `pause` and `go_on`."""
        if self.started_s is None:
            return 0.0
        apart_s, since_s = self._apart
        now_s = time.monotonic() if since_s is None else since_s
        return (now_s if self.ended_s is None else self.ended_s) - self.started_s - apart_s

    def pause(self, activity: str) -> None:
        """Stop the clock of training for other work: a replica that evaluates is not slow."""
        self._apart, self.activity = (self._apart[0], time.monotonic()), activity

    def go_on(self) -> None:
        """Let the clock of training run on."""
        apart_s, since_s = self._apart
        if since_s is not None:
            self._apart, self.activity = (apart_s + time.monotonic() - since_s, None), "training"

    def count(self, samples: int, tokens: int, seconds: float, loss: float, lr: float, worked: int) -> None:
        """Count a step."""
        smoothing = LOSS_SMOOTHING if self.steps else 0.0
        if math.isfinite(loss):
            self.loss = smoothing * self.loss + (1 - smoothing) * loss
        self.lr, self.step_s = lr, seconds
        self.busy_s += seconds
        self.samples += samples
        self.tokens += tokens
        self.worked += worked
        self.stepped_s = self.trained_s()
        self.steps += 1

    def out_of_data(self) -> None:
        """Stop the clock of training: there are no data left."""
        self.ended_s = time.monotonic()
        self.activity, self.drained = "draining", True

    def at_work_again(self) -> None:
        """Let the clock of training run again: data have come back."""
        self.activity, self.drained, self.ended_s = "training", False, None


def beat_of(
    replica: int,
    incarnation: str,
    progress: Progress,
    buffer: ElasticBuffer,
    aggregator: Aggregator | None,
    equipped: bool,
) -> Beat:
    """Return the present beat; any thread may ask.

    Args:
        replica: Our number.
        incarnation: Of this process.
        progress: The training thread's.
        buffer: Ours.
        aggregator: None before the engine is started.
        equipped: Whether we can commit rounds.
    """
    return Beat(
        replica=replica,
        incarnation=incarnation,
        # The hub fires when every member is seen in its generation: one that cannot step yet is not seen there.
        generation=aggregator.membership.generation if aggregator and equipped else 0,
        version=aggregator.version if aggregator else 0,
        reduced=aggregator.reduced if aggregator else 0,
        activity=progress.activity,
        steps=progress.steps,
        samples=progress.samples,
        tokens=progress.tokens,
        busy_s=progress.busy_s,
        trained_s=progress.trained_s(),
        step_s=progress.step_s,
        loss=progress.loss,
        lr=progress.lr,
        pooled=buffer.pooled(),
        sent_bytes=aggregator.sent_bytes if aggregator else 0,
        drained=progress.drained,
        received_bytes=aggregator.received_bytes if aggregator else 0,
        joined=aggregator.round if aggregator else 0,
        ticket=progress.ticket,
        worked=progress.worked,
        wait_s=progress.wait_s,
        sync_wait_s=progress.sync_wait_s,
        stepped_s=progress.stepped_s,
    )
