"""The straggler tax: what lock-step training would have lost, and how much of that this run did not lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

LEAST_TAX = 0.05
"""Below this difference of speeds the tax is not counted: a share of next to nothing would be noise."""
LEAST_KNOWN_S = 1.0
"""No share is shown before lock-step would have lost this much of the whole fleet's time. Before that single steps
decide it."""


class Rates(msgspec.Struct, frozen=True, gc=False):
    """Rates of one replica over its newest window."""

    seconds_per_token: float
    """Seconds of step per token, without waits; 0 while unknown."""
    tokens_per_s: float
    """Tokens trained a second, waits included."""


class Rated(Protocol):
    """Anything that has rates, such as a member of the hub."""

    def rates(self) -> Rates:
        """Return the rates over its newest steps."""


@dataclass
class StragglerTax:
    """Integrates three rates over the time in which all replicas train.

    With s_i seconds of step for a token of replica i, of R, over the newest window:
    - lock-step makes R / max(s_i) tokens a second, because every step is as slow as the slowest replica's;
    - everybody at its own pace makes sum(1 / s_i);
    - this run makes what its beats say, over the same window: tokens of now against speeds of before would charge a
      replica that has just turned slow for the speed that it has lost.

    Lock-step is flattered: s_i are means over a window, so it pays nothing for the slowest of single steps, and
    nothing for communication.
    """

    lockstep: float = 0.0
    trained: float = 0.0
    tax: float = 0.0
    """Tokens that lock-step would have lost, while speeds differed."""
    unpaid: float = 0.0
    """How many of these this run did not lose."""
    _known_s: float = 0.0
    """Lock-step's loss in seconds of the whole fleet."""
    _at_s: float | None = None

    def advance(self, now_s: float, replicas: Sequence[Rates], training: bool) -> None:
        """Let time pass.

        Args:
            now_s: The time.
            replicas: All of the fleet.
            training: Whether all of them train.
        """
        known = training and bool(replicas) and min([each.seconds_per_token for each in replicas]) > 0
        if known and self._at_s is not None:
            self._add(now_s - self._at_s, replicas)
        self._at_s = now_s if known else None

    def lockstep_tokens(self, tokens: int) -> float | None:
        """Return the tokens of lock-step in the time in which `tokens` were trained; None while nothing is known."""
        return tokens * self.lockstep / self.trained if self.trained > 0 else None

    def recovered(self) -> float | None:
        """Return (trained - lock-step) / (own pace - lock-step) while these differed, 0 to 1; None until that is
        known."""
        return max(0.0, min(1.0, self.unpaid / self.tax)) if self._known_s >= LEAST_KNOWN_S else None

    def _add(self, span_s: float, replicas: Sequence[Rates]) -> None:
        lockstep = len(replicas) / max([each.seconds_per_token for each in replicas])
        own_pace = sum([1 / each.seconds_per_token for each in replicas])
        trained = sum([each.tokens_per_s for each in replicas])
        self.lockstep += span_s * lockstep
        self.trained += span_s * trained
        if own_pace - lockstep >= LEAST_TAX * own_pace:
            self.tax += span_s * (own_pace - lockstep)
            self.unpaid += span_s * (trained - lockstep)
            self._known_s += span_s * (1 - lockstep / own_pace)
