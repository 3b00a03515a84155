"""A member's side of the exchange: one connection outwards, made anew when it breaks. Blocking, for one thread."""

from __future__ import annotations

import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tsugi_kpool.codec.coding import coded_bytes

from .doorkeeper import tune
from .frames import (
    CHUNK,
    HEADER,
    MOST_STATE,
    BadFrame,
    Hello,
    Kind,
    Map,
    Part,
    Piece,
    Result,
    Verdict,
    decode,
    encode,
    header,
)
from .reduction import REST

Got = TypeVar("Got")
CONNECT_S = 5.0
PAUSE_S = 0.2
"""Pause before a connection is tried again."""
LEFT_S = 10.0
"""Deadline for what is left over: a checkpoint is whole without it, too."""
SLICE = 1 << 20
UNREADABLE = "the exchange does not speak as ours does: {}"


class ExchangeError(Exception):
    """The exchange cannot be reached in time, or has refused; the text says which."""


@dataclass(frozen=True)
class Place:
    """Where the exchange is, and whose member this is."""

    host: str
    port: int
    replica: int
    seat: str
    ticket: str = ""


class ExchangeClient:
    """Speaks for one member. `interrupt` may be called from any thread, all else from one.

    Args:
        place: Ours.
        context: Our side of TLS.
        timeout_s: Deadline of each round and each state.
    """

    def __init__(self, place: Place, context: ssl.SSLContext, timeout_s: float) -> None:
        self._place, self._context, self._timeout_s = place, context, timeout_s
        self._socket: ssl.SSLSocket | None = None
        self._interrupted = threading.Event()
        self._deadline_s = 0.0
        """Of what is tried now, however little comes at a time."""
        self.sent = self.received = 0
        """Bytes of frames, without TLS."""
        self.settled = 0
        """The newest round of the exchange that we know to be committed; 0: none."""
        self.receipt = ""
        """Of the newest result that stands: shows the hub what the exchange says of it."""
        self.incarnation, self.sequence = secrets.token_hex(8), 0
        """This process, and how many parts it has given."""

    def resume(self) -> None:
        """Go on after an `interrupt`."""
        self._interrupted.clear()

    def interrupt(self) -> None:
        """Make what waits fail at once, and all that follows until `resume`."""
        self._interrupted.set()
        current = self._socket
        if current is not None:
            try:
                socket.socket.shutdown(current, socket.SHUT_RDWR)  # below TLS, whose state is another thread's
            except OSError:
                return

    def close(self) -> None:
        current, self._socket = self._socket, None
        if current is not None:
            current.close()

    def reduce(self, part: Part, body: memoryview | bytes) -> tuple[Result, bytearray]:
        """Give our part of a round; returns what the round amounts to, once that is on the exchange's disk.

        Raises:
            ExchangeError: it has not come in time, or will not.
        """
        return self.reduce_with(part, body, lambda result, raw: (result, raw))

    def reduce_with(self, part: Part, body: memoryview | bytes, read: Callable[[Result, bytearray], Got]) -> Got:
        """Give our part of a round; returns what `read` makes of the result, once that is on the exchange's disk.

        Args:
            part: What it is a part of.
            body: Its bytes.
            read: Makes something of a result while the exchange still writes it; may be called again after a cut.

        Raises:
            ExchangeError: it has not come in time, or will not.
        """
        return self._persist(lambda: self._reduced(part, body, read))

    def give(self, generation: int, state: memoryview | bytes, ticket: str = "") -> None:
        """Hand over the fleet's state for the newcomers of a generation.

        Args:
            generation: Which one.
            state: Ours.
            ticket: The order's: we are the donor.

        Raises:
            ExchangeError: it was not taken in time.
        """

        def attempt() -> None:
            for start in range(0, len(state), CHUNK):
                body = state[start : start + CHUNK]
                self._send(Kind.OFFER, Piece(generation, start, len(state), ticket), body)
            self._await_verdict(generation)

        self._persist(attempt)

    def want(self, generation: int, most: int = MOST_STATE) -> bytearray:
        """Return the state that a generation's donor has given.

        Args:
            generation: Which one.
            most: Bytes that it can have.

        Raises:
            ExchangeError: it has not come in time, or has more.
        """
        return self._persist(lambda: self._wanted(generation, most))

    def left_over(self, generation: int, size: int, adapters: int, timeout_s: float = LEFT_S) -> bytearray:
        """Return what is left over after the newest round that we know to be committed, for a checkpoint: [N, bytes],
        coded; nothing when nothing is.

        Raises:
            ExchangeError: it has not come in time, or the exchange does not know it any more.
        """
        most = adapters * coded_bytes(size, REST)
        return self._persist(lambda: self._left(Verdict(generation, self.settled), most), timeout_s)

    def _left(self, asked: Verdict, most: int) -> bytearray:
        self._send(Kind.ASK_LEFT, asked, b"")
        whole = bytearray()
        while True:
            kind, message, raw = self._receive()
            if kind is Kind.REFUSED and (message.generation, message.round) == (asked.generation, asked.round):
                raise ExchangeError(message.reason)
            if kind is not Kind.LEFT or message.generation != asked.generation:
                continue
            if message.offset == 0:
                whole.clear()
            if message.offset != len(whole) or message.total not in (0, most):
                raise BadFrame(f"what is left over has {message.total} bytes, where the pool's has {most}")
            whole += raw
            if len(whole) >= message.total:
                return whole

    def _reduced(self, part: Part, body: memoryview | bytes, read: Callable[[Result, bytearray], Got]) -> Got:
        self._send(Kind.PART, part, body)
        here = (part.generation, part.round)
        found: list[Got] = []
        while True:
            kind, message, raw = self._receive()
            if kind not in (Kind.RESULT, Kind.STANDS, Kind.REFUSED) or (message.generation, message.round) != here:
                continue  # of an earlier round or attempt
            if kind is Kind.REFUSED:
                raise ExchangeError(message.reason)
            if kind is Kind.RESULT:
                self._send(Kind.GOT, Verdict(*here), b"")
                found = [read(message, raw)]
            elif found:
                self.receipt = message.receipt
                return found[0]

    def _await_verdict(self, generation: int) -> None:
        while True:
            kind, message, _ = self._receive()
            if isinstance(message, Verdict) and (message.generation, message.round) == (generation, 0):
                if kind is Kind.REFUSED:
                    raise ExchangeError(message.reason)
                return

    def _wanted(self, generation: int, most: int) -> bytearray:
        self._send(Kind.WANT, Piece(generation), b"")
        state = bytearray()
        while True:
            kind, message, raw = self._receive()
            if kind is not Kind.STATE or message.generation != generation:
                continue
            if message.offset == 0:
                state.clear()  # the donor has begun again
            if message.offset != len(state) or message.total > most:
                raise BadFrame(
                    f"a piece of a state of {message.total} bytes at {message.offset}, not at {len(state)}"
                )
            state += raw
            if len(state) >= message.total:
                return state

    def _persist(self, attempt: Callable[[], Got], timeout_s: float | None = None) -> Got:
        """Try until it succeeds, with new connections, as long as there is time."""
        self._deadline_s = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                if self._interrupted.is_set():
                    raise ExchangeError("it is not waited for any more")
                self._connect()
                return attempt()
            except ExchangeError:
                raise
            except BadFrame as error:
                self.close()
                raise ExchangeError(UNREADABLE.format(error)) from error
            except OSError as error:  # ssl's errors, too
                self.close()
                if self._interrupted.is_set():
                    raise ExchangeError("it is not waited for any more") from error
                if time.monotonic() >= self._deadline_s:
                    where = f"{self._place.host}:{self._place.port}"
                    raise ExchangeError(f"the exchange at {where} has not answered in time: {error}") from error
            self._interrupted.wait(PAUSE_S)

    def _connect(self) -> None:
        if self._socket is None:
            plain = socket.create_connection((self._place.host, self._place.port), CONNECT_S)
            try:
                tune(plain)
                self._socket = self._context.wrap_socket(plain)
            except BaseException:
                plain.close()
                raise
            self._send(Kind.HELLO, Hello(self._place.replica, self._place.seat, self._place.ticket), b"")

    @property
    def _live(self) -> ssl.SSLSocket:
        """The connection, with what is left of the time."""
        if self._socket is None:
            raise ConnectionError("the connection is closed")
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0.0:
            raise TimeoutError("not all of it has come in time")
        self._socket.settimeout(left_s)
        return self._socket

    def _send(self, kind: Kind, message: Map, body: memoryview | bytes) -> None:
        head = encode(kind, message, len(body))
        self._live.sendall(head)
        for start in range(0, len(body), SLICE):  # an interrupt between two slices is enough
            self._live.sendall(body[start : start + SLICE])
        self.sent += len(head) + len(body)

    def _receive(self) -> tuple[Kind, Any, bytearray]:
        kind, map_bytes, body_bytes = header(bytes(self._read(HEADER.size)))
        message = decode(kind, bytes(self._read(map_bytes)))
        body = self._read(body_bytes)
        self.received += HEADER.size + map_bytes + body_bytes
        return kind, message, body

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            got = self._live.recv_into(view[filled:])
            if not got:
                raise ConnectionResetError("the exchange has closed the connection")
            filled += got
        return data
