"""Owners that tell one member something else, and members that say so falsely: who leaves, in hundreds of fleets."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.sim.test_faults import ROUGH, calm, check_whole_run
from tsugi_kpool.core.settings import Reduce
from tsugi_kpool.sim import FaultyFleet, HubCrash, Lie, LinkModel, SimulatedFault, Speeds, check_refusals


def a_fleet(seed: int, *lies: Lie, replicas: int = 5, faults=(), crashes=()) -> FaultyFleet:
    draw = random.Random(seed)
    plan = calm(replicas=replicas, samples=200)
    plan = replace(plan, kpool=replace(plan.kpool, reduce=Reduce.SCATTER))
    speeds = Speeds(tuple(draw.uniform(0.1, 0.4) for _ in range(replicas)))
    fleet = FaultyFleet(plan, speeds, draw.choice([LinkModel(), ROUGH]), seed, faults, crashes)
    fleet.telling.lies += lies
    fleet.run(3000)
    check_whole_run(fleet)
    assert check_refusals(fleet) == []
    return fleet


def told_apart(fleet: FaultyFleet) -> int:
    """Rounds that were dropped because two members say different things."""
    return sum(each.name == "aborted" and "nobody can prove it" in each.data["reason"] for each in fleet.events)


@pytest.mark.parametrize("seed", range(12))
def test_an_owner_that_signs_two_things_leaves_by_name_and_nobody_else_does(seed):
    liar = seed % 5
    fleet = a_fleet(seed, Lie("sign", liar, 3.0))
    assert fleet.hub.quarantined == {liar}
    (reason,) = [each.data["reason"] for each in fleet.events if each.name == "left"]
    assert "it has signed two different things" in reason
    assert told_apart(fleet) == 0


@pytest.mark.parametrize("kind", ["deceive", "accuse"])
@pytest.mark.parametrize("seed", range(12))
def test_one_that_does_not_sign_or_accuses_falsely_takes_at_most_one_along(seed, kind):
    """It meets a second one, and leaves alone, or the same one twice: then both do, because nobody knows who lies."""
    liar = seed % 5
    fleet = a_fleet(seed, Lie(kind, liar, 3.0))
    assert liar in fleet.hub.quarantined
    assert len(fleet.hub.quarantined) <= 2
    assert told_apart(fleet) >= 1


@pytest.mark.parametrize("kind", ["deceive", "accuse"])
def test_always_the_same_victim_leaves_with_the_liar(kind):
    fleet = a_fleet(1, Lie(kind, 2, 3.0, victims=(4,)))
    assert fleet.hub.quarantined == {2, 4}


@pytest.mark.parametrize("seed", range(6))
def test_two_that_lie_take_at_most_two_along_and_the_others_finish(seed):
    draw = random.Random(f"two {seed}")
    liars = draw.sample(range(7), 2)
    fleet = a_fleet(seed, *(Lie(draw.choice(["deceive", "accuse"]), liar, 3.0) for liar in liars), replicas=7)
    assert set(liars) <= fleet.hub.quarantined
    assert len(fleet.hub.quarantined) <= 4


@pytest.mark.parametrize("seed", range(6))
def test_deaths_and_another_hub_in_between_change_nothing(seed):
    draw = random.Random(f"with deaths {seed}")
    victim = draw.randrange(1, 5)
    faults = (SimulatedFault("kill", victim, draw.uniform(2.0, 6.0), back_s=1.0),)
    crashes = (HubCrash(at_s=draw.uniform(3.0, 6.0), down_s=1.0),)
    fleet = a_fleet(seed, Lie("sign", 0, 3.0), faults=faults, crashes=crashes)
    assert fleet.hub.quarantined <= {0}
