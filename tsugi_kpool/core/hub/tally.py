"""Sums over all members' newest beats: what the hub asks on every beat must not cost a walk over all of them."""

from __future__ import annotations

from collections import Counter

from tsugi_kpool.core.messages import Beat

from .goodput import samples_per_s


class Tally:
    """Sums over all members' newest beats, kept up to date beat by beat.

    The hub asks these questions on every beat. Walking all members for the answer would make R members cost R^2.
    """

    def __init__(self, n: int) -> None:
        self.pooled = [0] * n
        """Steps that all members have buffered, for each adapter."""
        self.samples_per_s = 0.0
        """What all members train on together."""
        self.drained = 0
        """Members that have no more data."""
        self._adapters = range(n)
        self._paces: dict[int, float] = {}
        self._at: Counter[tuple[int, int]] = Counter()

    def at(self, generation: int, version: int) -> int:
        """Members whose newest beat shows this generation and version."""
        return self._at[generation, version]

    def replace(self, old: Beat | None, new: Beat) -> None:
        """A member's newest beat is `new`; before it was `old`, if there was one."""
        if old is None or new.busy_s != old.busy_s or new.steps != old.steps or new.samples != old.samples:
            pace = samples_per_s(new)
            self.samples_per_s += pace - (0.0 if old is None else self._paces[new.replica])
            self._paces[new.replica] = pace
        if old is None:
            self._move(None, (new.generation, new.version))
            self._pool((), new.pooled)
            self.drained += new.drained
            return
        if old.version != new.version or old.generation != new.generation:
            self._move((old.generation, old.version), (new.generation, new.version))
        if old.pooled != new.pooled:
            self._pool(old.pooled, new.pooled)
        self.drained += new.drained - old.drained

    def remove(self, beat: Beat | None) -> None:
        """A member whose newest beat this is has gone before training began."""
        if beat is None:
            return
        self.samples_per_s -= samples_per_s(beat)
        self._pool(beat.pooled, ())
        self.drained -= beat.drained
        self._out_of((beat.generation, beat.version))

    def _move(self, old: tuple[int, int] | None, new: tuple[int, int]) -> None:
        self._at[new] += 1
        if old is not None:
            self._out_of(old)

    def _out_of(self, at: tuple[int, int]) -> None:
        self._at[at] -= 1
        if not self._at[at]:
            del self._at[at]

    def _pool(self, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        """A beat with too few counts counts as zeros, one with too many is cut: neither may stop the hub."""
        if len(old) == len(new) == len(self.pooled):
            self.pooled = [total - a + b for total, a, b in zip(self.pooled, old, new)]  # noqa: B905  (on every beat)
            return
        for adapter, steps in zip(self._adapters, old, strict=False):
            self.pooled[adapter] -= steps
        for adapter, steps in zip(self._adapters, new, strict=False):
            self.pooled[adapter] += steps
