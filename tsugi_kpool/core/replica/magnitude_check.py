"""A sanity check of contributions: finite, and not absurdly larger than what the fleet has committed before."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

ABSURD = 1e4
"""A contribution is absurd above this multiple of the largest size in the newest rounds. A size is the norm for one
step at a learning rate of one (local mode, whose optimizers bound a step) or of a mean gradient, whose spikes stay
within a few hundred. The mean of R members may be sqrt(R) smaller than one member's part. A flipped exponent bit
makes far larger values."""
ROUNDS = 32
"""Rounds of history."""
LEAST = 4
"""With fewer rounds of history nothing is absurd: the first changes of a LoRA are tiny."""
NO_NUMBERS = "what it has buffered is no numbers: lower train.lr, or look at this machine"


class MagnitudeCheck:
    """Remembers the sizes of the fleet's committed rounds. Pure: sizes in, a verdict out."""

    def __init__(self) -> None:
        self._largest: deque[float] = deque(maxlen=ROUNDS)

    def committed(self, sizes: Sequence[float]) -> None:
        """Take in the sizes of a committed round, one for each of its adapters."""
        known = [size for size in sizes if math.isfinite(size) and size > 0.0]
        if known:
            self._largest.append(max(known))

    def verdict(self, sizes: Sequence[float]) -> str | None:
        """Return why a contribution with these sizes, one for each adapter, must not be shipped; None when it may
        be."""
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
    """Return the norm divided by `parts * scale`; 0 for no parts, infinite when the norm is not finite."""
    if not math.isfinite(norm):
        return math.inf
    divisor = parts * scale
    return norm / divisor if divisor > 0.0 else 0.0


def possible_weights(tokens: Sequence[float], steps: Sequence[float]) -> bool:
    """Return whether a member's tokens and steps are valid counts, and every adapter with tokens has steps."""
    counts = [*tokens, *steps]
    if not all(math.isfinite(each) and each >= 0 and each == math.floor(each) and each <= 2**53 for each in counts):
        return False
    return all(count > 0 for each, count in zip(tokens, steps, strict=True) if each)
