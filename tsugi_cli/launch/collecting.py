"""The adapter comes to the hub's machine, where no replica has written one: fetched from a replica that has ended."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Set
from pathlib import Path

from tsugi_kpool.core.messages import AdapterOffer, AdapterSettled, DataPart, DataRequest, Message
from tsugi_kpool.errors import LaunchError
from tsugi_kpool.queue_thread import QueueThread

from . import looking
from .incoming import Incoming
from .offering import read_listing
from .pace import Verdict

Heard = AdapterOffer | DataPart
WAITING = 64
"""Messages that wait for the disk. What comes beyond them is lost, and said again."""
POLL_S = 0.05
SILENT_S = 10.0
"""Whose adapter gets no further for so long is given up, and the next offer is taken."""
MOST_TRIES = 3
"""Adapters that are begun of one replica: its connection may break, but who gives none again and again has none."""
TELLING_S = 5.0
"""With an adapter here, the others who have one are waited for so long: each of them has been told, or has gone."""
MOST_PROBLEMS = 32
PATIENCE_S = 30.0
"""Without any part for so long no adapter comes any more."""


class Collecting(QueueThread[Heard]):
    """`start`, `stop`; `take` from the hub's thread. Half an adapter is deleted at the end.

    Args:
        target: The adapter's folder of the run: nothing is taken once it is there.
        wants: Whether an adapter is to come from elsewhere.
        deliver: Sends a message over a connection.
    """

    def __init__(self, target: Path, wants: Callable[[], bool], deliver: Callable[[bytes, Message], None]) -> None:
        super().__init__("tsugi-hub-adapter", WAITING, POLL_S)
        self._target, self._wants, self._deliver = target, wants, deliver
        self._incoming: Incoming | None = None
        self._moved_s = time.monotonic()
        self.given_by = ""
        """Ticket of whoever has given the adapter; empty: nobody."""
        self._tries = Counter[str]()
        """Ticket -> adapters of its that were begun."""
        self._slow: set[str] = set()
        """Tickets of those who were left for somebody quicker: they take nobody's place."""
        self._useless: set[str] = set()
        """Tickets of those whose adapter is none, or cannot be here in time."""
        self._first_s: float | None = None
        """When the first one was begun."""
        self.settled: set[str] = set()
        """Tickets of those who have been told that nothing of theirs is wanted any more."""
        self.problems: deque[tuple[str, str]] = deque(maxlen=MOST_PROBLEMS)
        """Ticket, and why its offer was not taken; the newest ones."""

    def begin(self) -> None:
        """From now on somebody waits for it."""
        self._moved_s = time.monotonic()

    def pending(self, tickets: Set[str]) -> bool:
        """Return whether an adapter may still come, or one of these who have one waits to be told that it need not.

        Nobody who says nothing is waited for without end.
        """
        silent_s = time.monotonic() - self._moved_s
        if self._target.exists():
            return not tickets <= self.settled and silent_s < TELLING_S
        return silent_s < PATIENCE_S

    def handle(self, route: bytes, message: Heard) -> None:
        now_s, incoming = time.monotonic(), self._incoming
        if isinstance(message, DataPart):
            if incoming is not None and incoming.route == route:
                self._tried(incoming.ticket, self._take_in, incoming, message, now_s)
        elif self._target.exists() or not self._wants() or self._is_refused(message.ticket):
            self._settle(route, message.ticket)
        elif incoming is None or (incoming.route != route and self._is_replaced(incoming, message.ticket, now_s)):
            self._give_up()
            self._tried(message.ticket, self._begin, route, message)
        if self._incoming is not None and self._incoming.whole:
            self._tried(self._incoming.ticket, self._finish, self._incoming)

    def _is_refused(self, ticket: str) -> bool:
        return ticket in self._useless or self._tries[ticket] >= MOST_TRIES

    def _is_replaced(self, incoming: Incoming, ticket: str, now_s: float) -> bool:
        """Whether whoever gives an adapter is left for another one, who offers it: it is silent, or slow. Of two slow
        ones each is left once."""
        if now_s - incoming.heard_s > SILENT_S:
            return True
        if ticket in self._slow or incoming.pace.verdict(now_s) is not Verdict.SLOW:
            return False
        self._slow.add(incoming.ticket)
        return True

    def coming(self) -> tuple[str, int, int] | None:
        """Return the ticket of whoever gives the adapter, the bytes that are here, and all; None: nobody does."""
        incoming = self._incoming
        return None if incoming is None else (incoming.ticket, incoming.pace.come, incoming.pace.total)

    def _take_in(self, incoming: Incoming, part: DataPart, now_s: float) -> None:
        if incoming.take(part.file, part.start, part.data, now_s):
            self._moved_s = now_s

    def _begin(self, route: bytes, offered: AdapterOffer) -> None:
        self._tries[offered.ticket] += 1
        self._first_s = time.monotonic() if self._first_s is None else self._first_s
        beside = self._target.with_name(f".{self._target.name}.coming")
        try:
            files = read_listing(offered.listing)
            self._incoming = Incoming(route, offered.ticket, beside, files, "adapter", first_s=self._first_s)
            self._incoming.begin()
        except (LaunchError, OSError):
            self._settle(route, offered.ticket)  # whoever offers this need not wait
            raise
        self._moved_s = time.monotonic()

    def _finish(self, incoming: Incoming) -> None:
        try:
            looking.check_adapter(incoming.folder)
        except LaunchError:
            self._refuse(incoming)
            raise
        incoming.publish(self._target)
        self._incoming, self.given_by = None, incoming.ticket
        self._settle(incoming.route, incoming.ticket)

    def _refuse(self, incoming: Incoming) -> None:
        """Take no adapter of this one any more."""
        self._useless.add(incoming.ticket)
        self._settle(incoming.route, incoming.ticket)

    def _settle(self, route: bytes, ticket: str) -> None:
        self._deliver(route, AdapterSettled(ticket))
        self.settled.add(ticket)

    def turn(self) -> None:
        now_s, incoming = time.monotonic(), self._incoming
        if incoming is None:
            return
        if incoming.pace.verdict(now_s) is Verdict.TOO_SLOW:
            self.problems.append((incoming.ticket, Verdict.TOO_SLOW))
            self._refuse(incoming)
            self._give_up()
            return
        for file, start in incoming.due(now_s):
            self._deliver(incoming.route, DataRequest(incoming.ticket, file, start))

    @property
    def problem(self) -> str:
        """Why the newest offer that was not taken was not."""
        return self.problems[-1][1] if self.problems else ""

    def _tried(self, ticket: str, act: Callable[..., None], *arguments: object) -> None:
        """Act; what fails costs this offer only."""
        try:
            act(*arguments)
        except (LaunchError, OSError) as error:
            self.problems.append((ticket, str(error)))
            self._give_up()

    def end(self) -> None:
        self._give_up()

    def _give_up(self) -> None:
        if self._incoming is not None:
            self._incoming.drop()
        self._incoming = None
