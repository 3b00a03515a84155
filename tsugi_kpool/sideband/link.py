"""A replica's end of the sideband: mailboxes for its threads, and the link thread that owns the socket.

The training thread and the aggregator never touch the socket. They put messages into the link's outbox, and take
orders, leases and values out of its mailboxes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable

from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.messages import (
    Abort,
    Ack,
    Beat,
    Broken,
    Bye,
    Checked,
    Commit,
    Compared,
    Discarded,
    Evaluated,
    Failed,
    Figures,
    Generation,
    Hello,
    Lease,
    Message,
    NotTaken,
    Reduced,
    Refused,
    Saved,
    StopFleet,
    StorePut,
    StoreValue,
    Totals,
    Unreached,
)
from tsugi_kpool.core.messages.facts import MachineFacts
from tsugi_kpool.core.replica.heartbeat_pacing import BUDGET_BURST_S, BUDGET_BYTES_S, MIN_BEAT_GAP_S, HeartbeatPacing
from tsugi_kpool.core.replica.orders import CANNOT_BE, NO_LIMITS, Limits, impossible
from tsugi_kpool.core.replica.outbox import Identity, Outbox
from tsugi_kpool.errors import FencedError, LaunchError, QuarantinedError, TrainingError, TsugiError

from .incoming import one_line
from .keys import RunKeys
from .link_thread import WAIT_SLICE_S, LinkThread
from .signing import Signer

__all__ = ["BUDGET_BURST_S", "BUDGET_BYTES_S", "MIN_BEAT_GAP_S", "Identity", "Link"]

log = logging.getLogger("tsugi_kpool")
STORE_ASK_S = 0.05
"""Period of asking for a key of the rendezvous store that is not there yet."""
MAX_NOTICES = 50
"""Kinds of refusals that are logged: an honest hub has fewer."""
HELLO_SEQ = 1
"""Number of the Hello, the first message of a link."""

Reported = Reduced | Checked | Compared | Broken | Unreached | Discarded | Evaluated | Saved | Figures | StopFleet


class Link:
    """Implements `core.replica.ports.Uplink` over ZeroMQ.

    Args:
        keys: The run's keys, with the hub's address.
        identity: Who we are.
        probe: Called in the link's thread; returns the present Beat. Must be quick and not raise.
        beat_s: Longest time between beats.
        hub_timeout_s: Silence of the hub after which the link counts as failed.
        leases: Whether this replica's data is leased by the hub; without, `lease` must not be called.
        budget_bytes_s: Beats are sent less often than progress is made when the sideband takes more than this.
        vitals: Called in the link's thread once a second; returns how the machine is. Must be quick and not raise.
        hub_returns: Whether a hub that has ended may be started again.
        hub_lives: Called in the link's thread: whether a silent hub's process is known to be there, if only stopped.
        limits: Of the run; an order beyond them ends the link.
    """

    def __init__(
        self,
        keys: RunKeys,
        identity: Identity,
        probe: Callable[[str], Beat],
        beat_s: float,
        hub_timeout_s: float,
        leases: bool = True,
        vitals: Callable[[], MachineFacts] = MachineFacts,
        budget_bytes_s: float = BUDGET_BYTES_S,
        hub_returns: bool = True,
        hub_lives: Callable[[], bool] = lambda: False,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._limits = limits
        self._identity, self._leased, self._joined = identity, leases, False
        self._seat = identity.seat or (seat_key(keys.hub_secret, identity.replica) if keys.hub_secret else "")
        self.replica = identity.replica
        self.incarnation = uuid.uuid4().hex[:16]
        self._signer = Signer()
        self._orders: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._leases: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        self._values: dict[str, bytes] = {}
        """Values of the newest generation's rendezvous store."""
        self._generation = 0
        self._lock = threading.Condition()
        self._outbox = Outbox(identity.replica, self.incarnation)
        self._failure: TsugiError | None = None
        self._totals: dict[int, Totals] = {}
        self._not_taken: set[str] = set()
        self.not_taken: tuple[str, float] | None = None
        """What of ours the hub has refused last, in words, and when it said so (monotonic seconds)."""
        self._heed: Callable[[Message], None] = _nothing
        self.unsendable = 0
        """Number of messages that did not fit into a frame and were dropped."""
        self.pacing = HeartbeatPacing(beat_s, budget_bytes_s)
        self._link_thread = LinkThread(self, keys, self.pacing, probe, vitals, hub_timeout_s, hub_returns, hub_lives)

    # --- any thread ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Ask to join, and start the thread that connects."""
        who = self._identity
        own = (who.host, who.pid, who.config_hash, who.layout, self._seat, self._signer.key)
        # First of all messages: the Ack of HELLO_SEQ shows that the hub has let us in.
        self._send_reliably(Hello(0, who.replica, self.incarnation, *own))
        if self._leased:
            self._ask_for_lease()
        self._link_thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Wait for acknowledgements of what is left, as far as the time allows, and end the thread."""
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            while not self._outbox.acknowledged and self._failure is None and time.monotonic() < deadline_s:
                self._lock.wait(WAIT_SLICE_S)
        self._link_thread.stop(timeout_s)

    def watch(self, heed: Callable[[Message], None]) -> None:
        self._heed = heed

    def next_order(self, timeout_s: float) -> Message | None:
        self._check()
        try:
            return self._orders.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def report(self, message: Reported) -> None:
        self._send_reliably(message)

    def sign(self, generation: int, round: int, digest: bytes) -> bytes:
        return self._signer.sign(generation, round, digest)

    def totals(self, number: int, timeout_s: float) -> Totals | None:
        """The sums of the `number`-th reduction, once this replica's Figures have been reported; None: not in time.

        Raises:
            TsugiError: the link has failed, or the run.
        """
        with self._lock:
            if number not in self._totals:
                self._lock.wait(timeout_s)
            self._check()
            return self._totals.pop(number, None)

    def failed(self, reason: str) -> None:
        """Tell the hub that this replica cannot go on."""
        self._send_reliably(Failed(0, self.replica, self.incarnation, reason))

    def bye(self) -> None:
        """Tell the hub that this replica has finished."""
        self._send_reliably(Bye(0, self.replica, self.incarnation))

    def nudge(self) -> None:
        if not self.pacing.nudged:  # else the thread knows, and its next beat will tell this, too
            # The flag before the wake-up: a thread that finds it unset would sleep until the next beat.
            self.pacing.nudged = True
            self._link_thread.wake()

    def lease(self) -> Lease:
        with self._lock:  # or a lease might be on its way from the outbox's books into the queue
            nothing_comes = not self._outbox.awaits_lease and self._leases.empty()
        if nothing_comes:
            self._ask_for_lease()
        while True:
            self._check()
            try:
                lease = self._leases.get(timeout=WAIT_SLICE_S)
            except queue.Empty:
                continue
            if lease.stop > lease.start:
                self._ask_for_lease()
            return lease

    def store_put(self, key: str, value: bytes) -> None:
        self._send_reliably(StorePut(0, self.replica, key, value))

    def store_get(self, key: str, timeout_s: float) -> bytes | None:
        deadline_s, asked_s = time.monotonic() + timeout_s, 0.0
        with self._lock:
            while key not in self._values:
                self._check()
                now_s = time.monotonic()
                if now_s - asked_s >= STORE_ASK_S:
                    asked_s = now_s
                    self._outbox.ask(key)
                    self._link_thread.wake()
                if now_s >= deadline_s:
                    return None  # but asked: who looks again finds it
                self._lock.wait(STORE_ASK_S)
            return self._values[key]

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _send_reliably(self, message: Message) -> None:
        with self._lock:
            self._outbox.add(message)
        self._link_thread.wake()

    def _ask_for_lease(self) -> None:
        with self._lock:
            self._outbox.ask_for_lease()
        self._link_thread.wake()

    # --- the line's thread --------------------------------------------------------------------------------

    def due(self, now_s: float) -> list[Message]:
        """Return the reliable messages to send now."""
        with self._lock:
            return self._outbox.due(now_s)

    def deliver(self, message: Message) -> None:
        """Put a message into the mailbox of whoever waits for it; an impossible order ends the link."""
        fault = impossible(message, self.replica, self._limits, begun=self._generation > 0)
        if fault is not None:
            self.fail(LaunchError(CANNOT_BE.format(fault)))
            message = Refused(fault)  # as that does, it ends a collective that waits
        with self._lock:
            if fault is None:
                self._sort_in(message)
            self._lock.notify_all()
        # Once the order is in its queue: the collective that `heed` ends makes the aggregator ask for the next order.
        # Not under the lock, which all callers of the link need.
        if isinstance(message, Abort | Generation | Refused):
            self._heed(message)

    def drop(self, message: Message) -> None:
        """Drop a message that can never be sent; training goes on."""
        self.unsendable += 1
        with self._lock:
            self._outbox.settle(getattr(message, "seq", 0))
            self._lock.notify_all()

    def fail(self, error: TsugiError) -> None:
        """Fail the link: every caller gets this error. Only the first one is kept."""
        self._failure = self._failure or error

    def _sort_in(self, message: Message) -> None:
        if isinstance(message, Ack):
            self._joined = self._joined or message.seq == HELLO_SEQ
            self._outbox.settle(message.seq)
        elif isinstance(message, Lease):
            if self._outbox.answered_by(message):
                self._leases.put(message)
        elif isinstance(message, StoreValue):
            if message.value is not None:
                self._values[message.key] = message.value
        elif isinstance(message, Totals):
            self._outbox.settle(message.seq)
            self._totals = {message.number: message}  # of the newest one alone: nobody asks for another
        elif isinstance(message, NotTaken):
            self._note(message)
        elif isinstance(message, Refused):
            self._failure = _refused(message, self._joined)
        else:
            if isinstance(message, Commit):
                self._outbox.committed(message.round)
            if isinstance(message, Generation) and message.generation > self._generation:
                self._generation = message.generation
                self._values.clear()  # keys name their generation, and nobody asks for those of an old one
            self._orders.put(message)

    def _note(self, notice: NotTaken) -> None:
        """The hub does not take in what we say of ourselves: logged once for each message and kind."""
        name = f"{one_line(notice.message)} ({one_line(notice.kind)})"
        if name not in self._not_taken and len(self._not_taken) < MAX_NOTICES:
            log.warning("the hub does not take in what replica %s says: %s", self.replica, name)
            self._not_taken.add(name)
        self.not_taken = name, time.monotonic()


def _nothing(_: Message) -> None:
    return None


def _refused(refused: Refused, joined: bool) -> TsugiError:
    """Return the error that a `Refused` means; it depends on whether the hub had let this replica in."""
    reason = one_line(refused.reason)
    if refused.quarantined:
        return QuarantinedError(reason)
    if refused.fenced:
        return FencedError(reason)
    if joined:
        return TrainingError(f"the run has failed: {reason}")
    return LaunchError(f"the hub refused this replica: {reason}")
