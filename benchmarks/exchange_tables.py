"""Tables of benchmarks/exchange/time_to_loss.py, from its result record to Markdown rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from straggler_tables import Record, Rows, spread
from verdicts import Run, target, time_to

Pair = tuple[str, str]
"""An arm, and the one that it is compared with."""
SAME_BITS: tuple[Pair, ...] = (
    ("exchange", "group, gather"),
    ("exchange, hub trains", "group, gather"),
    ("exchange", "group, auto"),
    ("exchange, hub trains", "group, auto"),
    ("exchange, int4", "group, gather, int4"),
    ("exchange, int4, hub trains", "group, gather, int4"),
)
FEWER_BITS: tuple[Pair, ...] = (
    ("exchange, int4", "group, gather"),
    ("exchange, int4, hub trains", "group, gather"),
    ("exchange, int4, hub trains", "group, auto"),
)


def compared(record: Record) -> Rows:
    """Each arm against another one of the same seeds: time to the loss, and the loss at the end."""
    pairs = (*SAME_BITS, *FEWER_BITS)
    rows: Rows = [["replicas", "fleet, step", "seeds", *(f"{arm} / {than}" for arm, than in pairs)]]
    rows.append(["---"] * len(rows[0]))
    for (replicas, fleet, step_s), arms in cells(record).items():
        seeds = sorted(set.intersection(*(set(runs) for runs in arms.values())))
        goals = {seed: target(arms["ddp"][seed]) for seed in seeds}
        told = [_against(arms[arm], arms[than], goals) for arm, than in pairs if {arm, than} <= set(arms)]
        rows.append([str(replicas), f"{fleet}, {step_s:g} s", str(len(seeds)), *told])
    return rows


def cells(record: Record) -> dict[tuple[int, str, float], dict[str, dict[int, Run]]]:
    """(replicas, fleet, step) -> arm -> seed -> its run; DDP's, which knows no fleet, is in all."""
    found: dict[tuple[int, str, float], dict[str, dict[int, Run]]] = {}
    for run in record["runs"]:
        if run["arm"] != "ddp":
            cell = found.setdefault((run["replicas"], run["fleet"], run["step_s"]), {})
            cell.setdefault(run["arm"], {})[run["seed"]] = run
    for run in record["runs"]:
        for (replicas, _, _), cell in found.items():
            if run["arm"] == "ddp" and run["replicas"] == replicas:
                cell.setdefault("ddp", {})[run["seed"]] = run
    return dict(sorted(found.items()))


def _against(own: dict[int, Run], other: dict[int, Run], goals: dict[int, float]) -> str:
    """In words: times to the loss as ratios, and by how many percent the end is above."""
    reached = {
        seed: max(goal, *(min(row[2] for row in run[seed]["curve"]) for run in (own, other)))
        for seed, goal in goals.items()
    }
    times = [time_to(own[seed], goal) / time_to(other[seed], goal) for seed, goal in reached.items()]
    above = [100 * (own[seed]["curve"][-1][2] / other[seed]["curve"][-1][2] - 1) for seed in goals]
    return f"{_spread(times)}; {statistics.mean(above):+.1f} %"


def _spread(values: Sequence[float]) -> str:
    there = [each for each in values if math.isfinite(each)]
    missing = len(values) - len(there)
    return (spread(there) if there else "") + (f" ({missing} never get there)" if missing else "")


def rounds(record: Record) -> Rows:
    """Seconds from one round to the next of every arm."""
    arms = list(dict.fromkeys(run["arm"] for run in record["runs"] if run["arm"] != "ddp"))
    rows: Rows = [["replicas", "fleet, step", *arms]]
    rows.append(["---"] * len(rows[0]))
    for (replicas, fleet, step_s), found in cells(record).items():
        told = [f"{statistics.mean(run['round_s'] for run in found[arm].values()):.2f} s" for arm in arms]
        rows.append([str(replicas), f"{fleet}, {step_s:g} s", *told])
    return rows


def calibration(record: Record) -> Rows:
    """A round as links.py measures it, and in the model."""
    rows: Rows = [["replicas", "round", "measured", "in the model"], ["---"] * 4]
    for run in record["runs"]:
        for name, found in run.items():
            if name != "replicas":
                rows.append([str(run["replicas"]), name, f"{found['measured_s']:.2f} s", f"{found['model_s']:.2f} s"])
    return rows


TABLES: dict[str, tuple[str, Callable[[Record], Rows]]] = {
    "exchange time to loss": ("exchange_time_to_loss", compared),
    "exchange rounds": ("exchange_time_to_loss", rounds),
    "exchange calibration": ("exchange_time_to_loss:calibration", calibration),
}
