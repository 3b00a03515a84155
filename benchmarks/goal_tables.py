"""Tables of the goals on fresh seeds, of what was tried for them, and of rounds that are far apart."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "straggler_tax"))
import verdicts
from straggler_tables import Record, Rows, paired, spread
from verdicts import Run

Rates = dict[float, dict[int, Run]]
"""DDP's runs of one scenario: learning rate -> seed -> run."""
NOW = ("kpool_auto", "kpool_auto_int4", "kpool_auto_int2")
"""K-Pool as a user gets it."""
LOSS_GOALS = {"healthy": 0.5, "straggler": 0.5, "jitter": 0.5, "slow_link": 2.0, "very_slow_link": 6.0}
"""Final loss above DDP's in percent, at most."""
TIME_GOALS = {
    "healthy": {2: 0.97, 4: 0.97, 8: 0.97},
    "straggler": {4: 3.1, 8: 3.4},
    "slow_link": {2: 6.0, 4: 6.0, 8: 6.0},
    "very_slow_link": {2: 14.0, 4: 14.0, 8: 14.0},
}
"""Time to target, DDP / it, at least."""


def goals(record: Record) -> Rows:
    """K-Pool as it is now against DDP at its best rate for the target and at its best rate for the end."""
    rows = _header("replicas", "scenario", "rate", "seeds", "DDP's rates")
    _more(
        rows, "time to target, DDP / it", "if nobody waited", "goal", "loss above DDP's at its rate for the target, %"
    )
    _more(rows, "at its rate for the end, %", "goal", "bytes, DDP / it")
    for (replicas, scenario, rate), runs in sorted(_cells(record).items(), key=_order):
        rates = _ddp(record, replicas, scenario)
        target, end = best(rates, verdicts.target), best(rates, _last)
        cells = [{"ddp": rates[target][run["seed"]], "it": run} for run in runs if run["seed"] in rates[target]]
        ends = [_above(cell["it"], rates[end][cell["it"]["seed"]]) for cell in cells]
        above = [verdicts.loss_percent("it")(cell) for cell in cells]
        times = [verdicts.faster("it", "ddp")(cell) for cell in cells]
        most = statistics.mean(1 / cell["ddp"]["goodput"] for cell in cells)
        fewer = spread([verdicts.fewer_bytes("it")(cell) for cell in cells], 1)
        asked, bound = TIME_GOALS.get(scenario, {}).get(replicas), LOSS_GOALS[scenario]
        told = f"≥ {asked:g} {_mark(statistics.mean(times) >= asked)}" if asked else ""
        met = f"≤ {bound:g} {_mark(statistics.mean(above) <= bound)} {_mark(statistics.mean(ends) <= bound)}"
        rows.append([str(replicas), scenario, f"{rate:g}x", str(len(cells)), f"{target:g}x, {end:g}x"])
        rows[-1] += [spread(times), f"{most:.2f}", told, *map(_ranged, (above, ends)), met, fewer]
    return rows


def _ranged(values: Sequence[float]) -> str:
    return f"{paired(values)} ({min(values):.1f} to {max(values):.1f})"


def tries(record: Record, every: bool = True) -> Rows:
    """What was tried for the goals, each against DDP with the same memory of gradients.

    Args:
        record: The runs.
        every: Those of K-Pool as a user gets it, too.
    """
    rows = _header("replicas", "scenario", "method", "settings", "rate", "seeds")
    _more(rows, "time to target, DDP / it", "loss above DDP's at its rate for the target, %", "for the end, %")
    _more(rows, "for the end, without the settings, %", "bytes, DDP / it")
    found: dict[tuple[int, str, str, str, float], list[Run]] = {}
    for run in record["runs"]:
        if run["arm"] != "ddp" and (every or run.get("settings")):
            key = (run["replicas"], run["scenario"], run["arm"], run.get("settings", ""), run["lr_scale"])
            found.setdefault(key, []).append(run)
    order = verdicts.EVERYWHERE.index
    for (replicas, scenario, arm, settings, rate), runs in sorted(
        found.items(), key=lambda item: (item[0][0], order(item[0][1]), *item[0][2:])
    ):
        own = " ".join(each for each in settings.split() if each.startswith("train.beta"))
        plain, same = (_ddp(record, replicas, scenario, each) for each in ("", own))
        against = [same[best(same, verdicts.target)], *(each[best(each, _last)] for each in (same, plain))]
        cells = [{"ddp": against[0][run["seed"]], "it": run} for run in runs]
        times, fewer = (
            [figure(cell) for cell in cells] for figure in (verdicts.faster("it", "ddp"), verdicts.fewer_bytes("it"))
        )
        above = [[_above(run, each[run["seed"]]) for run in runs] for each in against]
        rows.append([str(replicas), scenario, f"`{arm}`", f"`{settings}`" if settings else "", f"{rate:g}x"])
        rows[-1] += [str(len(runs)), spread(times), *(spread(each, 1) for each in above), spread(fewer, 1)]
    return rows


def apart(record: Record) -> Rows:
    """Rounds in lock step, by how far apart they are and how they are coded."""
    rows = _header("replicas", "rate", "meets", "seeds", "rounds", "loss above `mean1`'s, %", "above DDP's, %")
    _more(rows, "bytes, DDP / it", "product gap, of a round's change, %", "of the product, %")
    found: dict[tuple[int, float, str], dict[int, Run]] = {}
    for run in record["runs"]:
        found.setdefault((run["replicas"], run["lr_scale"], run["arm"]), {})[run["seed"]] = run
    for (replicas, rate, arm), runs in sorted(
        found.items(), key=lambda item: (*item[0][:2], list(found).index(item[0]))
    ):
        if arm == "ddp":
            continue
        against = (found[replicas, rate, "mean1"], found[replicas, rate, "ddp"])
        above = [
            [100 * (run["loss"] / base[seed]["loss"] - 1) for seed, run in sorted(runs.items())] for base in against
        ]
        gaps = [
            [100 * run[name] for run in runs.values() if name in run] for name in ("gap_of_change", "gap_of_product")
        ]
        rounds = spread([float(run["rounds"]) for run in runs.values()], 0)
        rows.append(
            [str(replicas), f"{rate:g}x", f"`{arm}`", str(len(runs)), rounds, *(spread(each, 1) for each in above)]
        )
        rows[-1] += [
            spread([run["bytes"] for run in runs.values()], 1),
            *(spread(each, 2) if each else "" for each in gaps),
        ]
    return rows


def two_bits(record: Record) -> Rows:
    """Codes of few bits, each in the same seeds as int4 with the same spacing."""
    rows = _header("code", "bits", "steps between rounds", "replicas", "scenario", "seeds", "loss above int4's, %")
    _more(rows, "above DDP's at the same rate, %", "bytes, DDP / it")
    found: dict[tuple[int, str, str], dict[int, Run]] = {}
    for run in sorted(record["runs"], key=lambda run: int(run["seed"])):
        found.setdefault((run["replicas"], run["scenario"], run["arm"]), {})[run["seed"]] = run
    where = sorted({key[:2] for key in found}, key=lambda each: (each[0], verdicts.EVERYWHERE.index(each[1])))
    for (replicas, scenario), code in product(where, record["codes"]):
        if runs := found.get((replicas, scenario, code)):
            int4, ddp = (found.get((replicas, scenario, name), {}) for name in ("int4", "ddp"))
            above = [[_above(run, base[seed]) for seed, run in runs.items() if seed in base] for base in (int4, ddp)]
            fewer = [
                verdicts.fewer_bytes("it")({"ddp": ddp[seed], "it": run}) for seed, run in runs.items() if seed in ddp
            ]
            rows.append([f"`{code}`", *(f"{each:g}" for each in record["codes"][code]), str(replicas), scenario])
            rows[-1] += [
                str(len(runs)),
                *("" if code == "int4" and each is above[0] else paired(each) for each in above),
            ]
            rows[-1].append(spread(fewer, 1))
    return rows


def shares(record: Record) -> Rows:
    """What a part of a round counts, each rule in the same seeds as tokens at the first rate."""
    rows = _header("replicas", "scenario", "parts count by", "rate", "seeds")
    _more(rows, "loss half way, %", "loss at the end, %")
    found: dict[tuple[int, str, str, float], dict[int, Run]] = {}
    for run in sorted(record["runs"], key=lambda run: int(run["seed"])):
        found.setdefault((run["replicas"], run["scenario"], run["arm"], run["lr_scale"]), {})[run["seed"]] = run
    first = min(rate for *_, rate in found)
    order = ("tokens", "as_far", "steps")
    for (replicas, scenario, rule, rate), runs in sorted(
        found.items(),
        key=lambda item: (item[0][0], verdicts.EVERYWHERE.index(item[0][1]), order.index(item[0][2]), item[0][3]),
    ):
        base = found[replicas, scenario, "tokens", first]
        pairs = [(run, base[seed]) for seed, run in runs.items() if run is not base.get(seed)]
        half = [100.0 * (verdicts.target(run) / verdicts.target(than) - 1.0) for run, than in pairs]
        told = [paired(each) if each else "" for each in (half, [_above(*pair) for pair in pairs])]
        rows.append([str(replicas), scenario, f"`{rule}`", f"{rate:g}x", str(len(runs)), *told])
    return rows


def codec(record: Record) -> Rows:
    """What coding costs, beside int4."""
    rows = _header("payload", "bits of a number", "coding, ns of a number", "decoding")
    rows += [
        [run["payload"], f"{run['bits']:g}", f"{run['encode_ns']:.2f}", f"{run['decode_ns']:.2f}"]
        for run in record["runs"]
    ]
    return rows


def best(rates: Rates, of: Callable[[Run], float]) -> float:
    """The rate at which the mean over seeds is lowest, of those that all seeds have."""
    most = max(len(seeds) for seeds in rates.values())
    whole = {rate: seeds for rate, seeds in rates.items() if len(seeds) == most}
    return min(whole, key=lambda rate: statistics.mean(of(run) for run in whole[rate].values()))


def _cells(record: Record) -> dict[tuple[int, str, float], list[Run]]:
    found: dict[tuple[int, str, float], list[Run]] = {}
    for run in sorted(record["runs"], key=lambda run: int(run["seed"])):
        if run["arm"] in NOW and not run.get("settings"):
            found.setdefault((run["replicas"], run["scenario"], run["lr_scale"]), []).append(run)
    return found


def _ddp(record: Record, replicas: int, scenario: str, settings: str = "") -> Rates:
    found: Rates = {}
    for run in record["runs"]:
        where = (run["arm"], run["replicas"], run["scenario"], run.get("settings", ""))
        if where == ("ddp", replicas, scenario, settings):
            found.setdefault(run["lr_scale"], {})[run["seed"]] = run
    return found


def _last(run: Run) -> float:
    return float(run["curve"][-1][2])


def _above(run: Run, than: Run) -> float:
    return 100.0 * (_last(run) / _last(than) - 1.0)


def _mark(met: bool) -> str:
    return "✓" if met else "✗"


def _header(*titles: str) -> Rows:
    return [list(titles), ["---"] * len(titles)]


def _more(rows: Rows, *titles: str) -> None:
    rows[0] += titles
    rows[1] += ["---"] * len(titles)


def _order(item: tuple[tuple[int, str, float], Any]) -> tuple[int, int, float]:
    replicas, scenario, rate = item[0]
    return replicas, verdicts.EVERYWHERE.index(scenario), rate


TABLES: dict[str, tuple[str, Callable[[Record], Rows]]] = {
    "goals_now": ("goals", goals),
    "goals_docstrings": ("goals_smollm2_docstrings", goals),
    "shares": ("shares", shares),
    "goals_bytes": ("int2", lambda record: tries(record, every=False)),
    "two_bits": ("two_bits", two_bits),
    "codec": ("codec", codec),
    "goals_tried": ("gap8", tries),
    "apart": ("apart", apart),
}
"""Name of the marked block: (result file, its table)."""
