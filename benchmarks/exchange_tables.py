"""Tables of benchmarks/exchange/time_to_loss.py, from its result record to Markdown rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from straggler_tables import Record, Rows, spread
from verdicts import Run, target, time_to

GATHER, AUTO, SAME = "group, gather", "group, auto", "group, gather, int4, k=1"
FEWEST = "exchange, int4, k=1, hub trains"
PAIRS = (
    *((arm, GATHER) for arm in ("exchange", "exchange, hub trains", "exchange, k=1, hub trains")),
    *((arm, GATHER) for arm in ("exchange, int4, hub trains", FEWEST, AUTO)),
    (FEWEST, SAME),
)
"""An arm, and the one that it is compared with."""


def compared(record: Record) -> Rows:
    """Each arm against another one of the same seeds: time to the loss, and the loss at the end."""
    rows: Rows = [["replicas", "fleet, step", *(arm if than == GATHER else f"{arm} / {than}" for arm, than in PAIRS)]]
    rows.append(["---"] * len(rows[0]))
    for (replicas, fleet, step_s), arms in cells(record).items():
        told = [_against(arms.get(arm, {}), arms.get(than, {}), arms["ddp"]) for arm, than in PAIRS]
        rows.append([str(replicas), f"{fleet}, {step_s:g} s", *told])
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


def _against(own: dict[int, Run], other: dict[int, Run], ddp: dict[int, Run]) -> str:
    """In words: times to the loss as ratios, by how many percent the end is above, and of how many seeds.

    The loss is DDP's half-way one or, where one of the two never gets there, the lowest that both reach.
    """
    times, above = list[float](), list[float]()
    for seed in sorted(set(own) & set(other) & set(ddp)):
        pair = own[seed], other[seed]
        goal = max(target(ddp[seed]), *(min(loss for _, _, loss in run["curve"]) for run in pair))
        times.append(time_to(own[seed], goal) / time_to(other[seed], goal))
        above.append(100 * (own[seed]["curve"][-1][2] / other[seed]["curve"][-1][2] - 1))
    return f"{spread(times)}; {statistics.mean(above):+.1f} % [{len(times)}]" if times else ""


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
    "exchange calibration": ("exchange_calibration", calibration),
}
