"""The fleet's optimizer in gradient mode: of the class and with the settings of the training loop's own.

It steps the anchors, N flat fp32 vectors on the CPU, so it must be one that treats every number by itself (SGD, Adam,
AdamW, RMSprop, ...). Of the user's own optimizer only the learning rate is read from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tsugi_kpool.errors import ConfigError
from tsugi_kpool.fleet_adamw import FleetAdamW

from .gradient import Cut

NOT_OURS = ("params", "param_names", "initial_lr", "foreach", "fused", "capturable", "differentiable")
"""Keys of a parameter group that do not concern the method: its parameters, its schedule, kernels for its device."""
PROBE = 4
"""Size of the vector on which a new optimizer is tried."""


Span = tuple[nn.Parameter, int, int]
"""A parameter, and where its share of an adapter's vector begins and ends."""


def like(theirs: torch.optim.Optimizer, spans: Sequence[Span]) -> FleetOptimizer:
    """Return a factory of optimizers of the same class with the same settings.

    Args:
        theirs: The user's optimizer; it holds all of the pool's parameters.
        spans: The pool's parameters.

    Raises:
        ConfigError: it lacks some of them, or flat vectors on the CPU are not for it to step.
    """
    mine = {id(parameter) for parameter, *_ in spans}
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
    found = FleetOptimizer(kind, tuple(map(_settings, groups)), _cuts(spans, groups), _scales(groups))
    found.check()
    return found


@dataclass(frozen=True)
class FleetOptimizer:
    """An `OptimizerFactory`, whose groups are those of the user's optimizer."""

    kind: type[torch.optim.Optimizer]
    groups: tuple[dict[str, Any], ...]
    """The settings of each."""
    cuts: tuple[Cut, ...]
    """The pieces of an adapter's vector, each of one group; empty where all of it has the same settings."""
    scales: tuple[float, ...]
    """Each group's learning rate, as a multiple of the first one's."""

    def __call__(self, flat: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Make it of the adapters' vectors, or of their pieces, one adapter after the other."""
        if not self.cuts:
            return _make(self.kind, self.groups[:1], [flat])
        of_groups: list[list[nn.Parameter]] = [[] for _ in self.groups]
        for number, piece in enumerate(flat):
            of_groups[self.cuts[number % len(self.cuts)].group].append(piece)
        return _make(self.kind, self.groups, of_groups)

    def check(self) -> None:
        """Step small vectors, so that an optimizer that cannot work fails now and not in the middle of a round.

        Raises:
            ConfigError: it cannot.
        """
        flats = [nn.Parameter(torch.ones(PROBE)) for _ in self.groups]
        for flat in flats:
            flat.grad = torch.ones(PROBE)
        try:
            _make(self.kind, self.groups, [[flat] for flat in flats]).step()
        except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, LookupError) as error:
            text = (
                f"{self.kind.__name__} cannot be the optimizer of gradient mode, which steps flat vectors on the CPU"
            )
            raise ConfigError([f"{text}: {type(error).__name__}: {error}"]) from error


def _cuts(spans: Sequence[Span], groups: Sequence[dict[str, Any]]) -> tuple[Cut, ...]:
    """Cut an adapter's vector where the settings change."""
    settings = list(map(_settings, groups))
    if all(each == settings[0] for each in settings):
        return ()
    group_of = {id(each): number for number, group in enumerate(groups) for each in group["params"]}
    cuts: list[Cut] = []
    for parameter, start, stop in spans:
        group = group_of[id(parameter)]
        if cuts and cuts[-1].group == group:
            cuts[-1] = Cut(cuts[-1].start, stop, group)
        else:
            cuts.append(Cut(start, stop, group))
    return tuple(cuts)


def _scales(groups: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    """Return the groups' learning rates against the first one's, before any schedule."""
    rates = [float(group.get("initial_lr", group["lr"])) for group in groups]
    if rates[0] == 0.0 and any(rates):
        raise ConfigError(["gradient mode takes the learning rate from the optimizer's first group: found 0 there"])
    return tuple(rate / rates[0] if rates[0] else 1.0 for rate in rates)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in group.items() if name not in NOT_OURS}
    return settings | {"lr": float(settings["lr"])}


def _make(
    kind: type[torch.optim.Optimizer], groups: Sequence[dict[str, Any]], parameters: Sequence[list[nn.Parameter]]
) -> torch.optim.Optimizer:
    """Make the optimizer. All settings go through the groups; the rate is also passed by name, because some classes
    need it."""
    made = [{"params": each, **settings} for each, settings in zip(parameters, groups, strict=True)]
    return kind(made, lr=groups[0]["lr"])  # type: ignore[call-arg]
