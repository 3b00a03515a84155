"""Whether what a replica has buffered may be shipped."""

from __future__ import annotations

from collections.abc import Sequence

from tsugi_kpool.core.replica.plausible import Plausible, size
from tsugi_kpool.core.settings import Mode

from .rounds import Contribution, Outcome


class Fitness:
    """Our own check, before anything is shipped. The aggregator's thread."""

    def __init__(self, mode: Mode) -> None:
        self._local = mode is Mode.LOCAL
        self._plausible = Plausible()

    def of(self, contribution: Contribution) -> str | None:
        """Why it must not be shipped, or None."""
        shipment, norms = contribution.shipment, contribution.delta.norm(dim=1).tolist()
        counts = shipment.micro_steps if self._local else shipment.tokens
        return self._plausible.verdict(self._sizes(norms, counts, contribution.lr))

    def committed(self, outcome: Outcome, members: int) -> None:
        """A round has been committed: this is what the fleet's contributions are like."""
        landing = outcome.landing
        if self._local:
            counts = [-(-facts.micro_steps // members) for facts in outcome.adapters]
        else:
            counts = [1] * len(landing.norms)  # its mean is for one token already
        self._plausible.committed(self._sizes(landing.norms, counts, landing.lr))

    def _sizes(self, norms: Sequence[float], counts: Sequence[int], lr: float) -> list[float]:
        scale = lr if self._local else 1.0
        return [size(norm, count, scale) for norm, count in zip(norms, counts, strict=True)]
