"""Connections that were not let in, as far as ZeroMQ tells of them: wrong keys, other protocols, silence."""

from __future__ import annotations

import zmq
from zmq.utils.monitor import recv_monitor_message

from tsugi_kpool.core.refusals import Kind

KINDS: dict[int, Kind] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: Kind.KEY,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Kind.HANDSHAKE,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Kind.HANDSHAKE,
}
MOST = 1000
"""Events that are looked at in one turn."""


class Strangers:
    """Owned by the hub's thread."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        mask = 0
        for event in KINDS:
            mask |= event
        self._events = router.get_monitor_socket(mask)
        # ZeroMQ's own thread writes here and would wait for us at the mark.
        self._events.setsockopt(zmq.RCVHWM, 0)

    def seen(self) -> list[Kind]:
        """Those of which we have heard since the last call."""
        found: list[Kind] = []
        while len(found) < MOST and self._events.poll(0):
            found.append(KINDS[recv_monitor_message(self._events, zmq.NOBLOCK)["event"]])
        return found
