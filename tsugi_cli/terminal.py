"""Terminals: what a stream can draw, and rich's console on it with a broken pipe left to the caller."""

from __future__ import annotations

import codecs
from typing import TextIO

import rich.console

# ValueError: the stream was closed, or cannot encode a character. OSError: pipe, disk or terminal is gone.
BROKEN = (OSError, ValueError)


def terminal(stream: TextIO, width: int | None = None) -> rich.console.Console:
    """A rich console on this stream that leaves a broken pipe to its caller."""
    return _Terminal(file=stream, width=width, highlight=False, markup=False, emoji=False)


class _Terminal(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Raise on, where rich would end the process: the training matters more than its picture."""
        raise


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at this stream, or it is a pipe or file (or closed)."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def draws_blocks(stream: TextIO) -> bool:
    """Whether the stream's encoding has the characters that bars and sparklines are made of."""
    try:
        return codecs.lookup(stream.encoding or "ascii").name in ("utf-8", "utf-16", "utf-32")
    except LookupError:
        return False
