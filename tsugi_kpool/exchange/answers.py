"""What the exchange sends to members: results in turns, receipts, refusals. Each answer is a task that this owns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from tsugi_kpool.core.hub.tickets import Tickets

from .books import Kept
from .connection import Connection
from .frames import BadFrame, Kind, Part, Verdict
from .reduction import Reduced, told_by
from .rounds import key
from .turns import Turn, Turns

RECEIPTS = 4
"""Receipts that are kept: of the newest rounds."""
MOST_OWED = 64
"""Answers that wait for one connection. An honest member waits for each before it asks again."""


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


class Answers:
    """Owns the tasks that answer members, in one event loop, until `close`.

    Args:
        tickets: What the hub checks a receipt with.
    """

    def __init__(self, tickets: Tickets) -> None:
        self._tickets, self.turns = tickets, Turns()
        self._receipts: dict[tuple[int, int], str] = {}
        self.unwritten: set[tuple[int, int]] = set()
        """Rounds that are not on the disk. They have no receipt, so that the hub commits them when all members have
        voted: then nobody needs their results from another process."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed = asyncio.Event()
        self.failure: BaseException | None = None
        """An error of ours: the process ends with it."""

    async def close(self) -> None:
        """End all that is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def refuse(self, connection: Connection, generation: int, round: int, reason: str) -> None:
        """Tell a member that what it has sent is not taken, and why."""
        self.owe(connection, connection.send(Kind.REFUSED, Verdict(generation, round, reason)))

    def tell(self, connection: Connection, known: Kept) -> None:
        """Send a result that is there, and that it stands."""
        self.owe(connection, self._tell(connection, known))

    def answer(self, connection: Connection, under_way: UnderWay, part: Part) -> asyncio.Task[None] | None:
        """Send a result as soon as there is one, and that it stands as soon as it does."""
        return self.owe(connection, self._answer(connection, under_way, part))

    def owe(self, connection: Connection, answer: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Answer later, but not whoever asks on and on and does not read: what waits for it is memory."""
        if connection.owed >= MOST_OWED:
            answer.close()
            connection.drop(BadFrame("it does not read what it asks for"))
            return None
        connection.owed += 1
        task = self.later(answer)
        task.add_done_callback(lambda _: _paid(connection))
        return task

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do this beside everything else."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self.failure is None:
            self.failure = error
            self.failed.set()

    async def hand_out(self, here: Sequence[Connection], under_way: UnderWay, part: Part, size: int) -> None:
        """Hand a result to members, in their turns.

        Args:
            here: Their connections; the first one has its turn first.
            under_way: The round.
            part: One of its parts.
            size: Bytes of the result.
        """
        if not here:
            return
        turn, began_s = self.turns.next(len(here), size), time.monotonic()
        slots = asyncio.Semaphore(turn.at_once)
        for each in here if turn.at_once < len(here) else ():
            each.in_turn()
        ended_s = await asyncio.gather(*(self._in_turn(each, under_way, part, slots, turn) for each in here))
        if found := [each for each in ended_s if each is not None]:
            self.turns.took(size, max(found) - began_s)

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
            answer = self.answer(connection, under_way, part)
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
            told = "" if key(part) in self.unwritten else told_by(part, reduced)
            self._receipts[key(part)] = self._tickets.of_result(generation, round, told) if told else ""
            for old in sorted(self._receipts)[:-RECEIPTS]:
                del self._receipts[old]
        await connection.send(Kind.STANDS, Verdict(generation, round, receipt=self._receipts.get(key(part), "")))


def _paid(connection: Connection) -> None:
    connection.owed -= 1
