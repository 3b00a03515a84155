"""Which samples share a row, and in which order rows are trained on. Pure functions of lengths and a seed; no torch.

Samples of a row never see each other: position ids restart with each of them, and `tsugi_cli.finetune.packed` proves
that the model's attention heeds that. So who shares a row with whom changes the time that training takes, and nothing
else.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .rows import Sample, Span

WINDOW = 1024
"""Rows among which similar lengths are brought together."""


@dataclass(frozen=True, slots=True)
class PackedSample:
    """Several samples one behind the other: what one position of a run's data order is with `data.packing`."""

    ids: list[int]
    """Token ids of all samples."""
    spans: tuple[Span, ...]
    """Trained positions of `ids`, ascending. The first position of a sample is never among them."""
    lengths: tuple[int, ...]
    """Tokens of each sample; they add up to len(ids)."""
    members: tuple[int, ...]
    """Which samples of the split these are."""

    @property
    def tokens(self) -> int:
        """Supervised tokens."""
        return sum(stop - start for start, stop in self.spans)


def pack(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Say which samples share a row: best fit, the longest first.

    A sample goes where the least room is left over, so that few rows are needed. Samples of equal length take their
    turn by chance, and rows come in an order by chance; the same lengths and seed give the same rows.

    Args:
        lengths: Tokens of each sample.
        capacity: Tokens that a row holds.
        seed: Of both chances.

    Returns:
        For each row the numbers of its samples, ascending.

    Raises:
        ValueError: a sample is longer than a row.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit into a row of {capacity}")
    chance = random.Random(f"{seed}:packing")
    order = list(range(len(lengths)))
    chance.shuffle(order)
    order.sort(key=lambda each: -lengths[each])
    rows = _Rows(capacity)
    for each in order:
        rows.put(each, lengths[each])
    for row in rows.members:
        row.sort()
    chance.shuffle(rows.members)
    return rows.members


class _Rows:
    """Rows that are being filled, found by the room that they have left."""

    def __init__(self, capacity: int) -> None:
        self.members: list[list[int]] = []
        self._capacity = capacity
        self._of_room: dict[int, list[int]] = {}
        self._rooms = 0
        """Bit r is set while some row has room for exactly r tokens: the tightest fit is the lowest bit that does."""

    def put(self, sample: int, length: int) -> None:
        """Into the fullest row that takes it, or a new one."""
        fitting = self._rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = self._take(room)
        else:
            room, row = self._capacity, len(self.members)
            self.members.append([])
        self.members[row].append(sample)
        self._offer(row, room - length)

    def _take(self, room: int) -> int:
        rows = self._of_room[room]
        row = rows.pop()
        if not rows:
            self._rooms &= ~(1 << room)
        return row

    def _offer(self, row: int, room: int) -> None:
        if room:
            self._of_room.setdefault(room, []).append(row)
            self._rooms |= 1 << room


def joined(samples: Iterable[Sample], members: Sequence[int]) -> PackedSample:
    """Put samples one behind the other.

    Args:
        samples: In the order of `members`.
        members: Their numbers in the split.
    """
    ids: list[int] = []
    spans: list[Span] = []
    lengths: list[int] = []
    for sample in samples:
        at = len(ids)
        # What stands before a sample's first token is another sample: that token is not predicted.
        found = ((max(start, 1), stop) for start, stop in sample.spans)
        spans += [(at + start, at + stop) for start, stop in found if start < stop]
        ids += sample.ids
        lengths.append(len(sample.ids))
    return PackedSample(ids, tuple(spans), tuple(lengths), tuple(members))


def by_length(order: Sequence[int], lengths: Sequence[int], group: int, chance: random.Random) -> list[int]:
    """The same rows in groups of similar lengths, so that little of a batch is padding; groups come by chance.

    Only rows of one window change places. A batch of `group` rows, or of a part of it, has similar lengths; larger
    batches have more padding. A group is not larger than it must be: rows that stand side by side are alike in more
    than their lengths, and a run that meets them one after the other learns less.

    Args:
        order: Numbers of rows, in an order by chance.
        lengths: Tokens of each row.
        group: Rows of a group.
        chance: For the order of groups.
    """
    window = max(1, WINDOW // group) * group
    return [
        each
        for start in range(0, len(order), window)
        for each in _window(sorted(order[start : start + window], key=lambda row: lengths[row]), group, chance)
    ]


def _window(rows: list[int], group: int, chance: random.Random) -> list[int]:
    """Rows in order of length, as groups in any order; rows that fill no group stand at the end."""
    spare = len(rows) % group
    last = [rows.pop(chance.randrange(len(rows))) for _ in range(spare)]
    groups = [rows[start : start + group] for start in range(0, len(rows), group)]
    chance.shuffle(groups)
    return [each for chosen in [*groups, last] for each in chosen]


def padding(lengths: Sequence[int], size: int) -> float:
    """Share of all computed tokens that is padding, when rows are trained on in batches of `size` in this order."""
    batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    computed = sum(len(batch) * max(batch) for batch in batches)
    return 1 - sum(lengths) / computed if computed else 0.0
