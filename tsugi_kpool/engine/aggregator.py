"""The aggregator: the only thread of a replica that takes part in rounds."""

from __future__ import annotations

import math
import threading
import time

from tsugi_kpool.core.messages import (
    Abort,
    Broken,
    Check,
    Commit,
    Compare,
    Compared,
    Fire,
    Generation,
    Message,
    Reduced,
)
from tsugi_kpool.core.replica.linger import Linger
from tsugi_kpool.core.replica.ports import Uplink
from tsugi_kpool.core.replica.stage import Action, Stage, react, unaware
from tsugi_kpool.core.settings import KPool
from tsugi_kpool.errors import TrainingError, TsugiError

from .anchor_copy import AnchorCopy
from .buffer import ElasticBuffer
from .checkpoint_parts import CheckpointParts
from .collective import CollectiveError
from .contribution_check import ContributionCheck
from .exchanging import ExchangeGroup, ExchangeReducer, left_at, reducer_of
from .membership import GroupFactory, Membership
from .owner_check import OwnerCheck
from .reducing import Reducer, Traffic
from .rounds import Contribution, RoundResult, UnusableRound, reduced
from .state import Tensors
from .thread_flags import POLL_S, ThreadFlags

REASON_CHARS = 500
"""Characters of a broken collective's error that are reported."""


class Aggregator:
    """Obeys the hub's orders: forms groups, runs collectives, commits rounds. `start`, `stop`; `flags` tell the
    training thread.

    Args:
        buffer: What is shipped, and where reduced rounds go.
        settings: The pool's settings.
        uplink: Orders come from here, reports go there.
        group_factory: Forms the group of a generation.
    """

    def __init__(self, buffer: ElasticBuffer, settings: KPool, uplink: Uplink, group_factory: GroupFactory) -> None:
        self._buffer, self._settings, self._uplink = buffer, settings, uplink
        self.membership, self.flags = Membership(group_factory), ThreadFlags()
        self.checkpoint_parts: CheckpointParts | None = None
        """Writes this replica's part of checkpoints; None where there are none."""
        self.anchor_copy: AnchorCopy | None = None
        """Copies what this replica is to evaluate; None where nobody evaluates while training."""
        self._in_flight: tuple[Contribution, RoundResult, int | None] | None = None
        """Our contribution, the round's result, and our place among those whose parts are in it (None: ours is not).
        None while no round waits for its Commit."""
        self._reducer: Reducer | None = None
        """Sums the rounds of the present generation."""
        self._owner_check = OwnerCheck()
        self._questions: set[tuple[int, int, type[Message]]] = set()
        """What the hub has asked of the round in flight: generation, round, and which order."""
        self.asked_s = -math.inf
        """When it has asked something new, on the monotonic clock."""
        self._broken: Broken | None = None
        """What we have said of our newest group: it has broken, or did not form."""
        self._check = ContributionCheck(settings.mode)
        self.linger = Linger(settings)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tsugi-aggregator", daemon=True)
        self.stage = Stage.OUTSIDE
        self.members: tuple[int, ...] = ()
        """Of the newest generation."""
        self.fired: Fire | None = None
        """The newest round that was begun here."""
        self._told = 0
        """The newest round that was heard to be committed."""
        self.version = self.round = self.reduced = self.sent_bytes = self.received_bytes = 0

    def start(self) -> None:
        # Watch before the thread runs: an Abort must find `heed` in place even for the first round.
        self._uplink.watch(self.heed)
        self._thread.start()

    def heed(self, order: Message) -> None:
        """Link thread: look at an order as it arrives, because the aggregator's thread may wait in a collective
        that the order makes useless."""
        here = (self.membership.generation, self.round)
        if isinstance(order, Commit):
            self._told = max(self._told, order.round)
        exchange = isinstance(self.membership.group, ExchangeGroup) and self.flags.formed.is_set()
        if exchange and isinstance(order, Generation) and order.version > self.version:
            return  # the round that we are in, or have not begun yet, was committed: we end it first
        self.membership.heed(order, isinstance(order, Abort) and (order.generation, order.round) == here)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread; a collective in flight fails because its sockets are shut down."""
        self._stopping.set()
        self.membership.interrupt()
        self._thread.join(timeout=timeout_s)
        if self.membership.reaching is not None:
            self.membership.reaching.stop()

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        if stage in (Stage.IN_FLIGHT, Stage.REDUCED):
            self.flags.between_rounds.clear()
        else:
            self.flags.between_rounds.set()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                order = self._uplink.next_order(POLL_S)
                if order is not None:
                    self._obey(order)
                elif self.stage is Stage.IDLE and self.membership.severed:
                    self._broke(self.membership.generation, 0, CollectiveError("a member's connection has closed"))
        except TsugiError as error:
            self.flags.error = error
        except (
            OSError,
            RuntimeError,
            MemoryError,
        ) as error:  # torch's and gloo's: no memory, no file, no thread left
            self.flags.error = TrainingError(f"this replica's rounds have failed: {error!r}")
            self.flags.error.__cause__ = error
        except Exception as error:  # noqa: BLE001  (a thread's outermost frame; raised again by check)
            self.flags.error = TsugiError(f"the aggregator thread has failed: {error!r}")
            self.flags.error.__cause__ = error

    def _obey(self, order: Message) -> None:
        if isinstance(order, Check | Compare):
            self._asked(order)
        if isinstance(order, Check):
            self._check_owner(order)
            return
        if isinstance(order, Compare):
            self._compare(order)
            return
        if self._broken is not None and unaware(self._broken, order):
            self._uplink.report(self._broken)
            return
        action = react(self.stage, self.membership.tried, self.round, self.version, order)
        self.flags.take(order, self.version)
        if action is not Action.IGNORE and isinstance(order, Generation | Fire | Commit):
            # Before the commit, or the training thread could take in the new anchors and still train the old set of
            # adapters.
            self._buffer.activate(order.active)
        # The round in flight is settled before a new group or round begins: both drop what is in flight, and both
        # start from our version.
        if action.commits:
            self._commit(order if isinstance(order, Commit) else None)
        if action.forgets:
            self._forget()
            self._enter(Stage.IDLE)
        if action.forms and isinstance(order, Generation):
            self._form(order)
        if action.starts and isinstance(order, Fire):
            self._aggregate(order)

    def _form(self, order: Generation) -> None:
        """Form the group of a generation."""
        self._broken = None
        self._forget()
        self._enter(Stage.OUTSIDE)
        known = self.version if self.flags.formed.is_set() else None
        try:
            self.version = self.membership.form(order, self._buffer, known) or 0
        except CollectiveError as error:
            self._broke(order.generation, 0, error)
            return
        if isinstance(self.membership.group, ExchangeGroup) and self.version < order.version:
            raise TrainingError(f"this replica has lost a round that the others have committed ({order.version})")
        if (group := self.membership.group) is not None:
            with self._buffer.undisturbed():  # residuals that another member owns now become our own change
                self._reducer = reducer_of(group, self._buffer.update, self._settings, self._uplink.sign)
        self.members = order.members
        self._enter(Stage.IDLE)
        self.flags.formed.set()
        # The hub fires no round before every member's beat names this generation, so a beat goes out now.
        self._uplink.nudge()

    def _forget(self) -> None:
        """Drop the round in flight: what was shipped stays buffered."""
        self._in_flight = None
        self._buffer.forget()

    def _broke(self, generation: int, round: int, error: CollectiveError) -> None:
        """Report a broken group. The hub's next Generation says what becomes of the round."""
        # Our sockets close first: members that still wait for us in the collective wake up at once.
        self.membership.let_go()
        self._forget()
        self._enter(Stage.OUTSIDE)
        self._broken = Broken(0, 0, "", generation, round, str(error)[:REASON_CHARS])
        self._uplink.report(self._broken)

    def _aggregate(self, fire: Fire) -> None:
        """Ship what is buffered now and combine it with the others' parts; apply nothing yet."""
        reducer = self._reducer
        # A newer Generation may have come while the group formed, when `heed` had no group to interrupt. Its members
        # are not in this round: a collective would only end by its timeout.
        if reducer is None or self.membership.group is None or self.membership.overtaken(fire.generation):
            return
        started_s = time.monotonic()
        # Set before the collective: `heed` ends it for an Abort of exactly this round.
        self.round, self.fired = fire.round, fire
        self._enter(Stage.IN_FLIGHT)
        contribution = self._buffer.contribution(fire.adapters)
        # The check comes before the collective: once shipped, one replica's NaN spoils the whole round.
        contribution = self._buffer.usable(contribution, self._check.of(contribution))
        try:
            if isinstance(reducer, ExchangeReducer) and fire.round <= self._told:
                reduction = reducer.fetch(contribution, fire)  # committed without us: nothing of ours is wanted
            else:
                reduction = reducer.reduce(contribution, fire)
        except CollectiveError as error:
            self._broke(fire.generation, fire.round, error)
            return
        outcome = reduction.outcome
        if reduction.void:  # too late: all of it stays buffered, for the next round of these adapters
            contribution = self._buffer.void(contribution)
        counted = reduction.counted or self.members  # a result has figures of those whose parts are in it alone
        place = None if reduction.void else counted.index(self.members[reducer.rank])
        self._in_flight = None if isinstance(outcome, UnusableRound) else (contribution, outcome, place)
        self.reduced = fire.round
        self._enter(Stage.REDUCED)
        traffic = self._count(reduction.traffic)
        took_s = (time.monotonic() - started_s, traffic.transfer_s)
        # Reduce first, commit later: our report is a vote. Nothing is applied before the hub has the same digest from
        # every member.
        shipment, size = contribution.shipment, traffic.payload_bytes
        said = (reduction.first, reduction.counted, reduction.durables, reduction.receipt)
        self._report(reduced(fire, shipment, outcome, size, took_s, *said))

    def _asked(self, order: Check | Compare) -> None:
        """The hub asks more of the round in flight before it commits it. For each question it gives all members as
        much time as for the round, and so does whoever waits for the Commit; not again when it is repeated."""
        question = (order.generation, order.round, type(order))
        if question[:2] == (self.membership.generation, self.round) and question not in self._questions:
            self.asked_s = time.monotonic()
            self._questions = {each for each in self._questions if each[:2] == question[:2]} | {question}

    def _check_owner(self, order: Check) -> None:
        """Take part in the check of an owner of the round in flight."""
        reducer = self._reducer
        if not self._is_reduced(order) or reducer is None:
            return
        try:
            found, traffic = self._owner_check.take_part(order, self.members, reducer)
        except CollectiveError as error:
            self._broke(order.generation, order.round, error)
            return
        if traffic is not None:
            self._count(traffic)
        if found is not None:
            self._uplink.report(found)

    def _compare(self, order: Compare) -> None:
        """Say what each member has told us in the round in flight. Asked again, we say it again."""
        if not self._is_reduced(order):
            return
        if self._reducer is not None and (shown := self._reducer.shown()) is not None:
            self._uplink.report(Compared(0, 0, "", order.generation, order.round, *shown))

    def _is_reduced(self, order: Check | Compare) -> bool:
        """Whether an order is about the round in flight, and that is reduced here."""
        here = (self.membership.generation, self.round, Stage.REDUCED)
        return (order.generation, order.round, self.stage) == here

    def left_over(self) -> Tensors:
        """Return what the exchange has left over of all adapters, for a checkpoint of this version: nothing where it
        cannot be had, as from a fleet of one, which sends nothing there."""
        group = self.membership.group
        if not isinstance(group, ExchangeGroup):
            return {}
        return left_at(group, self._buffer.update.anchor)

    def _count(self, traffic: Traffic) -> Traffic:
        self.sent_bytes += traffic.sent_bytes
        self.received_bytes += traffic.received_bytes
        return traffic

    def _report(self, message: Reduced) -> None:
        """Report a round to the hub. Tests inject faults here."""
        self._uplink.report(message)

    def _commit(self, order: Commit | None) -> None:
        """Commit the round in flight; None: another order has shown that it counts."""
        if self._in_flight is None:
            return
        contribution, outcome, place = self._in_flight
        # Anchors move before the version counts up: the version in a beat says that its anchors are in place here.
        self._buffer.commit(contribution, outcome)
        self._check.committed(outcome, len(outcome.weights))
        if self._reducer is not None:
            self._reducer.committed(self.round)
        if place is not None:
            self.linger.committed(outcome.steps, place)
        self._in_flight = None
        self.version += 1
        # In this thread and before the next order, because anchors move nowhere else: the copy is exactly this
        # version's.
        if order is not None and order.save and self.checkpoint_parts is not None:
            self.checkpoint_parts.commit(self.version, self.membership.first, writer=order.writer)
        if order is not None and self.anchor_copy is not None:
            self.anchor_copy.committed(self.version, order.evaluator)
        self._enter(Stage.IDLE)
        self.flags.committed.set()
        self._uplink.nudge()
