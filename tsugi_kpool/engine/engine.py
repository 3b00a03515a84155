"""The engine of one replica: what its training thread calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tsugi_kpool.core.messages import Beat, Discarded, Evaluated, Lease
from tsugi_kpool.core.replica.ports import Uplink
from tsugi_kpool.core.settings import KPool
from tsugi_kpool.exchange.client import ExchangeClient

from .aggregator import REASON_CHARS, Aggregator
from .anchor_copy import AnchorCopy, Version
from .boundary import Boundary
from .buffer import ElasticBuffer
from .checkpoint_parts import CheckpointParts, begin_from
from .gradient import GradientUpdate, OptimizerFactory
from .inside import ALONE, Inside
from .local_group import open_pool
from .membership import GroupFactory, exchange_groups, gloo_groups
from .modes import update_rule
from .network import LOOPBACK, Network
from .progress import Progress, beat_of
from .reaching import Reaching
from .state import Tensors
from .steps import Steps
from .thread_flags import ThreadFlags


class KPoolEngine(Steps):
    """Composes pool, buffer and aggregator. The training thread does no network I/O in any of its methods.

    Args:
        model: A PEFT model whose LoRA has rank n * r.
        settings: The pool's settings.
        replica: Our number.
        adapter_name: PEFT's name of the LoRA.
        network: Where the other replicas reach this machine.
        optimizer: Makes the fleet's optimizer in gradient mode; None when a later `equip` does. In local mode the
            training thread brings its own.
        grad_clip: Largest gradient norm: of a step in local mode, of a round's mean gradient in gradient mode.
        inside: The workers of our replica, of which we are worker 0. The others have a `Follower`, which answers to
            every call of ours that is marked as a boundary.
        decay_tokens: Gradient mode: tokens of a round that decays as the optimizer says, others in proportion.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: KPool,
        replica: int,
        adapter_name: str = "default",
        network: Network = LOOPBACK,
        optimizer: OptimizerFactory | None = torch.optim.AdamW,
        grad_clip: float | None = None,
        inside: Inside = ALONE,
        decay_tokens: float | None = None,
    ) -> None:
        pool = open_pool(model, settings.n, adapter_name, inside)
        self.buffer = ElasticBuffer(update_rule(pool, settings, optimizer, grad_clip, decay_tokens))
        super().__init__(settings, pool, inside, grad_clip, self.buffer)
        self.replica, self._network = replica, network
        self._checkpoints: Path | None = None
        self._apart = False
        self._evaluates = False
        self.progress = Progress()
        self._boundary: Boundary | None = None
        self._stepped = False
        """Whether a step has ended since rounds were last applied."""
        self._exchange: ExchangeClient | None = None

    def start(
        self, uplink: Uplink, group_factory: GroupFactory | None = None, exchange: ExchangeClient | None = None
    ) -> None:
        """Start to take orders. Groups are gloo's unless an exchange or another factory is given."""
        self._exchange = exchange
        aggregator = Aggregator(self.buffer, self.settings, uplink, group_factory or self._groups(uplink))
        if self._checkpoints is not None:
            left_over = aggregator.left_over if exchange else None
            aggregator.checkpoint_parts = CheckpointParts(
                self._checkpoints, self.replica, self.buffer, uplink, left_over, self._apart
            )
        if exchange is None and group_factory is None and not self._network.loopback:
            aggregator.membership.reaching = Reaching(uplink, self.replica, self._network.address)
        if self._evaluates:
            aggregator.anchor_copy = AnchorCopy(self.replica, self.buffer)
        # Before the thread starts: it asks for `self.aggregator` while it forms a group.
        self._boundary = Boundary(self._local_group, self.buffer, aggregator, uplink, self.settings)
        aggregator.start()

    def stop(self) -> None:
        """End the aggregator and the writer of checkpoints."""
        if self._boundary is not None:
            self.aggregator.stop()
            if self._exchange is not None:
                self._exchange.close()
            self.flush(0.0)  # after a good end it has been waited for

    def keep(self, root: Path, apart: bool = False) -> None:
        """Take part in checkpoints: write our files below this folder. Before `start`.

        Args:
            root: The run's folder of checkpoints, on this machine.
            apart: The hub's machine is another one, and fetches what the generation's first member writes.
        """
        self._checkpoints, self._apart = root, apart

    def evaluate_between_steps(self) -> None:
        """Take part in evaluation while training: see `to_evaluate`. Before `start`."""
        self._evaluates = True

    def begin_from(self, tensors: Mapping[str, Tensor], residuals: Tensors | None = None) -> None:
        """Take over a checkpoint's anchors and residuals. Before `start`.

        Raises:
            LaunchError: they are another pool's.
        """
        begin_from(self.buffer, tensors)
        self.buffer.update.restore_residuals(residuals or {})

    @property
    def saving(self) -> bool:
        """Whether a checkpoint wants this replica's moments, as of the last boundary: then call `save`."""
        return self.boundary.saving

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the loop's optimizer for a checkpoint; a thread writes the copy. A boundary."""
        self.boundary.saving = False
        if self.aggregator.checkpoint_parts is not None:
            self.aggregator.checkpoint_parts.give(optimizer)

    def flush(self, timeout_s: float) -> None:
        """Wait until our files of the last checkpoint are written and the hub has been told."""
        # Taken from the aggregator first: a Commit that comes now must not write to a writer that has stopped.
        checkpoint_parts, self.aggregator.checkpoint_parts = self.aggregator.checkpoint_parts, None
        if checkpoint_parts is not None:
            checkpoint_parts.stop(timeout_s)

    def join(self) -> None:
        """Wait until the fleet is complete and every replica has the same anchors. A boundary."""
        self.boundary.wait(self.flags.formed)
        self._say()

    @property
    def equipped(self) -> bool:
        """Whether this replica can commit rounds: in gradient mode it needs the fleet's optimizer."""
        update = self.buffer.update
        return not isinstance(update, GradientUpdate) or update.optimizer is not None

    def equip(self, optimizer: OptimizerFactory) -> None:
        """Make the fleet's optimizer of gradient mode. The hub fires no round before every replica has one."""
        if isinstance(self.buffer.update, GradientUpdate):
            self.buffer.update.equip(optimizer)

    def leases(self) -> Iterator[Lease]:
        """Yield ranges of data until there are no more or the fleet is told to stop. A boundary before each of
        them."""
        while not self.draining:
            started_s = time.monotonic()
            with self._local_group.telling():
                lease = self.boundary.uplink.lease()
            self.progress.wait_s += time.monotonic() - started_s
            # Before a beat can say `drained`: the hub reads that together with this ticket.
            self.progress.ticket = lease.ticket
            if lease.stop <= lease.start and self._refilled():
                continue
            self._say(lease=lease)
            if lease.stop <= lease.start:
                return
            yield lease

    def _refilled(self) -> bool:
        """Wait, with no data left, until every contribution is committed or a lost replica's data come back; returns
        whether they have."""
        self.progress.out_of_data()
        self.boundary.uplink.nudge()
        again = self.boundary.again()
        if again:
            self.progress.at_work_again()
        return again

    @property
    def draining(self) -> bool:
        """Whether the fleet has been told to stop: begin no further step.

        With several workers it is as of the last boundary. Otherwise one worker would stop before the others.
        """
        return self.boundary.draining if self.inside.workers > 1 else self.flags.draining.is_set()

    def ask_draining(self) -> bool:
        """Ask for the newest `draining`, and return it. A boundary."""
        self._say()
        return self.draining

    def apply_rounds(self) -> None:
        """Apply the committed rounds; raise what has failed in the aggregator. A boundary.

        Without overlap it first waits for the round in flight. After a step it may linger (`kpool.linger`).
        """
        started_s = time.monotonic()
        with self._local_group.telling():
            self.flags.check()
            if not self.settings.overlap or self.buffer.refused is not None:
                self.boundary.commit_wait.between_rounds()
            if self._stepped:
                self.boundary.commit_wait.linger()
                self._stepped = False
            self.boundary.take_in()
        self._say()
        self.progress.sync_wait_s += time.monotonic() - started_s

    def report(
        self, samples: int, tokens: int, seconds: float, loss: float, lr: float, worked: int | None = None
    ) -> None:
        """Report a step; the hub may fire for it.

        Args:
            samples: In its micro-batch.
            tokens: Supervised ones.
            seconds: That it took; the wait for the buffer's lock in it is told apart.
            loss: Its mean loss.
            lr: Its learning rate.
            worked: Tokens computed on, prompts and padding included; as many as `tokens` when it is not known.
        """
        held_s = self.buffer.take_waited_s()
        self.progress.sync_wait_s += held_s
        self.progress.count(
            samples, tokens, max(0.0, seconds - held_s), loss, lr, tokens if worked is None else worked
        )
        if self._boundary is not None:
            self._stepped = True
            self.aggregator.linger.stepped(self.progress.step_s)
            self._boundary.uplink.nudge()

    def finish(self, timeout_s: float | None = None, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Wait for the last round, with no data left, and take the final anchors. A boundary.

        Args:
            timeout_s: Give up then; None waits for as long as the others train.
            meanwhile: Called now and then; what it raises ends the wait.

        Returns:
            Whether the fleet wants a final evaluation.

        Raises:
            TrainingError: the last round has not come in time.
        """
        if not self.progress.drained:
            self.progress.out_of_data()
        aggregator = self.aggregator
        self.boundary.wait(self.flags.finished, timeout_s, meanwhile)
        self.buffer.settle(aggregator.membership.alone)
        finish = self.flags.finish
        if aggregator.checkpoint_parts is not None:
            # After `settle`, which in a fleet of one may move the anchors by a rounding.
            writer = finish.writer if finish is not None else None
            aggregator.checkpoint_parts.commit(aggregator.version, aggregator.membership.first, True, writer)
        evaluate = finish is not None and finish.evaluate
        self._say(evaluate=evaluate)
        return evaluate

    def skipped(self, reason: str, tokens: int, batches: int) -> None:
        """Tell the hub of micro-batches that were left out of a step, and why."""
        self.boundary.uplink.report(Discarded(0, 0, "", reason[:REASON_CHARS], tokens, skipped=batches))

    def evaluated(self, message: Evaluated) -> None:
        """Send the sums of this replica's share of an evaluation. A boundary."""
        self.boundary.uplink.report(self._local_group.merge(message))

    def to_evaluate(self) -> Version | None:
        """Return the newest version that this replica is to evaluate and has not taken yet."""
        copies = self.aggregator.anchor_copy
        return None if copies is None else copies.take()

    def version_evaluated(self, message: Evaluated) -> None:
        """Send what a version measures; the replica's other workers know nothing of it."""
        self.boundary.uplink.report(message)

    def beat(self, incarnation: str) -> Beat:
        """Return the present beat."""
        aggregator = self._boundary.aggregator if self._boundary is not None else None
        return beat_of(self.replica, incarnation, self.progress, self.buffer, aggregator, self.equipped)

    def _say(self, lease: Lease | None = None, evaluate: bool = False) -> None:
        message = self.boundary.broadcast(lease, evaluate)
        self._anew, self._members = self._anew or message.anew, message.members

    @property
    def first(self) -> int:
        """The lowest remaining replica at the end, which exports the adapter."""
        return self.flags.first

    @property
    def version(self) -> int:
        """Rounds that this replica has committed."""
        return self.aggregator.version

    @property
    def flags(self) -> ThreadFlags:
        """What the aggregator tells the training thread."""
        return self.aggregator.flags

    @property
    def aggregator(self) -> Aggregator:
        return self.boundary.aggregator

    @property
    def boundary(self) -> Boundary:
        if self._boundary is None:
            raise RuntimeError("the engine has not been started")
        return self._boundary

    def _groups(self, uplink: Uplink) -> GroupFactory:
        def overtaken(generation: int) -> bool:
            return self.aggregator.membership.overtaken(generation)

        if self._exchange is not None:
            return exchange_groups(self._exchange, self.replica, overtaken)
        return gloo_groups(uplink, self.replica, self._network, self.settings.round_timeout_s, overtaken)
