"""A thread that handles messages one after the other, with a bounded queue before it."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

T = TypeVar("T")
JOIN_S = 5.0


class QueueThread(ABC, Generic[T]):
    """Owns the thread. `start`, `stop`; `take` from any other thread. A subclass says what a message does.

    Args:
        name: The thread's.
        most: Messages that may wait. One more is dropped: whoever sends them says it again.
        poll_s: Period of `turn` while nothing comes.
    """

    def __init__(self, name: str, most: int, poll_s: float) -> None:
        self._waiting: queue.Queue[tuple[bytes, T]] = queue.Queue(most)
        self._poll_s = poll_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread: what waits is left undone."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=JOIN_S)

    def take(self, route: bytes, message: T) -> None:
        """Take a message; one too many is dropped. Never waits.

        Args:
            route: The connection over which it has come.
            message: What it is.
        """
        try:
            self._waiting.put_nowait((route, message))
        except queue.Full:
            return

    @abstractmethod
    def handle(self, route: bytes, message: T) -> None:
        """Do what a message asks. In the thread."""

    def turn(self) -> None:
        """Do what is due now. In the thread, after each message and each `poll_s`."""

    def end(self) -> None:
        """Clean up. The last thing in the thread, however it ends."""

    def pause(self, seconds: float) -> None:
        """Wait in the thread; `stop` ends it."""
        self._stopping.wait(seconds)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    route, message = self._waiting.get(timeout=self._poll_s)
                except queue.Empty:
                    pass
                else:
                    self.handle(route, message)
                self.turn()
        finally:
            self.end()
