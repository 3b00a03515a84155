"""The hub's sockets and thread around the pure state machine of core.hub.hub."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from tsugi_kpool.core.effects import ASKER, HubPlan, Send, Told
from tsugi_kpool.core.events import Resumed
from tsugi_kpool.core.hub import endings, liveness
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.priority_queue import PriorityQueue
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.hub.tickets import Tickets
from tsugi_kpool.core.messages import FleetStatus, Message
from tsugi_kpool.errors import MachineError
from tsugi_kpool.sideband.addresses import is_loopback
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.signing import verified
from tsugi_kpool.sideband.sockets import ZAP_DOMAIN, hub_socket

from .data_server import DataServer
from .dispatcher import Dispatcher, Offered
from .egress import Answer, Egress
from .fitting import StatusCache
from .ingress import USUAL, Admission, Ingress, Limits
from .journal import Journal

TICK_MS = 50
PROBE_S = 1.0
"""Period of writing to silent members, to see whether their connections still stand."""


class HubServer:
    """Owns the hub: one thread, one ROUTER socket. `start`, `stop`, and questions from other threads.

    Args:
        plan: The run's plan.
        keys: The run's keys; `start` returns them with the address filled in.
        tell: Called in the hub's thread with events, steps and what concerns checkpoints; must not raise.
        journal: Path of the write-ahead log. If the file exists, the hub continues from it. None
            is for a hub that is never restarted.
        limits: How much one connection may send.
        data: The run's prepared data, for machines that join: the listing, its files by name, and those of the
            checkpoint that it goes on from.

    Raises:
        MachineError: the journal cannot be gone on from.
    """

    def __init__(
        self,
        plan: HubPlan,
        keys: RunKeys,
        tell: Callable[[Told], None],
        journal: Path | None = None,
        limits: Limits = USUAL,
        data: tuple[bytes, Mapping[str, Path]] | None = None,
    ) -> None:
        self._keys, self._limits = keys, limits
        self._tell = tell
        self._journal = Journal(journal, tell) if journal is not None else None
        self._data = None if data is None else DataServer(*data, self.deliver)
        if self._data is not None:
            plan = replace(plan, listing=self._data.address)
        now_s = time.monotonic()
        self._hub = self._journal.open(plan, now_s) if self._journal is not None else Hub(plan, now_s)
        self._hub.rounds.lottery = secrets.token_hex(16)
        self._hub.rounds.verify = verified
        self._status_cache = StatusCache(lambda now_s: fleet_status(self._hub, now_s))
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._interrupting = threading.Event()
        self._saving, self._passed_over = threading.Event(), frozenset[int]()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tsugi-hub", daemon=True)
        self._ticked_s = self._probed_s = now_s
        self.take: Callable[[bytes, Offered], None] | None = None
        """Called in the hub's thread with what a machine offers of its adapter or a checkpoint; set before `start`,
        must not raise. `deliver` answers."""
        self._queue = PriorityQueue()
        self._queued: list[Answer] = []
        """Effects decided in other threads; the hub's thread carries them out."""

    def start(self, bind: str, port: int, insecure: bool = False) -> RunKeys:
        """Listen and begin; returns the keys with the address that replicas connect to.

        Args:
            bind: An address of this machine.
            port: 0 takes a free one.
            insecure: Listen to more than this machine even if there are no keys.

        Raises:
            MachineError: this address cannot be listened at; nothing has been started.
        """
        if not self._keys.curve and not insecure and not is_loopback(bind):
            raise MachineError(f"the hub does not listen on {bind} without keys: anybody could take part")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        # Before the socket is bound: nobody may connect while no key is asked for.
        self._authenticator = ThreadAuthenticator(self._context) if self._keys.curve else None
        if self._authenticator is not None:
            self._authenticator.start()
            self._authenticator.configure_curve_callback(ZAP_DOMAIN.decode(), Admission(self._keys.roles()))
        self._socket = hub_socket(self._context, self._keys, asks=liveness.patient(self._hub.plan))
        try:
            self._socket.setsockopt(zmq.IPV6, ":" in bind)
            self._socket.bind(f"tcp://{f'[{bind}]' if ':' in bind else bind}:{port or '*'}")
        except zmq.ZMQError as error:
            self._close()
            raise MachineError(f"the hub cannot listen on {bind}:{port}: {error.strerror}") from error
        self._ingress = Ingress(self._socket, self._keys, self._hub.refusals, self._limits)
        plan = self._hub.plan
        tickets = Tickets(plan.run, self._keys.hub_secret) if plan.exchange else None
        self._hub.rounds.tickets = tickets or self._hub.rounds.tickets
        self._egress = Egress(self._socket, self._tell, self._journal, tickets)
        self._dispatcher = Dispatcher(self._hub, self._egress, self._interrupting.set, self._keys.hub_secret)
        if self._data is not None:
            self._dispatcher.give = self._data.take
            self._data.start()
        self._dispatcher.take = self.take
        if self._hub.resumed:
            self._tell(Resumed(self._hub.rounds.version, self._hub.rounds.number))
        self._thread.start()
        return replace(self._keys, address=self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def stop(self) -> None:
        """End the thread and close everything; an error of the thread is raised here."""
        self._stopping.set()
        if self._data is not None:
            self._data.stop()
        if self._thread.ident is None:
            return
        self._thread.join(timeout=10)
        self._close()
        if self._error is not None:
            raise self._error

    def _close(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=0)
        if self._journal is not None:
            self._journal.close()

    def status(self) -> FleetStatus:
        """Return the fleet's status."""
        with self._lock:
            return fleet_status(self._hub, time.monotonic())

    def cached_status(self) -> FleetStatus:
        """Return the fleet's status; that of a large fleet may be a moment old. For callers that ask several times a
        second."""
        with self._lock:
            return self._status_cache.at(time.monotonic())

    def ask(self, question: Callable[[Hub], Any]) -> Any:
        """Read something from the hub's state under its lock."""
        with self._lock:
            return question(self._hub)

    def interrupt(self) -> None:
        """Stop the fleet after its present steps; it keeps what it has trained."""
        self._interrupting.set()

    def save(self, passed_over: frozenset[int] = frozenset()) -> None:
        """Make the next committed round a checkpoint; these replicas write no anchors while others are there."""
        self._passed_over = passed_over
        self._saving.set()

    def give_up(self, reason: str, replica: int | None = None) -> None:
        """Fail the run for a reason outside the hub, by this replica's fault: all members are told, and it is
        recorded."""
        with self._lock:
            self._queued += [(each, None) for each in endings.fail(self._hub, reason, replica)]

    def abandon(self) -> None:
        """End an interrupted run at once: the user does not wait for its end."""
        with self._lock:
            endings.abandon(self._hub)

    def refused(self, kind: Kind, times: int) -> None:
        """Count what was refused elsewhere on the hub's machine, by the run's exchange, together with our own."""
        with self._lock:
            self._hub.refusals.add(kind, times)

    def leave(self, reasons: dict[int, str]) -> None:
        """Remove replicas whose processes have ended, each for its reason; the others go on."""
        with self._lock:
            effects = self._hub.leave(reasons, time.monotonic())
            self._queued += [(each, None) for each in effects]

    @property
    def replaced_beats(self) -> int:
        """Number of beats that the hub had no time for, and that newer beats of the same replicas replaced."""
        return self._queue.replaced

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn()
            now_s = time.monotonic()
            # What other threads decided last, such as a run's failure, is still recorded and sent.
            self._egress.carry_out(self._take_queued(), now_s - self._hub.started_s, now_s)
        except BaseException as error:  # noqa: BLE001  (a thread's outermost frame; raised again by stop)
            self._error = error

    def _pause_ms(self) -> int:
        """Return the milliseconds until the next tick or the end of a fire delay."""
        until_s = self._hub.held_until_s
        if until_s is None:
            return TICK_MS
        return max(0, min(TICK_MS, math.ceil((until_s - time.monotonic()) * 1000)))

    def _turn(self) -> None:
        """One turn: take in messages, let time pass, and carry out the decisions, with one lock and one journal
        flush."""
        ready = bool(self._queue) or self._socket.poll(
            self._pause_ms()
        )  # with work at hand the ingress looks by itself
        now_s = time.monotonic()
        if ready and not self._queue.full:
            self._queue.put(self._ingress.receive(now_s))
        with self._lock:
            # First what other threads have decided: the hub's state has it already, so its records must come first in
            # the journal.
            answers = self._take_queued()
            answers += [
                each for route, message in self._queue.take() for each in self._dispatcher.hear(route, message, now_s)
            ]
            held_until_s = self._hub.held_until_s
            if now_s - self._ticked_s >= TICK_MS / 1000 or (held_until_s is not None and now_s >= held_until_s):
                self._ticked_s = now_s
                answers += self._let_time_pass(now_s)
        # Without the lock: a journal flush waits for the disk, and other threads ask for the status meanwhile.
        self._egress.carry_out(answers, now_s - self._hub.started_s, now_s)

    def deliver(self, route: bytes, message: Message) -> None:
        """Send a message over a connection with the next turn. Any thread."""
        with self._lock:
            self._queued.append((Send(ASKER, message), route))

    def _take_queued(self) -> list[Answer]:
        queued, self._queued = self._queued, []
        return queued

    def _let_time_pass(self, now_s: float) -> list[Answer]:
        if now_s - self._probed_s >= PROBE_S:
            self._probed_s = now_s
            for replica in liveness.doubtful(self._hub, now_s):
                liveness.connected(self._hub, replica, self._egress.reaches(replica))
            self._dispatcher.check_places()
        effects = self._hub.tick(now_s)
        if self._interrupting.is_set() and not self._hub.interrupted:
            effects += self._hub.interrupt()
        if self._saving.is_set():
            # Cleared first: a request that comes in between is a new one.
            self._saving.clear()
            self._hub.save(self._passed_over)
        if self._journal is not None:
            self._journal.retry(now_s)
        self._ingress.look_around(now_s)
        self._dispatcher.look_around(self._ingress.knows, now_s)
        effects += self._hub.refusals.events(now_s)
        return [(each, None) for each in effects]
