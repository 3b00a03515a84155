"""Gradient mode's `grad_clip` in a process without peers, where every step is a round of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from .held import HeldByOptimizer


class ClippingAlone:
    """Clips the pool's gradients before every step: gradient mode's grad_clip in a process without peers.

    Args:
        pool: The pool's parameters.
        grad_clip: Largest norm.
    """

    def __init__(self, pool: list[nn.Parameter], grad_clip: float) -> None:
        self._pool, self._grad_clip = pool, grad_clip
        self._held = HeldByOptimizer(pool)
        self._handle = register_optimizer_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """Clip no more."""
        self._handle.remove()

    def _before_step(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[Any, Any]) -> None:
        if self._held.concerns(optimizer):
            torch.nn.utils.clip_grad_norm_(self._pool, self._grad_clip)
