"""The methods that are compared: each gives its curve of eval loss over time, and what it sent and computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import clocks
import steps
from clocks import Clock
from lab import Lab
from scenarios import FP32_BYTES, Scenario
from smoothed_adamw import SmoothedAdamW
from steps import Rule
from training import Course
from virtual import TensorFleet

from tsugi_cli.config.spec import RunSpec
from tsugi_kpool.core.settings import Payload, Reduce

TOO_LONG = 1e7


@dataclass(frozen=True)
class Setting:
    """One cell: a fleet, its data, and what was learnt about it already."""

    scenario: Scenario
    spec: RunSpec
    lab: Lab
    course: Course
    every: int

    @property
    def replicas(self) -> int:
        return self.spec.topology.replicas

    @property
    def numbers(self) -> int:
        """Numbers in the whole adapter."""
        return sum(p.numel() for p in steps.trained(self.lab.model))


Curve = list[tuple[float, int, float]]
"""(time, samples, eval loss)."""
Arm = Callable[[Setting], dict[str, Any]]


def synchronous(clock: Clock, rule: Rule) -> Arm:
    """An arm whose rounds are known without steps."""

    def run(setting: Setting) -> dict[str, Any]:
        samples, replicas = setting.lab.batches.total, setting.replicas
        rounds = clock(setting.scenario, replicas, setting.spec.seed, samples)
        losses = setting.course.losses(rule, rounds)
        done, curve = 0, []
        for each in rounds:
            done += sum(each.counts)
            if done in losses:
                curve.append((each.end, done, losses[done]))
        ring = 2 * (replicas - 1) / replicas * setting.numbers * FP32_BYTES
        return figures(setting, curve, len(rounds), ring * len(rounds))

    return run


def kpool(*overrides: tuple[str, Any], optimizer: Literal["adamw", "fleet_adamw", "smoothed"] = "adamw") -> Arm:
    """Local mode by the engine itself in virtual time, with these settings of the pool."""

    def run(setting: Setting) -> dict[str, Any]:
        pool, train = replace(setting.spec.kpool, **dict(GATHER + overrides)), setting.spec.train
        other = None
        if optimizer == "smoothed":
            betas = (train.beta1 or 0.9, train.beta2)
            other = partial(
                SmoothedAdamW, replicas=setting.replicas, lr=train.lr, betas=betas, weight_decay=train.weight_decay
            )
        else:
            train = replace(train, optimizer=optimizer)
        spec = replace(setting.spec, kpool=pool, train=train)
        scenario, replicas = setting.scenario, setting.replicas
        link = scenario.link(replicas, setting.numbers)
        fleet = TensorFleet(spec, setting.lab, scenario.speeds(replicas), link, setting.every, other)
        report = fleet.run(TOO_LONG)
        if report.failure or fleet.differences:
            raise SystemExit(f"{report.failure} {fleet.differences[:3]}")
        curve = [(point.time_s, point.samples, point.loss) for point in fleet.curve]
        return figures(setting, curve, report.versions, report.sent_bytes[0])

    return run


def figures(setting: Setting, curve: Curve, rounds: int, sent_bytes: float) -> dict[str, Any]:
    """What a run is reported by. `goodput`: samples that counted, as a share of what all could have computed."""
    end, samples, _ = curve[-1]
    return {
        "curve": [[round(time, 3), samples, round(loss, 5)] for time, samples, loss in curve],
        "rounds": rounds,
        "goodput": samples / (end * setting.scenario.rate(setting.replicas)),
        "bytes_per_sample": sent_bytes / samples,
    }


FRUGAL = (("payload", Payload.INT4), ("k", 8), ("min_steps", 13), ("max_steps", 26))
"""13 steps of each replica in a round of four bits: 52 times fewer bytes than fp32 in every step."""
COARSE = (("payload", Payload.INT4), ("min_steps", 4))
"""Four bits, and every adapter once in 4 steps of each replica."""
SPACED = (("payload", Payload.INT4), ("k", 1), ("count", 15), ("min_steps", 15), ("max_steps", 30))
"""Four bits, every adapter once in 15 steps of each replica, one after the other instead of all at once."""
GATHER, SCATTER, AUTO = ((("reduce", each),) for each in (Reduce.GATHER, Reduce.SCATTER, Reduce.AUTO))
"""Arms without a word about it gather, on any number of replicas: their figures are older than two-stage rounds."""
LINGER = ("linger", 0.2)
"""A fifth of a step at most."""
ARMS: dict[str, Arm] = {
    "ddp": synchronous(clocks.ddp, steps.one_step),
    "drop_slowest": synchronous(clocks.drop_slowest, steps.one_step),
    "balanced": synchronous(clocks.balanced, steps.local_steps),
    "hivemind": synchronous(clocks.hivemind, steps.one_step),
    "kpool": kpool(),
    "kpool_fleet": kpool(optimizer="fleet_adamw"),
    "kpool_fleet_int4": kpool(("payload", Payload.INT4), optimizer="fleet_adamw"),
    "kpool_smoothed": kpool(optimizer="smoothed"),
    "kpool_smoothed_int4": kpool(("payload", Payload.INT4), optimizer="smoothed"),
    "kpool_frugal": kpool(*FRUGAL),
    "kpool_coarse": kpool(*COARSE),
    "kpool_spaced": kpool(*SPACED),
    "kpool_fleet_scatter": kpool(*SCATTER, optimizer="fleet_adamw"),
    "kpool_fleet_int4_scatter": kpool(("payload", Payload.INT4), *SCATTER, optimizer="fleet_adamw"),
    "kpool_fleet_scatter_all": kpool(*SCATTER, ("k", 8), optimizer="fleet_adamw"),
    "kpool_fleet_scatter_all_linger": kpool(*SCATTER, ("k", 8), LINGER, optimizer="fleet_adamw"),
    "kpool_auto": kpool(*AUTO, optimizer="fleet_adamw"),
    "kpool_auto_int4": kpool(("payload", Payload.INT4), *AUTO, optimizer="fleet_adamw"),
    "kpool_auto_int2": kpool(("payload", Payload.INT2), *AUTO, optimizer="fleet_adamw"),
    **{f"ddp_shift{first}": synchronous(clocks.shifted(first), steps.one_step) for first in (1, 2, 3)},
}
