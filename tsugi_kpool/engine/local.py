"""Local mode (local SGD): every replica takes its own optimizer steps, and a round averages what they changed.

What is buffered is ``live - anchor``. When a round is committed,

    anchor += mean_w(delta)            on every replica the same bits
    live   += mean_w(delta) - sent     progress made while the round was in flight is carried

with means in which every step counts alike (docs/decisions/0062): outer learning rate 1, no outer momentum (for LoRA
better than Nesterov: docs/decisions/0003). The live parameters belong to the training thread, so a commit only notes
the second line as `pending`, and the training thread applies it between two steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tsugi_kpool.codec import header
from tsugi_kpool.codec.coding import Floats
from tsugi_kpool.codec.keeper import Keeper
from tsugi_kpool.codec.shards import Cut

from .pool import AdapterPool
from .state import Tensors
from .update import ALONE, Combined, Pooled, Snapshot, sha256, take

SHARD, OWNERS = "shard", "owners"
"""Names in a checkpoint: residuals of our shard, and the number of owners that it was cut for."""


class LocalUpdate:
    """Every replica takes its own optimizer steps; rounds average the changes (see the module's text).

    Args:
        pool: The live adapters.
        measure_noise: Keep Q (the sum of squared norms of single changes), which costs a copy of the pool a step.
        keeper: Keeps the residuals of two-stage rounds; None where there are none.
    """

    def __init__(self, pool: AdapterPool, measure_noise: bool = False, keeper: Keeper | None = None) -> None:
        self.pool, self.keeper = pool, keeper
        self.anchor = pool.read(range(pool.n))
        self.lr = 0.0
        self.version = 0
        self._pending = torch.zeros_like(self.anchor)
        self._unapplied: set[int] = set()
        self._norm2_sum = torch.zeros(pool.n, dtype=torch.float64)
        self._shipped_norm2 = self._norm2_sum[:0]
        self._previous: Tensor | None = self.anchor.clone() if measure_noise else None

    def adopt(self, anchor: Tensor) -> None:
        # Whoever has these anchors already still has residuals for the fleet.
        if self.keeper is not None and not torch.equal(self.anchor, anchor):
            self.keeper.forget()
        self.anchor.copy_(anchor)
        self._pending.zero_()
        self._norm2_sum.zero_()
        self._unapplied.clear()
        self.pool.write(self.anchor)
        self._remember()

    def collect(self, tokens: int, lr: float, adapters: Sequence[int] = ()) -> None:
        """Measure the step's change for the noise estimate. The change itself is already in the live parameters."""
        del tokens, adapters
        self.lr = lr
        if self._previous is not None:
            live = self.pool.read(range(self.pool.n))
            self._norm2_sum += (live - self._previous).double().square().sum(dim=1)
            self._previous = live

    def overdue(self, adapters: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return nothing: a change is in the live parameters already, however far the anchors have moved."""
        del adapters
        return []

    def snapshot(self, adapters: Sequence[int]) -> Snapshot:
        """Return live parameters, plus what they have not applied yet, minus the anchor."""
        rows = list(adapters)
        self._shipped_norm2 = self._norm2_sum[rows].clone()
        residuals = self._pending[rows] if self._unapplied.intersection(rows) else None
        # A view will do: anchors move on Commit only, which is later and in the thread that reads the snapshot.
        return Snapshot(self.pool.copy(rows), self._shipped_norm2, plus=residuals, minus=take(self.anchor, rows))

    def withhold(self, adapters: Sequence[int]) -> None:
        self._shipped_norm2 = torch.zeros(len(adapters), dtype=torch.float64)

    def shares(self, headers: header.Header) -> Floats:
        """Return what makes every step of every member count alike."""
        return header.shares(headers)

    def combine(self, pooled: Pooled) -> Combined:
        """Return the mean of all members' changes, in which every step counts alike."""
        alone = pooled.alone  # the mean is what we sent, and nothing is left to apply
        mean = pooled.sent if alone else pooled.mean
        anchor = take(self.anchor, pooled.adapters) + mean
        norms = tuple(mean.norm(dim=1).tolist())
        tokens = tuple(int(each) for each in pooled.tokens.sum(dim=0).tolist())
        own = None if alone else mean.sub_(pooled.sent)
        digest = ALONE if alone else sha256(anchor, also=pooled.owned.told if pooled.owned else b"")
        return Combined(pooled.adapters, anchor, own, digest, pooled.lr, norms, tokens, pooled.owned)

    def commit(self, combined: Combined) -> None:
        """Move the anchors, and note what the live parameters still have to apply."""
        for row, adapter in enumerate(combined.adapters):
            self.anchor[adapter] = combined.agreed[row]
            if combined.own is not None:
                self._pending[adapter] += combined.own[row]
                self._unapplied.add(adapter)
        self._norm2_sum[list(combined.adapters)] -= self._shipped_norm2
        if self.keeper is not None and (owned := combined.owned) is not None:
            self.keeper.commit(combined.adapters, combined.weighted, owned.outs, owned.rest)

    def divide(self, cut: Cut | None, rank: int) -> None:
        """Begin a generation whose shards are cut so. Residuals that have another owner now are our own change."""
        moved = self.keeper.begin(cut, rank) if self.keeper is not None else None
        if moved is None:
            return
        for adapter in np.flatnonzero(moved.any(axis=1)).tolist():
            self._pending[adapter] += torch.from_numpy(moved[adapter])
            self._unapplied.add(adapter)

    def apply_rounds(self) -> None:
        if self._unapplied:
            rows = sorted(self._unapplied)
            self.pool.add(rows, take(self._pending, rows))
            for row in rows:
                self._pending[row].zero_()
            self._unapplied.clear()
            self._remember()

    def residuals(self) -> Tensors:
        """Return those of our shard of two-stage rounds. What coding has lost of our own parts is in the live
        parameters, and so in the next change."""
        kept = self.keeper.residuals() if self.keeper is not None else None
        if kept is None or self.keeper is None:
            return {}
        return {SHARD: torch.from_numpy(kept), OWNERS: torch.tensor([self.keeper.owners])}

    def restore_residuals(self, tensors: Tensors) -> None:
        shard, owners = tensors.get(SHARD), tensors.get(OWNERS)
        if self.keeper is not None and shard is not None and owners is not None and shard.shape == self.anchor.shape:
            self.keeper.restore(shard.numpy(), int(owners))

    def _remember(self) -> None:
        if self._previous is not None:
            self._previous = self.pool.read(range(self.pool.n))
