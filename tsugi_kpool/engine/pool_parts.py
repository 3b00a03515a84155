"""Which numbers of a model belong to which adapter of the pool.

For every target module, A is [N*r, in] and B is [out, N*r]; adapter i owns rows i*r:(i+1)*r of A and the same
columns of B. Every other parameter that is trained (PEFT's modules_to_save, biases, token rows, DoRA's magnitudes) is
read as one line of numbers and cut into N pieces, of which adapter i owns the i-th: so it is shipped, averaged and
digested with that adapter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tsugi_kpool.errors import ConfigError

from .shards import local

TIED = (
    "that is what ensure_weight_tying makes of the LoRA of embed_tokens and lm_head: leave it out, and each has a "
    "LoRA of its own, or take modules_to_save"
)
META = (
    "low_cpu_mem_usage=True leaves a new LoRA on the meta device; leave it out of get_peft_model, or load an adapter "
    "with PeftModel.from_pretrained, which fills it"
)


@dataclass(frozen=True)
class Part(ABC):
    """One parameter: how its numbers are divided among the adapters, and where they begin in an adapter's flat
    vector."""

    name: str
    parameter: nn.Parameter
    n: int
    start: int

    @property
    def width(self) -> int:
        """How many of its numbers are in one adapter's vector."""
        return -(-self.parameter.numel() // self.n)

    @abstractmethod
    def views(self, values: Tensor) -> Sequence[Tensor]:
        """Return each adapter's share of a tensor shaped like the parameter: N views of it."""

    @abstractmethod
    def table(self, values: Tensor) -> Tensor:
        """Return the same shares as one tensor [N, width]."""


class _Rows(Part):
    """A LoRA's A, [N*r, in]."""

    def views(self, values: Tensor) -> Sequence[Tensor]:
        return values.view(self.n, -1).unbind()

    def table(self, values: Tensor) -> Tensor:
        return values.reshape(self.n, -1)


@dataclass(frozen=True)
class _ExpertRows(Part):
    """The A of stacked experts, [E*N*r, in]: every expert has its own N*r rows."""

    experts: int

    def views(self, values: Tensor) -> Sequence[Tensor]:
        return values.view(self.experts, self.n, -1).unbind(1)

    def table(self, values: Tensor) -> Tensor:
        return values.reshape(self.experts, self.n, -1).transpose(0, 1).reshape(self.n, -1)


class _Columns(Part):
    """A LoRA's B, [out, N*r]; of E stacked experts [out, N*r*E], where those of one rank stand together."""

    def views(self, values: Tensor) -> Sequence[Tensor]:
        return values.view(values.shape[0], self.n, -1).unbind(1)

    def table(self, values: Tensor) -> Tensor:
        return values.reshape(values.shape[0], self.n, -1).transpose(0, 1).reshape(self.n, -1)


class _Pieces(Part):
    """Any other parameter; the last pieces may be shorter, or empty."""

    def views(self, values: Tensor) -> Sequence[Tensor]:
        flat = values.view(-1)
        return [flat[i * self.width : (i + 1) * self.width] for i in range(self.n)]

    def table(self, values: Tensor) -> Tensor:
        rest = self.n * self.width - values.numel()
        return nn.functional.pad(values.reshape(-1), (0, rest)).view(self.n, -1)


def parts_of(model: nn.Module, n: int, adapter_name: str) -> list[Part]:
    """Return all that is trained: A and B of every target module, then everything else.

    Raises:
        ConfigError: the model has no such LoRA, its rank is not divisible by n, or its values are missing, shared, or
            lie so that they cannot be cut.
    """
    lora = list(_find_lora(model, n, adapter_name))
    if not lora:
        raise ConfigError([f'the model has no LoRA adapter "{adapter_name}" to make a pool of'])
    found = lora + list(_find_rest(model, n, lora))
    _refuse_meta(found)
    _refuse_shared(found)
    return found


def end_of(parts: Sequence[Part]) -> int:
    """Return how long an adapter's vector of these parts is."""
    return parts[-1].start + parts[-1].width


def _find_lora(model: nn.Module, n: int, adapter_name: str) -> Iterator[Part]:
    start = 0
    for name, module in model.named_modules():
        lora_a = getattr(module, "lora_A", None)
        if not isinstance(lora_a, nn.ModuleDict) or adapter_name not in lora_a:
            continue
        a, b = _weight(lora_a[adapter_name]), _weight(module.get_submodule(f"lora_B.{adapter_name}"))
        experts = experts_of(module)
        if (rank := a.shape[0] // experts) % n:
            raise ConfigError([f"{name} has LoRA rank {rank}, which {n} adapters cannot share evenly"])
        if b.shape[1] != a.shape[0]:
            raise ConfigError([f"{name} is a grouped layer, whose LoRA is not laid out as slices of one rank"])
        named = (f"{name}.lora_A", a, n, start)
        rows = _Rows(*named) if experts == 1 else _ExpertRows(*named, experts)
        columns = _Columns(f"{name}.lora_B", b, n, start + rows.width)
        yield from (rows, columns)
        start = columns.start + columns.width


def experts_of(module: nn.Module) -> int:
    """How many experts' matrices are stacked in the parameter that PEFT's ParamWrapper adapts; 1: none."""
    found = getattr(module, "num_experts", 1)
    return found if isinstance(found, int) and type(module).__name__ == "ParamWrapper" else 1


def _find_rest(model: nn.Module, n: int, lora: Sequence[Part]) -> Iterator[Part]:
    """Yield everything else that is trained. A parameter that occurs several times in the model is found once."""
    found, start = {id(part.parameter) for part in lora}, end_of(lora)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in found:
            continue
        part = _Pieces(name, parameter, n, start)
        yield part
        start += part.width


def _refuse_meta(parts: Sequence[Part]) -> None:
    """There would be nothing to train."""
    empty = [part.name for part in parts if part.parameter.is_meta]
    if empty:
        raise ConfigError([f"{empty[0]} has no values yet: {META}"])


def _refuse_shared(parts: Sequence[Part]) -> None:
    """Two parameters on one storage would be averaged twice, and a view that is turned round cannot be cut."""
    at: dict[int, str] = {}
    for part in parts:
        values = local(part.parameter.detach())
        other = at.setdefault(values.data_ptr(), part.name) if values.numel() else part.name
        if other != part.name:
            raise ConfigError([f"{part.name} and {other} share their values; {TIED}"])
        if not values.is_contiguous():
            raise ConfigError(
                [f"{part.name} is trained but not contiguous, so that it cannot be cut into pieces; {TIED}"]
            )


def _weight(linear: nn.Module) -> nn.Parameter:
    weight = linear.weight
    if not isinstance(weight, nn.Parameter):
        raise ConfigError([f"a LoRA matrix of type {type(linear).__name__} has no weight of its own"])
    return weight
