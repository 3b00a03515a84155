"""The pool: N adapters as slices of one PEFT LoRA of rank N*r.

For every target module, A is [N*r, in] and B is [out, N*r]; adapter i owns rows i*r:(i+1)*r of A and the same
columns of B. The sum over adapters of B_i A_i is the whole product B A, so the pool trains and exports as one
plain PEFT adapter. Flat values of an adapter are a vector of P floats in a fixed order of modules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsugi_kpool.core.messages import SCHEMA_VERSION
from tsugi_kpool.errors import ConfigError

from .transfers import HostCopy, transfers_for


@dataclass(frozen=True)
class _Slot:
    """One module's A and B, and where its part lies in an adapter's flat vector."""

    name: str
    a: nn.Parameter
    b: nn.Parameter
    start: int
    middle: int
    stop: int


class AdapterPool:
    """Reads and writes adapters as flat fp32 rows.

    Args:
        model: A PEFT model with one LoRA adapter of rank n * r on every target module.
        n: Adapters in the pool.
        adapter_name: PEFT's name of the LoRA adapter.

    Raises:
        ConfigError: the model has no such LoRA, or its rank is not divisible by n.
    """

    def __init__(self, model: nn.Module, n: int, adapter_name: str = "default") -> None:
        self.n = n
        self._slots = list(_find_slots(model, n, adapter_name))
        if not self._slots:
            raise ConfigError([f'the model has no LoRA adapter "{adapter_name}" to make a pool of'])
        self.size = self._slots[-1].stop
        """P: numbers in one adapter."""
        self._columns = {id(slot.b) for slot in self._slots}
        self._attach()

    @property
    def device(self) -> torch.device:
        """Where the live parameters are."""
        return self._flat.device

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters: A and B of every target module."""
        return [parameter for slot in self._slots for parameter in (slot.a, slot.b)]

    def layout(self, payload: str) -> str:
        """Hash of all that must agree before a collective: module names, shapes, N, the wire's coding."""
        facts = [f"schema={SCHEMA_VERSION} n={self.n} payload={payload}"]
        facts += [f"{s.name} {tuple(s.a.shape)} {tuple(s.b.shape)}" for s in self._slots]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    def read(self, adapters: Sequence[int]) -> Tensor:
        """A copy of these adapters' values: [K, P], fp32, on the CPU."""
        return self.copy(adapters).wait()

    @torch.no_grad()
    def copy(self, adapters: Sequence[int]) -> HostCopy:
        """The same, without waiting for a device that is still busy."""
        self._check_attached()
        return self.transfers.to_host(lambda: self._gathered(adapters))

    def parts(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """A view [N, ...] of a tensor that has this parameter's shape, such as its gradient: one part per adapter."""
        if id(parameter) in self._columns:
            return tensor.view(tensor.shape[0], self.n, -1).transpose(0, 1)
        return tensor.view(self.n, -1)

    @torch.no_grad()
    def rows(self, adapters: Sequence[int]) -> Tensor:
        """A copy of these adapters' values on the pool's device: [K, P], fp32."""
        self._check_attached()
        return self._gathered(adapters)

    @torch.no_grad()
    def add(self, adapters: Sequence[int], change: Tensor) -> None:
        """Add `change` ([K, P], fp32) to these adapters in place."""
        with self._changing(change) as change_here:
            for values, adapter in zip(change_here, adapters, strict=True):
                self._flat[adapter].copy_(values)
                torch._foreach_add_(self._live_views[adapter], self._flat_views[adapter])

    @torch.no_grad()
    def write(self, values: Tensor, adapters: Sequence[int] | None = None) -> None:
        """Set these adapters (all, when none are named) to `values` ([K, P], fp32)."""
        with self._changing(values) as values_here:
            for row, adapter in zip(values_here, range(self.n) if adapters is None else adapters, strict=True):
                self._flat[adapter].copy_(row)
                torch._foreach_copy_(self._live_views[adapter], self._flat_views[adapter])

    @torch.no_grad()
    def gradients(self) -> Tensor:
        """All adapters' present gradients: a new [N, P], fp32, on the pool's device; zeros where there is none."""
        self._check_attached()
        flat = torch.zeros_like(self._flat)
        for slot in self._slots:
            if slot.a.grad is not None:
                flat[:, slot.start : slot.middle] = slot.a.grad.reshape(self.n, -1)
            if slot.b.grad is not None:
                columns = slot.b.grad.reshape(slot.b.shape[0], self.n, -1).transpose(0, 1)
                flat[:, slot.middle : slot.stop] = columns.reshape(self.n, -1)
        return flat

    def _gathered(self, adapters: Sequence[int]) -> Tensor:
        for adapter in adapters:
            torch._foreach_copy_(self._flat_views[adapter], self._live_views[adapter])
        return torch.stack([self._flat[adapter] for adapter in adapters])

    @contextmanager
    def _changing(self, values: Tensor) -> Iterator[Tensor]:
        """Wraps a change of the live parameters by these values, which it gives back on the pool's device."""
        self._check_attached()
        values = self.transfers.to_device(values)
        self.transfers.before_change()
        yield values
        self.transfers.changed()

    def _attach(self) -> None:
        """Make the views once: there are thousands, and copying through fresh ones took four times as long."""
        first = self._slots[0].a
        self._flat = torch.zeros(self.n, self.size, device=first.device)
        self.transfers = transfers_for(first.device)
        self._live_views: list[list[Tensor]] = [[] for _ in range(self.n)]
        self._flat_views: list[list[Tensor]] = [[] for _ in range(self.n)]
        for slot in self._slots:
            rows = slot.a.data.view(self.n, -1).unbind()
            columns = slot.b.data.view(slot.b.shape[0], self.n, -1).unbind(1)
            for adapter, (row, column) in enumerate(zip(rows, columns, strict=True)):
                values = self._flat[adapter]
                self._live_views[adapter] += [row, column]
                self._flat_views[adapter] += [
                    values[slot.start : slot.middle],
                    values[slot.middle : slot.stop].view(column.shape),
                ]

    def _check_attached(self) -> None:
        """The model may have been moved to another device since: its storages are then other ones."""
        if self._live_views[0][0].data_ptr() != self._slots[0].a.data_ptr():
            self._attach()


def _find_slots(model: nn.Module, n: int, adapter_name: str) -> Iterator[_Slot]:
    start = 0
    for name, module in model.named_modules():
        lora_a = getattr(module, "lora_A", None)
        if not isinstance(lora_a, nn.ModuleDict) or adapter_name not in lora_a:
            continue
        a, b = _weight(lora_a[adapter_name]), _weight(module.get_submodule(f"lora_B.{adapter_name}"))
        if a.shape[0] % n:
            raise ConfigError([f"{name} has LoRA rank {a.shape[0]}, which {n} adapters cannot share evenly"])
        if b.shape[1] != a.shape[0]:
            raise ConfigError([f"{name} is a grouped layer, whose LoRA is not laid out as slices of one rank"])
        middle, stop = start + a.numel() // n, start + (a.numel() + b.numel()) // n
        yield _Slot(name, a, b, start, middle, stop)
        start = stop


def _weight(linear: nn.Module) -> nn.Parameter:
    weight = linear.weight
    if not isinstance(weight, nn.Parameter):
        raise ConfigError([f"a LoRA matrix of type {type(linear).__name__} has no weight of its own"])
    return weight
