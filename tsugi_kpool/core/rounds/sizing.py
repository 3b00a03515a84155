"""Dynamic batch size: a slow replica gets smaller micro-batches, so that its staleness stays near one round.

docs/design.md section 3, Phase correction. A step that spans many rounds ends many versions late. A replica
whose step takes longer than a round (or than the fastest replica's, if rounds are quicker than that) gets
fewer samples in it. Steps count by their tokens, so that sizes change no mean.
"""

from __future__ import annotations

from collections.abc import Mapping

SHRINK, GROW = 0.8, 1.5
"""A size is kept while the ideal one is between these multiples of it: measurements are noisy, and each change is an
event."""
SMOOTHING = 0.8
"""Weight of the past in the moving average of the rounds' period."""


def fitting(seconds_per_sample: Mapping[int, float], micro_batch: int, period_s: float) -> dict[int, float]:
    """Return for each replica how many samples its step may have, so that it takes as long as a round (or as the
    fastest replica's step).

    Args:
        seconds_per_sample: Of each replica that has been measured; positive.
        micro_batch: Samples in a step of a replica that is not slow.
        period_s: Seconds between two commits; 0 while unknown.
    """
    if not seconds_per_sample:
        return {}
    allowed_s = max(period_s, micro_batch * min(seconds_per_sample.values()))
    return {replica: allowed_s / each for replica, each in seconds_per_sample.items()}


def resize(size: int, fits: float, micro_batch: int) -> int:
    """Return the next size of a replica from its present one: at least 1, at most `micro_batch`."""
    if SHRINK * size <= fits < GROW * size:
        return size
    return max(1, min(micro_batch, int(fits)))


class WorkSizes:
    """The samples per step of each replica, computed anew after every commit."""

    def __init__(self, micro_batch: int) -> None:
        self._micro_batch = micro_batch
        self._sizes: dict[int, int] = {}
        self.period_s = 0.0
        self._committed_s: float | None = None

    def of(self, replica: int) -> int:
        """Samples in this replica's next steps."""
        return self._sizes.get(replica, self._micro_batch)

    def committed(self, now_s: float, seconds_per_sample: Mapping[int, float]) -> dict[int, tuple[int, int]]:
        """Take in a commit. Returns the changes: replica -> (size before, size now)."""
        if self._committed_s is not None:
            past = SMOOTHING if self.period_s else 0.0
            self.period_s = past * self.period_s + (1 - past) * (now_s - self._committed_s)
        self._committed_s = now_s
        if not self.period_s:
            return {}  # before the second commit nobody knows what a round takes
        fits = fitting(seconds_per_sample, self._micro_batch, self.period_s)
        sizes = {replica: resize(self.of(replica), each, self._micro_batch) for replica, each in fits.items()}
        changes = {r: (self.of(r), size) for r, size in sizes.items() if size != self.of(r)}
        self._sizes |= sizes
        return changes
