"""How synchronous methods train in virtual time: rounds that are known beforehand, on one model after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from lab import Lab
from torch import Tensor

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.objectives import supervised_loss
from tsugi_cli.finetune.optimizers import optimizer_factory
from tsugi_kpool.core.messages import Lease

Rule = Callable[[RunSpec, Lab, Iterable[tuple[int, ...]]], Iterator[Any]]
"""(run, lab, each round's samples per replica) -> the model after each round."""


def one_step(spec: RunSpec, lab: Lab, rounds: Iterable[tuple[int, ...]]) -> Iterator[Any]:
    """A round is one AdamW step on the mean gradient of all its samples."""
    model, start = lab.copy(), 0
    parameters = trained(model)
    optimizer = optimizer_factory(spec.train)(parameters)
    for counts in rounds:
        step(spec, lab, model, optimizer, start, sum(counts))
        start += sum(counts)
        yield model


def local_steps(spec: RunSpec, lab: Lab, rounds: Iterable[tuple[int, ...]]) -> Iterator[Any]:
    """In a round every replica takes its own AdamW steps; all go on from the mean, weighted by samples."""
    models = [lab.copy() for _ in range(spec.topology.replicas)]
    adamw = optimizer_factory(spec.train, len(models))
    optimizers = [adamw(trained(model)) for model in models]
    merged, start = lab.copy(), 0
    for counts in rounds:
        for model, optimizer, count in zip(models, optimizers, counts, strict=True):
            for position in range(start, start + count):
                step(spec, lab, model, optimizer, position, 1)
            start += count
        mean(trained(merged), [trained(model) for model in models], counts)
        yield merged


def step(spec: RunSpec, lab: Lab, model: Any, optimizer: torch.optim.Optimizer, start: int, count: int) -> None:
    """One optimizer step on the samples [start, start + count) of the data order."""
    ((_, batch),) = lab.batches.of(Lease(ticket=0, start=start, stop=start + count, micro_batch=count))
    lab.batches.schedule.set_lr(optimizer, start)
    supervised_loss(model, batch).backward()
    torch.nn.utils.clip_grad_norm_(trained(model), spec.train.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def trained(model: Any) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


@torch.no_grad()
def mean(merged: Sequence[Tensor], replicas: Sequence[Sequence[Tensor]], counts: Sequence[int]) -> None:
    """Set `merged` and every replica to the mean of the replicas, weighted by their samples."""
    for target, *values in zip(merged, *replicas, strict=True):
        target.zero_()
        for value, count in zip(values, counts, strict=True):
            target.add_(value, alpha=count / sum(counts))
        for value in values:
            value.copy_(target)
