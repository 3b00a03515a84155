"""20,000 hostile frames on every run of the tests; benchmarks/sideband/fuzz.py sends a million and more."""

from __future__ import annotations

import random

import pytest

from tests.support import hub_plan
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.messages import BadFrame, Hello, LeaseRequest, decode
from tsugi_kpool.sim.hostile import frames_of, mutated, samples

FRAMES = 10_000


def fleet() -> Hub:
    """Two members in training; the first has data."""
    hub = Hub(hub_plan(sample_tokens=10), 0.0)
    for replica in range(2):
        hub.receive(Hello(1, replica, f"secret{replica}", "h", 1, "c0ffee", "layout"), 0.0)
    hub.receive(LeaseRequest(0, "secret0", 1), 0.0)
    return hub


def facts(hub: Hub, replicas: tuple[int, ...]) -> list[object]:
    """What training depends on."""
    members = [hub.members[replica] for replica in replicas]
    known = [(each.hello, each.beat, each.gone, each.committed_tokens) for each in members]
    tickets = [hub.leases.newest_ticket(replica) for replica in replicas]
    run = [hub.stage, hub.failure, hub.generation, sorted(hub.members), hub.rounds.in_flight, hub.rounds.version]
    return [*run, hub.store, hub.evaluations, known, tickets]


def send(hub: Hub, frames: list[bytes], replica_of: int | None, seed: int) -> int:
    """Mutated frames through decoder, guard and hub; how many got through to the hub."""
    draw, guard, through = random.Random(seed), Guard(hub), 0
    for count in range(FRAMES):
        try:
            message = decode(mutated(draw, frames))
        except BadFrame:
            continue
        if guard.verdict(message, replica_of) is None:
            hub.receive(message, count / FRAMES)
            through += 1
    return through


@pytest.mark.parametrize("replica", [0, 1])
def test_holder_of_the_key_who_is_no_member_changes_nothing(replica):
    hub = fleet()
    before, pooled, positions = facts(hub, (0, 1)), list(hub.tally.pooled), hub.leases.issued
    send(hub, frames_of(samples(replica, "guessed", hub.plan.kpool.n)), None, seed=replica)
    assert (facts(hub, (0, 1)), hub.tally.pooled, hub.leases.issued) == (before, pooled, positions)


def test_a_member_that_sends_nonsense_harms_neither_the_hub_nor_the_other_member():
    """What it says of itself may change what is known of it; never of another, and never beyond what can be."""
    hub = fleet()
    other = facts(hub, (0,))[-2:]
    frames = frames_of(
        [m for m in samples(1, "secret1", hub.plan.kpool.n) if type(m).__name__ not in ("Failed", "Bye")]
    )
    assert send(hub, frames, 1, seed=2) > 0
    assert facts(hub, (0,))[-2:] == other
    assert hub.failure is None
    assert all(0 <= steps < 2**53 for steps in hub.tally.pooled)
    assert hub.leases.issued <= hub.plan.samples
    assert len(hub.store) <= 400
