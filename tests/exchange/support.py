"""What the exchange's tests share: an exchange in a thread of this process, its members, and parts for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tsugi_kpool.codec import header
from tsugi_kpool.codec.coding import Floats, encode
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.hub.tickets import Tickets
from tsugi_kpool.core.rounds.closing import Quorum
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.errors import TsugiError
from tsugi_kpool.exchange.books import Unwritten
from tsugi_kpool.exchange.certificates import (
    member_context,
    member_credentials,
    server_context,
    server_credentials,
)
from tsugi_kpool.exchange.client import ExchangeClient, Place
from tsugi_kpool.exchange.frames import Part, Result
from tsugi_kpool.exchange.reduction import Left, opened
from tsugi_kpool.exchange.rounds import EVERYBODY
from tsugi_kpool.exchange.server import Exchange

HUB, MEMBERS, RUN = "the hub's secret", "the members' secret", "a run"
TICKETS = Tickets(RUN, HUB)
SIZE, ADAPTERS = 300, 8
WAIT_S = 60.0


class Running:
    """An exchange in a thread of its own. `kill` ends it as a signal would: nothing is said, nothing is finished."""

    def __init__(
        self,
        folder: Path,
        seats: int,
        port: int = 0,
        begin: dict[int, Left] | None = None,
        adapters: int = ADAPTERS,
        quorum: Quorum = EVERYBODY,
        lost: Unwritten | None = None,
    ) -> None:
        self.unwritten: Unwritten = lost or {}
        self._started: Future[int] = Future()
        self._ended = asyncio.Event()
        self._folder, self._seats, self._port, self._left = folder, seats, port, begin
        self._adapters, self._quorum = adapters, quorum
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        self.port = self._started.result(WAIT_S)

    async def _run(self) -> None:
        try:
            self.loop = asyncio.get_running_loop()
            context = server_context(server_credentials(HUB), member_credentials(MEMBERS).certificate)
            own = (self._folder, self._seats, self._adapters, RUN, self._left, self._quorum)
            self.exchange = Exchange(HUB, context, *own, self.unwritten, self._told)
            port = self.exchange.open("127.0.0.1", self._port)
        except TsugiError as error:
            self._started.set_exception(error)
            return
        self._started.set_result(port)
        await self._ended.wait()
        await self.exchange.close()

    def _told(self, unwritten: Unwritten) -> None:
        self.unwritten = unwritten

    def kill(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(WAIT_S)


@contextmanager
def running(
    folder: Path,
    seats: int = 3,
    port: int = 0,
    begin: dict[int, Left] | None = None,
    quorum: Quorum = EVERYBODY,
    lost: Unwritten | None = None,
) -> Iterator[Running]:
    made = Running(folder, seats, port, begin, quorum=quorum, lost=lost)
    try:
        yield made
    finally:
        made.kill()


def member(port: int, replica: int, timeout_s: float = WAIT_S, **changes: Any) -> ExchangeClient:
    """A member of the run, or somebody who says so."""
    secret, seat = changes.get("secret", MEMBERS), changes.get("seat", seat_key(HUB, replica))
    context = member_context(member_credentials(secret), server_credentials(changes.get("hub", HUB)).certificate)
    return ExchangeClient(Place("127.0.0.1", port, replica, seat), context, timeout_s)


def part(round: int = 1, members: Sequence[int] = (0, 1, 2), **changes: Any) -> Part:
    values = {
        "generation": 1,
        "round": round,
        "version": round - 1,
        "adapters": (0, 2),
        "members": tuple(members),
        "size": SIZE,
        "payload": "int8",
        "settled": round - 1,
    }
    values |= changes
    ordered = {name: values[name] for name in ("generation", "round", "version", "adapters", "members")}
    return Part(**{"ticket": TICKETS.of_round(**ordered, shared=values["settled"]), **values})


def donate(client: ExchangeClient, generation: int, state: bytes) -> None:
    """The hub has named this member the donor."""
    client.give(generation, state, TICKETS.of_donor(generation, client._place.replica))


def delta(replica: int, round: int = 1, rows: int = 2) -> Floats:
    """What a member has changed: always the same numbers."""
    return np.random.default_rng([replica, round]).standard_normal((rows, SIZE)).astype(np.float32)


def body(values: Floats, tokens: int = 10, payload: Payload = Payload.INT8, norm2: float = 0.0) -> bytes:
    rows = len(values)
    head = header.header([tokens] * rows, [2] * rows, [norm2] * rows, 0.1)
    return head.tobytes() + encode(values, payload).tobytes()


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Everybody's results, of calls that wait for each other."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result(WAIT_S) for each in [pool.submit(call) for call in calls]]


def round_of(clients: Sequence[ExchangeClient], number: int, **changes: Any) -> list[tuple[Result, bytearray]]:
    """A round of these members, each of which ships `delta`."""
    members = tuple(range(len(clients)))
    said = part(number, members, **changes)

    def ship(replica: int) -> Callable[[], tuple[Result, bytearray]]:
        return lambda: clients[replica].reduce(said, body(delta(replica, number)))

    return together(*(ship(replica) for replica in members))


def mean_of(said: Part, answer: tuple[Result, bytes | bytearray]) -> Floats:
    return opened(said, answer[0], np.frombuffer(answer[1], np.uint8))[1]
