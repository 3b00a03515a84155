"""The fleet's optimizer in gradient mode: of the class and with the settings of the training loop's own.

It steps the anchors, N flat fp32 vectors on the CPU, so it must be one that treats every number by itself (SGD, Adam,
AdamW, RMSprop, ...). Of the user's own optimizer only the learning rate is read from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tsugi_kpool.errors import ConfigError
from tsugi_kpool.fleet_adamw import FleetAdamW

from .gradient import OptimizerFactory

NOT_OURS = ("params", "param_names", "initial_lr", "foreach", "fused", "capturable", "differentiable")
"""Keys of a parameter group that do not concern the method: its parameters, its schedule, kernels for its device."""
PROBE = 4
"""Size of the vector on which a new optimizer is tried."""


def like(theirs: torch.optim.Optimizer, pool: Sequence[nn.Parameter]) -> OptimizerFactory:
    """Return a factory of optimizers of the same class with the same settings.

    Args:
        theirs: The user's optimizer; it holds all of the pool's parameters.
        pool: The pool's parameters.

    Raises:
        ConfigError: its settings differ between parameters, or flat vectors on the CPU are not for it to step.
    """
    mine = {id(parameter) for parameter in pool}
    kind = type(theirs)
    if issubclass(kind, FleetAdamW):
        raise ConfigError(
            ["gradient mode steps on the fleet's mean gradient: take torch.optim.AdamW, not FleetAdamW"]
        )
    groups = [group for group in theirs.param_groups if any(id(each) in mine for each in group["params"])]
    held = {id(each) for group in groups for each in group["params"]}
    if mine - held:
        raise ConfigError(
            [f"gradient mode needs one optimizer for all of the pool; {kind.__name__} lacks some of it"]
        )
    settings = _settings(groups[0])
    for group in groups[1:]:
        different = sorted(name for name, value in _settings(group).items() if settings.get(name) != value)
        if different:
            raise ConfigError(
                [
                    "gradient mode steps all of the pool with one set of settings; the optimizer's groups differ in "
                    f"{', '.join(different)}"
                ]
            )
    _try(kind, settings)
    return lambda flat: _make(kind, settings, flat)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in group.items() if name not in NOT_OURS}
    return settings | {"lr": float(settings["lr"])}


def _make(kind: type[torch.optim.Optimizer], settings: dict[str, Any], flat: list[nn.Parameter]) -> Any:
    """Make the optimizer. All settings go through the group; the rate is also passed by name, because some classes
    need it."""
    return kind([{"params": flat, **settings}], lr=settings["lr"])  # type: ignore[call-arg]


def _try(kind: type[torch.optim.Optimizer], settings: dict[str, Any]) -> None:
    """Try a step on a small vector, so that an optimizer that cannot work fails now and not in the middle of a
    round."""
    flat = nn.Parameter(torch.ones(PROBE))
    flat.grad = torch.ones(PROBE)
    try:
        _make(kind, settings, [flat]).step()
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, LookupError) as error:
        text = f"{kind.__name__} cannot be the optimizer of gradient mode, which steps flat vectors on the CPU"
        raise ConfigError([f"{text}: {type(error).__name__}: {error}"]) from error
