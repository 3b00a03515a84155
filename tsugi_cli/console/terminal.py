"""Terminals: what a stream can draw, rich's console without its own handling of broken pipes, and letting go."""

from __future__ import annotations

import codecs
import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import rich.console

# ValueError: the stream was closed, or cannot encode a character. OSError: pipe, disk or terminal is gone.
BROKEN = (OSError, ValueError)


def terminal(stream: TextIO, width: int | None = None) -> rich.console.Console:
    """Return a rich console on this stream that leaves a broken pipe to its caller."""
    return _Terminal(file=stream, width=width, highlight=False, markup=False, emoji=False)


class _Terminal(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Raise again, where rich would end the process: training matters more than its picture."""
        raise


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether this stream is a terminal, and not a pipe, a file or closed."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def draws_blocks(stream: TextIO) -> bool:
    """Return whether the stream's encoding has the characters of bars and sparklines."""
    try:
        return codecs.lookup(stream.encoding or "ascii").name in ("utf-8", "utf-16", "utf-32")
    except LookupError:
        return False


def let_go(log: Path) -> TextIO:
    """Redirect what this process writes to a terminal, or to a pipe without a reader, into a file.

    That holds for everything that writes, also for a library's warning. Files, and pipes that somebody reads, stay.

    Returns:
        The file to write to; where it cannot be made, one that takes nothing.
    """
    try:
        file = log.open("a", encoding="utf-8")
    except OSError:
        file = Path(os.devnull).open("a", encoding="utf-8")  # noqa: SIM115  (the caller's from here on)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if _on_terminal(number) or _nobody_at(number):
            os.dup2(nothing, number)
            if stream is not None and number:
                with suppress(*BROKEN):
                    stream.flush()  # what the terminal has not taken: half a picture, which is none for a file
            if number:
                os.dup2(file.fileno(), number)
    os.close(nothing)
    return file


def _on_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False


def _nobody_at(number: int) -> bool:
    """Return whether a file descriptor's other end has gone: a pipe without a reader, a closed terminal."""
    poll = select.poll()
    poll.register(number, 0)
    return any(events & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, events in poll.poll(0))
