"""The exchange's disk is full and its process is killed while results go out: nobody has to leave, nothing is lost,
and nothing counts twice."""

from __future__ import annotations

import random

import pytest

from tests.sim.test_exchange import a_fleet, anchors_have_gone, check_whole_run, rough_fleet, uneven_fleet
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.sim import FaultyFleet, LinkModel

SLOW = LinkModel(adapter_bytes=500_000, bandwidth_bytes_per_s=2.5e6, hub_bytes_per_s=2.5e6, slow=((3, 4.0),))
"""A result is under way for half a second, for two at the last member."""


def fill(fleet: FaultyFleet, full: bool) -> None:
    assert fleet.exchange is not None
    fleet.exchange.full = full


def half_out(fleet: FaultyFleet) -> bool:
    """Whether some members have the result of the round in flight, and others have not."""
    return 0 < fleet.hub.rounds.reduced_on < len(fleet.hub.present)


@pytest.mark.parametrize("quorum", [1.0, 0.3])
@pytest.mark.parametrize("k", [2, 4])
def test_killed_with_a_result_half_out_and_on_no_disk_the_round_is_made_anew_and_nobody_leaves(
    quorum: float, k: int
) -> None:
    kills = 0
    fleet = a_fleet(link=SLOW, k=k, count=1, min_steps=1, round_quorum=quorum, round_grace_s=0.05)
    assert fleet.exchange is not None
    fill(fleet, True)
    while fleet.hub.stage is not FleetStage.FINISHED and fleet.kernel.now_s < 4000.0:
        fleet.advance(0.01)
        if half_out(fleet) and kills < 3 and fleet.kernel.now_s > 4.0 * (kills + 1):
            fleet.exchange.kill(0.3)
            kills += 1
        if kills == 3:
            fill(fleet, False)
    check_whole_run(fleet)
    assert kills == 3
    assert not [event for event in fleet.events if event.name == "left"], "nobody has to"


@pytest.mark.parametrize(
    "seeds", [range(4), *(pytest.param(range(n, n + 50), marks=pytest.mark.nightly) for n in range(50, 250, 50))]
)
@pytest.mark.parametrize("make", [lambda seed: rough_fleet(seed, seed % 3 == 0), uneven_fleet])
def test_whatever_else_dies_meanwhile_every_sample_counts_once(make, seeds: range) -> None:
    for seed in seeds:
        fleet, draw = make(seed), random.Random(f"disk {seed}")
        for _ in range(draw.randint(1, 3)):
            at_s = draw.uniform(0.5, 15.0)
            fleet.kernel.at(at_s, fill, fleet, True)
            fleet.kernel.at(at_s + draw.uniform(0.5, 6.0), fleet.exchange.kill, draw.choice([0.2, 2.0]))
            fleet.kernel.at(at_s + draw.uniform(0.5, 9.0), fill, fleet, False)
        fleet.run(6000.0)
        if not anchors_have_gone(fleet):
            check_whole_run(fleet)
