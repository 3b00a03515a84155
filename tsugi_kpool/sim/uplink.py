"""A replica's end of the sideband in virtual time, by the rules of sideband.link."""

from __future__ import annotations

from collections.abc import Callable

from tsugi_kpool.core.messages import Ack, Beat, Broken, Bye, Commit, Discarded, Hello, Landed, Lease, Message
from tsugi_kpool.core.outbox import Outbox

from .kernel import Channel, Kernel

MIN_BEAT_GAP_S = 0.125
"""Beats are never closer than this (as sideband.link)."""


class Uplink:
    """Sends what one replica says: beats when there is news, the rest until it is answered.

    Args:
        kernel: Schedules.
        channel: Carries; the replica's own way up.
        identity: (replica, incarnation).
        probe: The present Beat.
        hear: The hub's ear.
        obey: Takes the orders that arrive.
        supplied: Called when a lease has arrived.
    """

    def __init__(
        self,
        kernel: Kernel,
        channel: Channel,
        identity: tuple[int, str],
        probe: Callable[[], Beat],
        hear: Callable[[Message], None],
        obey: Callable[[Message], None],
        supplied: Callable[[], None],
    ) -> None:
        self._kernel, self._channel = kernel, channel
        self._replica, self._incarnation = identity
        self._probe, self._hear, self._obey, self._supplied = probe, hear, obey, supplied
        self._outbox = Outbox(self._replica, self._incarnation)
        self._lease: Lease | None = None
        self._told_s = -MIN_BEAT_GAP_S
        """When the newest news was told; a beat without news delays none."""
        self._nudged = False
        self.closed = False
        """Its process is dead: nothing goes out or comes in any more."""
        self.cut = False
        """As `closed`, for a while; what must not be lost is repeated afterwards."""
        self.frozen = False
        """Nothing goes out; what comes in waits."""
        self._waiting: list[Message] = []

    @property
    def incarnation(self) -> str:
        return self._incarnation

    def thaw(self) -> None:
        """Go on after a freeze, with what has arrived meanwhile."""
        self.frozen, waiting, self._waiting = False, self._waiting, []
        for message in waiting:
            self.receive(message)

    def ask_again(self) -> None:
        """Ask for data although there was none left the last time."""
        if not self._outbox.awaits_lease and self._lease is None:
            self._ask()

    def join(self, hello: Hello) -> None:
        """Ask to be let in, and for the first data."""
        self.report(hello)
        self._ask()

    def report(self, message: Hello | Landed | Broken | Discarded | Bye) -> None:
        """Send what may not be lost; `seq`, and who we are, are filled in."""
        self._outbox.add(message)
        self._send_due()

    def nudge(self) -> None:
        """There is news: beat now, or as soon as the gap since the newest beat allows."""
        if self._nudged:
            return
        wait_s = self._told_s + MIN_BEAT_GAP_S - self._kernel.now_s
        if wait_s <= 0:
            self._tell()
        else:
            self._nudged = True
            self._kernel.after(wait_s, self._tell)

    def take(self) -> Lease | None:
        """The next range of data when it is here already; then one more is asked for."""
        lease, self._lease = self._lease, None
        if lease is not None and lease.stop > lease.start:
            self._ask()
        return lease

    def pulse(self, beat_s: float) -> None:
        """Every `beat_s`: repeat what is unanswered, and beat when there was nothing to tell for as long."""
        if self.closed:
            return
        self._send_due()
        if self._kernel.now_s - self._told_s >= beat_s:
            self._send(self._probe())
        self._kernel.after(beat_s, self.pulse, beat_s)

    def receive(self, message: Message) -> None:
        """A message of the hub has arrived."""
        if self.closed or self.cut:
            return
        if self.frozen:
            self._waiting.append(message)
        elif type(message) is Ack:
            self._outbox.settle(message.seq)
        elif type(message) is Lease:
            if self._outbox.answered_by(message):
                self._lease = message
                self._supplied()
        else:
            if type(message) is Commit:
                self._outbox.committed(message.round)
            self._obey(message)

    def _ask(self) -> None:
        self._outbox.ask_for_lease()
        self._send_due()

    def _send_due(self) -> None:
        for message in self._outbox.due(self._kernel.now_s):
            self._send(message)

    def _tell(self) -> None:
        self._nudged, self._told_s = False, self._kernel.now_s
        self._send(self._probe())

    def _send(self, message: Message) -> None:
        if not (self.closed or self.cut or self.frozen):
            self._channel.send(2 * self._replica, self._hear, message)
