"""The engine of a replica's workers other than 0: they train, and follow worker 0 at every boundary."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from tsugi_kpool.core.messages import Evaluated, Lease
from tsugi_kpool.core.settings import KPool

from .engine import KPoolEngine
from .gradient import OptimizerFactory
from .inside import Inside
from .local_group import StepMessage, open_pool
from .progress import Progress
from .state import moments
from .steps import Steps


class Follower(Steps):
    """The engine's calls (`KPoolEngine`) on a worker without link, aggregator and ledger.

    Args:
        model: As in `KPoolEngine`.
        settings: As in `KPoolEngine`.
        inside: The workers of our replica; we are not worker 0.
        adapter_name: PEFT's name of the LoRA.
        grad_clip: Largest gradient norm of a step in local mode.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: KPool,
        inside: Inside,
        adapter_name: str = "default",
        grad_clip: float | None = None,
    ) -> None:
        super().__init__(settings, open_pool(model, settings.n, adapter_name, inside), inside, grad_clip, None)
        self.progress = Progress()
        """Exists because callers write to it as to the leader's; nobody reads it."""
        self.first = 0
        self.version = 0
        self.draining = self.saving = False

    @property
    def equipped(self) -> bool:
        """Always true: the fleet's optimizer is the leader's."""
        return True

    def equip(self, optimizer: OptimizerFactory) -> None:
        """As in `KPoolEngine`; does nothing here."""

    def join(self) -> None:
        """As in `KPoolEngine`."""
        self._receive()

    def leases(self) -> Iterator[Lease]:
        """Yield the leader's leases."""
        while not self.draining:
            message = self._local_group.receive()
            self._note(message)
            if message.lease is None or message.lease.stop <= message.lease.start:
                return
            yield message.lease

    def ask_draining(self) -> bool:
        """As in `KPoolEngine`."""
        self._receive()
        return self.draining

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """As in `KPoolEngine`: with shards, worker 0 gathers ours."""
        self.saving = False
        moments(optimizer)

    def flush(self, timeout_s: float) -> None:
        """As in `KPoolEngine`; only the leader writes."""
        del timeout_s

    def apply_rounds(self) -> None:
        """As in `KPoolEngine`."""
        self._receive()

    def report(
        self, samples: int, tokens: int, seconds: float, loss: float, lr: float, worked: int | None = None
    ) -> None:
        """As in `KPoolEngine`; only the leader reports."""
        self.progress.count(samples, tokens, seconds, loss, lr, tokens if worked is None else worked)

    def finish(self, timeout_s: float | None = None, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """As in `KPoolEngine`; it is the leader who gives up."""
        del timeout_s, meanwhile
        return self._receive()

    def skipped(self, reason: str, tokens: int, batches: int) -> None:
        """The leader tells the hub."""

    def evaluated(self, message: Evaluated) -> None:
        """Send worker 0 our part of an evaluation."""
        self._local_group.merge(message)

    def to_evaluate(self) -> None:
        """The leader evaluates; we wait for it at the next boundary."""

    def version_evaluated(self, message: Evaluated) -> None:
        """The leader tells the hub."""

    def _receive(self) -> bool:
        message = self._local_group.receive()
        self._note(message)
        return message.evaluate

    def _note(self, message: StepMessage) -> None:
        self.draining, self.version, self._active = message.draining, message.version, message.active
        self.saving, self.first = message.saving, message.first
        self._anew, self._members = self._anew or message.anew, message.members


Engine = KPoolEngine | Follower
"""The engine of a training loop, on any worker."""
