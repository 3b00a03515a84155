"""The elastic buffer: what a replica has trained since the anchors, and its weight, under one lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tsugi_kpool.core.replica.ledger import ContributionLedger, Shipment

from .rounds import Contribution, RoundResult
from .state import Tensors, moments, restore
from .update import UpdateRule

STALE = "stale"
"""Reason of discarded tokens: computed on parameters that are too many versions old."""
UNUSABLE = "unusable"
"""Reason of discarded tokens: not finite, or absurdly large."""
ADOPTED = "adopted"
"""Reason of discarded tokens: trained before the replica took over the fleet's anchors."""


class ElasticBuffer:
    """The training thread fills it, the aggregator ships from it.

    The training thread holds the lock while a step takes effect, the aggregator while it copies and commits:
    neither ever waits for the network in it.

    Args:
        update: What is buffered, and what a committed round does.
    """

    def __init__(self, update: UpdateRule) -> None:
        self.update = update
        self.ledger = ContributionLedger(update.pool.n)
        self.active: tuple[int, ...] = ()
        """Adapters that the present step trains; empty: all."""
        self._active_next: tuple[int, ...] = ()
        self._optimizer: torch.optim.Optimizer | None = None
        self._inherited: Tensors = {}
        self.refused: str | None = None
        """Why all that is buffered must be thrown away, at the next `apply_rounds` without a round under way; None
        when it need not be."""
        self._under_way = False
        """Whether something of ours is in a round that is neither committed nor forgotten."""
        self._lock = threading.Lock()
        self._waited_s = 0.0

    def adopt(self, anchor: Tensor, version: int = 0) -> None:
        """Take over the fleet's anchors of this version. What is buffered was trained on other anchors, and is
        discarded."""
        with self._lock:
            self.active = self._active_next
            self._discard_all(ADOPTED)
            self.refused = None
            # Before `adopt`: gradient mode marks the live parameters with this version.
            self.update.version = version
            self.update.adopt(anchor)
            self.update.pool.transfers.settle()

    def activate(self, adapters: tuple[int, ...]) -> None:
        """Train these adapters (empty: all) from the next `apply_rounds` on; a step in progress ends as it began."""
        with self._lock:
            self._active_next = adapters

    def apply_rounds(self) -> tuple[str, int] | None:
        """Apply committed rounds to the live parameters. Training thread, between two steps.

        Returns:
            When what was buffered has been thrown away here: why, and its tokens.
        """
        with self._lock:
            self.active = self._active_next
            if self.refused is not None and not self._under_way:
                return self._begin_again()
            self.update.apply_rounds()
            return None

    def refuse(self, reason: str, tokens: int = 0, samples: int = 0) -> None:
        """Mark what is buffered, and a step of this size, as unusable: the replica will begin again from the anchors.

        That happens in `apply_rounds`, because the live parameters belong to the training thread, and because a round
        may have something of ours under way. Until then nothing is shipped.
        """
        with self._lock:
            if samples or tokens:
                self.ledger.collect(tokens, self.active, samples)
            self.refused = self.refused or reason

    def lend(self, optimizer: torch.optim.Optimizer, alone: bool) -> None:
        """Remember the loop's optimizer, so that its moments can be handed over. Training thread, local mode, before
        each step.

        Inherited moments go into it here if no other worker steps these parameters (`alone`). Otherwise all workers'
        optimizers get them at a boundary (`inherited`).
        """
        if optimizer is self._optimizer and not (alone and self._inherited):
            return
        with self._lock:
            self._optimizer = optimizer
            if alone and self._inherited:
                restore(optimizer, self._inherited)
                self._inherited = {}

    def moments(self) -> Tensors:
        """Return a copy of the loop's optimizer's moments (local mode); none before its first step. Any thread."""
        with self._lock:
            return moments(self._optimizer)

    def inherit(self, tensors: Tensors) -> None:
        """Keep these moments: the loop's optimizer goes on with them from its next step."""
        with self._lock:
            self._inherited = tensors

    def inherited(self) -> Tensors:
        """Return the inherited moments that no optimizer has taken yet, once. Training thread."""
        if not self._inherited:
            return {}
        with self._lock:
            found, self._inherited = self._inherited, {}
            return found

    def forget(self) -> None:
        """The round that was under way will not be committed: forget that something of ours is in it."""
        with self._lock:
            self._under_way = False

    def _begin_again(self) -> tuple[str, int]:
        reason, before = self.refused or "", sum(self.ledger.discarded)
        self.refused = None
        self._discard_all(UNUSABLE)
        # `adopt` keeps residuals where the anchors stay the same; these belong to what is thrown away.
        self.update.restore_residuals({})
        self.update.adopt(self.update.anchor)
        return reason, sum(self.ledger.discarded) - before

    def _discard_all(self, reason: str) -> None:
        for adapter in range(self.update.pool.n):
            if steps := self.ledger.steps[adapter]:
                self.ledger.discard(adapter, self.ledger.buffered(adapter), steps, reason)

    @contextmanager
    def collecting(self, tokens: int, lr: float = 0.0, samples: int = 0) -> Iterator[None]:
        """Wraps a step's change of the live parameters: the change and its weight enter the buffer together."""
        self.open_step()
        try:
            yield
        except BaseException:
            self.drop_step()
            raise
        self.close_step(tokens, lr, samples)

    def open_step(self) -> None:
        """The first half of `collecting`, for hooks before and after a step, which cannot wrap it. Takes the lock."""
        started_s = time.monotonic()
        self._lock.acquire()
        self._waited_s += time.monotonic() - started_s
        # On the device the step waits for a snapshot that is still being copied.
        self.update.pool.transfers.before_change()

    def take_waited_s(self) -> float:
        """Return the seconds that `open_step` has waited for the lock since the last call. Training thread."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def close_step(self, tokens: int, lr: float = 0.0, samples: int = 0) -> None:
        """The second half, when the step has succeeded."""
        transfers = self.update.pool.transfers
        try:
            transfers.changed()
            # Marked before `collect`, which may copy the live parameters; and again after it, because in gradient
            # mode it adds to sums on the device that the next snapshot must not read too early.
            self.update.collect(tokens, lr, self.active)
            self.ledger.collect(tokens, self.active, samples)
        finally:
            transfers.changed()
            self._lock.release()

    def drop_step(self) -> None:
        """The second half when the step has failed: whatever it changed stays buffered, without a weight."""
        self.update.pool.transfers.changed()
        self._lock.release()

    def weigh_rest(self, tokens: int) -> None:
        """The live parameters have changed since the last weight: where none is left to ship that with: this."""
        self.open_step()
        self.drop_step()
        with self._lock:
            bare = tuple(adapter for adapter, steps in enumerate(self.ledger.steps) if not steps)
            if bare:
                self.ledger.collect(tokens, bare)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside the block no step takes effect here and no round is committed."""
        with self._lock:
            yield

    def contribution(self, adapters: Sequence[int]) -> Contribution:
        """Return a copy of all that is buffered for these adapters; an empty contribution where that is unusable."""
        with self._lock:
            if self.refused is not None:
                return self._nothing(adapters)
            for adapter, tokens, steps in self.update.overdue(adapters):
                # Discard first: the books must already lack what the snapshot will not contain.
                self.ledger.discard(adapter, tokens, steps, STALE)
            # Weights and values under one lock: a step in between would be shipped with its change and without its
            # weight.
            shipment = self.ledger.shipment(adapters)
            snapshot, lr = self.update.snapshot(adapters), self.update.lr
            self._under_way = any(shipment.steps)
        # Without the lock: on a GPU this waits for the copy, and the training thread's next step would wait for it,
        # too.
        values = snapshot.values()
        for row, tokens in zip(values, shipment.tokens, strict=True):
            if not tokens:
                row.zero_()  # rounding residue without weight is nobody's contribution
        return Contribution(shipment, values, snapshot.norm2_sum, lr)

    def usable(self, contribution: Contribution, reason: str | None) -> Contribution:
        """Return this contribution or, when there is a `reason` against it, an empty one; what is buffered will be
        thrown away."""
        if reason is None:
            return contribution
        self.refuse(reason)
        with self._lock:
            self._under_way = False
            return self._nothing(contribution.shipment.adapters)

    def void(self, contribution: Contribution) -> Contribution:
        """Return a contribution without weight instead of this one, which came too late: it stays buffered."""
        with self._lock:
            self._under_way = False
            return self._nothing(contribution.shipment.adapters)

    def _nothing(self, adapters: Sequence[int]) -> Contribution:
        """Return a contribution without weight. The lock is held."""
        none, k, durable = (0,) * len(adapters), len(adapters), self.ledger.durable
        shipment = Shipment(tuple(adapters), none, none, self.ledger.samples, durable)
        self.update.withhold(adapters)
        zeros = torch.zeros(k, self.update.pool.size)
        return Contribution(shipment, zeros, torch.zeros(k, dtype=torch.float64), self.update.lr)

    def commit(self, contribution: Contribution, outcome: RoundResult) -> None:
        """Commit a round: anchors move, and what was shipped leaves the buffer."""
        with self._lock:
            self._under_way = False
            if any(contribution.shipment.steps):
                self.ledger.commit(contribution.shipment)
            self.update.commit(outcome.combined)

    def settle(self, alone: bool = False) -> None:
        """Set the live parameters to the anchors, exactly. After the last round.

        Args:
            alone: Nobody else holds the anchors. Then these become the live parameters, from which they may differ by
                a rounding (anchor + (live - anchor)): training alone is plain training, bit for bit.
        """
        with self._lock:
            final = self.update.anchor.clone()
            if alone:
                self.update.apply_rounds()
                final = self.update.pool.read(range(self.update.pool.n))
            self.update.adopt(final)

    def pooled(self) -> tuple[int, ...]:
        """Return the steps buffered for each adapter; any thread."""
        return tuple(self.ledger.steps)
