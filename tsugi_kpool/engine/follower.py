"""The engine of a replica's other workers: they train, and do at every boundary what worker 0 says."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tsugi_kpool.core.messages import Evaluated, Lease
from tsugi_kpool.core.settings import KPool

from .engine import KPoolEngine
from .gradient import OptimizerFactory
from .inside import Inside
from .progress import Progress
from .state import moments
from .steps import Steps
from .team import Word, open_pool


class Follower(Steps):
    """The training thread's side of a worker without link, aggregator and ledger: the calls of `KPoolEngine`.

    Args:
        model: As in `KPoolEngine`.
        settings: As in `KPoolEngine`.
        inside: The workers of our replica; we are not worker 0.
        adapter_name: PEFT's name of the LoRA.
        grad_clip: Largest gradient norm of a micro-step in local mode.
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
        """For whoever writes to it as to the leader's; nobody reads it."""
        self.first = 0
        self.version = 0
        self.draining = self.saving = False

    @property
    def equipped(self) -> bool:
        """The fleet's optimizer is the leader's."""
        return True

    def equip(self, optimizer: OptimizerFactory) -> None:
        """As in `KPoolEngine`; nothing is to be done here."""

    def join(self) -> None:
        """As in `KPoolEngine`."""
        self._hear()

    def leases(self) -> Iterator[Lease]:
        """The leader's leases."""
        while not self.draining:
            word = self._team.hear()
            self._note(word)
            if word.lease is None or word.lease.stop <= word.lease.start:
                return
            yield word.lease

    def ask_draining(self) -> bool:
        """As in `KPoolEngine`."""
        self._hear()
        return self.draining

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """As in `KPoolEngine`: with shards, worker 0 gets ours."""
        self.saving = False
        moments(optimizer)

    def flush(self, timeout_s: float) -> None:
        """The leader writes."""
        del timeout_s

    def land(self) -> None:
        """As in `KPoolEngine`."""
        self._hear()

    def report(
        self, samples: int, tokens: int, seconds: float, loss: float, lr: float, worked: int | None = None
    ) -> None:
        """The leader reports."""
        self.progress.count(samples, tokens, seconds, loss, lr, tokens if worked is None else worked)

    def finish(self, timeout_s: float | None = None) -> bool:
        """As in `KPoolEngine`; it is the leader who gives up after `timeout_s`."""
        del timeout_s
        return self._hear()

    def evaluated(self, message: Evaluated) -> None:
        """Give worker 0 our part."""
        self._team.merge(message)

    def _hear(self) -> bool:
        word = self._team.hear()
        self._note(word)
        return word.evaluate

    def _note(self, word: Word) -> None:
        self.draining, self.version, self._active = word.draining, word.version, word.active
        self.saving, self.first = word.saving, word.first
        self._anew = self._anew or word.anew


Engine = KPoolEngine | Follower
"""What a training loop calls, whichever worker it runs on."""
