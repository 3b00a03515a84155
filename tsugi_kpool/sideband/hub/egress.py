"""The egress of the hub's decisions: first to the journal, then to the replicas and the recorder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import zmq

from tsugi_kpool.core.effects import Keep, Send, Told
from tsugi_kpool.core.hub.outgoing import Answer, Frames, writing
from tsugi_kpool.core.hub.tickets import Tickets
from tsugi_kpool.core.messages import Ack, BadFrame, Message, encode

from .journal import Journal

__all__ = ["Answer", "Egress"]

ROUTE_FLAGS = zmq.NOBLOCK | zmq.SNDMORE
NOTHING = encode(Ack(0))


class Egress:
    """Owned by the hub's thread.

    Args:
        socket: The hub's ROUTER.
        tell: Called with all that the hub tells its owner; must not raise.
        journal: The write-ahead log; None for a hub that is never restarted.
        tickets: For a run with an exchange.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        tell: Callable[[Told], None],
        journal: Journal | None,
        tickets: Tickets | None = None,
    ) -> None:
        self._socket, self._tell, self._journal = socket, tell, journal
        self._routes: dict[int, bytes] = {}
        self._frames = Frames(tickets)
        self.unsent = 0

    def learn(self, replica: int, route: bytes) -> None:
        """Remember the route to this member."""
        self._routes[replica] = route

    def reaches(self, replica: int) -> bool:
        """Return whether this member's connection stands."""
        return self.stands(self._routes.get(replica, b""))

    def stands(self, route: bytes) -> bool:
        """Return whether the connection of this route stands, by sending it an acknowledgement of nothing."""
        try:
            self._socket.send(route, ROUTE_FLAGS)
            self._socket.send(NOTHING, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            return bool(error.errno == zmq.EAGAIN)  # it stands, and is full
        return True

    def carry_out(self, answers: Sequence[Answer], at_s: float, now_s: float) -> None:
        """Carry out what one turn of the hub has decided.

        The records that `writing` names are on the medium before anything is sent.

        Args:
            answers: In the order of the decisions.
            at_s: Seconds since the run began.
            now_s: Our monotonic clock.
        """
        if self._journal is not None:
            # Write-ahead: a hub that restarts without a record would decide anew, against members that already act on
            # the old decision.
            self._write_down(self._journal, answers, at_s, now_s)
        for effect, route in answers:
            if isinstance(effect, Send):
                self.send(effect.message, route if route is not None else self._routes.get(effect.replica))
            elif not isinstance(effect, Keep):
                self._tell(effect)

    def _write_down(self, journal: Journal, answers: Sequence[Answer], at_s: float, now_s: float) -> None:
        due = writing(answers, journal.waiting)
        if due.records:
            journal.note(list(due.records), at_s)
        if due.flush:
            journal.flush(now_s)

    def send(self, message: Message, route: bytes | None) -> None:
        """Send without waiting; what cannot be sent now counts as lost, and is repeated later."""
        if route is None:
            return
        try:
            frame = self._frames.of(message)
            self._socket.send(route, ROUTE_FLAGS)
            self._socket.send(frame, zmq.NOBLOCK)
        except (zmq.ZMQError, BadFrame):
            self.unsent += 1
