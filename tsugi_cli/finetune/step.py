"""One step of a replica: forward and backward of its micro-batches, whose gradients add up to that of one big batch.

Each micro-batch counts by its supervised tokens, so that cutting a step into more of them changes its gradient by
rounding only. Between the workers of a replica gradients travel once, with the last micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tsugi_kpool.engine.inside import Inside
from tsugi_kpool.engine.local_group import Whole, whole

from .objectives import SUPERVISED, Objective
from .tokens import Batch


class Backward(Protocol):
    """What makes gradients of losses."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's share."""

    def done(self) -> None:
        """The step has its last micro-batch: its gradients take their final size."""


class Plain:
    """Gradients as autograd makes them."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's share."""
        loss.backward()

    def done(self) -> None:
        """Nothing is left to do."""


PLAIN = Plain()


@dataclass(frozen=True)
class StepBatches:
    """What one step trains on: this worker's part of each of its micro-batches."""

    tokens: int
    """Supervised ones of the whole replica."""
    batches: tuple[Batch, ...]
    places: tuple[range, ...] = ()
    """Positions in the data order of each micro-batch, of all workers."""
    noise: int | None = None
    """Seed of dropout and noise in this step; None goes on with the random numbers that come next."""

    @property
    def position(self) -> int:
        """Of the first sample in the data order."""
        return self.places[0].start


@dataclass(frozen=True)
class Taken:
    """What a step has made of its micro-batches."""

    whole: Whole
    """Without those that were left out; only their samples count."""
    bad: tuple[int, ...] = ()
    """Numbers of the micro-batches that were left out, because their loss is no number."""
    as_one: bool = False
    """All of them for one, which another worker may have had."""


def gradients(
    forward: nn.Module,
    step: StepBatches,
    inside: Inside,
    objective: Objective = SUPERVISED,
    how: Backward = PLAIN,
) -> Taken:
    """Leave the gradient of the mean loss over all of the replica's tokens in the parameters. A boundary.

    A micro-batch without a finite loss is left out of it. Among several workers, who must all do the same, that is
    the whole step.

    Args:
        forward: The model, spread over the workers.
        step: Our parts.
        inside: The workers of our replica.
        objective: What is learnt.
        how: Makes gradients of losses; a scaled loss stands here.
    """
    if step.noise is not None:
        torch.manual_seed(step.noise)
    losses = []
    for number, batch in enumerate(step.batches):
        # DDP and FSDP average over workers as equals: so many times the share is the sum of shares.
        share = inside.workers * batch.tokens / step.tokens
        with _gradients_stay(forward, last=number == len(step.batches) - 1):
            loss = objective.loss(forward, batch)
            losses.append(float(loss.detach()) if batch.tokens else 0.0)
            if inside.workers > 1 or math.isfinite(losses[-1]):
                how.backward(loss * share)
    how.done()
    return _told(forward, step, losses, inside)


def _told(forward: nn.Module, step: StepBatches, losses: Sequence[float], inside: Inside) -> Taken:
    good = [number for number, loss in enumerate(losses) if math.isfinite(loss)]
    if inside.workers > 1:
        good = list(range(len(losses)))  # together they see what one of them has: the sum of losses is no number then
    tokens = sum(step.batches[number].tokens for number in good)
    loss_sum = sum(losses[number] * step.batches[number].tokens for number in good)
    samples, worked = (sum(getattr(batch, name) for batch in step.batches) for name in ("samples", "worked"))
    together = whole(inside, tokens, samples, loss_sum / tokens if tokens else 0.0, worked)
    if not math.isfinite(together.loss):
        forward.zero_grad(set_to_none=True)
        return Taken(replace(together, tokens=0), tuple(range(len(losses))), as_one=True)
    bad = tuple(sorted(set(range(len(losses))) - set(good)))
    if bad and tokens:
        _grow(forward, step.tokens / tokens)
    return Taken(together if tokens or not bad else replace(together, loss=math.nan), bad)


def _grow(forward: nn.Module, factor: float) -> None:
    """The mean is over fewer tokens than each share was taken of."""
    for parameter in forward.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def _gradients_stay(forward: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Until the last micro-batch nothing travels between DDP's workers. Shards travel each time."""
    if last or not isinstance(forward, DistributedDataParallel):
        return nullcontext()
    return forward.no_sync()
