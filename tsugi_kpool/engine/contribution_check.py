"""Check whether a replica's contribution may be shipped."""

from __future__ import annotations

from collections.abc import Sequence

from tsugi_kpool.core.replica.magnitude_check import MagnitudeCheck, size
from tsugi_kpool.core.settings import Mode

from .rounds import Contribution, RoundResult


class ContributionCheck:
    """A replica's check of its own contribution, before anything is shipped. The aggregator's thread."""

    def __init__(self, mode: Mode) -> None:
        self._local = mode is Mode.LOCAL
        self._magnitudes = MagnitudeCheck()

    def of(self, contribution: Contribution) -> str | None:
        """Return why the contribution must not be shipped, or None."""
        shipment, norms = contribution.shipment, contribution.delta.norm(dim=1).tolist()
        counts = shipment.steps if self._local else shipment.tokens
        return self._magnitudes.verdict(self._sizes(norms, counts, contribution.lr))

    def committed(self, outcome: RoundResult, members: int) -> None:
        """Learn from a committed round how large the fleet's contributions are."""
        combined = outcome.combined
        if self._local:
            counts = [-(-facts.steps // members) for facts in outcome.adapters]
        else:
            counts = [1] * len(combined.norms)  # its mean is for one token already
        self._magnitudes.committed(self._sizes(combined.norms, counts, combined.lr))

    def _sizes(self, norms: Sequence[float], counts: Sequence[int], lr: float) -> list[float]:
        scale = lr if self._local else 1.0
        return [size(norm, count, scale) for norm, count in zip(norms, counts, strict=True)]
