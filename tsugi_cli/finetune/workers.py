"""The workers of one replica: which device each has, how the model is spread over them, which samples each takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from tsugi_kpool.engine.inside import Inside
from tsugi_kpool.errors import EnvironmentError_
from tsugi_kpool.world import WorkerRank

T = TypeVar("T")
How = Literal["ddp", "fsdp2"]
CPU = torch.device("cpu")


def device_of(seat: WorkerRank, replica: int) -> torch.device:
    """This worker's device: a GPU of its own if the machine has any, which it makes the current one.

    Raises:
        EnvironmentError_: a replica's workers would have to share a GPU, which their collectives cannot.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if seat.workers > count:
        raise EnvironmentError_(f"topology.workers={seat.workers} needs as many GPUs on this machine, found {count}")
    # Replicas on one machine take the GPUs one after the other; a replica alone on its machine begins at the first.
    device = torch.device("cuda", (replica * seat.workers + seat.local) % count)
    torch.cuda.set_device(device)
    return device


def spread(model: Any, how: How, inside: Inside, device: torch.device) -> nn.Module:
    """Put the model on its device and over the workers; what comes back is what the training thread calls.

    With fsdp2 the model itself is changed: its parameters are shards from then on.
    """
    if inside.workers == 1 or how == "ddp":
        model.to(device)
    if inside.workers == 1:
        return model  # type: ignore[no-any-return]
    if how == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    return _sharded(model, inside, device)


def _sharded(model: Any, inside: Inside, device: torch.device) -> nn.Module:
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
