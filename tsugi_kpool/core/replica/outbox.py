"""The outbox: messages that must not be lost are numbered, and sent again until they are acknowledged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from tsugi_kpool.core.messages import Lease, LeaseRequest, Message, Reduced, StoreGet

REPEAT_S = 1.0
"""A message that is not acknowledged after this time is sent again."""


@dataclass(frozen=True)
class Identity:
    """Who this replica is, for its Hello."""

    replica: int
    host: str
    pid: int
    config_hash: str
    layout: str
    seat: str = ""
    """Proof that this process was given the slot (core.hub.seats); empty where the run's own keys prove it."""


class Outbox:
    """Messages on their way to the hub. Not thread-safe: the link holds a lock around every call."""

    def __init__(self, replica: int, incarnation: str) -> None:
        self._replica, self._incarnation = replica, incarnation
        self._unacknowledged: dict[int, tuple[Message, float]] = {}
        """By seq: the message, and when it was sent last."""
        self._request: tuple[LeaseRequest, float] | None = None
        self._questions: dict[str, StoreGet] = {}
        """Questions not sent yet. Each is sent once; whoever waits for the answer asks again."""
        self._seq = self._ticket = 0

    def add(self, message: Message) -> None:
        """Send a message until it is acknowledged; `seq`, `replica` and `incarnation` are filled in."""
        self._seq += 1
        who: dict[str, int | str] = {"seq": self._seq, "replica": self._replica}
        if hasattr(message, "incarnation"):
            who["incarnation"] = self._incarnation
        self._unacknowledged[self._seq] = (msgspec.structs.replace(message, **who), -math.inf)

    def ask(self, key: str) -> None:
        """Ask for a key of the rendezvous store, once. While nothing can be sent, one question is kept for each
        key."""
        self._questions[key] = StoreGet(self._replica, key)

    def ask_for_lease(self) -> None:
        """Ask for a lease, again and again until it is here."""
        self._ticket += 1
        self._request = (LeaseRequest(self._replica, self._incarnation, self._ticket), -math.inf)

    @property
    def awaits_lease(self) -> bool:
        """Whether a lease has been asked for and is not here."""
        return self._request is not None

    @property
    def acknowledged(self) -> bool:
        """Whether every message has been acknowledged; a request for a lease does not count."""
        return not self._unacknowledged

    def settle(self, seq: int) -> None:
        """Drop the message with this seq: the hub has handled it, or it can never be sent."""
        self._unacknowledged.pop(seq, None)

    def committed(self, round: int) -> None:
        """Drop our Reduced of rounds up to this one: their Commit shows that the hub has handled it, even if its Ack
        was lost. Not of an exchange's: a round of it may be committed before we have voted."""
        for seq, (message, _) in list(self._unacknowledged.items()):
            if type(message) is Reduced and message.round <= round and not message.told:
                del self._unacknowledged[seq]

    def answered_by(self, lease: Lease) -> bool:
        """Return whether this lease answers the newest request; a late answer to an earlier request does not."""
        if self._request is None or self._request[0].ticket != lease.ticket:
            return False
        self._request = None
        return True

    def due(self, now_s: float) -> list[Message]:
        """Return the messages to send now, the first time or once more, oldest first. They count as sent."""
        due: list[Message] = list(self._questions.values())
        self._questions.clear()
        for seq, (message, sent_s) in self._unacknowledged.items():
            if now_s >= sent_s + REPEAT_S:
                self._unacknowledged[seq] = (message, now_s)
                due.append(message)
        if self._request is not None and now_s >= self._request[1] + REPEAT_S:
            self._request = (self._request[0], now_s)
            due.append(self._request[0])
        return due

    def next_s(self) -> float:
        """Return when the next message is due, if nothing is added or answered until then; inf if none is."""
        if self._questions:
            return -math.inf
        sent_s = [sent_s for _, sent_s in self._unacknowledged.values()]
        if self._request is not None:
            sent_s.append(self._request[1])
        return min(sent_s, default=math.inf) + REPEAT_S
