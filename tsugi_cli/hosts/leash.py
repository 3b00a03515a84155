"""What whoever has started a `tsugi join -` says by its standard input: first the token, later perhaps `stop`."""

from __future__ import annotations

import os
import select
import signal
import threading
from types import TracebackType

STOP = b"stop\n"
"""Means what Ctrl-C does. The end of the input means nothing: a connection that was cut ends no replica."""
MOST_BYTES = 4096
"""A token has fewer."""


def first_line(handle: int) -> str:
    """Read a line, and not a byte beyond it: what comes later is for the leash.

    Args:
        handle: File descriptor of standard input.
    """
    found = bytearray()
    while len(found) < MOST_BYTES and (byte := os.read(handle, 1)) not in (b"", b"\n"):
        found += byte
    return found.decode("utf-8", "replace")


class Leash:
    """Sends this process SIGINT for every `stop` that comes by standard input. A context manager; does nothing on a
    terminal, where Ctrl-C is at hand.

    Args:
        handle: File descriptor of standard input; None: nobody holds a leash.
    """

    def __init__(self, handle: int | None) -> None:
        self._handle = None if handle is None or os.isatty(handle) else handle
        self._thread = threading.Thread(target=self._run, name="tsugi-leash", daemon=True)

    def __enter__(self) -> Leash:
        self._wake, self._woken = os.pipe()
        if self._handle is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._woken)
        if self._handle is not None:
            self._thread.join(timeout=10)
        os.close(self._wake)

    def _run(self) -> None:
        said, handle = b"", self._handle or 0
        while True:
            ready, _, _ = select.select([handle, self._wake], [], [])
            if self._wake in ready or not (new := os.read(handle, 64)):
                return
            said = (said + new)[-64:]
            if STOP in said:
                said = said.rpartition(STOP)[2]
                os.kill(os.getpid(), signal.SIGINT)
