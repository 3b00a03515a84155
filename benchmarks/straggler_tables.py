"""Tables of benchmarks/straggler_tax, from its result record to Markdown rows for its page."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "straggler_tax"))
import verdicts
from verdicts import GOALS, JUDGED, Cell

Rows = list[list[str]]
Record = dict[str, Any]
TITLES = ("model", "replicas", "scenario")


def goals(record: Record) -> Rows:
    """Each goal of each fleet: every variant's figure with its spread over seeds, met or missed."""
    rows: Rows = [[*TITLES, "figure", "goal", *(f"`{arm}`" for arm in JUDGED)]]
    rows.append(["---"] * len(rows[0]))
    for (model, replicas, scenario), seeds in sorted(verdicts.cells(record).items(), key=_order):
        for goal in GOALS:
            found = [verdicts.values(goal, arm, seeds) if scenario in goal.scenarios else [] for arm in JUDGED]
            if any(found):
                bound = f"{'≥' if goal.at_least else '≤'} {goal.bound:g}"
                told = [f"{spread(each)} {'✓' if goal.met(each) else '✗'}" if each else "" for each in found]
                rows.append([model, str(replicas), scenario, goal.text, bound, *told])
    return rows


def methods(record: Record) -> Rows:
    """Every method against DDP in the same seed."""
    rows: Rows = [
        [*TITLES, "method", "time to target, DDP / it", "final loss", "above DDP's, %", "goodput", "bytes, DDP / it"]
    ]
    rows.append(["---"] * len(rows[0]))
    for (model, replicas, scenario), seeds in sorted(verdicts.cells(record).items(), key=_order):
        arms = [arm for arm in dict.fromkeys(arm for cell in seeds.values() for arm in cell) if "_shift" not in arm]
        for arm in arms:
            pairs = [cell for _, cell in sorted(seeds.items()) if arm in cell and "ddp" in cell]
            if pairs:
                rows.append([model, str(replicas), scenario, arm, *_figures(arm, pairs)])
    return rows


def _figures(arm: str, pairs: Sequence[Cell]) -> list[str]:
    columns: list[Callable[[Cell], float]] = [
        verdicts.faster(arm, "ddp"),
        lambda cell: float(cell[arm]["curve"][-1][2]),
        verdicts.loss_percent(arm),
        lambda cell: float(cell[arm]["goodput"]),
        verdicts.fewer_bytes(arm),
    ]
    return [
        spread([column(cell) for cell in pairs], places)
        for column, places in zip(columns, (2, 3, 1, 2, 1), strict=True)
    ]


def chance(record: Record) -> Rows:
    """DDP against itself: the same seed and order of samples, but other samples share a step (`ddp_shift1` to 3)."""
    titles = ["model", "replicas", "seed", "DDP's final loss", "first step of 1, 2, 3 samples: above it, %"]
    rows: Rows = [[*titles, "time to target, DDP / it"], ["---"] * (len(titles) + 1)]
    for (model, replicas, _), seeds in sorted(verdicts.cells(record).items(), key=_order):
        for seed, cell in sorted(seeds.items()):
            shifts = sorted(arm for arm in cell if arm.startswith("ddp_shift"))
            if shifts and "ddp" in cell:
                loss = f"{cell['ddp']['curve'][-1][2]:.3f}"
                above = ", ".join(f"{verdicts.loss_percent(arm)(cell):.1f}" for arm in shifts)
                times = ", ".join(f"{verdicts.faster(arm, 'ddp')(cell):.2f}" for arm in shifts)
                rows.append([model, str(replicas), str(seed), loss, above, times])
    return rows


def tries(record: Record) -> Rows:
    """What else was tried, each with its figures against DDP's run of the same seed."""
    titles = [
        "scenario",
        "settings",
        "rate",
        "seed",
        "time to target, DDP / it",
        "above DDP's loss, %",
        "bytes, DDP / it",
    ]
    rows: Rows = [titles, ["---"] * len(titles)]
    for run in sorted(record["runs"], key=lambda run: verdicts.EVERYWHERE.index(run["scenario"])):
        figures = (f"{run['ddp / try']:.2f}", f"{run['loss_percent']:.1f}", f"{run['bytes']:.1f}")
        rows.append([run["scenario"], f"`{run['settings']}`", f"{run['lr_scale']:g}x", str(run["seed"]), *figures])
    return rows


def spread(values: Sequence[float], places: int = 2) -> str:
    """Mean and range; a single value alone. A ratio of 0 is a target that was never reached."""
    mean = f"{statistics.mean(values):.{places}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{places}f} to {max(values):.{places}f})"


def _order(item: tuple[tuple[str, int, str], Any]) -> tuple[str, int, int]:
    model, replicas, scenario = item[0]
    return model, replicas, verdicts.EVERYWHERE.index(scenario)


TABLES: dict[str, tuple[str, Callable[[Record], Rows]]] = {
    "straggler_goals": ("straggler_tax", goals),
    "straggler_methods": ("straggler_tax", methods),
    "straggler_chance": ("straggler_tax", chance),
    "straggler_ways": ("reduce", methods),
    "straggler_tries": ("straggler_tries", tries),
}
"""Name of the marked block: (result file, its table)."""
