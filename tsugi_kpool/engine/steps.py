"""The step of one worker: what it does to the live parameters. The part of the engine that every worker has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from tsugi_kpool.core.settings import KPool, Mode, SelectAt
from tsugi_kpool.errors import ConfigError
from tsugi_kpool.fleet_adamw import FleetAdamW

from .active import AdapterParameters
from .buffer import ElasticBuffer
from .inside import Inside
from .local_group import LocalGroup, LocalGroupPool
from .pool import AdapterPool
from .state import restore

NOT_IN_SHARDS = "kpool.select_at=train cannot be used with fsdp2, which cuts every adapter into several shards"


class Steps:
    """The training thread's side of one worker.

    Args:
        settings: The pool's settings.
        pool: The live adapters.
        inside: The workers of our replica.
        grad_clip: Largest gradient norm of a step in local mode.
        buffer: What takes the step in; worker 0's only.
    """

    def __init__(
        self,
        settings: KPool,
        pool: AdapterPool,
        inside: Inside,
        grad_clip: float | None,
        buffer: ElasticBuffer | None,
    ) -> None:
        self.settings, self.pool, self.inside = settings, pool, inside
        self._grad_clip, self._fills = grad_clip, buffer
        self._local_group = LocalGroup(inside, pool)
        self._active: tuple[int, ...] = ()
        self._anew = False
        """Whether the replica has begun again from the anchors since the loop's optimizer has stepped."""
        self._members = 0
        """Replicas of the newest generation as of the last boundary, the same on all workers; 0: not known."""
        self._shards = pool if isinstance(pool, LocalGroupPool) and pool.sharded else None
        if settings.select_at is SelectAt.TRAIN and self._shards is not None:
            raise ConfigError([NOT_IN_SHARDS])
        alone = settings.select_at is SelectAt.TRAIN and settings.mode is Mode.LOCAL
        self._adapters = AdapterParameters(pool) if alone else None

    def apply(
        self, optimizer: torch.optim.Optimizer, tokens: int, samples: int = 0, nonsense: str | None = None
    ) -> None:
        """Apply the step's gradients, with the weight of the replica's supervised tokens. A boundary.

        In local mode the optimizer steps, and the change is buffered. In gradient mode the gradients are buffered,
        and of the optimizer only the learning rate is read: a round will step for all replicas.

        Args:
            optimizer: The loop's.
            tokens: Supervised ones of the whole replica.
            samples: That the replica has trained on, where the hub leases its data.
            nonsense: Why it must not take effect: it is thrown away with all that is buffered, and the replica
                begins again from the anchors. The same on all workers.
        """
        self.prepare(optimizer)
        if nonsense is not None:
            if self._fills is not None:
                self._fills.refuse(nonsense, tokens, samples)
            optimizer.zero_grad(set_to_none=True)
            for parameter in self.pool.parameters():
                parameter.grad = None
            return
        if self._adapters is not None:
            self._apply_active(optimizer, tokens, samples, self._adapters)
            return
        local = self.settings.mode is Mode.LOCAL
        if local and self._grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.pool.parameters(), self._grad_clip)
        with self.collecting(tokens, float(optimizer.param_groups[0]["lr"]), samples):
            if local:
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters for the loop's optimizer: the pool's matrices or, where only some adapters train, one
        flat parameter for each."""
        return self.pool.parameters() if self._adapters is None else self._adapters.flat

    def anchors(self) -> Tensor:
        """Return a copy of the anchors: [N, P], fp32, on the CPU. Worker 0's only."""
        if self._fills is None:
            raise RuntimeError("worker 0 keeps the anchors")
        with self._fills.undisturbed():
            return self._fills.update.anchor.clone()

    @property
    def active(self) -> tuple[int, ...]:
        """The adapters that the present step trains; empty: all."""
        return self._active if self._fills is None else self._fills.active

    def _apply_active(
        self, optimizer: torch.optim.Optimizer, tokens: int, samples: int, adapters: AdapterParameters
    ) -> None:
        """Step the active adapters. The others have no gradient, so neither they nor their moments change."""
        adapters.take_in(self.active, self._grad_clip)
        with self.collecting(tokens, float(optimizer.param_groups[0]["lr"]), samples):
            optimizer.step()
            adapters.give_back()
        optimizer.zero_grad(set_to_none=True)
        for parameter in self.pool.parameters():
            parameter.grad = None

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """Prepare the loop's optimizer for a step: where the replica has begun again, the optimizer does, too. A
        FleetAdamW learns how many replicas are left.

        In local mode a replica that has taken over a donor's anchors also goes on with the donor's moments. Several
        workers' optimizers must stay equal, so they take them at the first step after all have received them.
        """
        if self._anew and self.settings.mode is Mode.LOCAL:
            for parameter in self.trainable():
                optimizer.state.pop(parameter, None)
        self._anew = False
        # After the old moments are dropped: those of a donor are newer.
        if self._local_group.moments:
            restore(optimizer, self._local_group.moments)
            self._local_group.moments = {}
        if isinstance(optimizer, FleetAdamW) and self._members:
            optimizer.follow(self._members)
        if self.settings.mode is Mode.LOCAL and self._fills is not None and self._shards is None:
            self._fills.lend(optimizer, alone=self.inside.workers == 1)

    @contextmanager
    def collecting(self, tokens: int, lr: float = 0.0, samples: int = 0) -> Iterator[None]:
        """Wraps optimizer.step() in local mode, for a loop that does not call `apply`. A boundary."""
        self.open_step()
        try:
            yield
        except BaseException:
            self.drop_step()
            raise
        self.close_step(tokens, lr, samples)

    def open_step(self) -> None:
        """The first half of `collecting`, for hooks before and after a step, which cannot wrap it."""
        if self._fills is not None and self._shards is None:
            self._fills.open_step()

    def close_step(self, tokens: int, lr: float = 0.0, samples: int = 0) -> None:
        """The second half, when the step has succeeded."""
        gradients = self.settings.mode is Mode.GRADIENT
        if self._shards is not None:
            # A collective of all workers, also of those without a buffer, who return below.
            self._shards.gather(gradients)
        if self._fills is None:
            return
        if self._shards is not None:
            # The step has changed shards only, which the aggregator does not read, and needed no lock.
            self._fills.open_step()
            self._shards.fill(gradients)
        self._fills.close_step(tokens, lr, samples)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside the block the aggregator commits no round."""
        with self._fills.undisturbed() if self._fills is not None else nullcontext():
            yield

    def ship_rest(self, tokens: int) -> None:
        """Local mode: the live parameters have changed since the last weight; this is the change's. A boundary."""
        if self._shards is not None:
            self.open_step()
            self.close_step(tokens)
        elif self._fills is not None:
            self._fills.weigh_rest(tokens)

    def drop_step(self) -> None:
        """The second half when the step has failed."""
        if self._fills is not None and self._shards is None:
            self._fills.drop_step()
