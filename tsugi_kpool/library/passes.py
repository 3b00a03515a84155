"""Which forward passes a step was computed from: those whose backward pass has ended since the step before.

A pass that failed, an evaluation that nobody called `backward` on, and gradients that were thrown away are none. A
hook on a pass's output notices its backward pass, and the engine of autograd tells when that has ended well. So
nothing is kept of a pass that goes nowhere.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from tsugi_kpool.engine.shards import local

from .weighing import Weight, tensors_in

OUTPUT_DEPTH = 2
"""How deep an output is searched for tensors: its own, and those of its tuples; not the keys of a cache."""


@dataclass(eq=False)
class Pass:
    """One forward pass of training."""

    weight: Weight
    started_s: float
    loss: Tensor | None = None
    told: int | None = None
    """Tokens, when the loop has said how many they are."""
    running: bool = False
    """Its backward pass has begun."""

    @property
    def tokens(self) -> int:
        """That carry loss. Waits for the device."""
        return int(self.weight.tokens) if self.told is None else self.told


@dataclass(frozen=True)
class Trained:
    """What a step was computed from."""

    tokens: int = 0
    samples: int = 0
    worked: int = 0
    loss: float = 0.0
    """Mean of the passes' losses; 0 when the model computes none."""
    started_s: float | None = None
    """When the first of the passes began."""

    def seconds(self) -> float:
        """Since then."""
        return 0.0 if self.started_s is None else max(0.0, time.monotonic() - self.started_s)


class Passes:
    """The passes since the last step.

    Args:
        pool: The pool's parameters, whose gradients are looked at.
    """

    def __init__(self, pool: list[nn.Parameter]) -> None:
        self._pool = pool
        self._reached: list[Pass] = []
        """Their backward passes have ended."""
        self._ended: list[Pass] = []
        """Their forward passes have: what counts where no output could be followed."""
        self._newest: Pass | None = None
        self._told = 0
        """Tokens that the loop has told of no pass that was seen."""
        self._found: tuple[nn.Parameter, int, int] | None = None
        """After the newest backward pass: a parameter with a gradient, the gradient's id and version."""

    def begin(self, weight: Weight) -> None:
        """A forward pass begins."""
        self._newest = Pass(weight, time.monotonic())

    def end(self, output: Any) -> None:
        """It has ended."""
        newest = self._newest
        if newest is None:
            return
        loss = getattr(output, "loss", None)
        if isinstance(loss, Tensor) and loss.numel() == 1:
            newest.loss = loss.detach()
        self._ended.append(newest)
        for each in tensors_in(output, OUTPUT_DEPTH):
            if each.grad_fn is not None:
                each.register_hook(partial(self._backward_begins, newest))  # type: ignore[no-untyped-call, unused-ignore]

    def _backward_begins(self, which: Pass, _gradient: Tensor) -> None:
        if not which.running:
            self.settle()
            which.running = True
            Variable._execution_engine.queue_callback(partial(self._backward_has_ended, which))

    def _backward_has_ended(self, which: Pass) -> None:
        which.running = False
        if which not in self._reached:
            self._reached.append(which)
        found = next((each for each in self._pool if each.grad is not None), None)
        if found is not None and found.grad is not None:
            self._found = found, id(found.grad), found.grad._version

    def tell(self, tokens: int) -> None:
        """The loop says how many tokens its newest pass has, or, where there is none, the step."""
        if self._newest is None:
            self._told += tokens
        else:
            self._newest.told = tokens

    @property
    def any(self) -> bool:
        """Whether there was a pass."""
        return bool(self._reached or self._ended)

    @property
    def reached(self) -> bool:
        """Whether the backward pass of any has ended."""
        return bool(self._reached)

    @property
    def counted(self) -> list[Pass]:
        """The passes that a step now would be computed from."""
        return self._reached or self._ended

    def thrown_away(self) -> bool:
        """Gradients came and are gone without a step: a scaler's overflow, or a loop that thought better of it."""
        if self._found is None or not self._reached:
            return False
        parameter, which, version = self._found
        gradient = parameter.grad
        if gradient is None:
            return True
        untouched = id(gradient) == which and gradient._version == version
        return not untouched and not has_gradient(self._pool)

    def settle(self) -> None:
        """Forget the passes whose gradients have been thrown away."""
        if self.thrown_away():
            self.forget()

    def forget(self) -> None:
        """They were for nothing."""
        self._reached, self._ended, self._found, self._told = [], [], None, 0

    def newest_loss(self) -> float:
        """Of the last pass that counts; 0 when the model computes none."""
        losses = [each.loss for each in self.counted if each.loss is not None]
        return float(losses[-1]) if losses else 0.0

    def trained(self) -> Trained:
        """All that count, together."""
        passes = self.counted
        losses = [float(each.loss) for each in passes if each.loss is not None]
        return Trained(
            tokens=self._told + sum(each.tokens for each in passes),
            samples=sum(each.weight.samples for each in passes),
            worked=sum(each.weight.worked for each in passes),
            loss=sum(losses) / len(losses) if losses else 0.0,
            started_s=min((each.started_s for each in passes), default=None),
        )

    def take(self) -> None:
        """A step has used them."""
        self.forget()
        self._newest = None


def has_gradient(parameters: list[nn.Parameter]) -> bool:
    """Whether any of their gradients is more than nothing. Waits for the device."""
    return any(each.grad is not None and bool(local(each.grad).any()) for each in parameters)


def in_backward() -> bool:
    """Whether autograd is at work in this thread: weights must stay, as checkpointed passes are computed again."""
    return bool(torch._C._current_graph_task_id() != -1)
