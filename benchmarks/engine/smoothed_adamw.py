"""AdamW on a smoothed gradient's second moment: what `tsugi_kpool.FleetAdamW` was before it had its present rule.

AdamW divides by the root of the mean square of the gradients that it sees. DDP's sees the mean of R of them, whose
noise is R times smaller in variance than one replica's: where a gradient is mostly noise, a replica's step, and so
the mean of all steps, is sqrt(R) times shorter than DDP's, and where it is mostly signal it is not. No learning rate
makes up for both (docs/straggler_tax.md).
So the gradient is smoothed before it is squared: an exponential mean with the memory a has (1 - a) / (1 + a) of the
noise's variance, which is 1 / R for a = (R - 1) / (R + 1). That needs no communication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from tsugi_kpool.errors import ConfigError


class SmoothedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) on the second moment of the mean of `replicas` gradients.

    Takes a learning rate for synchronous steps, which does not grow with the number of replicas. With one it is
    torch.optim.AdamW. The state of a parameter has one tensor more than AdamW's, whose state it can go on from. It is
    for local mode with all adapters training: in gradient mode the fleet steps on the mean gradient itself.

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
        wrong = [f"SmoothedAdamW's replicas must be at least 1, found {replicas}"] if replicas < 1 else []
        wrong += [f"SmoothedAdamW's betas must lie in [0, 1), found {betas}"] if not _memories(betas) else []
        values = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        wrong += [f"SmoothedAdamW's {name} must not be negative, found {it}" for name, it in values.items() if it < 0]
        if wrong:
            raise ConfigError(wrong)
        super().__init__(params, {**values, "betas": betas, "replicas": replicas})

    optional_state = ("smooth",)
    """An AdamW's state has none: it begins at that one's mean."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step on the gradients that are there; gives the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for (steps, *_), parameters in self._alike(group["params"]).items():
                self._step(group, parameters, steps)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the state of a FleetAdamW or an AdamW; how many replicas there are is not taken from it."""
        replicas = [group["replicas"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, number in zip(self.param_groups, replicas, strict=True):
            group["replicas"] = number

    def _alike(self, parameters: Iterable[Tensor]) -> dict[tuple[Any, ...], list[Tensor]]:
        """Parameters that have a gradient; those step together that are of one kind and have stepped as often."""
        found: dict[tuple[Any, ...], list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
                    state.update({name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")})
                if "smooth" not in state:  # a new parameter, or the state of an AdamW
                    state["smooth"] = state["exp_avg"].clone()
                state["step"] += 1
                kind = (int(state["step"]), type(parameter), parameter.device, parameter.dtype)
                found.setdefault(kind, []).append(parameter)
        return found

    def _step(self, group: dict[str, Any], parameters: list[Tensor], steps: int) -> None:
        (beta1, beta2), replicas, lr = group["betas"], group["replicas"], float(group["lr"])
        memory = (replicas - 1) / (replicas + 1)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        mean, square, smooth = (
            [self.state[each][name] for each in parameters] for name in ("exp_avg", "exp_avg_sq", "smooth")
        )
        torch._foreach_lerp_(mean, gradients, 1 - beta1)
        torch._foreach_lerp_(smooth, gradients, 1 - memory)
        torch._foreach_mul_(square, beta2)
        # Means that began at zero are divided by the weight that they have got by now.
        torch._foreach_addcmul_(square, smooth, smooth, (1 - beta2) / (1 - memory**steps) ** 2)
        size = torch._foreach_sqrt(square)
        torch._foreach_div_(size, (1 - beta2**steps) ** 0.5)
        torch._foreach_add_(size, group["eps"])
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, mean, size, -lr / (1 - beta1**steps))


def _memories(betas: tuple[float, float]) -> bool:
    return all(0 <= beta < 1 for beta in betas)
