"""Who gets in: the exchange's listening socket. What strangers can cost is bounded here, and counted."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.errors import MachineError

from .connection import Connection

HANDSHAKE_S = 5.0
"""Deadline for showing a certificate, and again for showing a place."""
MOST_HANDSHAKES = 128
"""At once. One more ends the oldest: an honest one takes a round trip or two, silence all of its deadline."""
KEEPALIVE = ((socket.SO_KEEPALIVE, 1),)
KEEPALIVE_TCP = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_NODELAY", 1))
"""A router on the way keeps the connection in its tables, and a cut one is noticed."""
NO_CERTIFICATE = ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "CERTIFICATE_VERIFY_FAILED", "CERTIFICATE_REQUIRED")


class Doorkeeper:
    """Accepts connections, and hands on those that have shown a member's certificate. `open`, `close`.

    Args:
        context: The exchange's side of TLS.
        make: Makes the protocol of a connection.
        refused: Told of everyone who is not let in.
    """

    def __init__(
        self, context: ssl.SSLContext, make: Callable[[], Connection], refused: Callable[[Kind], None]
    ) -> None:
        self._context, self._make, self._refused = context, make, refused
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self._accepting: asyncio.Task[None] | None = None

    def open(self, bind: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            MachineError: this address cannot be listened at.
        """
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((bind, port))
            self._socket.listen(MOST_HANDSHAKES)
        except OSError as error:
            self._socket.close()
            raise MachineError(f"the exchange cannot listen on {bind}:{port}: {error.strerror}") from error
        self._socket.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())
        return int(self._socket.getsockname()[1])

    async def close(self) -> None:
        tasks = [*self._handshakes, *([self._accepting] if self._accepting is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except OSError:  # it has gone again, or there are no descriptors left: a handshake's end frees one
                await asyncio.sleep(0.05)
                continue
            tune(connection)
            if len(self._handshakes) >= MOST_HANDSHAKES:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
            task = loop.create_task(self._handshake(connection))
            self._handshakes[task] = None
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))
            await asyncio.sleep(0)  # it begins, and the others have their turn: an accept alone may never wait

    async def _handshake(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                self._make, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except asyncio.CancelledError:
            connection.close()
            self._refused(Kind.FLOOD)
            raise
        except ssl.SSLError as error:
            self._refused(Kind.KEY if error.reason in NO_CERTIFICATE else Kind.HANDSHAKE)
        except OSError:  # silence, too: ConnectionAbortedError, TimeoutError
            self._refused(Kind.HANDSHAKE)


def tune(connection: socket.socket) -> None:
    """Set the options of a connection, at both of its ends; what a system does not have is left out."""
    with suppress(OSError):
        for option, value in KEEPALIVE:
            connection.setsockopt(socket.SOL_SOCKET, option, value)
    for name, value in KEEPALIVE_TCP:
        with suppress(OSError, AttributeError):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
