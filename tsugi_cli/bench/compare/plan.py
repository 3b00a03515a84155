"""The plan of a benchmark: its runs. Pure, printed by --dry-run, pinned by tests."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

from tsugi_cli.bench.spec import Bench
from tsugi_cli.config import faults

KPOOL = "kpool"
DDP = "ddp"
DROP = "drop_slowest"
STARTING_S = {KPOOL: 20.0, "peers": 20.0}
"""Assumed start time of processes, until the first run has shown it."""


@dataclass(frozen=True)
class Arm:
    """One way to train, with its own tuned learning rate."""

    name: str
    method: str
    overrides: tuple[str, ...]
    replicas: int
    """Replicas that train; the slowest is left out where it is dropped."""

    @property
    def synchronous(self) -> bool:
        """Whether its result does not depend on time."""
        return self.method != KPOOL


@dataclass(frozen=True)
class Run:
    """One training."""

    arm: Arm
    lr_scale: float
    seed: int
    emulated: bool = True
    """Whether the scenario applies; false where only the learning rate is searched."""

    @property
    def key(self) -> str:
        """Name of its folder."""
        name = re.sub(r"[^A-Za-z0-9.]+", "-", self.arm.name).strip("-")
        return f"{'' if self.emulated else 'tune-'}{name}-lr{self.lr_scale:g}-seed{self.seed}"


def arms(bench: Bench, replicas: int) -> list[Arm]:
    """Return all arms of a benchmark, in the order of the report."""
    found = []
    for method in bench.methods:
        if method == KPOOL:
            for text in bench.kpool:
                words = () if text == "default" else tuple(text.split())
                found.append(Arm(f"{KPOOL} {text}" if words else KPOOL, KPOOL, words, replicas))
        else:
            found.append(Arm(method, method, (), replicas - 1 if method == DROP else replicas))
    return found


def step_count(bench: Bench, replicas: int) -> int:
    """Return the steps of one run: what was asked for, rounded up so that every method's steps are whole."""
    whole = math.lcm(*(arm.replicas for arm in arms(bench, replicas)))
    return -(-bench.steps // whole) * whole


def tuning(bench: Bench, every: Sequence[Arm]) -> list[Run]:
    """Return the runs that find the learning rates: the whole grid on the first seed.

    A synchronous method computes the same under any scenario, so it is tuned without one, which is faster.
    """
    if len(bench.lr_scales) == 1:
        return []
    emulates = bench.scenario.emulate
    return [
        Run(arm, scale, bench.seeds[0], emulated=not (arm.synchronous and emulates))
        for arm in every
        for scale in bench.lr_scales
    ]


def measured(bench: Bench, chosen: dict[str, float], every: Sequence[Arm]) -> list[Run]:
    """Return the runs that are compared: every arm at its own rate on every seed, seed after seed."""
    return [Run(arm, chosen[arm.name], seed) for seed in bench.seeds for arm in every]


def expected(bench: Bench, every: Sequence[Arm]) -> list[Run]:
    """Return all runs that are known before rates are chosen; one that serves both purposes is counted once."""
    grid = tuning(bench, every)
    serves = {run.arm.name for run in grid if run.emulated}
    rest = measured(bench, {arm.name: bench.lr_scales[0] for arm in every}, every)
    return grid + [run for run in rest if run.arm.name not in serves or run.seed != bench.seeds[0]]


def sessions(runs: Sequence[Run]) -> list[list[Run]]:
    """Return runs in the order in which they are made.

    Those of peers with equally many replicas follow each other in the same processes, the largest fleets first. Then
    come those of the pool, each on its own.
    """
    peers = [run for run in runs if run.arm.synchronous]
    sizes = sorted({run.arm.replicas for run in peers}, reverse=True)
    together = [[run for run in peers if run.arm.replicas == size] for size in sizes]
    return [*together, *([run] for run in runs if not run.arm.synchronous)]


def device_times(bench: Bench, replicas: int, seed: int, count: int) -> list[list[float]]:
    """Return for each replica the emulated times of its first steps in seconds, as its worker draws them."""
    found = []
    for replica in range(replicas):
        factor = bench.scenario.slow if replica == replicas - 1 else 1.0
        drawn = islice(faults.jitters(bench.scenario.jitter, seed, replica), count)
        found.append([bench.device_step_s * factor * each for each in drawn])
    return found


def limit(bench: Bench, replicas: int) -> float | None:
    """Return how much more than lock-step a fleet can do: the sum of its rates, over that of the slowest in each
    step.

    For one replica that is s times slower this is (s(n-1)+1)/n. None where nothing is emulated.
    """
    if not bench.scenario.emulate or not bench.device_step_s:
        return None
    steps = step_count(bench, replicas) // replicas
    ratios = []
    for seed in bench.seeds:
        times = device_times(bench, replicas, seed, steps)
        own = sum(1 / fmean(each) for each in times)
        lockstep = replicas / fmean(max(step) for step in zip(*times, strict=True))
        ratios.append(own / lockstep)
    return fmean(ratios)


def training_s(bench: Bench, run: Run, replicas: int) -> float:
    """Return the least time that a run will train. What communication and this machine add is not known."""
    if not (bench.scenario.emulate and run.emulated):
        return 0.0
    steps = step_count(bench, replicas)
    times = device_times(bench, replicas, run.seed, steps // run.arm.replicas)[: run.arm.replicas]
    if run.arm.synchronous:
        return float(sum(max(step) for step in zip(*times, strict=True)))
    return steps / sum(1 / fmean(each) for each in times)


def scenario_overrides(bench: Bench, run: Run, replicas: int) -> list[str]:
    """Return the emulated device as overrides of `tsugi finetune`."""
    if not run.emulated:
        return []
    scenario, last = bench.scenario, replicas - 1
    factors = [scenario.slow if replica == last else 1.0 for replica in range(run.arm.replicas)]
    if not scenario.emulate or not bench.device_step_s:
        slow = ",".join(f"{replica}:{factor:g}" for replica, factor in enumerate(factors) if factor > 1)
        return [f"fault.slow=[{slow}]"]
    steps = ",".join(f"{replica}:{bench.device_step_s * factor:g}" for replica, factor in enumerate(factors))
    return [f"fault.step_s=[{steps}]", f"fault.jitter={scenario.jitter:g}"]


def overrides(bench: Bench, base: Sequence[str], lr: float, run: Run, replicas: int) -> list[str]:
    """Return the overrides of `tsugi finetune` for this run; the peers' workers read the same configuration.

    `base` are the user's own words, `lr` is the learning rate that they lead to.
    """
    return [
        *base,
        f"topology.replicas={run.arm.replicas}",
        f"topology.min_replicas={run.arm.replicas}",
        f"train.max_steps={step_count(bench, replicas)}",
        f"train.lr={lr * run.lr_scale:g}",
        "train.checkpoint.every_s=0",
        "data.n_test=0",
        "data.scorer=null",
        f"evaluate.snapshots={bench.points}",
        "evaluate.examples=0",
        *run.arm.overrides,
        *scenario_overrides(bench, run, replicas),
        f"seed={run.seed}",
    ]
