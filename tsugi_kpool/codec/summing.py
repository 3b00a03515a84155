"""Token-weighted sums of coded parts: the same bits on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tsugi_kpool.core.settings import Payload

from .coding import Bytes, Floats, decode


class WeightedSum:
    """Adds up coded parts of [K, S] numbers times a weight for each row: fp32, in the order in which they are added.

    All that it keeps are the sum and one part.

    Args:
        rows: K.
        size: S.
        payload: The code of the parts.
        plain: Sum the parts without weights, too, for the estimate of the noise.
    """

    def __init__(self, rows: int, size: int, payload: Payload, plain: bool = False) -> None:
        self._payload = payload
        self.total = np.zeros((rows, size), np.float32)
        self.plain = np.zeros((rows, size), np.float32) if plain else None
        self._part = np.empty((rows, size), np.float32)
        self._first = True

    def add(self, coded: Bytes, weights: Floats) -> None:
        """Add a part.

        Args:
            coded: `encode` of [K, S] numbers.
            weights: [K] fp32.
        """
        part = decode(coded, self._part.size, self._payload, self._part.reshape(-1)).reshape(self._part.shape)
        if self.plain is not None:
            self.plain += part
        # Two steps, never a fused multiply-add: machines that have it would round differently.
        if self._first:  # not added to zeros: 0 + -0 has another sign
            np.multiply(part, weights[:, None], out=self.total)
        else:
            np.multiply(part, weights[:, None], out=part)
            self.total += part
        self._first = False


def weighted_sum(
    parts: Sequence[Bytes], weights: Floats, shape: tuple[int, int], payload: Payload, plain: bool = False
) -> WeightedSum:
    """Return the sum over members of part ([K, S] numbers, coded) times weight ([members, K]), in their order."""
    found = WeightedSum(*shape, payload, plain)
    for part, weight in zip(parts, weights, strict=True):
        found.add(part, weight)
    return found
