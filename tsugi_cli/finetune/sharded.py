"""A model over the workers of a replica, in shards: worker 0 alone reads the base, the others never hold it whole.

Every worker builds the model without values, cuts it, and makes room for its own rows only. Then worker 0 sends the
values, one tensor after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tsugi_cli.config.spec import RunSpec
from tsugi_kpool.engine.inside import Inside
from tsugi_kpool.errors import ConfigError

from .lora import add_pool, empty_pool
from .model import load, load_empty
from .workers import checkpoint_activations, shard

Ties = list[list[tuple[nn.Module, str]]]
"""Places in a model where one parameter stands."""


def in_shards(
    spec: RunSpec, start: Path, earlier: Path | None, inside: Inside, device: torch.device
) -> tuple[nn.Module, Any]:
    """The PEFT model with this worker's rows of it on the device, and the tokenizer. All workers call this together.

    Raises:
        TsugiError: the base model cannot be had, takes no such LoRA, or cannot be spread.
    """
    empty, tokenizer = load_empty(spec.model, device)
    model = empty_pool(empty, spec.lora).train()
    whole = {}
    if inside.worker == 0:
        whole = _values(add_pool(load(spec.model, device)[0], spec.lora, start, earlier))
        _refuse_other(model, whole)
    checkpoint_activations(model, spec.model, device)
    ties = _ties(model)
    shard(model, inside, device)
    model.to_empty(device=device)
    _tie(ties)
    _fill(model, whole, inside, device)
    torch.manual_seed(spec.seed)  # worker 0 has drawn the LoRA's values, the others nothing
    return model, tokenizer


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: values.detach() for name, values in _named(model)}


def _refuse_other(model: nn.Module, whole: Mapping[str, Tensor]) -> None:
    """What the class makes of its configuration must be what is loaded."""
    shapes = {name: values.shape for name, values in _named(model)}
    if shapes != {name: values.shape for name, values in whole.items()}:
        wrong = sorted(shapes.keys() ^ whole.keys()) or ["a shape"]
        raise ConfigError(
            [f"topology.inside=fsdp2 cannot spread this model ({wrong[0]} differs once loaded): take ddp"]
        )


def _ties(model: nn.Module) -> Ties:
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, name))
    return [each for each in places.values() if len(each) > 1]


def _tie(ties: Ties) -> None:
    """Room is made at each place of a parameter; one of them serves all."""
    for (first, own), *others in ties:
        for module, name in others:
            setattr(module, name, getattr(first, own))


@torch.no_grad()
def _fill(model: nn.Module, whole: Mapping[str, Tensor], inside: Inside, device: torch.device) -> None:
    """Give every worker its rows of worker 0's values. Never more than one tensor is whole on a device."""
    for name, values in _named(model):
        full = torch.empty(values.shape, dtype=values.dtype, device=device)
        if inside.worker == 0:
            full.copy_(whole[name])
        inside.share(full)
        if isinstance(values, DTensor):
            rows = full.chunk(inside.workers)
            if inside.worker < len(rows):
                values.to_local().copy_(rows[inside.worker])
        else:
            values.copy_(full)
