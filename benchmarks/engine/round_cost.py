"""What a round costs one replica, phase by phase: two replicas that train a real model, with their hub.

    python benchmarks/engine/round_cost.py --pairs 8 --against ../before

Each of the two replicas is a process, the hub another one. Replica 0 is measured: milliseconds a round of every
phase, by the clock and by the processor time of its thread; `others` is the processor time of all threads that is in
no phase and is not the training thread's (the link's and gloo's). With `--against` a second fleet runs on the code of
another checkout (a `git worktree`), and blocks of steps of the two take turns: the ratios are of neighbours in time,
on a machine that others use.

The training thread waits while the other one holds the buffer's lock (`lock`), and applies committed rounds
(`apply`). The aggregator's thread copies what is buffered (`snapshot`) and looks at it (`check`), codes it (`code`),
exchanges it (`collective`: mostly a wait), decodes and sums (`combine`, with the digest that members compare,
`digest`), and moves anchors (`commit`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
from harness import save
from overhead import STEPS, Copy, hub_main, optimizer_factory, quieten, rest, setting

from tsugi_kpool.core.effects import HubPlan
from tsugi_kpool.engine import local, reducing, ways
from tsugi_kpool.engine.buffer import ElasticBuffer
from tsugi_kpool.engine.contribution_check import ContributionCheck
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.link import Identity, Link

PHASES = {
    "lock": (ElasticBuffer, "open_step"),
    "apply": (ElasticBuffer, "apply_rounds"),
    "snapshot": (ElasticBuffer, "contribution"),
    "check": (ContributionCheck, "of"),
    "code": (ways, "pack"),
    "collective": (reducing, "_run"),
    "combine": (ways, "combine"),
    "digest": (local, "sha256"),
    "commit": (ElasticBuffer, "commit"),
}
"""Where each phase is."""
IN_ANOTHER = ("digest",)
"""It is a part of `combine`."""
REPLICAS = 2


class Phases:
    """Seconds in every phase: by the clock, and processor time of the thread that runs it."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        for phase, (owner, name) in PHASES.items():
            setattr(owner, name, self._timed(phase, getattr(owner, name)))

    def _timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            started_s = time.perf_counter(), time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                self.wall[phase] += time.perf_counter() - started_s[0]
                self.cpu[phase] += time.thread_time() - started_s[1]

        return timed

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """What has come together since the last call."""
        taken = dict(self.wall), dict(self.cpu)
        self.wall.clear()
        self.cpu.clear()
        return taken


def replica_main(pipe: Connection, model: str, number: int, keys: RunKeys) -> None:
    """One replica's process: trains a block of steps when it is told to, and says what that took."""
    quieten()
    torch.set_num_threads(1)
    phases = Phases()
    spec, steps = setting(model, "cpu"), STEPS[model]
    trained = Copy(spec, steps)
    engine = KPoolEngine(trained.model, spec.kpool, number, grad_clip=spec.train.grad_clip)
    trained.optimizer = optimizer_factory(spec.train)(engine.trainable())
    identity = Identity(number, "bench", 0, "bench", engine.pool.layout(spec.kpool.payload))
    link = Link(keys, identity, engine.beat, spec.sideband.beat_s, spec.sideband.hub_timeout_s, leases=False)
    link.start()
    engine.start(link)
    engine.join()
    pipe.send("joined")
    while pipe.recv() == "block":
        pipe.send(block(trained, engine, phases))
    link.stop(0.5)
    engine.stop()


def block(trained: Copy, engine: KPoolEngine, phases: Phases) -> dict[str, Any]:
    """Milliseconds a round of a block of steps."""
    phases.take()
    version, thread_s, process_s = engine.aggregator.version, time.thread_time(), time.process_time()
    started_s = time.perf_counter()
    trained.through(engine)
    thread_s, wall_s = time.thread_time() - thread_s, time.perf_counter() - started_s
    rest(engine)
    process_s, rounds = time.process_time() - process_s, engine.aggregator.version - version
    wall, cpu = phases.take()
    outside = [cpu[phase] for phase in PHASES if phase not in (*IN_ANOTHER, "lock", "apply") and phase in cpu]
    cpu["others"] = process_s - thread_s - sum(outside)  # gloo's threads, the link's, and this benchmark's own waits
    a_round = 1000.0 / max(rounds, 1)
    return {
        "rounds": rounds,
        "step_wall_ms": 1000.0 * wall_s / len(trained._batches),
        "wall_ms": {phase: seconds * a_round for phase, seconds in wall.items()},
        "cpu_ms": {phase: seconds * a_round for phase, seconds in cpu.items()},
    }


class World:
    """A hub and its replicas, in processes of their own."""

    def __init__(self, model: str) -> None:
        spec, context = setting(model, "cpu"), multiprocessing.get_context("spawn")
        plan = HubPlan("bench", "bench", REPLICAS, spec.kpool, 0, 1, 1, 120.0)
        self._hub, theirs = context.Pipe()
        context.Process(target=hub_main, args=(theirs, plan), daemon=True).start()
        keys = self._hub.recv()
        self._pipes = []
        for number in range(REPLICAS):
            ours, theirs = context.Pipe()
            context.Process(target=replica_main, args=(theirs, model, number, keys), daemon=True).start()
            self._pipes.append(ours)
        for pipe in self._pipes:
            pipe.recv()

    def block(self) -> dict[str, Any]:
        """All replicas train a block; replica 0's figures."""
        for pipe in self._pipes:
            pipe.send("block")
        first, *_ = [pipe.recv() for pipe in self._pipes]
        return first

    def stop(self) -> None:
        for pipe in (*self._pipes, self._hub):
            pipe.send("stop")


def serve(model: str) -> None:
    """A world behind stdin and stdout: a line for a block, a line of figures back."""
    world = World(model)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(world.block()), flush=True)
    world.stop()


class Checkout:
    """A world on the code of a checkout."""

    def __init__(self, root: Path, model: str) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", "--model", model]
        environment = os.environ | {"PYTHONPATH": str(root)}
        self._process = subprocess.Popen(
            command, env=environment, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def block(self) -> dict[str, Any]:
        if self._process.stdin is not None:
            print("block", file=self._process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._answer())
        return found

    def stop(self) -> None:
        self._process.communicate(timeout=60)

    def _answer(self) -> str:
        for line in self._process.stdout or ():
            if line.startswith(("ready", "{")):
                return line
        raise SystemExit("a fleet has ended early")


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)}


def summary(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and quartiles of what blocks have taken."""
    kinds = {kind: {phase for each in blocks for phase in each[kind]} for kind in ("wall_ms", "cpu_ms")}
    return {
        "rounds": sum(each["rounds"] for each in blocks),
        "step_wall_ms": spread([each["step_wall_ms"] for each in blocks]),
        **{
            kind: {phase: spread([each[kind].get(phase, 0.0) for each in blocks]) for phase in sorted(phases)}
            for kind, phases in kinds.items()
        },
        "cpu_ms_a_round": spread([total(each) for each in blocks]),
    }


def total(one: dict[str, Any]) -> float:
    """Processor time of a round in all phases, and of the threads that serve it."""
    return float(sum(value for phase, value in one["cpu_ms"].items() if phase not in (*IN_ANOTHER, "lock")))


def compared(blocks: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Ratios of processor time, of pairs of blocks."""
    if "before" not in blocks:
        return {}
    pairs = list(zip(blocks["now"], blocks["before"], strict=True))
    phases = ("apply", "snapshot", "code", "combine", "commit")
    ratios = {p: spread([now["cpu_ms"][p] / before["cpu_ms"][p] for now, before in pairs]) for p in phases}
    sums = [sum(now["cpu_ms"][p] for p in phases) / sum(before["cpu_ms"][p] for p in phases) for now, before in pairs]
    return {"now_to_before": {**ratios, "these_together": spread(sums)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m", choices=list(STEPS))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--against", type=Path, help="a checkout of the code before")
    parser.add_argument("--dry", action="store_true", help="print, write no result file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.model)
        return
    roots = {"now": Path(__file__).resolve().parents[2]}
    if arguments.against is not None:
        roots["before"] = arguments.against.resolve()
    worlds = {name: Checkout(root, arguments.model) for name, root in roots.items()}
    blocks: dict[str, list[dict[str, Any]]] = {name: [] for name in worlds}
    for number in range(arguments.pairs + 1):
        for name in list(worlds)[:: 1 if number % 2 else -1]:
            found = worlds[name].block()
            if number:  # the first warms up
                blocks[name].append(found)
                print(name, found["rounds"], {p: round(v, 2) for p, v in found["cpu_ms"].items()}, flush=True)
    for world in worlds.values():
        world.stop()
    figures = {"model": arguments.model, **{name: summary(each) for name, each in blocks.items()}, **compared(blocks)}
    print(json.dumps(figures, indent=1))
    if not arguments.dry:
        save("round_cost", figures)


if __name__ == "__main__":
    main()
