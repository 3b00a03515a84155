"""What would make replicas differ without anybody's notice: parameters that train outside the pool, and a LoRA of
another scaling.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from torch import nn
from torch.optim.optimizer import Optimizer

from tsugi_kpool.errors import ConfigError

NOT_IN_POOL = (
    "{name} is trained, but is not in the pool, so that every replica would have its own: what is trained must be in "
    "the model, and not frozen, when plesio_init is called; a second adapter needs a model and a pool of its own"
)
RESCALED = (
    "the LoRA of {name} is scaled by {now:g}, and was by {before:g} when plesio_init was called: all replicas' LoRAs "
    "have one scaling (a hotswap brings that of the adapter's own rank and alpha)"
)


class OutsidePool:
    """Looks at every step whether the pool is still all that is trained.

    Args:
        model: The module that the training loop calls.
        pool: The pool's parameters.
    """

    def __init__(self, model: nn.Module, pool: list[nn.Parameter]) -> None:
        self._model = model
        self._pool = frozenset(id(parameter) for parameter in pool)
        self._scalings = _scalings(model, self._pool)
        self._before = self._factors()
        self._foreign: WeakValueDictionary[int, nn.Parameter] = WeakValueDictionary()
        """Of other models."""

    def refuse(self, optimizer: Optimizer) -> None:
        """Stop before a step that would be this replica's alone.

        Raises:
            ConfigError: what the step moves, or what it was computed with, is not what the pool began with.
        """
        for group in optimizer.param_groups:
            for each in group["params"]:
                if each.grad is not None and id(each) not in self._pool and id(each) not in self._foreign:
                    self._refuse_or_remember(each)

    def refuse_scaling(self) -> None:
        """Stop before a step that was computed with a LoRA of another scaling.

        Raises:
            ConfigError: it was.
        """
        now = self._factors()
        if now != self._before:
            at = next(number for number, each in enumerate(now) if each != self._before[number])
            name = self._scalings[at][0]
            raise ConfigError([RESCALED.format(name=name, now=now[at], before=self._before[at])])

    def _refuse_or_remember(self, parameter: nn.Parameter) -> None:
        name = next((name for name, each in self._model.named_parameters() if each is parameter), None)
        if name is not None:
            raise ConfigError([NOT_IN_POOL.format(name=name)])
        self._foreign[id(parameter)] = parameter

    def _factors(self) -> list[float]:
        return [float(scaling[adapter]) for _, scaling, adapter in self._scalings]


def _scalings(model: nn.Module, pool: frozenset[int]) -> list[tuple[str, dict[str, float], str]]:
    """For every module of the pool: its name, its factors, and the name of the pool's one."""
    found = []
    for name, module in model.named_modules():
        scaling, lora_a = getattr(module, "scaling", None), getattr(module, "lora_A", None)
        if isinstance(scaling, dict) and isinstance(lora_a, nn.ModuleDict):
            found += [
                (name, scaling, key) for key, each in lora_a.items() if id(getattr(each, "weight", None)) in pool
            ]
    return found
