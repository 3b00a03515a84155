"""The hub and its members over a lossy channel, in virtual time: no process, no socket, no clock.

The members here run the same decisions as real ones (core.member, core.ledger); only tensors are replaced by one
number per adapter, so that agreement and accounting can be checked exactly.
"""

from __future__ import annotations

import heapq
import itertools
import random
from fractions import Fraction

import msgspec
import pytest

from tests.support import hub_plan, kpool
from tsugi_kpool.core.effects import Event, FleetStage, Send
from tsugi_kpool.core.hub import Hub
from tsugi_kpool.core.ledger import ContributionLedger
from tsugi_kpool.core.member import Action, Stage, react
from tsugi_kpool.core.messages import (
    Ack,
    Beat,
    Bye,
    Drain,
    Epoch,
    Failed,
    Finish,
    Fire,
    Hello,
    Landed,
    Lease,
    LeaseRequest,
    Refused,
)
from tsugi_kpool.core.status import fleet_status


class FakeMember:
    """One replica: trains one sample in `step_s`, buffers +1 per sample, obeys orders."""

    def __init__(self, replica: int, n: int, step_s: float) -> None:
        self.replica, self.step_s = replica, step_s
        self.incarnation = f"i{replica}"
        self.ledger = ContributionLedger(n)
        self.anchor = [Fraction(0)] * n
        self.live = [Fraction(0)] * n
        self.stage, self.epoch, self.round, self.version, self.landed = Stage.OUTSIDE, 0, 0, 0, 0
        self.in_flight = None
        self.queue: list[int] = []
        self.trained: list[int] = []
        self.ticket, self.asking, self.ended, self.draining, self.finished = 1, True, False, False, False
        self.seq = itertools.count(1)
        self.unacknowledged: dict[int, object] = {}
        self.history: dict[int, tuple[Fraction, ...]] = {0: tuple(self.anchor)}

    def beat(self) -> Beat:
        return Beat(
            replica=self.replica, incarnation=self.incarnation, epoch=self.epoch, version=self.version,
            landed=self.landed, activity="training", micro_steps=len(self.trained), samples=len(self.trained),
            tokens=len(self.trained), busy_s=len(self.trained) * self.step_s,
            trained_s=len(self.trained) * self.step_s, micro_step_s=self.step_s, loss=1.0, lr=1.0,
            pooled=tuple(self.ledger.micro_steps), sent_bytes=0,
            drained=self.draining or (self.ended and not self.queue),
        )  # fmt: skip

    def train(self) -> None:
        if self.epoch and self.queue and not self.draining:
            self.trained.append(self.queue.pop(0))
            self.ledger.collect(1)
            self.live = [value + (1 + self.replica) for value in self.live]
        if len(self.queue) < 2 and not self.ended and not self.asking:  # one lease ahead, as the real link
            self.ticket += 1
            self.asking = True

    def shipment(self, adapters):
        return self.ledger.shipment(adapters), [self.live[a] - self.anchor[a] for a in adapters]

    def commit(self, mean) -> None:
        shipment, sent = self.in_flight
        for adapter, delta, average in zip(shipment.adapters, sent, mean, strict=True):
            self.anchor[adapter] += average
            self.live[adapter] += average - delta
        self.ledger.commit(shipment)
        self.in_flight, self.stage = None, Stage.IDLE
        self.version += 1
        self.history[self.version] = tuple(self.anchor)


class World:
    """Hub, members and a channel that loses, delays, repeats and so reorders messages."""

    def __init__(self, plan, steps_s, seed, loss=0.0):
        self.plan, self.loss, self.draw = plan, loss, random.Random(seed)
        self.now_s = 0.0
        self.hub = Hub(plan, 0.0)
        self.members = [FakeMember(i, plan.kpool.n, step_s) for i, step_s in enumerate(steps_s)]
        self.events: list[Event] = []
        self.clock: list[tuple[float, int, object]] = []
        self.order = itertools.count()
        self.shipments: dict[int, dict[int, tuple]] = {}
        for member in self.members:
            self._say(member, Hello(next(member.seq), member.replica, member.incarnation, "h", 1, "c0ffee", "l"))
            self._at(member.step_s, ("step", member))
            self._at(0.1, ("beat", member))
        self._at(0.05, ("tick", None))

    def run(self, until_s: float) -> None:
        while self.clock and not self._over():
            self.now_s, _, (kind, what) = heapq.heappop(self.clock)
            if self.now_s > until_s:
                return
            getattr(self, f"_{kind}")(what)

    def _over(self) -> bool:
        return self.hub.stage is FleetStage.FAILED or all(m.finished for m in self.members)

    def _at(self, delay_s, entry):
        heapq.heappush(self.clock, (self.now_s + delay_s, next(self.order), entry))

    def _send(self, entry):
        copies = 0 if self.draw.random() < self.loss else 2 if self.draw.random() < self.loss else 1
        for _ in range(copies):
            self._at(self.draw.expovariate(20) if self.loss else 0.001, entry)

    def _say(self, member, message):
        if hasattr(message, "seq"):
            member.unacknowledged[message.seq] = message
        self._send(("hear", message))

    def _step(self, member):
        member.train()
        self._say(member, member.beat())
        if member.asking:
            self._say(member, LeaseRequest(member.replica, member.incarnation, member.ticket))
        self._at(member.step_s, ("step", member))

    def _beat(self, member):
        self._say(member, member.beat())
        for message in list(member.unacknowledged.values()):
            self._send(("hear", message))
        if member.asking:
            self._say(member, LeaseRequest(member.replica, member.incarnation, member.ticket))
        self._at(0.5, ("beat", member))

    def _tick(self, _):
        self._effects(self.hub.tick(self.now_s))
        self._at(0.05, ("tick", None))

    def _hear(self, message):
        self._effects(self.hub.receive(message, self.now_s))

    def _effects(self, effects):
        for effect in effects:
            if isinstance(effect, Event):
                self.events.append(effect)
            elif isinstance(effect, Send):
                self._send(("obey", (self.members[effect.replica], effect.message)))

    def _obey(self, what):
        member, message = what
        if isinstance(message, Ack):
            member.unacknowledged.pop(message.seq, None)
        elif isinstance(message, Lease):
            if member.asking and message.ticket == member.ticket:
                member.asking = False
                member.queue += range(message.start, message.stop)
                member.ended |= message.start == message.stop
        elif isinstance(message, Drain):
            member.draining = True
        elif isinstance(message, Finish):
            if message.version == member.version and not member.finished:
                member.finished = True
                self._say(member, Bye(next(member.seq), member.replica, member.incarnation))
        else:
            self._react(member, message)

    def _react(self, member, order):
        action = react(member.stage, member.epoch, member.round, order)
        if action is Action.FORM and isinstance(order, Epoch):
            member.epoch, member.stage = order.epoch, Stage.IDLE
        if action in (Action.COMMIT, Action.COMMIT_THEN_START):
            member.commit(self._mean(member.round))
        if action in (Action.START, Action.COMMIT_THEN_START):
            self._join_round(member, order)

    def _join_round(self, member, fire: Fire):
        """The collective: it lands on all members once the last one has joined."""
        member.round, member.stage = fire.round, Stage.IN_FLIGHT
        member.in_flight = member.shipment(fire.adapters)
        joined = self.shipments.setdefault(fire.round, {})
        joined[member.replica] = member.in_flight
        if set(joined) == set(fire.members):
            for other in self.members:
                self._at(0.01, ("land", (other, fire)))

    def _land(self, what):
        member, fire = what
        member.stage, member.landed = Stage.LANDED, fire.round
        mean = self._mean(fire.round)
        weights = tuple(sum(self.shipments[fire.round][r][0].tokens) for r in fire.members)
        landed = Landed(
            next(member.seq), member.replica, member.incarnation, fire.epoch, fire.round, str(mean), 0.01, 100,
            weights, 0.0, 0.0,
        )  # fmt: skip
        self._say(member, landed)

    def _mean(self, round):
        parts = [self.shipments[round][r] for r in sorted(self.shipments[round])]
        result = []
        for position in range(len(parts[0][0].adapters)):
            total = sum(shipment.tokens[position] for shipment, _ in parts)
            result.append(sum(Fraction(s.tokens[position], max(total, 1)) * d[position] for s, d in parts))
        return result


def check_rules(world: World) -> None:
    """DESIGN.md rules 1 and 2, and that the data was used up once."""
    assert world.hub.failure is None
    assert all(member.finished for member in world.members), "the run did not end"
    for version in range(world.hub.rounds.version + 1):
        values = {m.history[version] for m in world.members}
        assert len(values) == 1, f"anchors differ at version {version}"
    for member in world.members:
        assert member.live == member.anchor
        assert member.ledger.committed == member.ledger.produced
    trained = sorted(sample for member in world.members for sample in member.trained)
    assert trained == list(range(world.plan.samples))
    versions = [event.data["version"] for event in world.events if event.name == "committed"]
    assert versions == list(range(1, len(versions) + 1))


def test_fleet_trains_every_sample_once_and_agrees():
    world = World(hub_plan(), [0.3, 0.3], seed=0)
    world.run(until_s=200)
    check_rules(world)


def test_fast_replica_is_not_held_up_by_a_slow_one():
    """With a replica four times slower the fast one takes four times the samples: nobody waits."""
    world = World(hub_plan(samples=200), [0.1, 0.4], seed=0)
    world.run(until_s=400)
    check_rules(world)
    fast, slow = (len(member.trained) for member in world.members)
    assert 3.5 < fast / slow < 4.5


@pytest.mark.parametrize("seed", range(150))
def test_lost_late_and_repeated_messages_change_nothing_but_time(seed):
    draw = random.Random(seed)
    k = draw.choice([1, 2, 4])
    plan = hub_plan(
        replicas=draw.choice([1, 2, 3, 5]),
        samples=draw.randint(1, 60),
        kpool=kpool(k=k, trigger=draw.choice(["count", "convergence"]), count=draw.randint(2, 6)),
    )
    steps_s = [draw.uniform(0.02, 1.0) for _ in range(plan.replicas)]
    world = World(plan, steps_s, seed, loss=draw.choice([0.0, 0.1, 0.3]))
    world.run(until_s=3000)
    check_rules(world)


def test_interrupt_keeps_what_is_finished():
    world = World(hub_plan(samples=1000), [0.1, 0.4], seed=0)
    world.run(until_s=5)
    world._effects(world.hub.interrupt())
    world.run(until_s=60)
    assert all(member.finished for member in world.members)
    trained = sum(len(member.trained) for member in world.members)
    assert 0 < trained < 1000
    for member in world.members:
        assert member.ledger.committed == member.ledger.produced


def test_different_digests_stop_the_run_and_name_the_replicas():
    world = World(hub_plan(), [0.1, 0.1], seed=0)
    original = world.hub.receive

    def forge(message, now_s):
        if isinstance(message, Landed) and message.replica == 1:
            message = msgspec.structs.replace(message, digest="another")
        return original(message, now_s)

    world.hub.receive = forge
    world.run(until_s=60)
    assert world.hub.stage is FleetStage.FAILED
    assert "different anchors" in world.hub.failure
    assert "replica 1: another" in world.hub.failure
    assert all(member.version == 0 for member in world.members), "nothing of it may be applied"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"replica": 5}, "replicas 0 to 1"),
        ({"replica": 1, "config_hash": "other"}, "configuration differs"),
        ({"replica": 0, "incarnation": "second"}, "already joined"),
        ({"replica": 1, "layout": "other"}, "adapter pool differs"),
    ],
)
def test_hub_refuses_who_does_not_match(change, reason):
    hub = Hub(hub_plan(), 0.0)
    hello = Hello(1, 0, "first", "h", 1, "c0ffee", "l")
    hub.receive(hello, 0.0)
    effects = hub.receive(msgspec.structs.replace(hello, **change), 1.0)
    refused = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Refused)]
    assert len(refused) == 1
    assert reason in refused[0].reason


def test_hub_gives_up_on_replicas_that_never_come():
    hub = Hub(hub_plan(), 0.0)
    hub.receive(Hello(1, 0, "first", "h", 1, "c0ffee", "l"), 0.0)
    assert not hub.tick(29.0)
    hub.tick(31.0)
    assert "replica 1 did not join within 30 s" in hub.failure


def test_messages_of_an_older_process_are_ignored():
    hub = Hub(hub_plan(), 0.0)
    hub.receive(Hello(1, 0, "first", "h", 1, "c0ffee", "l"), 0.0)
    assert hub.receive(LeaseRequest(0, "older", 1), 1.0) == []


def test_status_names_the_slow_replica():
    world = World(hub_plan(samples=1000), [0.1, 0.4], seed=0)
    world.run(until_s=30)
    status = fleet_status(world.hub, world.now_s)
    fast, slow = status.replicas
    assert fast.lag_micro <= 1 < slow.lag_micro
    assert fast.lag_s < 1.0 < slow.lag_s
    assert 3 < fast.tokens_per_s / slow.tokens_per_s < 5
    assert fast.share + slow.share == pytest.approx(1.0)
    assert status.goodput == pytest.approx(1.0)


def unsupervised(**changes) -> Hub:
    """A hub of the library, with two members that have joined and said that they are in the epoch."""
    hub = Hub(hub_plan(samples=0, supervised=False, silent_timeout_s=60.0, **changes), 0.0)
    for replica in range(2):
        hub.receive(Hello(1, replica, f"i{replica}", "host", 1, "c0ffee", "layout"), 0.0)
    for replica in range(2):
        hub.receive(member_beat(replica), 1.0)
    return hub


def member_beat(replica: int) -> Beat:
    return msgspec.structs.replace(FakeMember(replica, 4, 1.0).beat(), epoch=1)


def refusals(effects) -> list[tuple[int, str]]:
    return [(e.replica, e.message.reason) for e in effects if isinstance(e, Send) and isinstance(e.message, Refused)]


def test_without_a_launcher_the_hub_tells_the_members_of_a_failure():
    hub = unsupervised()
    told = refusals(hub.receive(Failed(2, 1, "i1", "replica 1: KeyError"), 2.0))
    assert told == [(0, "replica 1: KeyError"), (1, "replica 1: KeyError")]
    assert refusals(hub.receive(member_beat(0), 3.0)) == [(0, "replica 1: KeyError")], "the first may have been lost"


def test_with_a_launcher_it_leaves_that_to_it():
    hub = Hub(hub_plan(), 0.0)
    hub.receive(Hello(1, 0, "i0", "host", 1, "c0ffee", "layout"), 0.0)
    assert refusals(hub.receive(Failed(2, 0, "i0", "KeyError"), 2.0)) == []


def test_a_silent_member_fails_the_run():
    hub = unsupervised()
    hub.receive(member_beat(0), 60.0)
    assert not hub.tick(60.9)
    assert (0, "replica 1 has been silent for 60 s") in refusals(hub.tick(61.1))


def test_a_run_without_leases_ends_when_all_are_drained():
    hub = unsupervised()
    assert fleet_status(hub, 2.0).eta_s is None
    for replica in range(2):
        beat = msgspec.structs.replace(member_beat(replica), drained=True, micro_steps=3, samples=6)
        effects = hub.receive(beat, 3.0)
    assert hub.stage is FleetStage.FINISHED
    assert [e.replica for e in effects if isinstance(e, Send) and isinstance(e.message, Finish)] == [0, 1]
