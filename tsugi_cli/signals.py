"""The signals that stop a run in good order: Ctrl-C, and the two that schedulers send before they end a job."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tsugi_kpool.errors import ExitCode

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 is what Slurm's `--signal=USR1@60` sends a minute before the time is up."""


FOR_ALL = (signal.SIGTERM, signal.SIGUSR1)
"""A scheduler sends these to every process of a job: only the launcher may listen, which ends the fleet in order."""

ECHO_S = 0.5
"""What follows a signal this closely is the same one: `timeout` and schedulers tell a process, then its group."""


@contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started inside the block, and theirs, do not hear what is sent to all of a job.

    Blocked, not ignored: a signal that the caller itself gets meanwhile is not lost, and torchrun cannot undo it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Signals:
    """Counts what wants a run to stop while it lasts, so that it is answered between two turns of the loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self.terminated = False
        self._clock, self._newest_s = clock, -ECHO_S

    def __enter__(self) -> Signals:
        self._previous = [(s, signal.signal(s, self._note)) for s in STOPS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous:
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now_s = self._clock()
        self.count += now_s - self._newest_s >= ECHO_S
        self._newest_s = now_s
        self.terminated |= number != signal.SIGINT

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.TERMINATED if self.terminated else ExitCode.INTERRUPTED
