"""The interface of an update rule (`kpool.mode`): what is buffered, what a round makes of it, how that is applied."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tsugi_kpool.codec.coding import Bytes, Floats
from tsugi_kpool.codec.header import Header

from .pool import AdapterPool
from .state import Tensors
from .transfers import HostCopy

ALONE = "alone"
"""Digest of a round with one member, whose anchors nobody compares."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of what one replica has buffered for the selected adapters."""

    copied: HostCopy
    """[K, P] fp32: live values (local) or gradient sums (gradient), perhaps still on their way from the device."""
    norm2_sum: Tensor
    """[K] float64: Q of the convergence trigger; zeros when it is not measured."""
    plus: Tensor | None = None
    """[K, P] fp32 on the host, to be added."""
    minus: Tensor | None = None
    """[K, P] fp32 on the host, to be subtracted."""

    def values(self) -> Tensor:
        """Return the changes (local) or gradient sums (gradient): [K, P] fp32. Call it once, and not under the
        lock."""
        values = self.copied.wait()
        if self.plus is not None:
            values += self.plus
        if self.minus is not None:
            values -= self.minus
        return values


@dataclass(frozen=True)
class Owned:
    """What a two-stage round leaves with its owners, from its Commit on."""

    outs: tuple[Bytes, ...]
    """Every owner's coded mean of its shard, in the order of the members."""
    rest: Floats
    """[K, width] fp32: the new residuals of our own shard."""
    told: bytes
    """Headers and promises as we were told them. The digest covers them: others may have been told other ones."""


@dataclass(frozen=True)
class Pooled:
    """The members' contributions to a round, summed. Equal bits on every replica, except `shipped`, `sent` and
    `owned.rest`."""

    adapters: tuple[int, ...]
    mean: Tensor
    """[K, P] fp32: the sum over the members of their parts times their shares (`UpdateRule.shares`)."""
    tokens: Tensor
    """[members, K] float64, whole numbers: supervised tokens."""
    lr: float
    """Mean of the members' learning rates, weighted by tokens."""
    shipped: Tensor
    """[K, P] fp32: our part before coding."""
    sent: Tensor
    """[K, P] fp32: the part of it that counts as sent. With error feedback our decoded part, without it `shipped`."""
    owned: Owned | None = None
    alone: bool = False
    """Nobody else applies it: the mean is what we sent."""


@dataclass(frozen=True)
class Combined:
    """The result of a round for its adapters, not applied yet. Both tensors are [K, P], fp32."""

    adapters: tuple[int, ...]
    agreed: Tensor
    """Equal on all replicas. Local: the new anchors. Gradient: the mean gradient, clipped."""
    own: Tensor | None
    """Ours alone. Local: the rest that our live parameters must still add. Gradient: what coding lost, for our next
    shipment. None when our part was the whole round and lost nothing."""
    digest: str
    """SHA-256 of the values that must be equal on all replicas before anything is applied."""
    lr: float
    norms: tuple[float, ...]
    """Norm of each adapter's mean change (local) or mean gradient (gradient)."""
    tokens: tuple[int, ...]
    """Supervised tokens of each adapter, of all members."""
    owned: Owned | None = None

    @property
    def weighted(self) -> tuple[bool, ...]:
        """For each adapter, whether anybody shipped any weight."""
        return tuple(tokens > 0 for tokens in self.tokens)


class UpdateRule(Protocol):
    """Anchors, live parameters and buffer of one replica. Its owner holds a lock around all calls but `combine`.

    `combine` reads anchors, which only `commit` and `adopt` write: the aggregator's thread calls all three.
    """

    pool: AdapterPool
    anchor: Tensor
    """[N, P] fp32: the agreed values."""
    version: int
    """Rounds committed, as far as the rule needs to know."""

    def adopt(self, anchor: Tensor) -> None:
        """Take over the fleet's anchors ([N, P], fp32): the live parameters become equal to them."""

    def collect(self, tokens: int, lr: float, adapters: Sequence[int] = ()) -> None:
        """Buffer a step of these adapters (empty: all) on `tokens` supervised tokens; `lr` is its learning rate.

        `lr` is its learning rate.
        """

    def overdue(self, adapters: Sequence[int]) -> list[tuple[int, int, int]]:
        """Drop what is too old to be shipped. Returns (adapter, tokens, steps) of each dropped part."""

    def snapshot(self, adapters: Sequence[int]) -> Snapshot:
        """Return a copy of what is buffered for these adapters. It stays buffered until `commit`."""

    @property
    def lr(self) -> float:
        """The learning rate of the newest step."""

    def shares(self, headers: Header) -> Floats:
        """Return what each member's part is multiplied with: [members, K] fp32, from [members, ROWS, K]."""

    def combine(self, pooled: Pooled) -> Combined:
        """What a round's parts amount to; applies nothing."""

    def withhold(self, adapters: Sequence[int]) -> None:
        """Take these adapters' buffers out of the round that is under way, even if they were copied for it."""

    def commit(self, combined: Combined) -> None:
        """Apply a committed round to the anchors, and take out of the buffer what was shipped."""

    def apply_rounds(self) -> None:
        """Apply the committed rounds to the live parameters. Training thread, between two steps."""

    def residuals(self) -> Tensors:
        """Return a copy of the residuals: what coding has lost of our contributions, for the next ones to make up
        for."""

    def restore_residuals(self, tensors: Tensors) -> None:
        """Replace the residuals by these."""


def take(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Return these rows of a matrix: a view when they are adjacent, as round-robin's are, else a copy."""
    first = rows[0]
    side_by_side = list(rows) == list(range(first, first + len(rows)))
    return values[first : first + len(rows)] if side_by_side else values[list(rows)]


def sha256(*values: Tensor, also: bytes = b"") -> str:
    """Return the digest of these tensors' bytes, one after the other, and of what else there is."""
    digest = hashlib.sha256(also)
    for value in values:
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()
