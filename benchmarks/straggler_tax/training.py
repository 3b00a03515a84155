"""What the rounds of the synchronous arms do to a real model: losses at equal data order, without a clock.

The same rounds give the same losses whatever they take, so that scenarios share them (`Course` remembers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from clocks import Round
from torch import Tensor
from virtual import Lab

from tsugi_cli.finetune.evaluate import supervised_loss
from tsugi_cli.finetune.story import optimizer_factory
from tsugi_cli.spec import RunSpec
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
    optimizers = [optimizer_factory(spec.train)(trained(model)) for model in models]
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


class Course:
    """Losses after rounds of one seed and learning rate. Equal rounds are trained once."""

    def __init__(self, spec: RunSpec, lab: Lab, every: int) -> None:
        self._spec, self._lab, self._every = spec, lab, every
        self._known: dict[tuple[Rule, tuple[tuple[int, ...], ...]], dict[int, float]] = {}

    def losses(self, rule: Rule, rounds: Sequence[Round]) -> dict[int, float]:
        """Eval loss by samples trained on: at the first round's end after each `every` samples, and at the end."""
        totals = tuple((sum(each.counts),) for each in rounds)
        counts = totals if rule is one_step else tuple(each.counts for each in rounds)
        if (rule, counts) not in self._known:
            self._known[rule, counts] = self._train(rule, counts)
        return self._known[rule, counts]

    def _train(self, rule: Rule, rounds: Sequence[tuple[int, ...]]) -> dict[int, float]:
        losses, done, due = {}, 0, self._every
        for counts, model in zip(rounds, rule(self._spec, self._lab, rounds), strict=True):
            done += sum(counts)
            if done >= due or done == self._lab.batches.total:
                losses[done] = self._lab.loss(model)
                due = done + self._every
        return losses
