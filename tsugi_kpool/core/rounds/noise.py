"""Gradient noise from pooled sums: how many steps a round needs (predictive convergence trigger).

After a round every member knows, for the steps' changes d_j that were pooled, S = sum d_j and
Q = sum |d_j|^2 over n of them. Then, without bias,

    |G|^2   = (|S|^2 - Q) / (n (n - 1))
    trSigma = (Q - |S|^2 / n) / (n - 1)

(AdaScale, Johnson et al. 2020, arXiv 2007.05105; the gradient noise scale of McCandlish et al. 2018,
arXiv 1812.06162, appendix A). Both are averaged separately and only then divided, because a ratio of two noisy
estimates is biased. A single worker's scalars are too noisy for |G|^2, so nothing is estimated from those.
"""

from __future__ import annotations

from dataclasses import dataclass

SMOOTHING = 0.8
"""Weight of the past in the moving averages; the noise changes over tens of rounds."""
MIN_ROUNDS = 3
"""Before this many rounds the estimate counts as unknown."""


def estimate(sum_norm2: float, norm2_sum: float, n: int) -> tuple[float, float]:
    """Return (|G|^2, trSigma) from |S|^2, Q and n. Fewer than two steps give (0, 0): they say nothing."""
    if n < 2:
        return 0.0, 0.0
    return (sum_norm2 - norm2_sum) / (n * (n - 1)), (norm2_sum - sum_norm2 / n) / (n - 1)


@dataclass(frozen=True)
class Noise:
    """Moving averages of |G|^2 and trSigma over `rounds` rounds."""

    norm2: float = 0.0
    trace: float = 0.0
    rounds: int = 0

    def updated(self, norm2: float, trace: float) -> Noise:
        """Return the averages with one more round in them; a round without a measurement changes nothing."""
        if trace == 0.0:
            return self
        past = SMOOTHING if self.rounds else 0.0
        return Noise(
            norm2=past * self.norm2 + (1 - past) * norm2,
            trace=past * self.trace + (1 - past) * trace,
            rounds=self.rounds + 1,
        )

    def needed(self, eps: float) -> float | None:
        """Return the steps n at which trSigma / (n |G|^2) falls to eps; None while that is unknown.

        A non-positive estimate means unknown, never "wait for ever": the caller falls back to a count.
        """
        if self.rounds < MIN_ROUNDS or self.norm2 <= 0.0 or self.trace <= 0.0:
            return None
        return self.trace / self.norm2 / eps
