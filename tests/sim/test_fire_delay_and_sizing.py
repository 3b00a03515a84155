"""What kpool.k=auto, fire_delay_s and size_work change in a simulated fleet."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.test_fleet import checked
from tests.support import hub_plan, kpool
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.settings import Trigger
from tsugi_kpool.sim import Fleet, LinkModel, Slow, Speeds

MEGABYTE = 1 << 20


def plan(replicas=4, samples=1_000_000, micro_batch=8, **settings):
    shape = {"replicas": replicas, "samples": samples, "micro_batch": micro_batch, "lease_samples": micro_batch}
    return hub_plan(**shape, kpool=kpool(n=8, **settings))


def shipped(fleet: Fleet) -> list[int]:
    return [len(event.data["adapters"]) for event in fleet.events if event.name == "fired"]


@pytest.mark.parametrize(
    ("link", "k"),
    [
        (LinkModel(latency_s=0.0005, bandwidth_bytes_per_s=1.25e9, adapter_bytes=MEGABYTE), 8),
        (LinkModel(latency_s=0.0005, bandwidth_bytes_per_s=6e6, adapter_bytes=MEGABYTE), 2),  # 4 steps
        (LinkModel(latency_s=0.0005, bandwidth_bytes_per_s=1e6, adapter_bytes=MEGABYTE), 1),  # 25 steps
        (LinkModel(latency_s=2.0, bandwidth_bytes_per_s=6e6, adapter_bytes=MEGABYTE), 8),  # bound by latency
    ],
    ids=["fast", "slow", "very slow", "latency"],
)
def test_k_follows_the_link(link, k):
    fleet = Fleet(plan(k="auto", round_timeout_s=300.0), Speeds((1.0,)), link, seed=0)
    checked(fleet, 900)
    assert Counter(shipped(fleet)[6:]).most_common(1)[0][0] == k
    assert fleet_status(fleet.hub, fleet.kernel.now_s).pool_text.startswith(f"K={k} (auto) of N=8")


def test_k_is_found_through_jitter_too():
    link = LinkModel(latency_s=0.0005, bandwidth_bytes_per_s=6e6, adapter_bytes=MEGABYTE, jitter=0.2)
    fleet = Fleet(plan(k="auto"), Speeds((1.0,), jitter=0.2, slow=(Slow(1, 4.0),)), link, seed=3)
    checked(fleet, 900)
    assert Counter(shipped(fleet)[20:]).most_common(1)[0][0] == 2


def test_a_held_round_takes_in_the_step_that_is_about_to_end():
    """Replica 1 ends a few ms after every second step of replica 0, which fills the pool: always too late."""
    found = {}
    for fire_delay_s in (0.0, 0.05):
        settings = {"k": 8, "trigger": Trigger.COUNT, "count": 1, "min_steps": 1, "fire_delay_s": fire_delay_s}
        fleet = Fleet(plan(replicas=2, **settings), Speeds((0.5, 1.002)), LinkModel(latency_s=0.001), seed=0)
        checked(fleet, 20)
        found[fire_delay_s] = late(fleet, 1)
        held = [event.data for event in fleet.events if event.name == "fired" and "delayed_s" in event.data]
        assert bool(held) == bool(fire_delay_s)
        assert all(0.0 < data["delayed_s"] <= fire_delay_s + 1e-9 and data["delayed_for"] == [1] for data in held)
    assert found[0.05] < 0.75 * found[0.0]


@pytest.mark.parametrize(
    ("speeds", "pooled"),
    [(Speeds((1.0,), jitter=0.03, slow=(Slow(7, 4.0),)), 7), (Speeds((1.0,), jitter=0.03), 8),
     (Speeds((1.0,), jitter=0.5), 8)],
    ids=["straggler", "healthy", "jitter"],
)  # fmt: skip
def test_no_round_waits_for_the_step_that_a_straggler_does_not_make(speeds, pooled):
    """With one of eight 4 times slower, 7.25 steps are made in the time of one: the eighth is a fast one's next."""
    link = LinkModel(latency_s=0.001)
    fleet = Fleet(plan(replicas=8, samples=4000, k=8, min_steps=1, fire_delay_s=0.0), speeds, link, seed=0)
    checked(fleet, 40)
    rounds = [event.data["pooled"] for event in fleet.events if event.name == "fired"]
    assert Counter(rounds[4:]).most_common(1)[0][0] == pooled


def late(fleet: Fleet, replica: int) -> float:
    staleness = fleet.replicas[replica].staleness
    return staleness.versions / staleness.steps


def test_smaller_work_brings_the_straggler_near_one_round():
    """Replica 0 is 6 times slower. Without sizing each of its steps spans several rounds."""
    found = {}
    for size_work in (False, True):
        settings = {"k": 8, "trigger": Trigger.COUNT, "count": 1, "min_steps": 1, "size_work": size_work}
        fleet = Fleet(plan(samples=8000, **settings), Speeds((1.0,), slow=(Slow(0, 6.0),)), LinkModel(), seed=0)
        report = checked(fleet, 4000)
        assert report.stage == "finished"
        found[size_work] = late(fleet, 0)
        sized = [event.data for event in fleet.events if event.name == "sized"]
        assert {data["replica"] for data in sized} == ({0} if size_work else set())
        assert all(1 <= data["micro_batch"] <= 8 for data in sized)
    assert found[False] > 2.5
    assert found[True] < 1.3
