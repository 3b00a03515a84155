"""The cost of a round on this link, and the number of adapters K to ship in it (`kpool.k=auto`).

A round takes its latency, whatever it carries, and the transfer of its payload. Shipping K of N costs N/K latencies
for every full set of adapters, and lets deltas spend less time in flight. Measured before this project: that wins
where the link is slow, and must not be bought with latency (docs/design.md section 3, Selection).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

FAST_STEPS = 1.0
"""A full round that fits into this many steps is hidden behind them: ship all."""
SLOW_STEPS = 10.0
"""A full transfer of this many steps is a very slow link. Simulated: at 5, K=N/4 and K=N/8 tied; at 20, N/8
reached the target loss 9 % sooner."""
LATENCY_SHARE = 0.2
"""(N/K) x latency stays under this share of the full payload's transfer time."""
REMEMBERED = 5
"""How many of the newest rounds of each size are kept; their median counts."""
LONGEST_S = 1e6
PROBES = 3
"""Rounds of each of two sizes before anything is concluded."""
PROBE_EVERY = 50
"""After that one round in this many has another size, because links change."""


@dataclass(frozen=True)
class LinkCost:
    """A round's seconds: latency_s + seconds_per_byte x payload bytes of one member."""

    latency_s: float
    seconds_per_byte: float


def fit(rounds: Mapping[int, Sequence[float]]) -> LinkCost | None:
    """Least squares through the median seconds of every payload size; None for fewer than two sizes.

    Args:
        rounds: Payload bytes of one member -> seconds of the rounds of that size.
    """
    points = [(size, median(seconds)) for size, seconds in rounds.items() if seconds]
    if len(points) < 2:
        return None
    mean_size, mean_s = fmean(size for size, _ in points), fmean(seconds for _, seconds in points)
    spread = sum((size - mean_size) ** 2 for size, _ in points)
    slope = sum((size - mean_size) * (seconds - mean_s) for size, seconds in points) / spread
    latency_s = mean_s - slope * mean_size
    if slope <= 0.0:
        return LinkCost(mean_s, 0.0)  # size makes no difference that can be seen
    if latency_s < 0.0:
        return LinkCost(0.0, mean_s / mean_size)
    return LinkCost(latency_s, slope)


def choose_k(n: int, cost: LinkCost, full_bytes: float, step_s: float) -> int:
    """How many of `n` adapters a round ships.

    Args:
        n: Adapters in the pool.
        cost: The link's.
        full_bytes: Payload of all n adapters of one member.
        step_s: What a step of the fleet takes: the unit that costs are compared by.
    """
    transfer_s = cost.seconds_per_byte * full_bytes
    if cost.latency_s + transfer_s <= FAST_STEPS * step_s:
        return n
    smallest = 8 if transfer_s >= SLOW_STEPS * step_s else 4
    for parts in (8, 4, 2):
        if parts <= smallest and parts * cost.latency_s <= LATENCY_SHARE * transfer_s:
            return -(-n // parts)
    return n


class AutoK:
    """K of the next round, from the rounds so far. Begins with rounds of N/4 and of another size in turn.

    Args:
        n: Adapters in the pool.
        limit_s: A round that takes this long fails, so none is tried that might.
    """

    def __init__(self, n: int, limit_s: float) -> None:
        self._n, self._limit_s = n, limit_s
        self._quarter, self._eighth = -(-n // 4), -(-n // 8)
        self.usual = self._quarter
        """The chosen K. Single rounds may have another size, to measure the link."""
        self.cost: LinkCost | None = None
        self._rounds: dict[int, deque[float]] = {}
        self._full_bytes = 0.0
        self._committed = 0

    def committed(self, shipped: int, payload_bytes: int, seconds: float, step_s: float) -> None:
        """Take in the duration of a round of `shipped` adapters; impossible values are ignored."""
        if payload_bytes <= 0 or not 0.0 <= seconds <= LONGEST_S:
            return
        self._committed += 1
        self._rounds.setdefault(payload_bytes, deque(maxlen=REMEMBERED)).append(seconds)
        self._full_bytes = payload_bytes * self._n / shipped
        self.cost = fit(self._rounds)
        if self.cost is not None and self._committed >= 2 * PROBES and step_s > 0.0:
            k = choose_k(self._n, self.cost, self._full_bytes, step_s)
            self.usual = min(k, self._quarter) if self._dares_not_ship_all() else k

    def next(self) -> int:
        """Return K of the next round."""
        if self._committed < 2 * PROBES:
            return self._other() if self._committed % 2 else self._quarter
        if self._committed % PROBE_EVERY:
            return self.usual
        return self._quarter if self.usual != self._quarter else self._other()

    def _other(self) -> int:
        """Return the K that N/4 is compared with."""
        return self._eighth if self._dares_not_ship_all() else self._n

    def _dares_not_ship_all(self) -> bool:
        """Return whether a round of all adapters might come near the timeout, judged by the slowest round of any
        size."""
        slowest_s = max(
            (max(seconds) * self._full_bytes / size for size, seconds in self._rounds.items()), default=0.0
        )
        return slowest_s > self._limit_s / 4
