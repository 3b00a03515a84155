"""One connection of the exchange: frames in, frames out, both bounded. The server decides what follows from them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .frames import HEADER, BadFrame, Kind, Map, decode, encode, header

SLICE = 1 << 18
"""Bytes that are handed to TLS at a time: what waits in memory for a slow member is little more."""
QUEUED = 4 * SLICE
UNSENT = getattr(socket, "TCP_NOTSENT_LOWAT", None)
"""The system keeps no more than this of what it cannot send yet; not every system has it."""


@dataclass(frozen=True)
class Frame:
    """A whole frame."""

    kind: Kind
    message: Any
    body: bytearray


class Connection(asyncio.BufferedProtocol):
    """A member's connection, after the handshake. Owned by the event loop.

    Args:
        admit: Called with each frame's map before memory is taken for its raw bytes; says whether they are wanted,
            and raises BadFrame.
        take: Called with each whole frame; raises BadFrame.
        lost: Called once when the connection has ended, with what was wrong with it.
    """

    def __init__(
        self,
        admit: Callable[[Connection, Kind, Any, int], bool],
        take: Callable[[Connection, Frame], None],
        lost: Callable[[Connection, BadFrame | None], None],
    ) -> None:
        self._admit, self._take, self._lost = admit, take, lost
        self._transport: asyncio.Transport | None = None
        self.replica: int | None = None
        """Whose it is; None until it has shown its place."""
        self.since_s = time.monotonic()
        self.received = self.sent = 0
        self.got: tuple[int, int] = (0, 0)
        """Generation and round of the newest result that it says it has."""
        self.told = asyncio.Event()
        """Set when it has said so, and when it has ended."""
        self.mute = False
        """Whether it has not said so in time: then nobody waits for it the next time."""
        self.owed = 0
        """Answers that it has asked for, and that have not left."""
        self._fault: BadFrame | None = None
        self._kind, self._message = Kind.HELLO, None
        self._begin(HEADER.size, self._on_header)
        self._writable = asyncio.Event()
        self._writable.set()
        self._sending = asyncio.Lock()

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
            transport.set_write_buffer_limits(QUEUED)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        self._writable.set()
        self.told.set()
        self._lost(self, self._fault)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        self._filled += nbytes
        try:
            while self._filled == len(self._buffer) and not self.closed:
                self._then()
        except BadFrame as error:
            self.drop(error)

    def drop(self, fault: BadFrame | None = None) -> None:
        """End the connection at once; what was wrong with it is counted."""
        self._fault = self._fault or fault
        if self._transport is not None:
            self._transport.abort()

    def in_turn(self) -> None:
        """From now on what is sent leaves nearly as it is given: so a result has nearly left when `send` returns."""
        if self._transport is None:
            return
        self._transport.set_write_buffer_limits(SLICE // 2)
        kept = self._transport.get_extra_info("socket")
        if kept is not None and UNSENT is not None:
            with suppress(OSError):
                kept.setsockopt(socket.IPPROTO_TCP, UNSENT, SLICE // 2)

    async def has(self, round: tuple[int, int]) -> None:
        """Return when it says that it has the result of this generation and round, or has ended."""
        while self.got < round and not self.closed:
            self.told.clear()
            await self.told.wait()

    async def send(self, kind: Kind, message: Map, body: memoryview | bytes = b"") -> None:
        """Send a frame; returns when all but a little has left. To a connection that has ended nothing is sent."""
        async with self._sending:
            await self._write(encode(kind, message, len(body)))
            for start in range(0, len(body), SLICE):
                await self._write(body[start : start + SLICE])

    async def _write(self, data: memoryview | bytes) -> None:
        await self._writable.wait()
        if self._transport is not None and not self._transport.is_closing():
            self.sent += len(data)
            self._transport.write(data)

    def _begin(self, size: int, then: Callable[[], None]) -> None:
        self._buffer = bytearray(size)
        self._view, self._filled, self._then = memoryview(self._buffer), 0, then

    def _on_header(self) -> None:
        self._kind, map_bytes, self._body_bytes = header(bytes(self._buffer))
        if (self.replica is None) != (self._kind is Kind.HELLO):
            raise BadFrame(f"{self._kind.name} before or after the place was shown")
        self._begin(map_bytes, self._on_map)

    def _on_map(self) -> None:
        self._message = decode(self._kind, bytes(self._buffer))
        if self._admit(self, self._kind, self._message, self._body_bytes):
            self._begin(self._body_bytes, self._on_body)
        else:
            self._skip()

    def _skip(self) -> None:
        """Read raw bytes that nobody wants, a little at a time."""
        size = min(self._body_bytes, SLICE)
        self._body_bytes -= size
        self._begin(size, self._skip) if size else self._begin(HEADER.size, self._on_header)

    def _on_body(self) -> None:
        frame = Frame(self._kind, self._message, self._buffer)
        self._begin(HEADER.size, self._on_header)
        self._take(self, frame)
