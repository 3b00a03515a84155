"""The pace of a replica's steps: how it is measured, and how `fault.*` holds it back."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch

from tsugi_cli.config import faults
from tsugi_cli.config.spec import Fault
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.follower import Engine
from tsugi_kpool.engine.progress import Progress

T = TypeVar("T")


class StepPacing:
    """Measures steps, and makes them slower where `fault.slow` or `fault.data_wait` says so.

    With `fault.step_s` it emulates a device: a step, forward and backward, takes that time, times what
    `fault.jitter` draws, whatever this machine needs for it, unless it needs longer.
    """

    def __init__(self, fault: Fault, replica: int, seed: int = 0) -> None:
        self._slow = faults.of_replica(fault.slow, replica)
        self._device = faults.of_replica(fault.step_s, replica)
        self._starve = faults.of_replica(fault.data_wait, replica)
        self._nan, self._flip = faults.of_replica(fault.nan, replica), faults.of_replica(fault.flip, replica)
        self._jitters = faults.jitters(fault.jitter, seed, replica)
        self._began_s: float | None = None
        self._started_s = 0.0
        self.steps = 0
        self.busy_s = 0.0
        """In steps, up to the end of `slow_down`."""
        self.late = 0
        """Steps for which this machine needed longer than the emulated device."""

    def feed(self, batches: Iterable[T], progress: Progress) -> Iterator[T]:
        """The same batches, each as late as slow storage would deliver it; the time until it is there is noted."""
        source = iter(batches)
        while True:
            started_s = time.monotonic()
            batch = next(source, None)
            if batch is None:
                return
            time.sleep(self._present(self._starve, 0.0))
            progress.wait_s += time.monotonic() - started_s
            yield batch

    def start(self) -> None:
        """A step begins."""
        self._started_s = time.monotonic()
        if self._began_s is None:
            self._began_s = self._started_s

    def slow_down(self) -> None:
        """Sleep as long as a device that is `factor` times slower, or takes `step_s`, would still compute."""
        time.sleep((self._present(self._slow, 1.0) - 1.0) * self.seconds())
        if (usual_s := self._present(self._device, 0.0)) > 0:
            rest_s = usual_s * next(self._jitters) - self.seconds()
            self.late += rest_s < 0
            time.sleep(max(0.0, rest_s))
        self.steps += 1
        self.busy_s += self.seconds()

    def spoil(self, engine: Engine) -> None:
        """Make this step's gradients, or a bit of our anchors, what broken hardware would make of them."""
        if self._due(self._nan):
            for parameter in engine.pool.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(math.nan)
        if self._due(self._flip):
            _flip_a_bit(engine, self.steps)

    def _due(self, entries: list[faults.FaultEntry]) -> bool:
        """Whether one of them has begun and has not happened as often as it says."""
        now_s = time.monotonic()
        for number, fault in enumerate(entries):
            if fault.begun(now_s - (self._began_s or now_s), self.steps) and fault.value >= 1:
                entries[number] = replace(fault, value=fault.value - 1)
                return True
        return False

    def seconds(self) -> float:
        """Since the step began."""
        return time.monotonic() - self._started_s

    def _present(self, entries: list[faults.FaultEntry], usual: float) -> float:
        now_s = time.monotonic()
        return faults.present(entries, now_s - (self._began_s or now_s), self.steps, usual)


def _flip_a_bit(engine: Engine, step: int) -> None:
    """In the anchors, which worker 0 keeps, as broken memory does; at each step of another number.

    The same bit flipped twice between two rounds would be as it was.
    """
    if isinstance(engine, KPoolEngine):
        with engine.undisturbed():
            values = engine.buffer.update.anchor.detach().view(torch.int32)
            values[0, step % values.shape[1]] ^= 1 << 20
