"""Whether a contribution can be: finite, and not absurdly larger than what the fleet has committed before."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

ABSURD = 1e4
"""Times the largest size of the newest rounds. A size is the norm for one step at a learning rate of one (local
mode, whose optimizers bound a step) or of a mean gradient, whose spikes stay within a few hundred; the mean of R
members may be sqrt(R) smaller than one member's part. What a flipped exponent bit makes is larger by far."""
ROUNDS = 32
"""History is so many rounds long."""
LEAST = 4
"""With less history nothing is absurd: a LoRA's first changes are tiny."""
NO_NUMBERS = "what it has buffered is no numbers: lower train.lr, or look at this machine"


class MagnitudeCheck:
    """What the fleet's committed rounds were like. Pure: sizes in, a verdict out."""

    def __init__(self) -> None:
        self._largest: deque[float] = deque(maxlen=ROUNDS)

    def committed(self, sizes: Sequence[float]) -> None:
        """A round with these sizes, one for each of its adapters, has been committed."""
        known = [size for size in sizes if math.isfinite(size) and size > 0.0]
        if known:
            self._largest.append(max(known))

    def verdict(self, sizes: Sequence[float]) -> str | None:
        """Why a contribution with these sizes, one for each adapter, must not be shipped; None when it may be."""
        if not all(math.isfinite(size) for size in sizes):
            return NO_NUMBERS
        if len(self._largest) < LEAST:
            return None
        largest, usual = max(sizes, default=0.0), max(self._largest)
        if largest <= ABSURD * usual:
            return None
        return (
            f"what it has buffered is {largest / usual:.0e} times as large as anything that the fleet has committed"
        )


def size(norm: float, parts: int, scale: float) -> float:
    """A norm for one of so many parts, of this scale; 0 when there are none, infinite when the norm is no number."""
    if not math.isfinite(norm):
        return math.inf
    divisor = parts * scale
    return norm / divisor if divisor > 0.0 else 0.0


def possible_weights(tokens: Sequence[float], steps: Sequence[float]) -> bool:
    """Whether a member's tokens and steps of each adapter are counts, and no tokens come from no step."""
    counts = [*tokens, *steps]
    if not all(math.isfinite(each) and each >= 0 and each == math.floor(each) and each <= 2**53 for each in counts):
        return False
    return all(count > 0 for each, count in zip(tokens, steps, strict=True) if each)
