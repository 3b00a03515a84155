"""Tables of benchmarks/straggler_tax, from its result record to Markdown rows for its page."""

from __future__ import annotations

import json
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


def second_moments(record: Record) -> Rows:
    """FleetAdamW's rule and the one before it on the same seeds: each against DDP, and one against the other."""
    titles = ["replicas", "scenario", "seeds", "time to target, DDP / it", "the rule before", "above DDP's loss, %"]
    titles += ["the rule before", "above DDP at its rate for the end, %", "loss, new against old, %"]
    rows: Rows = [titles, ["---"] * len(titles)]
    for (model, replicas, scenario), seeds in sorted(verdicts.cells(record).items(), key=_order):
        arm = "kpool_fleet_int4" if "link" in scenario else "kpool_fleet"
        old = arm.replace("fleet", "smoothed")
        pairs = [cell for _, cell in sorted(seeds.items()) if {arm, old, "ddp"} <= set(cell)]
        if not pairs:
            continue
        end = _end(record, model, replicas, scenario)
        rates = [spread([verdicts.faster(each, "ddp")(cell) for cell in pairs]) for each in (arm, old)]
        above = [spread([verdicts.loss_percent(each)(cell) for cell in pairs], 1) for each in (arm, old)]
        of_end = [100 * (cell[arm]["curve"][-1][2] / end[cell[arm]["seed"]] - 1) for cell in pairs]
        between = paired([verdicts.loss_percent(arm, old)(cell) for cell in pairs])
        rows.append([str(replicas), scenario, str(len(pairs)), *rates, *above, spread(of_end, 1), between])
    return rows


def triggers(record: Record, fixed: Record) -> Rows:
    """The trigger that goes by the fleet's pace against the one before it, on the same seeds with a straggler."""
    titles = ["replicas", "seed", "time to target, DDP / it", "before", "above DDP's loss, %", "before"]
    rows: Rows = [[*titles, "bytes of a sample, it / before"], ["---"] * (len(titles) + 1)]
    cells = verdicts.cells(fixed)
    for run in sorted(record["runs"], key=lambda run: (run["replicas"], run["seed"])):
        cell = cells[run["model"], run["replicas"], run["scenario"]].get(run["seed"], {})
        if {"ddp", "kpool_fleet"} <= set(cell):
            with_it = {**cell, "it": run}
            arms = ("it", "kpool_fleet")
            times = [f"{verdicts.faster(each, 'ddp')(with_it):.2f}" for each in arms]
            above = [f"{verdicts.loss_percent(each)(with_it):.1f}" for each in arms]
            more = run["bytes_per_sample"] / cell["kpool_fleet"]["bytes_per_sample"]
            rows.append([str(run["replicas"]), str(run["seed"]), *times, *above, f"{more:.2f}"])
    return rows


FEW = "kpool_fleet_scatter"
"""The same fleet with 2 of 8 adapters in a round, which cannot linger."""


def lingering(record: Record) -> Rows:
    """Each fleet with and without `kpool.linger` on the same seeds, at one rate."""
    titles = ["model", "replicas", "scenario", "rate", "seeds", "loss, with against without, %"]
    titles += [
        "with, against without and `k=2`, %",
        "time of the run, with / without",
        "above DDP's loss, %, without",
        "with",
    ]
    titles += ["time to target, DDP / it, without", "with"]
    rows: Rows = [titles, ["---"] * len(titles)]
    off, on = "kpool_fleet_scatter_all", "kpool_fleet_scatter_all_linger"
    for (model, replicas, scenario), seeds in sorted(verdicts.cells(record).items(), key=_order):
        runs = [run for run in record["runs"] if (run["model"], run["replicas"]) == (model, replicas)]
        runs = [run for run in runs if run["scenario"] == scenario and run["arm"] in (off, on, FEW)]
        for scale in sorted({run["lr_scale"] for run in runs}):
            found: dict[int, Cell] = {seed: {"ddp": cell["ddp"]} for seed, cell in seeds.items() if "ddp" in cell}
            for run in runs:
                if run["lr_scale"] == scale and run["seed"] in found:
                    found[run["seed"]][run["arm"]] = run
            pairs = [cell for _, cell in sorted(found.items()) if {off, on} <= set(cell)]
            if pairs:
                ends = [cell[on]["curve"][-1][0] / cell[off]["curve"][-1][0] for cell in pairs]
                above = [spread([verdicts.loss_percent(arm)(cell) for cell in pairs], 1) for arm in (off, on)]
                times = [spread([verdicts.faster(arm, "ddp")(cell) for cell in pairs]) for arm in (off, on)]
                between = paired([verdicts.loss_percent(on, off)(cell) for cell in pairs])
                few = [cell for cell in pairs if FEW in cell and cell[FEW]["lr_scale"] == scale]
                usual = (
                    f"{paired([verdicts.loss_percent(on, FEW)(cell) for cell in few])} ({len(few)})" if few else ""
                )
                fleet = [model, str(replicas), scenario, f"{scale:g}x", str(len(pairs))]
                rows.append([*fleet, between, usual, spread(ends), *above, *times])
    return rows


def rates(record: Record) -> Rows:
    """DDP's final loss on the stand-in by its learning rate and the number of replicas, one for a machine alone."""
    found: dict[int, dict[float, list[float]]] = {}
    for run in record["runs"]:
        found.setdefault(run["replicas"], {}).setdefault(run["lr_scale"], []).append(run["curve"][-1][2])
    scales = sorted({scale for each in found.values() for scale in each})
    rows: Rows = [["replicas", *(f"{scale:g}x" for scale in scales)], ["---"] * (len(scales) + 1)]
    for replicas, losses in sorted(found.items()):
        rows.append([str(replicas), *(spread(losses[each], 3) if each in losses else "" for each in scales)])
    return rows


def _end(record: Record, model: str, replicas: int, scenario: str) -> dict[int, float]:
    """Each seed's final loss of DDP, at the rate whose mean over the seeds is the lowest."""
    place = (model, replicas, scenario, "ddp")
    found: dict[float, dict[int, float]] = {}
    for run in record["runs"]:
        if (run["model"], run["replicas"], run["scenario"], run["arm"]) == place:
            found.setdefault(run["lr_scale"], {})[run["seed"]] = run["curve"][-1][2]
    most = max(len(each) for each in found.values())
    return min(
        (each for each in found.values() if len(each) == most), key=lambda each: statistics.mean(each.values())
    )


def paired(values: Sequence[float]) -> str:
    """The mean of differences within pairs, and its standard error."""
    if len(values) == 1:
        return f"{values[0]:+.1f}"
    return f"{statistics.mean(values):+.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def spread(values: Sequence[float], places: int = 2) -> str:
    """Mean and range; a single value alone. A ratio of 0 is a target that was never reached."""
    mean = f"{statistics.mean(values):.{places}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{places}f} to {max(values):.{places}f})"


def _read(name: str) -> Record:
    path = Path(__file__).resolve().parent / "results" / f"{name}.json"
    found: Record = json.loads(path.read_text())
    return found


def _order(item: tuple[tuple[str, int, str], Any]) -> tuple[str, int, int]:
    model, replicas, scenario = item[0]
    return model, replicas, verdicts.EVERYWHERE.index(scenario)


TABLES: dict[str, tuple[str, Callable[[Record], Rows]]] = {
    "straggler_goals": ("straggler_tax", goals),
    "straggler_methods": ("straggler_tax", methods),
    "straggler_chance": ("straggler_tax", chance),
    "straggler_ways": ("reduce", methods),
    "straggler_linger": ("linger", lingering),
    "fleet_rule": ("fleet_rule", second_moments),
    "fleet_trigger": ("fleet_trigger", lambda record: triggers(record, _read("fleet_rule"))),
    "fleet_rates": ("fleet_rates", rates),
    "straggler_tries": ("straggler_tries", tries),
}
"""Name of the marked block: (result file, its table)."""
