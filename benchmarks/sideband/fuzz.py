"""Hostile frames and strangers against the hub: does anything crash, grow, slow down, or change what is trained?

    python benchmarks/sideband/fuzz.py --frames 1000000 --live 100000 --strangers 400

  decoder    mutated frames through the decoder, the guard and the hub's state machine, in one process
  live       mutated frames over a real CURVE connection with a member's key, without the limit on floods
  strangers  wrong keys, no encryption, silence and garbage; how long an honest question takes meanwhile

"Unchanged" compares all that rounds, leases and members are decided by, before and after.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import zmq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness import save

from tests.support import hub_plan
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.messages import BadFrame, Hello, LeaseRequest, StatusRequest, decode, encode
from tsugi_kpool.sideband.hub.ingress import Limits
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.observer import Observer
from tsugi_kpool.sideband.sockets import link_socket
from tsugi_kpool.sim.hostile import frames_of, mutated, samples

PLAN = hub_plan(sample_tokens=10)
UNLIMITED = Limits(per_s=1e9, burst=1e9)
WAIT_S = 30.0


def facts(hub: Hub) -> list[Any]:
    """What training is decided by."""
    members = [(m.hello, m.beat, m.gone, m.committed_tokens) for _, m in sorted(hub.members.items())]
    leases = [hub.leases.issued, [hub.leases.newest_ticket(replica) for replica in hub.members]]
    rounds = [hub.rounds.number, hub.rounds.version, hub.rounds.in_flight, list(hub.tally.pooled)]
    return [
        str(hub.stage),
        hub.failure,
        hub.generation,
        members,
        leases,
        rounds,
        dict(hub.store),
        dict(hub.evaluations),
    ]


def begin(receive: Callable[[Any, float], Any]) -> None:
    """Two members join, and one has data."""
    for replica in range(PLAN.replicas):
        receive(Hello(1, replica, os.urandom(8).hex(), "h", 1, PLAN.config_hash, "layout"), 0.0)


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / 2**20


def decoder(count: int) -> dict[str, Any]:
    """In the name of a member, without knowing which process it is."""
    hub = Hub(PLAN, 0.0)
    begin(hub.receive)
    hub.receive(LeaseRequest(0, hub.members[0].hello.incarnation, 1), 0.0)
    frames, draw = frames_of(samples(0, "guessed", PLAN.kpool.n)), random.Random(0)
    guard, before = Guard(hub), facts(hub)
    tally = {"malformed": 0, "refused": 0, "heard": 0}
    slowest_ms, start_mib, started_s = 0.0, 0.0, time.perf_counter()
    for number in range(count):
        if number == count // 10:
            start_mib = resident_mib()
        frame, from_s = mutated(draw, frames), time.perf_counter()
        try:
            message = decode(frame)
        except BadFrame:
            tally["malformed"] += 1
        else:
            refused = guard.verdict(message, None)
            tally["refused" if refused else "heard"] += 1
            if not refused:
                hub.receive(message, 1.0)
        slowest_ms = max(slowest_ms, (time.perf_counter() - from_s) * 1000)
    return {
        "frames": count,
        "seconds": round(time.perf_counter() - started_s, 1),
        **tally,
        "slowest_ms": round(slowest_ms, 2),
        "growth_mib_after_a_tenth": round(resident_mib() - start_mib, 2),
        "unchanged": facts(hub) == before,
    }


@contextmanager
def serving(limits: Limits) -> Iterator[HubServer]:
    server = HubServer(PLAN, RunKeys.generate(), lambda _: None, limits=limits)
    server.keys = server.start("127.0.0.1", 0)
    server.ask(lambda hub: begin(hub.receive))
    try:
        yield server
    finally:
        server.stop()


def question_ms(server: HubServer, seconds: float) -> dict[str, float]:
    """How long an honest observer waits for the status."""
    taken = []
    with Observer(server.keys) as observer:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s or len(taken) < 20:
            from_s = time.perf_counter()
            observer.send(StatusRequest())
            if observer.receive(WAIT_S) is None:
                raise RuntimeError("the hub does not answer")
            taken.append((time.perf_counter() - from_s) * 1000)
            time.sleep(0.01)
    cuts = statistics.quantiles(taken, n=100)
    return {"questions": len(taken), "p50_ms": round(cuts[49], 2), "p99_ms": round(cuts[98], 2)}


def live(count: int) -> dict[str, Any]:
    """Over a socket, from a holder of the member key."""
    with serving(UNLIMITED) as server:
        before, quiet = server.ask(facts), question_ms(server, 2.0)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        dealer = link_socket(context, server.keys)
        frames, draw = frames_of(samples(0, "guessed", PLAN.kpool.n)), random.Random(1)
        start_mib, started_s = 0.0, time.perf_counter()
        for number in range(count):
            if number == count // 10:
                start_mib = resident_mib()
            dealer.send(mutated(draw, frames))
            while dealer.poll(0):
                dealer.recv()
        dealer.send(encode(StatusRequest()))
        until_s = time.monotonic() + WAIT_S
        while time.monotonic() < until_s and dealer.poll(1000):
            dealer.recv()
        grown_mib, seconds = resident_mib() - start_mib, time.perf_counter() - started_s
        after, refused = server.ask(facts), server.status().refused
        context.destroy(linger=0)
        return {
            "frames": count,
            "seconds": round(seconds, 1),
            "refused": refused,
            "growth_mib_after_a_tenth": round(grown_mib, 2),
            "question_before": quiet,
            "question_after": question_ms(server, 2.0),
            "unchanged": after == before,
        }


def strangers(count: int) -> dict[str, Any]:
    """A quarter of each kind, all at once, while an honest observer asks."""
    with serving(Limits()) as server:
        before, quiet = server.ask(facts), question_ms(server, 3.0)
        start_mib, context = resident_mib(), zmq.Context()
        context.set(zmq.MAX_SOCKETS, 4 * count + 100)
        host, port = server.keys.address.removeprefix("tcp://").split(":")
        plain = [socket.create_connection((host, int(port))) for _ in range(count // 2)]
        for garbage in plain[::2]:
            garbage.sendall(os.urandom(300))
        kept = [stranger(context, server.keys, with_key=number % 2 == 0) for number in range(count // 2)]
        during = question_ms(server, 8.0)
        refused = server.status().refused
        for each in (*plain, *kept):
            each.close()
        context.destroy(linger=0)
        return {
            "connections": count,
            "refused": refused,
            "growth_mib": round(resident_mib() - start_mib, 2),
            "question_before": quiet,
            "question_during": during,
            "question_after": question_ms(server, 3.0),
            "unchanged": server.ask(facts) == before,
        }


def stranger(context: Any, keys: RunKeys, with_key: bool) -> Any:
    """A ZeroMQ client with a key of its own, or without any."""
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    if with_key:
        public, secret = zmq.curve_keypair()
        dealer.curve_serverkey = keys.hub_public.encode()
        dealer.curve_publickey, dealer.curve_secretkey = public, secret
    dealer.connect(keys.address)
    dealer.send(encode(StatusRequest()))
    return dealer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--live", type=int, default=100_000)
    parser.add_argument("--strangers", type=int, default=400)
    arguments = parser.parse_args()
    figures = {}
    for name, measure, count in (
        ("decoder", decoder, arguments.frames), ("live", live, arguments.live),
        ("strangers", strangers, arguments.strangers),
    ):  # fmt: skip
        figures[name] = measure(count)
        print(name, figures[name], flush=True)
    if not all(figure["unchanged"] for figure in figures.values()):
        raise SystemExit("something that training is decided by has changed")
    save("sideband_fuzz", figures)


if __name__ == "__main__":
    main()
