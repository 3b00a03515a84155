"""Where the hub's decisions leave it: first to the journal, then to the replicas and the recorder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zmq

from tsugi_kpool.core.effects import MICRO_STEP, Effect, Event, Keep, Progress, Send
from tsugi_kpool.core.hub import BEAT_ACK
from tsugi_kpool.core.messages import Ack, BadFrame, Fire, FleetStatus, Message, Stamps, encode
from tsugi_kpool.core.records import RoundLanded

from .journal import Journal

ROUTE_FLAGS = zmq.NOBLOCK | zmq.SNDMORE
NOTHING = encode(Ack(0))
TELEMETRY = frozenset({Stamps, FleetStatus})
"""Answers that say nothing of what has been decided."""
Answer = tuple[Effect, bytes | None]
"""An effect, and the route of the message that it answers (None: it answers none)."""


class Post:
    """Owned by the hub's thread.

    Args:
        socket: The hub's ROUTER.
        record: Called with (name, data) of every event; must not raise.
        journal: Where what must not be forgotten is written down; None for a hub that is never restarted.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], record: Callable[[str, dict[str, Any]], None], journal: Journal | None
    ) -> None:
        self._socket, self._record, self._journal = socket, record, journal
        self._routes: dict[int, bytes] = {}
        self._encoded: tuple[Message | None, bytes] = (None, b"")
        self.unsent = 0

    def learn(self, replica: int, route: bytes) -> None:
        """This member is reached by that route."""
        self._routes[replica] = route

    def reaches(self, replica: int) -> bool:
        """Whether this member's connection stands; it is sent an acknowledgement of nothing."""
        try:
            self._socket.send(self._routes.get(replica, b""), ROUTE_FLAGS)
            self._socket.send(NOTHING, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            return bool(error.errno == zmq.EAGAIN)  # it stands, and is full
        return True

    def carry_out(self, answers: Sequence[Answer], at_s: float, now_s: float) -> None:
        """Carry out what one turn of the hub has decided.

        All records of the turn are written down with one flush, before anything of it is sent. Landings, of which
        nothing follows before the last one or the next tick, wait for that.

        Args:
            answers: In the order of the decisions.
            at_s: Seconds since the run began.
            now_s: Our monotonic clock.
        """
        if self._journal is not None:
            self._write_down(self._journal, answers, at_s, now_s)
        for effect, route in answers:
            if type(effect) is Send:
                self.send(effect.message, route if route is not None else self._routes.get(effect.replica))
            elif type(effect) is Progress:
                self._record(MICRO_STEP, effect.data)
            elif type(effect) is Event:
                self._record(effect.name, effect.data)

    def _write_down(self, journal: Journal, answers: Sequence[Answer], at_s: float, now_s: float) -> None:
        kept = [effect.record for effect, _ in answers if type(effect) is Keep]
        if kept:
            journal.note(kept, at_s)
        elif not journal.waiting:
            return
        if any(type(each) is not RoundLanded for each in kept) or any(map(_follows, answers)):
            journal.flush(now_s)

    def send(self, message: Message, route: bytes | None) -> None:
        """Send without waiting; what cannot be sent now counts as lost and is repeated later."""
        if route is None:
            return
        try:
            frame = self._frame(message)
            self._socket.send(route, ROUTE_FLAGS)
            self._socket.send(frame, zmq.NOBLOCK)
        except (zmq.ZMQError, BadFrame):
            self.unsent += 1

    def _frame(self, message: Message) -> bytes:
        """An order goes to every member: it is encoded once."""
        if self._encoded[0] is not message:
            self._encoded = (message, encode(thin(message)))
        return self._encoded[1]


def _follows(answer: Answer) -> bool:
    """Whether this is sent on the strength of what is written down."""
    effect = answer[0]
    return type(effect) is Send and type(effect.message) not in TELEMETRY and effect.message is not BEAT_ACK


def thin(message: Message) -> Message:
    """A Fire without its members, who get it: they know them from their Epoch, and a thousand numbers are 3 KB."""
    return msgspec.structs.replace(message, members=()) if type(message) is Fire else message
