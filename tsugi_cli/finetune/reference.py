"""The model as it was before training, and as it is when nothing trains: no LoRA, no dropout, no noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout, no noise, no gradients; afterwards every module trains as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class Reference:
    """The base model inside of the one that trains: its weights are there once.

    Args:
        model: PEFT's.
    """

    def __init__(self, model: Any) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        self._model = model
        self._adapted = [
            each for each in model.modules() if isinstance(each, BaseTunerLayer | AuxiliaryTrainingWrapper)
        ]

    def __call__(self, **inputs: Any) -> Any:
        """The base model's output, without gradients."""
        with evaluating(self._model), self._switched_off():
            return self._model(**inputs)

    @contextmanager
    def _switched_off(self) -> Iterator[None]:
        # PEFT's disable_adapter() also takes requires_grad from all parameters and gives it back to more than had it:
        # DDP, FSDP2 and a pool that trains only some adapters have been told which they are.
        before = [each._disable_adapters for each in self._adapted]
        for each in self._adapted:
            each._disable_adapters = True
        try:
            yield
        finally:
            for each, was in zip(self._adapted, before, strict=True):
                each._disable_adapters = was
