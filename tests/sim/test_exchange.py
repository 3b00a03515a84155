"""Rounds at an exchange while replicas die, freeze, come late and come back, and hub and exchange are killed."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.sim.test_faults import ROUGH, TURNS_S, a_plan, in_order, some_faults
from tsugi_kpool.core import records
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.records import parse
from tsugi_kpool.sim import (
    FaultyFleet,
    HubCrash,
    LinkModel,
    Speeds,
    check_accounting,
    check_agreement,
    check_shared,
)


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


@pytest.mark.parametrize("block", range(10))
def test_whatever_dies_every_sample_counts_once_and_anchors_are_the_same(block: int) -> None:
    for seed in range(20 * block, 20 * (block + 1)):
        fleet = rough_fleet(seed, crashes=seed % 3 == 0)
        fleet.run(4000.0)
        check_whole_run(fleet)
