"""The signals that stop a run in good order, the one that takes only its terminal, and what its processes hear."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tsugi_kpool.errors import ExitCode

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 is what Slurm's `--signal=USR1@60` sends a minute before the time is up."""


FOR_ALL = (signal.SIGTERM, signal.SIGUSR1)
"""A scheduler sends these to every process of a job: only the launcher may listen, which ends the fleet in order."""

HANG_UP = signal.SIGHUP
"""The terminal was closed, or its connection has dropped: nobody has asked the run to stop."""

ECHO_S = 0.5
"""What follows a signal this closely is the same one: `timeout` and schedulers tell a process, then its group."""


@contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started inside the block, and theirs, do not hear what is sent to all of a job.

    Blocked, not ignored: a signal that the caller itself gets meanwhile is not lost, and torchrun cannot undo it.
    They do hear HANG_UP, which ends torchrun agents and their workers, though the caller may have it blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_ALL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {HANG_UP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt inside the block, also where `entry` would end the process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def around_stop(before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    """Inside the block Ctrl-Z stops the process as ever, and what must be done before and after that is done."""

    def stop(number: int, _frame: FrameType | None) -> None:
        before()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # returns when somebody says `fg`
        signal.signal(number, stop)
        after()

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN
    ):
        yield  # a shell without job control: Ctrl-Z is not for us
        return
    previous = signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, previous)


class Signals:
    """Counts what wants a run to stop while it lasts, so that it is answered between two turns of the loop.

    A handler stands for every one of them, whatever was inherited: what is ignored (`nohup`, a shell's background
    jobs) would be ignored by all processes that are started meanwhile, too, and they could not be ended in order.

    Args:
        clock: Seconds.
        outlasts: The run goes on when it is hung up; else that ends the process, as it does most.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, outlasts: bool = True) -> None:
        self.count = 0
        self.terminated = self.hung_up = False
        self._clock, self._newest_s, self._outlasts = clock, -ECHO_S, outlasts

    def __enter__(self) -> Signals:
        self._previous = [(s, signal.signal(s, self._note)) for s in STOPS]
        if self._outlasts:
            self._previous.append((HANG_UP, signal.signal(HANG_UP, self._note_hang_up)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous:
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now_s = self._clock()
        self.count += now_s - self._newest_s >= ECHO_S
        self._newest_s = now_s
        self.terminated |= number != signal.SIGINT

    def _note_hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self.hung_up = True

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.TERMINATED if self.terminated else ExitCode.INTERRUPTED
