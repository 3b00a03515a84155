"""`HookOfOne`: a forward hook that a copy of its model, or a file with the model in it, does not take along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

never_compiled: Callable[[Callable[..., None]], Callable[..., None]] = torch.compiler.disable
"""torch.compile must not look into a hook: what it does, it does at every step anew."""


class HookOfOne:
    """A hook of one model alone: a copy of the model takes its hooks along, but there they do nothing."""

    def __init__(self, model: nn.Module, hook: Callable[[Any, Any], None]) -> None:
        self._model, self._hook = model, never_compiled(hook)

    def __call__(self, module: nn.Module, args: Any, other: Any) -> None:
        if module is self._model:
            self._hook(args, other)

    def __reduce__(self) -> tuple[type[_Nothing], tuple[()]]:
        return _Nothing, ()


class _Nothing:
    """What becomes of it in a copy, or in a file that torch.save writes."""

    def __call__(self, module: nn.Module, args: Any, other: Any) -> None:
        pass
