"""Copies of the weights in an optimizer's state: where it began (Prodigy), slow weights (Lookahead), what is averaged
(schedule-free).

A round that moves the weights moves them, too. Otherwise the optimizer would take the others' progress for its own,
or take it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from tsugi_kpool.engine.shards import local

NEAR = 0.1
"""Distance of a copy from the weights before or after the step, relative to their norm. A moment is far from both: at
its first step that of weights with decay is at most the decay times the weights."""

LEAST = 16
"""Fewer numbers in a row tell nothing."""


@dataclass
class _Seen:
    """Of one optimizer."""

    largest: nn.Parameter
    """Of what it holds. A LoRA's B would tell nothing: it begins at zero, and is all gradient at first."""
    before: Tensor
    """Its values before the first step."""
    names: dict[str, bool] = field(default_factory=dict)
    """What the state has for a parameter, and whether it is a copy."""


class WeightCopies:
    """Finds such copies, and lets them follow the pool.

    Args:
        pool: The pool's parameters.
    """

    def __init__(self, pool: list[nn.Parameter]) -> None:
        self._pool = pool
        self._seen: WeakKeyDictionary[Optimizer, _Seen] = WeakKeyDictionary()

    @torch.no_grad()
    def before(self, optimizer: Optimizer, held: list[nn.Parameter]) -> None:
        """Before a step: remember what the weights are, the first time.

        Args:
            optimizer: That steps.
            held: What of the pool it holds and has a gradient.
        """
        if held and optimizer not in self._seen:
            largest = max(held, key=lambda each: float(local(each).norm()))
            self._seen[optimizer] = _Seen(largest, local(largest).detach().clone())

    @torch.no_grad()
    def after(self, optimizer: Optimizer) -> None:
        """After a step: look at what its state has that was not there before."""
        seen = self._seen.get(optimizer)
        if seen is None:
            return
        state = optimizer.state.get(seen.largest, {})
        for name in state.keys() - seen.names.keys():
            now = local(seen.largest)
            seen.names[name] = _near(state[name], seen.before) or _near(state[name], now)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Wraps a change of the pool by others than the optimizer."""
        copies = list(self._copies())
        before = [local(parameter.detach()).clone() for parameter, _ in copies]
        yield
        with torch.no_grad():
            for (parameter, copy), old in zip(copies, before, strict=True):
                moved = _share(local(parameter.detach()) - old, copy)
                if moved is not None:
                    local(copy).add_(moved)

    def _copies(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for optimizer, seen in self._seen.items():
            for name in (name for name, is_copy in seen.names.items() if is_copy):
                for parameter in self._pool:
                    copy = optimizer.state.get(parameter, {}).get(name)
                    if isinstance(copy, Tensor):
                        yield parameter, copy


def _share(weights: Tensor, value: Tensor) -> Tensor | None:
    """What of the weights a tensor of this shape would be a copy of: all, or every k-th number in a row."""
    shape = local(value).shape
    if shape == weights.shape:
        return weights
    if len(shape) != 1 or not LEAST <= shape[0] <= weights.numel():
        return None
    some = weights.reshape(-1)[:: -(-weights.numel() // shape[0])]
    return some if some.shape == shape else None


def _near(value: object, weights: Tensor) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    share = _share(weights, value)
    return share is not None and bool((local(value) - share).norm() < NEAR * share.norm())
