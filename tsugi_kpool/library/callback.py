"""`KPoolCallback`: the pool for transformers.Trainer, and for trainers made of it."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tsugi_kpool import world
from tsugi_kpool.core.settings import Mode
from tsugi_kpool.errors import ConfigError

from .fitting import ATTRIBUTE, check_config, uncompiled
from .handle import PlesioHandle
from .lora import KPoolLoraConfig
from .plesio import begin_anew, plesio_init
from .reductions import MOST

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


SMOOTHED = (
    "with label_smoothing_factor the Trainer keeps the labels from the model, so that a step weighs its attended "
    "tokens, prompts too, and not its supervised ones"
)


class KPoolCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]  # transformers has no types for us
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
        self.best: int | None = None
        """With load_best_model_at_end, after training: the replica whose model is the best."""

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Refuse settings under which the pool cannot work.

        Raises:
            ConfigError: there are such.
        """
        if self.replicas == 1:
            return
        found = [SEVERAL_PROCESSES.format(world=args.world_size)] if args.world_size > 1 else []
        found += [SEVERAL_GPUS.format(count=args.n_gpu)] if args.n_gpu > 1 else []
        if found:
            raise ConfigError(found)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Join the pool; a loop that begins anew after an error, with another batch size say, goes on in it."""
        if getattr(args, "label_smoothing_factor", 0) and self.replicas > 1:
            warnings.warn(SMOOTHED, stacklevel=2)
        if self.handle is not None and uncompiled(model).__dict__.get(ATTRIBUTE) is self.handle:
            return
        config = self._clipping(args)
        self.handle = plesio_init(model, config, replica=self.replica, replicas=self.replicas, keys=self._keys)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Leave it: afterwards every replica's model holds the same adapter.

        With load_best_model_at_end it holds the best of its own checkpoints instead, and `best` is the replica whose
        best one is the best of all.
        """
        if self._max_grad_norm is not None:
            args.max_grad_norm, self._max_grad_norm = self._max_grad_norm, None
        if self.handle is None:
            return
        if args.load_best_model_at_end:
            self.best = best_of(self.handle, state.best_metric, bool(args.greater_is_better))
            self.handle.close_keeping()
        else:
            self.handle.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Stop with the others, where a replica has called `handle.stop`."""
        if self.handle is not None and self.handle.stopping:
            control.should_training_stop = True

    def _clipping(self, args: Any) -> KPoolLoraConfig:
        """In gradient mode the Trainer's limit is that of a round's mean gradient, not of a replica's part of it."""
        config = self._config
        if self.replicas == 1 or config.mode != Mode.GRADIENT:
            return config
        limit, self._max_grad_norm, args.max_grad_norm = args.max_grad_norm, args.max_grad_norm, 0.0
        return config if config.grad_clip is not None or not limit else replace(config, grad_clip=float(limit))


def best_of(handle: PlesioHandle, metric: float | None, greater: bool) -> int | None:
    """Return the replica with the best metric, the lowest one of several; None when nobody has any. A call of all."""
    found: dict[str, float] = {}
    for first in range(0, handle.replicas, MOST):  # as many as one reduction takes
        own = metric is not None and first <= handle.replica < first + MOST
        found |= handle.reduce({str(handle.replica): metric} if own and metric is not None else {})
    known = {int(name): value for name, value in found.items() if math.isfinite(value)}
    return max(sorted(known), key=lambda each: known[each] if greater else -known[each], default=None)
