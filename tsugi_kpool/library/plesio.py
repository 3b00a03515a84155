"""`plesio_init`: put a PEFT model's training loop into the pool; `plesio_shutdown`: take it out again.

Between the two the loop is an ordinary one. Every process is one replica, reads data of its own and steps at its own
pace; a process without peers trains the same numbers as plain PEFT.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from accelerate import PartialState  # type: ignore[import-untyped, unused-ignore]
from accelerate.state import AcceleratorState  # type: ignore[import-untyped, unused-ignore]
from torch import nn

from tsugi_kpool import world
from tsugi_kpool.core.settings import KPool
from tsugi_kpool.engine.inside import ALONE, found
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.errors import ConfigError
from tsugi_kpool.world import World

from .clipping import ClippingAlone
from .fitting import ATTRIBUTE, check_config, check_model, shape_of, uncompiled
from .handle import PlesioHandle
from .lora import KPoolLoraConfig
from .lora_checks import own_names
from .session import meet

ACCELERATOR = (
    "accelerate was set up before for {processes} processes of one job, and would shard the data and average "
    "gradients at every step: call plesio_init before anything makes the Accelerator (docs/library.md)"
)


def plesio_init(
    model: nn.Module,
    config: KPoolLoraConfig,
    *,
    replica: int | None = None,
    replicas: int | None = None,
    keys: str | Path | None = None,
) -> PlesioHandle:
    """Start the sideband and the aggregator for a PEFT model; returns when every replica has.

    The LoRA's values become replica 0's. Train with any optimizer over the model's parameters then; before saving the
    adapter, close the handle (or call `plesio_shutdown`), after which all replicas hold the same one.

    Args:
        model: What get_peft_model made with `config`.
        config: The pool.
        replica: Our number; by default TSUGI_REPLICA, or else torchrun's RANK. Where it is given, or TSUGI_REPLICA
            is, and torch.distributed has a default group, that group holds the workers of this replica.
        replicas: How many there are; by default TSUGI_REPLICAS, or else torchrun's WORLD_SIZE.
        keys: The key file; needed when the replicas do not share a torchrun job on one machine.

    Raises:
        ConfigError: model and config do not fit each other, or the model is in a pool already.
        MachineError: replica 0 cannot listen at sideband_addr, or the key file cannot be written.
        LaunchError: the replicas did not find each other in time, or are not alike.
    """
    model, settings = uncompiled(model), check_config(config).settings()
    place, path = world.read(replica, replicas), _path(keys)
    inside = found(place.replica, place.replicas) if place.named else ALONE
    adapter = check_model(model, config, settings)
    if place.replicas == 1:
        return PlesioHandle(model, place, None, inside, _clipping_alone(model, config, settings, adapter))
    if place.replica == 0:
        for note in settings.notes():
            warnings.warn(own_names(note), stacklevel=2)
    if inside.workers == 1:
        keep_apart(place)
    at, clip, trusted = config.sideband_addr, config.grad_clip, config.trust_network
    session = meet(model, settings, adapter, place, at, path, clip, inside, trusted)
    return PlesioHandle(model, place, session, inside)


def plesio_shutdown(model: nn.Module) -> None:
    """Close the model's handle: after this every replica holds the same adapter.

    Raises:
        ConfigError: the model is in no pool.
        TsugiError: see PlesioHandle.close.
    """
    handle = uncompiled(model).__dict__.get(ATTRIBUTE) if isinstance(model, nn.Module) else None
    if handle is None:
        raise ConfigError(["this model is in no pool: plesio_init was not called with it, or it was closed already"])
    handle.close()


def _path(keys: str | Path | None) -> Path | None:
    if keys is not None and not isinstance(keys, str | Path):
        raise ConfigError([f"keys must be the path of a file, found {keys!r}"])
    return None if keys is None else Path(keys)


def keep_apart(place: World) -> None:
    """Make accelerate take this process for a whole job, if nothing has set accelerate up before.

    Otherwise it would read torchrun's variables, wrap the model in DistributedDataParallel and average
    gradients at every step.

    Raises:
        ConfigError: something has set it up for several processes.
    """
    if place.replicas == 1:
        return
    if PartialState._shared_state:
        processes = PartialState().num_processes
        if processes > 1:
            raise ConfigError([ACCELERATOR.format(processes=processes)])
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(place.local_replica % torch.cuda.device_count())
    with world.hidden():
        PartialState(cpu=not on_gpu)


def begin_anew(place: World) -> None:
    """As `keep_apart`, for a new Trainer: its precision is its own, whatever a Trainer before it had.

    TrainingArguments themselves do this, but not where they are to leave the processes as they are configured.
    """
    AcceleratorState._reset_state()
    keep_apart(place)
    if place.replicas == 1 and not PartialState._shared_state:
        PartialState()


def _clipping_alone(model: nn.Module, config: KPoolLoraConfig, settings: KPool, adapter: str) -> ClippingAlone | None:
    """Without peers every step is a round of its own."""
    if config.grad_clip is None:
        return None
    return ClippingAlone(AdapterPool(model, settings.n, adapter, shape_of).parameters(), config.grad_clip)
