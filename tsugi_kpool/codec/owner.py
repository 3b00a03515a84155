"""What the owner of a shard does with everybody's codes of it, and how others check that.

    want = sum of share * decode(code), in the order of the members, + rest
    out  = encode(want)                 what all members apply, the owner too
    rest = want - decode(out)           what coding the mean has lost: kept by the owner, counts from the Commit on

An exchange that collects whole parts is the owner of one shard that is everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tsugi_kpool.core.settings import Payload

from .coding import CODES, Bytes, Floats, aligned, block_size, decode, encode, finite
from .summing import weighted_sum

HALF_ULP = 2.0**-8
"""bf16's, as a share of the number."""
SLACK = 1.0 + 2.0**-10
"""The bound on an owner's error is widened by this: a quantum is 2^16 roundings of fp32."""
ROUNDING = 2.0**-20
"""And by this share of the adapter's largest number, because a mean with a residual is rounded once more."""


@dataclass(frozen=True)
class Owned:
    """A shard, averaged and coded; nothing of it counts before the round's Commit."""

    out: Bytes
    """The coded mean."""
    rest: Floats
    """[K, S] fp32: the new residual."""
    plain_norm2: Floats | None
    """[K] float64: squared norms of the sum without weights; None when it was not asked for."""


@dataclass(frozen=True)
class Mean:
    """A shard's coded mean, and what it takes to say what coding has lost of it."""

    out: Bytes
    """What all members apply."""
    plain_norm2: Floats | None
    """[K] float64: squared norms of the sum without weights; None when it was not asked for."""
    want: Floats
    """[K, S] fp32: the mean and what earlier ones have lost."""
    before: Floats
    """[K, S] fp32: what earlier means have lost."""
    weighted: Any
    """[K] bool: which adapters anybody had weight for."""
    keep: bool

    def lost(self, payload: Payload) -> Floats:
        """Return the new residual, [K, S] fp32; the code is that of the mean."""
        if not self.keep:
            return np.zeros_like(self.want)
        new = np.empty_like(self.want)
        decode(self.out, new.size, payload, new.reshape(-1))
        np.subtract(self.want, new, out=new)
        if not self.weighted.all():
            new[~self.weighted] = self.before[~self.weighted]
        return new


def mean_of(
    parts: Sequence[Bytes], shares: Floats, rest: Floats, payload: Payload, *, keep: bool = True, plain: bool = False
) -> Mean:
    """Average a shard's parts and code the mean.

    Args:
        parts: Each member's codes of [K, S] numbers, all of them finite, in the order of the members.
        shares: [members, K] fp32: what each part is multiplied with (`header.shares`).
        rest: [K, S] fp32: what earlier means have lost. Not written to.
        payload: The code, of the parts and of the mean.
        keep: Add and keep residuals; else what coding loses is forgotten.
        plain: Measure the sum without weights, too.
    """
    found = weighted_sum(parts, shares, rest.shape, payload, plain)
    want = found.total
    # Where nobody has any weight nothing moves: a residual alone is nobody's contribution.
    weighted = shares.any(axis=0)
    if keep and weighted.all():
        want += rest
    elif keep:
        want[weighted] += rest[weighted]
    norm2 = None if found.plain is None else np.square(found.plain, dtype=np.float64).sum(axis=1)
    return Mean(encode(want, payload), norm2, want, rest, weighted, keep)


def average(
    parts: Sequence[Bytes], shares: Floats, rest: Floats, payload: Payload, *, keep: bool = True, plain: bool = False
) -> Owned:
    """Return `mean_of` these parts with what coding it has lost, for an owner who needs both at once."""
    mean = mean_of(parts, shares, rest, payload, keep=keep, plain=plain)
    return Owned(mean.out, mean.lost(payload), mean.plain_norm2)


def quanta(out: Bytes, shape: tuple[int, int], payload: Payload) -> Floats:
    """Return the most that coding can have lost of a number of each block: [K, S / block] fp32.

    Args:
        out: `encode` of [K, S] numbers.
        shape: K and S, which is whole blocks.
        payload: The code.
    """
    rows, size = shape
    blocks = size // block_size(payload)
    if payload in CODES:
        scales, _ = CODES[payload].parts(aligned(out), rows * size)
        return np.asarray(np.abs(scales.reshape(rows, blocks)) * 0.5, np.float32)
    if payload is Payload.FP32:
        return np.zeros((rows, blocks), np.float32)
    values = np.abs(decode(out, rows * size, payload)).reshape(rows, blocks, -1)
    return np.asarray(values.max(axis=2) * HALF_ULP, np.float32)


def is_right(
    out: Bytes, parts: Sequence[Bytes], shares: Floats, before: Floats, shape: tuple[int, int], payload: Payload
) -> bool:
    """Return whether an owner's coded mean can be the mean of these parts.

    Its residual is known to the owner alone, but how large it can be is known to all: half a quantum of the mean that
    it has coded before. Half a quantum of this one is lost by its own coding, and how large that can be follows from
    the parts. An owner that lies within this bound moves an adapter by no more than its code does.

    Args:
        out: The owner's coded mean of [K, S] numbers.
        parts: Each member's codes of them.
        shares: [members, K] fp32.
        before: `quanta` of the adapter's mean before, [K, S / block]: zeros where there was none.
        shape: K and S.
        payload: The code.
    """
    rows, size = shape
    if not size:
        return True
    if not finite(out, rows * size, payload):
        return False
    mean = weighted_sum(parts, shares, shape, payload).total
    error = np.abs(decode(out, rows * size, payload).reshape(shape) - mean).reshape(*before.shape, -1)
    largest = np.abs(mean).reshape(*before.shape, -1).max(axis=2)
    lost = quanta(out, shape, payload)
    if payload in CODES:  # a scale that is wider than its numbers need would be room to lie in
        lost = np.minimum(lost, (largest + before) * np.float32(CODES[payload].loss))
    limit = (before + lost) * np.float32(SLACK)
    limit += np.float32(ROUNDING) * largest.max(axis=1)[:, None]
    return bool((error <= limit[:, :, None]).all())
