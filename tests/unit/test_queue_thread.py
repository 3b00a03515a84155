"""A thread with a bounded queue: what waits is handled in order, one too many is dropped, and it cleans up."""

from __future__ import annotations

import threading

import pytest

from tests.support import await_true
from tsugi_kpool.queue_thread import QueueThread

pytestmark = pytest.mark.timeout(60)


class Words(QueueThread[str]):
    """Keeps what it has heard; waits before the first word until it may go on."""

    def __init__(self, most: int) -> None:
        super().__init__("words", most, 0.01)
        self.heard: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.turns = self.ends = 0

    def handle(self, route: bytes, message: str) -> None:
        self.begun.set()
        self.go_on.wait(30)
        if message == "fault":
            raise RuntimeError(message)
        self.heard.append(f"{route.decode()} {message}")

    def turn(self) -> None:
        self.turns += 1

    def end(self) -> None:
        self.ends += 1


def test_one_too_many_is_dropped_and_the_others_come_in_their_order() -> None:
    words = Words(2)
    words.start()
    words.take(b"a", "first")
    assert words.begun.wait(30)
    for each in ("second", "third", "one too many"):
        words.take(b"b", each)
    words.go_on.set()
    await_true(lambda: words.heard == ["a first", "b second", "b third"], "all that had room")
    await_true(lambda: words.turns > 3, "turns, though nothing comes")
    words.stop()
    assert (words.ends, words._thread.is_alive()) == (1, False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_it_cleans_up_whatever_ends_it_and_one_that_never_began_stops() -> None:
    Words(1).stop()
    words = Words(1)
    words.go_on.set()
    words.start()
    words.take(b"a", "fault")
    await_true(lambda: words.ends == 1, "the end")
    words.stop()
