"""The hub's sockets and thread around the pure state machine of core.hub."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import zmq
from zmq.auth.thread import ThreadAuthenticator

from tsugi_kpool.core.effects import Effect, Event, HubPlan, Send
from tsugi_kpool.core.hub import Hub
from tsugi_kpool.core.messages import (
    MAX_FRAME_BYTES,
    BadFrame,
    FleetStatus,
    Message,
    ReplicaStatus,
    StatusRequest,
    decode,
    encode,
)
from tsugi_kpool.core.status import SILENT_S, fleet_status
from tsugi_kpool.errors import EnvironmentError_

from .keys import Role, RunKeys
from .sockets import ZAP_DOMAIN, hub_socket

TICK_MS = 50
HEAD_BYTES = 4_096
"""Room in a status for all that is not a row of a replica."""


class HubServer:
    """Owns the hub: one thread, one ROUTER socket. `start`, `stop`, and questions from other threads.

    Args:
        plan: What the hub must know of the run.
        keys: The run's keys; `start` returns them with the address filled in.
        record: Called in the hub's thread with (name, data) of every event; must not raise.
    """

    def __init__(self, plan: HubPlan, keys: RunKeys, record: Callable[[str, dict[str, Any]], None]) -> None:
        self._keys = keys
        self._roles = keys.roles()
        self._record = record
        self._hub = Hub(plan, time.monotonic())
        self._lock = threading.Lock()
        self._routes: dict[int, bytes] = {}
        self._stopping = threading.Event()
        self._interrupting = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tsugi-hub", daemon=True)
        self.bad_frames = 0
        self.unsent = 0

    def start(self, bind: str, port: int) -> RunKeys:
        """Listen and begin; returns the keys with the address that replicas connect to.

        Raises:
            EnvironmentError_: this address cannot be listened at; nothing has been started.
        """
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(ZAP_DOMAIN.decode(), _Admission(self._roles))
        self._socket = hub_socket(self._context, self._keys)
        try:
            self._socket.bind(f"tcp://{bind}:{port or '*'}")
        except zmq.ZMQError as error:
            self._close()
            raise EnvironmentError_(f"the hub cannot listen on {bind}:{port}: {error.strerror}") from error
        self._thread.start()
        return replace(self._keys, address=self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def stop(self) -> None:
        """End the thread and close everything; an error of the thread is raised here."""
        self._stopping.set()
        if self._thread.ident is None:
            return
        self._thread.join(timeout=10)
        self._close()
        if self._error is not None:
            raise self._error

    def _close(self) -> None:
        self._authenticator.stop()
        self._context.destroy(linger=0)

    def status(self) -> FleetStatus:
        """The fleet as it is now."""
        with self._lock:
            return fleet_status(self._hub, time.monotonic())

    def ask(self, question: Callable[[Hub], Any]) -> Any:
        """Read something from the hub's state under its lock."""
        with self._lock:
            return question(self._hub)

    def interrupt(self) -> None:
        """Let the fleet stop after its present micro-steps and keep what it has."""
        self._interrupting.set()

    @property
    def alive(self) -> bool:
        """False once the thread has ended, for whatever reason."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if self._socket.poll(TICK_MS):
                    self._drain_socket()
                with self._lock:
                    self._perform(self._hub.tick(time.monotonic()))
                    if self._interrupting.is_set() and not self._hub.interrupted:
                        self._perform(self._hub.interrupt())
        except BaseException as error:  # noqa: BLE001  (a thread's outermost frame; raised again by stop)
            self._error = error

    def _drain_socket(self) -> None:
        """Handle all that has arrived, so that a burst is one turn of the loop."""
        while True:
            try:
                identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                message = decode(frames[0].bytes) if len(frames) == 1 else None
            except BadFrame:
                message = None
            if message is None:
                self.bad_frames += 1
            elif self._may_send(frames[0], message):
                self._handle(identity.bytes, message)

    def _may_send(self, frame: zmq.Frame, message: Message) -> bool:
        """Whether the key of the connection that it came over allows this message."""
        role = self._roles.get(str(frame.get("User-Id")))
        return role is Role.MEMBER or (role is Role.OBSERVER and isinstance(message, StatusRequest))

    def _handle(self, identity: bytes, message: Message) -> None:
        with self._lock:
            now_s = time.monotonic()
            if isinstance(message, StatusRequest):
                self._post(identity, fitting(fleet_status(self._hub, now_s)))
                return
            effects = self._hub.receive(message, now_s)
            asker = getattr(message, "replica", -1)
            if self._is_member(message):
                self._routes[asker] = identity
            self._perform(effects, {asker: identity})

    def _is_member(self, message: Message) -> bool:
        """Whether it comes from the process that the hub has let in: only that one gets the orders."""
        member = self._hub.members.get(getattr(message, "replica", -1))
        return member is not None and member.hello.incarnation == getattr(message, "incarnation", None)

    def _perform(self, effects: list[Effect], answer_to: dict[int, bytes] | None = None) -> None:
        """Send and record; what goes to the asker takes the asker's own route, let in or not."""
        for effect in effects:
            if isinstance(effect, Event):
                self._record(effect.name, effect.data)
            elif isinstance(effect, Send):
                route = (answer_to or {}).get(effect.replica) or self._routes.get(effect.replica)
                if route is not None:
                    self._post(route, effect.message)

    def _post(self, identity: bytes, message: Message) -> None:
        """Send without waiting; what cannot be sent now counts as lost and is repeated later."""
        try:
            self._socket.send_multipart([identity, encode(message)], zmq.NOBLOCK)
        except (zmq.ZMQError, BadFrame):
            self.unsent += 1


def fitting(status: FleetStatus) -> FleetStatus:
    """A status that fits into a frame: of a large fleet the replicas that are silent, slow, or lag most."""
    sizes = {row.replica: len(msgspec.msgpack.encode(row)) for row in status.replicas}
    left = MAX_FRAME_BYTES - HEAD_BYTES
    if sum(sizes.values()) <= left:
        return status
    shown = []
    for row in sorted(status.replicas, key=_urgency, reverse=True):
        left -= sizes[row.replica]
        if left < 0:
            break
        shown.append(row)
    return msgspec.structs.replace(status, replicas=tuple(sorted(shown, key=lambda row: row.replica)))


def _urgency(row: ReplicaStatus) -> tuple[bool, bool, float]:
    return row.silent_s > SILENT_S, row.slowness is not None, row.lag_s


class _Admission:
    """ZAP's question for every connection: is this (Z85) one of the run's keys?"""

    def __init__(self, roles: dict[str, Role]) -> None:
        self._admitted = {key.encode() for key in roles}

    def callback(self, _domain: str, key: bytes) -> bool:
        return key in self._admitted
