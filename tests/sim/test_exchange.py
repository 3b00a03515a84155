"""Rounds at an exchange while replicas die, freeze, come late and come back, and hub and exchange are killed."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.sim.test_faults import ROUGH, TURNS_S, a_plan, in_order, some_faults
from tests.support import hub_plan, kpool
from tsugi_kpool.core import records
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.journal import parse
from tsugi_kpool.sim import (
    FaultyFleet,
    HubCrash,
    LinkModel,
    SimulatedFault,
    Speeds,
    check_accounting,
    check_agreement,
    check_shared,
    churn,
)


def anchors_have_gone(fleet: FaultyFleet) -> bool:
    """Whether all who had the fleet's anchors have died before those who came after got them.

    Then no replica can go on, and the run says so.
    """
    hub = fleet.hub
    there = [each for each in hub.members.values() if each.here and each.formed]
    return bool(hub.rounds.version) and not there and (hub.failure or "").startswith("every replica has gone")


def check_whole_run(fleet: FaultyFleet) -> None:
    """Every sample is durable once, and every anchor is what the committed rounds' parts say."""
    assert fleet.hub.failure is None, f"seed {fleet.seed}"
    assert fleet.hub.stage is FleetStage.FINISHED, f"seed {fleet.seed}: the run did not end"
    assert check_agreement(fleet) == []
    assert check_accounting(fleet) == []
    assert check_shared(fleet) == []
    assert fleet.hub.leases.durable() == ((0, fleet.plan.samples),)
    known = {each.hello.incarnation: each.durable_samples for each in [*fleet.hub.members.values(), *fleet.hub.past]}
    past = [each.replica for each in fleet.past]
    found: list[int] = []
    for replica in {id(each): each for each in [*fleet.replicas, *past]}.values():
        found += in_order(replica, known.get(replica.incarnation, 0))
    assert sorted(found) == list(range(fleet.plan.samples)), f"seed {fleet.seed}: every sample once"
    commits = [each.record for each in parse(fleet.hub_host.journal).entries]
    versions = [each.version for each in commits if isinstance(each, records.RoundCommitted)]
    assert versions == list(range(1, len(versions) + 1))


def rough_fleet(seed: int, crashes: bool) -> FaultyFleet:
    draw = random.Random(seed)
    replicas = draw.randint(3, 6)
    usual = a_plan(draw, replicas)
    quorum, grace_s = draw.choice([0.3, 0.5, 1.0]), draw.choice([0.0, 0.05, 10.0, "auto"])
    plan = replace(
        usual, exchange="a certificate", kpool=replace(usual.kpool, round_quorum=quorum, round_grace_s=grace_s)
    )
    link = draw.choice([LinkModel(), LinkModel(latency_s=0.02, jitter=0.5, adapter_bytes=2_000_000), ROUGH])
    faults = some_faults(draw, replicas, 15.0)
    dead = tuple(HubCrash(at_s=draw.uniform(1.0, 12.0), down_s=draw.choice([0.5, 3.0])) for _ in range(crashes))
    speeds = Speeds(tuple(draw.choice([0.1, 0.3, 1.0]) for _ in range(replicas)), jitter=0.3)
    fleet = FaultyFleet(plan, speeds, link, seed, faults, dead, turn_s=draw.choice(TURNS_S))
    for _ in range(draw.randint(0, 2)):
        fleet.kernel.at(draw.uniform(1.0, 12.0), fleet.exchange.kill, draw.choice([0.2, 2.0]))
    return fleet


@pytest.mark.parametrize(
    "seeds", [range(20), *(pytest.param(range(n, n + 50), marks=pytest.mark.nightly) for n in range(50, 400, 50))]
)
def test_whatever_dies_every_sample_counts_once_and_anchors_are_the_same(seeds: range) -> None:
    for seed in seeds:
        fleet = rough_fleet(seed, crashes=seed % 3 == 0)
        fleet.run(4000.0)
        check_whole_run(fleet)


def uneven_fleet(seed: int) -> FaultyFleet:
    """Links that differ by a factor of ten and take as long as several steps: members are a round behind all the
    time, while they die, freeze and come back."""
    draw = random.Random(seed)
    replicas, n = draw.randint(3, 6), draw.choice([4, 8])
    usual = a_plan(draw, replicas)
    quorum, grace_s = draw.choice([0.3, 0.5, 1.0]), draw.choice([0.0, 0.05, 0.5, 10.0, "auto"])
    kpool = replace(
        usual.kpool,
        n=n,
        k=draw.choice([1, 2, 2, n]),
        round_timeout_s=60.0,
        round_quorum=quorum,
        round_grace_s=grace_s,
    )
    link = replace(
        draw.choice([LinkModel(latency_s=0.02, jitter=0.5), ROUGH, ROUGH]),
        adapter_bytes=draw.choice([100_000, 400_000]),
        bandwidth_bytes_per_s=2.5e6,
        hub_bytes_per_s=draw.choice([2.5e6, 2.5e7]),
        slow=tuple((replica, draw.choice([1.0, 3.0, 10.0])) for replica in range(replicas)),
    )
    faults = some_faults(draw, replicas, 30.0)
    dead = tuple(
        HubCrash(at_s=draw.uniform(1.0, 20.0), down_s=draw.choice([0.5, 3.0])) for _ in range(draw.randint(0, 2))
    )
    speeds = Speeds(tuple(draw.choice([0.1, 0.3, 1.0]) for _ in range(replicas)), jitter=0.3)
    plan = replace(usual, exchange="a certificate", kpool=kpool)
    fleet = FaultyFleet(plan, speeds, link, seed, faults, dead, turn_s=draw.choice(TURNS_S))
    for _ in range(draw.randint(0, 2)):
        fleet.kernel.at(draw.uniform(1.0, 20.0), fleet.exchange.kill, draw.choice([0.2, 2.0]))
    return fleet


@pytest.mark.parametrize(
    "seeds", [range(8), *(pytest.param(range(n, n + 50), marks=pytest.mark.nightly) for n in range(1000, 1300, 50))]
)
def test_though_members_are_a_round_behind_every_sample_counts_once_and_anchors_are_the_same(seeds: range) -> None:
    for seed in seeds:
        fleet = uneven_fleet(seed)
        fleet.run(6000.0)
        if not anchors_have_gone(fleet):
            check_whole_run(fleet)


def seen_ahead(fleet: FaultyFleet) -> set[int]:
    """Run to the end; the rounds that were in flight while somebody had not voted on the one before."""
    found: set[int] = set()
    while fleet.hub.stage is not FleetStage.FINISHED and fleet.kernel.now_s < 4000.0:
        fleet.advance(0.02)
        rounds = fleet.hub.rounds
        if rounds.in_flight is not None and rounds.votes.behind is not None:
            found.add(rounds.number)
    return found


@pytest.mark.parametrize(("k", "goes_ahead"), [(2, True), (4, False)])
def test_where_the_hubs_link_is_short_a_round_comes_in_while_the_last_ones_result_goes_out(
    k: int, goes_ahead: bool
) -> None:
    """A payload takes 0.4 s there and back; rounds of all adapters wait for all members."""
    link = LinkModel(adapter_bytes=500_000, bandwidth_bytes_per_s=2.5e6, hub_bytes_per_s=2.5e6)
    fleet = a_fleet(link=link, k=k, count=1, min_steps=1)
    found = seen_ahead(fleet)
    check_whole_run(fleet)
    assert bool(found) is goes_ahead


def test_fast_members_go_on_while_one_is_slow_to_get_its_result() -> None:
    link = LinkModel(adapter_bytes=500_000, bandwidth_bytes_per_s=2.5e6, hub_bytes_per_s=2.5e7, slow=((3, 10.0),))
    fleet = a_fleet(link=link, count=1, min_steps=1, round_quorum=0.5, round_grace_s=0.1)
    found = seen_ahead(fleet)
    check_whole_run(fleet)
    assert found
    assert any(3 not in fleet.exchange.kept[1, number].counted for number in found), "it fetches the result alone"


def a_fleet(faults: tuple[SimulatedFault, ...] = (), link: LinkModel | None = None, **changes) -> FaultyFleet:
    settings = kpool(**{"n": 4, "k": 2, "trigger": "count", "count": 2, **changes})
    plan = hub_plan(replicas=4, samples=200, silent_timeout_s=4.0, kpool=settings, exchange="a certificate")
    slow = link or LinkModel(adapter_bytes=1_000_000, bandwidth_bytes_per_s=2e7, hub_bytes_per_s=2e7)
    return FaultyFleet(plan, Speeds((0.2,), jitter=0.2), slow, 0, faults)


def test_a_slow_link_comes_too_late_is_waited_for_after_three_rounds_and_loses_nothing() -> None:
    """Ten times as slow as the others, and no round waits: its parts are void until one does."""
    link = LinkModel(adapter_bytes=1_000_000, bandwidth_bytes_per_s=2e7, hub_bytes_per_s=2e8, slow=((3, 10.0),))
    fleet = a_fleet(link=link, round_quorum=0.5, round_grace_s=0.1)
    fleet.run(4000.0)
    check_whole_run(fleet)
    with_it = [3 in shared.counted for shared in fleet.exchange.kept.values()]
    assert fleet.exchange.late >= 3
    assert with_it[:4] == [False, False, False, True]
    assert fleet.replicas[3].progress.samples == fleet.replicas[3].ledger.durable > 0
    assert fleet.replicas[3].ledger.committed == fleet.replicas[3].ledger.produced


def test_a_death_while_parts_come_in_ends_no_round_and_the_next_generation_opens_after_it() -> None:
    """At a moment at which the first round is being collected: 0.1 s of upload for each."""
    fired_s = next(at for at in moments(a_fleet(), "fired"))
    fleet = a_fleet((SimulatedFault("kill", 2, fired_s + 0.05, back_s=3.0),))
    fleet.run(4000.0)
    check_whole_run(fleet)
    names = [event.name for event in fleet.events]
    assert "aborted" not in names
    assert fleet.hub.rounds.aborted == 0
    left = names.index("left")
    assert names[left : left + 3] == ["left", "committed", "generation"]
    first = next(iter(fleet.exchange.kept.values()))
    assert first.counted == (0, 1, 3)


def test_a_part_that_was_whole_counts_although_its_sender_is_dead_and_only_the_rest_is_trained_again() -> None:
    """It dies when its part is at the exchange and the others' are not."""
    link = LinkModel(adapter_bytes=1_000_000, bandwidth_bytes_per_s=2e7, hub_bytes_per_s=1e9, slow=((0, 10.0),))
    fired_s = next(at for at in moments(a_fleet(link=link, k=4), "fired"))
    fleet = a_fleet((SimulatedFault("kill", 2, fired_s + 0.5),), link, k=4)
    fleet.run(4000.0)
    check_whole_run(fleet)
    first = next(iter(fleet.exchange.kept.values()))
    assert first.counted == (0, 1, 2, 3)
    durable = dict(zip(first.counted, first.durables, strict=True))[2]
    dead = next(each for each in [*fleet.hub.members.values(), *fleet.hub.past] if each.hello.replica == 2)
    assert durable == dead.durable_samples > 0, "nothing of it is trained again"
    assert fleet.hub.rounds.aborted == 0


def moments(fleet: FaultyFleet, name: str) -> list[float]:
    """When events of this name come, in a fleet without faults."""
    found: list[float] = []
    while fleet.hub.stage is not FleetStage.FINISHED and len(found) < 3:
        before = sum(event.name == name for event in fleet.events)
        fleet.advance(0.005)
        if sum(event.name == name for event in fleet.events) > before:
            found.append(fleet.kernel.now_s)
    return found


def test_of_many_replicas_that_come_and_go_nearly_all_rounds_are_committed() -> None:
    """A death every 3 s; a group of as many has almost no round (docs/scale.md)."""
    faults = churn(60, 0.33, 60.0, 10.0, random.Random(0))
    settings = kpool(n=8, k=2)
    plan = hub_plan(replicas=60, samples=6000, lease_samples=8, kpool=settings, exchange="a certificate")
    link = LinkModel(adapter_bytes=1_000_000, bandwidth_bytes_per_s=1e8, hub_bytes_per_s=1e8)
    fleet = FaultyFleet(plan, Speeds((1.0,), jitter=0.2), link, 0, faults, keep_alive=False)
    fleet.run(60.0)
    assert check_agreement(fleet) == check_accounting(fleet) == check_shared(fleet) == []
    fired = sum(fleet.hub.rounds.by_reason.values())
    assert len(fleet.past) > 12
    assert fleet.hub.rounds.version >= 0.9 * (fired - 1) > 10
