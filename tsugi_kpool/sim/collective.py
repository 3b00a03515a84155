"""The data plane of a simulated fleet: one all-gather a round, and the mean that every member takes from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from tsugi_kpool.core.messages import AdapterFacts, Fire
from tsugi_kpool.core.rounds.noise import estimate

from .replica import Contribution, SimulatedResult


class Collective:
    """The all-gather of one round. It starts when the last member has joined, and ends for all at once."""

    def __init__(self, fire: Fire, began_s: float) -> None:
        self.fire, self.began_s = fire, began_s
        self._parts: dict[int, Contribution] = {}
        self.joined_s: dict[int, float] = {}

    def join(self, replica: int, part: Contribution, now_s: float) -> bool:
        """Add a member's part; returns true for the last one."""
        self._parts[replica], self.joined_s[replica] = part, now_s
        return len(self._parts) == len(self.fire.members)

    def outcome(self, payload_bytes: int, seconds: float) -> SimulatedResult:
        """Return what every member computes from all parts, in the order of the members."""
        return outcome_of(self.fire, [self._parts[each] for each in self.fire.members], payload_bytes, seconds)


def outcome_of(fire: Fire, parts: Sequence[Contribution], payload_bytes: int, seconds: float) -> SimulatedResult:
    """Return what a round amounts to, of these parts."""
    places = range(len(fire.adapters))
    return SimulatedResult(
        means=tuple(mean(parts, place) for place in places),
        weights=tuple(sum(part.shipment.tokens) for part in parts),
        noise=_noise(parts) if any(any(part.norm2_sums) for part in parts) else (0.0, 0.0),
        adapters=tuple(_facts(parts, place) for place in places),
        payload_bytes=payload_bytes,
        seconds=seconds,
        steps=tuple(sum(part.shipment.steps) for part in parts),
    )


def mean(parts: Sequence[Contribution], place: int) -> int:
    """Return the mean change of one adapter, in which every step counts alike (codec.header.shares), rounded down.

    Shares are not held to 1 together here: steps have about as many tokens as each other.
    """
    all_tokens, all_steps, changes = 0, 0, Counter[int]()
    for part in parts:
        tokens, steps = part.shipment.tokens[place], part.shipment.steps[place]
        all_tokens, all_steps = all_tokens + tokens, all_steps + steps
        changes[steps] += tokens * part.deltas[place]
    whole = sum(Fraction(change, steps) for steps, change in changes.items() if steps)
    return math.floor(whole * all_steps / max(all_tokens, 1) / len(parts))


def _facts(parts: Sequence[Contribution], place: int) -> AdapterFacts:
    """Return one adapter's facts as engine.rounds makes them."""
    return AdapterFacts(sum(part.shipment.steps[place] for part in parts), float(abs(mean(parts, place))))


def _noise(parts: Sequence[Contribution]) -> tuple[float, float]:
    """Return |G|^2 and trSigma of the concatenated adapters, as engine.rounds does."""
    norm2 = trace = 0.0
    for place in range(len(parts[0].deltas)):
        pooled = sum(part.deltas[place] for part in parts)
        norm2_sum = sum(part.norm2_sums[place] for part in parts)
        steps = sum(part.shipment.steps[place] for part in parts)
        each = estimate(float(pooled * pooled), float(norm2_sum), steps)
        norm2, trace = norm2 + each[0], trace + each[1]
    return norm2, trace
