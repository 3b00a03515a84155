"""A token bucket: a rate limit with a burst. For floods at the hub's ingress and for a link's byte budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Bucket:
    """A token bucket: `rate` messages (or bytes) a second, and `burst` at once."""

    rate: float
    burst: float
    _level: float = field(init=False)
    seen_s: float = 0.0

    def __post_init__(self) -> None:
        self._level = self.burst

    def takes(self, now_s: float, amount: float = 1.0) -> bool:
        """Return whether one more message, or so many bytes, may pass now; if so, that is counted."""
        level = self._level + (now_s - self.seen_s) * self.rate  # as `spend`; asked for every frame
        self._level = level = self.burst if level > self.burst else level
        self.seen_s = now_s
        if level < amount:
            return False
        self._level = level - amount
        return True

    def allows_from(self, amount: float) -> float:
        """Return when `amount` may pass if nothing else passes before; inf where it is more than the burst."""
        if amount <= self._level:
            return self.seen_s
        return self.seen_s + (amount - self._level) / self.rate if amount <= self.burst else math.inf

    def spend(self, amount: float, now_s: float) -> None:
        """Count `amount` as passed, within the limit or not. Beyond it the level becomes negative: later traffic
        waits."""
        self._level = min(self.burst, self._level + (now_s - self.seen_s) * self.rate) - amount
        self.seen_s = now_s
