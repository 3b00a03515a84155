"""While a group forms: each member dials every other one, and tells the hub whom it cannot reach, where, and why.

Gloo would say so after its own deadline, without a name. A thread of its own, so that nobody waits for it; a group
that forms all the same is used (of two members it is enough that one reaches the other).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tsugi_kpool.core.messages import Generation, Unreached
from tsugi_kpool.core.replica import reach
from tsugi_kpool.core.replica.ports import Uplink
from tsugi_kpool.errors import TsugiError

from .group_sockets import mark

CONNECT_S, SAY_S = 3.0, 2.0
"""Timeouts of a connection, and of each answer over it: less than five seconds until the hub knows."""
HEAR_S = 2 * SAY_S
"""Who answers waits longer than who dials: that one is to see that nothing comes, not that we have closed."""
LISTEN_S = 20.0
"""Others may be later than we are: as long as a group forms. After it nobody is dialled any more."""
LOOK_S = 0.1
"""Period of looking for the others' addresses."""
MOST_DIALLED, MOST_AT_ONCE = 32, 64
"""Members that each dials, and connections that are heard at a time."""
REASON_CHARS = 200


class Reaching:
    """Owns the thread. `begin` for each generation, `stop` at the end; both by the aggregator's thread.

    Args:
        uplink: Where addresses are met, and failures told.
        replica: Our number.
        host: This machine's address, as the others reach it.
    """

    def __init__(self, uplink: Uplink, replica: int, host: str) -> None:
        self._uplink, self._replica, self._host = uplink, replica, host
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def begin(self, order: Generation) -> None:
        """Dial the other members of this generation."""
        self.stop()
        self._stopping = threading.Event()
        trial = _Trial(self._uplink, self._replica, order, self._stopping)
        self._thread = threading.Thread(target=trial.run, args=(self._host,), name="tsugi-reach", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=CONNECT_S)
        self._thread = None


class _Trial:
    """One generation's."""

    def __init__(self, uplink: Uplink, replica: int, order: Generation, stopping: threading.Event) -> None:
        self._uplink, self._replica, self._order, self._stopping = uplink, replica, order, stopping
        self._key = order.group_key or b"tsugi"
        self._heard = 0
        self._deadline_s = time.monotonic() + LISTEN_S

    def run(self, host: str) -> None:
        """Thread: listen and dial. What this machine does not let us do is no reason to end anything."""
        with suppress(OSError, TsugiError):
            asyncio.run(self._meet(host))

    async def _meet(self, host: str) -> None:
        server = await asyncio.start_server(self._listen, sock=_listener(host), limit=len(reach.FULL))
        async with server:
            at, port = server.sockets[0].getsockname()[:2]
            self._uplink.store_put(reach.key_of(self._order.generation, self._replica), f"{at} {port}".encode())
            dialling = [
                asyncio.create_task(self._try(other, at)) for other in _others(self._order.members, self._replica)
            ]
            while not self._over:
                await asyncio.sleep(LOOK_S)
            for each in dialling:
                each.cancel()
            await asyncio.gather(*dialling, return_exceptions=True)

    @property
    def _over(self) -> bool:
        return self._stopping.is_set() or time.monotonic() > self._deadline_s

    async def _try(self, other: int, ours: str) -> None:
        """Dial a member as soon as it says where."""
        key = reach.key_of(self._order.generation, other)
        while (said := self._uplink.store_get(key, 0.0)) is None:
            await asyncio.sleep(LOOK_S)
        found = reach.read_address(said, ours)
        if found is None:
            return
        host, port = found
        why = await twice(host, port, self._key, (self._order.generation, self._replica, other))
        if why and not self._stopping.is_set():
            at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            told = Unreached(0, 0, "", self._order.generation, other, at[:REASON_CHARS], why[:REASON_CHARS])
            self._uplink.report(told)

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a member; whoever is none is dropped."""
        self._heard += 1
        try:
            if self._heard <= MOST_AT_ONCE:
                await self._answer(reader, writer)
        except (OSError, EOFError, TimeoutError):
            pass
        finally:
            self._heard -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = await asyncio.wait_for(reader.readexactly(reach.HELLO_BYTES), HEAR_S)
        answer = reach.answer(self._key, self._order.generation, self._replica, said)
        if answer is None:
            return
        writer.write(answer)
        await asyncio.wait_for(reader.readexactly(len(reach.FULL)), HEAR_S)
        writer.write(reach.FULL)
        await asyncio.wait_for(reader.read(1), HEAR_S)  # until the other end has it all, and closes


async def dialled(host: str, port: int, key: bytes, who: tuple[int, int, int]) -> str:
    """Return why a member is not reached; empty: it is.

    Args:
        host: Where it says that it listens.
        port: The same.
        key: The generation's.
        who: Generation, our number, the member's.
    """
    try:
        reader, writer = await asyncio.wait_for(_connected(host, port), CONNECT_S)
    except TimeoutError:
        return reach.NO_ANSWER
    except ConnectionRefusedError:
        return reach.REFUSED
    except OSError as error:
        return (error.strerror or str(error)).lower()
    try:
        return await _said(reader, writer, key, who)
    except (OSError, EOFError):
        return reach.NO_WORD
    finally:
        writer.close()


async def _connected(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    made, address = _marked(host, port)
    try:
        await asyncio.get_running_loop().sock_connect(made, address)
        return await asyncio.open_connection(sock=made)
    except BaseException:
        made.close()
        raise


def _listener(host: str) -> socket.socket:
    made, address = _marked(host, 0)
    try:
        made.bind(address)
        made.listen()
    except OSError:
        made.close()
        raise
    return made


def _marked(host: str, port: int) -> tuple[socket.socket, Any]:
    """Return a socket that the group which forms meanwhile does not take for its own, because it closes before that
    does; and the address for it."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    mark(made)
    return made, address


async def twice(host: str, port: int, key: bytes, who: tuple[int, int, int]) -> str:
    """Return what `dialled` does; a connection that stands and is slow gets a second chance: machines may be busy."""
    why = await dialled(host, port, key, who)
    return await dialled(host, port, key, who) if why in (reach.NO_WORD, reach.TOO_LARGE) else why


async def _said(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, who: tuple[int, int, int]
) -> str:
    hello = reach.hello(key, *who, secrets.token_bytes(reach.NONCE_BYTES))
    writer.write(hello)
    try:
        said = await asyncio.wait_for(reader.readexactly(reach.PROOF_BYTES), SAY_S)
    except TimeoutError:
        return reach.NO_WORD
    if not secrets.compare_digest(said, reach.expected(key, hello)):
        return reach.STRANGER
    writer.write(reach.FULL)
    try:
        await asyncio.wait_for(reader.readexactly(len(reach.FULL)), SAY_S)
    except TimeoutError:
        return reach.TOO_LARGE
    return ""


def _others(members: Sequence[int], replica: int) -> list[int]:
    """Return whom a member dials: those behind it in their circle, not all of a large fleet."""
    place = members.index(replica)
    return [*members[place + 1 :], *members[:place]][:MOST_DIALLED]
