"""Optimizer moments and states of random generators as tensors on the host, and back: the content of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from .optimizer_state import Kept
from .shards import whole

ANCHOR = "anchor"
"""[N, P] fp32."""
RNG = "rng"
"""Prefix of the states of torch's random generators: dropout continues with the next numbers."""
Tensors = dict[str, Tensor]


def moments(optimizer: torch.optim.Optimizer | None) -> Tensors:
    """Return a copy of an optimizer's state on the host. With shards a collective of all workers of the replica."""
    state = {} if optimizer is None else optimizer.state
    return {
        f"{number}.{name}": _on_host(value) if isinstance(value, Tensor) else torch.tensor(value)
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in state.get(parameter, {}).items()
        if isinstance(value, (Tensor, int, float))
    }


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> bool:
    """Restore an optimizer from a copy of such a state; returns false when it belongs to another optimizer."""
    parameters = _parameters(optimizer)
    states: list[dict[str, Tensor]] = [{} for _ in parameters]
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if not number.isdigit() or int(number) >= len(parameters):
            return False
        states[int(number)][name] = value
    kept = Kept(optimizer)
    if not all(kept.fits(parameter, state) for parameter, state in zip(parameters, states, strict=True) if state):
        return False
    optimizer.state.clear()
    for parameter, state in zip(parameters, states, strict=True):
        if state:
            optimizer.state[parameter] = {
                name: value.item() if kept.plain(parameter, name) else _like(parameter, value)
                for name, value in state.items()
            }
    return True


def random_state() -> Tensors:
    """Return the states of torch's random generators."""
    found = {f"{RNG}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call, unused-ignore]
        found[f"{RNG}.cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_state(tensors: Mapping[str, Tensor]) -> None:
    """Set torch's random generators to these states."""
    if f"{RNG}.cpu" in tensors:
        torch.set_rng_state(tensors[f"{RNG}.cpu"])
    if f"{RNG}.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"{RNG}.cuda"])


def part(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """Return the tensors below a prefix, without it."""
    return {
        name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")
    }


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """Return the tensors with a prefix put before each name."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _parameters(optimizer: torch.optim.Optimizer | None) -> list[Any]:
    return [] if optimizer is None else [each for group in optimizer.param_groups for each in group["params"]]


def _on_host(value: Tensor) -> Tensor:
    return whole(value.detach()).to("cpu", copy=True).contiguous()


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a state as the optimizer would have made it: counters on the host, moments where the parameter is."""
    if not value.dim():
        return value.clone()
    if isinstance(parameter, DTensor):
        here = value.to(parameter.device)
        return distribute_tensor(here, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device, copy=True)
