"""The hub without its sockets: it takes messages and the time, and answers with messages and events.

It orders rounds. No replica starts a collective by itself: ``Fire`` starts a round, ``Commit`` lands it once
every member has reported the same digest, ``Abort`` forgets it. The hub reads no clock and draws nothing at
random, so that the same inputs give the same outputs.
"""

from __future__ import annotations

from typing import Any

from .effects import Effect, Event, FleetStage, HubPlan, Send
from .fleet import Frontier, Member, Tally
from .ledger import LeaseBook
from .messages import (
    BEAT_SEQ,
    Abort,
    Ack,
    Beat,
    Bye,
    Drain,
    Epoch,
    Evaluated,
    Failed,
    Finish,
    Hello,
    Landed,
    LeaseRequest,
    Message,
    Refused,
    Stamps,
    StoreGet,
    StorePut,
    StoreValue,
    Vitals,
)
from .phase import PhaseBook
from .round_book import RoundBook
from .trigger import Reason, decide

REPEAT_S = 1.0
"""An order is repeated at most this often to a member whose beats show that it has not acted on it."""


class Hub:
    """The state machine. Call `receive` for every message and `tick` a few times a second."""

    def __init__(self, plan: HubPlan, now_s: float) -> None:
        self.plan = plan
        self.started_s = now_s
        self.stage = FleetStage.GATHERING
        self.failure: str | None = None
        self.failed_replica: int | None = None
        self.epoch = 0
        self.members: dict[int, Member] = {}
        self.rounds = RoundBook(plan.kpool, plan.seed)
        self.frontier = Frontier()
        self.tally = Tally(plan.kpool.n)
        self.phase = PhaseBook()
        self.leases = LeaseBook(plan.samples, plan.lease_samples, plan.micro_batch, plan.replicas)
        self.interrupted = False
        self.evaluations: dict[tuple[str, int], Evaluated] = {}
        self._store: dict[str, bytes] = {}

    # --- inputs -------------------------------------------------------------------------------------------

    def receive(self, message: Message, now_s: float) -> list[Effect]:
        """Handle one message of a replica. A message that is repeated changes nothing the second time."""
        if isinstance(message, Hello):
            return self._hello(message, now_s)
        if isinstance(message, StorePut):
            self._store[message.key] = message.value
            return [Send(message.replica, Ack(message.seq))]
        if isinstance(message, StoreGet):
            return [Send(message.replica, StoreValue(message.key, self._store.get(message.key)))]
        member = self.members.get(getattr(message, "replica", -1))
        if member is None or getattr(message, "incarnation", None) != member.hello.incarnation:
            return []
        member.heard_s = now_s
        return self._from_member(member, message, now_s)

    def tick(self, now_s: float) -> list[Effect]:
        """Let time pass: deadlines and rounds that are due."""
        if self.stage is FleetStage.GATHERING:
            return self._check_gathering(now_s)
        missing = self.rounds.missing(now_s)
        if missing:
            return self._fail(f"round {self.rounds.number} did not land on replica {_names(missing)} in time")
        return self._check_silence(now_s) or self._maybe_fire(now_s)

    def interrupt(self) -> list[Effect]:
        """The user wants to stop: nobody starts another micro-step, what is buffered is still aggregated."""
        self.interrupted = True
        self.leases.closed = True
        effects: list[Effect] = [Event("interrupted", {})]
        return effects + [Send(replica, Drain("interrupted")) for replica in self.members]

    @property
    def ended(self) -> bool:
        """True when every replica has said good-bye after the end."""
        return self.stage is FleetStage.FINISHED and all(m.gone for m in self.members.values())

    # --- joining ------------------------------------------------------------------------------------------

    def _hello(self, hello: Hello, now_s: float) -> list[Effect]:
        known = self.members.get(hello.replica)
        if known is not None and known.hello.incarnation == hello.incarnation:
            return [Send(hello.replica, Ack(hello.seq))]
        reason = self._refusal(hello)
        if reason is not None:
            return [Send(hello.replica, Refused(reason)), *self._fail(f"replica {hello.replica}: {reason}")]
        self.members[hello.replica] = Member(hello, now_s, now_s)
        effects: list[Effect] = [
            Send(hello.replica, Ack(hello.seq)),
            Event("joined", {"replica": hello.replica, "host": hello.host, "pid": hello.pid}),
        ]
        if len(self.members) == self.plan.replicas:
            effects += self._open_epoch()
        return effects

    def _refusal(self, hello: Hello) -> str | None:
        """Why this replica may not join, or None. What must be equal is checked before any collective."""
        if not 0 <= hello.replica < self.plan.replicas:
            return f"this run has replicas 0 to {self.plan.replicas - 1}"
        if hello.replica in self.members:
            return "this replica has already joined; a second process may not take its place"
        if hello.config_hash != self.plan.config_hash:
            return f"its configuration differs ({hello.config_hash[:12]}, not {self.plan.config_hash[:12]})"
        first = next(iter(self.members.values()), None)
        if first is not None and first.hello.layout != hello.layout:
            return f"its adapter pool differs from replica {first.hello.replica}'s (another model or version?)"
        return None

    def _open_epoch(self) -> list[Effect]:
        self.epoch += 1
        self.stage = FleetStage.TRAINING
        members = tuple(sorted(self.members))
        effects: list[Effect] = [Event("epoch", {"epoch": self.epoch, "members": list(members)})]
        return effects + [Send(replica, Epoch(self.epoch, members, self.rounds.version)) for replica in members]

    def _check_gathering(self, now_s: float) -> list[Effect]:
        if now_s - self.started_s <= self.plan.start_timeout_s:
            return []
        missing = sorted(set(range(self.plan.replicas)) - set(self.members))
        return self._fail(
            f"replica {_names(missing)} did not join within {self.plan.start_timeout_s:g} s "
            f"(topology.start_timeout_s)"
        )

    def _check_silence(self, now_s: float) -> list[Effect]:
        limit_s = self.plan.silent_timeout_s
        if limit_s is None or self.stage not in (FleetStage.TRAINING, FleetStage.DRAINING):
            return []
        silent = [replica for replica, member in sorted(self.members.items()) if now_s - member.heard_s > limit_s]
        return self._fail(f"replica {_names(silent)} has been silent for {limit_s:g} s") if silent else []

    # --- members ------------------------------------------------------------------------------------------

    def _from_member(self, member: Member, message: Message, now_s: float) -> list[Effect]:
        replica = member.hello.replica
        if isinstance(message, Beat):
            return self._beat(member, message, now_s)
        if isinstance(message, Vitals):
            self.phase.vitals(message)
            return [Send(replica, Stamps(message.sent_s, now_s, now_s))]
        if isinstance(message, LeaseRequest):
            return [Send(replica, self.leases.grant(replica, message.ticket))]
        if isinstance(message, Landed):
            return [Send(replica, Ack(message.seq)), *self._land(message, now_s)]
        if isinstance(message, Evaluated):
            return [Send(replica, Ack(message.seq)), *self._evaluated(message)]
        if isinstance(message, Failed):
            return [Send(replica, Ack(message.seq)), *self._fail(message.reason, replica)]
        if isinstance(message, Bye):
            member.gone = True
            return [Send(replica, Ack(message.seq))]
        return []

    def _beat(self, member: Member, beat: Beat, now_s: float) -> list[Effect]:
        if len(beat.pooled) != self.plan.kpool.n:
            return []  # a member that counts another pool; its hello would have been refused
        effects: list[Effect] = [Send(member.hello.replica, Ack(BEAT_SEQ))]
        if self.failure is not None and not self.plan.supervised:
            return [*effects, Send(member.hello.replica, Refused(self.failure))]
        self.tally.replace(member.beat, beat)
        if member.observe(beat, now_s):
            self.frontier.advance(beat.micro_steps, now_s)
            self.phase.beat(beat, now_s)
            effects.append(Event("micro_step", _progress(beat)))
        return effects + self._repeat_orders(member, now_s) + self._maybe_fire(now_s)

    def _evaluated(self, message: Evaluated) -> list[Effect]:
        key = (message.stage, message.replica)
        if key in self.evaluations:
            return []
        self.evaluations[key] = message
        return [Event("evaluated", {"replica": message.replica, "stage": message.stage})]

    def _repeat_orders(self, member: Member, now_s: float) -> list[Effect]:
        """Say again what this member's beat shows that it has missed."""
        if now_s - member.ordered_s < REPEAT_S:
            return []
        orders = self._missed(member)
        if not orders:
            return []
        member.ordered_s = now_s
        return [Send(member.hello.replica, order) for order in orders]

    def _missed(self, member: Member) -> list[Message]:
        beat = member.beat
        if beat is None or self.epoch == 0:
            return []
        if beat.epoch < self.epoch:
            return [Epoch(self.epoch, tuple(sorted(self.members)), self.rounds.version)]
        orders: list[Message] = []
        if self.rounds.newest_commit and beat.version < self.rounds.version:
            orders.append(self.rounds.newest_commit)
        if self.rounds.in_flight and beat.landed < self.rounds.in_flight.round:
            orders.append(self.rounds.in_flight)
        if self.interrupted and not beat.drained:
            orders.append(Drain("interrupted"))
        if self.stage is FleetStage.FINISHED and not member.gone:
            orders.append(self._finish())
        return orders

    # --- rounds -------------------------------------------------------------------------------------------

    def _maybe_fire(self, now_s: float) -> list[Effect]:
        """Fire when the pool of the adapters that are due is worth it, and nobody still owes a commit."""
        if self.rounds.in_flight or self.stage not in (FleetStage.TRAINING, FleetStage.DRAINING):
            return []
        if self.tally.at(self.epoch, self.rounds.version) < len(self.members):
            return []
        if self.tally.drained == len(self.members):
            return self._drain(now_s)
        due = self.rounds.due()
        verdict = decide(self.plan.kpool, self.pooled(due), len(self.members), True, self.rounds.noise)
        return self._fire(due, verdict.reason, now_s) if verdict.fire else []

    def pooled(self, adapters: tuple[int, ...]) -> int:
        """Micro-steps that all members have buffered for these adapters (the least of them)."""
        return min(self.tally.pooled[adapter] for adapter in adapters)

    def _drain(self, now_s: float) -> list[Effect]:
        """Nobody has data left: ship all that is buffered in one last round, then finish."""
        if not any(self.tally.pooled):
            return self._finished()
        self.stage = FleetStage.DRAINING
        everything = tuple(range(self.plan.kpool.n))
        return [Event("drained", {}), *self._fire(everything, Reason.FINAL, now_s)]

    def _fire(self, adapters: tuple[int, ...], reason: Reason, now_s: float) -> list[Effect]:
        members = tuple(sorted(self.members))
        fire = self.rounds.fire(self.epoch, adapters, members, reason, now_s)
        fired = {"round": fire.round, "adapters": list(adapters), "reason": str(reason)}
        return [Event("fired", {**fired, "pooled": self.pooled(adapters)}), *self._order(fire, now_s)]

    def _land(self, landed: Landed, now_s: float) -> list[Effect]:
        if not self.rounds.land(landed):
            return []
        different = self.rounds.disagreement()
        if different is not None:
            reason = f"round {landed.round} gave different anchors ({different}); nothing of it was applied"
            return self._fail(reason)
        commit, tokens, facts = self.rounds.commit()
        for replica, weight in tokens.items():
            self.members[replica].committed_tokens += weight
        return [Event("committed", facts), *self._order(commit, now_s)]

    def _order(self, order: Message, now_s: float) -> list[Effect]:
        """Send an order to everybody; it is repeated to those whose beats show that they missed it."""
        for member in self.members.values():
            member.ordered_s = now_s
        return [Send(replica, order) for replica in sorted(self.members)]

    # --- endings ------------------------------------------------------------------------------------------

    def _finish(self) -> Finish:
        return Finish(self.rounds.version, evaluate=not self.interrupted)

    def _finished(self) -> list[Effect]:
        self.stage = FleetStage.FINISHED
        effects: list[Effect] = [Event("finished", {"version": self.rounds.version})]
        return effects + [Send(replica, self._finish()) for replica in self.members]

    def _fail(self, reason: str, replica: int | None = None) -> list[Effect]:
        """The run cannot go on. The first reason stands; the shell ends the processes."""
        if self.failure is not None:
            return []
        self.stage, self.failure, self.failed_replica = FleetStage.FAILED, reason, replica
        effects: list[Effect] = []
        fire = self.rounds.abort()
        if fire is not None:
            effects.append(Event("aborted", {"round": fire.round, "reason": reason}))
            effects += [Send(member, Abort(fire.epoch, fire.round, reason)) for member in fire.members]
        if not self.plan.supervised:
            effects += [Send(member, Refused(reason)) for member in self.members]
        return [*effects, Event("failed", {"replica": replica, "reason": reason})]


def _names(replicas: list[int]) -> str:
    return ", ".join(str(replica) for replica in replicas)


def _progress(beat: Beat) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    return {
        "replica": beat.replica,
        "micro_steps": beat.micro_steps,
        "samples": beat.samples,
        "tokens": beat.tokens,
        "loss": beat.loss,
        "lr": beat.lr,
        "micro_step_s": beat.micro_step_s,
        "version": beat.version,
    }
