"""The peers' strategies: how each turns a step into agreed parameters. Everything else is the same for all.

`ddp` is torch's DistributedDataParallel and `local_sgd` accelerate's LocalSGD, both used as their users do. `diloco`
is implemented here: Douillard et al. 2023 (arXiv 2311.08105), algorithm 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tsugi_cli.finetune.objectives import supervised_loss
from tsugi_cli.finetune.pace import StepPacing
from tsugi_cli.finetune.tokens import Batch

from .ddp import wrapped

OUTER_LR, OUTER_MOMENTUM = 0.7, 0.9
"""DiLoCo's best outer settings (section 3.1 of the paper)."""


class Strategy(ABC):
    """How one replica trains.

    Args:
        model: A PEFT model; only its LoRA trains.
        optimizer: AdamW over the LoRA.
        pace: Pads every step to the emulated device's time.
        clip: Largest gradient norm.
        every: Steps between two averages, where a method has them.
    """

    agreed = True
    """Whether all replicas hold the same parameters now."""
    own_steps = False
    """Whether replicas take their own steps and these are averaged, rather than their gradients."""

    def __init__(self, model: nn.Module, optimizer: Any, pace: StepPacing, clip: float, every: int) -> None:
        self.model, self.optimizer, self._pace, self._clip, self._every = model, optimizer, pace, clip, every
        self.parameters = [each for each in model.parameters() if each.requires_grad]
        self._steps = 0

    @abstractmethod
    def step(self, batch: Batch, share: float) -> None:
        """Train on a batch; `share` is its part of the step's supervised tokens, times the number of replicas."""

    def close(self) -> None:  # noqa: B027  (many have nothing to do)
        """Make all replicas' parameters equal, after the last step."""

    def _own_step(self, batch: Batch, model: nn.Module) -> None:
        """Forward, backward, and an optimizer step of this replica alone."""
        supervised_loss(model, batch).backward()
        self._pace.slow_down()
        self._update()

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, self._clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._steps += 1


class Ddp(Strategy):
    """DDP: one optimizer step on the mean gradient of all replicas."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._wrapped = wrapped(self.model, self._pace.slow_down)

    def step(self, batch: Batch, share: float) -> None:
        (supervised_loss(self._wrapped, batch) * share).backward()
        self._update()


class LocalSgd(Strategy):
    """Local SGD: own steps, and now and then the mean of all parameters (accelerate averages frozen ones, too)."""

    own_steps = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        from accelerate import Accelerator
        from accelerate.local_sgd import LocalSGD

        accelerator = Accelerator(cpu=True)
        self._wrapped, self.optimizer = accelerator.prepare(self.model, self.optimizer)
        self._averaging = LocalSGD(accelerator=accelerator, model=self._wrapped, local_sgd_steps=self._every)
        self._open = ExitStack()
        self._open.enter_context(self._averaging)

    def step(self, batch: Batch, share: float) -> None:  # noqa: ARG002
        self._own_step(batch, self._wrapped)
        self._averaging.step()
        self.agreed = self._steps % self._every == 0

    def close(self) -> None:
        self._open.close()
        self.agreed = True


class DiLoCo(Strategy):
    """DiLoCo: own steps of AdamW, and now and then a Nesterov step on the mean of their changes."""

    own_steps = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._outer_parameters = [each.detach().clone().requires_grad_() for each in self.parameters]
        self._outer = torch.optim.SGD(self._outer_parameters, lr=OUTER_LR, momentum=OUTER_MOMENTUM, nesterov=True)

    def step(self, batch: Batch, share: float) -> None:  # noqa: ARG002
        self._own_step(batch, self.model)
        self.agreed = self._steps % self._every == 0
        if self.agreed:
            self._outer_step()

    def close(self) -> None:
        if not self.agreed:
            self._outer_step()
            self.agreed = True

    @torch.no_grad()
    def _outer_step(self) -> None:
        changes = [outer - own for outer, own in zip(self._outer_parameters, self.parameters, strict=True)]
        flat = torch.cat([change.flatten() for change in changes])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for outer, change in zip(self._outer_parameters, flat.split([c.numel() for c in changes]), strict=True):
            outer.grad = change.view_as(outer)
        self._outer.step()
        for outer, own in zip(self._outer_parameters, self.parameters, strict=True):
            own.copy_(outer)


STRATEGIES: dict[str, type[Strategy]] = {
    "ddp": Ddp,
    "drop_slowest": Ddp,
    "local_sgd": LocalSgd,
    "diloco": DiLoCo,
}
