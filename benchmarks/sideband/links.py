"""Many links of one process, as simulated replicas: real sockets with CURVE, and the frames that replicas send."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import select
import time
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

import zmq

from tsugi_cli.config.compose import compose
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.messages import (
    Ack,
    Beat,
    Commit,
    Fire,
    Generation,
    Hello,
    Lease,
    LeaseRequest,
    Message,
    Reduced,
    Vitals,
    decode,
    encode,
)
from tsugi_kpool.core.messages.facts import MachineFacts
from tsugi_kpool.core.settings import Trigger
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.sockets import link_socket

KPOOL = replace(
    compose(["recipe=smollm2_docstrings"]).kpool,
    n=8,
    k=2,
    trigger=Trigger.COUNT,
    count=4,
    min_steps=2,
    max_steps=10,
    sync_wait_s=0.0,
)
FRAMES_PER_S = 10
SETTLED_S = 0.5
"""After a Commit every link has shown the new version: then the beat that fills the pool is the last one needed."""
LEASE_S = 10
"""train.lease_ahead_s"""


@dataclass
class Times:
    """What one client process has seen, on the machine's monotonic clock."""

    filled: dict[int, float] = field(default_factory=dict)
    """Round to when the beat that filled its pool was sent (by the process that sent it)."""
    last_reduced: dict[int, float] = field(default_factory=dict)
    fired: list[tuple[int, float]] = field(default_factory=list)
    committed: list[tuple[int, float]] = field(default_factory=list)
    joined_s: float = 0.0
    sent_s: list[float] = field(default_factory=list)
    frames_down: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    unsent: int = 0
    """Frames that the hub was too slow for."""


class Member:
    """One link: the state that its frames show."""

    def __init__(self, number: int, links: int, context: zmq.Context[zmq.Socket[bytes]], keys: RunKeys) -> None:
        self.number, self.incarnation, self._links = number, f"{number:016x}", links
        self.socket = link_socket(context, keys)
        self.seat = seat_key(keys.hub_secret, number)
        self.generation = self.version = self.reduced = 0
        self.steps, self.known = KPOOL.max_steps, False
        self.full, self.ticket, self.leased = False, 1, True
        self.due: list[tuple[float, Message]] = []

    def beat(self) -> Beat:
        """All but one member have buffered what a round needs on average; that one lacks a step for a while."""
        fills = self.number == filler(self.version + 1, self._links)
        pooled = KPOOL.count - (fills and not self.full)
        self.steps += 1
        return Beat(
            self.number, self.incarnation, self.generation, self.version, self.reduced, "training", self.steps, 1,
            self.steps * 90, self.steps * 0.1, self.steps * 0.1, 0.1, 1.0, 1e-3, (pooled,) * KPOOL.n, 10**9, False,
        )  # fmt: skip

    def reduced(self, fire: Fire) -> Reduced:
        return Reduced(
            fire.round + 1, self.number, self.incarnation, fire.generation, fire.round,
            f"digest {fire.round}".ljust(64), 0.1, 10**6, () if self.number else (900,) * self._links, 0.0, 0.0,
        )  # fmt: skip


def filler(round: int, links: int) -> int:
    """The member whose beat fills the pool of this round."""
    return round * 7919 % links


class Client:
    """Many members in one poll loop."""

    def __init__(self, numbers: list[int], links: int, keys: RunKeys, spread_s: float) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 2 * len(numbers) + 10)
        self.members = [Member(number, links, self._context, keys) for number in numbers]
        self._by_file = {member.socket.getsockopt(zmq.FD): member for member in self.members}
        self._links, self._spread_s, self._draw = links, spread_s, random.Random(numbers[0])
        self.times = Times()
        self._newest: tuple[bytes, Message | None] = (b"", None)
        # Edge-triggered, over ZeroMQ's own files: polling hundreds of sockets one by one would be most of the work.
        self._epoll = select.epoll()
        for file in self._by_file:
            self._epoll.register(file, select.EPOLLIN | select.EPOLLET)
        self._timed: list[tuple[float, Member, str, Any]] = []

    def run(self, pipe: Connection) -> None:
        """Until something comes through the pipe."""
        turns = [(i / len(self.members) / FRAMES_PER_S, member) for i, member in enumerate(self.members)]
        began_s, turn = time.monotonic(), 0
        while not pipe.poll():
            for file, _ in self._epoll.poll(0.001):
                self._take_in(self._by_file[file])
            now_s = time.monotonic()
            while began_s + turn // len(turns) / FRAMES_PER_S + turns[turn % len(turns)][0] <= now_s:
                self._regular(turns[turn % len(turns)][1], turn // len(turns), now_s)
                turn += 1
            self._timed_out(now_s)
        self._context.destroy(linger=0)

    def _regular(self, member: Member, count: int, now_s: float) -> None:
        """One of the ten frames of a second; besides those, a request for data now and then."""
        if not member.known:
            if count % FRAMES_PER_S == 0:
                who = (member.number, member.incarnation)
                self._send(member, Hello(1, *who, "bench", 1, "c0ffee", "layout", member.seat))
                self._send(member, LeaseRequest(member.number, member.incarnation, 1))
        elif (count + member.number) % FRAMES_PER_S == 0:
            facts = MachineFacts(0.9, 0.9, 0.01, 0.0, 0.0, 0.5, 1.0, 0.5, 0.0, 0.0)
            self._send(member, Vitals(member.number, member.incarnation, now_s, facts, 0.1, 0.001, 10**6, 10**6))
            if member.leased and (count // FRAMES_PER_S + member.number) % LEASE_S == 0:
                member.ticket, member.leased = member.ticket + 1, False
                self._send(member, LeaseRequest(member.number, member.incarnation, member.ticket))
        else:
            self._send(member, member.beat())

    def _timed_out(self, now_s: float) -> None:
        """What is to be sent at a time of its own: reduced rounds, and the beats that fill pools."""
        for entry in [entry for entry in self._timed if entry[0] <= now_s]:
            self._timed.remove(entry)
            _, member, kind, fire = entry
            if kind == "reduce":
                member.reduced = fire.round
                self._send(member, member.reduced(fire))
                self.times.last_reduced[fire.round] = time.monotonic()
            else:
                member.full = True
                self.times.filled[member.version + 1] = time.monotonic()
                self._send(member, member.beat())

    def _take_in(self, member: Member) -> None:
        while True:
            try:
                frame = member.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            now_s = time.monotonic()
            self.times.frames_down += 1
            self.times.bytes_down += len(frame)
            if (
                frame != self._newest[0]
            ):  # an order is the same for every link: decoding it a thousand times is no link's cost
                self._newest = (frame, decode(frame))
            if self._newest[1] is not None:
                self._obey(member, self._newest[1], now_s)

    def _obey(self, member: Member, message: Message, now_s: float) -> None:
        if isinstance(message, Ack):
            member.known = True
        elif isinstance(message, Generation) and not member.generation:
            member.generation, self.times.joined_s = message.generation, now_s
            self._fill_later(member, now_s)
        elif isinstance(message, Fire) and message.round > member.reduced:
            self.times.fired.append((message.round, now_s))
            self._timed.append((now_s + self._draw.uniform(0.0, self._spread_s), member, "reduce", message))
        elif isinstance(message, Commit) and message.round > member.version:
            self.times.committed.append((message.round, now_s))
            member.version, member.full = message.round, False
            self._fill_later(member, now_s)
        elif isinstance(message, Lease):
            member.leased = True

    def _fill_later(self, member: Member, now_s: float) -> None:
        if member.number == filler(member.version + 1, self._links):
            self._timed.append((now_s + SETTLED_S, member, "fill", None))

    def _send(self, member: Member, message: Message) -> None:
        frame = encode(message)
        try:
            member.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self.times.unsent += 1
            return
        self.times.sent_s.append(time.monotonic())
        self.times.bytes_up += len(frame)
        self._take_in(member)  # sending may have taken the file's signal with it


class Silent(Client):
    """Links that say hello once and then only note what comes: for the cost of sending alone."""

    def greet(self) -> None:
        for member in self.members:
            member.socket.send(b"hello")
            self._take_in(member)  # sending may have taken the file's signal with it

    def _regular(self, _member: Member, _count: int, _now_s: float) -> None:
        pass

    def _obey(self, _member: Member, message: Message, now_s: float) -> None:
        if isinstance(message, Fire):
            self.times.fired.append((message.round, now_s))


def client_process(numbers: list[int], links: int, keys: RunKeys, spread_s: float, pipe: Connection) -> None:
    allow_files(4 * len(numbers) + 1000)
    os.sched_setaffinity(0, set(cores()[1:]) or {cores()[0]})
    client = Client(numbers, links, keys, spread_s)
    pipe.send("ready")
    pipe.recv()
    client.run(pipe)
    pipe.send(client.times)


def allow_files(count: int) -> None:
    """Every connection takes a few file descriptors."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard) if hard != resource.RLIM_INFINITY else count, hard))


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(os.getppid() if multiprocessing.parent_process() else 0))
