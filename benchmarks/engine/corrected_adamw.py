"""AdamW for one of R replicas whose steps are averaged, on an estimate of the mean gradient's second moment: a try.

`tsugi_kpool.FleetAdamW` has another estimate of the same, which bears higher rates (docs/decisions/0033).

AdamW divides by the root of the mean square of what it sees. One replica sees G + noise, DDP's AdamW the mean of R of
them: E[g^2] = G^2 + s^2 against G^2 + s^2 / R. With m for G, v / R + (1 - 1/R) m^2 estimates the second from the
first: where the gradient is mostly noise the step gets up to sqrt(R) longer, where it is mostly signal it stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class CorrectedAdamW(torch.optim.Optimizer):
    """AdamW without weight decay."""

    def __init__(
        self, params: Iterable[Tensor], replicas: int, lr: float, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr})
        self._replicas, self._betas, self._eps = replicas, betas, eps

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group["lr"])

    def _step(self, parameter: Tensor, lr: float) -> None:
        state, (beta1, beta2) = self.state[parameter], self._betas
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        mean = state["exp_avg"].lerp_(parameter.grad, 1 - beta1) / (1 - beta1 ** state["step"])
        square = state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - beta2) / (1 - beta2 ** state["step"])
        share = 1.0 / self._replicas
        parameter.sub_(mean / ((square * share + mean.square() * (1 - share)).sqrt_() + self._eps), alpha=lr)
