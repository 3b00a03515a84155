"""What the forward passes of a training loop have seen between two steps: samples, supervised tokens, losses."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

IGNORED_LABEL = -100
"""A label that carries no loss, as in transformers."""


class SeenBatches:
    """What the forward passes since the last step have seen. Sums stay on the device until they are asked for."""

    def __init__(self) -> None:
        self._tokens: list[Tensor | int] = []
        self._losses: list[Tensor] = []
        self.samples = self.worked = 0
        self.started_s: float | None = None

    def see(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pass of training begins."""
        if self.started_s is None:
            self.started_s = time.monotonic()
        batch = _batch(args, kwargs)
        if batch is not None:
            self._tokens.append(_supervised(batch, kwargs))
            self.worked += batch.numel()
            self.samples += batch.shape[0] if batch.dim() > 1 else 1

    def see_output(self, output: Any) -> None:
        """It has ended."""
        loss = getattr(output, "loss", None)
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach())

    @property
    def empty(self) -> bool:
        """Whether there was no pass."""
        return self.started_s is None

    def tokens(self) -> int:
        """Supervised tokens."""
        return int(sum(int(count) for count in self._tokens))

    def loss(self) -> float:
        """Mean of the passes' losses; 0 when the model computes none."""
        return sum(float(loss) for loss in self._losses) / len(self._losses) if self._losses else 0.0

    def newest_loss(self) -> float:
        """The last pass's loss; 0 when the model computes none."""
        return float(self._losses[-1]) if self._losses else 0.0

    def seconds(self) -> float:
        """Since the first of these passes began."""
        return 0.0 if self.started_s is None else time.monotonic() - self.started_s


def _batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The batch's tensor with one row for each sample."""
    named = [kwargs.get(name) for name in ("labels", "input_ids")]
    return next((each for each in (*named, *args) if isinstance(each, Tensor)), None)


def _supervised(batch: Tensor, kwargs: dict[str, Any]) -> Tensor | int:
    """Tokens that carry loss: the labels that are predicted; without labels, the input that is attended to."""
    labels, mask = kwargs.get("labels"), kwargs.get("attention_mask")
    if isinstance(labels, Tensor):
        return (labels[..., 1:] != IGNORED_LABEL).sum()
    if isinstance(mask, Tensor) and mask.shape == batch.shape:
        return mask.sum()
    return batch.numel()
