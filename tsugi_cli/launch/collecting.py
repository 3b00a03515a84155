"""The adapter comes to the hub's machine, where no replica has written one: fetched from a replica that has ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Set
from pathlib import Path

from tsugi_kpool.core.messages import AdapterOffer, AdapterSettled, DataPart, DataRequest, Message
from tsugi_kpool.errors import LaunchError
from tsugi_kpool.queue_thread import QueueThread

from .incoming import Incoming
from .offering import read_listing

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
        self.settled: set[str] = set()
        """Tickets of those who have been told that nothing of theirs is wanted any more."""
        self.problem = ""
        """Why an offer was not taken, the newest one."""

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
                self._tried(self._take_in, incoming, message, now_s)
        elif self._target.exists() or not self._wants() or self._tries[message.ticket] >= MOST_TRIES:
            self._settle(route, message.ticket)
        elif incoming is None or (incoming.route != route and now_s - incoming.heard_s > SILENT_S):
            self._give_up()
            self._tried(self._begin, route, message)
        if self._incoming is not None and self._incoming.whole:
            self._tried(self._finish, self._incoming)

    def _take_in(self, incoming: Incoming, part: DataPart, now_s: float) -> None:
        if incoming.take(part.file, part.start, part.data, now_s):
            self._moved_s = now_s

    def _begin(self, route: bytes, offered: AdapterOffer) -> None:
        self._tries[offered.ticket] += 1
        beside = self._target.with_name(f".{self._target.name}.coming")
        try:
            self._incoming = Incoming(route, offered.ticket, beside, read_listing(offered.listing), "adapter")
            self._incoming.begin()
        except (LaunchError, OSError):
            self._settle(route, offered.ticket)  # whoever offers this need not wait
            raise
        self._moved_s = time.monotonic()

    def _finish(self, incoming: Incoming) -> None:
        incoming.publish(self._target)
        self._incoming, self.given_by = None, incoming.ticket
        self._settle(incoming.route, incoming.ticket)

    def _settle(self, route: bytes, ticket: str) -> None:
        self._deliver(route, AdapterSettled(ticket))
        self.settled.add(ticket)

    def turn(self) -> None:
        now_s, incoming = time.monotonic(), self._incoming
        if incoming is None:
            return
        if now_s > incoming.until_s:
            self.problem = "an adapter came too slowly"
            self._give_up()
            return
        for file, start in incoming.due(now_s):
            self._deliver(incoming.route, DataRequest(incoming.ticket, file, start))

    def _tried(self, act: Callable[..., None], *arguments: object) -> None:
        """Act; what fails costs this offer only."""
        try:
            act(*arguments)
        except (LaunchError, OSError) as error:
            self.problem = str(error)
            self._give_up()

    def end(self) -> None:
        self._give_up()

    def _give_up(self) -> None:
        if self._incoming is not None:
            self._incoming.drop()
        self._incoming = None
