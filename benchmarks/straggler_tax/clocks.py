"""When the rounds of the synchronous arms end, and how many samples each replica puts into them. Pure: no training.

The micro-batch is one sample, so that samples and steps are the same here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scenarios import Dice, Scenario

HIDDEN = 0.5
"""Of its all-reduce, DDP hides up to half of the slowest replica's step behind the backward pass."""


@dataclass(frozen=True)
class Round:
    """One step of the fleet."""

    end: float
    counts: tuple[int, ...]
    """Samples of each replica that count."""


Clock = Callable[[Scenario, int, int, int], list[Round]]
"""(scenario, replicas, seed, samples) -> the rounds until so many samples have been trained on."""


def ddp(scenario: Scenario, replicas: int, seed: int, samples: int) -> list[Round]:
    """Everybody waits for the slowest in every step."""
    return _steps(scenario, replicas, seed, samples, replicas)


def shifted(first: int) -> Clock:
    """DDP whose first step has only so many samples, so that other samples share a step: a measure of chance."""

    def clock(scenario: Scenario, replicas: int, seed: int, samples: int) -> list[Round]:
        rounds = ddp(scenario, replicas, seed, samples - first)
        begin = rounds[0].end
        few = Round(begin, _share(range(replicas), replicas, first))
        return [few, *(Round(begin + each.end, each.counts) for each in rounds)]

    return clock


def drop_slowest(scenario: Scenario, replicas: int, seed: int, samples: int) -> list[Round]:
    """A step ends with the last but one replica; what the slowest has computed is thrown away (a backup worker)."""
    return _steps(scenario, replicas, seed, samples, replicas - 1)


def _steps(scenario: Scenario, replicas: int, seed: int, samples: int, quorum: int) -> list[Round]:
    dice, now, rounds = Dice(scenario, replicas, seed), 0.0, []
    for start in range(0, samples, quorum):
        times = [dice.step(replica) for replica in range(replicas)]
        inside = sorted(range(replicas), key=lambda replica: times[replica])[:quorum]
        slowest = max(times[replica] for replica in inside)
        now += slowest + max(0.0, dice.allreduce() - HIDDEN * slowest)
        rounds.append(Round(now, _share(inside, replicas, min(quorum, samples - start))))
    return rounds


def _share(inside: Sequence[int], replicas: int, count: int) -> tuple[int, ...]:
    chosen = set(inside[:count])
    return tuple(int(replica in chosen) for replica in range(replicas))


def balanced(scenario: Scenario, replicas: int, seed: int, samples: int) -> list[Round]:
    """Local SGD whose number of local steps is in proportion to each replica's mean speed, which it knows beforehand.

    4 steps of a fast replica on a fast link and 12 on a slow one: the better of these in the prototype. The average
    is a blocking all-reduce in fp32.
    """
    most = 4 if scenario.fast_link else 12
    counts = [round(most / cost) for cost in scenario.costs(replicas)]
    dice, now, left, rounds = Dice(scenario, replicas, seed), 0.0, samples, []
    while left:
        counts = _fill(counts, left)
        now += max(sum(dice.step(replica) for _ in range(count)) for replica, count in enumerate(counts))
        now += dice.allreduce()
        left -= sum(counts)
        rounds.append(Round(now, tuple(counts)))
    return rounds


def _fill(counts: list[int], left: int) -> list[int]:
    """As many as there are samples left, taken away one by one from who has most."""
    counts = list(counts)
    while sum(counts) > left:
        counts[counts.index(max(counts))] -= 1
    return counts


def hivemind(scenario: Scenario, replicas: int, seed: int, samples: int) -> list[Round]:
    """Gradients are gathered until there are 4 for each replica; then all finish their micro-batch and wait.

    What hivemind's optimizer does with a target batch size, by the prototype's choice of it; its matchmaking costs
    nothing here.
    """
    target = 4 * replicas
    dice, now, left, rounds = Dice(scenario, replicas, seed), 0.0, samples, []
    while left:
        ends = [now + dice.step(replica) for replica in range(replicas)]
        counts = [0] * replicas
        while sum(counts) < min(target, left):
            first = ends.index(min(ends))
            counts[first] += 1
            now, ends[first] = ends[first], ends[first] + dice.step(first)
        # `ends` of the one that has filled the batch is a micro-batch that it does not begin.
        for replica, end in enumerate(ends):
            if replica != first and sum(counts) < left:
                counts[replica] += 1
                now = max(now, end)
        now += dice.allreduce()
        left -= sum(counts)
        rounds.append(Round(now, tuple(counts)))
    return rounds
