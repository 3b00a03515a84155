"""The aggregator: the one thread of a replica that takes part in rounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tsugi_kpool.core.member import Action, Stage, react
from tsugi_kpool.core.messages import (
    Abort,
    Broken,
    Commit,
    Drain,
    Epoch,
    Finish,
    Fire,
    Landed,
    Message,
    Refill,
    Refused,
)
from tsugi_kpool.core.ports import Uplink
from tsugi_kpool.core.settings import KPool, Payload, Routing
from tsugi_kpool.errors import RoundError, TrainingError, TsugiError

from .buffer import ElasticBuffer
from .collective import CollectiveError, Group
from .handover import same, shared, take_over
from .keeper import Keeper
from .rounds import Contribution, Outcome, combine, pack

POLL_S = 0.2
"""How often the thread looks whether it should stop."""
REASON_CHARS = 500
"""Of a broken collective's error."""

GroupFactory = Callable[[Epoch], Group]


class Aggregator:
    """Obeys the hub's orders: forms groups, runs collectives, commits. `start`, `stop`, `check`.

    Args:
        buffer: What is shipped, and where landed rounds go.
        settings: The pool's settings.
        uplink: Orders come from here, reports go there.
        group_factory: Forms the group of an epoch.
    """

    def __init__(self, buffer: ElasticBuffer, settings: KPool, uplink: Uplink, group_factory: GroupFactory) -> None:
        self._buffer, self._settings, self._uplink = buffer, settings, uplink
        self._group_factory = group_factory
        self._group: Group | None = None
        self.keeper: Keeper | None = None
        """Who keeps this replica's part of checkpoints, if anybody does."""
        self._in_flight: tuple[Contribution, Outcome] | None = None
        self._stopping = threading.Event()
        self._error: TsugiError | None = None
        self._thread = threading.Thread(target=self._run, name="tsugi-aggregator", daemon=True)
        self.stage = Stage.OUTSIDE
        self._between_rounds = threading.Event()
        self._between_rounds.set()
        self.epoch = self.version = self.round = self.landed = self.sent_bytes = self.received_bytes = 0
        self.formed = threading.Event()
        self.draining = threading.Event()
        self.refilled = threading.Event()
        """There is data again."""
        self.stirred = threading.Event()
        """One of the three other orders has come that end a wait for the end."""
        self._tried = self._newest = 0
        """The newest epoch whose group was begun here, and the newest that was ordered."""
        self.finish: Finish | None = None
        self.finished = threading.Event()

    @property
    def first(self) -> bool:
        """Whether we are the epoch's first member, which does what only one is to do."""
        return self._group is not None and self._group.rank == 0

    @property
    def alone(self) -> bool:
        """Whether the epoch has one member."""
        return self._group is not None and self._group.world == 1

    def start(self) -> None:
        self._uplink.watch(self.heed)
        self._thread.start()

    def heed(self, order: Message) -> None:
        """In the uplink's thread: what makes a collective that waits in vain not worth waiting for any more."""
        if isinstance(order, Epoch):
            self._newest = max(self._newest, order.epoch)
        over = isinstance(order, Abort) and (order.epoch, order.round) == (self.epoch, self.round)
        group = self._group
        if group is not None and (over or self._newest > self._tried or isinstance(order, Refused)):
            group.interrupt()

    def overtaken(self, epoch: int) -> bool:
        """Whether the hub has ordered a newer epoch than this one."""
        return self._newest > epoch

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread; a collective in flight ends because its group is closed."""
        self._stopping.set()
        if (group := self._group) is not None:
            group.interrupt()
        self._thread.join(timeout=timeout_s)

    def check(self) -> None:
        """Raise here what has gone wrong in the thread."""
        if self._error is not None:
            raise self._error

    def wait(
        self, event: threading.Event, timeout_s: float | None = None, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Wait for one of our events, or raise what has gone wrong meanwhile; `meanwhile` is called now and then.

        Raises:
            TrainingError: it did not come within `timeout_s`.
        """
        started_s = time.monotonic()
        while not event.wait(POLL_S):
            self.check()
            meanwhile()
            if timeout_s is not None and time.monotonic() - started_s > timeout_s:
                raise TrainingError(f"the other replicas did not come to an end within {timeout_s:g} s")

    def wait_for_commit(self) -> None:
        """Wait while a round is in flight or landed but not committed: training without overlap.

        Raises:
            RoundError: it took longer than `round_timeout_s`.
        """
        deadline_s = time.monotonic() + self._settings.round_timeout_s
        while not self._between_rounds.wait(POLL_S):
            self.check()
            if time.monotonic() > deadline_s:
                reason = f"{self.stage} and not committed after {self._settings.round_timeout_s:g} s"
                raise RoundError(self.round, f"{reason} (kpool.round_timeout_s)")

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        if stage in (Stage.IN_FLIGHT, Stage.LANDED):
            self._between_rounds.clear()
        else:
            self._between_rounds.set()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                order = self._uplink.next_order(POLL_S)
                if order is not None:
                    self._obey(order)
        except TsugiError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  (a thread's outermost frame; raised again by check)
            self._error = TsugiError(f"the aggregator thread has failed: {error!r}")
            self._error.__cause__ = error

    def _obey(self, order: Message) -> None:
        action = react(self.stage, self._tried, self.round, self.version, order)
        if isinstance(order, Drain):
            self.draining.set()
        elif isinstance(order, Refill):
            self.refilled.set()
        elif isinstance(order, Finish) and order.version == self.version:
            self.finish = order
            self.finished.set()
        if isinstance(order, Drain | Refill | Finish):
            self.stirred.set()
        if action is not Action.IGNORE and isinstance(order, Epoch | Fire | Commit):
            self._buffer.activate(order.active)
        if action.commits:
            self._commit(isinstance(order, Commit) and order.save)
        if action.forgets:
            self._in_flight = None
            self._enter(Stage.IDLE)
        if action.forms and isinstance(order, Epoch):
            self._form(order)
        if action.starts and isinstance(order, Fire):
            self._aggregate(order)

    def _form(self, order: Epoch) -> None:
        """Build the epoch's group. Buffers and live values stay as they are, except a newcomer's."""
        self._tried = order.epoch
        self._let_go()
        try:
            self._group = self._group_factory(order)
            if order.newcomers:
                self._adopt(order, self._group)
        except CollectiveError as error:
            self._broke(order.epoch, 0, error)
            return
        self.epoch = order.epoch
        self._enter(Stage.IDLE)
        self.formed.set()
        self._uplink.nudge()

    def _adopt(self, order: Epoch, group: Group) -> None:
        """The donor gives its anchors to all. Who stands on the same ones keeps what it has trained on them."""
        state = shared(group, order.members.index(order.donor), self._buffer)
        newcomer = order.members[group.rank] in order.newcomers
        there = self.formed.is_set() and self.version == order.version and same(self._buffer, state)
        if newcomer and not there:
            take_over(self._buffer, state, order.version)
            self.version = order.version

    def _let_go(self) -> None:
        """The group is of no use any more. What was shipped in a round that has not been committed stays buffered."""
        if self._group is not None:
            self._group.close()
        self._group = self._in_flight = None
        self._enter(Stage.OUTSIDE)

    def _broke(self, epoch: int, round: int, error: CollectiveError) -> None:
        """A peer has gone, or the way to it: what becomes of the round is for the hub to say, by its next Epoch."""
        self._let_go()
        self._uplink.report(Broken(0, 0, "", epoch, round, str(error)[:REASON_CHARS]))

    def _aggregate(self, fire: Fire) -> None:
        """Ship what is buffered right now and combine it with the others'; apply nothing."""
        group = self._group
        if group is None:
            return
        if self.overtaken(fire.epoch):
            return
        started_s = time.monotonic()
        self.round = fire.round
        self._enter(Stage.IN_FLIGHT)
        payload = Payload.FP32 if group.world == 1 else self._settings.payload
        contribution = self._buffer.contribution(fire.adapters)
        packed = pack(contribution, payload)
        gathering_s = time.monotonic()
        try:
            parts = group.gather(packed)
        except CollectiveError as error:
            self._broke(fire.epoch, fire.round, error)
            return
        gather_s = time.monotonic() - gathering_s
        feedback, clearness = self._settings.error_feedback, self._settings.routing is Routing.CONVERGED
        outcome = combine(parts, group.rank, contribution, self._buffer.update, payload, feedback, clearness)
        self._in_flight = (contribution, outcome)
        self.landed = fire.round
        self._enter(Stage.LANDED)
        self.sent_bytes += packed.numel() * (group.world - 1)
        self.received_bytes += sum(part.numel() for part in parts) - packed.numel()
        took_s = (time.monotonic() - started_s, gather_s)
        durable = contribution.shipment.durable
        self._report(fire, outcome, packed.numel(), took_s, durable, first=group.rank == 0)

    def _report(
        self,
        fire: Fire,
        outcome: Outcome,
        payload_bytes: int,
        took_s: tuple[float, float],
        durable: int,
        first: bool,
    ) -> None:
        """Tell the hub; what all members would say alike is said by the first one."""
        norm2, trace = outcome.noise
        self._uplink.report(
            Landed(
                seq=0,
                replica=0,
                incarnation="",
                epoch=fire.epoch,
                round=fire.round,
                digest=outcome.digest,
                seconds=took_s[0],
                payload_bytes=payload_bytes,
                weights=outcome.weights if first else (),
                noise_norm2=norm2,
                noise_trace=trace,
                gather_s=took_s[1],
                adapters=outcome.adapters if first else (),
                durable=durable,
            )
        )

    def _commit(self, save: bool) -> None:
        if self._in_flight is None:
            return
        self._buffer.commit(*self._in_flight)
        self._in_flight = None
        self.version += 1
        if save and self.keeper is not None:
            self.keeper.commit(self.version, self.first)
        self._enter(Stage.IDLE)
        self._uplink.nudge()
