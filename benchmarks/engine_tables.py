"""Tables of benchmarks/engine: from a result record to Markdown rows. `figures.py` puts them into the pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rows = list[list[str]]
Record = dict[str, Any]


def _head(*titles: str) -> Rows:
    return [list(titles), ["---"] * len(titles)]


def parity(record: Record) -> Rows:
    rows = _head("recipe", "replicas", "seed", "DDP", "local mode", "difference")
    for cell in record["summary"]:
        runs = [r for r in record["runs"] if all(r[k] == cell[k] for k in ("recipe", "replicas", "lr_scale"))]
        losses = {(run["seed"], run["arm"]): run["loss"]["trained"] for run in runs}
        for seed, percent in zip(cell["seeds"], cell["percent"], strict=True):
            ddp, local = losses[seed, "ddp"], losses[seed, "local"]
            nats = f"{local - ddp:+.4f} ({percent:+.1f} %)"
            rows.append([cell["recipe"], str(cell["replicas"]), str(seed), f"{ddp:.4f}", f"{local:.4f}", nats])
        mean = f"{cell['nats']:+.4f} ({cell['mean_percent']:+.1f} %)"
        rows.append(["", "", "mean", f"{cell['ddp']:.4f}", f"{cell['local']:.4f}", mean])
    return rows


def rates(record: Record) -> Rows:
    rows = _head("recipe", "replicas", "seed", "arm", "learning rate x", "eval loss")
    keys = ("recipe", "replicas", "seed", "arm", "lr_scale")
    for run in sorted(record["runs"], key=lambda run: tuple(run[key] for key in keys)):
        rows.append([*(str(run[key]) for key in keys), f"{run['loss']:.4f}"])
    return rows


def gap(record: Record) -> Rows:
    """What each change costs or gains, at each multiple of the recipe's learning rate."""
    scales = sorted({run["lr_scale"] for run in record["runs"]})
    rows = _head("model", "samples", "arm", *(f"{scale:g}x" for scale in scales))
    found: dict[tuple[str, int, str], dict[float, list[float]]] = {}
    for run in sorted(record["runs"], key=lambda run: (run["model"], run["samples"])):
        cell = found.setdefault((run["model"], run["samples"], run["arm"]), {})
        cell.setdefault(run["lr_scale"], []).append(run["loss"])
    for (model, samples, arm), cell in found.items():
        rows.append([model, str(samples), arm, *(_mean(cell.get(scale, [])) for scale in scales)])
    return rows


def short(record: Record) -> Rows:
    """Each seed's DDP and local mode at their best rates: with the recipe's rounds, and with one each step."""
    rows = _head("seed", "DDP", "local, recipe's rounds", "local, min_steps=1", "difference of the last")
    runs = [run for run in record["runs"] if run["model"] == "smollm2_135m"]
    best: dict[int, dict[str, float]] = {}
    for run in runs:
        arms = best.setdefault(run["seed"], {})
        arms[run["arm"]] = min(run["loss"], arms.get(run["arm"], run["loss"]))
    names = ("ddp", "base", "min_steps=1")
    whole = [
        (str(seed), [arms[name] for name in names]) for seed, arms in sorted(best.items()) if set(names) <= set(arms)
    ]
    means = [sum(column) / len(whole) for column in zip(*(losses for _, losses in whole), strict=True)]
    for seed, losses in [*whole, ("mean", means)]:
        change = f"{losses[2] - losses[0]:+.4f} ({100 * (losses[2] / losses[0] - 1):+.1f} %)"
        rows.append([seed, *(f"{loss:.4f}" for loss in losses), change])
    return rows


def _mean(losses: list[float]) -> str:
    """Mean, range, and how many."""
    if len(losses) < 2:
        return f"{losses[0]:.3f} (one)" if losses else ""
    return f"{sum(losses) / len(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"


def arms(record: Record) -> Rows:
    """Losses at equal tokens, and the time in which an arm reaches the worst one of its seed."""
    rows = _head("recipe", "link", "seed", "arm", "rounds", "eval loss", "time to the worst arm's loss")
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for run in record["runs"]:
        groups.setdefault((run["recipe"], run["link"], run["seed"]), []).append(run)
    for (recipe, link, seed), runs in sorted(groups.items()):
        target = max(run["curve"][-1]["loss"] for run in runs)
        longest = max(run["curve"][-1]["time_s"] for run in runs)
        for run in runs:
            end = run["curve"][-1]
            share = time_to(run["curve"], target) / longest
            rows.append(
                [recipe, link, str(seed), run["arm"], str(run["versions"]), f"{end['loss']:.4f}", f"{share:.2f}"]
            )
    return rows


def time_to(curve: list[Record], target: float) -> float:
    """Seconds until the eval loss has fallen to `target`, between two points of the curve on a straight line."""
    before = curve[0]
    for point in curve:
        if point["loss"] <= target:
            fallen = before["loss"] - point["loss"]
            share = (before["loss"] - target) / fallen if fallen > 0 else 1.0
            return float(before["time_s"] + share * (point["time_s"] - before["time_s"]))
        before = point
    return float(curve[-1]["time_s"])


def overhead(record: Record) -> Rows:
    names = ("wall", "thread", "process", "calls")
    meters = ("wall", "training thread", "all threads", "engine's own calls")
    rows = _head("model", "replicas", "rounds per step", *meters)
    for world in record["worlds"]:
        spreads = [f"{world[n]['median']:.3f} ({world[n]['q1']:.3f} to {world[n]['q3']:.3f})" for n in names]
        rows.append([world["model"], str(world["replicas"]), f"{world['rounds_per_step']:.2f}", *spreads])
    return rows


def round_cost(record: Record) -> Rows:
    rows = _head("phase", "thread", "processor time before", "now", "now / before, in pairs", "by the clock, now")
    for phase, thread in ROUND_PHASES.items():
        times = [f"{record[code]['cpu_ms'][phase]['median']:.1f} ms" for code in ("before", "now")]
        found = record["now_to_before"].get(phase)
        ratio = f"{found['median']:.2f} ({found['q1']:.2f} to {found['q3']:.2f})" if found else ""
        wall = record["now"]["wall_ms"].get(phase)
        rows.append([f"`{phase}`", thread, *times, ratio, f"{wall['median']:.0f} ms" if wall else ""])
    return rows


ROUND_PHASES = {
    "lock": "training",
    "apply": "training",
    **dict.fromkeys(("snapshot", "check", "code", "collective", "combine", "digest", "commit"), "aggregator"),
    "others": "all others",
}


def library(record: Record) -> Rows:
    rows = _head("what is measured", "median", "quartiles", "95 % interval of the median")
    for name, title in (("thread", "training thread's processor time"), ("wall", "time")):
        figures = record[name]
        spans = [f"{figures[low]:.3f} to {figures[high]:.3f}" for low, high in (("q1", "q3"), ("low", "high"))]
        rows.append([title, f"{figures['median']:.3f}", *spans])
    rows.append(["inside the library's hooks", f"{record['hooks']:.3f}", "", ""])
    return rows


def memory(record: Record) -> Rows:
    rows = _head("mode", "payload", "at rest", "until Commit", "while combining")
    for row in record["copies"]:
        rows.append([row["mode"], row["payload"], *(f"{row[k]:.2f}" for k in ("rest", "reduced", "peak"))])
    return rows


def growth(record: Record) -> Rows:
    rows = _head("mode", "rounds", "tensors", "objects", "threads", "files", "resident memory, MB")
    for run in record["growth"]:
        for mark in (run["marks"][0], run["marks"][-1]):
            counts = [str(mark[name]) for name in ("round", "tensors", "objects", "threads", "files")]
            rows.append([run["mode"], *counts, f"{mark['rss_bytes'] / 1e6:.0f}"])
    return rows


def simulate(record: Record) -> Rows:
    rows = _head("replicas", "virtual time", "says who is slow", "events", "rounds", "processor time", "wall time")
    for run in record["runs"]:
        watched = "yes" if run["watched"] else "no"
        times = [f"{run['virtual_s']:.0f} s", watched, str(run["events"]), str(run["rounds"])]
        rows.append([str(run["replicas"]), *times, f"{run['cpu_s']:.1f} s", f"{run['wall_s']:.1f} s"])
    return rows


def sealed(record: Record) -> Rows:
    alone = {part["bytes"]: part for part in record["parts"]}
    rows = _head("replicas", "payload", "seal one", "open one", "gather, plain", "gather, sealed", "ratio")
    for run in record["runs"]:
        part = alone[run["bytes"]]
        times = [f"{each:.2f} ms" for each in (part["seal_ms"], part["open_ms"], run["plain_ms"], run["sealed_ms"])]
        ratio = f"{run['sealed_ms'] / run['plain_ms']:.2f}"
        rows.append([str(run["replicas"]), f"{run['bytes'] / 1e6:g} MB", *times, ratio])
    return rows


def exchange(record: Record) -> Rows:
    names = (
        "replicas",
        "group",
        "sealed",
        "exchange",
        "exchange / group",
        "quartiles",
        "payloads received",
        "in a group",
    )
    rows = _head(*names, "processes")
    for run in record["runs"]:
        times = [f"{run['ms'][way]:.0f} ms" for way in ("group", "sealed", "exchange")]
        received = [f"{run['received_payloads'][way]:.2f}" for way in ("exchange", "group")]
        ratio = [f"{run['ratio']:.2f}", "{:.2f} to {:.2f}".format(*run["ratio_quartiles"])]
        rows.append([str(run["replicas"]), *times, *ratio, *received, f"{run['load']:.0f}"])
    return rows


def exchange_core(record: Record) -> Rows:
    rows = _head("replicas", "exchange, a round", "rounds/min", "exchange's core", "hub's core", "exchange's memory")
    for run in record["runs"]:
        shares = [f"{run[name]:.1%}" for name in ("exchange_core", "hub_core")]
        took = f"{1000 * run['cpu_s']:.0f} ms"
        rows.append([str(run["replicas"]), took, f"{run['rounds_a_minute']:.1f}", *shares, f"{run['memory_mb']} MB"])
    return rows


def exchange_links(record: Record) -> Rows:
    names = ("replicas", "group", "exchange", "one to the next", "bytes alone: group", "two-stage", "exchange")
    rows = _head(*names, "one to the next", "hub without a limit")
    for run in record["runs"]:
        times = [f"{run['s'][way]:.2f} s" for way in ("group", "exchange", "exchange, ahead")]
        ways = ("group", "scatter", "exchange", "exchange, ahead", "exchange, a hub without a limit")
        rows.append([str(run["replicas"]), *times, *(f"{run['bytes_s'][way]:.2f} s" for way in ways)])
    return rows


TABLES: dict[str, tuple[str, Callable[[Record], Rows]]] = {
    "parity": ("parity", parity),
    "rates": ("rates", rates),
    "gap": ("gap", gap),
    "short": ("gap", short),
    "trigger": ("trigger", arms),
    "selection": ("selection", arms),
    "payload": ("payload", arms),
    "overlap": ("overlap", arms),
    "size_work": ("size_work", arms),
    "overhead": ("overhead", overhead),
    "round_cost": ("round_cost", round_cost),
    "library_overhead": ("overhead:library", library),
    "sealed": ("sealed", sealed),
    "exchange": ("exchange", exchange),
    "exchange core": ("exchange_core", exchange_core),
    "exchange links": ("exchange_links", exchange_links),
    "exchange links, hub trains": ("exchange_links_hub_trains", exchange_links),
    "memory": ("memory", memory),
    "growth": ("memory", growth),
    "simulate": ("simulate", simulate),
}
"""Name of the marked block: (result file, or file:part, its table)."""
