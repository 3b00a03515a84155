"""Replicas die, freeze and are cut off at any moment: the rules hold, and every sample is durable exactly once."""

from __future__ import annotations

import random

import pytest

from tests.support import hub_plan, kpool
from tsugi_kpool.core import records
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.journal import parse
from tsugi_kpool.core.settings import Routing
from tsugi_kpool.sim import (
    FaultyFleet,
    HubCrash,
    LinkModel,
    SimulatedFault,
    Speeds,
    check_accounting,
    check_agreement,
    check_refusals,
)
from tsugi_kpool.sim.replica import Replica
from tsugi_kpool.sim.uplink import BEAT_S

TURNS_S = (0.0, 0.01, 0.2)
"""A hub that is short of time hears what has come meanwhile at once, and of several beats the newest."""
ROUGH = LinkModel(latency_s=0.03, jitter=0.8, loss=0.05, duplication=0.05)


def in_order(replica: Replica, count: int) -> list[int]:
    """The first positions that it has trained on."""
    return [position for start, stop in replica.trained for position in range(start, stop)][:count]


def durable_of_the_past(fleet: FaultyFleet) -> list[int]:
    """Positions of the incarnations that have left that need not be trained on again."""
    left = {each.data["incarnation"]: each.data["durable"] for each in fleet.events if each.name == "left"}
    found: list[int] = []
    for past in fleet.past:
        replica = past.replica
        known = left.get(replica.incarnation, replica.ledger.durable)
        assert known >= replica.ledger.durable or known <= replica.progress.samples
        found += in_order(replica, known)
    return found


def unheard(fleet: FaultyFleet, replica: Replica) -> int:
    """Samples that it may have trained on after its newest beat: one goes out every BEAT_S, whatever the budget."""
    step_s = replica.progress.busy_s / max(replica.progress.steps, 1)
    return fleet.plan.micro_batch * (1 + int(BEAT_S / max(step_s, 0.001)))


def check_whole_run(fleet: FaultyFleet) -> None:
    assert fleet.hub.failure is None, f"seed {fleet.seed}"
    assert fleet.hub.stage is FleetStage.FINISHED, f"seed {fleet.seed}: the run did not end"
    assert check_agreement(fleet) == []
    assert check_accounting(fleet) == []
    assert fleet.hub.leases.durable() == ((0, fleet.plan.samples),)
    there = [replica for replica in fleet.replicas if not any(past.replica is replica for past in fleet.past)]
    for replica in there:
        assert replica.finished or not replica.generation, f"replica {replica.number} did not end"
    durable = durable_of_the_past(fleet) + [p for each in there for p in in_order(each, each.progress.samples)]
    assert sorted(durable) == list(range(fleet.plan.samples)), "every sample once, but for counted replays"
    assert fleet_status(fleet.hub, fleet.kernel.now_s).samples_done == fleet.plan.samples, "and the status says so"
    trained = sum(each.progress.samples for each in there) + sum(each.replica.progress.samples for each in fleet.past)
    again = trained - fleet.plan.samples
    if not fleet.hub.resumed:  # else what a replica had trained on that the next hub never heard is counted at most
        assert fleet.hub.leases.replayed <= again
    if fleet.link.ordered and all(fault.kind == "kill" for fault in fleet.fired):
        assert again <= fleet.hub.leases.replayed + sum(unheard(fleet, each.replica) for each in fleet.past)
    journal = [entry.record for entry in parse(fleet.hub_host.journal).entries]
    commits = [each for each in journal if isinstance(each, records.RoundCommitted)]
    assert [commit.version for commit in commits] == list(range(1, len(commits) + 1))
    reduced = [each.reduced for each in journal if isinstance(each, records.RoundReduced)]
    fired = {each.fire.round: each.fire for each in journal if isinstance(each, records.RoundFired)}
    for commit in commits:
        those = [each for each in reduced if each.round == commit.round]
        assert {each.digest for each in those} == {commit.digest}
        assert {each.replica for each in those} == set(fired[commit.round].members), "no commit without all of them"
    generations = [each.generation for each in journal if isinstance(each, records.GenerationOpened)]
    assert generations == sorted(set(generations))


def a_plan(draw: random.Random, replicas: int):
    return hub_plan(
        replicas=replicas,
        samples=draw.randint(60, 200),
        micro_batch=draw.choice([1, 2]),
        lease_samples=draw.choice([2, 8]),
        silent_timeout_s=4.0,
        kpool=kpool(
            k=draw.choice([1, 2, 4]),
            trigger=draw.choice(["count", "convergence"]),
            routing=draw.choice(list(Routing)),
            count=draw.randint(2, 6),
        ),
    )


def some_faults(draw: random.Random, replicas: int, length_s: float) -> tuple[SimulatedFault, ...]:
    """For all replicas but one, so that somebody always holds the anchors."""
    victims = draw.sample(range(replicas), draw.randint(1, replicas - 1))
    return tuple(
        SimulatedFault(
            draw.choice(["kill", "kill", "freeze", "cut"]),
            victim,
            draw.uniform(1.0, length_s),
            draw.choice([0.5, 2.0, 8.0, 30.0]),
            draw.choice([0.3, 0.3, None]),
            draw.choice([None, 1.0, 5.0]),
        )
        for victim in victims
        for _ in range(draw.randint(1, 2))
    )


@pytest.mark.parametrize("block", range(8))
def test_replicas_may_die_freeze_or_be_cut_off_at_any_moment(block):
    """240 runs; a failing seed is named. A fault that comes when its victim has finished is none."""
    fired = [a_faulty_run(seed) for seed in range(30 * block, 30 * block + 30)]
    assert sum(count > 0 for count in fired) >= 25, "the faults have hit nobody"


def a_faulty_run(seed: int) -> int:
    """The faults that have happened."""
    draw = random.Random(seed)
    replicas = draw.choice([2, 3, 5])
    plan = a_plan(draw, replicas)
    speeds = Speeds(tuple(draw.uniform(0.1, 0.6) for _ in range(replicas)))
    length_s = plan.samples / plan.micro_batch / sum(1 / each for each in speeds.step_s)
    faults = some_faults(draw, replicas, length_s)
    crashes = (HubCrash(at_s=draw.uniform(1.0, length_s), down_s=2.0),) if draw.random() < 0.2 else ()
    link, turn_s = draw.choice([LinkModel(), ROUGH]), draw.choice(TURNS_S)
    fleet = FaultyFleet(plan, speeds, link, seed, faults, crashes, turn_s=turn_s)
    fleet.run(3000)
    check_whole_run(fleet)
    assert check_refusals(fleet) == []
    return len(fleet.fired)


def test_what_a_replica_had_trained_on_that_the_next_hub_never_heard_is_counted():
    """It died while there was no hub. 467 and the others had been counted as nothing."""
    for seed in (467, 1239, 1376):
        a_faulty_run(seed)


def calm(replicas: int = 3, samples: int = 600, **changes):
    return hub_plan(
        replicas=replicas,
        samples=samples,
        silent_timeout_s=4.0,
        kpool=kpool(k=2, trigger="count", count=2),
        **changes,
    )


def commits_after(fleet: FaultyFleet, seconds: float) -> int:
    before = fleet.hub.rounds.version
    fleet.run(seconds)
    return fleet.hub.rounds.version - before


def test_a_killed_replica_costs_the_others_a_moment():
    fleet = FaultyFleet(calm(), Speeds((0.2,)), LinkModel(), 0, (SimulatedFault("kill", 1, 10.0),))
    fleet.run(10.0)
    assert commits_after(fleet, 3.0) >= 1
    assert fleet.hub.present == (0, 2)
    fleet.run(1000)
    check_whole_run(fleet)


def test_a_frozen_replica_leaves_within_six_seconds_and_contributes_nothing_when_it_wakes():
    fleet = FaultyFleet(calm(), Speeds((0.2,)), LinkModel(), 0, (SimulatedFault("freeze", 1, 10.0, 30.0),))
    fleet.run(10.0)
    assert commits_after(fleet, 6.0) >= 1
    assert fleet.hub.present == (0, 2)
    fleet.run(1000)
    assert [past.fenced for past in fleet.past] == [True], "it woke up and was told"
    check_whole_run(fleet)


def test_a_cut_of_two_seconds_costs_nobody_its_place():
    fleet = FaultyFleet(calm(), Speeds((0.2,)), LinkModel(), 0, (SimulatedFault("cut", 1, 10.0, 1.5),))
    fleet.run(1000)
    assert not fleet.past
    check_whole_run(fleet)


@pytest.mark.parametrize("at_s", [14.4, 15.2, 16.0])
def test_the_next_hub_learns_of_a_group_that_did_not_form(at_s):
    """The third cut begins as the group is ordered; the hub acknowledges that it broke, and dies before it orders
    another one. Nobody has left, so nobody else tells."""
    cuts = tuple(
        SimulatedFault("cut", 1, begin_s, length_s) for begin_s, length_s in ((10.0, 1.0), (12.0, 0.9), (14.25, 1.0))
    )
    crash = HubCrash(at_s=at_s, down_s=1.0)
    fleet = FaultyFleet(calm(), Speeds((0.2, 0.3, 0.25)), LinkModel(), 0, cuts, (crash,))
    fleet.run(at_s)
    assert fleet.hub.broken, "it has been told"
    assert not fleet.hub.rounds.in_flight
    generation = fleet.hub.generation
    fleet.run(1000)
    assert fleet.hub_host.crashed == 1
    assert fleet.hub.generation == generation + 1
    assert not fleet.past
    check_whole_run(fleet)


def test_the_only_one_that_is_left_goes_on_alone_and_a_newcomer_takes_over_its_anchors():
    faults = (SimulatedFault("kill", 0, 10.0, back_s=20.0), SimulatedFault("kill", 1, 10.0))
    fleet = FaultyFleet(calm(), Speeds((0.2,)), LinkModel(), 0, faults)
    fleet.run(20.0)
    assert fleet.hub.present == (2,)
    fleet.run(20.0)
    assert fleet.hub.present == (0, 2)
    fleet.run(1000)
    check_whole_run(fleet)


def test_a_death_in_the_last_round_sends_the_others_back_to_work():
    """Its samples are handed out again although the others had no data left."""
    plan = calm(samples=60, lease_samples=4)
    for at in range(100):
        fleet = FaultyFleet(
            plan, Speeds((0.2, 0.2, 0.5)), LinkModel(), 0, (SimulatedFault("kill", 2, 4.0 + at / 20),)
        )
        fleet.run(1000)
        if fleet.fired:
            check_whole_run(fleet)


def test_a_fleet_below_its_quorum_pauses_goes_on_and_gives_up():
    plan = calm(min_replicas=3, quorum_timeout_s=60.0)
    fleet = FaultyFleet(plan, Speeds((0.2,)), LinkModel(), 0, (SimulatedFault("kill", 1, 10.0, back_s=20.0),))
    fleet.run(15.0)
    assert commits_after(fleet, 10.0) == 0
    samples = sum(each.progress.samples for each in fleet.replicas)
    fleet.run(4.0)
    assert sum(each.progress.samples for each in fleet.replicas) == samples, "nobody trains"
    fleet.run(1000)
    check_whole_run(fleet)
    fleet = FaultyFleet(plan, Speeds((0.2,)), LinkModel(), 0, (SimulatedFault("kill", 1, 10.0),))
    fleet.run(1000)
    assert "2 of at least 3 replicas were left for 60 s" in (fleet.hub.failure or "")
    assert fleet.hub.quorum_failed


def test_when_all_have_gone_the_run_has_failed():
    faults = tuple(SimulatedFault("kill", each, 10.0) for each in range(3))
    fleet = FaultyFleet(calm(), Speeds((0.2,)), LinkModel(), 0, faults)
    fleet.run(1000)
    assert "every replica has gone" in (fleet.hub.failure or "")


def test_a_replica_that_its_user_takes_back_loses_nothing():
    for at in range(40):
        fault = SimulatedFault("part", 1, 2.0 + at / 4)
        fleet = FaultyFleet(calm(samples=150), Speeds((0.2, 0.3, 0.25)), LinkModel(), 0, (fault,))
        fleet.run(1000)
        check_whole_run(fleet)
        assert fleet.hub.leases.replayed == 0
        left = [each.data["reason"] for each in fleet.events if each.name == "left"]
        assert left in (["its user stopped it"], []), "it may have been the end anyway"
        assert left or at > 20


def test_a_replica_whose_anchors_differ_is_quarantined_and_the_others_stand_on_the_same_ones():
    """70 runs; in some of them somebody else dies, too, and in some the run ends before the third strike."""
    hit = 0
    for seed in range(70):
        draw = random.Random(f"corrupt {seed}")
        replicas = draw.choice([3, 5])
        plan = a_plan(draw, replicas)
        odd, other = draw.sample(range(replicas), 2)
        faults = [SimulatedFault(draw.choice(["corrupt", "spoil"]), odd, draw.uniform(1.0, 8.0))]
        if replicas == 5 and draw.random() < 0.5:
            faults.append(SimulatedFault("kill", other, draw.uniform(1.0, 8.0), back_s=draw.choice([None, 2.0])))
        speeds = Speeds(tuple(draw.uniform(0.1, 0.6) for _ in range(replicas)))
        fleet = FaultyFleet(plan, speeds, draw.choice([LinkModel(), ROUGH]), seed, tuple(faults))
        fleet.run(3000)
        if any(fault.replica == odd for fault in fleet.fired) and fleet.hub.quarantined:
            assert fleet.hub.quarantined == {odd}, f"seed {seed}"
            hit += 1
            check_whole_run(fleet)
    assert hit >= 50


def test_two_replicas_that_differ_end_the_run_by_name():
    fleet = FaultyFleet(calm(replicas=2), Speeds((0.2,)), LinkModel(), 0, (SimulatedFault("corrupt", 1, 10.0),))
    fleet.run(1000)
    assert "gave different anchors (replica 0: " in (fleet.hub.failure or "")
