"""How many replicas does one hub hold, how fast does it decide, and what does it cost?

    python benchmarks/sideband/hub.py --links 1000 --seconds 30

One hub process, bound to one core: its socket with CURVE, its journal and its recorder on disk. `--links` DEALERs on
loopback (links.py), in a few client processes that are bound to the other cores. Every link sends ten frames a second
(nine beats, one with vitals) and takes part in rounds as a replica does: joins, forms its generation, reports what
was fired as reduced, shows what was committed; every ten seconds it asks for data, as with train.lease_ahead_s.

Decision latency is measured where it matters, at the links, on the machine's one monotonic clock, from sending the
frame that makes the decision possible: the beat that fills the pool (Fire), or the last of all the Reduced (Commit).
`first` is until the first link has received the order: the decision itself, one value for every round. `last` is
until all links have, `each` has a value for every link; both hold the cost of a thousand encrypted sends, which
`floor_ms` measures alone: the same frame from a bare ROUTER to as many links that say nothing. Members report within
`--spread` seconds of each other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import save
from links import KPOOL, Silent, Times, allow_files, client_process, cores

from tsugi_cli.record.recorder import Recorder
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.effects import HubPlan, Told
from tsugi_kpool.core.hub.outgoing import thin
from tsugi_kpool.core.messages import Beat, Fire, encode
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.link import Identity, Link
from tsugi_kpool.sideband.sockets import ZAP_DOMAIN, hub_socket

FLOOR_ROUNDS = 50
FIRST_ROUNDS = 2
"""These, and joining, are not counted."""
JOIN_TIMEOUT_S = 60.0
WIRE_OVERHEAD_BYTES = 35 + 52
"""Of one frame: CURVE's and ZMTP's parts, and the headers of TCP and IP; TCP's own acknowledgements not counted."""


def make_plan(links: int) -> HubPlan:
    return HubPlan("bench", "c0ffee", links, KPOOL, 10**9, 1, 8, 120.0)


# --- the hub ----------------------------------------------------------------------------------------------


def hub_process(links: int, keys: RunKeys, pipe: Connection, folder: str) -> None:
    """Serve until told to end; answer every question with what has been used so far."""
    allow_files(4 * links + 1000)
    os.sched_setaffinity(0, {cores()[0]})
    paths = RunPaths(Path(folder))
    recorder = Recorder(paths)
    server = HubServer(make_plan(links), keys, recorder.tell, Path(folder) / "hub.journal")
    pipe.send(server.start("127.0.0.1", 0))
    while pipe.recv() == "usage":
        usage = resource.getrusage(resource.RUSAGE_SELF)
        used_s = usage.ru_utime + usage.ru_stime
        pipe.send((time.monotonic(), used_s, rss_mib(), server.status().version, server.replaced_beats))
        recorder.pending()
    server.stop()
    recorder.close()


# --- one real link ----------------------------------------------------------------------------------------


def _ignore(_told: Told) -> None:
    """Records nothing."""


def link_bytes(nudge_every_s: float | None, seconds: float) -> dict[str, float]:
    """Bytes a second of one real link with the default beat, nudged as often as steps end (None: never)."""
    server = HubServer(make_plan(1), RunKeys.generate(), _ignore)
    keys = server.start("127.0.0.1", 0)
    steps = [0]

    def probe(incarnation: str) -> Beat:
        steps[0] += 1
        count = steps[0]
        return Beat(
            0, incarnation, 1, 0, 0, "training", count, 2 * count, 90 * count, 0.3 * count, 0.31 * count, 0.312345678,
            1.23456789, 1.2345e-3, (1,) * KPOOL.n, 10**8, False,
        )  # fmt: skip

    link = Link(keys, Identity(0, "bench", 1, "c0ffee", "layout"), probe, 0.5, 60.0, leases=False)
    link.start()
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        time.sleep(nudge_every_s or 0.5)
        if nudge_every_s is not None:
            link.nudge()
    up, down = link.pacing.up_bytes, link.pacing.down_bytes
    link.stop(timeout_s=0.1)
    server.stop()
    return {"up_bytes_per_s": up / seconds, "down_bytes_per_s": down / seconds}


# --- what a thousand encrypted sends cost -----------------------------------------------------------------


def bare_process(links: int, keys: RunKeys, pipe: Connection) -> None:
    """A ROUTER on the hub's core that sends every link the same Fire, again and again; answers with when it began."""
    allow_files(4 * links + 1000)
    os.sched_setaffinity(0, {cores()[0]})
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve(ZAP_DOMAIN.decode(), zmq.auth.CURVE_ALLOW_ANY)
    socket = hub_socket(context, keys)
    socket.bind("tcp://127.0.0.1:*")
    pipe.send(replace(keys, address=socket.getsockopt_string(zmq.LAST_ENDPOINT)))
    routes = [socket.recv_multipart()[0] for _ in range(links)]
    began_s = []
    for round in range(FLOOR_ROUNDS):
        time.sleep(0.2)
        frame = encode(thin(Fire(1, round + 1, (0, 1), tuple(range(links)), "count")))
        began_s.append(time.monotonic())
        for route in routes:
            socket.send(route, zmq.SNDMORE)
            socket.send(frame)
    time.sleep(0.5)
    pipe.send(began_s)
    pipe.recv()
    authenticator.stop()
    context.destroy(linger=0)


def floor(links: int) -> dict[str, Any]:
    """First and last of all links to receive a frame of a bare ROUTER, in this process's own poll loop."""
    here, there = multiprocessing.Pipe()
    allow_files(4 * links + 1000)
    process = multiprocessing.Process(target=bare_process, args=(links, RunKeys.generate(), there))
    process.start()
    receiver = Silent(list(range(links)), links, here.recv(), 0.0)
    receiver.greet()
    receiver.run(here)
    began_s = dict(enumerate(here.recv(), 1))
    here.send("end")
    process.join(30)
    return heard(latencies(receiver.times.fired, began_s, 0.0))


# --- all of it --------------------------------------------------------------------------------------------


def measure(links: int, clients: int, seconds: float, spread_s: float) -> dict[str, Any]:
    """Start everything, leave out the first seconds, and put together what hub and clients have seen."""
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        hub = multiprocessing.Process(target=hub_process, args=(links, RunKeys.generate(), there, folder))
        hub.start()
        keys = here.recv()
        before = ask(here)
        pipes, processes = [], []
        for client in range(clients):
            mine, its = multiprocessing.Pipe()
            numbers = list(range(client, links, clients))
            args = (numbers, links, keys, spread_s, its)
            processes.append(multiprocessing.Process(target=client_process, args=args))
            processes[-1].start()
            pipes.append(mine)
        for pipe in pipes:
            pipe.recv()
        began_s = time.monotonic()
        for pipe in pipes:
            pipe.send("begin")
        while ask(here)[3] < FIRST_ROUNDS:
            if time.monotonic() > began_s + JOIN_TIMEOUT_S:
                raise SystemExit(f"no {FIRST_ROUNDS} rounds within {JOIN_TIMEOUT_S:g} s")
            time.sleep(0.5)
        start = ask(here)
        time.sleep(seconds)
        stop = ask(here)
        for pipe in pipes:
            pipe.send("end")
        times = [pipe.recv() for pipe in pipes]
        here.send("end")
        journal_bytes = (Path(folder) / "hub.journal").stat().st_size
        for process in (*processes, hub):
            process.join(30)
    return draw_up(links, times, began_s, before, start, stop) | {"journal_bytes": journal_bytes}


def ask(pipe: Connection) -> tuple[float, float, float, int, int]:
    pipe.send("usage")
    answer: tuple[float, float, float, int, int] = pipe.recv()
    return answer


def draw_up(links: int, times: list[Times], began_s: float, before: Any, start: Any, stop: Any) -> dict[str, Any]:
    wall_s, cpu_s = stop[0] - start[0], stop[1] - start[1]
    filled = {round: at_s for each in times for round, at_s in each.filled.items()}
    rounds = {round for each in times for round in each.last_reduced}
    reduced = {round: max(each.last_reduced.get(round, 0.0) for each in times) for round in rounds}
    fires = latencies([each for time in times for each in time.fired], filled, start[0])
    commits = latencies([each for time in times for each in time.committed], reduced, start[0])
    sent = [at_s for each in times for at_s in each.sent_s]
    frames_per_s = sum(start[0] < at_s <= stop[0] for at_s in sent) / wall_s
    return {
        "links": links,
        "load_average": os.getloadavg()[0],
        "seconds": wall_s,
        "rounds": stop[3] - start[3],
        "frames_up_per_s": frames_per_s,
        "hub_cpu_share": cpu_s / wall_s,
        "hub_cpu_us_per_frame": cpu_s / wall_s / frames_per_s * 1e6,
        "replaced_beats_per_s": (stop[4] - start[4]) / wall_s,
        "hub_rss_mib": stop[2],
        "hub_rss_mib_before": before[2],
        "unsent_frames": sum(each.unsent for each in times),
        "join_s": max(each.joined_s for each in times) - began_s,
        "fire_ms": heard(fires),
        "commit_ms": heard(commits),
        "decision_ms": heard(fires + commits),
    }


def latencies(orders: list[tuple[int, float]], possible_s: dict[int, float], from_s: float) -> list[list[float]]:
    """For each round the seconds from when its order became possible to when each link had it."""
    rounds: dict[int, list[float]] = {}
    for round, at_s in orders:
        if possible_s.get(round, 0.0) > from_s:
            rounds.setdefault(round, []).append(at_s - possible_s[round])
    return list(rounds.values())


def heard(rounds: list[list[float]]) -> dict[str, Any]:
    return {
        "first": spread_of([min(each) for each in rounds]),
        "last": spread_of([max(each) for each in rounds]),
        "each": spread_of([one for each in rounds for one in each]),
    }


def spread_of(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    if len(seconds) < 2:
        return {"n": len(seconds)}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "n": len(seconds),
        "p50": cuts[49] * 1e3,
        "p90": cuts[89] * 1e3,
        "p99": cuts[98] * 1e3,
        "max": max(seconds) * 1e3,
    }


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--links", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--spread", type=float, default=0.1, help="members report a round as reduced within so many seconds"
    )
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    figures: dict[str, Any] = measure(given.links, given.clients, given.seconds, given.spread)
    figures["floor_ms"] = floor(given.links)
    figures["one_link"] = {
        "default beat, steps of 0.5 s": link_bytes(0.5, 10.0),
        "as many beats as a link sends at most": link_bytes(0.02, 10.0),
        "wire_overhead_bytes_per_frame": WIRE_OVERHEAD_BYTES,
    }
    print(msgspec.json.format(msgspec.json.encode(figures)).decode())
    if not given.no_save:
        save("sideband_hub", figures)


if __name__ == "__main__":
    main()
