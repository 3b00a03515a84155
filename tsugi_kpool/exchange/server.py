"""The exchange itself: collects a round's parts, reduces them, keeps the result, and hands it to all members."""

from __future__ import annotations

import asyncio
import hmac
import math
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugi_kpool.core.hub.refusals import Kind as Why
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.hub.tickets import Tickets
from tsugi_kpool.core.rounds.closing import REPORTERS, Quorum

from .books import Books, Kept
from .connection import Connection, Frame
from .doorkeeper import HANDSHAKE_S, Doorkeeper
from .frames import CHUNK, FROM_MEMBER, PROTOCOL, BadFrame, Hello, Kind, Part, Piece, Verdict
from .reduction import Left, Reduced, left_by, left_rows, told_by
from .rounds import EVERYBODY, Collecting, Refusal, Rounds, Settled, key
from .states import States
from .turns import Turn, Turns

LATER_S = 0.001
"""A timer may ring a little early."""
GONE_ON = "the fleet has gone on"
NOT_ORDERED = "the hub has ordered no such round, or another donor"
RECEIPTS = 4
"""Receipts that are kept: of the newest rounds."""
MOST_OWED = 64
"""Answers that wait for one connection. An honest member waits for each before it asks again."""


@dataclass
class Counts:
    """What has happened at the exchange since it began."""

    received: int = 0
    sent: int = 0
    rounds: int = 0
    behind: str = ""
    """Why the newest round is not on the disk; empty when it is."""


@dataclass(frozen=True)
class UnderWay:
    """A closed round on its way to its result."""

    reduced: asyncio.Future[Reduced]
    kept: asyncio.Future[None]
    """Done when the result is on the disk."""

    @staticmethod
    def begin() -> UnderWay:
        loop = asyncio.get_running_loop()
        return UnderWay(loop.create_future(), loop.create_future())


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
    ) -> None:
        self._secret, self._seats, self._tickets = secret, seats, Tickets(run, secret)
        self._adapters = adapters
        self._books = Books(folder)
        self._books.begin(begin or {})
        self._rounds = Rounds(*self._books.load(), adapters, quorum)
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
        self._tasks: set[asyncio.Task[None]] = set()
        self._reducing = asyncio.Lock()
        self._under_way: UnderWay | None = None
        self._turns = Turns()
        self._receipts: dict[tuple[int, int], str] = {}
        self.counts, self.refused = Counts(), Counter[str]()
        self.failed = asyncio.Event()
        self.failure: BaseException | None = None
        """An error of ours: the process ends with it."""

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
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
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
            verdict = Verdict(message.generation, number, NOT_ORDERED)
            self._owe(connection, connection.send(Kind.REFUSED, verdict))
            return False
        if not isinstance(message, Part):
            return True
        try:
            self._rounds.check(connection.replica, message, body_bytes)
        except Refusal as refusal:
            self._owe(connection, self._turn_away(connection, message, str(refusal)))
            return False
        return not self._answered(connection, message)  # what nobody counts needs no memory

    def _answered(self, connection: Connection, part: Part) -> bool:
        """Answer a part whose round is closed: it came too late, or comes again. Returns whether it is."""
        known = self._rounds.result_of(part)
        if known is not None:
            self._owe(connection, self._tell(connection, known))
            return True
        if self._under_way is not None and self._rounds.closed(part):
            self._owe(connection, self._answer(connection, self._under_way, part))
            return True
        return False

    def _ordered(self, message: Part | Piece, replica: int) -> bool:
        """Whether the hub has ordered what a member gives: nobody's word alone makes a round or a donor."""
        if isinstance(message, Part):
            named = (message.generation, message.round, message.version, message.adapters, message.members)
            return self._tickets.is_(message.ticket, self._tickets.of_round(*named, message.settled))
        return self._tickets.is_(message.ticket, self._tickets.of_donor(message.generation, replica))

    async def _turn_away(self, connection: Connection, part: Part, reason: str) -> None:
        await connection.send(Kind.REFUSED, Verdict(part.generation, part.round, reason))

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
                self._owe(connection, self._tell_left(connection, frame.message))
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
            self._owe(connection, self._turn_away(connection, part, str(refusal)))
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
            self._later(self._finish(self._rounds.close(), self._under_way))
        elif closes_s < math.inf:
            self._alarm = asyncio.get_running_loop().call_later(closes_s - now_s + LATER_S, self._look)

    async def _finish(self, collected: Collecting, under_way: UnderWay) -> None:
        """Reduce a closed round. All that takes long runs in threads, one round at a time."""
        loop = asyncio.get_running_loop()

        def told(reduced: Reduced) -> None:
            under_way.reduced.set_result(reduced)
            # Whose part is still on its way gets it in answer to that.
            self._later(self._hand_out_all(collected, under_way, reduced.body.nbytes))

        async with self._reducing:
            settled = self._rounds.settle(collected)
            kept, behind = await loop.run_in_executor(
                None, self._reduce, collected, settled, lambda it: loop.call_soon_threadsafe(told, it)
            )
            self._rounds.finish(collected, kept)
            self.counts.rounds, self.counts.behind = self.counts.rounds + 1, behind
        under_way.kept.set_result(None)

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

    async def _hand_out_all(self, collected: Collecting, under_way: UnderWay, size: int) -> None:
        """Hand a result to all whose parts are in it: those who tell the hub of it first."""
        part = collected.part
        reporters = set(sorted(collected.parts, key=part.members.index)[:REPORTERS])
        order = sorted(collected.parts, key=lambda member: member not in reporters)  # stable: who came first
        here = [self._placed[member] for member in order if member in self._placed]
        if not here:
            return
        turn, began_s = self._turns.next(len(here), size), time.monotonic()
        slots = asyncio.Semaphore(turn.at_once)
        for each in here if turn.at_once < len(here) else ():
            each.in_turn()
        ended_s = await asyncio.gather(*(self._in_turn(each, under_way, part, slots, turn) for each in here))
        if found := [each for each in ended_s if each is not None]:
            self._turns.took(size, max(found) - began_s)

    async def _in_turn(
        self, connection: Connection, under_way: UnderWay, part: Part, slots: asyncio.Semaphore, turn: Turn
    ) -> float | None:
        """Hand a result to one member when it is its turn; returns when it had it, if it has said so in time.

        The next one's turn comes when this one's has nearly left: a connection that has been still for a while takes
        some round trips to be fast again.
        """
        began_s = time.monotonic()
        async with AsyncExitStack() as stack:
            if not connection.mute:
                await stack.enter_async_context(slots)
                began_s = time.monotonic()
            answer = self._owe(connection, self._answer(connection, under_way, part))
            if answer is not None:
                await asyncio.wait((answer,), timeout=turn.patience_s)
        try:
            await asyncio.wait_for(connection.has(key(part)), max(0.0, began_s + turn.patience_s - time.monotonic()))
        except TimeoutError:
            connection.mute = True
            return None
        connection.mute = False
        return None if connection.closed else time.monotonic()

    async def _answer(self, connection: Connection, under_way: UnderWay, part: Part) -> None:
        """Send a result as soon as there is one, and that it stands as soon as it does."""
        reduced = await asyncio.shield(under_way.reduced)
        await connection.send(Kind.RESULT, reduced.result, reduced.body.data)
        await asyncio.shield(under_way.kept)
        await self._stands(connection, part, reduced)

    async def _tell(self, connection: Connection, known: Kept) -> None:
        await connection.send(Kind.RESULT, known.reduced.result, known.reduced.body.data)
        await self._stands(connection, known.part, known.reduced)

    async def _stands(self, connection: Connection, part: Part, reduced: Reduced) -> None:
        """Say that a result is on the disk, with what shows the hub what it says of everybody's parts."""
        generation, round = key(part)
        if key(part) not in self._receipts:
            told = told_by(part, reduced)
            self._receipts[key(part)] = self._tickets.of_result(generation, round, told) if told else ""
            for old in sorted(self._receipts)[:-RECEIPTS]:
                del self._receipts[old]
        await connection.send(Kind.STANDS, Verdict(generation, round, receipt=self._receipts.get(key(part), "")))

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
            reason = f"the hub's disk: {error.strerror}"
            self._owe(connection, connection.send(Kind.REFUSED, Verdict(piece.generation, 0, reason)))
            return
        if whole:
            self._owe(connection, connection.send(Kind.STANDS, Verdict(piece.generation, 0)))
            self._give()

    def _give(self) -> None:
        """Hand the state to whoever has asked for it."""
        if not self._states.whole:
            return
        for replica in [each for each, wanted in self._wanting.items() if wanted == self._states.generation]:
            del self._wanting[replica]
            connection = self._placed[replica]
            self._owe(connection, self._hand_out(connection, self._states.generation, self._states.total))

    async def _hand_out(self, connection: Connection, generation: int, total: int) -> None:
        offset = 0
        while offset < total and self._states.whole and self._states.generation == generation:
            body = self._states.read(offset)
            await connection.send(Kind.STATE, Piece(generation, offset, total), body)
            offset += len(body)
        if offset < total and connection.replica is not None and not connection.closed:
            self._wanting.setdefault(connection.replica, generation)  # the donor was cut off, and gives it again
            self._give()

    def _owe(self, connection: Connection, answer: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Answer later, but not whoever asks on and on and does not read: what waits for it is memory."""
        if connection.owed >= MOST_OWED:
            answer.close()
            connection.drop(BadFrame("it does not read what it asks for"))
            return None
        connection.owed += 1
        task = self._later(answer)
        task.add_done_callback(lambda _: _paid(connection))
        return task

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self.failure is None:
            self.failure = error
            self.failed.set()


def _paid(connection: Connection) -> None:
    connection.owed -= 1
