"""Terminals: what a stream can draw, rich's console without its own handling of broken pipes, and letting go."""

from __future__ import annotations

import codecs
import os
import select
import sys
import termios
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


class Quiet:
    """Keeps a terminal from showing what is typed, while a picture is drawn in place.

    What the terminal shows of a key (`^C`, a new line) moves the cursor, by which the picture finds its place. Keys
    keep their effect, and what was typed reaches the shell afterwards. A process in the background leaves the
    terminal alone.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._hidden = stream, False

    def begin(self) -> None:
        """Stop showing keys, on a terminal that shows them and is this process's to change."""
        if not self._hidden and _in_front(self._stream):
            self._hidden = _echo(self._stream, False)

    def end(self) -> None:
        """Show keys again, if `begin` has stopped that."""
        if self._hidden and _in_front(self._stream):
            _echo(self._stream, True)
        self._hidden = False


def _echo(stream: TextIO, shown: bool) -> bool:
    """Show keys or not; returns whether that has changed anything."""
    try:
        modes = termios.tcgetattr(stream.fileno())
        before, modes[3] = modes[3], modes[3] | termios.ECHO if shown else modes[3] & ~termios.ECHO
        if modes[3] != before:
            termios.tcsetattr(stream.fileno(), termios.TCSANOW, modes)
        return bool(modes[3] != before)
    except (*BROKEN, termios.error):
        return False


def _in_front(stream: TextIO) -> bool:
    """Return whether a change of the terminal is ours: a process of the background would be stopped for it."""
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except BROKEN:
        return True  # not the terminal that controls this process, or none: nobody is stopped


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
