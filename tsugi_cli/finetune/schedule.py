"""Learning rate and weight decay by tokens: what the fleet has consumed, not samples and not a replica's own steps.

No torch here. A replica knows the tokens of every sample of the run, so a position of the data order says how many
the fleet has been handed before it, whoever trains on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from tsugi_cli.config.spec import Train

FIRST = 0.01
"""Where warm-up begins, as a share of the run before its start: the first step has a learning rate above 0."""


class Schedule:
    """Linear warm-up, then cosine decay, over the supervised tokens of a run.

    Args:
        train: The run's settings.
        tokens: Supervised tokens of the sample at each position of the data order; positive.
        replicas: How many train.
        averaged: Every replica steps on gradients of its own, and their changes are averaged (local mode).
    """

    def __init__(self, train: Train, tokens: Sequence[int], replicas: int, averaged: bool = False) -> None:
        self._train = train
        # AdamW divides by the size of what it sees. Noise is sqrt(R) times as large in one replica's gradient as in
        # the mean of R; so much shorter is the mean of their steps than a step on the mean (docs/figures.md).
        self._top = train.lr * (math.sqrt(replicas) if averaged and train.scale_lr else 1.0)
        self._before = list(accumulate(tokens, initial=0))
        self.step_tokens = self._before[-1] / max(1.0, len(tokens) / train.step_samples)
        """Of a mean step."""
        self.round_tokens = self.step_tokens * replicas
        """Of a round of one mean step from every replica."""

    def done(self, position: int) -> float:
        """Share of the run's tokens (0 to 1) that stands before this position."""
        return self._before[position] / self._before[-1]

    def tokens(self, start: int, stop: int) -> int:
        """Supervised tokens at the positions [start, stop)."""
        return self._before[stop] - self._before[start]

    def lr(self, position: int) -> float:
        """Learning rate of a step that begins at this position."""
        train, done = self._train, self.done(position)
        if done < train.warmup:
            return self._top * (done + FIRST) / (train.warmup + FIRST)
        rest = min(1.0, (done - train.warmup) / max(1e-9, 1.0 - train.warmup))
        return self._top * (train.final_lr + (1 - train.final_lr) * (1 + math.cos(math.pi * rest)) / 2)

    def decay(self, tokens: int) -> float:
        """Weight decay of a step on so many tokens: train.weight_decay on a mean one, in proportion on others.

        Otherwise a replica with smaller micro-batches would decay its adapters more for the same data.
        """
        return self._train.weight_decay * tokens / self.step_tokens

    def set_lr(self, optimizer: Any, position: int) -> float:
        """Give the optimizer this position's learning rate, and return it."""
        lr = self.lr(position)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return lr

    def set_decay(self, optimizer: Any, tokens: int) -> None:
        """Give the optimizer the weight decay of the step that it is about to take."""
        for group in optimizer.param_groups:
            group["weight_decay"] = self.decay(tokens)
