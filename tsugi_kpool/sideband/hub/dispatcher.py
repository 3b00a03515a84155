"""The dispatcher: checks sender and content of a message, lets the hub decide, and routes the answers."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tsugi_kpool.core.bucket import Bucket
from tsugi_kpool.core.effects import ASKER, Effect, Send
from tsugi_kpool.core.hub import slot_requests
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.joining import refusal
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.hub.seats import NOT_GIVEN, Seats, seat_key
from tsugi_kpool.core.hub.status import status_for_askers
from tsugi_kpool.core.messages import (
    Ack,
    AdapterOffer,
    Beat,
    CheckpointOffer,
    DataPart,
    DataRequest,
    Fell,
    Hello,
    Message,
    Refused,
    Slot,
    SlotRequest,
    StatusRequest,
    StopRequest,
    StopRun,
)

from .egress import Answer, Egress
from .fitting import StatusCache, fitting

Offered = AdapterOffer | CheckpointOffer | DataPart
"""Messages with which a machine gives what its replica has made."""
OUTSIDE = (
    StopRequest, StopRun, Fell, StatusRequest, SlotRequest, DataRequest, AdapterOffer, CheckpointOffer, DataPart,
)  # fmt: skip
"""Messages of launchers, observers and the owner."""
COMING_PER_S, COMING_AT_ONCE = 0.1, 10
"""Rate limit of new processes of one replica: each is a line of the journal, and honest restarts take longer."""
FORGET_EVERY_S = 60.0
"""Period of forgetting closed connections: a link that is cut off again and again makes many."""


class Dispatcher:
    """Owned by the hub's thread.

    Args:
        hub: Decides.
        egress: Is told by which route a member is reached.
        interrupt: Called when the run's owner wants it to end.
        secret: The hub's secret key, from which proofs of seats and generations' keys are made; empty where there are
            no keys.
    """

    def __init__(self, hub: Hub, egress: Egress, interrupt: Callable[[], None], secret: str = "") -> None:
        self._hub, self._egress, self._interrupt, self._secret = hub, egress, interrupt, secret
        self._seats = Seats(hub.slots, secret) if secret else None
        hub.group_keys.secret = secret if hub.plan.sealed else ""
        self._guard = Guard(hub, self._seats)
        self.give: Callable[[bytes, DataRequest], None] | None = None
        """Passes on questions for the run's data; None where they are not given."""
        self.take: Callable[[bytes, Offered], None] | None = None
        """Passes on what is offered, and its parts; None where the hub's machine takes none."""
        self._offering: set[bytes] = set()
        """Routes over which somebody who has a place has offered something."""
        self._tickets: dict[bytes, str] = {}
        """Route -> the ticket of the slot that was given there: one for each connection."""
        self._coming: dict[int, Bucket] = {}
        self._replica_of: dict[bytes, int] = {}
        """Route -> the member that has identified itself there."""
        self._forgot_s = 0.0
        self._status_cache = StatusCache(lambda now_s: fitting(status_for_askers(hub, now_s)))

    def hear(self, route: bytes, message: Message, now_s: float) -> list[Answer]:
        """Return the hub's answers. An answer to the sender takes the route that the message came by, whether it was
        let in or not."""
        if type(message) is Beat:  # first: nine of ten messages are beats
            return self._beat(route, message, now_s)
        # Judged before anything of it is used: what the guard refuses reaches no decision.
        kind = self._guard.verdict(message, self._replica_of.get(route))
        if kind is not None:
            return self._turn_away(route, message, kind, now_s)
        if isinstance(message, OUTSIDE):
            return self._attend(route, message, now_s)
        if isinstance(message, Hello):
            if self._comes_too_often(message, now_s):
                self._hub.refusals.add(Kind.FLOOD)
                return []
            message = msgspec.structs.replace(message, seat="")  # it has served, and is written down nowhere
        effects = self._hub.receive(message, now_s)
        asker = getattr(message, "replica", ASKER)
        member = self._hub.members.get(asker)
        if member is not None and member.hello.incarnation == getattr(message, "incarnation", None):
            self._learn(asker, route)  # only the process that the hub has let in gets the orders
        return [(each, route if type(each) is Send and each.replica == asker else None) for each in effects]

    def _beat(self, route: bytes, beat: Beat, now_s: float) -> list[Answer]:
        """Handle a beat as `hear` does. The guard lets it through only from the process that the hub has let in."""
        known = self._replica_of.get(route)
        kind = self._guard.verdict(beat, known)
        if kind is not None:
            return self._turn_away(route, beat, kind, now_s)
        if known is None:
            # A known process on a new connection, as after a cut: its orders go there from now on.
            self._learn(beat.replica, route)
        return [(each, None) for each in self._hub.receive(beat, now_s)]

    def _learn(self, replica: int, route: bytes) -> None:
        self._egress.learn(replica, route)
        self._replica_of[route] = replica

    def _attend(self, route: bytes, message: Message, now_s: float) -> list[Answer]:
        """Answer a message from somebody who is no replica."""
        if isinstance(message, StopRequest):
            return [
                (effect, None) for effect in slot_requests.stop(self._hub, message)
            ]  # what follows goes to the replica
        if isinstance(message, StopRun):
            self._interrupt()
            return [(Send(ASKER, Ack(0)), route)]
        if isinstance(message, Fell):
            return [(effect, None) for effect in slot_requests.fell(self._hub, message, now_s)]
        if isinstance(message, DataRequest):
            # Only over the connection that has a place: who has none costs the disk nothing.
            if self.give is not None and self._tickets.get(route) == message.ticket:
                self.give(route, message)
            return []
        if isinstance(message, Offered):
            self._offered(route, message)
            return []
        if isinstance(message, SlotRequest):
            return [(self._with_proof(effect), route) for effect in self._place(route, message, now_s)]
        return [(Send(ASKER, self._status_cache.at(now_s)), route)]

    def _offered(self, route: bytes, message: Offered) -> None:
        """Pass on what comes from who has a place; an adapter once the run is over: what is offered before is not its
        result.

        A hub that was started again knows tickets, and no routes.
        """
        if not isinstance(message, DataPart) and self._hub.slots.of(message.ticket) is not None:
            self._offering.add(route)
        if route not in self._offering:
            self._hub.refusals.add(Kind.IDENTITY)
        elif self.take is not None and (self._hub.over or not isinstance(message, AdapterOffer)):
            self.take(route, message)

    def _place(self, route: bytes, request: SlotRequest, now_s: float) -> list[Effect]:
        """Grant a slot. A connection that has one gets no other: nobody can hold all of them over one connection."""
        before = self._tickets.get(route, request.ticket)
        if before != request.ticket and self._hub.slots.of(before) is not None:
            self._hub.refusals.add(Kind.FLOOD)
            return [Send(ASKER, Refused("a place was given over this connection before"))]
        effects = slot_requests.grant(self._hub, request, now_s)
        if self._hub.slots.of(request.ticket) is not None:
            # The newest connection alone gets data: what waits for one that does not read is the hub's memory.
            for old in [each for each, ticket in self._tickets.items() if ticket == request.ticket and each != route]:
                del self._tickets[old]
            self._tickets[route] = request.ticket
        return effects

    def _with_proof(self, effect: Effect) -> Effect:
        """Add to a Slot the proof that its replica will have to show."""
        if not (type(effect) is Send and isinstance(effect.message, Slot) and self._secret):
            return effect
        slot = effect.message
        return Send(ASKER, msgspec.structs.replace(slot, seat=seat_key(self._secret, slot.replica, slot.ticket)))

    def _comes_too_often(self, hello: Hello, now_s: float) -> bool:
        """Return whether too many processes come as this replica."""
        known = self._hub.members.get(hello.replica)
        if known is None or hello.incarnation == known.hello.incarnation or hello.incarnation in self._hub.fenced:
            return False
        bucket = self._coming.setdefault(hello.replica, Bucket(COMING_PER_S, COMING_AT_ONCE, now_s))
        return not bucket.takes(now_s)

    def _turn_away(self, route: bytes, message: Message, kind: Kind, now_s: float) -> list[Answer]:
        """Answer a refused message: a Hello learns why, a member that it is not heard, others nothing."""
        replica = self._replica_of.get(route)
        if isinstance(message, Hello):
            self._hub.refusals.add(kind)
            reason = self._reason(message)
            return [*self._named(message, kind, reason), (Send(ASKER, Refused(reason)), route)]
        if replica is None:
            self._hub.refusals.add(kind)
            return []
        notice = self._hub.refusals.add_of(replica, type(message).__name__, kind, now_s)
        return [(Send(ASKER, notice), route)] if notice is not None else []

    def _named(self, hello: Hello, kind: Kind, reason: str) -> list[Answer]:
        """Return what the hub's owner is told of a process that holds its place and may not join."""
        if kind is not Kind.IDENTITY or self._seats is None or not self._seats.holds(hello):
            return []
        return [(each, None) for each in self._hub.slots.turned_away(hello.host, reason, hello.replica)]

    def _reason(self, hello: Hello) -> str:
        """Return why this process may not join."""
        if (reason := refusal(self._hub, hello)) is not None:
            return reason
        if self._seats is not None and not self._seats.holds(hello):
            return NOT_GIVEN.format(replica=hello.replica)
        return "this connection speaks for another replica"

    def check_places(self) -> None:
        """Free the places of those whose connection has closed before their replica has joined."""
        for route, ticket in list(self._tickets.items()):
            if not self._egress.stands(route):
                del self._tickets[route]
                if ticket not in self._tickets.values():
                    self._hub.slots.closed(ticket)

    def look_around(self, known: Callable[[bytes], bool], now_s: float) -> None:
        """Forget connections that are not known any more, now and then."""
        if now_s - self._forgot_s > FORGET_EVERY_S:
            self._forgot_s = now_s
            self._replica_of = {route: each for route, each in self._replica_of.items() if known(route)}
            self._tickets = {route: each for route, each in self._tickets.items() if known(route)}
            self._offering = {route for route in self._offering if known(route)}
