"""Mixtures: how often each row of several sources is trained on in one pass, by the sources' weights. Pure.

A pass over a mixture is as long as a pass over all sources: weights say how it is shared. A source whose share is
more than it has is repeated, every row as often as every other or once more. Of one whose share is less some rows are
drawn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from fractions import Fraction

Pick = tuple[int, int]
"""(number of the source, number of the row in it)."""


def shares(sizes: Sequence[int], weights: Sequence[float], total: int | None = None) -> list[int]:
    """Say how many samples of a pass come from each source.

    Largest remainders get what rounding leaves over, so the shares add up to the total; but a source with rows and a
    weight has at least one sample.

    Args:
        sizes: Rows of each source.
        weights: Of each source, at least 0; only their proportions count. Sources without rows have no share.
        total: Samples of a pass; None: as many as all sources with a weight have rows.

    Raises:
        ValueError: no source has both rows and a weight, or a weight is negative.
    """
    if len(sizes) != len(weights) or min(weights, default=0) < 0:
        raise ValueError(f"{len(sizes)} sources need as many weights, none below 0; found {list(weights)}")
    exact = [Fraction(weight) if size else Fraction(0) for size, weight in zip(sizes, weights, strict=True)]
    if not sum(exact):
        raise ValueError("no source has both rows and a weight")
    wanted = sum(size for size, weight in zip(sizes, exact, strict=True) if weight) if total is None else total
    ideal = [wanted * weight / sum(exact) for weight in exact]
    counts = [int(each) for each in ideal]
    by_rest = sorted(range(len(sizes)), key=lambda source: (counts[source] - ideal[source], source))
    for source in by_rest[: wanted - sum(counts)]:
        counts[source] += 1
    return [max(1, count) if weight else 0 for count, weight in zip(counts, exact, strict=True)]


def mixture(sizes: Sequence[int], weights: Sequence[float], seed: int, total: int | None = None) -> list[Pick]:
    """Say which rows a pass trains on, sources evenly spread over it.

    The same arguments give the same picks. Within a source rows come in an order by chance, and none a second time
    before all have come once.

    Args:
        sizes: Rows of each source.
        weights: Of each source; only their proportions count.
        seed: Of the rows' order.
        total: Samples of a pass; None: as many as all sources with a weight have rows.

    Raises:
        ValueError: no source has both rows and a weight, or a weight is negative.
    """
    counts = shares(sizes, weights, total)
    # The i-th of c picks of a source stands at (i + 1/2) / c of the pass.
    places = [((2 * at + 1) / (2 * count), source) for source, count in enumerate(counts) for at in range(count)]
    rows = [_rows(size, f"{seed}:mixture:{source}") for source, size in enumerate(sizes)]
    return [(source, next(rows[source])) for _, source in sorted(places)]


def repeats(sizes: Sequence[int], counts: Sequence[int]) -> list[float]:
    """How often a pass trains on a row of each source, on average."""
    return [count / size if size else 0.0 for size, count in zip(sizes, counts, strict=True)]


def _rows(size: int, seed: str) -> Iterator[int]:
    """Numbers of rows without end: pass after pass, each in an order of its own."""
    chance = random.Random(seed)
    while size:
        order = list(range(size))
        chance.shuffle(order)
        yield from order
