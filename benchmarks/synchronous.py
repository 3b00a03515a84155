"""Synchronous training to compare with: PEFT and AdamW on the data, tokens, loss and schedule of `tsugi finetune`.

For programs that torchrun starts (engine/ddp.py, llama3_8b_lora/sync.py). The LoRA has the pool's total rank. In a
step every replica takes the next micro-batch of the data order; the gradient is that of the mean over all their
supervised tokens, clipped as a whole. Where `fault.*` slows a replica down, its gradients are ready that much later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from tsugi_cli.bench.compare.ddp import wrapped
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.evaluate import Evaluator
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load
from tsugi_cli.finetune.objectives import supervised_loss
from tsugi_cli.finetune.optimizers import optimizer_factory
from tsugi_cli.finetune.pace import StepPacing
from tsugi_cli.finetune.ready import opened
from tsugi_cli.finetune.story import LeasedBatches
from tsugi_kpool.core.messages import Lease


@dataclass(frozen=True)
class Place:
    """This rank: a worker of a replica, as batches and evaluation see it."""

    worker: int
    workers: int
    replica: int
    device: torch.device

    @property
    def backend(self) -> str:
        """NCCL needs a GPU for every rank of a machine; ranks that share one take gloo."""
        alone = int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
        return "nccl" if self.device.type == "cuda" and alone else "gloo"


class Step(NamedTuple):
    """A step of the whole fleet."""

    ended_s: float
    """By this rank's monotonic clock."""
    samples: int
    tokens: int
    loss: float
    """Mean per token."""


Spread = Callable[[Any, RunSpec, Place, StepPacing], nn.Module]
"""How a model is spread over all ranks."""


def place_of(spec: RunSpec) -> Place:
    """Where torchrun has put us.

    Raises:
        SystemExit: the number of ranks is not that of the fleet's workers.
    """
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    workers = spec.topology.workers
    if world != spec.topology.replicas * workers:
        raise SystemExit(f"{world} ranks for {spec.topology.replicas} replicas of {workers} workers")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return Place(rank % workers, workers, rank // workers, device)


def copies(model: Any, spec: RunSpec, place: Place, pace: StepPacing) -> nn.Module:  # noqa: ARG001
    """A copy on every rank, by DDP."""

    def ready() -> None:
        if place.device.type == "cuda":
            torch.cuda.synchronize(place.device)
        pace.slow_down()

    return wrapped(model.to(place.device), ready)


class Synchronous:
    """This rank's part of a run. All ranks do the same, in the same order.

    Args:
        spec: The run.
        place: This rank.
        spread: How its model is spread.
    """

    def __init__(self, spec: RunSpec, place: Place, spread: Spread = copies) -> None:
        torch.manual_seed(spec.seed)
        data = opened(spec)
        base, tokenizer = load(spec.model)
        self._spec, self._place, self._pace = spec, place, StepPacing(spec.fault, place.replica)
        self._model = add_pool(base, spec.lora).train()
        self._forward = spread(self._model, spec, place, self._pace)
        self._batches = LeasedBatches(spec, data, tokenizer, place, place.device)
        self._evaluator = Evaluator(spec, data, tokenizer, place.replica, place, place.device)
        self.left_over = self._batches.total % (spec.train.step_samples * spec.topology.replicas)
        """Samples at the end that fill no whole step: nobody trains on them."""

    def train(self) -> list[Step]:
        """All whole steps of the run; the same figures on all ranks, but for the times."""
        spec, batches = self._spec, self._batches
        size, together = spec.train.step_samples, spec.train.step_samples * spec.topology.replicas
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        optimizer = optimizer_factory(spec.train)(parameters)
        ended_s, own = [], []
        for start in range(0, batches.total - together + 1, together):
            mine = start + self._place.replica * size
            ((_, batch),) = batches.of(Lease(ticket=0, start=mine, stop=mine + size))
            self._pace.start()
            batches.schedule.set_lr(optimizer, start)
            tokens = batches.schedule.tokens(start, start + together)
            loss = supervised_loss(self._forward, batch)
            (loss * (batch.tokens * dist.get_world_size() / tokens)).backward()  # the mean over ranks is taken of it
            torch.nn.utils.clip_grad_norm_(parameters, spec.train.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            own.append((float(loss.detach()) * batch.tokens, batch.tokens))
            ended_s.append(time.monotonic())
        sums = self._summed(own)
        return [
            Step(at_s, together, int(count), float(total / count))
            for at_s, (total, count) in zip(ended_s, sums.tolist(), strict=True)
        ]

    def loss(self, stage: str) -> float:
        """Eval loss per supervised token, over all ranks' shares."""
        sums = self._evaluator.run(self._model, stage, stop=lambda: False).sums
        total, count = self._summed([sums.get("loss_sum", 0.0), sums.get("loss_tokens", 0.0)]).tolist()
        return float(total / count)

    def _summed(self, values: Any) -> torch.Tensor:
        sums = torch.tensor(values, dtype=torch.float64, device=self._place.device)
        dist.all_reduce(sums)
        return sums
