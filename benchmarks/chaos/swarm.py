"""Replicas that are forked in a moment, under a real hub with a journal: for hundreds of deaths in minutes."""

from __future__ import annotations

import json
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import replica as replicas

from tests.faults import books
from tests.support import hub_plan, kpool
from tsugi_kpool.core.effects import FleetStage, Told
from tsugi_kpool.core.events import Committed, Event
from tsugi_kpool.core.hub import leaving
from tsugi_kpool.core.journal import parse
from tsugi_kpool.core.records import Leased, Left
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys

LR = 3e-3
LEARN_S = 0.1
"""A step's emulated length."""


@dataclass
class Swarm:
    """A hub in this process and its replicas. `spawn`, `kill`, `commits`."""

    size: int
    samples: int
    scratch: Path
    step_s: float = LEARN_S
    count_leaks: bool = False
    lease: int = 8
    events: list[tuple[float, Event]] = field(default_factory=list)
    there: dict[int, Any] = field(default_factory=dict)
    spawned: int = 0

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["torch", "peft", "transformers", "replica", "tests.support", "psutil"])
        self.settings = kpool(round_timeout_s=20.0)
        plan = hub_plan(
            replicas=self.size, samples=self.samples, lease_samples=self.lease, kpool=self.settings,
            silent_timeout_s=4.0, min_replicas=1, start_timeout_s=120.0,
        )  # fmt: skip
        self.journal = self.scratch / "hub.journal"
        self.hub = HubServer(plan, RunKeys.generate(), self._record, self.journal)
        self.keys = self.hub.start("127.0.0.1", 0)

    def _record(self, told: Told) -> None:
        if isinstance(told, Event):
            self.events.append((time.monotonic(), told))

    def spawn(self, number: int) -> None:
        self.spawned += 1
        result = str(self.scratch / f"{number}-{self.spawned}.jsonl")
        facts = (number, self.keys, self.settings, self.step_s, LR, result, self.count_leaks)
        self.there[number] = self._context.Process(target=replicas.train, args=facts, daemon=True)
        self.there[number].start()

    def kill(self, number: int) -> None:
        """Its own launcher is this process: it tells the hub."""
        process = self.there.pop(number)
        process.kill()
        process.join()
        self.hub.leave({number: "killed"})

    def reap(self) -> None:
        """Those that have ended by themselves: fenced, or finished."""
        for number, process in list(self.there.items()):
            if not process.is_alive():
                process.join()
                del self.there[number]
                if self.training:
                    self.hub.leave({number: "ended"})

    @property
    def training(self) -> bool:
        return bool(self.hub.ask(lambda hub: hub.stage) is FleetStage.TRAINING)

    @property
    def members(self) -> list[int]:
        """At work: in the present generation, and seen there."""
        return list(self.hub.ask(_working))

    def commits_s(self) -> list[float]:
        return [at_s for at_s, event in list(self.events) if isinstance(event, Committed)]

    def await_stage(self, stage: FleetStage, wait_s: float) -> None:
        until_s = time.monotonic() + wait_s
        while self.hub.ask(lambda hub: hub.stage) is not stage:
            failure = self.hub.ask(lambda hub: hub.failure)
            if failure is not None or time.monotonic() > until_s:
                raise RuntimeError(failure or f"not {stage} within {wait_s:g} s")
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.there.values():
            process.join(20.0)
            process.kill()
            process.join()
        self.hub.stop()

    def losses(self) -> list[float]:
        return [json.loads(path.read_text())["loss"] for path in self.scratch.glob("*.end.json")]


def _working(hub: Any) -> Iterator[int]:
    beats = ((each, hub.members[each].beat) for each in hub.present)
    return (each for each, beat in beats if beat is not None and beat.generation == hub.generation and beat.steps > 0)


@contextmanager
def swarm(size: int, samples: int, **more: Any) -> Iterator[Swarm]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        begun = Swarm(size, samples, Path(scratch), **more)
        for number in range(size):
            begun.spawn(number)
        try:
            begun.await_stage(FleetStage.TRAINING, 120.0)
            yield begun
        finally:
            begun.close()


def check(begun: Swarm) -> dict[str, Any]:
    """The rules, by the hub's journal: versions, digests, members; every position durable once, replays counted."""
    records = [each.record for each in parse(begun.journal.read_bytes()).entries]
    versions = books.check_versions(records)
    durable, total, replayed = begun.hub.ask(
        lambda hub: (hub.leases.durable(), hub.plan.samples, hub.leases.replayed)
    )
    if durable != ((0, total),):
        raise AssertionError(f"durable: {durable} of {total}")
    issued = sum(each.lease.stop - each.lease.start for each in records if isinstance(each, Leased))
    left = sum(1 for each in records if isinstance(each, Left) and each.reason)
    ends = [json.loads(path.read_text()) for path in begun.scratch.glob("*.end.json")]
    if any(each["produced"] != each["committed"] + each["discarded"] for each in ends):
        raise AssertionError(f"tokens are missing: {ends}")
    return {"versions": versions, "samples": total, "leased": issued, "replayed": replayed, "left": left}


def soak(seconds: float, seed: int, size: int = 4, rate: float = 30.0) -> dict[str, Any]:
    """Somebody is killed every 0.5 to 2 s as long as two are at work; the dead are started again at once."""
    draw, samples = random.Random(seed), int(seconds * rate)
    with swarm(size, samples) as begun:
        until_s, kills, next_s = time.monotonic() + seconds, 0, time.monotonic() + 2.0
        while begun.training:
            begun.reap()
            now_s = time.monotonic()
            if now_s < until_s:
                kills, next_s = _strike(begun, draw, kills, next_s)
            for number in range(size):
                if number not in begun.there and begun.training:
                    begun.spawn(number)
            time.sleep(0.02)
        begun.await_stage(FleetStage.FINISHED, 60.0)
        commits = begun.commits_s()
        ended_s = time.monotonic()
        for process in begun.there.values():
            process.join(20.0)
        gaps = [after - before for before, after in pairwise(commits)]
        losses = begun.losses()
        return {
            "seed": seed, "seconds": seconds, "kills": kills, "started": begun.spawned,
            "took_s": round(ended_s - commits[0], 1),
            "longest_gap_s": round(max(gaps), 2), "loss": round(statistics.median(losses), 4), **check(begun),
        }  # fmt: skip


def _strike(begun: Swarm, draw: random.Random, kills: int, next_s: float) -> tuple[int, float]:
    members = begun.members
    if time.monotonic() < next_s or len(members) < 2:
        return kills, next_s
    begun.kill(draw.choice([each for each in members if each in begun.there] or members))
    return kills + 1, time.monotonic() + draw.uniform(0.5, 2.0)


def undisturbed(samples: int, size: int = 4) -> dict[str, Any]:
    """The same work without faults: what its final loss scatters by."""
    with swarm(size, samples) as begun:
        begun.await_stage(FleetStage.FINISHED, 600.0)
        for process in begun.there.values():
            process.join(20.0)
        return {"loss": round(statistics.median(begun.losses()), 4), **check(begun)}


def formed_again(times: int, size: int = 3, most_s: float = 480.0) -> dict[str, Any]:
    """So many generations in a row, each with a real gloo group over the sideband's store; what every process holds.

    Ends after `most_s`, too, and says how many there were.
    """
    with swarm(size, 10_000_000, step_s=1.0, count_leaks=True) as begun:
        started_s, first = time.monotonic(), int(begun.hub.ask(lambda hub: hub.generation))
        while begun.hub.ask(lambda hub: hub.generation) < first + times:
            if begun.hub.ask(_all_there):
                begun.hub.ask(lambda hub: _again(begun, hub))
            if time.monotonic() - started_s > most_s:
                break
            time.sleep(0.003)
        times = int(begun.hub.ask(lambda hub: hub.generation)) - first
        took_s = time.monotonic() - started_s
        time.sleep(1.0)
        found = [_growth(path) for path in sorted(begun.scratch.glob("*-*.jsonl"))]
        for process in begun.there.values():
            process.kill()
    return {"generations": times, "replicas": size, "ms_each": round(1000 * took_s / times, 1), "processes": found}


def _all_there(hub: Any) -> bool:
    beats = [hub.members[each].beat for each in hub.present]
    return all(beat is not None and beat.generation == hub.generation for beat in beats)


def _again(begun: Swarm, hub: Any) -> None:
    hub.retries = 0
    effects = leaving.again(hub, "benchmark", time.monotonic())
    begun.hub._owed += [(each, None) for each in effects]


def _growth(path: Path) -> dict[str, Any]:
    """The most after the twentieth generation, and what there is after the last."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    first = [each for each in lines if 20 <= each["generation"] < 100] or lines[:1]
    early = max(first, key=lambda each: (each["threads"], each["fds"]))  # some were taken while a group was formed
    late = lines[-1]
    grown = {name: late[name] - early[name] for name in ("fds", "threads", "rss_kib")}
    more = {f"more_{name}": value for name, value in grown.items()}
    return {"from_generation": early["generation"], "to_generation": late["generation"], "before": early, **more}
