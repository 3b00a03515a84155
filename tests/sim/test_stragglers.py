"""The slow replica of a simulated fleet is named, and nobody else."""

from __future__ import annotations

import pytest

from tests.support import hub_plan, kpool
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.messages import Slowness, decode, encode
from tsugi_kpool.core.messages.bounds import sound
from tsugi_kpool.sim import Fleet, LinkModel, Slow, Speeds


def fleet(replicas: int, *slow: Slow, jitter: float = 0.2) -> Fleet:
    plan = hub_plan(replicas=replicas, samples=10_000_000, kpool=kpool(n=8, k=2, count=10, trigger="count"))
    return Fleet(plan, Speeds((2.0,), jitter=jitter, slow=slow), LinkModel(), seed=0)


def named(simulated: Fleet) -> dict[int, Slowness]:
    rows = fleet_status(simulated.hub, simulated.kernel.now_s).replicas
    return {row.replica: row.slowness for row in rows if row.slowness is not None}


def told(simulated: Fleet) -> list[tuple[str, int]]:
    return [(e.name, e.data["replica"]) for e in simulated.events if e.name in ("slow", "recovered")]


def test_of_a_hundred_replicas_the_one_that_turns_slow_is_named_and_nobody_else():
    simulated = fleet(100, Slow(7, 4.0, from_s=80.0), Slow(7, 1.0, from_s=200.0))
    simulated.run(79)
    assert named(simulated) == {}
    simulated.run(90)
    slow = named(simulated)
    assert list(slow) == [7]
    assert slow[7].factor == pytest.approx(4.0, rel=0.3)
    assert simulated.kernel.now_s - slow[7].since_s == pytest.approx(80, abs=12)
    assert (slow[7].before_s, slow[7].after_s) == (pytest.approx(2.0, rel=0.2), pytest.approx(8.0, rel=0.3))
    assert (slow[7].part, slow[7].cause) == ("step", "compute")
    simulated.run(90)
    assert named(simulated) == {}
    assert told(simulated) == [("slow", 7), ("recovered", 7)]


def test_one_of_two_that_always_was_slow_is_named_against_the_other():
    simulated = fleet(2, Slow(1, 4.0))
    simulated.run(300)
    slow = named(simulated)
    assert list(slow) == [1]
    assert slow[1].since_s is None
    assert slow[1].factor == pytest.approx(4.0, rel=0.3)
    assert told(simulated) == [("slow", 1)]
    rows = fleet_status(simulated.hub, simulated.kernel.now_s).replicas
    assert rows[0].drift - rows[0].drift_error > rows[1].drift + rows[1].drift_error


def test_jitter_is_flagged_and_not_taken_for_slowness():
    simulated = fleet(4, jitter=0.9)
    simulated.run(400)
    assert any(row.jitters for row in fleet_status(simulated.hub, simulated.kernel.now_s).replicas)
    calm = fleet(4, jitter=0.1)
    calm.run(400)
    assert not any(row.jitters for row in fleet_status(calm.hub, calm.kernel.now_s).replicas)


def test_who_turns_slow_as_the_run_ends_is_not_told_after_it():
    """The last steps of a fleet that evaluates already, and so lacks a core, are nobody's trouble."""
    simulated = fleet(4, Slow(1, 4.0, from_s=60.0), jitter=0.05)
    while named(simulated) == {}:
        simulated.run(1.0)
    assert told(simulated) == [], "noticed, and not told yet"
    simulated.hub.stage = FleetStage.DRAINING
    after = [each for second in range(10) for each in simulated.hub.tick(simulated.kernel.now_s + second)]
    assert not [each for each in after if getattr(each, "name", "") == "slow"]


@pytest.mark.parametrize("replicas", [2, 4])
def test_a_status_holds_numbers_that_every_reader_takes_at_any_moment(replicas):
    """Also at the moment in which a pace has just changed, of which nothing is known yet."""
    simulated = fleet(replicas, Slow(1, 4.0, from_s=60.0), Slow(1, 1.0, from_s=120.0), jitter=0.05)
    for _ in range(800):
        simulated.run(0.25)
        status = fleet_status(simulated.hub, simulated.kernel.now_s)
        assert sound(decode(encode(status))), status
