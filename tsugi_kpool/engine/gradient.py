"""The gradient mode: a round is one optimizer step that every replica takes with the same mean gradient.

Nothing is applied before a round is committed; the live parameters equal the anchors of the version last taken in.
What is buffered for an adapter are gradients of *summed* token losses (mean-loss gradient times supervised tokens),
as a FIFO with one segment for every version that they were computed on. When a round is committed,

    G       = sum over members of their sums / sum of their tokens       on every replica the same bits
    G      *= min(1, grad_clip / |G|)                                    norm over the selected adapters
    anchor  = optimizer.step(anchor, G)                                  moments per adapter; others do not move
    live    = anchor                                                     at the next `apply_rounds`

With every adapter in every round and nothing in flight meanwhile this is large-batch training on the union of the
micro-batches, exactly (tests/engine/test_gradient_mode.py). Late gradients go into the next round unscaled; those
more than `max_staleness` versions old are dropped and counted (docs/decisions/0007).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tsugi_kpool.codec.coding import Floats
from tsugi_kpool.codec.header import TOKENS, Header
from tsugi_kpool.errors import TrainingError

from .pool import AdapterPool
from .state import Tensors, restore
from .update import Combined, Pooled, Snapshot, sha256, take

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Cut(NamedTuple):
    """A piece of an adapter's vector, and the group of the optimizer's settings that it has."""

    start: int
    stop: int
    group: int


@dataclass
class Segment:
    """Gradients of one adapter that were computed on one version of the parameters."""

    version: int
    total: Tensor
    """[P] fp32, on the pool's device: gradient of the summed token losses."""
    tokens: int = 0
    steps: int = 0
    norm2_sum: float = 0.0
    """Sum of the single steps' squared norms; 0 when it is not measured."""
    shipped: bool = False
    """A round has copied it. New gradients go into another segment, so that a commit can remove this one."""


class GradientUpdate:
    """Gradient sums and per-adapter optimizer state of one replica; an `UpdateRule`.

    Args:
        pool: The live adapters.
        optimizer: Makes the fleet's optimizer of N flat fp32 parameters [P], which are the anchors themselves; None
            when that is not known yet (see `equip`).
        grad_clip: Largest norm of the mean gradient of a round; None does not clip.
        max_staleness: Versions that a gradient may be older than the parameters it is applied to.
        measure_noise: Keep Q (the sum of squared norms of single steps' gradients).
        decay_tokens: Tokens of a round that decays weights as the optimizer says; a round of more or fewer decays in
            proportion. None: every round decays alike.
    """

    def __init__(
        self,
        pool: AdapterPool,
        optimizer: OptimizerFactory | None,
        grad_clip: float | None,
        max_staleness: int,
        measure_noise: bool = False,
        decay_tokens: float | None = None,
    ) -> None:
        self.pool = pool
        self.anchor = pool.read(range(pool.n))
        self.lr = 0.0
        self.flat = [nn.Parameter(row) for row in self.anchor]
        """Views of the anchors' rows: the optimizer steps the anchors themselves."""
        self._pieces = [[flat] for flat in self.flat]
        """What the optimizer steps: the rows, or pieces of them, where its groups have different settings."""
        self._cuts: tuple[Cut, ...] = ()
        self._scales: tuple[float, ...] = (1.0,)
        self._inherited: Tensors = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self._decay_tokens = decay_tokens
        self._decays: list[float] = []
        self.version = 0
        """Rounds committed."""
        self.staleness: dict[int, int] = {}
        """How many versions late -> own tokens shipped that late, summed over adapters."""
        self._grad_clip, self._max_staleness, self._measure = grad_clip, max_staleness, measure_noise
        self._live_version = 0
        self._unapplied: set[int] = set()
        self._segments: list[list[Segment]] = [[] for _ in self.flat]
        self._lost: dict[int, Tensor] = {}
        if optimizer is not None:
            self.equip(optimizer)

    def equip(self, optimizer: OptimizerFactory) -> None:
        """Make the fleet's optimizer. No round may be committed before that."""
        self._cuts = tuple(getattr(optimizer, "cuts", ())) or (Cut(0, self.pool.size, 0),)
        self._scales = getattr(optimizer, "scales", (1.0,))
        if len(self._cuts) > 1:
            self._pieces = [[nn.Parameter(row[cut.start : cut.stop]) for cut in self._cuts] for row in self.anchor]
        self.optimizer = optimizer([piece for pieces in self._pieces for piece in pieces])
        restore(self.optimizer, self._inherited)
        if self._decay_tokens is not None:
            self._decays = _one_group_each(self.optimizer, self.flat)

    def inherit(self, moments: Tensors) -> None:
        """Take over the moments of the fleet's optimizer, now or as soon as there is one."""
        self._inherited = moments
        if self.optimizer is not None:
            self.optimizer.state.clear()
            restore(self.optimizer, moments)

    def adopt(self, anchor: Tensor) -> None:
        """Take over these anchors. Whatever is buffered was computed on others (at a fleet's start there is
        nothing)."""
        # Whoever has these anchors already still has residuals for the fleet.
        if not torch.equal(self.anchor, anchor):
            self._lost.clear()
        self.anchor.copy_(anchor)
        self.pool.write(self.anchor)
        self._live_version = self.version
        self._unapplied.clear()
        for segments in self._segments:
            segments.clear()

    def collect(self, tokens: int, lr: float, adapters: Sequence[int] = ()) -> None:
        """Add the gradients in the live parameters' `grad` to the newest segments."""
        self.lr = lr
        sums = self.pool.gradients().mul_(tokens)
        for adapter in adapters or range(self.pool.n):
            segments, values = self._segments[adapter], sums[adapter]
            if not segments or segments[-1].shipped or segments[-1].version != self._live_version:
                segments.append(Segment(self._live_version, torch.zeros_like(values)))
            newest = segments[-1]
            newest.total += values
            newest.tokens += tokens
            newest.steps += 1
            if self._measure:
                newest.norm2_sum += float(values.double().square().sum())

    def overdue(self, adapters: Sequence[int]) -> list[tuple[int, int, int]]:
        dropped = []
        for adapter in adapters:
            kept = []
            for segment in self._segments[adapter]:
                if self.version - segment.version > self._max_staleness:
                    dropped.append((adapter, segment.tokens, segment.steps))
                else:
                    kept.append(segment)
            self._segments[adapter] = kept
        return dropped

    def snapshot(self, adapters: Sequence[int]) -> Snapshot:
        norm2_sum = torch.zeros(len(adapters), dtype=torch.float64)
        lost: Tensor | None = None
        for row, adapter in enumerate(adapters):
            for segment in self._segments[adapter]:
                segment.shipped = True
                norm2_sum[row] += segment.norm2_sum
            if self._segments[adapter] and adapter in self._lost:
                lost = torch.zeros(len(adapters), self.pool.size) if lost is None else lost
                lost[row] = self._lost[adapter]
        return Snapshot(self.pool.transfers.to_host(lambda: self._sums(adapters)), norm2_sum, plus=lost)

    def _sums(self, adapters: Sequence[int]) -> Tensor:
        sums = torch.zeros(len(adapters), self.pool.size, device=self.pool.device)
        for row, adapter in zip(sums, adapters, strict=True):
            for segment in self._segments[adapter]:
                row += segment.total
        return sums

    def withhold(self, adapters: Sequence[int]) -> None:
        for adapter in adapters:
            for segment in self._segments[adapter]:
                segment.shipped = False

    def shares(self, headers: Header) -> Floats:
        """Return one for each member and token: its part is a sum already."""
        tokens = headers[:, TOKENS]
        each = 1.0 / np.maximum(tokens.sum(axis=0), 1.0)
        return np.broadcast_to(each, tokens.shape).astype(np.float32)

    def combine(self, pooled: Pooled) -> Combined:
        """Return the mean gradient of all tokens, clipped. Its digest also covers the anchors that the step starts
        from.

        The step is taken after the agreement, so its result can only be compared one round later. If two machines
        ever round a step differently, the next round of that adapter has two digests and is refused.
        """
        total, mean = pooled.tokens.sum(dim=0), pooled.mean
        norms = tuple(mean.norm(dim=1).tolist())
        self._clip(mean)
        lr = torch.tensor([pooled.lr], dtype=torch.float64)
        digest = sha256(mean, lr, take(self.anchor, pooled.adapters))
        tokens = tuple(int(each) for each in total.tolist())
        own = None if pooled.sent is pooled.shipped else pooled.shipped - pooled.sent
        return Combined(pooled.adapters, mean, own, digest, pooled.lr, norms, tokens)

    def commit(self, combined: Combined) -> None:
        """Take the fleet's optimizer step, and keep what coding has lost of our part for the next shipment."""
        if self.optimizer is None:
            raise RuntimeError("a round was committed before there was an optimizer")
        for row, adapter in enumerate(combined.adapters):
            # Before `version` counts up: how late a segment is, is counted against the version that the round was
            # combined on.
            self._take_out(adapter, None if combined.own is None else combined.own[row])
            if combined.weighted[row]:
                # The others keep grad=None: with a gradient of zero AdamW would still move them.
                for piece, cut in zip(self._pieces[adapter], self._cuts, strict=True):
                    piece.grad = combined.agreed[row, cut.start : cut.stop]
        for number, group in enumerate(self.optimizer.param_groups):
            group["lr"] = combined.lr * (self._scales[number] if len(self._scales) > 1 else 1.0)
        self._set_decay(self.optimizer, combined)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.version += 1
        self._unapplied.update(combined.adapters)

    def _set_decay(self, optimizer: torch.optim.Optimizer, combined: Combined) -> None:
        """Scale each adapter's weight decay by the tokens that the round brings it."""
        if self._decay_tokens is None:
            return
        for adapter, tokens in zip(combined.adapters, combined.tokens, strict=True):
            share = tokens / self._decay_tokens
            optimizer.param_groups[adapter]["weight_decay"] = self._decays[adapter] * share

    def apply_rounds(self) -> None:
        rows = sorted(self._unapplied)
        if rows:
            self.pool.write(take(self.anchor, rows), rows)
        self._unapplied.clear()
        self._live_version = self.version

    def residuals(self) -> Tensors:
        return {str(adapter): values.clone() for adapter, values in self._lost.items()}

    def restore_residuals(self, tensors: Tensors) -> None:
        self._lost = {int(name): values for name, values in tensors.items() if values.shape == (self.pool.size,)}

    def _take_out(self, adapter: int, lost: Tensor | None) -> None:
        shipped = [segment for segment in self._segments[adapter] if segment.shipped]
        self._segments[adapter] = [segment for segment in self._segments[adapter] if not segment.shipped]
        for segment in shipped:
            late = self.version - segment.version
            self.staleness[late] = self.staleness.get(late, 0) + segment.tokens
        if not any(segment.tokens for segment in shipped):
            return  # nothing of ours was in the round, what an earlier one has lost neither
        self._lost.pop(adapter, None)
        if lost is not None and bool(lost.any()):
            self._lost[adapter] = lost.clone()

    def _clip(self, mean: Tensor) -> None:
        """Clip as torch's clip_grad_norm_ does, but with the same bits on every machine."""
        if self._grad_clip is None:
            return
        norm = math.sqrt(sum_of_squares(mean))
        if not math.isfinite(norm):
            raise TrainingError("the mean gradient of a round is not a number: lower train.lr, or look at the data")
        mean.mul_(min(1.0, self._grad_clip / (norm + 1e-6)))


def _one_group_each(optimizer: torch.optim.Optimizer, flat: list[nn.Parameter]) -> list[float]:
    """Give every adapter its own parameter group, so that it has its own weight decay; returns the optimizer's
    decays."""
    group_of = {id(each): group for group in optimizer.param_groups for each in group["params"]}
    optimizer.param_groups = [{**group_of[id(each)], "params": [each]} for each in flat]
    return [float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups]


def sum_of_squares(values: Tensor) -> float:
    """Return the sum of squares in float64, by halves: only elementwise sums, whose order no machine or thread count
    changes."""
    rest = values.reshape(-1).double().square_()
    while rest.numel() > 1:
        half = rest.numel() // 2
        rest = torch.cat([rest[:half] + rest[half : 2 * half], rest[2 * half :]])
    return float(rest.sum())
