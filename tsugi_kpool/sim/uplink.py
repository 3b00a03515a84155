"""A replica's end of the sideband in virtual time: the real outbox and pacing, over a simulated wire."""

from __future__ import annotations

import math
from collections.abc import Callable

from tsugi_kpool.core.hub.outgoing import Frames
from tsugi_kpool.core.messages import (
    MAX_FRAME_BYTES,
    Ack,
    BadFrame,
    Beat,
    Broken,
    Bye,
    Commit,
    Compared,
    Discarded,
    Evaluated,
    Generation,
    Hello,
    Lease,
    Message,
    Reduced,
    Stamps,
    Vitals,
)
from tsugi_kpool.core.messages.facts import MachineFacts
from tsugi_kpool.core.replica.heartbeat_pacing import BUDGET_BYTES_S, HeartbeatPacing
from tsugi_kpool.core.replica.orders import CANNOT_BE, Limits, impossible
from tsugi_kpool.core.replica.outbox import Outbox

from .kernel import Channel, Kernel

BEAT_S = 0.5
"""Longest time between two beats of a replica, as in conf/sideband."""


class Wire:
    """State that all uplinks of a fleet share: the channel, and who is at the end of each connection.

    Args:
        kernel: Schedules.
        channel: Carries.
        keep_alive: Send beats without news, and vitals, too, and repeat what is unanswered when it is time. Without,
            the channel must lose nothing and the hub must live: then all that counts as sent and answered.
        limits: What no order exceeds.
    """

    def __init__(self, kernel: Kernel, channel: Channel, keep_alive: bool, limits: Limits) -> None:
        self.kernel, self.channel, self.keep_alive, self.limits = kernel, channel, keep_alive, limits
        self.ends: dict[bytes, Uplink] = {}
        """Connection -> the uplink of the process that made it."""
        self.too_large: set[str] = set()
        """Kinds of messages of which one did not fit into a frame."""
        self._frames = Frames()
        self._looked_at: Message | None = None
        self._members: frozenset[int] = frozenset()
        """Of the Generation that was looked at last."""

    def fault(self, order: Message, replica: int, begun: bool) -> str | None:
        """Return why no honest hub sends this order. One that goes to thousands names thousands: what is wrong with
        it for all of them is looked for once."""
        if order is self._looked_at and replica in self._members:
            return None
        fault = impossible(order, replica, self.limits, begun)
        if fault is None and isinstance(order, Generation):
            self._looked_at, self._members = order, frozenset(order.members)
        return fault

    def send(self, route: bytes, message: Message) -> None:
        """Send a message of the hub; it is lost if the connection has been replaced."""
        end = self.ends[route]
        if end.route == route:
            self.channel.send(2 * end.replica + 1, end.receive, message)

    def size(self, message: Message) -> int:
        """Return the bytes of its frame. One that is too large for a frame is noted, and carried all the same."""
        try:
            return len(self._frames.of(message))
        except BadFrame:
            self.too_large.add(type(message).__name__)
            return MAX_FRAME_BYTES


class Uplink:
    """Sends what one replica says, as sideband.link_thread does: all that is due whenever it wakes.

    Args:
        wire: Of the fleet.
        identity: (replica, incarnation).
        probe: The present Beat.
        hear: Gives the hub a message, with the connection that it came over.
        obey: Takes the orders that arrive.
        supplied: Called when a lease has arrived.
    """

    def __init__(
        self,
        wire: Wire,
        identity: tuple[int, str],
        probe: Callable[[], Beat],
        hear: Callable[[Message, bytes], None],
        obey: Callable[[Message], None],
        supplied: Callable[[], None],
    ) -> None:
        self._wire, self._kernel, self._keep_alive = wire, wire.kernel, wire.keep_alive
        self.replica, self._incarnation = identity
        self._probe, self._hear, self._obey, self._supplied = probe, hear, obey, supplied
        self._outbox = Outbox(*identity)
        self._pacing = HeartbeatPacing(BEAT_S, BUDGET_BYTES_S)
        self._alarm_s = math.inf
        """When it wakes up, unless something wakes it earlier."""
        self._lease: Lease | None = None
        self._connections = 0
        self.route = b""
        """Route of the present connection."""
        self.closed = False
        """Whether its process is dead: nothing goes out or comes in."""
        self.cut = False
        """Whether it is cut off: everything in either direction is lost, and reliable messages are repeated
        afterwards."""
        self.frozen = False
        """Whether it is frozen: nothing goes out, and what comes in waits."""
        self._waiting: list[Message] = []
        self._begun = False
        """Whether it has been ordered into a generation."""
        self._connect()

    @property
    def incarnation(self) -> str:
        return self._incarnation

    def join(self, hello: Hello) -> None:
        """Send the Hello, and ask for the first lease."""
        self._pacing.heard_s = self._kernel.now_s  # the hub's silence counts from now on
        if not self._keep_alive:
            self._pacing.takes_beat(self._kernel.now_s)
        self._outbox.add(hello)
        self._ask()

    def report(self, message: Hello | Reduced | Compared | Broken | Discarded | Evaluated | Bye) -> None:
        """Send a reliable message; `seq`, `replica` and `incarnation` are filled in."""
        self._outbox.add(message)
        self._wake()

    def nudge(self) -> None:
        """Send a beat for new progress, now or as soon as the pacing allows."""
        pacing = self._pacing
        if pacing.nudged:
            return
        if not self._keep_alive:
            pacing.skip(self._kernel.now_s)
            pacing.heard_s = self._kernel.now_s
        pacing.nudged = True
        self._wake()

    def take(self) -> Lease | None:
        """Return the next lease if it is here, and ask for another one."""
        lease, self._lease = self._lease, None
        if lease is not None and lease.stop > lease.start:
            self._ask()
        return lease

    def ask_again(self) -> None:
        """Ask for data again after an empty lease."""
        if not self._outbox.awaits_lease and self._lease is None:
            self._ask()

    def receive(self, message: Message) -> None:
        """Take a message of the hub."""
        if self.closed or self.cut:
            return
        if self.frozen:
            self._waiting.append(message)
            return
        self._pacing.heard(self._wire.size(message), self._kernel.now_s)
        self._sort_in(message)
        if self._pacing.nudged:
            self._wake()  # a hub that is heard again is told sooner

    def thaw(self) -> None:
        """Go on after a freeze, with the messages that have come meanwhile; or after a cut, over a new connection."""
        if self.cut:
            self._connect()
        self.cut = self.frozen = False
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self.receive(message)
        self._wake()

    def _connect(self) -> None:
        self._connections += 1
        self.route = f"{self._incarnation} {self._connections}".encode()
        self._wire.ends[self.route] = self

    def _ask(self) -> None:
        self._outbox.ask_for_lease()
        self._wake()

    def _sort_in(self, message: Message) -> None:
        """Sort a message as sideband.link does; but this hub is ours, so an impossible order is a bug."""
        fault = self._wire.fault(message, self.replica, self._begun)
        if fault is not None:
            raise RuntimeError(CANNOT_BE.format(fault))
        self._begun = self._begun or type(message) is Generation
        if type(message) is Ack:
            self._outbox.settle(message.seq)
        elif type(message) is Lease:
            if self._outbox.answered_by(message):
                self._lease = message
                self._supplied()
        elif type(message) is not Stamps:
            if type(message) is Commit:
                self._outbox.committed(message.round)
            self._obey(message)

    def _wake(self) -> None:
        """Send what is due, and sleep until something else is due."""
        if self.closed or self.frozen:
            return
        now_s, pacing = self._kernel.now_s, self._pacing
        for message in self._outbox.due(now_s):
            self._send(message, now_s)
        if (pacing.nudged or self._keep_alive) and pacing.takes_beat(now_s):
            self._send(self._probe(), now_s)
        if self._keep_alive and pacing.takes_vitals(now_s):
            self._send(Vitals(self.replica, self._incarnation, now_s, MachineFacts()), now_s)
        if pacing.nudged or self._keep_alive:
            self._sleep(now_s)

    def _sleep(self, now_s: float) -> None:
        until_s = self._pacing.next_s(now_s)
        if self._keep_alive:
            until_s = min(until_s, self._outbox.next_s())
        if until_s < self._alarm_s:
            self._alarm_s = until_s
            self._kernel.at(until_s, self._ring, until_s)

    def _ring(self, alarm_s: float) -> None:
        if alarm_s == self._alarm_s:  # else an earlier one has been set since
            self._alarm_s = math.inf
            self._wake()

    def _send(self, message: Message, now_s: float) -> None:
        self._pacing.sent(self._wire.size(message), type(message) is Beat, now_s)
        if not self.cut:
            self._wire.channel.send(2 * self.replica, self._hear, message, self.route)
