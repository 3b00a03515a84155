"""`KPoolCallback`: the pool for transformers.Trainer, and for trainers made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tsugi_kpool import world
from tsugi_kpool.core.settings import Mode
from tsugi_kpool.errors import ConfigError

from .fitting import check_config
from .handle import PlesioHandle
from .lora import KPoolLoraConfig
from .plesio import begin_anew, plesio_init

SEVERAL_PROCESSES = (
    "the Trainer was set up for {world} processes and would average gradients at every step: make the KPoolCallback "
    'before TrainingArguments, and give those accelerator_config={{"use_configured_state": True}}'
)
SEVERAL_GPUS = (
    "the Trainer sees {count} GPUs and would use them all in every process: give each process its own with "
    "CUDA_VISIBLE_DEVICES"
)
SEVERAL_WORKERS = (
    "the callback is for replicas of one process: with several workers in a replica use plesio_init and a loop of "
    "your own"
)
BEST_MODEL = "load_best_model_at_end would put other values into the pool while it trains: choose the best afterwards"


class KPoolCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Joins the pool when training begins and closes it when training ends.

    Make it before TrainingArguments, so that the Trainer takes each process for a whole job. Arguments as in
    `plesio_init`.
    """

    def __init__(
        self,
        config: KPoolLoraConfig,
        *,
        replica: int | None = None,
        replicas: int | None = None,
        keys: str | Path | None = None,
    ) -> None:
        check_config(config)
        place = world.read(replica, replicas)
        if replica is None and place.named and world.worker_rank().workers > 1:
            raise ConfigError([SEVERAL_WORKERS])
        begin_anew(place)
        self.replica, self.replicas = place.replica, place.replicas
        self.handle: PlesioHandle | None = None
        self._config, self._keys = config, keys
        self._max_grad_norm: float | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Refuse settings under which the pool cannot work.

        Raises:
            ConfigError: there are such.
        """
        if self.replicas == 1:
            return
        found = [SEVERAL_PROCESSES.format(world=args.world_size)] if args.world_size > 1 else []
        found += [SEVERAL_GPUS.format(count=args.n_gpu)] if args.n_gpu > 1 else []
        found += [BEST_MODEL] if args.load_best_model_at_end else []
        if found:
            raise ConfigError(found)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Join the pool."""
        config = self._clipping(args)
        self.handle = plesio_init(model, config, replica=self.replica, replicas=self.replicas, keys=self._keys)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Leave it: afterwards every replica's model holds the same adapter."""
        if self._max_grad_norm is not None:
            args.max_grad_norm, self._max_grad_norm = self._max_grad_norm, None
        if self.handle is not None:
            self.handle.close()

    def _clipping(self, args: Any) -> KPoolLoraConfig:
        """In gradient mode the Trainer's limit is that of a round's mean gradient, not of a replica's part of it."""
        config = self._config
        if self.replicas == 1 or config.mode != Mode.GRADIENT:
            return config
        limit, self._max_grad_norm, args.max_grad_norm = args.max_grad_norm, args.max_grad_norm, 0.0
        return config if config.grad_clip is not None or not limit else replace(config, grad_clip=float(limit))
