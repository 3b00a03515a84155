"""What is buffered, and how a landed round changes it: the local mode.

Every replica takes its own optimizer steps on its live parameters. What is buffered is ``live - anchor``. When a
round lands,

    anchor += mean_w(delta)            on every replica the same bits
    live   += mean_w(delta) - sent     progress made while the round was in flight is carried

with plain token-weighted means: outer learning rate 1, no outer momentum (for LoRA both measured better than
Nesterov: docs/decisions/0003). The live parameters belong to the training thread, so a commit only notes the
second line as `pending`, and the training thread applies it between two micro-steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .pool import AdapterPool


@dataclass(frozen=True)
class Landing:
    """The result of a round for its adapters, not applied yet. All [K, P], fp32."""

    adapters: tuple[int, ...]
    anchor: Tensor
    """The new anchors."""
    correction: Tensor
    """mean - sent: what the live parameters still owe."""


class LocalUpdate:
    """Anchor, pending corrections and live parameters of one replica. Its owner holds a lock around all calls."""

    def __init__(self, pool: AdapterPool) -> None:
        self.pool = pool
        self.anchor = pool.read(range(pool.n))
        self._pending = torch.zeros_like(self.anchor)
        self._owed: set[int] = set()

    def adopt(self, anchor: Tensor) -> None:
        """Begin an epoch from the fleet's anchors ([N, P], fp32): live parameters become equal to them."""
        self.anchor.copy_(anchor)
        self._pending.zero_()
        self._owed.clear()
        self.pool.write(self.anchor)

    def delta(self, adapters: Sequence[int]) -> Tensor:
        """What is buffered for these adapters: live (with what it is owed) minus anchor, [K, P]."""
        values = self.pool.read(adapters)
        for row, adapter in zip(values, adapters, strict=True):
            if adapter in self._owed:
                row += self._pending[adapter]
            row -= self.anchor[adapter]
        return values

    def commit(self, landing: Landing) -> None:
        """Apply a landed round to the anchors and note what the live parameters are owed."""
        for row, adapter in enumerate(landing.adapters):
            self.anchor[adapter] = landing.anchor[row]
            self._pending[adapter] += landing.correction[row]
        self._owed.update(landing.adapters)

    def land(self) -> None:
        """Give the live parameters what they are owed. Only between two micro-steps."""
        if not self._owed:
            return
        rows = sorted(self._owed)
        self.pool.add(rows, self._pending[rows])
        self._pending[rows] = 0.0
        self._owed.clear()
