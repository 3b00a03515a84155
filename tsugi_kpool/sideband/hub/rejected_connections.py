"""Rejected connections, as ZeroMQ reports them: wrong keys, other protocols, no handshake."""

from __future__ import annotations

from collections import deque

import zmq
from zmq.utils.monitor import recv_monitor_message

from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.sideband.sockets import HANDSHAKE_S

FAILED: dict[int, Kind] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: Kind.KEY,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Kind.HANDSHAKE,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Kind.HANDSHAKE,
}
MOST = 1000
"""Events handled in one turn."""
GRACE_S = 1.0


class RejectedConnections:
    """Counts rejected connections. Owned by the hub's thread.

    The totals are right, but ZeroMQ does not say which connection it was. One that does not speak ZeroMQ ends without
    an event: it was accepted, and no handshake followed in time.
    """

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        mask = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
        for event in FAILED:
            mask |= event
        self._events = router.get_monitor_socket(mask)
        # ZeroMQ's own thread writes here and would wait for us at the mark.
        self._events.setsockopt(zmq.RCVHWM, 0)
        self._accepted_s: deque[float] = deque()

    def seen(self, now_s: float) -> list[Kind]:
        """Return the rejections since the last call."""
        found: list[Kind] = []
        for _ in range(MOST):
            if not self._events.poll(0):
                break
            event = recv_monitor_message(self._events, zmq.NOBLOCK)["event"]
            if event == zmq.EVENT_ACCEPTED:
                self._accepted_s.append(now_s)
                continue
            if self._accepted_s:
                self._accepted_s.popleft()
            if event in FAILED:
                found.append(FAILED[event])
        while self._accepted_s and now_s - self._accepted_s[0] > HANDSHAKE_S + GRACE_S:
            self._accepted_s.popleft()
            found.append(Kind.HANDSHAKE)
        return found
