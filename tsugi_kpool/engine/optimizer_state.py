"""What an optimizer keeps of a parameter, found out by a step on one like it: no other's state is for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SOME = (3,)
"""Shape to try where a parameter is empty: one of `AdapterParameters` is so between two steps."""


class Kept:
    """An optimizer's state of a parameter, as its class makes it.

    Where a class of somebody else cannot be tried, the shapes of moments must do.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._optional = frozenset(getattr(optimizer, "optional_state", ()))
        self._samples: dict[torch.Size, dict[str, Any] | None] = {}

    def fits(self, parameter: Tensor, state: Mapping[str, Tensor]) -> bool:
        """Whether this is a state of such a parameter in such an optimizer."""
        sample = self._sample(parameter)
        moments = {name: value for name, value in state.items() if value.dim() and parameter.numel()}
        if sample is None:
            return all(value.shape == parameter.shape for value in moments.values())
        if set(sample) - self._optional - set(state):
            return False
        return all(_alike(sample.get(name, value), value) for name, value in moments.items())

    def plain(self, parameter: Tensor, name: str) -> bool:
        """Whether it keeps a number of Python there, no tensor."""
        sample = self._sample(parameter) or {}
        return name in sample and not isinstance(sample[name], Tensor)

    def _sample(self, parameter: Tensor) -> dict[str, Any] | None:
        if parameter.shape not in self._samples:
            self._samples[parameter.shape] = self._tried(parameter)
        return self._samples[parameter.shape]

    def _tried(self, parameter: Tensor) -> dict[str, Any] | None:
        like = nn.Parameter(torch.ones(parameter.shape if parameter.numel() else SOME, device=parameter.device))
        like.grad = torch.ones_like(like)
        kind, first = type(self._optimizer), self._optimizer.param_groups[0]
        settings = {name: value for name, value in first.items() if name not in ("params", "param_names")}
        taken = inspect.signature(kind).parameters
        try:
            probe = kind([{**settings, "params": [like]}], **{k: v for k, v in settings.items() if k in taken})
            probe.step()
            return {
                name: value for name, value in probe.state[like].items() if isinstance(value, (Tensor, int, float))
            }
        except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, LookupError):
            return None


def _alike(sample: Any, value: Tensor) -> bool:
    return isinstance(sample, Tensor) and sample.shape == value.shape and sample.dtype == value.dtype
