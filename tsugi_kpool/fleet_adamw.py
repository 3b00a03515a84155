"""AdamW for replicas whose steps are averaged: its second moment is that of the fleet's mean gradient.

AdamW divides by the root of the mean square of the gradients that it sees. DDP's sees the mean of R of them, whose
noise is R times smaller in variance than one replica's: where a gradient is mostly noise, a replica's step, and so
the mean of all steps, is sqrt(R) times shorter than DDP's, and where it is mostly signal it is not. No learning rate
makes up for both (docs/straggler_tax.md).
So the square of the signal is estimated without bias, from the two moments that AdamW keeps anyway: both contain the
signal, and the first has the share c of the noise that the second has, which is known (`_share`). Of the noise that
is left the mean of R gradients has an R-th. That needs no communication, and R may change at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError

SHORTEST = 0.1
"""Shortest memory of gradients: a shorter one averages so little noise away that nothing tells it from signal."""
COUNTED_BELOW = 0.9
"""Share of the noise in the first moment below which an estimate counts; in the first step it is 1."""


class FleetAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) on the second moment of the mean of `replicas` gradients.

    Takes a learning rate for synchronous steps, which does not grow with the number of replicas. With one it is
    torch.optim.AdamW, bit for bit. Its moments are AdamW's at any number, so that either goes on from the other's
    state; it keeps one tensor more for each parameter. It is for local mode: in gradient mode the fleet steps on the
    mean gradient itself. In a pool `replicas` follows those who take part.

    Args:
        params: As for any optimizer of torch.
        replicas: How many replicas average their steps.
        lr: Learning rate.
        betas: Memories of the first and of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled, as AdamW's.

    Raises:
        ConfigError: a value is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        replicas: int,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        wrong = [f"FleetAdamW's replicas must be at least 1, found {replicas}"] if replicas < 1 else []
        if not (SHORTEST <= betas[0] < 1 and 0 <= betas[1] < 1):
            wrong.append(f"FleetAdamW's betas must lie in [{SHORTEST}, 1) and [0, 1), found {betas}")
        values = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        wrong += [f"FleetAdamW's {name} must not be negative, found {it}" for name, it in values.items() if it < 0]
        if wrong:
            raise ConfigError(wrong)
        super().__init__(params, {**values, "betas": betas, "replicas": replicas})

    optional_state = ("signal", "counted")
    """An AdamW's state has none: the estimate begins with the next step."""

    def follow(self, replicas: int) -> None:
        """From the next step on so many average their steps."""
        for group in self.param_groups:
            group["replicas"] = replicas

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step on the gradients that are there; gives the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for (steps, counted, *_), parameters in self._alike(group).items():
                self._step(group, parameters, steps, counted)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the state of a FleetAdamW or an AdamW; how many replicas there are is not taken from it."""
        replicas = [group["replicas"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, number in zip(self.param_groups, replicas, strict=True):
            group["replicas"] = number

    def _alike(self, group: dict[str, Any]) -> dict[tuple[Any, ...], list[Tensor]]:
        """Parameters that have a gradient; those step together that are of one kind and have stepped as often."""
        found: dict[tuple[Any, ...], list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                state = self._state(parameter, group["replicas"])
                state["step"] += 1
                steps = int(state["step"])
                if _share(group["betas"][0], steps) < COUNTED_BELOW:
                    state["counted"] += 1
                kind = (steps, int(state["counted"]), type(parameter), parameter.device, parameter.dtype)
                found.setdefault(kind, []).append(parameter)
        return found

    def _state(self, parameter: Tensor, replicas: int) -> dict[str, Any]:
        """The state of a parameter, completed where it is new or an AdamW's."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = _counter()
            state.update({name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")})
        if state.pop("smooth", None) is not None:
            # Of the rule before this one, whose second moment was the fleet's. Where that was noise, one replica's is
            # so many times larger; where it was signal, steps are shorter until it is forgotten.
            state["exp_avg_sq"].mul_(replicas)
        if "signal" not in state:
            state.update(signal=torch.zeros_like(parameter), counted=_counter())
        return state

    def _step(self, group: dict[str, Any], parameters: list[Tensor], steps: int, counted: int) -> None:
        (beta1, beta2), replicas, lr = group["betas"], group["replicas"], float(group["lr"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        mean, square, signal = (
            [self.state[each][name] for each in parameters] for name in ("exp_avg", "exp_avg_sq", "signal")
        )
        # Means that began at zero are divided by the weight that they have got by now.
        weight1, weight2 = 1 - beta1**steps, 1 - beta2**steps
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(mean, gradients, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, gradients, gradients, 1 - beta2)
        torch._foreach_mul_(signal, beta2)
        if counted:
            share = _share(beta1, steps)
            new = (1 - beta2) / (1 - share)
            torch._foreach_addcmul_(signal, mean, mean, new / weight1**2)
            torch._foreach_add_(signal, square, alpha=-new * share / weight2)
        if replicas == 1:
            size = torch._foreach_sqrt(square)
            torch._foreach_div_(size, weight2**0.5)
        else:
            size = torch._foreach_clamp_min(signal, 0.0)
            torch._foreach_mul_(size, (1 - 1 / replicas) / (1 - beta2**counted) if counted else 0.0)
            torch._foreach_add_(size, square, alpha=1 / (replicas * weight2))
            torch._foreach_sqrt_(size)
        torch._foreach_add_(size, group["eps"])
        torch._foreach_addcdiv_(parameters, mean, size, -lr / weight1)


def _share(beta1: float, steps: int) -> float:
    """Of a gradient's noise, how much variance the first moment has after so many steps: 1 after the first."""
    return (1 - beta1) / (1 + beta1) * (1 + beta1**steps) / (1 - beta1**steps)


def _counter() -> Tensor:
    return torch.zeros((), dtype=torch.float32, device="cpu")
