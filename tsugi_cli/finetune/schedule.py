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
from tsugi_cli.config.training import DECAY

FIRST = 0.01
"""Where warm-up begins, as a share of the run before its start: the first step has a learning rate above 0."""


SCALE_LR, SCALE_DECAY = "scale_lr", "scale_decay"
"""What a group of parameters has as a share of everybody's rate and decay; without such a word all of it."""
FINAL_LR = {"cosine_with_min_lr": 0.1}
"""Where a scheduler ends when nobody says, as a share of the highest rate; the others end at 0, as usual."""


class Schedule:
    """Linear warm-up, then what `train.scheduler` says, over the supervised tokens of a run.

    Args:
        train: The run's settings.
        tokens: Supervised tokens of the sample at each position of the data order; positive.
        replicas: How many train.
    """

    def __init__(self, train: Train, tokens: Sequence[int], replicas: int) -> None:
        self._train = train
        self._before = list(accumulate(tokens, initial=0))
        self.step_tokens = self._before[-1] / max(1.0, len(tokens) / train.step_samples)
        """Of a mean step."""
        self.round_tokens = self.step_tokens * replicas
        """Of a round of one mean step from every replica."""
        self._warmup = self._share(train.warmup)
        self._decay = self._share(DECAY if train.decay is None else train.decay)
        self._final = FINAL_LR.get(train.scheduler, 0.0) if train.final_lr is None else train.final_lr

    def done(self, position: int) -> float:
        """Share of the run's tokens (0 to 1) that stands before this position."""
        return self._before[position] / self._before[-1]

    def tokens(self, start: int, stop: int) -> int:
        """Supervised tokens at the positions [start, stop)."""
        return self._before[stop] - self._before[start]

    def lr(self, position: int) -> float:
        """Learning rate of a step that begins at this position."""
        done = self.done(position)
        if done < self._warmup:
            return self._train.lr * (done + FIRST) / (self._warmup + FIRST)
        height = self._height(min(1.0, (done - self._warmup) / max(1e-9, 1.0 - self._warmup)), done)
        return self._train.lr * (self._final + (1 - self._final) * height)

    def _height(self, rest: float, done: float) -> float:
        """How far above its end the learning rate is: 1 at the top, 0 at the end.

        Args:
            rest: Share of what follows the warm-up.
            done: Share of the run.
        """
        scheduler = self._train.scheduler
        if scheduler == "constant":
            return 1.0
        if scheduler == "linear":
            return 1.0 - rest
        if scheduler == "wsd":
            rest = min(1.0, max(0.0, done - (1.0 - self._decay)) / self._decay)
        return (1 + math.cos(math.pi * rest)) / 2

    def _share(self, part: float) -> float:
        """Of the run: `part` is that, or from 1 on a number of mean steps of the fleet."""
        return part if part < 1 else min(1.0, part * self.step_tokens / self._before[-1])

    def decay(self, tokens: int) -> float:
        """Weight decay of a step on so many tokens: train.weight_decay on a mean one, in proportion on others.

        Otherwise a replica with smaller micro-batches would decay its adapters more for the same data.
        """
        return self._train.weight_decay * tokens / self.step_tokens

    def set_lr(self, optimizer: Any, position: int) -> float:
        """Give the optimizer this position's learning rate, and return it."""
        lr = self.lr(position)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get(SCALE_LR, 1.0)
        return lr

    def set_decay(self, optimizer: Any, tokens: int) -> None:
        """Give the optimizer the weight decay of the step that it is about to take."""
        for group in optimizer.param_groups:
            group["weight_decay"] = self.decay(tokens) * group.get(SCALE_DECAY, 1.0)
