"""The pool: N adapters as slices of one PEFT LoRA of rank N*r.

For every target module, A is [N*r, in] and B is [out, N*r]; adapter i owns rows i*r:(i+1)*r of A and the same
columns of B. The sum over adapters of B_i A_i is the whole product B A, so the pool trains and exports as one
plain PEFT adapter. Flat values of an adapter are a vector of P floats in a fixed order of modules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsugi_kpool.core.messages import SCHEMA_VERSION
from tsugi_kpool.errors import ConfigError


@dataclass(frozen=True)
class _Slot:
    """Where one module's part lies in an adapter's flat vector."""

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

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters: A and B of every target module."""
        return [parameter for slot in self._slots for parameter in (slot.a, slot.b)]

    def layout(self, payload: str) -> str:
        """Hash of all that must agree before a collective: module names, shapes, N, the wire's coding."""
        facts = [f"schema={SCHEMA_VERSION} n={self.n} payload={payload}"]
        facts += [f"{s.name} {tuple(s.a.shape)} {tuple(s.b.shape)}" for s in self._slots]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    @torch.no_grad()
    def read(self, adapters: Sequence[int]) -> Tensor:
        """A copy of these adapters' values: [K, P], fp32, on the CPU."""
        out = torch.empty(len(adapters), self.size)
        for slot in self._slots:
            out[:, slot.start : slot.middle] = _rows(slot.a, self.n)[list(adapters)]
            out[:, slot.middle : slot.stop] = _columns(slot.b, self.n)[list(adapters)].flatten(1)
        return out

    @torch.no_grad()
    def add(self, adapters: Sequence[int], change: Tensor) -> None:
        """Add `change` ([K, P], fp32) to these adapters in place."""
        for slot in self._slots:
            part_a, part_b = change[:, slot.start : slot.middle], change[:, slot.middle : slot.stop]
            rows, columns = _rows(slot.a, self.n), _columns(slot.b, self.n)
            for row, adapter in enumerate(adapters):
                rows[adapter] += part_a[row].to(rows.device, rows.dtype)
                columns[adapter] += part_b[row].view_as(columns[adapter]).to(columns.device, columns.dtype)

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Set all adapters to `values` ([N, P], fp32)."""
        for slot in self._slots:
            _rows(slot.a, self.n).copy_(values[:, slot.start : slot.middle])
            columns = _columns(slot.b, self.n)
            columns.copy_(values[:, slot.middle : slot.stop].reshape(columns.shape))


def _find_slots(model: nn.Module, n: int, adapter_name: str) -> Iterator[_Slot]:
    start = 0
    for name, module in model.named_modules():
        lora_a = getattr(module, "lora_A", None)
        if not isinstance(lora_a, nn.ModuleDict) or adapter_name not in lora_a:
            continue
        a, b = _weight(lora_a[adapter_name]), _weight(module.get_submodule(f"lora_B.{adapter_name}"))
        if a.shape[0] % n:
            raise ConfigError([f"{name} has LoRA rank {a.shape[0]}, which {n} adapters cannot share evenly"])
        middle, stop = start + a.numel() // n, start + (a.numel() + b.numel()) // n
        yield _Slot(name, a, b, start, middle, stop)
        start = stop


def _weight(linear: nn.Module) -> nn.Parameter:
    weight = linear.weight
    if not isinstance(weight, nn.Parameter):
        raise ConfigError([f"a LoRA matrix of type {type(linear).__name__} has no weight of its own"])
    return weight


def _rows(a: Tensor, n: int) -> Tensor:
    """A as [N, r*in]: a view, since an adapter's rows lie together."""
    return a.data.view(n, -1)


def _columns(b: Tensor, n: int) -> Tensor:
    """B as [N, out, r]: a view of its columns."""
    out, rank = b.shape
    return b.data.view(out, n, rank // n).permute(1, 0, 2)
