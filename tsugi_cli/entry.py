"""Where the `tsugi` command begins: before anything slow is imported, it listens to what may end it.

A scheduler may end a job in its first second. Unheard, SIGUSR1 would kill the process (exit code 138), and Ctrl-C
would show the traceback of an import.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143
"""As in `tsugi_kpool.errors.ExitCode`, which is not imported yet."""


def listen() -> None:
    """End with the exit code of whoever asks, until `signals.Signals` takes over: nothing has been started yet.

    A terminal that is closed ends the process as it ends any other, at once and without a word.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and background jobs of a shell have it
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(INTERRUPTED if number == signal.SIGINT else TERMINATED)


def stand_in() -> None:
    """Something stands for each of stdin, stdout and stderr that was closed (`>&-`).

    Else the next file that is opened would get its number, and with it what is meant for a terminal.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  (it lasts as long as the process)


def main() -> None:
    """The console script."""
    stand_in()
    listen()
    from .app import main as command_line

    command_line()


if __name__ == "__main__":
    main()
