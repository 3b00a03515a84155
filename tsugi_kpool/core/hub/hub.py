"""The hub without its sockets: it takes messages and the time, and answers with messages and events.

It orders rounds. No replica starts a collective by itself: ``Fire`` starts a round, ``Commit`` makes it count once
every member has reported the same digest, ``Abort`` forgets it. The hub reads no clock and draws nothing at
random, so that the same inputs give the same outputs. Here every input finds its handler; what is decided stands
in `joining`, `orders`, `firing` and `endings`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tsugi_kpool.core.effects import CheckpointPart, Effect, FleetStage, Send, StepTaken
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.messages import (
    BEAT_SEQ,
    Ack,
    Beat,
    Broken,
    Bye,
    Checked,
    Compared,
    Discarded,
    Evaluated,
    Failed,
    Figures,
    Hello,
    LeaseRequest,
    Message,
    Reduced,
    Refused,
    Saved,
    Stamps,
    StopFleet,
    StoreGet,
    StorePut,
    StoreValue,
    Unreached,
    Vitals,
)
from tsugi_kpool.core.records import PARTED, KeyStored, Leased, Left

from . import (
    checkpoint_orders,
    endings,
    evaluating,
    firing,
    joining,
    leaving,
    liveness,
    orders,
    quarantine,
    skipping,
    slot_requests,
)
from .changes import keep, kept
from .leasing import ahead
from .members import Member
from .resumed import lost
from .state import HubState

SIGN_OF_LIFE_S = 1.0
"""Beats are answered at most this often; a link's shortest sensible timeout is a few seconds."""
STUDY_S = 0.2
"""Five marks a second say enough of a replica's pace: of shorter steps each stands for the mean of several."""
BEAT_ACK = Ack(BEAT_SEQ)


class Hub(HubState):
    """The state machine. Call `receive` for every message and `tick` a few times a second."""

    def receive(self, message: Message, now_s: float) -> list[Effect]:
        """Handle one message of a replica. A message that is repeated changes nothing the second time."""
        if type(message) is Beat:  # first: nine of ten messages are beats
            member = self.members.get(message.replica)
            if member is not None and message.incarnation == member.hello.incarnation and member.lost is None:
                reason = lost(self, message) if self.resumed else None
                return self._beat(member, message, now_s) if reason is None else endings.fail(self, reason)
        if isinstance(message, Hello):
            return joining.welcome(self, message, now_s)
        if isinstance(message, StorePut):
            return [*self._store(message), Send(message.replica, Ack(message.seq))]
        if isinstance(message, StoreGet):
            return [Send(message.replica, StoreValue(message.key, self.store.get(message.key)))]
        return self._from_known(message, now_s)

    def tick(self, now_s: float) -> list[Effect]:
        """Let time pass: deadlines and rounds that are due."""
        liveness.look(self, now_s)
        if self.stage is FleetStage.GATHERING:
            return slot_requests.free_silent(self, now_s) + joining.check_gathering(self, now_s)
        told: list[Effect] = firing.acknowledge(self, now_s) if self.reductions else []
        # After training nobody's pace is anybody's trouble.
        if self.stage is FleetStage.TRAINING and self.stragglers.due(now_s):
            members = {each: self.members[each] for each in self.present}
            for concluded in self.stragglers.turn(members, not self.tally.drained, now_s):
                told += [concluded] if isinstance(concluded, Event) else kept(self, concluded, now_s)
        found = firing.check_round(self, now_s) or liveness.check(self, now_s) or joining.admit(self, now_s)
        found = found or leaving.see_off(self, now_s) or liveness.check_quorum(self, now_s)
        return told + (found or firing.maybe_fire(self, now_s))

    def leave(self, reasons: Mapping[int, str], now_s: float) -> list[Effect]:
        """The launcher says that these replicas' processes have ended, each for its reason."""
        return leaving.leave(self, reasons, now_s)

    def let_go(self, replica: int) -> list[Effect]:
        """Who brought this replica wants it back."""
        return leaving.let_go(self, replica) if self.stage is FleetStage.TRAINING else []

    def interrupt(self) -> list[Effect]:
        """The user wants to stop: nobody starts another step, what is buffered is still aggregated."""
        return endings.interrupt(self)

    def save(self, passed_over: frozenset[int] = frozenset()) -> None:
        """A checkpoint is due: the next round that is committed becomes one.

        Args:
            passed_over: Replicas that are not to write its anchors, as long as others are there.
        """
        self.save_wanted, self.passed_over = True, passed_over

    def _from_known(self, message: Message, now_s: float) -> list[Effect]:
        member = self.members.get(getattr(message, "replica", -1))
        if member is None or getattr(message, "incarnation", None) != member.hello.incarnation:
            return self._from_fenced(message)
        if member.lost is not None:
            return self._from_fenced(message)
        member.heard_s = now_s
        return self._from_member(member, message, now_s)

    def _from_fenced(self, message: Message) -> list[Effect]:
        """A process that has left says something: it changes nothing, and learns that the run goes on without it."""
        replica = getattr(message, "replica", -1)
        reason = self.fenced.get(getattr(message, "incarnation", ""))
        if isinstance(message, Bye) and reason in (None, PARTED):
            return [Send(replica, Ack(message.seq))]
        return [] if reason is None else [Send(replica, leaving.goodbye(self, replica, reason))]

    def _from_member(self, member: Member, message: Message, now_s: float) -> list[Effect]:
        replica = member.hello.replica
        if isinstance(message, Vitals):
            self.stragglers.vitals(message, now_s)
            return [Send(replica, Stamps(message.sent_s, now_s, now_s))]
        if isinstance(message, LeaseRequest):
            reason = lost(self, message) if self.resumed else None
            return self._lease(message) if reason is None else endings.fail(self, reason)
        if isinstance(message, Reduced):
            return firing.on_reduced(self, message, now_s)
        if isinstance(message, Checked):
            return quarantine.checked(self, message, now_s)
        if isinstance(message, Compared):
            return quarantine.compared(self, message, now_s)
        if isinstance(message, Evaluated):
            return [*evaluating.evaluated(self, message), Send(replica, Ack(message.seq))]
        if isinstance(message, Broken):
            return [Send(replica, Ack(message.seq)), *liveness.broke(self, message, now_s)]
        if isinstance(message, Unreached):
            return [*liveness.unreached(self, message), Send(replica, Ack(message.seq))]
        if isinstance(message, Discarded):
            left_out = message.skipped > 0
            return skipping.skipped(self, message) if left_out else quarantine.discarded(self, message, now_s)
        if isinstance(message, Saved):
            written = [CheckpointPart(message)] if checkpoint_orders.possible(self, message) else []
            return [*written, Send(replica, Ack(message.seq))]
        if isinstance(message, Failed):
            return [Send(replica, Ack(message.seq)), *self._failed(message)]
        if isinstance(message, Bye):
            return [*self._bye(member, now_s), Send(replica, Ack(message.seq))]
        if isinstance(message, Figures):
            return self.figures.take(message, self.live())
        if isinstance(message, StopFleet):
            return [*self.interrupt(), Send(replica, Ack(message.seq))]
        return []

    def _beat(self, member: Member, beat: Beat, now_s: float) -> list[Effect]:
        member.heard_s = now_s
        if len(beat.pooled) != self.plan.kpool.n:
            return []  # a member that counts another pool; its hello would have been refused
        effects: list[Effect] = []
        if now_s - member.answered_s >= SIGN_OF_LIFE_S:  # the hub is alive: that is all that this answer says
            member.answered_s = now_s
            effects.append(Send(beat.replica, BEAT_ACK))
        if self.failure is not None and not self.plan.supervised:
            return [*effects, Send(beat.replica, Refused(self.failure))]
        before = member.beat
        self.tally.replace(before, beat)
        if member.observe(beat, now_s):
            self.frontier.advance(beat.steps, now_s)
            if now_s - member.studied_s >= STUDY_S:
                member.studied_s = now_s
                self.stragglers.beat(beat, now_s)
            effects.append(StepTaken(beat, before))
        if now_s - member.ordered_s >= orders.REPEAT_S:
            effects += orders.repeat(self, member, now_s)
        if self.rounds.in_flight is None:
            effects += firing.maybe_fire(self, now_s)
        return effects

    def _failed(self, message: Failed) -> list[Effect]:
        """Before the run begins, somebody else may take the seat; then it is the end of the run."""
        freed = slot_requests.give_back(self, message.replica, message.reason)
        return freed or endings.fail(self, message.reason, message.replica)

    def _bye(self, member: Member, now_s: float) -> list[Effect]:
        """After the end a good-bye; in the middle of the run a replica that leaves."""
        replica, reason = member.hello.replica, "said good-bye"
        if self.over:
            return [] if member.gone else keep(self, Left(replica))
        return slot_requests.give_back(self, replica, reason) or self.leave({replica: reason}, now_s)

    def _store(self, put: StorePut) -> list[Effect]:
        return keep(self, KeyStored(put.key, put.value)) if self.store.get(put.key) != put.value else []

    def _lease(self, request: LeaseRequest) -> list[Effect]:
        lease = self.leases.granted(request.replica, request.ticket)
        if lease is not None:
            return [Send(request.replica, lease)]
        if self.lacks_quorum:
            return []  # it asks again
        size = self.sizes.of(request.replica)
        lease = self.leases.offer(request.ticket, size, ahead(self, request.replica))
        return [*keep(self, Leased(request.replica, lease)), Send(request.replica, lease)]
