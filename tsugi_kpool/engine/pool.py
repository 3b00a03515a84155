"""The pool: N adapters as slices of one PEFT LoRA of rank N*r, and of everything else that is trained with it.

The sum over adapters of B_i A_i is the whole product B A, so the pool trains and exports as one plain PEFT adapter.
`pool_parts.py` says which numbers of a model belong to which adapter; here they are read and written. Flat values of
an adapter are a vector of P floats in a fixed order of parameters; where a parameter cannot be cut evenly, the last
adapters' vectors have zeros in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from tsugi_kpool.core.messages import SCHEMA_VERSION
from tsugi_kpool.errors import ConfigError

from .pool_parts import end_of, parts_of
from .transfers import HostCopy, transfers_for

FP32 = "a pool is trained in fp32, which is PEFT's default for LoRA; cast other modules with module.float()"


def _in_turns(views: Sequence[Sequence[Tensor]], adapters: Sequence[int]) -> list[Tensor]:
    """Return these adapters' views, those of one parameter after the other: numbers of several adapters share the
    cache's lines."""
    return list(chain.from_iterable(zip(*(views[adapter] for adapter in adapters), strict=True)))


def _itself(parameter: nn.Parameter) -> nn.Parameter:
    return parameter


class AdapterPool:
    """Reads and writes adapters as flat fp32 rows.

    Args:
        model: A PEFT model with one LoRA adapter of rank n * r on every target module.
        n: Adapters in the pool.
        adapter_name: PEFT's name of the LoRA adapter.
        plain: Returns for a parameter of the model the whole tensor on this device with which the pool works.

    Raises:
        ConfigError: the model has no such LoRA, its rank is not divisible by n, or what is trained is not fp32.
    """

    def __init__(
        self,
        model: nn.Module,
        n: int,
        adapter_name: str = "default",
        plain: Callable[[nn.Parameter], nn.Parameter] = _itself,
    ) -> None:
        self.n = n
        found = parts_of(model, n, adapter_name)
        self._parameters = [part.parameter for part in found]
        self._parts = [replace(part, parameter=plain(part.parameter)) for part in found]
        self.size = end_of(self._parts)
        """P: numbers in one adapter."""
        self._part_of = {id(part.parameter): part for part in self._parts}
        self._attach()

    @property
    def device(self) -> torch.device:
        """Where the live parameters are."""
        return self._flat.device

    def parameters(self) -> list[nn.Parameter]:
        """Return the model's trainable parameters: A and B of every target module, then everything else that is
        trained."""
        return list(self._parameters)

    def spans(self) -> list[tuple[nn.Parameter, int, int]]:
        """Return each of them with the place of its share in an adapter's vector: (parameter, start, stop)."""
        return [
            (parameter, part.start, part.start + part.width)
            for parameter, part in zip(self._parameters, self._parts, strict=True)
        ]

    def layout(self, payload: str, reduce: str = "gather") -> str:
        """Return a hash of all that must be equal before a collective: module names, shapes, N, codes, sums."""
        facts = [f"schema={SCHEMA_VERSION} n={self.n} payload={payload} reduce={reduce} mean=steps"]
        facts += [f"{type(part).__name__} {part.name} {tuple(part.parameter.shape)}" for part in self._parts]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    def read(self, adapters: Sequence[int]) -> Tensor:
        """Return a copy of these adapters' values: [K, P], fp32, on the CPU."""
        return self.copy(adapters).wait()

    @torch.no_grad()
    def copy(self, adapters: Sequence[int]) -> HostCopy:
        """Start such a copy without waiting for a device that is still busy."""
        self._check_attached()
        return self.transfers.to_host(lambda: self._gathered(adapters))

    def shares(self, parameter: nn.Parameter, tensor: Tensor) -> Sequence[Tensor]:
        """Return each adapter's share of a tensor shaped like this parameter, such as its gradient, as views."""
        return self._part_of[id(parameter)].views(tensor)

    @torch.no_grad()
    def rows(self, adapters: Sequence[int]) -> Tensor:
        """Return a copy of these adapters' values on the pool's device: [K, P], fp32."""
        self._check_attached()
        return self._gathered(adapters)

    @torch.no_grad()
    def add(self, adapters: Sequence[int], change: Tensor) -> None:
        """Add `change` ([K, P], fp32) to these adapters in place."""
        with self._changing(change) as change_here:
            for values, adapter in zip(change_here, adapters, strict=True):
                self._flat[adapter].copy_(values)
            torch._foreach_add_(_in_turns(self._live_views, adapters), _in_turns(self._flat_views, adapters))

    def write(self, values: Tensor, adapters: Sequence[int] | None = None) -> None:
        """Set these adapters (all, when none are named) to the fleet's `values` ([K, P], fp32)."""
        self.put(values, adapters)

    @torch.no_grad()
    def put(self, values: Tensor, adapters: Sequence[int] | None = None) -> None:
        """Set these adapters as `write` does, on this worker alone."""
        with self._changing(values) as values_here:
            for row, adapter in zip(values_here, range(self.n) if adapters is None else adapters, strict=True):
                self._flat[adapter].copy_(row)
                torch._foreach_copy_(self._live_views[adapter], self._flat_views[adapter])

    @torch.no_grad()
    def gradients(self) -> Tensor:
        """Return all adapters' present gradients: a new [N, P], fp32, on the pool's device; zeros where there is
        none."""
        self._check_attached()
        flat = torch.zeros_like(self._flat)
        for part in self._parts:
            if part.parameter.grad is not None:
                flat[:, part.start : part.start + part.width] = part.table(part.parameter.grad)
        return flat

    def tensors(self, values: Tensor) -> list[Tensor]:
        """Return all adapters' `values` ([N, P], fp32) as new tensors shaped like `parameters`, in their order."""
        values, found = values.to(self.device), []
        for part in self._parts:
            whole = torch.empty_like(part.parameter, requires_grad=False)
            for adapter, share in enumerate(part.views(whole)):
                share.copy_(values[adapter, part.start : part.start + share.numel()].view(share.shape))
            found.append(whole)
        return found

    def _gathered(self, adapters: Sequence[int]) -> Tensor:
        torch._foreach_copy_(_in_turns(self._flat_views, adapters), _in_turns(self._live_views, adapters))
        return torch.stack([self._flat[adapter] for adapter in adapters])

    @contextmanager
    def _changing(self, values: Tensor) -> Iterator[Tensor]:
        """Wraps a change of the live parameters; yields its values on the pool's device."""
        self._check_attached()
        values = self.transfers.to_device(values)
        self.transfers.before_change()
        yield values
        self.transfers.changed()

    def _attach(self) -> None:
        """Make the views once: there are thousands, and copying through fresh ones took four times as long."""
        wrong = [part for part in self._parts if part.parameter.dtype is not torch.float32]
        if wrong:
            raise ConfigError([f"{part.name} is trained in {part.parameter.dtype}; {FP32}" for part in wrong[:3]])
        self._at = [part.parameter.data_ptr() for part in self._parts]
        device = self._parts[0].parameter.device
        self._flat = torch.zeros(self.n, self.size, device=device)
        self.transfers = transfers_for(device)
        self._live_views: list[list[Tensor]] = [[] for _ in range(self.n)]
        self._flat_views: list[list[Tensor]] = [[] for _ in range(self.n)]
        for part in self._parts:
            for adapter, live in enumerate(part.views(part.parameter.data)):
                values = self._flat[adapter, part.start : part.start + live.numel()]
                self._live_views[adapter].append(live)
                self._flat_views[adapter].append(values.view(live.shape))

    def _check_attached(self) -> None:
        """Make the views anew if the model was moved to another device since: its storages are others then."""
        if self._at != [part.parameter.data_ptr() for part in self._parts]:
            self._attach()
