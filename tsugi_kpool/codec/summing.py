"""Weighted sums of coded parts: the same bits on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tsugi_kpool.core.settings import Payload

from .coding import Bytes, Floats, decoded


class WeightedSum:
    """Adds up coded parts of [K, S] numbers times a weight for each row: fp32, in the order in which they are added.

    All that it keeps is the sum: parts are decoded, weighed and added a slice at a time.

    Args:
        rows: K.
        size: S.
        payload: The code of the parts.
        plain: Sum the parts without weights, too, for the estimate of the noise.
    """

    def __init__(self, rows: int, size: int, payload: Payload, plain: bool = False) -> None:
        self._payload = payload
        self.total = np.empty((rows, size), np.float32)
        """Undefined before the first part."""
        self.plain = np.zeros((rows, size), np.float32) if plain else None
        self._first = True

    def add(self, coded: Bytes, weights: Floats, keep: Floats | None = None) -> None:
        """Add a part.

        Args:
            coded: `encode` of [K, S] numbers.
            weights: [K] fp32.
            keep: Gets the part as it is decoded, [K, S].
        """
        total, (rows, size) = self.total.reshape(-1), self.total.shape
        for part, values in decoded(coded, rows * size, self._payload):
            if keep is not None:
                keep.reshape(-1)[part] = values
            if self.plain is not None:
                self.plain.reshape(-1)[part] += values
            for row in range(part.start // size, -(-part.stop // size)):
                start, stop = max(part.start, row * size), min(part.stop, (row + 1) * size)
                there, piece = total[start:stop], values[start - part.start : stop - part.start]
                # Two steps, never a fused multiply-add: machines that have it would round differently.
                if self._first:  # not added to zeros: 0 + -0 has another sign
                    np.multiply(piece, weights[row], out=there)
                else:
                    np.multiply(piece, weights[row], out=piece)
                    there += piece
        self._first = False


def weighted_sum(
    parts: Sequence[Bytes],
    weights: Floats,
    shape: tuple[int, int],
    payload: Payload,
    plain: bool = False,
    keep: tuple[int, Floats] | None = None,
) -> WeightedSum:
    """Return the sum over members of part ([K, S] numbers, coded) times weight ([members, K]), in their order.

    Args:
        parts: Of all members.
        weights: Of all members.
        shape: K and S.
        payload: The code of the parts.
        plain: See `WeightedSum`.
        keep: (rank, values): whose part is wanted, decoded, and where it goes.
    """
    found = WeightedSum(*shape, payload, plain)
    for rank, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        found.add(part, weight, keep[1] if keep is not None and keep[0] == rank else None)
    return found
