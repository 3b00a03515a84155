"""The simulated hub's dispatcher: whether the hub hears a message, by its connection, and who gets the answer."""

from __future__ import annotations

from collections import Counter

from tsugi_kpool.core.effects import ASKER, Send
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.joining import refusal
from tsugi_kpool.core.hub.outgoing import Answer
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.messages import Hello, Message, Refused


class Dispatcher:
    """The dispatcher of one hub. Another hub knows no connection before a message comes over it.

    Args:
        hub: Decides.
        refused: Counts what the guard refuses, by (kind, type of the message).
    """

    def __init__(self, hub: Hub, refused: Counter[tuple[Kind, type]]) -> None:
        self._hub, self._refused = hub, refused
        self._guard = Guard(hub)
        self._replica_of: dict[bytes, int] = {}
        """Route -> the member that has identified itself there."""
        self.route_of: dict[int, bytes] = {}
        """Member -> the route of its newest message."""

    def hear(self, route: bytes, message: Message, now_s: float) -> list[Answer]:
        """Return the hub's answers. An answer to the sender takes the route that the message came by, whether it was
        let in or not."""
        kind = self._guard.verdict(message, self._replica_of.get(route))
        if kind is not None:
            return self._turn_away(route, message, kind)
        effects = self._hub.receive(message, now_s)
        asker: int = message.replica  # type: ignore[attr-defined]
        if self.route_of.get(asker) is not route:
            self._learn(asker, route, message)
        return [(each, route if type(each) is Send and each.replica == asker else None) for each in effects]

    def _learn(self, asker: int, route: bytes, message: Message) -> None:
        member = self._hub.members.get(asker)
        if member is not None and member.hello.incarnation == getattr(message, "incarnation", None):
            self.route_of[asker] = route
            self._replica_of[route] = asker

    def _turn_away(self, route: bytes, message: Message, kind: Kind) -> list[Answer]:
        """Answer a refused message: only a Hello learns why it is refused."""
        self._refused[kind, type(message)] += 1
        if type(message) is not Hello:
            return []
        return [(Send(ASKER, Refused(refusal(self._hub, message) or "it speaks for another replica")), route)]
