"""Talks to a running hub without being a replica: asks for the fleet's status, or for a place in it."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

import zmq

from tsugi_kpool.core.messages import FleetStatus, Message, Refused, StatusRequest, encode
from tsugi_kpool.core.messages.bounds import sound
from tsugi_kpool.errors import LaunchError, SidebandError

from .addresses import split
from .incoming import MOST_IN_A_ROW, decoded, one_line
from .keys import RunKeys
from .sockets import link_socket, nobody_listens

T = TypeVar("T", bound=Message)
ASK_AGAIN_S = 1.0
"""A question is sent again when it has had no answer for so long."""
REFUSED = "has refused: "
HANDSHAKE_S = 2.0
"""Timeout of the connection that finds out whether the keys are right."""
PROBE_S = 1.0
"""Timeout of the plain connection that finds out why there was no answer."""


class Observer:
    """One connection to a hub. A context manager, for one thread.

    Args:
        keys: A member's or an observer's, with the hub's address.
    """

    def __init__(self, keys: RunKeys) -> None:
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = link_socket(self._context, keys)

    def send(self, message: Message) -> None:
        """Send without waiting; a message that cannot be sent now is lost."""
        try:
            self._dealer.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return

    def receive(self, timeout_s: float) -> Message | None:
        """Return the next message of the hub; None when none comes in time. Malformed and impossible ones are
        dropped."""
        message = self._next(timeout_s)
        return message if message is not None and sound(message) else None

    def _next(self, timeout_s: float) -> Message | None:
        """Return the next message, whatever its values."""
        deadline_s = time.monotonic() + timeout_s
        for _ in range(MOST_IN_A_ROW):
            left_s = max(0.0, deadline_s - time.monotonic())
            if not self._dealer.poll(int(left_s * 1000)):
                break
            if (message := decoded(self._dealer.recv_multipart())) is not None:
                return message
        return None

    def ask(self, question: Message, kind: type[T], timeout_s: float) -> T:
        """Ask a question until an answer of this kind comes. It is repeated every second: a new hub has not heard it.

        Raises:
            SidebandError: none comes in time.
            LaunchError: the hub has refused, or has answered what cannot be.
        """
        deadline_s, asked_s = time.monotonic() + timeout_s, -math.inf
        while (left_s := deadline_s - time.monotonic()) > 0:
            if deadline_s - left_s - asked_s >= ASK_AGAIN_S:
                asked_s = deadline_s - left_s
                self.send(question)
            message = self._next(min(left_s, ASK_AGAIN_S))
            if isinstance(message, kind):
                if not sound(message):
                    raise LaunchError(f"the hub at {self._keys.address} answers with numbers that cannot be")
                return message
            if isinstance(message, Refused):
                raise LaunchError(f"the hub at {self._keys.address} {REFUSED}{one_line(message.reason)}")
        raise SidebandError(f"no hub answers at {self._keys.address}: {_why(self._keys)}")

    def close(self) -> None:
        """End the connection."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def answering(keys: RunKeys, addresses: Sequence[str], timeout_s: float) -> RunKeys:
    """Return the keys with the first of these addresses at which their hub answers.

    Args:
        keys: A member's or an observer's.
        addresses: tcp://host:port, tried in turn; one alone is taken as it is.
        timeout_s: For each.

    Raises:
        SidebandError: it answers at none of them; why, for each.
    """
    if len(addresses) == 1:
        return replace(keys, address=addresses[0])
    reasons = []
    for address in addresses:
        found = replace(keys, address=address)
        try:
            if nobody_listens(address):  # a hub that is not there is not waited for
                raise SidebandError(f"no hub answers at {address}: {_why(found)}")
            ask_status(found, timeout_s)
        except SidebandError as error:
            reasons.append(str(error))
        else:
            return found
    raise SidebandError("\n".join(reasons))


def _why(keys: RunKeys) -> str:
    """Return why a hub does not answer, from an attempt to connect plainly, and one with these keys."""
    try:
        socket.create_connection(split(keys.address or ""), PROBE_S).close()
    except socket.gaierror:
        return "this host's name is not known"
    except OSError as error:
        return f"nobody listens there ({(error.strerror or str(error)).lower()})"
    if keys.curve and takes(keys):
        return "it takes these keys and then says nothing: it hangs, or the path drops large packets (MTU: try 1280)"
    return "something listens there, which has other keys than these, or hangs"


def takes(keys: RunKeys) -> bool:
    """Return whether a connection is made with these keys: then alone may a message be sent."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        return bool(link_socket(context, keys, immediate=True).poll(int(HANDSHAKE_S * 1000), zmq.POLLOUT))
    finally:
        context.destroy(linger=0)


def ask_status(keys: RunKeys, timeout_s: float = 3.0) -> FleetStatus:
    """Return the fleet's status.

    Raises:
        SidebandError: no hub answers at the keys' address in time.
    """
    with Observer(keys) as observer:
        return observer.ask(StatusRequest(), FleetStatus, timeout_s)
