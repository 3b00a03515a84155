"""The engine of one replica, as the training thread sees it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tsugi_kpool.core.messages import Beat, Epoch, Evaluated, Lease
from tsugi_kpool.core.ports import Uplink
from tsugi_kpool.core.settings import KPool, Mode, SelectAt, Trigger

from .active import AdapterParameters
from .aggregator import Aggregator, GroupFactory
from .buffer import ElasticBuffer
from .collective import GlooGroup, Group, SidebandStore, SingleGroup
from .gradient import GradientUpdate, OptimizerFactory
from .pool import AdapterPool
from .update import LocalUpdate, UpdateRule

LOSS_SMOOTHING = 0.9


@dataclass
class Progress:
    """What the training thread tells the world. Written by that thread alone, read by the link's."""

    activity: str = "loading"
    micro_steps: int = 0
    samples: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    started_s: float | None = None
    ended_s: float | None = None
    micro_step_s: float = 0.0
    loss: float = 0.0
    lr: float = 0.0
    drained: bool = False

    def trained_s(self) -> float:
        """Seconds since training began, up to its end."""
        if self.started_s is None:
            return 0.0
        return (time.monotonic() if self.ended_s is None else self.ended_s) - self.started_s

    def count(self, samples: int, tokens: int, seconds: float, loss: float, lr: float) -> None:
        """A micro-step has ended."""
        smoothing = LOSS_SMOOTHING if self.micro_steps else 0.0
        self.loss = smoothing * self.loss + (1 - smoothing) * loss
        self.lr, self.micro_step_s = lr, seconds
        self.busy_s += seconds
        self.samples += samples
        self.tokens += tokens
        self.micro_steps += 1


class KPoolEngine:
    """Composes pool, buffer and aggregator. The training thread does no network I/O in any of its methods.

    Args:
        model: A PEFT model whose LoRA has rank n * r.
        settings: The pool's settings.
        replica: Our number.
        adapter_name: PEFT's name of the LoRA.
        interface: Address of this machine at which the other replicas reach it.
        optimizer: Makes the fleet's optimizer in gradient mode. In local mode the training thread brings its own.
        grad_clip: Largest gradient norm: of a micro-step in local mode, of a round's mean gradient in gradient mode.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: KPool,
        replica: int,
        adapter_name: str = "default",
        interface: str = "127.0.0.1",
        optimizer: OptimizerFactory = torch.optim.AdamW,
        grad_clip: float | None = None,
    ) -> None:
        self.settings, self.replica, self._grad_clip = settings, replica, grad_clip
        self._interface = interface
        self.pool = AdapterPool(model, settings.n, adapter_name)
        self.buffer = ElasticBuffer(_update_rule(self.pool, settings, optimizer, grad_clip))
        alone = settings.select_at is SelectAt.TRAIN and settings.mode is Mode.LOCAL
        self._adapters = AdapterParameters(self.pool) if alone else None
        self.progress = Progress()
        self._aggregator: Aggregator | None = None
        self._uplink: Uplink | None = None

    def start(self, uplink: Uplink, group_factory: GroupFactory | None = None) -> None:
        """Take orders from now on. Groups are gloo's unless another factory is given."""
        self._uplink = uplink
        self._aggregator = Aggregator(self.buffer, self.settings, uplink, group_factory or self._gloo_group(uplink))
        self._aggregator.start()

    def stop(self) -> None:
        """End the aggregator."""
        if self._aggregator is not None:
            self._aggregator.stop()

    def join(self) -> None:
        """Wait until the fleet is complete and every replica stands on the same anchors."""
        self.aggregator.wait(self.aggregator.formed)

    def leases(self) -> Iterator[Lease]:
        """Ranges of data, until there are no more or the fleet is told to stop."""
        if self._uplink is None:
            raise RuntimeError("the engine has not been started")
        while not self.draining:
            lease = self._uplink.lease()
            if lease.stop <= lease.start:
                return
            yield lease

    @property
    def draining(self) -> bool:
        """The fleet has been told to stop: begin no further micro-step."""
        return self.aggregator.draining.is_set()

    def land(self) -> None:
        """Take in the rounds that have been committed; raise what the aggregator met.

        Without overlap, first wait for the one that is in flight.
        """
        self.aggregator.check()
        if not self.settings.overlap:
            self.aggregator.wait_for_commit()
        self.buffer.land()

    def apply(self, optimizer: torch.optim.Optimizer, tokens: int) -> None:
        """The micro-step's gradients take effect, with the weight of its supervised tokens.

        In local mode the optimizer steps, and the change is buffered. In gradient mode the gradients are buffered,
        and of the optimizer only the learning rate is read: a round will step for all replicas.
        """
        if self._adapters is not None:
            self._apply_active(optimizer, tokens, self._adapters)
            return
        local = self.settings.mode is Mode.LOCAL
        if local and self._grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.pool.parameters(), self._grad_clip)
        with self.buffer.collecting(tokens, float(optimizer.param_groups[0]["lr"])):
            if local:
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def trainable(self) -> list[nn.Parameter]:
        """What the loop's optimizer holds: the pool's matrices, or, where only some train, one for each adapter."""
        return self.pool.parameters() if self._adapters is None else self._adapters.flat

    def _apply_active(self, optimizer: torch.optim.Optimizer, tokens: int, adapters: AdapterParameters) -> None:
        """Step the adapters that train now; the others have no gradient, so neither they nor their moments move."""
        adapters.take_in(self.buffer.active, self._grad_clip)
        with self.buffer.collecting(tokens, float(optimizer.param_groups[0]["lr"])):
            optimizer.step()
            adapters.give_back()
        optimizer.zero_grad(set_to_none=True)
        for parameter in self.pool.parameters():
            parameter.grad = None

    @contextmanager
    def collecting(self, tokens: int) -> Iterator[None]:
        """Wraps optimizer.step() in local mode, for a loop that does not call `apply`."""
        with self.buffer.collecting(tokens):
            yield

    def report(self, samples: int, tokens: int, seconds: float, loss: float, lr: float) -> None:
        """A micro-step has ended: tell the hub, which may fire."""
        self.progress.count(samples, tokens, seconds, loss, lr)
        if self._uplink is not None:
            self._uplink.nudge()

    def finish(self, timeout_s: float | None = None) -> bool:
        """There is no more data: wait for the last round, stand on the final anchors.

        Args:
            timeout_s: Give up then; None waits for as long as the others train.

        Returns:
            Whether the fleet wants a final evaluation.

        Raises:
            TrainingError: the last round has not come in time.
        """
        self.progress.ended_s = time.monotonic()
        self.progress.activity, self.progress.drained = "draining", True
        aggregator = self.aggregator
        aggregator.wait(aggregator.finished, timeout_s)
        self.buffer.settle()
        return aggregator.finish is not None and aggregator.finish.evaluate

    def evaluated(self, message: Evaluated) -> None:
        """Send the sums of this replica's share of an evaluation."""
        if self._uplink is not None:
            self._uplink.report(message)

    def beat(self, incarnation: str) -> Beat:
        """The present state for the sideband."""
        progress, aggregator = self.progress, self._aggregator
        return Beat(
            replica=self.replica,
            incarnation=incarnation,
            epoch=aggregator.epoch if aggregator else 0,
            version=aggregator.version if aggregator else 0,
            landed=aggregator.landed if aggregator else 0,
            activity=progress.activity,
            micro_steps=progress.micro_steps,
            samples=progress.samples,
            tokens=progress.tokens,
            busy_s=progress.busy_s,
            trained_s=progress.trained_s(),
            micro_step_s=progress.micro_step_s,
            loss=progress.loss,
            lr=progress.lr,
            pooled=self.buffer.pooled(),
            sent_bytes=aggregator.sent_bytes if aggregator else 0,
            drained=progress.drained,
            received_bytes=aggregator.received_bytes if aggregator else 0,
        )

    @property
    def aggregator(self) -> Aggregator:
        if self._aggregator is None:
            raise RuntimeError("the engine has not been started")
        return self._aggregator

    def _gloo_group(self, uplink: Uplink) -> GroupFactory:
        def form(order: Epoch) -> Group:
            if len(order.members) == 1:
                return SingleGroup()
            rank, timeout_s = order.members.index(self.replica), self.settings.round_timeout_s
            store = SidebandStore(uplink, f"epoch{order.epoch}/", timeout_s)
            return GlooGroup(store, rank, len(order.members), self._interface, timeout_s)

        return form


def _update_rule(
    pool: AdapterPool, settings: KPool, optimizer: OptimizerFactory, grad_clip: float | None
) -> UpdateRule:
    measure = settings.trigger is Trigger.CONVERGENCE and not isinstance(settings.eps, str)
    if settings.mode is Mode.GRADIENT:
        return GradientUpdate(pool, optimizer, grad_clip, settings.max_staleness, measure)
    return LocalUpdate(pool, measure)
