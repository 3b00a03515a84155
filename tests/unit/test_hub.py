"""The hub and its members over a lossy channel in virtual time (tsugi_kpool.sim): no process, no socket, no clock."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import hub_plan, kpool
from tsugi_kpool.core.effects import FleetStage, Keep, Send, StepTaken
from tsugi_kpool.core.events import Note
from tsugi_kpool.core.hub import liveness
from tsugi_kpool.core.hub.firing import ACKNOWLEDGE_S
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.hub.tally import Tally
from tsugi_kpool.core.messages import (
    Ack,
    Beat,
    Commit,
    Failed,
    Finish,
    Fire,
    Generation,
    Hello,
    LeaseRequest,
    Reduced,
    Refused,
)
from tsugi_kpool.core.rounds.trigger import Reason
from tsugi_kpool.engine.progress import Progress
from tsugi_kpool.sim import Fleet, LinkModel, Speeds, check_accounting, check_agreement


def make_fleet(plan, steps_s, seed=0, loss=0.0) -> Fleet:
    """A fleet over a channel that, with any loss, also repeats, delays and so reorders."""
    lossy = LinkModel(latency_s=0.05, jitter=1.0, loss=loss, duplication=loss)
    return Fleet(plan, Speeds(tuple(steps_s)), lossy if loss else LinkModel(), seed)


def check_rules(fleet: Fleet) -> None:
    """The run has ended well: docs/design.md rules 1 and 2, data used up once, every version committed in order."""
    assert fleet.hub.failure is None
    assert all(replica.finished for replica in fleet.replicas), "the run did not end"
    assert check_agreement(fleet) == []
    assert check_accounting(fleet) == []
    assert sum(replica.progress.samples for replica in fleet.replicas) == fleet.plan.samples
    versions = [event.data["version"] for event in fleet.events if event.name == "committed"]
    assert versions == list(range(1, len(versions) + 1))
    assert all(replica.version == len(versions) for replica in fleet.replicas)


def test_fleet_trains_every_sample_once_and_agrees():
    fleet = make_fleet(hub_plan(), [0.3, 0.3])
    fleet.run(200)
    check_rules(fleet)
    assert fleet.hub.complete


def test_fast_replica_is_not_held_up_by_a_slow_one():
    """With a replica four times slower the fast one takes four times the samples: nobody waits."""
    fleet = make_fleet(hub_plan(samples=200), [0.1, 0.4])
    fast, slow = fleet.run(400).samples
    check_rules(fleet)
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
    fleet = make_fleet(plan, steps_s, seed, loss=draw.choice([0.0, 0.1, 0.3]))
    fleet.run(3000)
    check_rules(fleet)


def test_interrupt_keeps_what_is_finished():
    fleet = make_fleet(hub_plan(samples=1000), [0.1, 0.4])
    fleet.run(5)
    fleet.interrupt()
    trained = sum(fleet.run(55).samples)
    assert all(replica.finished for replica in fleet.replicas)
    assert 0 < trained < 1000
    assert check_agreement(fleet) == []
    assert check_accounting(fleet) == []
    for replica in fleet.replicas:
        assert replica.ledger.committed == replica.ledger.produced
    status = fleet_status(fleet.hub, fleet.kernel.now_s)
    assert (status.stage, status.interrupted, fleet.hub.complete) == ("interrupted", True, False)
    assert {"stopped", "finished"} & {event.name for event in fleet.events} == {"stopped"}


def test_different_digests_stop_the_run_and_name_the_replicas():
    fleet = make_fleet(hub_plan(), [0.1, 0.1])
    original = fleet.hub.receive

    def forge(message, now_s):
        if isinstance(message, Reduced) and message.replica == 1:
            message = msgspec.structs.replace(message, digest="another")
        return original(message, now_s)

    fleet.hub.receive = forge
    failure = fleet.run(60).failure
    assert fleet.hub.stage is FleetStage.FAILED
    assert "different anchors" in failure
    assert "replica 1: another" in failure
    assert all(replica.version == 0 for replica in fleet.replicas), "nothing of it may be applied"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"replica": 5}, "replicas 0 to 1"),
        ({"replica": 1, "config_hash": "other"}, "configuration differs"),
        ({"replica": 0, "incarnation": "second"}, "already joined"),
        ({"replica": 1, "layout": "other:data"}, "adapter pool differs from replica 0's (other, not l)"),
        ({"replica": 1, "layout": "l:other"}, "prepared data differ from replica 0's (other, not data)"),
    ],
)
def test_hub_refuses_who_does_not_match(change, reason):
    hub = Hub(hub_plan(), 0.0)
    hello = Hello(1, 0, "first", "h", 1, "c0ffee", "l:data")
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


def test_facts_of_the_wrong_shape_are_ignored():
    """A member that counts another pool, or weighs other members, must not end the hub."""
    hub = joined_hub(2)
    assert hub.receive(a_beat(0, 1, 0, (99,), False), 1.0) == []
    fire = hub.rounds.next_fire(1, (0,), (0, 1), Reason.COUNT)
    hub.rounds.open(fire, 1.0)
    for replica in range(2):
        reduced = Reduced(2, replica, "i", fire.generation, fire.round, "d", 0.1, 1, (1, 2, 3), 0.0, 0.0)
        hub.receive(reduced, 1.0)
    assert hub.rounds.version == 0


def test_status_names_the_slow_replica():
    fleet = make_fleet(hub_plan(samples=1000), [0.1, 0.4])
    fleet.run(30)
    status = fleet_status(fleet.hub, fleet.kernel.now_s)
    fast, slow = status.replicas
    assert fast.lag_steps <= 1 < slow.lag_steps
    assert fast.lag_s < 1.0 < slow.lag_s
    assert 3 < fast.tokens_per_s / slow.tokens_per_s < 6, "samples have 1 to 5 tokens"
    assert fast.share + slow.share == pytest.approx(1.0)
    assert status.goodput == pytest.approx(1.0)


def a_beat(replica, generation, version, pooled, drained) -> Beat:
    return Beat(
        replica, "i", generation, version, 0, "training", 1, 1, 1, 1.0, 1.0, 1.0, 1.0, 1.0, pooled, 0, drained
    )  # fmt: skip


BEATS = st.builds(
    a_beat,
    replica=st.integers(0, 3),
    generation=st.integers(0, 2),
    version=st.integers(0, 3),
    pooled=st.one_of(st.just(()), st.tuples(*[st.integers(0, 9)] * 3)),
    drained=st.booleans(),
)


@given(st.lists(BEATS, max_size=60))
def test_tally_is_what_a_walk_over_all_members_gives(beats):
    """Beats of any content in any order, as a channel that reorders delivers them."""
    tally, newest = Tally(3), {}
    for beat in beats:
        tally.replace(newest.get(beat.replica), beat)
        newest[beat.replica] = beat
        counts = [b.pooled for b in newest.values() if b.pooled]
        assert tally.pooled == [sum(pooled[adapter] for pooled in counts) for adapter in range(3)]
        assert tally.drained == sum(b.drained for b in newest.values())
        for generation in range(3):
            for version in range(4):
                there = [b for b in newest.values() if (b.generation, b.version) == (generation, version)]
                assert tally.at(generation, version) == len(there)


def test_a_beat_with_the_wrong_number_of_counts_does_not_stop_the_hub():
    tally = Tally(2)
    odd, cut = a_beat(0, 1, 0, (1, 2, 3), False), a_beat(0, 1, 0, (4,), False)
    tally.replace(None, odd)
    assert tally.pooled == [1, 2]
    tally.replace(odd, cut)
    assert tally.pooled == [4, 0]


class Unwalked(dict):
    """Members that can be looked up and counted, but not walked."""

    def _refuse(self, *_):
        raise AssertionError("walks over all members")

    __iter__ = keys = values = items = _refuse


def joined_hub(replicas, **changes) -> Hub:
    """A hub whose members have all formed the first generation."""
    hub = Hub(hub_plan(replicas=replicas, kpool=kpool(k=1, n=3), **changes), 0.0)
    for replica in range(replicas):
        hub.receive(Hello(1, replica, "i", "h", 1, "c0ffee", "l"), 0.0)
        hub.receive(a_beat(replica, 1, 0, (0, 0, 0), False), 0.1)
    return hub


def fires(effects) -> list[Send]:
    return [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Fire)]


def test_the_beat_that_fills_the_pool_fires():
    """No waiting for the next tick: real steps may be shorter than that."""
    hub = joined_hub(2)
    assert not fires(hub.receive(a_beat(0, 1, 0, (2, 2, 2), False), 1.0))
    assert not fires(hub.tick(1.01))
    assert [send.replica for send in fires(hub.receive(a_beat(1, 1, 0, (2, 2, 2), False), 1.02))] == [0, 1]


def test_a_beat_or_a_landing_costs_the_same_however_many_members_there_are():
    """But for the beat that fires and the Reduced that commits, which send something to everybody."""
    hub = joined_hub(4)
    hub.members = Unwalked(hub.members)
    for replica in range(3):
        hub.receive(a_beat(replica, 1, 0, (2, 2, 2), False), 1.0)
        hub.tick(1.0)
    hub.members = dict(dict.items(hub.members))
    assert fires(hub.receive(a_beat(3, 1, 0, (2, 2, 2), False), 1.0))
    hub.members = Unwalked(hub.members)
    for replica in range(3):
        reduced = Reduced(2, replica, "i", 1, 1, "d", 0.1, 9, (1, 1, 1, 1), 0.0, 0.0)
        (kept,) = hub.receive(reduced, 1.1)
        assert isinstance(kept, Keep), "written down before it is acknowledged"
        acknowledged = Send(replica, Ack(2))
        assert hub.receive(reduced, 1.2) == [acknowledged], "repeated: acknowledged, nothing else"


def test_a_landing_of_a_process_that_has_left_is_not_acknowledged_to_its_successor():
    """Whose own messages begin with the same numbers: one of them would count as heard."""
    hub = joined_hub(3)
    for replica in range(3):
        hub.receive(a_beat(replica, 1, 0, (2, 2, 2), False), 1.0)
    hub.tick(1.0)
    hub.receive(Reduced(2, 0, "i", 1, 1, "d", 0.1, 9, (1, 1, 1), 0.0, 0.0), 1.1)
    hub.leave({0: "it was killed"}, 1.11)
    hub.receive(Hello(1, 0, "another", "h", 1, "c0ffee", "l"), 1.12)
    assert Send(0, Ack(2)) not in hub.tick(2.0)


def test_landings_are_acknowledged_by_their_commit_or_before_they_are_repeated():
    hub = joined_hub(2)
    for replica in range(2):
        hub.receive(a_beat(replica, 1, 0, (2, 2, 2), False), 1.0)
    hub.tick(1.0)
    hub.receive(Reduced(2, 0, "i", 1, 1, "d", 0.1, 9, (1, 1), 0.0, 0.0), 1.1)
    assert Send(0, Ack(2)) not in hub.tick(1.1 + ACKNOWLEDGE_S / 2)
    assert Send(0, Ack(2)) in hub.tick(1.1 + ACKNOWLEDGE_S)
    effects = hub.receive(Reduced(2, 1, "i", 1, 1, "d", 0.1, 9, (1, 1), 0.0, 0.0), 1.9)
    assert [type(each.message) for each in effects if isinstance(each, Send)] == [Commit, Commit]
    assert Send(1, Ack(2)) not in hub.tick(1.9 + ACKNOWLEDGE_S)


def test_adapters_that_are_due_are_chosen_anew_after_every_commit():
    hub = joined_hub(1)
    shipped = []
    for version in range(6):
        due = hub.rounds.due()
        fire = fires(hub.receive(a_beat(0, 1, version, (9, 9, 9), False), 1.0))[0].message
        assert fire.adapters == due
        shipped += due
        hub.receive(Reduced(2 + version, 0, "i", 1, fire.round, "d", 0.1, 9, (1,), 0.0, 0.0), 1.1)
    assert shipped == [0, 1, 2, 0, 1, 2]


def unsupervised(**changes) -> Hub:
    """A hub of the library, with two members that have joined and said that they are in the generation."""
    hub = Hub(hub_plan(samples=0, supervised=False, **changes), 0.0)
    for replica in range(2):
        hub.receive(Hello(1, replica, f"i{replica}", "host", 1, "c0ffee", "layout"), 0.0)
    for replica in range(2):
        hub.receive(member_beat(replica), 1.0)
    return hub


def member_beat(replica: int) -> Beat:
    return msgspec.structs.replace(a_beat(replica, 1, 0, (0, 0, 0, 0), False), incarnation=f"i{replica}")


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


def ticks(hub: Hub, from_s: float, to_s: float, **facts) -> list:
    """Every 0.1 s member 0 beats and time passes; what that leads to but for the beats."""
    effects = []
    for tenths in range(round(10 * from_s), round(10 * to_s) + 1):
        hub.receive(msgspec.structs.replace(member_beat(0), **facts), tenths / 10)
        effects += hub.tick(tenths / 10)
    return effects


def test_a_silent_member_leaves_when_the_others_wait_for_it():
    hub = unsupervised(silent_timeout_s=4.0)
    assert not ticks(hub, 1.0, 90.0), "nobody waits for it"
    hub.receive(msgspec.structs.replace(member_beat(0), pooled=(9, 9, 9, 9)), 90.0)
    assert hub.rounds.in_flight is not None
    assert not ticks(hub, 90.0, 93.9)
    effects = ticks(hub, 93.9, 94.5)
    told = "replica 1 has left this run (silent for 4 s), which goes on without this process"
    assert (1, told) in refusals(effects)
    assert [e.message.members for e in effects if isinstance(e, Send) and isinstance(e.message, Generation)] == [(0,)]
    assert (hub.failure, hub.present, hub.rounds.in_flight) == (None, (0,), None)


def test_a_silent_member_leaves_when_all_others_have_trained_on_their_data():
    """No round is awaited of it, so nothing else would tell, and the run would never end."""
    hub = unsupervised(silent_timeout_s=4.0)
    assert not refusals(ticks(hub, 1.0, 30.9, drained=True)), "it may be busy"
    told = (
        "replica 1 has left this run (silent for 30 s while the others were done), which goes on without this process"
    )
    assert (1, told) in refusals(ticks(hub, 31.0, 31.5, drained=True))
    assert (hub.failure, hub.present) == (None, (0,))


def test_a_hub_that_hears_nobody_at_all_judges_nobody_and_goes_on_where_it_was():
    """All its replicas are elsewhere: it may be itself that is cut off. Who is missing afterwards leaves as ever."""
    hub = unsupervised(silent_timeout_s=4.0, joinable=2, quorum_timeout_s=60.0)
    for each in (0, 1):
        hub.receive(msgspec.structs.replace(member_beat(each), pooled=(9, 9, 9, 9)), 1.0 + 0.9 * each)
    assert hub.rounds.in_flight is not None
    told = [effect for at in range(20, 400) for effect in hub.tick(at / 10) if isinstance(effect, Note)]
    assert [each.text.partition(":")[0] for each in told] == ["no replica has been heard since 2 s into the run"]
    assert (hub.present, hub.failure) == ((0, 1), None)
    assert fleet_status(hub, 40.0).health_reasons[0].startswith("no replica has been heard")
    effects = ticks(hub, 40.0, 44.9)
    assert [each.text for each in effects if isinstance(each, Note)] == ["replicas are heard again"]
    assert hub.present == (0, 1), "the other one has its time"
    ticks(hub, 45.0, 46.0)
    assert hub.present == (0,)


def test_a_hub_that_hears_nobody_for_too_long_gives_up():
    hub = unsupervised(silent_timeout_s=4.0, joinable=2, quorum_timeout_s=60.0)
    hub.receive(msgspec.structs.replace(member_beat(0), pooled=(9, 9, 9, 9)), 1.0)
    told = [effect for at in range(20, 800) for effect in hub.tick(at / 10) if isinstance(effect, Note)]
    assert len(told) == 1
    assert "every replica has gone" in (hub.failure or "")


def test_a_run_below_its_quorum_pauses_at_once_and_not_from_the_next_tick_on():
    hub = joined_hub(2, min_replicas=2)
    hub.leave({1: "killed"}, 1.0)
    assert hub.present == (0,)
    assert not fires(hub.receive(a_beat(0, 2, 0, (9, 9, 9), False), 1.0))
    assert hub.receive(LeaseRequest(0, "i", 1), 1.0) == []


@pytest.mark.parametrize("stands", [True, False])
def test_where_a_busy_interpreter_is_waited_for_a_closed_connection_is_not(stands):
    hub = unsupervised(silent_timeout_s=60.0)
    hub.receive(msgspec.structs.replace(member_beat(0), pooled=(9, 9, 9, 9)), 1.1)
    assert hub.rounds.in_flight is not None
    assert not ticks(hub, 1.2, 4.9)
    assert liveness.doubtful(hub, 4.9) == []
    assert not ticks(hub, 5.0, 5.1)
    assert liveness.doubtful(hub, 5.1) == [1]
    liveness.connected(hub, 1, stands)
    told = refusals(ticks(hub, 5.2, 7.0))
    if stands:
        assert told == []
        hub.receive(member_beat(1), 7.0)
        assert liveness.doubtful(hub, 8.0) == []
    else:
        left = "replica 1 has left this run (silent for 4 s, and its connection has closed), which goes on without"
        assert told[0][1].startswith(left)
        assert hub.present == (0,)


def test_a_run_without_leases_ends_when_all_are_drained():
    hub = unsupervised()
    assert fleet_status(hub, 2.0).eta_s is None
    for replica in range(2):
        beat = msgspec.structs.replace(member_beat(replica), drained=True, steps=3, samples=6)
        effects = hub.receive(beat, 3.0)
    assert hub.stage is FleetStage.FINISHED
    assert [e.replica for e in effects if isinstance(e, Send) and isinstance(e.message, Finish)] == [0, 1]


def test_a_steps_own_loss_is_told_beside_the_mean():
    """Out of two means; where a beat between them was lost nobody knows it."""
    hub = Hub(hub_plan(), 0.0)
    for replica in range(2):
        hub.receive(Hello(1, replica, "first", "h", 1, "c0ffee", "l"), 0.0)
    progress, told = Progress(), []
    beat = Beat(0, "first", 1, 0, 0, "training", 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, (0,) * hub.plan.kpool.n, 0, False)
    for step, loss in enumerate([3.0, 1.0, 2.0, math.nan, 5.0, 4.0], start=1):
        progress.count(1, 1, 0.1, loss, 0.0, 1)
        if step == 5:
            continue  # lost on its way
        done = msgspec.structs.replace(beat, steps=progress.steps, tokens=progress.steps, loss=progress.loss)
        told += [each.data for each in hub.receive(done, float(step)) if isinstance(each, StepTaken)]
    assert [each["loss"] for each in told] == [3.0, pytest.approx(1.0), pytest.approx(2.0), None, None]
    assert told[1]["loss_mean"] == pytest.approx(2.8)
