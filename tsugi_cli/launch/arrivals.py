"""A checkpoint's files come to the hub's machine from the member of another machine that has written them.

Which files, of which size and hash, that member has said over its own sealed link: nothing else is taken, and from
nobody else. They lie in a hidden folder until all of them are there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tsugi_cli.data.shipped import File
from tsugi_kpool.checkpoints import Store
from tsugi_kpool.core.checkpoint import FileFacts
from tsugi_kpool.core.messages import CheckpointOffer, CheckpointSettled, DataPart, DataRequest, Message
from tsugi_kpool.core.parcels import PART_BYTES
from tsugi_kpool.durable import flush_all
from tsugi_kpool.errors import LaunchError
from tsugi_kpool.queue_thread import QueueThread

from . import looking
from .fetching import ASKS_PER_S
from .incoming import Incoming
from .looking import Expected
from .pace import MOST_TOTAL_S, Verdict

Heard = CheckpointOffer | DataPart
WAITING = 64
"""Messages that wait for the disk. What comes beyond them is lost, and said again."""
POLL_S = 0.05
SILENT_S = 10.0
"""A connection over which nothing more has come for so long is given up for a newer one of the same member."""
PATIENCE_S = 30.0
"""Without any part for so long nobody waits for a checkpoint any more."""
MOST_TRIES = 3
"""What was not as it was reported so often is given up."""
LATE = "it has not come in time"
REMEMBERED = 64
"""Of so many checkpoints whoever offers them is told that they are not wanted any more."""
LEAST_ASKS_PER_S = 8.0
"""0.4 MB/s: a checkpoint does not come more slowly than that on our account."""


@dataclass(frozen=True)
class Wanted:
    """A checkpoint that is to come."""

    name: str
    """Under which it is put together."""
    replica: int
    """Who has written it."""
    files: Mapping[str, FileFacts]
    within_s: float
    """It is asked for slowly enough to take so long: rounds need the link, too. 0: as fast as it comes."""
    expected: Expected | None = None
    """What the run says of what is in them; None: they are not looked into."""

    @property
    def asks_per_s(self) -> float:
        """How many parts to ask for in a second."""
        parts = sum(each.bytes for each in self.files.values()) / PART_BYTES
        within_s = min(self.within_s, MOST_TOTAL_S / 2)  # twice as fast as it has to come
        return min(ASKS_PER_S, max(LEAST_ASKS_PER_S, parts / within_s)) if self.within_s else ASKS_PER_S


@dataclass(frozen=True)
class Failed:
    """Why a checkpoint does not come."""

    reason: str
    theirs: bool
    """Whoever gives it is asked no more: it is spoilt, or does not come."""


class Arrivals(QueueThread[Heard]):
    """`start`, `stop`; `take` from the hub's thread, the rest from the launcher's. Half a checkpoint is deleted at
    the end.

    Args:
        store: The run's checkpoints.
        seat_of: Which replica has this ticket's place; None: nobody has it.
        deliver: Sends a message over a connection.
    """

    def __init__(
        self, store: Store, seat_of: Callable[[str], int | None], deliver: Callable[[bytes, Message], None]
    ) -> None:
        super().__init__("tsugi-hub-checkpoint", WAITING, POLL_S)
        self._store, self._seat_of, self._deliver = store, seat_of, deliver
        self._lock = threading.Lock()
        self._wanted: Wanted | None = None
        self._incoming: Incoming | None = None
        self._tries = self._begun = 0
        self._settled: deque[str] = deque(maxlen=REMEMBERED)
        self._come: set[str] = set()
        self._failed: dict[str, Failed] = {}
        self._moved_s = self._first_s = time.monotonic()

    def want(self, wanted: Wanted) -> None:
        """From now on this one is to come, and no other."""
        with self._lock:
            if self._wanted is not None and self._wanted.name == wanted.name:
                return
            self._drop()
            self._wanted, self._tries, self._begun = wanted, 0, 0
            self._moved_s = self._first_s = time.monotonic()

    def forget(self, name: str) -> None:
        """It is not wanted any more: it is made, or given up."""
        with self._lock:
            self._come.discard(name)
            self._failed.pop(name, None)
            if self._wanted is not None and self._wanted.name == name:
                self._drop()

    def verdict(self, name: str) -> tuple[bool, str]:
        """Return whether all its files are in their folder, and why it does not come; empty while it may."""
        with self._lock:
            if name in self._come:
                return True, ""
            failed = self._failed.get(name)
            return False, failed.reason if failed is not None else "" if self._moves else LATE

    def blames(self, name: str) -> bool:
        """Return whether it does not come by the fault of whoever gives it: our own disk is none."""
        with self._lock:
            failed = self._failed.get(name)
            return failed.theirs if failed is not None else not self._moves

    def coming(self) -> tuple[int, int, int] | None:
        """Return who gives the one that is on its way, and how many of its bytes are here; None: none is."""
        with self._lock:
            if self._wanted is None or not self._moves:
                return None
            total = sum(each.bytes for each in self._wanted.files.values())
            return self._wanted.replica, self._incoming.pace.come if self._incoming is not None else 0, total

    @property
    def pending(self) -> bool:
        """Whether one is on its way, or may begin to be."""
        with self._lock:
            return self._moves

    @property
    def _moves(self) -> bool:
        """Nobody is waited for without end: neither who says nothing, nor who begins again and again."""
        now_s = time.monotonic()
        moves = now_s - self._moved_s < PATIENCE_S and now_s - self._first_s < MOST_TOTAL_S
        return self._wanted is not None and moves

    def handle(self, route: bytes, message: Heard) -> None:
        if isinstance(message, DataPart):
            self._take_in(route, message)
            return
        seat = self._seat_of(message.ticket)
        with self._lock:
            self._tried(self._offered, route, message, seat)

    def turn(self) -> None:
        with self._lock:
            self._ask()

    def end(self) -> None:
        with self._lock:
            self._drop()

    def _offered(self, route: bytes, offer: CheckpointOffer, seat: int | None) -> None:
        now_s, incoming, wanted = time.monotonic(), self._incoming, self._wanted
        if offer.name in self._settled:
            self._deliver(route, CheckpointSettled(offer.ticket, offer.name))
        elif wanted is None or (offer.name, seat) != (wanted.name, wanted.replica):
            return  # not yet, or not from this one; it is said again
        elif incoming is None or (incoming.route != route and now_s - incoming.heard_s > SILENT_S):
            self._begin(route, offer, wanted)

    def _begin(self, route: bytes, offered: CheckpointOffer, wanted: Wanted) -> None:
        self._give_up()
        folder = self._store.coming(wanted.name)
        files = {name: File(each.bytes, each.sha256) for name, each in wanted.files.items()}
        prefix = f"{wanted.name}/"
        asks_per_s, first_s = wanted.asks_per_s, self._first_s
        self._incoming = Incoming(route, offered.ticket, folder, files, "checkpoint", prefix, asks_per_s, first_s)
        self._incoming.begin()
        self._begun += 1
        if self._begun <= MOST_TRIES:  # after that only parts that come are progress
            self._moved_s = time.monotonic()

    def _take_in(self, route: bytes, part: DataPart) -> None:
        """Write a part, and look into all of them after the last one. That may take long, so it is done without the
        lock: others ask meanwhile, or want another checkpoint, which deletes what is written here."""
        with self._lock:
            incoming, wanted = self._incoming, self._wanted
        if incoming is None or wanted is None or incoming.route != route:
            return
        now_s, fresh, spoilt, error = time.monotonic(), False, "", None
        try:
            fresh = incoming.take(part.file, part.start, part.data, now_s)
            if incoming.whole:
                spoilt = _spoilt(incoming.folder, wanted)
                flush_all(incoming.folder)
        except (LaunchError, OSError) as raised:
            error = raised
        with self._lock:
            if self._incoming is not incoming:
                incoming.drop()  # what was written after it had been deleted
                return
            self._moved_s = now_s if fresh else self._moved_s
            if error is not None:
                self._try_again(error)
            elif spoilt:
                self._fail(spoilt, theirs=True)  # the hash was right: asked again it would be the same
            elif incoming.whole:
                self._tried(self._finish, incoming, wanted.name)

    def _finish(self, incoming: Incoming, name: str) -> None:
        incoming.put_into(self._store.scratch(name))
        self._come.add(name)
        self._drop()
        self._deliver(incoming.route, CheckpointSettled(incoming.ticket, name))

    def _ask(self) -> None:
        now_s, incoming = time.monotonic(), self._incoming
        if incoming is None:
            return
        if incoming.pace.verdict(now_s) is Verdict.TOO_SLOW:
            self._fail(Verdict.TOO_SLOW, theirs=True)
            return
        for file, start in incoming.due(now_s):
            self._deliver(incoming.route, DataRequest(incoming.ticket, file, start))

    def _tried(self, act: Callable[..., None], *arguments: object) -> None:
        """Act; what fails costs this checkpoint at most."""
        try:
            act(*arguments)
        except (LaunchError, OSError) as error:
            self._try_again(error)

    def _try_again(self, error: LaunchError | OSError) -> None:
        self._give_up()
        self._tries += 1
        if self._tries >= MOST_TRIES:
            ours = isinstance(error, OSError)
            self._fail((error.strerror if isinstance(error, OSError) else None) or str(error), theirs=not ours)

    def _fail(self, reason: str, theirs: bool) -> None:
        if self._wanted is not None:
            self._failed[self._wanted.name] = Failed(reason, theirs)
        self._drop()

    def _drop(self) -> None:
        """Want nothing any more."""
        if self._wanted is not None:
            self._settled.append(self._wanted.name)
        self._wanted = None
        self._give_up()

    def _give_up(self) -> None:
        if self._incoming is not None:
            self._incoming.drop()
        self._incoming = None


def _spoilt(folder: Path, wanted: Wanted) -> str:
    """Return why nobody could go on from what has come; empty when somebody could."""
    try:
        if wanted.expected is not None:
            looking.check_checkpoint(folder, list(wanted.files), wanted.expected)
    except LaunchError as error:
        return str(error)
    return ""
