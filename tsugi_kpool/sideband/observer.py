"""Ask a running hub for its status, from any process that may read the run's keys."""

from __future__ import annotations

import time

import zmq

from tsugi_kpool.core.messages import BadFrame, FleetStatus, StatusRequest, decode, encode
from tsugi_kpool.errors import SidebandError

from .keys import RunKeys
from .sockets import link_socket


def ask_status(keys: RunKeys, timeout_s: float = 3.0) -> FleetStatus:
    """One question, one answer.

    Raises:
        SidebandError: no hub answers at the keys' address in time.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        dealer = link_socket(context, keys)
        dealer.send(encode(StatusRequest()))
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not dealer.poll(int(left_s * 1000)):
                break
            try:
                message = decode(dealer.recv())
            except BadFrame:
                continue
            if isinstance(message, FleetStatus):
                return message
        raise SidebandError(f"no hub answers at {keys.address}")
    finally:
        context.destroy(linger=0)
