"""Training K of N adapters (`kpool.select_at=train`): neither the values nor the moments of the others may change.

Adapters are slices of shared matrices, so a gradient of None is not at hand for one of them, and a gradient of zero
is not enough: AdamW would still decay the values and move them by their momentum. Two exact ways:

`AdapterParameters`: the loop's optimizer holds one flat parameter for every adapter, so inactive ones have grad=None.
`Frozen`: for an optimizer of somebody else over the matrices themselves: what it did to inactive slices is undone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tsugi_kpool.errors import ConfigError
from tsugi_kpool.fleet_adamw import FleetAdamW

from .pool import AdapterPool


class AdapterParameters:
    """One flat parameter [P] for each adapter, for an optimizer that steps single adapters.

    Between two steps the values live in the pool; a step of the active adapters goes `take_in`, optimizer.step(),
    `give_back`. Moments stay with the parameter for as long as its adapter is inactive.
    """

    def __init__(self, pool: AdapterPool) -> None:
        self._pool = pool
        self._active: tuple[int, ...] = ()
        self.flat = [nn.Parameter(torch.zeros(0, device=pool.device)) for _ in range(pool.n)]

    def take_in(self, active: tuple[int, ...], grad_clip: float | None) -> None:
        """Move values and gradients of the active adapters into their parameters, and clip the gradients over these
        alone."""
        self._active = active
        gradients = self._pool.gradients()
        for adapter, values in zip(active, self._pool.rows(active), strict=True):
            self.flat[adapter].data, self.flat[adapter].grad = values, gradients[adapter]
        if grad_clip is not None:
            torch.nn.utils.clip_grad_norm_([self.flat[adapter] for adapter in active], grad_clip)

    def give_back(self) -> None:
        """Write the values of the active adapters back to the pool, after the optimizer's step."""
        self._pool.put(torch.stack([self.flat[adapter].data for adapter in self._active]), self._active)
        for adapter in self._active:
            self.flat[adapter].data = self.flat[adapter].data[:0].clone()


class Frozen:
    """Keeps inactive adapters unchanged through the steps of an optimizer that holds the pool's matrices.

    Values and every elementwise state (moments) of inactive slices are put back after the step, bit for bit. A step
    counter that the optimizer keeps per matrix counts for all its slices.

    Args:
        pool: The live adapters.
        active: The adapters of the present step; empty means all.
    """

    def __init__(self, pool: AdapterPool, active: Callable[[], tuple[int, ...]]) -> None:
        self._pool, self._active = pool, active
        self._values: Tensor | None = None
        self._states: dict[tuple[int, str, int], Tensor] = {}
        self._handles = [
            each.register_post_accumulate_grad_hook(self._mask)  # type: ignore[no-untyped-call, unused-ignore]
            for each in pool.parameters()
        ]

    def remove(self) -> None:
        """Stop masking gradients."""
        for handle in self._handles:
            handle.remove()

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the values and states of inactive slices, before the optimizer steps.

        Raises:
            ConfigError: its moments are corrected by a count for whole matrices, wrong for a slice that begins.
        """
        if isinstance(optimizer, FleetAdamW):
            raise ConfigError(["select_at=train goes with torch.optim.AdamW, not with FleetAdamW"])
        idle = self._idle()
        self._values = self._pool.rows(idle) if idle else None
        self._states = {key: share.clone() for key, share in self._shares(optimizer, idle).items()}

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the inactive slices back after the step. A state that the step has created begins at zero for them."""
        idle = self._idle()
        if self._values is None:
            return
        self._pool.put(self._values, idle)
        for key, share in self._shares(optimizer, idle).items():
            share.copy_(self._states[key]) if key in self._states else share.zero_()
        self._values, self._states = None, {}

    def _idle(self) -> list[int]:
        active = self._active()
        return [adapter for adapter in range(self._pool.n) if adapter not in active] if active else []

    def _shares(self, optimizer: torch.optim.Optimizer, idle: list[int]) -> dict[tuple[int, str, int], Tensor]:
        """Return the inactive adapters' shares of every elementwise state of the pool's matrices, as views."""
        return {
            (id(parameter), name, adapter): self._pool.shares(parameter, value)[adapter]
            for parameter in (self._pool.parameters() if idle else [])
            for name, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor) and value.shape == parameter.shape
            for adapter in idle
        }

    def _mask(self, parameter: Tensor) -> None:
        """Set the gradient of inactive slices to zero, so that clipping measures what is really applied."""
        idle = self._idle()
        if idle and parameter.grad is not None and isinstance(parameter, nn.Parameter):
            shares = self._pool.shares(parameter, parameter.grad)
            for adapter in idle:
                shares[adapter].zero_()
