"""How a training loop that knows nothing of us is followed: hooks on the optimizers' steps and the model's forward.

A step of any optimizer that holds parameters of the pool is a micro-step: its change enters the buffer, with the
supervised tokens of all forward passes since the step before as its weight, and committed rounds are landed
right after it. Skipped steps (a gradient scaler's overflow) call no hook, so they are none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from .core.settings import SelectAt
from .engine.active import Frozen
from .engine.engine import KPoolEngine
from .errors import ConfigError

IGNORED_LABEL = -100
"""A label that carries no loss, as in transformers."""
WRAPPED_BY_DDP = (
    "the model is wrapped in DistributedDataParallel over {world} processes, which averages every gradient at every "
    "step and waits for the slowest; call plesio_init before anything makes the Accelerator (docs/library.md)"
)
UNSEEN = "an optimizer steps the pool's parameters, but the model that plesio_init was given was never called"


class Batches:
    """What the forward passes since the last step have seen. Sums stay on the device until they are asked for."""

    def __init__(self) -> None:
        self._tokens: list[Tensor | int] = []
        self._losses: list[Tensor] = []
        self.samples = 0
        self.started_s: float | None = None

    def see(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pass of training begins."""
        if self.started_s is None:
            self.started_s = time.monotonic()
        batch = _batch(args, kwargs)
        if batch is not None:
            self._tokens.append(_supervised(batch, kwargs))
            self.samples += batch.shape[0] if batch.dim() > 1 else 1

    def see_output(self, output: Any) -> None:
        """It has ended."""
        loss = getattr(output, "loss", None)
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach())

    def tokens(self) -> int:
        """Supervised tokens."""
        return int(sum(int(count) for count in self._tokens))

    def loss(self) -> float:
        """Mean of the passes' losses; 0 when the model computes none."""
        return sum(float(loss) for loss in self._losses) / len(self._losses) if self._losses else 0.0

    def seconds(self) -> float:
        """Since the first of these passes began."""
        return 0.0 if self.started_s is None else time.monotonic() - self.started_s


class Hooks:
    """Feeds an engine from hooks until `remove`.

    Args:
        model: The module that the training loop calls.
        engine: A joined engine whose pool lies in the model.
    """

    def __init__(self, model: nn.Module, engine: KPoolEngine) -> None:
        self._engine = engine
        self._mine = frozenset(id(parameter) for parameter in engine.pool.parameters())
        self._batches = Batches()
        self._stepping = self._own_closure = self._seen = False
        training_some = engine.settings.select_at is SelectAt.TRAIN
        self._frozen = Frozen(engine.pool, lambda: engine.active) if training_some else None
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
            model.register_forward_pre_hook(_only(model, self._before_forward), with_kwargs=True),
            model.register_forward_hook(_only(model, self._after_forward)),
        ]

    def remove(self) -> None:
        """Follow nothing any more."""
        for handle in self._handles:
            handle.remove()
        if self._frozen is not None:
            self._frozen.remove()
        self._drop_failed_step()

    def _before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._own_closure:
            self._drop_failed_step()
        # Not model.training: from_pretrained gives a model in evaluation mode, and nothing says that a loop must
        # change that.
        if torch.is_grad_enabled():
            _refuse_ddp()
            self._seen = True
            self._batches.see(args, kwargs)

    def _after_forward(self, _args: tuple[Any, ...], output: Any) -> None:
        if torch.is_grad_enabled():
            self._batches.see_output(output)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> None:
        if self._concerns(optimizer):
            self._drop_failed_step()
            self._engine.open_step()
            self._stepping = True
            if self._frozen is not None:
                self._frozen.save(optimizer)
            self._own_closure = any(callable(each) for each in (*args[1:], *kwargs.values()))

    def _after_step(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[Any, Any]) -> None:
        if not self._stepping or not self._concerns(optimizer):
            return
        batches, self._batches = self._batches, Batches()
        tokens = batches.tokens()
        self._stepping = self._own_closure = False
        if self._frozen is not None:
            self._frozen.restore(optimizer)
        self._engine.close_step(tokens)
        if not self._seen:
            raise ConfigError([UNSEEN])
        lr = float(optimizer.param_groups[0]["lr"])
        self._engine.report(batches.samples, tokens, batches.seconds(), batches.loss(), lr)
        self._engine.land()

    def _drop_failed_step(self) -> None:
        """torch calls no hook when a step raises, so that the buffer's lock is still ours: give it back."""
        if self._stepping:
            self._stepping = self._own_closure = False
            self._engine.drop_step()

    def _concerns(self, optimizer: Optimizer) -> bool:
        return any(id(parameter) in self._mine for parameter in _parameters(optimizer))


def _only(model: nn.Module, hook: Callable[[Any, Any], None]) -> Callable[..., None]:
    """A hook of this model alone: a deep copy of the model takes its hooks along, as the same functions."""

    def called(module: nn.Module, args: Any, other: Any) -> None:
        if module is model:
            hook(args, other)

    return called


def _parameters(optimizer: Optimizer) -> Iterable[Any]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


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


def _refuse_ddp() -> None:
    wrapper = DistributedDataParallel._get_active_ddp_module()
    if wrapper is not None and wrapper.process_group.size() > 1:
        raise ConfigError([WRAPPED_BY_DDP.format(world=wrapper.process_group.size())])
