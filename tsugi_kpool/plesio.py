"""`plesio_init`: put a PEFT model's training loop into the pool; `plesio_shutdown`: take it out again.

Between the two the loop is an ordinary one. Every process is one replica, reads data of its own and steps at its own
pace; a process without peers trains the same numbers as plain PEFT.
"""

from __future__ import annotations

import atexit
import sys
import warnings
from pathlib import Path
from types import TracebackType

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from . import world
from .core.settings import KPool
from .engine.inside import ALONE, Inside, found
from .engine.pool import AdapterPool
from .engine.shards import local
from .engine.team import whole
from .errors import ConfigError
from .hooks import ClippingAlone
from .lora import KPoolLoraConfig, own_names
from .session import Session, meet
from .world import World

EXIT_TIMEOUT_S = 600.0
"""A process that ends without closing waits this long for the last round, then leaves."""
ATTRIBUTE = "_plesio_handle"
ACCELERATOR = (
    "accelerate was set up before for {processes} processes of one job, and would shard the data and average "
    "gradients at every step: call plesio_init before anything makes the Accelerator (docs/library.md)"
)


class PlesioHandle:
    """A model's part in the pool, until it is closed. A context manager: leaving the block closes.

    Made by `plesio_init`. `replica` and `replicas` say which part of the data is this replica's, `worker` and
    `workers` which part of that is this process's.
    """

    def __init__(
        self,
        model: nn.Module,
        place: World,
        session: Session | None,
        inside: Inside = ALONE,
        clip: ClippingAlone | None = None,
    ) -> None:
        self.replica, self.replicas = place.replica, place.replicas
        self.worker, self.workers, self._inside = inside.worker, inside.workers, inside
        self._model, self._session, self._clip = model, session, clip
        self._closed = False
        model.__dict__[ATTRIBUTE] = self
        atexit.register(self._at_exit)

    @property
    def closed(self) -> bool:
        """Whether this process has left the pool."""
        return self._closed

    @property
    def version(self) -> int:
        """Rounds that this replica has committed; 0 without peers."""
        return self._session.engine.version if self._session else 0

    def weight(self, tokens: int) -> float:
        """What to multiply a worker's mean loss with, so that every token of its replica counts the same.

        DDP and FSDP average gradients over workers as equals, however many tokens each had. All workers must call
        this for every micro-step; a replica of one worker gets 1.

        Args:
            tokens: This worker's supervised tokens; 0 makes its loss weightless.
        """
        return whole(self._inside, tokens, 0, 0.0).weight

    def close(self, timeout_s: float | None = None) -> None:
        """Wait until every replica has closed and the last round has landed: all then stand on the same adapter.

        Args:
            timeout_s: Give up then; None waits for as long as the others train.

        Raises:
            TsugiError: the run has failed, or did not end in time.
        """
        if not self._detach() and self._session is not None:
            self._session.drain(timeout_s)

    def abandon(self, reason: str) -> None:
        """Leave at once without a last round: the other replicas fail with this reason."""
        if not self._detach() and self._session is not None:
            self._session.leave(reason)

    def __enter__(self) -> PlesioHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon(f"{kind.__name__}: {error}")

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of the model takes no part in the pool: there the handle becomes None."""
        return type(None), ()

    def _detach(self) -> bool:
        """Let go of model and interpreter; true when that was done before."""
        was_closed, self._closed = self._closed, True
        if not was_closed:
            atexit.unregister(self._at_exit)
            self._model.__dict__.pop(ATTRIBUTE, None)
            if self._clip is not None:
                self._clip.remove()
        return was_closed

    def _at_exit(self) -> None:
        """The interpreter ends and nobody has closed: well, if no exception has ended it."""
        error = getattr(sys, "last_value", None)
        if error is not None:
            self.abandon(f"{type(error).__name__}: {error}")
        else:
            self.close(EXIT_TIMEOUT_S)


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
        EnvironmentError_: replica 0 cannot listen at sideband_addr, or the key file cannot be written.
        LaunchError: the replicas did not find each other in time, or are not alike.
    """
    model, settings = _uncompiled(model), check_config(config).settings()
    place = world.read(replica, replicas)
    inside = found(place.replica, place.replicas) if place.named else ALONE
    adapter = _check(model, config, settings)
    if place.replicas == 1:
        return PlesioHandle(model, place, None, inside, _clipping_alone(model, config, settings, adapter))
    if place.replica == 0:
        for note in settings.notes():
            warnings.warn(own_names(note), stacklevel=2)
    if inside.workers == 1:
        keep_apart(place)
    path = Path(keys) if keys is not None else None
    session = meet(model, settings, adapter, place, config.sideband_addr, path, config.grad_clip, inside)
    return PlesioHandle(model, place, session, inside)


def plesio_shutdown(model: nn.Module) -> None:
    """Close the model's handle: after this every replica holds the same adapter.

    Raises:
        ConfigError: the model is in no pool.
        TsugiError: see PlesioHandle.close.
    """
    handle = _uncompiled(model).__dict__.get(ATTRIBUTE)
    if handle is None:
        raise ConfigError(["this model is in no pool: plesio_init was not called with it, or it was closed already"])
    handle.close()


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


def check_config(config: KPoolLoraConfig) -> KPoolLoraConfig:
    """The config itself, if it is one.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(config, KPoolLoraConfig):
        raise ConfigError([f"a pool needs the KPoolLoraConfig that get_peft_model was given, found {_kind(config)}"])
    return config


def _uncompiled(model: nn.Module) -> nn.Module:
    """The module inside what torch.compile returned; both share their parameters and hooks."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _clipping_alone(model: nn.Module, config: KPoolLoraConfig, settings: KPool, adapter: str) -> ClippingAlone | None:
    """Without peers every step is a round of its own."""
    if config.grad_clip is None:
        return None
    return ClippingAlone(AdapterPool(model, settings.n, adapter, _shape_of).parameters(), config.grad_clip)


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"


def _check(model: nn.Module, config: KPoolLoraConfig, settings: KPool) -> str:
    """PEFT's name of the pool's LoRA.

    Raises:
        ConfigError: the model does not hold the pool that the config describes, or trains what would not be saved.
    """
    if not isinstance(model, PeftModel):
        raise ConfigError([f"plesio_init needs what get_peft_model returned, found {_kind(model)}"])
    if model.__dict__.get(ATTRIBUTE) is not None:
        raise ConfigError(
            ["plesio_init was called with this model already; close it first with plesio_shutdown(model)"]
        )
    name = model.active_adapter
    if not isinstance(name, str) or model.peft_config[name].r != config.r:
        raise ConfigError([f"the model's active adapter is not the one of this config (rank {config.r:d})"])
    pool = {id(parameter) for parameter in AdapterPool(model, settings.n, name, _shape_of).parameters()}
    kept = _saved(model, name)
    inside = [(each, parameter) for each, parameter in model.named_parameters() if id(parameter) in pool]
    found = [f"{each} is part of the pool but frozen" for each, one in inside if not one.requires_grad]
    found += [
        f"{each} is trained, but PEFT does not save it with the adapter: name its module in modules_to_save"
        for each, one in inside
        if _place_of(one) not in kept
    ]
    if found:
        raise ConfigError(found[:10])
    return name


def _saved(model: nn.Module, adapter: str) -> set[int]:
    """Where the values lie that save_pretrained writes."""
    values = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {_place_of(value) for value in values.values()}


def _place_of(value: torch.Tensor) -> int:
    """Where a tensor's values lie, or this worker's shard of them."""
    return local(value.detach()).data_ptr()


def _shape_of(parameter: nn.Parameter) -> nn.Parameter:
    """A stand-in that takes no memory, for a look at what a pool would be made of."""
    return nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))
