"""The ingress: frames are counted, decoded, and let through by key; anything else is dropped."""

from __future__ import annotations

from typing import NamedTuple

import zmq

from tsugi_kpool.core.bucket import Bucket
from tsugi_kpool.core.hub.priority_queue import Heard
from tsugi_kpool.core.hub.refusals import Kind, Refusals
from tsugi_kpool.core.messages import BadFrame, Message, StatusRequest, StopRun, decode
from tsugi_kpool.sideband.keys import Role, RunKeys

from .rejected_connections import RejectedConnections

MAX_BATCH = 200
"""Messages handled in one turn: their answers are sent at its end."""
FLOOD_PER_S, FLOOD_BURST = 200.0, 1000.0
"""Rate limit of a connection. A link sends 10 messages a second, and 50 while a group forms."""
BYTES_PER_S, BYTES_BURST = float(1 << 24), float(1 << 24)
"""The same in bytes, 16 MiB: a frame may be long. Who gives a checkpoint sends 6 MB a second, and nobody more."""
MAX_IDLE_S = 60.0
"""A connection that has been silent for this long is forgotten; its next message makes a new record."""


ONLY: dict[Role, tuple[type[Message], ...]] = {
    Role.OBSERVER: (StatusRequest,),
    Role.OWNER: (StatusRequest, StopRun),
}
"""Messages that holders of these keys may send."""


class Limits(NamedTuple):
    """The rate limits of one connection, in frames and in bytes."""

    per_s: float = FLOOD_PER_S
    burst: float = FLOOD_BURST
    bytes_per_s: float = BYTES_PER_S
    bytes_burst: float = BYTES_BURST


class Passed(NamedTuple):
    """What a connection may send at present."""

    frames: Bucket
    bytes: Bucket

    def takes(self, now_s: float, size: int) -> bool:
        """Return whether one more frame of so many bytes may pass now."""
        return self.frames.takes(now_s) and self.bytes.takes(now_s, size)


USUAL = Limits()


class Ingress:
    """Owned by the hub's thread."""

    def __init__(self, socket: zmq.Socket[bytes], keys: RunKeys, refusals: Refusals, limits: Limits) -> None:
        self._socket, self._refusals, self._limits = socket, refusals, limits
        self._roles = keys.roles() if keys.curve else None
        self._buckets: dict[bytes, Passed] = {}
        self._swept_s = 0.0
        self._rejected = RejectedConnections(socket)

    def receive(self, now_s: float) -> list[Heard]:
        """Return the messages that have arrived and may pass. At most MAX_BATCH frames: a flood cannot keep the hub
        from its work."""
        heard = []
        for _ in range(MAX_BATCH):
            try:
                route = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            found = self._open(route, self._part(), now_s)
            if isinstance(found, Kind):
                self._refusals.add(found)
            else:
                heard.append(Heard(route, found))
        return heard

    def _part(self) -> zmq.Frame | None:
        """Return the part after a route; None when there are several, which no program of ours sends."""
        frame = self._socket.recv(copy=False)
        if not frame.more:
            return frame
        while self._socket.recv(copy=False).more:
            pass
        return None

    def look_around(self, now_s: float) -> None:
        """Count the rejected connections, and forget connections that have gone."""
        for kind in self._rejected.seen(now_s):
            self._refusals.add(kind)
        if now_s - self._swept_s > MAX_IDLE_S:
            self._swept_s = now_s
            self._buckets = {r: b for r, b in self._buckets.items() if now_s - b.frames.seen_s <= MAX_IDLE_S}

    def knows(self, route: bytes) -> bool:
        """Return whether this connection has been heard lately."""
        return route in self._buckets

    def _open(self, route: bytes, frame: zmq.Frame | None, now_s: float) -> Message | Kind:
        # The rate limit comes before decoding, which is the work that a flood would make.
        passed = self._buckets.get(route)
        if passed is None:
            per_s, burst, bytes_per_s, bytes_burst = self._limits
            passed = Passed(Bucket(per_s, burst, seen_s=now_s), Bucket(bytes_per_s, bytes_burst, seen_s=now_s))
            self._buckets[route] = passed
        if not passed.takes(now_s, 0 if frame is None else len(frame)):
            return Kind.FLOOD
        if frame is None:
            return Kind.MALFORMED
        try:
            message = decode(frame.bytes)
        except BadFrame:
            return Kind.MALFORMED
        return message if self._may_send(frame, message) else Kind.ROLE

    def _may_send(self, frame: zmq.Frame, message: Message) -> bool:
        """Return whether the key of the connection that the frame came over allows this message.

        ZeroMQ asks for a key once, when a connection is made; here it is asked for every frame.
        """
        if self._roles is None:
            return True
        role = self._roles.get(str(frame.get("User-Id")))
        if role is Role.MEMBER:
            return not isinstance(message, StopRun)
        return role is not None and isinstance(message, ONLY[role])


class Admission:
    """Answers ZAP's question for every new connection: is this (Z85) one of the run's keys?"""

    def __init__(self, roles: dict[str, Role]) -> None:
        self._admitted = {key.encode() for key in roles}

    def callback(self, _domain: str, key: bytes) -> bool:
        return key in self._admitted
