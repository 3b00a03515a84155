"""How long does an hour of a simulated fleet take, and what happens in it?

    python benchmarks/simulate.py --replicas 10 100 1000 --seconds 3600
    python benchmarks/simulate.py --replicas 10 100 1000 --seconds 1200 --unwatched

One core, no processes, no torch: the hub's own decisions in virtual time (docs/simulation.md). Steps take 2 s
with 10 % jitter and one replica in ten takes 4 times as long; N = 8 adapters of 4 MiB, K = 2 of them in a round,
over 10 Gbit/s with 1 ms. Virtual figures are the same on every machine; wall and processor seconds are this one's.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from dataclasses import replace
from typing import Any

from harness import save

from tsugi_cli.config.compose import compose
from tsugi_kpool.core.effects import HubPlan
from tsugi_kpool.core.events import Committed
from tsugi_kpool.sim import Fleet, LinkModel, Slow, Speeds, check_accounting, check_agreement

STEP_S = 2.0
STRAGGLERS = 10
"""One replica in this many is slow."""
LINK = LinkModel(latency_s=0.001, bandwidth_bytes_per_s=1.25e9, adapter_bytes=4 << 20)
KPOOL = replace(compose(["recipe=smollm2_docstrings"]).kpool, n=8, k=2)
"""The shipped settings, whatever they are by now, with the pool's size fixed."""


def plan(replicas: int, seconds: float) -> HubPlan:
    """More data than the fleet can use up."""
    samples = int(replicas * seconds / STEP_S * 2) + 1000
    return HubPlan("simulated", "", replicas, KPOOL, samples, 1, 8, 60.0)


def simulate(replicas: int, seconds: float, seed: int, keep_alive: bool, watched: bool) -> dict[str, Any]:
    """One fleet for `seconds` of virtual time, with its rules checked at the end."""
    slow = tuple(Slow(replica, 4.0) for replica in range(0, replicas, STRAGGLERS))
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    fleet = Fleet(
        plan(replicas, seconds),
        Speeds((STEP_S,), jitter=0.1, slow=slow),
        LINK,
        seed,
        keep_alive,
        watched=watched,
    )
    report = fleet.run(seconds)
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_started_s
    broken = [*check_agreement(fleet), *check_accounting(fleet)]
    if broken or report.failure:
        raise SystemExit(f"{replicas} replicas: {report.failure} {broken[:3]}")
    landed_s = [event.seconds for event in fleet.events if isinstance(event, Committed)]
    return {
        "replicas": replicas,
        "watched": watched,
        "virtual_s": report.seconds,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "events": fleet.kernel.handled,
        "control_messages": report.control_messages,
        "steps": sum(report.samples),
        "rounds": report.versions,
        "round_s": statistics.median(landed_s) if landed_s else None,
        "goodput": report.goodput,
        "staleness": report.staleness,
        "samples": {
            "slow": statistics.mean(report.samples[::STRAGGLERS]),
            "fast": statistics.mean(_fast(report.samples)),
        },
        "gigabytes_per_replica": report.sent_bytes[0] / 1e9,
    }


def _fast(samples: tuple[int, ...]) -> list[int]:
    return [count for replica, count in enumerate(samples) if replica % STRAGGLERS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-alive", action="store_true", help="send the beats that have no news, too")
    parser.add_argument("--unwatched", action="store_true", help="the hub draws no conclusions about who is slow")
    parser.add_argument("--dry", action="store_true", help="print, write no result file")
    arguments = parser.parse_args()
    gc.disable()  # a fleet is one large graph that lives to the end: walking it again and again finds nothing
    runs = []
    for replicas in arguments.replicas:
        runs.append(
            simulate(replicas, arguments.seconds, arguments.seed, arguments.keep_alive, not arguments.unwatched)
        )
        print(runs[-1], flush=True)
        if not arguments.dry:
            save("simulate", {"runs": runs})


if __name__ == "__main__":
    main()
