"""Churn: replicas die at random moments, and new processes take their place after a while."""

from __future__ import annotations

import random

from .faults import SimulatedFault

TOLD_S = 0.4
"""Time in which a launcher sees the death of its process and tells the hub."""


def churn(
    replicas: int, share_per_min: float, seconds: float, back_s: float | None, draw: random.Random
) -> tuple[SimulatedFault, ...]:
    """Return the deaths of a fleet as a Poisson process, in order of time, each of a replica drawn from all.

    Args:
        replicas: How many there are.
        share_per_min: So many of them die in a minute, in the mean, as a share of all.
        seconds: Until then.
        back_s: Another process is started so long after a death; None: never.
        draw: Source of moments and victims.
    """
    faults: list[SimulatedFault] = []
    per_s = replicas * share_per_min / 60.0
    at_s = draw.expovariate(per_s) if per_s else seconds
    while at_s < seconds:
        faults.append(SimulatedFault("kill", draw.randrange(replicas), at_s, told_s=TOLD_S, back_s=back_s))
        at_s += draw.expovariate(per_s)
    return tuple(faults)
