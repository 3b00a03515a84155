"""What the fleets of benchmarks/straggler_tax run on. Time unit: one step of a fast replica.

A link is given by what an all-reduce of the whole adapter in fp32 costs on it, whatever the number of replicas.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tsugi_kpool.sim.scenario import LinkModel, Slow, Speeds, spread

LATENCY_SHARE = 0.04
"""Of an all-reduce: the prototype's slow link had 0.2 of 5 steps in latency."""
FP32_BYTES = 4


@dataclass(frozen=True)
class Scenario:
    """Speeds and link."""

    allreduce: float
    """Steps that an all-reduce of the whole adapter in fp32 takes."""
    slow: float = 1.0
    """The last replica's steps take this many times as long."""
    jitter: float = 0.03
    """Sigma of the lognormal factor on every step, and of that on every transfer."""
    share: float = 1.0
    """Of a payload's bytes that the link carries: below 1 for a code that is tried in a wider one's bytes."""

    @property
    def fast_link(self) -> bool:
        return self.allreduce < 1.0

    def costs(self, replicas: int) -> list[float]:
        """Each replica's mean step."""
        return [1.0] * (replicas - 1) + [self.slow]

    def rate(self, replicas: int) -> float:
        """Steps in a unit of time, of all replicas when nobody ever waits."""
        return sum(1.0 / cost for cost in self.costs(replicas))

    def speeds(self, replicas: int) -> Speeds:
        slow = (Slow(replicas - 1, self.slow),) if self.slow != 1.0 else ()
        return Speeds((1.0,), jitter=self.jitter, slow=slow)

    def link(self, replicas: int, numbers: int) -> LinkModel:
        """The link on which a ring all-reduce of so many fp32 numbers takes what it should."""
        hops = 2 * (replicas - 1)
        a_hop = numbers * FP32_BYTES / replicas
        return LinkModel(
            latency_s=LATENCY_SHARE * self.allreduce / hops,
            bandwidth_bytes_per_s=hops * a_hop / ((1 - LATENCY_SHARE) * self.allreduce) / self.share,
            jitter=self.jitter,
        )


SCENARIOS = {
    "healthy": Scenario(0.1),
    "straggler": Scenario(0.1, slow=4.0),
    "jitter": Scenario(0.1, jitter=0.5),
    "slow_link": Scenario(5.0, slow=4.0, jitter=0.5),
    "very_slow_link": Scenario(20.0, slow=4.0, jitter=0.5),
}


class Dice:
    """The random parts of a run: each replica's steps as they come, and the transfers."""

    def __init__(self, scenario: Scenario, replicas: int, seed: int) -> None:
        self._scenario, self._costs = scenario, scenario.costs(replicas)
        # The source that the virtual fleet gives this replica: the same step takes the same time in all arms.
        self._draws = [random.Random(f"{seed}:replica:{number}") for number in range(replicas)]
        self._transfers = random.Random(f"{seed}:collective")

    def step(self, replica: int) -> float:
        """How long this replica's next step takes."""
        return self._costs[replica] * spread(self._draws[replica], self._scenario.jitter)

    def steps(self, replica: int) -> Iterator[float]:
        while True:
            yield self.step(replica)

    def allreduce(self) -> float:
        """How long the next all-reduce takes."""
        return self._scenario.allreduce * spread(self._transfers, self._scenario.jitter)
