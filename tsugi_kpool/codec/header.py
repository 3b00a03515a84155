"""What stands in front of each adapter's codes, and what all members conclude from everybody's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tsugi_kpool.core.replica.magnitude_check import possible_weights

from .coding import Bytes, Floats, aligned

ROWS = 4
"""float64 numbers in front of each adapter's codes: tokens, steps, Q, learning rate."""
TOKENS, STEPS, NORM2_SUM, LR = range(ROWS)
NUMBER_BYTES = 8

Header = NDArray[np.float64]
"""[ROWS, K], or [members, ROWS, K]."""


def header(tokens: Sequence[int], steps: Sequence[int], norm2_sum: Sequence[float], lr: float) -> Header:
    """Return one member's header, [ROWS, K]. Counts are exact to 2^53.

    Args:
        tokens: Supervised tokens of each adapter.
        steps: Steps of each adapter.
        norm2_sum: Q of the convergence trigger of each adapter; zeros when it is not measured.
        lr: Learning rate of the newest step.
    """
    return np.array([tokens, steps, norm2_sum, [lr] * len(tokens)], np.float64)


def header_bytes(adapters: int) -> int:
    """Return the size of a header of so many adapters."""
    return ROWS * adapters * NUMBER_BYTES


def read(part: Bytes, adapters: int) -> Header:
    """Return the header [ROWS, K] that a part begins with."""
    return aligned(part[: header_bytes(adapters)]).copy().view(np.float64).reshape(ROWS, adapters)


def unusable(headers: Header, finite: Sequence[bool]) -> tuple[int, ...]:
    """Return the ranks whose parts are unusable: no numbers, or a weight that cannot be.

    Args:
        headers: [members, ROWS, K].
        finite: Whether each member's values are all finite.
    """

    def good(each: Header) -> bool:
        return possible_weights(each[TOKENS].tolist(), each[STEPS].tolist()) and bool(np.isfinite(each[LR]).all())

    return tuple(rank for rank, whole in enumerate(finite) if not (whole and good(headers[rank])))


def shares(headers: Header, members: int | None = None) -> Floats:
    """Return what each part is multiplied with, so that every step counts one R-th: [members, K] fp32.

    Of S steps on T tokens in all, a part of s steps on t tokens is multiplied with (t / s) / (T / S) / R: normalised
    averaging (FedNova, Wang et al. 2020, https://arxiv.org/abs/2007.07481, section 4) whose effective number of steps
    is the members' mean. Multiplied with its share of the tokens, t / T, it would count twice for being longer: its
    steps are a sum already. Both are equal where all have taken as many steps. The shares of an adapter are at most 1
    together: whatever somebody says of its steps, a round moves no further than a mean of its parts.

    Args:
        headers: [members, ROWS, K], of those whose parts have come.
        members: R, all of the round's members; None: as many as there are headers.
    """
    tokens, steps = headers[:, TOKENS], headers[:, STEPS]
    all_tokens, all_steps = (np.maximum(each.sum(axis=0), 1.0) for each in (tokens, steps))
    found = tokens / np.maximum(steps, 1.0) * (all_steps / all_tokens) / (members or len(headers))
    # fsum: the same bits in whatever order a machine adds.
    most = [max(math.fsum(each), 1.0) for each in found.T]
    return np.asarray(found / most, np.float32)


def agreed_lr(headers: Header) -> float:
    """Return the mean of the members' learning rates, weighted by tokens; 0 when nobody has any weight.

    It is computed in float64, in the order of the members. They are at different places of the schedule, but all must
    step with one rate, or their anchors would differ.
    """
    weights, rates = weights_of(headers), headers[:, LR, 0].tolist()
    total = sum(weights)
    return sum(weight * rate for weight, rate in zip(weights, rates, strict=True)) / total if total else 0.0


def weights_of(headers: Header) -> tuple[int, ...]:
    """Return each member's tokens, summed over the adapters."""
    return tuple(int(total) for total in headers[:, TOKENS].sum(axis=1))
