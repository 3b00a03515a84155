"""What an optimizer holds of the pool, and what a gradient scaler has told it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer


class HeldByOptimizer:
    """Looks into optimizers for the pool's parameters.

    Args:
        pool: The pool's parameters.
    """

    def __init__(self, pool: list[nn.Parameter]) -> None:
        self._mine = frozenset(id(parameter) for parameter in pool)

    def concerns(self, optimizer: Optimizer) -> bool:
        """Whether it holds any of them."""
        return next(self._groups(optimizer), None) is not None

    def lr(self, optimizer: Optimizer) -> float:
        """The learning rate of the first group that does."""
        return float(next(self._groups(optimizer))["lr"])

    def gradients(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """The pool's parameters in it that have a gradient."""
        return [
            each
            for group in self._groups(optimizer)
            for each in group["params"]
            if id(each) in self._mine and each.grad is not None
        ]

    def _groups(self, optimizer: Optimizer) -> Iterator[dict[str, Any]]:
        return (group for group in optimizer.param_groups if any(id(each) in self._mine for each in group["params"]))


def overflowed(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler has told a fused optimizer to do nothing, because the gradients are not finite."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def unscale(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    """A gradient scaler leaves it to a fused optimizer to divide the gradients by the scale."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(scale)
