"""The exchange itself: collects a round's parts, reduces them, keeps the result, and hands it to all members."""

from __future__ import annotations

import asyncio
import hmac
import math
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugi_kpool.core.hub.refusals import Kind as Why
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.hub.tickets import Tickets
from tsugi_kpool.core.rounds.closing import Quorum

from .answers import Answers, UnderWay
from .books import Books, Kept, Unwritten
from .connection import Connection, Frame
from .doorkeeper import HANDSHAKE_S, Doorkeeper
from .frames import CHUNK, FROM_MEMBER, PROTOCOL, BadFrame, Hello, Kind, Part, Piece, Verdict
from .reduction import Left, Reduced, left_by, left_rows
from .rounds import EVERYBODY, Collecting, Refusal, Rounds, Settled, key
from .states import States

LATER_S = 0.001
"""A timer may ring a little early."""
GONE_ON = "the fleet has gone on"
NOT_ORDERED = "the hub has ordered no such round, or another donor"


@dataclass
class Counts:
    """What has happened at the exchange since it began."""

    received: int = 0
    sent: int = 0
    rounds: int = 0
    behind: str = ""
    """Why the newest round is not on the disk; empty when it is."""


class Exchange:
    """Owns listening socket, connections and books. `open`, `close`; all in one event loop.

    Args:
        secret: The hub's: what a member's place is checked with.
        context: Our side of TLS.
        folder: Of the books.
        seats: Replicas that the run can have: 0, 1, ...
        adapters: Of the pool.
        run: Its name, of which the hub's tickets are made.
        begin: What is left over of each adapter where a run goes on from a checkpoint; the books know better.
        quorum: Whom a round waits for.
        lost: What the process before this one has not written down, as it has told.
        tell: Told what is not on the disk, before any member may count on it.

    Raises:
        MachineError: the books cannot be read.
    """

    def __init__(
        self,
        secret: str,
        context: ssl.SSLContext,
        folder: Path,
        seats: int,
        adapters: int,
        run: str,
        begin: Mapping[int, Left] | None = None,
        quorum: Quorum = EVERYBODY,
        lost: Unwritten | None = None,
        tell: Callable[[Unwritten], object] = lambda _: None,
    ) -> None:
        self._unwritten, self._tell = dict(lost or {}), tell
        self._secret, self._seats, self._tickets = secret, seats, Tickets(run, secret)
        self._adapters = adapters
        self.answers = Answers(self._tickets)
        self._books = Books(folder)
        self._books.begin(begin or {})
        self._rounds = Rounds(*self._books.load(), adapters, quorum, lost)
        self._states = States(folder)
        self._door = Doorkeeper(context, self._connection, self._refuse)
        self._placed: dict[int, Connection] = {}
        """Replica -> its newest connection."""
        self._nameless: dict[Connection, None] = {}
        """Those that have shown a certificate, and no place yet."""
        self._wanting: dict[int, int] = {}
        """Newcomer -> the generation whose state it has asked for."""
        self._gone_s: dict[int, float] = {}
        """Replica -> since when it has had no connection, if it has had one."""
        self._ending = False
        self._alarm: asyncio.TimerHandle | None = None
        """Looks whether the round is to be closed, when nothing else comes."""
        self._reducing = asyncio.Lock()
        self._under_way: UnderWay | None = None
        self.counts, self.refused = Counts(), Counter[str]()

    def open(self, bind: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            MachineError: this address cannot be listened at.
        """
        return self._door.open(bind, port)

    def moved(self) -> tuple[int, int]:
        """Return the bytes received and sent so far, without TLS."""
        living = [*self._placed.values(), *self._nameless]
        received = self.counts.received + sum(each.received for each in living)
        return received, self.counts.sent + sum(each.sent for each in living)

    async def close(self) -> None:
        """End all connections."""
        await self._door.close()
        self._ending = True
        if self._alarm is not None:
            self._alarm.cancel()
        await self.answers.close()
        for connection in [*self._placed.values(), *self._nameless]:
            connection.drop()
        self._states.close()

    def _connection(self) -> Connection:
        made = Connection(self._admit, self._take, self._lost)
        if len(self._nameless) > self._seats:
            next(iter(self._nameless)).drop(BadFrame("too many without a place"))
        self._nameless[made] = None
        asyncio.get_running_loop().call_later(HANDSHAKE_S, self._hurry, made)
        return made

    def _hurry(self, connection: Connection) -> None:
        if connection.replica is None and not connection.closed:
            connection.drop(BadFrame("no place was shown in time"))

    def _refuse(self, why: Why) -> None:
        self.refused[why] += 1

    def _lost(self, connection: Connection, fault: BadFrame | None) -> None:
        self.counts.received += connection.received
        self.counts.sent += connection.sent
        self._nameless.pop(connection, None)
        replica = connection.replica
        if replica is not None and self._placed.get(replica) is connection:
            del self._placed[replica]
            self._wanting.pop(replica, None)
            self._gone_s[replica] = time.monotonic()
            self._look()
        if fault is not None:
            self._refuse(Why.MALFORMED)

    def _admit(self, connection: Connection, kind: Kind, message: Any, body_bytes: int) -> bool:
        """Before memory is taken for what follows a map; returns whether it is wanted at all."""
        if kind not in FROM_MEMBER:
            raise BadFrame(f"{kind.name} is no word of a member's")
        if connection.replica is None or kind in (Kind.WANT, Kind.ASK_LEFT, Kind.GOT):
            return True
        if not self._ordered(message, connection.replica):
            self._refuse(Why.IDENTITY)
            number = message.round if isinstance(message, Part) else 0
            self.answers.refuse(connection, message.generation, number, NOT_ORDERED)
            return False
        if not isinstance(message, Part):
            return True
        try:
            self._rounds.check(connection.replica, message, body_bytes)
        except Refusal as refusal:
            self.answers.refuse(connection, message.generation, message.round, str(refusal))
            return False
        return not self._answered(connection, message)  # what nobody counts needs no memory

    def _answered(self, connection: Connection, part: Part) -> bool:
        """Answer a part whose round is closed: it came too late, or comes again. Returns whether it is."""
        known = self._rounds.result_of(part)
        if known is not None:
            self.answers.tell(connection, known)
            return True
        if self._under_way is not None and self._rounds.closed(part):
            self.answers.answer(connection, self._under_way, part)
            return True
        return False

    def _ordered(self, message: Part | Piece, replica: int) -> bool:
        """Whether the hub has ordered what a member gives: nobody's word alone makes a round or a donor."""
        if isinstance(message, Part):
            named = (message.generation, message.round, message.version, message.adapters, message.members)
            return self._tickets.is_(message.ticket, self._tickets.of_round(*named, message.settled))
        return self._tickets.is_(message.ticket, self._tickets.of_donor(message.generation, replica))

    def _take(self, connection: Connection, frame: Frame) -> None:
        match frame.message:
            case Hello():
                self._greet(connection, frame.message)
            case Part():
                self._part(connection, frame.message, frame.body)
            case Verdict() if frame.kind is Kind.GOT:
                connection.got = (frame.message.generation, frame.message.round)
                connection.told.set()
            case Verdict():
                self.answers.owe(connection, self._tell_left(connection, frame.message))
            case Piece() if frame.kind is Kind.OFFER:
                self._offered(connection, frame.message, frame.body)
            case Piece() if connection.replica is not None:
                self._wanting[connection.replica] = frame.message.generation
                self._give()

    def _greet(self, connection: Connection, hello: Hello) -> None:
        shown = seat_key(self._secret, hello.replica, hello.ticket)
        held = 0 <= hello.replica < self._seats and hmac.compare_digest(shown.encode(), hello.seat.encode())
        if not held or hello.protocol != PROTOCOL:
            self._refuse(Why.IDENTITY)
            connection.drop()
            return
        self._nameless.pop(connection, None)
        before = self._placed.get(hello.replica)
        connection.replica = hello.replica
        self._placed[hello.replica] = connection
        self._gone_s.pop(hello.replica, None)
        if before is not None:
            before.drop()

    def _part(self, connection: Connection, part: Part, body: bytearray) -> None:
        if connection.replica is None:
            return
        try:  # another member's part may have come while this one's bytes did
            self._rounds.check(connection.replica, part, len(body))
        except Refusal as refusal:
            self.answers.refuse(connection, part.generation, part.round, str(refusal))
            return
        if not self._answered(connection, part) and self._rounds.take(
            connection.replica, part, body, time.monotonic()
        ):
            self._look()

    def _look(self) -> None:
        """Close the round that comes in if that is due, or look again when it is."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        closes_s, now_s = self._rounds.closes_s(self._gone_s), time.monotonic()
        if self._ending:
            return
        if closes_s <= now_s:
            self._under_way = UnderWay.begin()
            self.answers.later(self._finish(self._rounds.close(), self._under_way))
        elif closes_s < math.inf:
            self._alarm = asyncio.get_running_loop().call_later(closes_s - now_s + LATER_S, self._look)

    async def _finish(self, collected: Collecting, under_way: UnderWay) -> None:
        """Reduce a closed round. All that takes long runs in threads, one round at a time."""
        loop = asyncio.get_running_loop()

        def told(reduced: Reduced) -> None:
            under_way.reduced.set_result(reduced)
            # Whose part is still on its way gets it in answer to that.
            here = [self._placed[each] for each in collected.reporters_first() if each in self._placed]
            self.answers.later(self.answers.hand_out(here, under_way, collected.part, reduced.body.nbytes))

        async with self._reducing:
            settled = self._rounds.settle(collected)
            kept, behind = await loop.run_in_executor(
                None, self._reduce, collected, settled, lambda it: loop.call_soon_threadsafe(told, it)
            )
            self._rounds.finish(collected, kept)
            self.counts.rounds, self.counts.behind = self.counts.rounds + 1, behind
            if not kept.reduced.result.unusable:
                self._note(collected.part, bool(behind))
        under_way.kept.set_result(None)

    def _note(self, part: Part, lacking: bool) -> None:
        """Tell whoever would start another process what this one alone knows: before STANDS, or that could come too
        late."""
        before = dict(self._unwritten)
        if lacking:
            self._unwritten |= dict.fromkeys(part.adapters, key(part))
            self.answers.unwritten.add(key(part))
        else:
            self._unwritten.clear()  # this record says what is left of every adapter
            self.answers.unwritten.clear()
        if self._unwritten != before:
            self._tell(dict(self._unwritten))

    def _reduce(self, collected: Collecting, settled: Settled, tell: Callable[[Reduced], object]) -> tuple[Kept, str]:
        """Reduce a round and write it down, in a thread; returns it, and why it is not on the disk.

        A full disk stops nobody, as with the hub's journal: what is not on it is in memory.
        """
        reduced, mean = self._rounds.reduce(collected)
        tell(reduced)  # sent while it is written: the disk's time is the network's. It counts nowhere before STANDS
        kept = Kept(collected.part, reduced, () if mean is None else left_by(collected.part, mean))
        try:
            self._books.settle(settled) if mean is None else self._books.write(kept, settled)
        except OSError as error:
            return kept, error.strerror or str(error)
        return kept, ""

    async def _tell_left(self, connection: Connection, asked: Verdict) -> None:
        """For a checkpoint: what is left over after a round that the asker knows to be committed."""
        left = self._rounds.left_after(asked.round)
        if left is None:
            await connection.send(Kind.REFUSED, Verdict(asked.generation, asked.round, GONE_ON))
            return
        rows = left_rows(left, self._adapters)
        if not rows:
            await connection.send(Kind.LEFT, Piece(asked.generation))
        total, offset = sum(len(row) for row in rows), 0
        for row in rows:  # no copy of it: whoever asks often and reads slowly takes no memory
            for start in range(0, len(row), CHUNK):
                body = row[start : start + CHUNK]
                await connection.send(Kind.LEFT, Piece(asked.generation, offset, total), body)
                offset += len(body)

    def _offered(self, connection: Connection, piece: Piece, body: bytearray) -> None:
        try:
            whole = self._states.offer(piece, body, self._rounds.most_state)
        except OSError as error:
            self.answers.refuse(connection, piece.generation, 0, f"the hub's disk: {error.strerror}")
            return
        if whole:
            self.answers.owe(connection, connection.send(Kind.STANDS, Verdict(piece.generation, 0)))
            self._give()

    def _give(self) -> None:
        """Hand the state to whoever has asked for it."""
        if not self._states.whole:
            return
        for replica in [each for each, wanted in self._wanting.items() if wanted == self._states.generation]:
            del self._wanting[replica]
            connection = self._placed[replica]
            self.answers.owe(connection, self._hand_out(connection, self._states.generation, self._states.total))

    async def _hand_out(self, connection: Connection, generation: int, total: int) -> None:
        offset = 0
        while offset < total and self._states.whole and self._states.generation == generation:
            body = self._states.read(offset)
            await connection.send(Kind.STATE, Piece(generation, offset, total), body)
            offset += len(body)
        if offset < total and connection.replica is not None and not connection.closed:
            self._wanting.setdefault(connection.replica, generation)  # the donor was cut off, and gives it again
            self._give()
