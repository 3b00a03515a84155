"""What this run would have done in lock-step: the straggler tax, and the part of it that was not paid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_TAX = 0.02
"""Replicas whose speeds differ by less lose nothing in lock-step; the share would be noise divided by noise."""


@dataclass
class StragglerTax:
    """Integrates, over the time in which all replicas train, what three ways of training make of the same replicas.

    With s_i seconds of micro-step for a token of replica i, of R, over the newest window:
    - lock-step makes R / max(s_i) tokens a second, because every step is as slow as the slowest replica's;
    - everybody at its own pace makes sum(1 / s_i);
    - this run makes what its beats say.

    Lock-step is flattered: s_i are means over a window, so it pays nothing for the slowest of single steps, and
    nothing for communication.
    """

    lockstep: float = 0.0
    own_pace: float = 0.0
    trained: float = 0.0
    _at_s: float | None = None
    _tokens: int = 0

    def advance(self, now_s: float, tokens: int, seconds_per_token: Sequence[float], training: bool) -> None:
        """Let time pass.

        Args:
            now_s: The time.
            tokens: That the fleet has trained so far.
            seconds_per_token: Of every replica; 0 where it is not known yet.
            training: Whether all replicas train.
        """
        known = training and bool(seconds_per_token) and min(seconds_per_token) > 0
        if known and self._at_s is not None:
            span_s = now_s - self._at_s
            self.lockstep += span_s * len(seconds_per_token) / max(seconds_per_token)
            self.own_pace += span_s * sum(1 / each for each in seconds_per_token)
            self.trained += tokens - self._tokens
        self._at_s, self._tokens = (now_s if known else None), tokens

    def lockstep_tokens(self, tokens: int) -> float | None:
        """What lock-step would have made of the time in which `tokens` were trained; None while nothing is known."""
        return tokens * self.lockstep / self.trained if self.trained > 0 else None

    def recovered(self) -> float | None:
        """(trained - lock-step) / (own pace - lock-step), 0 to 1; None where there is no tax worth the name."""
        tax = self.own_pace - self.lockstep
        if self.trained <= 0 or tax < LEAST_TAX * self.own_pace:
            return None
        return max(0.0, min(1.0, (self.trained - self.lockstep) / tax))
