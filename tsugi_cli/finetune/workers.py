"""The workers of one replica: which device each has, how the model is spread over them, which samples each takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn

from tsugi_cli.config.spec import Model
from tsugi_kpool.engine.inside import Inside
from tsugi_kpool.errors import EnvironmentError_
from tsugi_kpool.world import WorkerRank

from .precision import asks_for_checkpointing, memory_of

T = TypeVar("T")
How = Literal["ddp", "fsdp2"]
CPU = torch.device("cpu")
TOGETHER = ("cuda", "cpu")
"""Devices on which several workers of a replica have collectives."""


def device_of(seat: WorkerRank, replica: int, wanted: str = "auto") -> torch.device:
    """This worker's device: an accelerator of its own if the machine has any, which it makes the current one.

    Args:
        seat: The worker's place in its replica.
        replica: Its number.
        wanted: As `topology.device` says.

    Raises:
        EnvironmentError_: what is wanted is not there, or workers would have to share it, which their collectives
            cannot.
    """
    if wanted == "cpu":
        return CPU
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted != "auto" and (found is None or found.type != wanted):
        what = "no accelerator" if found is None else found.type
        raise EnvironmentError_(f"topology.device={wanted}: torch finds {what} on this machine")
    if found is None:
        return CPU
    count = torch.accelerator.device_count()
    if seat.workers > 1 and found.type not in TOGETHER:
        raise EnvironmentError_(
            f"topology.workers={seat.workers} needs {' or '.join(TOGETHER)}, found {found.type}: topology.device=cpu"
        )
    if seat.workers > count:
        raise EnvironmentError_(f"topology.workers={seat.workers} needs as many GPUs on this machine, found {count}")
    # Replicas on one machine take the GPUs one after the other; a replica alone on its machine begins at the first.
    device = torch.device(found.type, (replica * seat.workers + seat.local) % count)
    torch.accelerator.set_device_index(device)
    return device


def spread(model: Any, how: How, inside: Inside, device: torch.device) -> nn.Module:
    """Put the model on its device and over the workers; what comes back is what the training thread calls.

    With fsdp2 the model itself is changed: its parameters are shards from then on.
    """
    if (inside.workers == 1 or how == "ddp") and getattr(model, "hf_quantizer", None) is None:
        model.to(device)
    if inside.workers == 1:
        return model  # type: ignore[no-any-return]
    if how == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    return shard(model, inside, device)


def compiled(forward: nn.Module, model: Model) -> nn.Module:
    """The same, compiled by torch if the user wants it."""
    return cast(nn.Module, torch.compile(forward)) if model.compile else forward


def checkpoint_activations(model: Any, wanted: Model, device: torch.device) -> bool:
    """Compute activations again instead of keeping them, if the user or the device's memory asks for it."""
    own = list(model.parameters())
    weight_bytes = sum(each.numel() * each.element_size() for each in own)
    auto = asks_for_checkpointing(weight_bytes, memory_of(device))
    if not (auto if wanted.gradient_checkpointing == "auto" else wanted.gradient_checkpointing):
        return False
    # Not the reentrant kind: that wants inputs with gradients, and a frozen embedding has none.
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    return True


def shard(model: Any, inside: Inside, device: torch.device) -> nn.Module:
    """fully_shard layer by layer, so that never more than one layer is whole on the device."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (inside.workers,))
    base = model.get_base_model()
    layers = set(base._no_split_modules or ())
    for module in base.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    # The base model is the root, not PEFT's wrapper: generate() calls it without the wrapper.
    fully_shard(base, mesh=mesh, reshard_after_forward=True)
    return model  # type: ignore[no-any-return]


def part(samples: Sequence[T], inside: Inside) -> tuple[list[T], bool]:
    """This worker's samples of its replica's, and whether they count.

    Who gets none takes the first one with a weight of zero: the workers' collectives need everybody.
    """
    mine = list(samples[inside.worker :: inside.workers])
    return (mine, True) if mine else (list(samples[:1]), False)
