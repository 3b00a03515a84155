"""Pictures of benchmarks/straggler_tax: the methods, two-stage rounds, the fleet's optimizer rule, learning rates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import straggler_tables  # noqa: F401  (puts straggler_tax on the path)
import verdicts
from charts import Bar, Curve, Drawing, Picture, bars, curves, spread

from tsugi_cli.pages.figures import Scale

Record = dict[str, Any]
Read = Callable[[verdicts.Cell], float]
NAMES = {"ddp": "DDP", "drop_slowest": "leaving the slowest out", "balanced": "balanced LocalSGD",
         "hivemind": "like hivemind", "kpool_smoothed": "K-Pool"}  # fmt: skip
COLOURS = {"balanced": "local_sgd", "kpool_smoothed": "kpool"}
SCENARIOS = {
    "healthy": "healthy",
    "straggler": "one is 4x slower",
    "jitter": "jitter",
    "slow_link": "slow link, one is 4x slower",
    "very_slow_link": "very slow link, one is 4x slower",
}


def seeds_of(record: Record, model: str, replicas: int, scenario: str, arms: Sequence[str]) -> list[verdicts.Cell]:
    """The seeds that have all of these methods, so that all are compared on the same ones."""
    cells = verdicts.cells(record).get((model, replicas, scenario), {})
    return [cell for _, cell in sorted(cells.items()) if {*arms, "ddp"} <= set(cell)]


def methods(model: str, replicas: int, scenario: str) -> Callable[[Record], Picture]:
    """How many times as soon as DDP each method is at the target."""

    def draw(record: Record) -> Picture:
        cells, rows = seeds_of(record, model, replicas, scenario, tuple(NAMES)), []
        for arm, name in NAMES.items():
            found = [verdicts.faster(arm, "ddp")(cell) for cell in cells]
            there = all(found)
            words = f"{statistics.fmean(found):.2f} x" if there else "never there"
            rows.append(Bar(name, spread(found) if there else None, words, COLOURS.get(arm, arm)))
        limit = (SLOWER * (replicas - 1) + 1) / replicas
        mark = (limit, f"limit: {limit:g} x") if scenario == "straggler" else None
        return bars(rows, f"times as soon as DDP: {SCENARIOS[scenario]}", mark)

    return draw


def pairs(replicas: int, arms: dict[str, str], read: Callable[[str], Read], title: str, style: str) -> Any:
    """A figure of two ways to train, in each scenario, from the seeds that have both."""

    def draw(record: Record) -> Picture:
        rows: list[Bar | str] = []
        for scenario, words in SCENARIOS.items():
            names = {
                arm + ("_int4" if "link" in scenario and "_int4" not in arm else ""): n for arm, n in arms.items()
            }
            cells = seeds_of(record, "pretrained", replicas, scenario, tuple(names))
            if cells:
                rows.append(f"{words} ({len(cells)} seed{'s'[: len(cells) > 1]})")
            for number, (arm, name) in enumerate(names.items()):
                found = [read(arm)(cell) for cell in cells]
                if found:
                    rows.append(Bar(name, spread(found), style.format(statistics.fmean(found)), "kpool", not number))
        return bars(rows, title)

    return draw


def rates(record: Record) -> Picture:
    """DDP's final loss by its learning rate, a line for each number of replicas."""
    found: dict[int, dict[float, list[float]]] = {}
    for run in record["runs"]:
        found.setdefault(run["replicas"], {}).setdefault(run["lr_scale"], []).append(run["curve"][-1][2])
    lines = [
        Curve(
            "1 replica" if replicas == 1 else f"{replicas} replicas",
            sorted((x, statistics.fmean(y)) for x, y in losses.items()),
            "ddp",
            replicas > 1,
            True,
        )
        for replicas, losses in sorted(found.items())
    ]
    values = [y for line in lines for _, y in line.points]
    marks = [(step / 20, f"{step / 20:.2f}") for step in range(int(min(values) * 20), int(max(values) * 20) + 2)]
    places = sorted({x for line in lines for x, _ in line.points})
    title = "DDP's final loss by learning rate (x the recipe's), by replicas"
    drawn = curves(lines, title, Scale(marks[-1][0], marks[0][0], 0, 0), marks, places)
    best = {line.name: min(line.points, key=lambda point: point[1])[0] for line in lines}
    return Picture(drawn.svg, f"{title}: " + ", ".join(f"{name}: best at {x:g}x" for name, x in best.items()))


def trigger(record: Record, fixed: Record) -> Picture:
    """The trigger by the fleet's pace beside the one before it, each against DDP in the same seed."""
    cells = verdicts.cells(fixed)
    rows: list[Bar | str] = []
    for run in sorted(record["runs"], key=lambda run: run["seed"]):
        cell = {**cells[run["model"], run["replicas"], run["scenario"]].get(run["seed"], {}), "it": run}
        rows.append(f"seed {run['seed']}")
        for arm, name in (("kpool_fleet", "by steps"), ("it", "by the fleet's pace")):
            value = verdicts.faster(arm, "ddp")(cell)
            rows.append(Bar(name, spread([value]), f"{value:.2f} x", "kpool", arm != "it"))
    return bars(rows, "times as soon as DDP, eight replicas, one is 4x slower")


SLOWER = 4.0
VIRTUAL = "Real training in virtual time"
STAND_IN = f"{VIRTUAL}, a tiny stand-in model, eight replicas. Whiskers: from the lowest to the highest seed. "
TAX = (
    f"{VIRTUAL}: SmolLM2-135M, four replicas, 40 steps of each, three seeds; whiskers from the lowest to the "
    "highest. The target is DDP's loss after half of its samples. K-Pool with `train.optimizer=fleet_adamw` as it "
    "was before its present rule. "
)
WAYS = {"kpool_fleet_int4": "gathered", "kpool_fleet_int4_scatter": "two stages"}
RULES = {"kpool_smoothed": "the rule before", "kpool_fleet": "FleetAdamW"}
ABOVE = "final loss above DDP's, %, after equal tokens"
DRAWINGS: dict[str, Drawing] = {
    "figure-tax-straggler": Drawing(
        ("straggler_tax",),
        methods("smollm2_135m", 4, "straggler"),
        TAX + "The dashed line is a fleet in which nobody waits.",
    ),
    "figure-tax-slow-link": Drawing(
        ("straggler_tax",),
        methods("smollm2_135m", 4, "slow_link"),
        TAX + "An all-reduce takes 5 steps. At equal tokens K-Pool ends above DDP in some seeds and below in others.",
    ),
    "figure-ways-loss": Drawing(
        ("reduce",),
        pairs(8, WAYS, verdicts.loss_percent, ABOVE, "{:+.1f} %"),
        STAND_IN + "With `payload=int4`. The rule of the optimizer is the one before the present.",
    ),
    "figure-ways-bytes": Drawing(
        ("reduce",),
        pairs(8, WAYS, verdicts.fewer_bytes, "bytes of a sample: DDP's in fp32 over these", "{:.1f} x"),
        STAND_IN + "With `payload=int4`; checks of a quarter of the rounds are in it.",
    ),
    "figure-fleet-rule": Drawing(
        ("fleet_rule",),
        pairs(8, RULES, verdicts.loss_percent, ABOVE, "{:+.1f} %"),
        STAND_IN
        + "Seeds that nothing was tuned on. With one to three seeds half a per cent is chance; the table has the "
        "differences within pairs.",
    ),
    "figure-fleet-rates": Drawing(
        ("fleet_rates",),
        rates,
        f"{VIRTUAL}, a tiny stand-in model. A point is one seed, or the mean of two: half a per cent tells nothing.",
    ),
    "figure-fleet-trigger": Drawing(
        ("fleet_trigger", "fleet_rule"),
        trigger,
        f"{VIRTUAL}, a tiny stand-in model. It sends a few per cent more bytes; the final loss is a tie.",
    ),
}
"""Name of the picture -> how it is drawn."""
