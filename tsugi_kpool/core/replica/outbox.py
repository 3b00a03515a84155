"""What a replica has to say and must not be lost: numbered, and said again until it is answered."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from tsugi_kpool.core.messages import Lease, LeaseRequest, Message, Reduced, StoreGet

REPEAT_S = 1.0
"""What is not acknowledged by then is sent again."""


@dataclass(frozen=True)
class Identity:
    """Who this replica is, for its Hello."""

    replica: int
    host: str
    pid: int
    config_hash: str
    layout: str
    seat: str = ""
    """The proof that the place is its own (core.hub.seats); empty where the run's own keys make it."""


class Outbox:
    """Not thread-safe: its link holds a lock."""

    def __init__(self, replica: int, incarnation: str) -> None:
        self._replica, self._incarnation = replica, incarnation
        self._unacknowledged: dict[int, tuple[Message, float]] = {}
        """By seq, with when it was sent last."""
        self._request: tuple[LeaseRequest, float] | None = None
        self._questions: dict[str, StoreGet] = {}
        """Asked once; whoever waits for the answer asks again."""
        self._seq = self._ticket = 0

    def add(self, message: Message) -> None:
        """To be repeated until it is acknowledged; `seq`, and who we are, are filled in."""
        self._seq += 1
        who: dict[str, int | str] = {"seq": self._seq, "replica": self._replica}
        if hasattr(message, "incarnation"):
            who["incarnation"] = self._incarnation
        self._unacknowledged[self._seq] = (msgspec.structs.replace(message, **who), -math.inf)

    def ask(self, key: str) -> None:
        """Ask for a key of the rendezvous store; while nothing can be sent, one question waits for each key."""
        self._questions[key] = StoreGet(self._replica, key)

    def ask_for_lease(self) -> None:
        """To be repeated until the lease is here."""
        self._ticket += 1
        self._request = (LeaseRequest(self._replica, self._incarnation, self._ticket), -math.inf)

    @property
    def awaits_lease(self) -> bool:
        """Whether one has been asked for and is not here."""
        return self._request is not None

    @property
    def acknowledged(self) -> bool:
        """Whether nothing is left to be repeated, but for a request of data."""
        return not self._unacknowledged

    def settle(self, seq: int) -> None:
        """The hub has handled the message with this seq, or it can never be sent."""
        self._unacknowledged.pop(seq, None)

    def committed(self, round: int) -> None:
        """The round is committed: the hub has handled our Reduced, whether it has said so or not."""
        for seq, (message, _) in list(self._unacknowledged.items()):
            if type(message) is Reduced and message.round <= round:
                del self._unacknowledged[seq]

    def answered_by(self, lease: Lease) -> bool:
        """Whether this is the lease that was asked for; the answer to an earlier request is not."""
        if self._request is None or self._request[0].ticket != lease.ticket:
            return False
        self._request = None
        return True

    def due(self, now_s: float) -> list[Message]:
        """What is to be sent now, for the first time or once more, oldest first; it counts as sent."""
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
        """When the next message is due, if nothing is added or answered until then; inf: none is."""
        if self._questions:
            return -math.inf
        sent_s = [sent_s for _, sent_s in self._unacknowledged.values()]
        if self._request is not None:
            sent_s.append(self._request[1])
        return min(sent_s, default=math.inf) + REPEAT_S
