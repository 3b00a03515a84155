"""The pictures of README.md and docs/*.md, drawn from results/*.json. `figures.py` writes them and says whether they
agree.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import msgspec
import peer_drawings
import straggler_drawings
from charts import Bar, Curve, Drawing, Picture, bars, curves, shares, spread

from tsugi_cli.bench.compare.analysis import ComparisonReport, Row
from tsugi_cli.bench.compare.statistics import Estimate
from tsugi_cli.pages.figures import Scale

Record = dict[str, Any]
METHODS = {"ddp": "DDP", "local_sgd": "LocalSGD", "diloco": "DiLoCo", "drop_slowest": "leaving the slowest out",
           "kpool": "K-Pool"}  # fmt: skip
FAULTS = {"SIGKILL": "killed", "SIGSTOP": "frozen"}
COUNTED = {"torchrun": "ddp", "torchft": "local_sgd", "hivemind": "hivemind"}
"""Whose colour a peer of benchmarks/chaos has."""


def _entry(record: Record, scenario: str) -> tuple[ComparisonReport, list[Row]]:
    """The report of four replicas under a scenario, and its rows with one setting of the pool."""
    (found,) = [e for e in record["entries"] if e["bench"]["name"] == scenario and e["replicas"] == 4]
    report = msgspec.convert(found["report"], ComparisonReport)
    return report, [row for row in report.rows if row.arm == row.method]


def time(scenario: str, title: str) -> Callable[[Record], Picture]:
    """Seconds to the target, with the time of a fleet in which nobody waits."""

    def draw(record: Record) -> Picture:
        report, rows = _entry(record, scenario)
        told = [
            Bar(METHODS[row.method], row.time_s, f"{row.time_s.mean:.1f} s" if row.time_s else
                f"{row.reached} of {row.seeds} runs get there", row.method)
            for row in rows
        ]  # fmt: skip
        ddp = rows[0].time_s
        mark = None if ddp is None else (ddp.mean / report.limit, f"limit: {ddp.mean / report.limit:.1f} s")
        return bars(told, title, mark if report.limit > 1 else None)

    return draw


def goodput(record: Record) -> Picture:
    """Work done, as a share of what the fleet could do."""
    _, rows = _entry(record, "straggler4x")
    told = [
        Bar(METHODS[row.method], Estimate(row.goodput, None, None), f"{row.goodput:.0%}", row.method) for row in rows
    ]
    return bars(told, "goodput, one of four replicas 4x slower", (1.0, "100 %"))


def loss(record: Record) -> Picture:
    """Loss at equal tokens, less DDP's."""
    _, rows = _entry(record, "straggler4x")
    told = [
        Bar(METHODS[row.method], row.final_difference, f"{row.final_difference.mean:+.3f}", row.method)
        for row in rows
        if row.final_difference is not None
    ]
    return bars(told, "final loss less DDP's, after equal tokens (left is better)")


def recovery(record: Record, own: Record) -> Picture:
    """How long the others pause when one is killed or frozen; of Tsugi the median of its trials."""
    told = []
    for run in (each for each in record["runs"] if "error" not in each):
        steps = max(each["joint_steps_after"] for each in run["survivors"])
        pause = max(each["longest_pause_s"] for each in run["survivors"])
        value = Estimate(pause, None, None) if steps else None
        words = f"{pause:.1f} s" if steps else "no joint step any more"
        told.append(Bar(f"{run['peer']}, {FAULTS[run['fault']]}", value, words, COUNTED[run["peer"]]))
    for fault in FAULTS.values():
        pauses = [each["commit_s"] for each in own["parts"][fault]["trials"]]
        name = f"Tsugi, {fault} (median of {len(pauses)})"
        told.append(Bar(name, spread(pauses, median), f"{median(pauses):.1f} s", "kpool"))
    return bars(told, "seconds until the others' next joint update counts")


def scale(record: Record) -> Picture:
    """Goodput of simulated fleets, by size."""
    fleets = sorted((r for r in record["runs"] if r.get("scenario") == "fast"), key=lambda run: run["replicas"])
    lines = [
        Curve(name, [(run["replicas"], run[key]) for run in fleets], method)
        for name, key, method in (("K-Pool", "goodput", "kpool"), ("lock-step", "lockstep", "ddp"))
    ]
    title = "goodput by replicas, one in ten 4x slower (simulated)"
    drawn = curves(lines, title, Scale(1.0, 0.0, 0, 0), shares(), [run["replicas"] for run in fleets])
    low, high = min(run["goodput"] for run in fleets), max(run["lockstep"] for run in fleets)
    return Picture(drawn.svg, f"{title}: K-Pool {low:.1%} and more, lock-step {high:.1%} and less")


BENCH = "Four replicas, a tiny model, real processes on two CPU cores with an emulated device; mean of three seeds. "
BETTER = (
    "The target is the loss at which DDP ends (its worst seed). The dashed line is the time of a fleet in which "
    "nobody ever waits and that learns as DDP does. K-Pool can be left of it, because every learning rate was tuned "
    "for itself."
)
BY_T = "Whiskers: 95 % intervals. "
SPLIT = "Simulated. Goodput says that a fleet *trains*, not that it learns together: at 10,000 no round is completed."
DRAWINGS: dict[str, Drawing] = {
    "figure-time": Drawing(
        ("bench",),
        time("straggler4x", "seconds to DDP's loss, one of four replicas 4x slower"),
        BENCH + BY_T + BETTER,
    ),
    "figure-time-slow-link": Drawing(
        ("bench",),
        time("slow_link", "seconds to DDP's loss, the same on 4 Mbit/s links"),
        BENCH + BY_T + "LocalSGD, which averages the whole model, and DiLoCo were left out.",
    ),
    "figure-time-healthy": Drawing(
        ("bench",),
        time("healthy", "seconds to DDP's loss, nobody is slow"),
        BENCH + BY_T + "No difference between K-Pool and DDP can be measured.",
    ),
    "figure-goodput": Drawing(
        ("bench",),
        goodput,
        BENCH + "Goodput is the work that was done, as a share of what these replicas could do if none of them ever "
        "waited. It says nothing about what was learnt.",
    ),
    "figure-loss": Drawing(
        ("bench",), loss, BENCH + BY_T + "This model learns little, so that differences are small."
    ),
    "figure-recovery": Drawing(
        ("chaos_peers", "chaos"),
        recovery,
        "One replica is killed, or frozen. The peers have one run each, of three workers, and wait meanwhile "
        "(hivemind's train on). Tsugi's other replicas train on; its whiskers are from the best to the worst trial.",
    ),
    "figure-scale": Drawing(("scale",), scale, SPLIT),
    **straggler_drawings.DRAWINGS,
    **peer_drawings.DRAWINGS,
}
"""Name of the picture in docs/pictures -> how it is drawn."""
