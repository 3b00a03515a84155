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

from .doorkeeper import tune
from .frames import CHUNK, HEADER, BadFrame, Hello, Kind, Map, Part, Piece, Result, Verdict, decode, encode, header

Got = TypeVar("Got")
CONNECT_S = 5.0
PAUSE_S = 0.2
"""Pause before a connection is tried again."""
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
        self.sent = self.received = 0
        """Bytes of frames, without TLS."""
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
        return self._persist(lambda: self._reduced(part, body))

    def give(self, generation: int, state: memoryview | bytes) -> None:
        """Hand over the fleet's state for the newcomers of a generation.

        Raises:
            ExchangeError: it was not taken in time.
        """

        def attempt() -> None:
            for start in range(0, len(state), CHUNK):
                body = state[start : start + CHUNK]
                self._send(Kind.OFFER, Piece(generation, start, len(state)), body)
            self._await_verdict(generation)

        self._persist(attempt)

    def want(self, generation: int) -> bytearray:
        """Return the state that a generation's donor has given.

        Raises:
            ExchangeError: it has not come in time.
        """
        return self._persist(lambda: self._wanted(generation))

    def _reduced(self, part: Part, body: memoryview | bytes) -> tuple[Result, bytearray]:
        self._send(Kind.PART, part, body)
        here, found = (part.generation, part.round), None
        while True:
            kind, message, raw = self._receive()
            if kind not in (Kind.RESULT, Kind.STANDS, Kind.REFUSED) or (message.generation, message.round) != here:
                continue  # of an earlier round or attempt
            if kind is Kind.REFUSED:
                raise ExchangeError(message.reason)
            if kind is Kind.RESULT:
                found = message, raw
            elif found is not None:
                return found

    def _await_verdict(self, generation: int) -> None:
        while True:
            kind, message, _ = self._receive()
            if isinstance(message, Verdict) and (message.generation, message.round) == (generation, 0):
                if kind is Kind.REFUSED:
                    raise ExchangeError(message.reason)
                return

    def _wanted(self, generation: int) -> bytearray:
        self._send(Kind.WANT, Piece(generation), b"")
        state = bytearray()
        while True:
            kind, message, raw = self._receive()
            if kind is not Kind.STATE or message.generation != generation:
                continue
            if message.offset == 0:
                state.clear()  # the donor has begun again
            if message.offset != len(state):
                raise BadFrame(f"a piece of a state at {message.offset}, not at {len(state)}")
            state += raw
            if len(state) >= message.total:
                return state

    def _persist(self, attempt: Callable[[], Got]) -> Got:
        """Try until it succeeds, with new connections, as long as there is time."""
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            try:
                if self._interrupted.is_set():
                    raise ExchangeError("it is not waited for any more")
                self._connect(deadline_s)
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
                if time.monotonic() >= deadline_s:
                    where = f"{self._place.host}:{self._place.port}"
                    raise ExchangeError(f"the exchange at {where} has not answered in time: {error}") from error
            self._interrupted.wait(PAUSE_S)

    def _connect(self, deadline_s: float) -> None:
        if self._socket is None:
            plain = socket.create_connection((self._place.host, self._place.port), CONNECT_S)
            try:
                tune(plain)
                self._socket = self._context.wrap_socket(plain)
            except BaseException:
                plain.close()
                raise
            self._send(Kind.HELLO, Hello(self._place.replica, self._place.seat, self._place.ticket), b"")
        self._socket.settimeout(max(0.1, deadline_s - time.monotonic()))

    @property
    def _live(self) -> ssl.SSLSocket:
        if self._socket is None:
            raise ConnectionError("the connection is closed")
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
