"""A replica's end of the sideband: one thread, one DEALER, mailboxes for everybody else.

The training thread and the aggregator never touch the socket: they put messages into the link's outbox and take
orders, leases and values out of its mailboxes.
"""

from __future__ import annotations

import math
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import zmq

from tsugi_kpool.core.bucket import Bucket
from tsugi_kpool.core.clock import ClockFilter, Exchange
from tsugi_kpool.core.facts import MachineFacts
from tsugi_kpool.core.messages import (
    Abort,
    Ack,
    BadFrame,
    Beat,
    Broken,
    Bye,
    Discarded,
    Epoch,
    Evaluated,
    Failed,
    Hello,
    Landed,
    Lease,
    LeaseRequest,
    Message,
    Refused,
    Saved,
    Stamps,
    StoreGet,
    StorePut,
    StoreValue,
    Vitals,
    decode,
    encode,
)
from tsugi_kpool.errors import FencedError, LaunchError, QuarantinedError, SidebandError, TrainingError, TsugiError

from .keys import RunKeys
from .sockets import link_socket

REPEAT_S = 1.0
"""What is not acknowledged by then is sent again."""
MIN_BEAT_GAP_S = 0.125
"""Beats are never closer than this: at 200 bytes each, and with the vitals, a replica stays under 2 KB/s."""
BUDGET_BYTES_S = 2000.0
"""What a replica may send and receive over the sideband, in the mean over a few seconds."""
BUDGET_AIM = 0.95
"""Beats aim below the budget: what is sent in any case took 2 % more than it in a run of 22 micro-steps a second."""
BUDGET_BURST_S = 2.0
"""So many seconds of the budget may be spent at once: rounds begin and end in bursts."""
STORE_ASK_S = 0.05
"""A key of the rendezvous store that is not there yet is asked for this often."""
VITALS_S = 1.0
"""How often the hub is told how the machine and the link are."""
HELLO_SEQ = 1
"""Hello is the first message of a link."""
SILENT_S = 2.0
"""A hub that has been silent for this long is told less often how things are, until it is heard again."""
SILENT_GAP_S = 1.0
"""Between two beats then: what a frozen hub has to read when it wakes up stays little."""
UNREADY_S = 0.05
"""While nothing can be sent, the socket is looked at this often."""
WAIT_SLICE_S = 0.2
"""Waiting callers look for a failed link this often."""


@dataclass(frozen=True)
class Identity:
    """Who this replica is, for its Hello."""

    replica: int
    host: str
    pid: int
    config_hash: str
    layout: str


class Link:
    """Implements `core.ports.Uplink` over ZeroMQ.

    Args:
        keys: The run's keys, with the hub's address.
        identity: Who we are.
        probe: Called in the link's thread; returns the present Beat. Must be quick and not raise.
        beat_s: Longest time between beats.
        hub_timeout_s: Silence of the hub after which the link counts as failed.
        leases: Whether this replica's data is leased by the hub; without, `lease` must not be called.
        budget_bytes_s: Beats are sent less often than progress is made when the sideband takes more than this.
        vitals: Called in the link's thread once a second; returns how the machine is. Must be quick and not raise.
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
    ) -> None:
        self._leased, self._joined = leases, False
        self.incarnation = uuid.uuid4().hex[:16]
        self._keys, self._identity, self._probe = keys, identity, probe
        self._beat_s, self._hub_timeout_s = beat_s, hub_timeout_s
        self._orders: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._leases: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        self._values: dict[str, bytes] = {}
        self._lock = threading.Condition()
        self._outbox: list[Message] = []
        self._unacknowledged: dict[int, tuple[Message, float]] = {}
        self._request: tuple[LeaseRequest, float] | None = None
        self._seq = self._ticket = 0
        self._failure: TsugiError | None = None
        self._heed: Callable[[Message], None] = _nothing
        self._stopping = threading.Event()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._nudged, self._unready = False, True
        self._beaten_s = 0.0
        self.unsendable = 0
        """Messages that do not fit into a frame; they are dropped."""
        self._vitals, self._examined_s = vitals, 0.0
        self._clock = ClockFilter()
        self._up_bytes = self._down_bytes = self._beat_bytes = 0
        self._budget = Bucket(budget_bytes_s * BUDGET_AIM, budget_bytes_s * BUDGET_BURST_S)
        self._thread = threading.Thread(target=self._run, name="tsugi-link", daemon=True)

    # --- any thread ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and ask to join."""
        self._heard_s = time.monotonic()
        who = self._identity
        self._send_reliably(Hello(0, who.replica, self.incarnation, who.host, who.pid, who.config_hash, who.layout))
        if self._leased:
            self._ask_for_lease()
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Send what is left, as far as the hub acknowledges it in time, and end the thread."""
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            while self._unacknowledged and self._failure is None and time.monotonic() < deadline_s:
                self._lock.wait(WAIT_SLICE_S)
        self._stopping.set()
        self._wake()
        self._thread.join(timeout=timeout_s)
        self._wake_in.close()
        self._wake_out.close()

    def watch(self, heed: Callable[[Message], None]) -> None:
        self._heed = heed

    def next_order(self, timeout_s: float) -> Message | None:
        self._check()
        try:
            return self._orders.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def report(self, message: Landed | Broken | Discarded | Evaluated | Saved) -> None:
        self._send_reliably(message)

    def failed(self, reason: str) -> None:
        """Tell the hub that this replica cannot go on."""
        self._send_reliably(Failed(0, self._identity.replica, self.incarnation, reason))

    def bye(self) -> None:
        """Tell the hub that this replica has finished."""
        self._send_reliably(Bye(0, self._identity.replica, self.incarnation))

    def nudge(self) -> None:
        if not self._nudged:  # else the thread knows, and its next beat will tell this, too
            self._nudged = True
            self._wake()

    def lease(self) -> Lease:
        if self._request is None and self._leases.empty():
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
        self._send_reliably(StorePut(0, self._identity.replica, key, value))

    def store_get(self, key: str, timeout_s: float) -> bytes | None:
        deadline_s, asked_s = time.monotonic() + timeout_s, 0.0
        with self._lock:
            while key not in self._values:
                self._check()
                if time.monotonic() >= deadline_s:
                    return None
                if time.monotonic() - asked_s >= STORE_ASK_S:
                    asked_s = time.monotonic()
                    self._outbox.append(StoreGet(self._identity.replica, key))
                    self._wake()
                self._lock.wait(STORE_ASK_S)
            return self._values[key]

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _send_reliably(self, message: Message) -> None:
        with self._lock:
            self._seq += 1
            who = {"seq": self._seq, "replica": self._identity.replica}
            if hasattr(message, "incarnation"):
                who["incarnation"] = self.incarnation  # type: ignore[assignment]
            message = msgspec.structs.replace(message, **who)
            self._unacknowledged[self._seq] = (message, 0.0)
        self._wake()

    def _ask_for_lease(self) -> None:
        with self._lock:
            self._ticket += 1
            self._request = (LeaseRequest(self._identity.replica, self.incarnation, self._ticket), 0.0)
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"!")
        except (BlockingIOError, OSError):
            return  # the thread is awake already, or gone

    # --- the link's thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            dealer = link_socket(context, self._keys, immediate=True)
            poller = zmq.Poller()
            poller.register(dealer, zmq.POLLIN)
            poller.register(self._wake_out, zmq.POLLIN)
            while not self._stopping.is_set():
                ready = dict(poller.poll(self._pause_ms()))
                if self._wake_out.fileno() in ready:
                    self._wake_out.recv(4096)
                if dealer in ready:
                    self._take_in(dealer)
                self._give_out(dealer)
        except Exception as error:  # noqa: BLE001  (a thread's outermost frame; raised again by every caller)
            self._failure = SidebandError(f"the sideband link has failed: {error!r}")
        finally:
            context.destroy(linger=0)

    def _pause_ms(self) -> int:
        """Until the next beat may be sent, or somebody wakes us."""
        if self._unready:
            return int(UNREADY_S * 1000)
        due_s = self._beaten_s + (MIN_BEAT_GAP_S if self._nudged else self._beat_s)
        return max(1, math.ceil(1000 * min(due_s - time.monotonic(), WAIT_SLICE_S)))

    def _take_in(self, dealer: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frames = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode(frames[0])
            except BadFrame:
                continue
            self._heard_s = time.monotonic()
            self._down_bytes += len(frames[0])
            self._budget.spend(len(frames[0]), self._heard_s)
            if isinstance(message, Stamps):
                self._clock.take(Exchange(message.echo_s, message.received_s, message.sent_s, self._heard_s))
            else:
                self._deliver(message)

    def _deliver(self, message: Message) -> None:
        """Put a message into the mailbox of whoever waits for it."""
        with self._lock:
            if isinstance(message, Ack):
                self._joined = self._joined or message.seq == HELLO_SEQ
                self._unacknowledged.pop(message.seq, None)
            elif isinstance(message, Lease):
                if self._request is not None and self._request[0].ticket == message.ticket:
                    self._request = None
                    self._leases.put(message)
            elif isinstance(message, StoreValue):
                if message.value is not None:
                    self._values[message.key] = message.value
            elif isinstance(message, Refused):
                self._failure = _refused(message, self._joined)
            else:
                self._orders.put(message)
            self._lock.notify_all()
        if isinstance(message, Abort | Epoch | Refused):
            self._heed(message)

    def _give_out(self, dealer: zmq.Socket[bytes]) -> None:
        now_s = time.monotonic()
        if now_s - self._heard_s > self._hub_timeout_s and self._failure is None:
            self._failure = SidebandError(
                f"the hub at {self._keys.address} has been silent for {self._hub_timeout_s:g} s"
            )
        # Not connected, or a hub that does not read: nothing is queued for it, because it would come too late.
        self._unready = not dealer.poll(0, zmq.POLLOUT)
        if not self._unready:
            self._send_due(dealer, now_s)

    def _send_due(self, dealer: zmq.Socket[bytes], now_s: float) -> None:
        with self._lock:
            due, self._outbox = self._outbox, []
            due += self._repeats(now_s)
        # Beats give way to what must not be lost; one every beat_s is owed in any case.
        soon = self._nudged and self._budget.allows(self._beat_bytes, now_s)
        due_after_s = MIN_BEAT_GAP_S if soon else self._beat_s
        if now_s - self._heard_s > SILENT_S:
            due_after_s = max(due_after_s, SILENT_GAP_S)
        if now_s - self._beaten_s >= due_after_s:
            self._nudged, self._beaten_s = False, now_s
            due.append(self._probe(self.incarnation))
        if now_s - self._examined_s >= VITALS_S:
            self._examined_s = now_s
            due.append(self._examined())
        for message in due:
            try:
                frame = encode(message)
                dealer.send(frame, zmq.NOBLOCK)
                self._up_bytes += len(frame)
                self._budget.spend(len(frame), now_s)
                if type(message) is Beat:
                    self._beat_bytes = len(frame)
            except zmq.Again:
                return  # the hub does not read; what matters is repeated
            except BadFrame:
                self._drop(message)

    def _drop(self, message: Message) -> None:
        """A message that can never be sent; training does not end for it."""
        self.unsendable += 1
        with self._lock:
            self._unacknowledged.pop(getattr(message, "seq", 0), None)
            self._lock.notify_all()

    def _examined(self) -> Vitals:
        machine, best = self._vitals(), self._clock.best()
        return Vitals(
            replica=self._identity.replica,
            incarnation=self.incarnation,
            sent_s=time.monotonic(),
            machine=machine,
            offset_s=best.offset_s if best else None,
            rtt_s=best.rtt_s if best else None,
            up_bytes=self._up_bytes,
            down_bytes=self._down_bytes,
            rtt_usual_s=self._clock.usual_rtt_s(),
        )

    def _repeats(self, now_s: float) -> list[Message]:
        """What is due for its first or next sending, oldest first."""
        due: list[Message] = []
        for seq, (message, sent_s) in self._unacknowledged.items():
            if now_s - sent_s >= REPEAT_S:
                self._unacknowledged[seq] = (message, now_s)
                due.append(message)
        if self._request is not None and now_s - self._request[1] >= REPEAT_S:
            self._request = (self._request[0], now_s)
            due.append(self._request[0])
        return due


def _nothing(_: Message) -> None:
    return None


def _refused(refused: Refused, joined: bool) -> TsugiError:
    """What `Refused` means to a replica that the hub had let in, and to one that it had not."""
    if refused.quarantined:
        return QuarantinedError(refused.reason)
    if refused.fenced:
        return FencedError(refused.reason)
    if joined:
        return TrainingError(f"the run has failed: {refused.reason}")
    return LaunchError(f"the hub refused this replica: {refused.reason}")
