"""Churn and fleets of two halves: the seed draws who dies, the books stay whole, far hops cost what they take."""

from __future__ import annotations

import random

import pytest

from tests.support import hub_plan, kpool
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.messages import Beat, Commit
from tsugi_kpool.sim import Far, FaultyFleet, Fleet, LinkModel, Speeds, check_accounting, check_agreement, churn
from tsugi_kpool.sim.kernel import Channel, Kernel


def plan(replicas: int, samples: int):
    return hub_plan(replicas=replicas, samples=samples, lease_samples=8, kpool=kpool(n=8, k=2))


def a_fleet(seed: int, replicas: int = 20, samples: int = 2000, keep_alive: bool = False) -> FaultyFleet:
    """One death in two seconds, each away for 15."""
    faults = churn(replicas, 1.5, 60.0, 15.0, random.Random(seed))
    speeds = Speeds((1.0,), jitter=0.2)
    return FaultyFleet(plan(replicas, samples), speeds, LinkModel(), seed, faults, keep_alive=keep_alive)


def test_as_many_die_as_was_asked_for():
    faults = churn(1000, 0.01, 6000.0, 30.0, random.Random(0))
    assert len(faults) == pytest.approx(1000, rel=0.1)
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert len({fault.replica for fault in faults}) > 500
    assert churn(10, 0.0, 60.0, 30.0, random.Random(0)) == ()


@pytest.mark.parametrize("keep_alive", [False, True])
def test_the_books_stay_whole_while_replicas_come_and_go(keep_alive):
    fleet = a_fleet(0, keep_alive=keep_alive)
    report = fleet.run(2000.0)
    assert report.stage == FleetStage.FINISHED, report.failure
    assert len(fleet.past) >= 15, "nobody has died"
    assert sum(event.name == "generation" for event in fleet.events) > len(fleet.past), "nobody has come back"
    assert check_agreement(fleet) == check_accounting(fleet) == []
    assert fleet.hub.leases.durable() == ((0, fleet.plan.samples),)


def test_the_seed_decides_who_dies_and_what_follows():
    first, again, other = (a_fleet(seed).run(60.0) for seed in (3, 3, 4))
    assert first == again
    assert first.anchors != other.anchors


# Two halves


def test_a_ring_of_two_halves_takes_what_its_slowest_hop_or_its_longest_way_takes():
    near = LinkModel(latency_s=0.001, bandwidth_bytes_per_s=1e9)
    far = LinkModel(latency_s=0.001, bandwidth_bytes_per_s=1e9, far=Far(0.04, 1e6))
    assert near.gather_s(100, 10_000) == pytest.approx(99 * 0.00101)
    assert far.gather_s(100, 10_000) == pytest.approx(0.04 + 99 * 0.01), "99 parts pass it one after the other"
    assert far.gather_s(4, 10) == pytest.approx(0.08 + 0.001, rel=0.01), "of the way round two hops are far"
    assert far.gather_s(2, 10_000) == pytest.approx(0.04 + 0.01)
    assert far.gather_s(1, 10_000) == 0.0


def test_messages_take_longer_to_the_other_half():
    kernel, seen = Kernel(), []
    channel = Channel(kernel, LinkModel(latency_s=0.001, far=Far(0.05, 1e6)), 2 * 5, random.Random(0))
    for replica in range(5):
        for way in (2 * replica, 2 * replica + 1):
            channel.send(way, lambda number: seen.append((number, kernel.now_s)), replica)
    kernel.run(1.0)
    times = dict(seen)
    assert times == pytest.approx({0: 0.001, 1: 0.001, 2: 0.05, 3: 0.05, 4: 0.05})
    assert channel.kinds == {int: 10}


def test_a_fleet_of_two_halves_loses_nothing():
    link = LinkModel(far=Far(0.05, 1e6), adapter_bytes=10_000)
    fleet = Fleet(plan(6, 300), Speeds((0.5,), jitter=0.3), link, seed=0)
    report = fleet.run(2000.0)
    assert report.stage == FleetStage.FINISHED
    assert check_agreement(fleet) == check_accounting(fleet) == []
    assert fleet.channel.kinds[Beat]
    assert fleet.channel.kinds[Commit] == 6 * report.versions
