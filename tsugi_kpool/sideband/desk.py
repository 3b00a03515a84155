"""Where the hub's owner hears what came through the door: who says it, whether it can be, and who gets the answer."""

from __future__ import annotations

from collections.abc import Callable

from tsugi_kpool.core import seating
from tsugi_kpool.core.effects import ASKER, Effect, FleetStage, Send
from tsugi_kpool.core.guard import Guard
from tsugi_kpool.core.hub import Hub
from tsugi_kpool.core.joining import refusal
from tsugi_kpool.core.messages import (
    Beat,
    Fell,
    Hello,
    Message,
    PlaceRequest,
    Refused,
    StatusRequest,
    StopRequest,
)
from tsugi_kpool.core.status import fleet_status

from .fitting import fitting
from .glance import Glance
from .post import Answer, Post

OUTSIDE = (StopRequest, Fell, StatusRequest, PlaceRequest)
"""What launchers and observers say."""
FORGET_EVERY_S = 60.0
"""Connections that have gone are forgotten this often: a link that is cut off again and again comes by many."""


class Desk:
    """Owned by the hub's thread.

    Args:
        hub: Decides.
        post: Learns by which route a member is reached.
        interrupt: Called when whoever brought the last replica wants it back.
    """

    def __init__(self, hub: Hub, post: Post, interrupt: Callable[[], None]) -> None:
        self._hub, self._post, self._interrupt = hub, post, interrupt
        self._guard = Guard(hub)
        self._replica_of: dict[bytes, int] = {}
        """Route -> the member that has shown itself there."""
        self._forgot_s = 0.0
        self._glance = Glance(lambda now_s: fitting(fleet_status(hub, now_s)))

    def hear(self, route: bytes, message: Message, now_s: float) -> list[Answer]:
        """The hub's answers; what goes to the asker takes the asker's own route, let in or not."""
        if type(message) is Beat:  # first: nine of ten messages are beats
            return self._beat(route, message, now_s)
        if isinstance(message, OUTSIDE):
            return self._attend(route, message, now_s)
        kind = self._guard.verdict(message, self._replica_of.get(route))
        if kind is not None:
            self._hub.refusals.add(kind)
            return self._turn_away(route, message)
        effects = self._hub.receive(message, now_s)
        asker = getattr(message, "replica", ASKER)
        member = self._hub.members.get(asker)
        if member is not None and member.hello.incarnation == getattr(message, "incarnation", None):
            self._learn(asker, route)  # only the process that the hub has let in gets the orders
        return [(each, route if type(each) is Send and each.replica == asker else None) for each in effects]

    def _beat(self, route: bytes, beat: Beat, now_s: float) -> list[Answer]:
        """As `hear` does; what the guard lets through comes from the process that the hub has let in."""
        known = self._replica_of.get(route)
        kind = self._guard.verdict(beat, known)
        if kind is not None:
            self._hub.refusals.add(kind)
            return []
        if known is None:
            self._learn(beat.replica, route)
        return [(each, None) for each in self._hub.receive(beat, now_s)]

    def _learn(self, replica: int, route: bytes) -> None:
        self._post.learn(replica, route)
        self._replica_of[route] = replica

    def _attend(self, route: bytes, message: Message, now_s: float) -> list[Answer]:
        """Answer who is no replica."""
        if isinstance(message, StopRequest):
            return [(effect, None) for effect in self._stop(message)]  # what follows goes to the replica
        if isinstance(message, Fell):
            return [(effect, None) for effect in seating.fell(self._hub, message, now_s)]
        if isinstance(message, PlaceRequest):
            return [(effect, route) for effect in seating.place(self._hub, message, now_s)]
        return [(Send(ASKER, self._glance.at(now_s)), route)]

    def _stop(self, request: StopRequest) -> list[Effect]:
        """Who brings a replica may take it back; when it is the last one, that is the end of the run."""
        replica = self._hub.places.of(request.ticket)
        if replica is None:
            return []
        if self._hub.stage is FleetStage.GATHERING:
            return seating.give_back(self._hub, replica, "its user stopped it")
        member = self._hub.members.get(replica)
        if member is not None and not member.here:
            return []  # it has left; its launcher asks until its process has ended
        if self._hub.stage is FleetStage.TRAINING and len(self._hub.present) > 1:
            return self._hub.let_go(replica)
        self._interrupt()
        return []

    def _turn_away(self, route: bytes, message: Message) -> list[Answer]:
        """Somebody who wants to join learns why not; whatever else is refused gets no answer."""
        if not isinstance(message, Hello):
            return []
        reason = refusal(self._hub, message) or "this connection speaks for another replica"
        return [(Send(ASKER, Refused(reason)), route)]

    def look_around(self, known: Callable[[bytes], bool], now_s: float) -> None:
        """Now and then forget the connections that are not known any more."""
        if now_s - self._forgot_s > FORGET_EVERY_S:
            self._forgot_s = now_s
            self._replica_of = {route: each for route, each in self._replica_of.items() if known(route)}
