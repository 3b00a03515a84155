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
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from tsugi_kpool import world
from tsugi_kpool.core.settings import KPool
from tsugi_kpool.engine.inside import ALONE, Inside, found
from tsugi_kpool.engine.local_group import whole
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.errors import ConfigError
from tsugi_kpool.world import World

from .fitting import ATTRIBUTE, check_config, check_model, shape_of, uncompiled
from .hooks import ClippingAlone
from .lora import KPoolLoraConfig, own_names
from .session import Session, meet

EXIT_TIMEOUT_S = 600.0
"""A process that ends without closing waits this long for the last round, then leaves."""
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
        this for every step; a replica of one worker gets 1.

        Args:
            tokens: This worker's supervised tokens; 0 makes its loss weightless.
        """
        return whole(self._inside, tokens, 0, 0.0).weight

    def count(self, tokens: int | Tensor) -> None:
        """Say how many supervised tokens (or samples, if that is what is counted) the newest forward pass has.

        For those who know better than the pool, which looks at the labels, or at the first tensor. Call it after the
        pass and before the optimizer's step; where the pool has seen no pass, it is the step's own number.

        Args:
            tokens: At least 0.

        Raises:
            ConfigError: it is no such number.
        """
        if isinstance(tokens, Tensor) and tokens.numel() == 1:
            tokens = tokens.item()  # type: ignore[assignment]
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            raise ConfigError([f"tokens must be a whole number of at least 0, found {tokens!r}"])
        if self._session is not None:
            self._session.count(tokens)

    def close(self, timeout_s: float | None = None) -> None:
        """Wait until every replica has closed and the last round is committed: all then stand on the same adapter.

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
    model, settings = uncompiled(model), check_config(config).settings()
    place = world.read(replica, replicas)
    inside = found(place.replica, place.replicas) if place.named else ALONE
    adapter = check_model(model, config, settings)
    if place.replicas == 1:
        return PlesioHandle(model, place, None, inside, _clipping_alone(model, config, settings, adapter))
    if place.replica == 0:
        for note in settings.notes():
            warnings.warn(own_names(note), stacklevel=2)
    if inside.workers == 1:
        keep_apart(place)
    path = Path(keys) if keys is not None else None
    at, clip, trusted = config.sideband_addr, config.grad_clip, config.trust_network
    session = meet(model, settings, adapter, place, at, path, clip, inside, trusted)
    return PlesioHandle(model, place, session, inside)


def plesio_shutdown(model: nn.Module) -> None:
    """Close the model's handle: after this every replica holds the same adapter.

    Raises:
        ConfigError: the model is in no pool.
        TsugiError: see PlesioHandle.close.
    """
    handle = uncompiled(model).__dict__.get(ATTRIBUTE)
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
