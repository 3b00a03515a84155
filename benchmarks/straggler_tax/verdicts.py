"""From runs to the issue's figures: times to a target loss as ratios within a pair, and each goal met or missed.

The target of a seed is the eval loss at which DDP stands after half of its samples (this project's prototype had its
target after 46 %): late enough to be past the first steps, early enough for every method to get there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tsugi_cli.bench.compare.statistics import Point, at, crossing

Run = dict[str, Any]
Cell = dict[str, Run]
"""One seed's runs of one scenario, by arm."""
HALF = 0.5


@dataclass(frozen=True)
class Goal:
    """One sentence of the goals, for a fleet of some size and a variant of K-Pool ("it")."""

    text: str
    scenarios: tuple[str, ...]
    value: Callable[[str], Callable[[Cell], float]]
    """Of an arm."""
    bound: float
    at_least: bool = True

    def met(self, values: Iterable[float]) -> bool:
        """Whether the mean over seeds is within the bound."""
        mean = statistics.mean(values)
        return mean >= self.bound if self.at_least else mean <= self.bound


def target(ddp: Run) -> float:
    """Eval loss of DDP after half of its samples."""
    curve = points(ddp)
    found = at(curve, "tokens", HALF * curve[-1].tokens)
    return curve[0].loss if found is None else found


def points(run: Run) -> list[Point]:
    """Its curve; samples stand for the tokens, which are the same for all methods."""
    return [Point(*row) for row in run["curve"]]


def time_to(run: Run, loss: float) -> float:
    """When the eval loss has fallen to this; infinite when it never does."""
    found = crossing(points(run), loss)
    return math.inf if found is None else found.at_s


def faster(arm: str, than: str) -> Callable[[Cell], float]:
    """How many times sooner one arm reaches the target than the other."""

    def ratio(cell: Cell) -> float:
        loss = target(cell["ddp"])
        own, other = time_to(cell[arm], loss), time_to(cell[than], loss)
        return 0.0 if own == math.inf else other / own

    return ratio


def loss_percent(arm: str, than: str = "ddp") -> Callable[[Cell], float]:
    """By how many percent the final eval loss is above DDP's, at equal tokens."""
    return lambda cell: 100.0 * (cell[arm]["curve"][-1][2] / cell[than]["curve"][-1][2] - 1.0)


def fewer_bytes(arm: str) -> Callable[[Cell], float]:
    """How many times fewer bytes a sample costs than with DDP in fp32."""
    return lambda cell: float(cell["ddp"]["bytes_per_sample"] / cell[arm]["bytes_per_sample"])


def sooner(than: str) -> Callable[[str], Callable[[Cell], float]]:
    """`faster` than this arm, for any arm."""
    return lambda arm: faster(arm, than)


def percent_above(than: str) -> Callable[[str], Callable[[Cell], float]]:
    """`loss_percent` against this arm, for any arm."""
    return lambda arm: loss_percent(arm, than)


def goodput(arm: str) -> Callable[[Cell], float]:
    """Samples that count, as a share of what all replicas could have computed."""
    return lambda cell: float(cell[arm]["goodput"])


EVERYWHERE = ("healthy", "straggler", "jitter", "slow_link", "very_slow_link")
SLOW_LINKS = ("slow_link", "very_slow_link")
GOALS = (
    Goal("time to target, DDP / it", ("straggler",), sooner("ddp"), 3.0),
    Goal("time to target, dropping the slowest / it", ("straggler",), sooner("drop_slowest"), 1.0),
    Goal("time to target, DDP / it", ("slow_link",), sooner("ddp"), 5.0),
    Goal("time to target, hivemind-like / it", ("slow_link",), sooner("hivemind"), 2.0),
    Goal("time to target, balanced local SGD / it", ("slow_link",), sooner("balanced"), 1.5),
    Goal("time to target, DDP / it", ("healthy",), sooner("ddp"), 0.98),
    Goal("final loss above DDP's, %", EVERYWHERE, percent_above("ddp"), 0.5, at_least=False),
    Goal("the same, DDP at its rate for the end", EVERYWHERE, percent_above("ddp_end"), 0.5, at_least=False),
    Goal("goodput", EVERYWHERE, goodput, 0.97),
    Goal("bytes per token, DDP in fp32 / it", SLOW_LINKS, fewer_bytes, 50.0),
)
JUDGED = ("kpool", "kpool_smoothed", "kpool_smoothed_int4", "kpool_spaced")
"""The variants of K-Pool that the goals are asked of."""


def rates_for(rates: dict[str, dict[str, float]], model: str, replicas: int) -> dict[str, float]:
    """The methods' learning rates on a fleet of this size: its own (`model/replicas`), where they were looked for."""
    return rates[model] | rates.get(f"{model}/{replicas}", {})


def rate_of(rates: dict[str, float], arm: str) -> float:
    """The learning rate of a method, or of a variant of one (`kpool_frugal`) that has none of its own."""
    for name in (arm, arm.partition("_")[0]):
        if name in rates:
            return rates[name]
    return 1.0


def chosen(record: dict[str, Any]) -> Iterator[tuple[str, Run]]:
    """The runs at each method's own learning rate, by name; those at its rate for the end as `ddp_end`."""
    for run in record["runs"]:
        rates, arm = rates_for(record["learning_rates"], run["model"], run["replicas"]), run["arm"]
        if run["lr_scale"] == rate_of(rates, arm):
            yield arm, run
        elif run["lr_scale"] == rates.get(f"{arm}_end"):
            yield f"{arm}_end", run


def cells(record: dict[str, Any]) -> dict[tuple[str, int, str], dict[int, Cell]]:
    """(model, replicas, scenario) -> seed -> its runs."""
    found: dict[tuple[str, int, str], dict[int, Cell]] = {}
    for arm, run in chosen(record):
        seeds = found.setdefault((run["model"], run["replicas"], run["scenario"]), {})
        seeds.setdefault(run["seed"], {})[arm] = run
    return found


def values(goal: Goal, arm: str, seeds: dict[int, Cell]) -> list[float]:
    """An arm's figure for every seed that has the runs it needs."""
    found = []
    for _, cell in sorted(seeds.items()):
        try:
            found.append(goal.value(arm)(cell))
        except KeyError:
            continue
    return found
