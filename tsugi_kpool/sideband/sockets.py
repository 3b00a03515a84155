"""The options of all our sockets in one place, so that hub, link and observer agree."""

from __future__ import annotations

import socket as tcp

import zmq

from tsugi_kpool.core.messages import MAX_FRAME_BYTES
from tsugi_kpool.errors import SidebandError

from .addresses import needs_ipv6, split
from .keys import RunKeys

HANDSHAKE_S = 5.0
"""Deadline for a connection to show a key."""
ZAP_DOMAIN = b"tsugi"
HEARTBEAT_MS = 3_000
"""Period of ZeroMQ's own heartbeats. They alone find a connection that was cut without notice."""
GIVE_UP_MS = 10_000
"""Timeout of these heartbeats: then the connection is dropped and made anew. No run ends by that."""

UNREAD_BYTES = 1 << 24
"""What the hub has not read of a connection takes so much memory at most, if all its frames are as long as they may
be: ZeroMQ counts frames. What is more waits at its sender."""
CONNECT_MS = 3_000
"""Timeout of an attempt to connect: after a cut the kernel would wait for up to a minute."""


PROBE_S = 0.5
"""Timeout of a plain connection; to a machine in reach it takes less."""


def nobody_listens(address: str) -> bool:
    """Return whether the machine at this address (tcp://host:port) says that nobody listens there. Waits up to
    PROBE_S."""
    try:
        tcp.create_connection(split(address), PROBE_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False  # cut off, or too busy: it may well be there
    return False


def _common(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 1000)
    socket.setsockopt(zmq.RCVHWM, 1000)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, int(HANDSHAKE_S * 1000))
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)


def hub_socket(context: zmq.Context[zmq.Socket[bytes]], keys: RunKeys, asks: bool = False) -> zmq.Socket[bytes]:
    """Return a ROUTER that admits only holders of the run's keys (CURVE and ZAP), or anybody where there are none.

    Args:
        context: Of the hub.
        keys: The run's.
        asks: Whether it asks silent links if they are there, and closes those that do not answer. The links' own
            HEARTBEAT_TTL does not bring that about: the connection of a frozen one stood for 60 s.
    """
    socket = context.socket(zmq.ROUTER)
    _common(socket)
    socket.setsockopt(zmq.RCVHWM, UNREAD_BYTES // MAX_FRAME_BYTES)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if asks:
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, GIVE_UP_MS)
    if not keys.curve:
        return socket
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.hub_secret.encode())
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.hub_public.encode())
    # Without an enforced domain a hub whose authenticator has died would let everybody in.
    socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return socket


def link_socket(context: zmq.Context[zmq.Socket[bytes]], keys: RunKeys, immediate: bool = False) -> zmq.Socket[bytes]:
    """Return a DEALER connected to the hub of these keys; it goes on trying for as long as it lives.

    Args:
        context: Of the calling thread's sockets.
        keys: The run's keys, with the hub's address.
        immediate: Queue nothing while there is no connection: what is old when the hub comes back is not wanted.
    """
    socket = context.socket(zmq.DEALER)
    _common(socket)
    socket.setsockopt(zmq.IMMEDIATE, int(immediate))
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, GIVE_UP_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, GIVE_UP_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    if keys.curve:
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.hub_public.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.member_public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.member_secret.encode())
    if keys.address is None:
        raise SidebandError("these keys do not say where the hub listens: it has not begun to, or never will")
    socket.setsockopt(zmq.IPV6, needs_ipv6(keys.address))
    socket.connect(keys.address)
    return socket
