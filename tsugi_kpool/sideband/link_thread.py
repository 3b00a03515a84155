"""The link thread, which owns the DEALER socket: it sends what is due, and delivers what comes in."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

import zmq

from tsugi_kpool.core.messages import BadFrame, Beat, Message, Stamps, Vitals, encode
from tsugi_kpool.core.messages.facts import MachineFacts
from tsugi_kpool.core.replica.clock import ClockFilter, Exchange
from tsugi_kpool.core.replica.heartbeat_pacing import HeartbeatPacing
from tsugi_kpool.errors import SidebandError

from .incoming import MOST_IN_A_ROW, read
from .keys import RunKeys
from .sockets import link_socket, nobody_listens

UNREADY_S = 0.05
"""Period of looking at the socket while nothing can be sent."""
WAIT_SLICE_S = 0.2
"""Period in which waiting callers check for a failed link."""
GONE_S = 2.0
"""A hub that is never started again counts as gone when nobody has listened for so long."""
LOOK_S = 0.5
"""Period of checking whether somebody listens."""


class Owner(Protocol):
    """The owner of the link thread; all methods are called in that thread."""

    replica: int
    incarnation: str

    def due(self, now_s: float) -> list[Message]:
        """Return the reliable messages to send now."""

    def deliver(self, message: Message) -> None:
        """Take a message of the hub; answers to vitals are not among them."""

    def drop(self, message: Message) -> None:
        """Drop a message that does not fit into a frame and can never be sent."""

    def fail(self, error: SidebandError) -> None:
        """Fail for this reason: nothing will come any more."""


class LinkThread:
    """Owns one thread and one socket. `start`, `stop`, and `wake` when there is something to send.

    Args:
        owner: Whose messages these are.
        keys: The run's keys, with the hub's address.
        pacing: When beats and vitals are due.
        probe: Called in the thread; returns the present Beat. Must be quick and not raise.
        vitals: Called in the thread once a second; returns how the machine is. Must be quick and not raise.
        hub_timeout_s: Silence of the hub after which the line counts as failed.
        hub_returns: Whether a hub that has ended may be started again. Else it lived in replica 0's process, and its
            end is the line's.
        hub_lives: Called in the thread when the hub has been silent for too long: whether its process is known to be
            there. A hub that was only stopped (Ctrl-Z) is waited for.
    """

    def __init__(
        self,
        owner: Owner,
        keys: RunKeys,
        pacing: HeartbeatPacing,
        probe: Callable[[str], Beat],
        vitals: Callable[[], MachineFacts],
        hub_timeout_s: float,
        hub_returns: bool = True,
        hub_lives: Callable[[], bool] = lambda: False,
    ) -> None:
        self._owner, self._keys, self._pacing = owner, keys, pacing
        self._probe, self._vitals, self._hub_timeout_s = probe, vitals, hub_timeout_s
        self._hub_lives, self._patient_s = hub_lives, -math.inf
        self._clock = ClockFilter()
        self._unready, self._connected_s = True, math.inf
        self._watches_end, self._looked_s = not hub_returns, 0.0
        self._stopping = threading.Event()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="tsugi-link", daemon=True)

    def start(self) -> None:
        """Connect; the hub's silence counts from now on."""
        self._pacing.heard_s = time.monotonic()
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread."""
        self._stopping.set()
        self.wake()
        if self._thread.ident is not None:
            self._thread.join(timeout=timeout_s)
        if not self._thread.is_alive():  # else it still looks at them
            self._wake_in.close()
            self._wake_out.close()

    def wake(self) -> None:
        """Wake the thread, to look for what is due. Any thread."""
        try:
            self._wake_in.send(b"!")
        except (BlockingIOError, OSError):
            return  # the thread is awake already, or gone

    # --- the thread ---------------------------------------------------------------------------------------

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
                    # Emptied before the outbox is read: a message that is put in meanwhile wakes the thread again.
                    self._wake_out.recv(4096)
                if dealer in ready:
                    # Take in before sending: what has just been acknowledged is not sent again.
                    self._take_in(dealer)
                self._give_out(dealer)
        except Exception as error:  # noqa: BLE001  (a thread's outermost frame; raised again by every caller)
            self._owner.fail(SidebandError(f"the sideband link has failed: {error!r}"))
        finally:
            context.destroy(linger=0)

    def _pause_ms(self) -> int:
        """Return the milliseconds until the next beat is due; a wake-up ends the pause earlier."""
        if self._unready:
            return int(UNREADY_S * 1000)
        now_s = time.monotonic()
        wait_s = self._pacing.next_s(now_s) - now_s
        return math.ceil(1000 * min(max(wait_s, 0.001), WAIT_SLICE_S))

    def _take_in(self, dealer: zmq.Socket[bytes]) -> None:
        for _ in range(MOST_IN_A_ROW):
            try:
                frames = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = read(frames)
            if message is None:
                continue
            now_s = time.monotonic()
            self._pacing.heard(len(frames[0]), now_s)
            if isinstance(message, Stamps):
                self._clock.take(Exchange(message.echo_s, message.received_s, message.sent_s, now_s))
            else:
                self._owner.deliver(message)

    def _give_out(self, dealer: zmq.Socket[bytes]) -> None:
        now_s = time.monotonic()
        if now_s - max(self._pacing.heard_s, self._patient_s) > self._hub_timeout_s and not self._is_stopped(now_s):
            silent = f"the hub at {self._keys.address} has been silent for {self._hub_timeout_s:g} s"
            self._owner.fail(SidebandError(silent))
        # Not connected, or a hub that does not read: nothing is queued for it, because it would come too late.
        self._unready = not dealer.poll(0, zmq.POLLOUT)
        if not self._unready:
            self._connected_s = now_s
            self._send_due(dealer, now_s)
        elif self._watches_end and now_s - max(self._looked_s, self._connected_s) >= LOOK_S:
            self._look_for_its_end(now_s)

    def _is_stopped(self, now_s: float) -> bool:
        """Return whether the hub's process lives and is only stopped. It is looked for again after as long a silence
        once more."""
        if self._hub_lives():
            self._patient_s = now_s
        return self._patient_s == now_s

    def _look_for_its_end(self, now_s: float) -> None:
        """Find out whether the hub's process has ended, or the connection is cut."""
        address = self._keys.address or ""
        if not nobody_listens(address):
            self._connected_s = max(self._connected_s, now_s - LOOK_S)
        elif now_s - self._connected_s >= GONE_S:
            gone = f"replica 0's process has ended, and with it the hub at {address}"
            self._owner.fail(SidebandError(f"{gone}; this replica's model keeps what it has learnt"))
        self._looked_s = time.monotonic()

    def _send_due(self, dealer: zmq.Socket[bytes], now_s: float) -> None:
        # Reliable messages before beats: if the hub reads slowly, a beat is what may be lost. `takes_beat` clears the
        # flag of news before the beat is made, so that progress in between is in this beat or asks for the next one.
        due = self._owner.due(now_s)
        if self._pacing.takes_beat(now_s):
            due.append(self._probe(self._owner.incarnation))
        if self._pacing.takes_vitals(now_s):
            due.append(self._examined())
        for message in due:
            try:
                frame = encode(message)
                dealer.send(frame, zmq.NOBLOCK)
                self._pacing.sent(len(frame), type(message) is Beat, now_s)
            except zmq.Again:
                return  # the hub does not read; what matters is repeated
            except BadFrame:
                self._owner.drop(message)

    def _examined(self) -> Vitals:
        machine, best = self._vitals(), self._clock.best()
        return Vitals(
            replica=self._owner.replica,
            incarnation=self._owner.incarnation,
            sent_s=time.monotonic(),
            machine=machine,
            offset_s=best.offset_s if best else None,
            rtt_s=best.rtt_s if best else None,
            up_bytes=self._pacing.up_bytes,
            down_bytes=self._pacing.down_bytes,
            rtt_usual_s=self._clock.usual_rtt_s(),
        )
