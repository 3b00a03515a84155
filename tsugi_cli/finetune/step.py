"""One step of a replica: forward and backward of its micro-batches, whose gradients add up to that of one big batch.

Each micro-batch counts by its supervised tokens, so that cutting a step into more of them changes its gradient by
rounding only. Between the workers of a replica gradients travel once, with the last micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tsugi_kpool.engine.inside import Inside
from tsugi_kpool.engine.local_group import Whole, whole

from .evaluate import supervised_loss
from .tokens import Batch

Backward = Callable[[Tensor], None]


@dataclass(frozen=True)
class StepBatches:
    """What one step trains on: this worker's part of each of its micro-batches."""

    position: int
    """Of the first sample in the data order."""
    tokens: int
    """Supervised ones of the whole replica."""
    batches: tuple[Batch, ...]


def gradients(
    forward: nn.Module,
    step: StepBatches,
    inside: Inside,
    label_smoothing: float = 0.0,
    backward: Backward = Tensor.backward,
) -> Whole:
    """Leave the gradient of the mean loss over all of the replica's tokens in the parameters. A boundary.

    Args:
        forward: The model, spread over the workers.
        step: Our parts.
        inside: The workers of our replica.
        label_smoothing: Share of the target that is spread over the whole vocabulary.
        backward: What makes gradients of a loss.
    """
    loss_sum = 0.0
    for number, batch in enumerate(step.batches):
        # DDP and FSDP average over workers as equals: so many times the share is the sum of shares.
        share = inside.workers * batch.tokens / step.tokens
        with _gradients_stay(forward, last=number == len(step.batches) - 1):
            loss = supervised_loss(forward, batch, label_smoothing)
            backward(loss * share)
        loss_sum += float(loss.detach()) * batch.tokens if batch.tokens else 0.0
    return _told(step.batches, loss_sum, inside)


def _told(batches: Sequence[Batch], loss_sum: float, inside: Inside) -> Whole:
    tokens, samples, worked = (
        sum(getattr(batch, name) for batch in batches) for name in ("tokens", "samples", "worked")
    )
    return whole(inside, tokens, samples, loss_sum / tokens if tokens else 0.0, worked)


def _gradients_stay(forward: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Until the last micro-batch nothing travels between DDP's workers. Shards travel each time."""
    if last or not isinstance(forward, DistributedDataParallel):
        return nullcontext()
    return forward.no_sync()
