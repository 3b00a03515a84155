"""The adapter comes to the hub's machine, where no replica has written one: fetched from a replica that has ended."""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path

from tsugi_cli.data import cache
from tsugi_cli.data.shipped import File
from tsugi_kpool.core.bucket import Bucket
from tsugi_kpool.core.messages import AdapterOffer, AdapterSettled, DataPart, DataRequest, Message
from tsugi_kpool.core.parcels import Parcel
from tsugi_kpool.durable import flush_all
from tsugi_kpool.errors import LaunchError

from .fetching import ASKS_AT_ONCE, ASKS_PER_S
from .offering import read_listing

Heard = AdapterOffer | DataPart
WAITING = 64
"""Messages that wait for the disk. What comes beyond them is lost, and said again."""
POLL_S = 0.05
SILENT_S = 10.0
"""Whose adapter gets no further for so long is given up, and the next offer is taken."""
DISK_SHARE = 2
"""An adapter takes at most one part in so many of what is free: checkpoints and logs of others lie there, too."""
MOST_S, LEAST_BYTES_PER_S = 600.0, 1 << 16
"""And no longer than this, with a second more for so many bytes: a trickle holds up nobody's end."""
MOST_TRIES = 3
"""Adapters that are begun of one replica: its connection may break, but who gives none again and again has none."""
TELLING_S = 5.0
"""With an adapter here, the others who have one are waited for so long: each of them has been told, or has gone."""
PATIENCE_S = 30.0
"""Without any part for so long no adapter comes any more."""


class Collecting:
    """Owns the thread. `start`, `stop`; `take` from the hub's thread.

    Args:
        target: The adapter's folder of the run: nothing is taken once it is there.
        wants: Whether an adapter is to come from elsewhere.
        deliver: Sends a message over a connection.
    """

    def __init__(self, target: Path, wants: Callable[[], bool], deliver: Callable[[bytes, Message], None]) -> None:
        self._target, self._wants, self._deliver = target, wants, deliver
        self._heard: queue.Queue[tuple[bytes, Heard]] = queue.Queue(WAITING)
        self._incoming: _Incoming | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tsugi-hub-adapter", daemon=True)
        self._moved_s = time.monotonic()
        self.given_by = ""
        """Ticket of whoever has given the adapter; empty: nobody."""
        self._tries = Counter[str]()
        """Ticket -> adapters of its that were begun."""
        self.settled: set[str] = set()
        """Tickets of those who have been told that nothing of theirs is wanted any more."""
        self.problem = ""
        """Why an offer was not taken, the newest one."""

    def start(self) -> None:
        """Begin to take offers."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; half an adapter is deleted."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5.0)

    def take(self, route: bytes, message: Heard) -> None:
        """Take a message; one too many is dropped."""
        try:
            self._heard.put_nowait((route, message))
        except queue.Full:
            return

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

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                route, message = self._heard.get(timeout=POLL_S)
            except queue.Empty:
                pass
            else:
                self._handle(route, message)
            self._ask()
        self._give_up()

    def _handle(self, route: bytes, message: Heard) -> None:
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

    def _take_in(self, incoming: _Incoming, part: DataPart, now_s: float) -> None:
        if incoming.take(part, now_s):
            self._moved_s = now_s

    def _begin(self, route: bytes, offered: AdapterOffer) -> None:
        self._tries[offered.ticket] += 1
        try:
            self._incoming = _Incoming(route, offered.ticket, self._target, read_listing(offered.listing))
            self._incoming.begin()
        except (LaunchError, OSError):
            self._settle(route, offered.ticket)  # whoever offers this need not wait
            raise
        self._moved_s = time.monotonic()

    def _finish(self, incoming: _Incoming) -> None:
        incoming.publish()
        self._incoming, self.given_by = None, incoming.ticket
        self._settle(incoming.route, incoming.ticket)

    def _settle(self, route: bytes, ticket: str) -> None:
        self._deliver(route, AdapterSettled(ticket))
        self.settled.add(ticket)

    def _ask(self) -> None:
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

    def _give_up(self) -> None:
        if self._incoming is not None:
            self._incoming.drop()
        self._incoming = None


class _Incoming:
    """An adapter that comes in over one connection, file by file, beside its place. `begin` first."""

    def __init__(self, route: bytes, ticket: str, target: Path, files: Mapping[str, File]) -> None:
        self.route, self.ticket, self.heard_s = route, ticket, time.monotonic()
        self._target, self._files, self._left = target, files, list(files)
        self._folder = target.with_name(f".{target.name}.coming")
        self._bucket = Bucket(ASKS_PER_S, ASKS_AT_ONCE, self.heard_s)
        self._bytes = sum(file.size for file in files.values())
        self.until_s = self.heard_s + MOST_S + self._bytes / LEAST_BYTES_PER_S
        self._parcel = Parcel(0)

    def begin(self) -> None:
        """Make room for it.

        Raises:
            OSError: the disk has none, or does not take it.
            LaunchError: a file is not what was promised.
        """
        if self._bytes > (free := shutil.disk_usage(self._target.parent).free) // DISK_SHARE:
            raise OSError(f"the adapter takes {self._bytes} bytes, and {free} are free")
        self.drop()
        self._folder.mkdir()
        self._parcel = self._next()

    @property
    def whole(self) -> bool:
        """Whether all files have come."""
        return not self._left

    def due(self, now_s: float) -> Iterator[tuple[str, int]]:
        """Yield (file, start) of the parts to ask for now."""
        while self._left and self._bucket.takes(now_s) and (start := self._parcel.due(now_s)) is not None:
            yield self._left[0], start

    def take(self, part: DataPart, now_s: float) -> bool:
        """Write a part; returns whether it brings the adapter further.

        Raises:
            OSError: the disk does not take it.
            LaunchError: the file is not what was promised.
        """
        if not self._left or part.file != self._left[0]:
            return False
        fresh = self._parcel.take(part.start, part.data)
        if not fresh:
            return False
        self.heard_s = now_s
        with (self._folder / part.file).open("ab") as file:
            file.write(fresh)
        if self._parcel.whole:
            self._check(self._left.pop(0))
            self._parcel = self._next()
        return True

    def publish(self) -> None:
        """Move it to its place.

        Raises:
            OSError: the disk does not take it.
        """
        flush_all(self._folder)
        self._folder.rename(self._target)

    def drop(self) -> None:
        """Delete what has come."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _next(self) -> Parcel:
        """Return the parcel of the next file; empty files are there at once."""
        while self._left and not self._files[self._left[0]].size:
            (self._folder / self._left[0]).touch()
            self._check(self._left.pop(0))
        return Parcel(self._files[self._left[0]].size if self._left else 0)

    def _check(self, name: str) -> None:
        if cache.file_digest(self._folder / name) != self._files[name].sha256:
            raise LaunchError(f"{name} of an adapter is not what was offered")
