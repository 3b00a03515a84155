"""Statistics: intervals, pairs and curves. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

# Student's t, two-sided 95 %, by degrees of freedom from 1 on.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL95 = 1.96


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval; with a single seed there is no interval."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """One moment of a run."""

    at_s: float
    tokens: float
    """Supervised tokens in the agreed adapters."""
    loss: float
    """Eval loss."""


def t95(dof: int) -> float:
    """Return Student's t for a two-sided 95 % interval."""
    return _T95[dof - 1] if dof <= len(_T95) else _NORMAL95


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and t interval of independent values."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    half = t95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Return the geometric mean of pairs' ratios, with the t interval of its logarithm."""
    logs = estimate([math.log(a / b) for a, b in zip(numerators, denominators, strict=True)])
    low, high = (None if each is None else math.exp(each) for each in (logs.low, logs.high))
    return Estimate(math.exp(logs.mean), low, high)


def difference(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """Return the mean of pairs' differences."""
    return estimate([a - b for a, b in zip(values, base, strict=True)])


def crossing(curve: Sequence[Point], target: float) -> Point | None:
    """Return where a curve first reaches the target, on the line between its points; None if it never does."""
    if curve and curve[0].loss <= target:
        return curve[0]
    for before, after in pairwise(curve):
        if after.loss <= target < before.loss:
            share = (before.loss - target) / (before.loss - after.loss)
            return Point(
                before.at_s + share * (after.at_s - before.at_s),
                before.tokens + share * (after.tokens - before.tokens),
                target,
            )
    return None


def at(curve: Sequence[Point], axis: str, where: float) -> float | None:
    """Return the loss at a place of an axis ("at_s" or "tokens"), on the line between points; None outside the
    curve."""
    for before, after in pairwise(curve):
        low, high = getattr(before, axis), getattr(after, axis)
        if low <= where <= high:
            share = (where - low) / (high - low) if high > low else 1.0
            return float(before.loss + share * (after.loss - before.loss))
    return None
