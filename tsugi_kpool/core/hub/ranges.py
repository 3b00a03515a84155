"""Sets of positions of the data order, as sorted ranges [start, stop) that neither touch nor overlap."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

Range = tuple[int, int]


def add(ranges: list[Range], start: int, stop: int) -> None:
    """Put [start, stop) in; what of it was there already stays."""
    if start >= stop:
        return
    first = bisect_left(ranges, start, key=lambda each: each[1])
    last = first
    while last < len(ranges) and ranges[last][0] <= stop:
        start, stop = min(start, ranges[last][0]), max(stop, ranges[last][1])
        last += 1
    ranges[first:last] = [(start, stop)]


def remove(ranges: list[Range], start: int, stop: int) -> None:
    """Take [start, stop) out, as far as it is there."""
    if start >= stop:
        return
    first = bisect_left(ranges, start + 1, key=lambda each: each[1])
    last, kept = first, []
    while last < len(ranges) and ranges[last][0] < stop:
        begin, end = ranges[last]
        kept += [piece for piece in ((begin, min(end, start)), (max(begin, stop), end)) if piece[0] < piece[1]]
        last += 1
    ranges[first:last] = kept


def count(ranges: Iterable[Range]) -> int:
    """How many positions there are."""
    return sum(stop - start for start, stop in ranges)
